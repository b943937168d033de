"""Command line and YAML files to a checked configuration: `--help`, `--config FILE`, `--section.key VALUE`.

Whatever is wrong is told in one error before Ray starts.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import yaml

from fer_ray.config import Config, ConfigError, check


def load(argv: list[str], description: str = "") -> Config:
    """Parse `--config FILE` and overrides into a checked `Config`.

    Raises: ConfigError listing everything that is wrong.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of the keys below")
    parser.add_class_arguments(Config)
    _check_keys(argv)
    try:
        parsed = parser.parse_args(_spelled_out(argv))
    except Exception as error:  # jsonargparse wraps every bad value in its own classes
        raise ConfigError(" ".join(str(error).split())) from None
    config = parser.instantiate(parsed)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(Config)}
    return check(Config(**values))


def known_keys(cls: type = Config, prefix: str = "") -> dict[str, type]:
    """All keys in dotted form, sections included, with their types."""
    keys = {}
    for name, kind in get_type_hints(cls).items():
        keys[prefix + name] = kind
        if dataclasses.is_dataclass(kind):
            keys |= known_keys(kind, f"{prefix}{name}.")
    return keys


def _spelled_out(argv: list[str]) -> list[str]:
    """`--labels` alone means `--labels true`."""
    bare = {f"--{key}" for key, kind in known_keys().items() if kind is bool}
    return [word for option, following in zip(argv, [*argv[1:], "--"], strict=True)
            for word in ([option, "true"] if option in bare and following.startswith("--") else [option])]


def _check_keys(argv: list[str]) -> None:
    """Name every unknown key, in the files and on the command line, with its nearest known one."""
    problems, names = [], list(known_keys())
    options = [a[2:].split("=")[0] for a in argv if a.startswith("--")]
    for option in options:
        if option not in (*names, "config", "help") and option.rstrip("+") not in names:
            problems.append(f"unknown option --{option}{_nearest(option, names)}")
    for path in _config_files(argv):
        try:
            tree = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise ConfigError(f"--config {path}: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"--config {path}: must hold keys and values, not {type(tree).__name__}")
        problems += [f"{path}: unknown key {key!r}{_nearest(key, names)}" for key in _unknown(tree, Config)]
    if problems:
        raise ConfigError("; ".join(problems))


def _config_files(argv: list[str]) -> list[str]:
    files = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    return files + [b for a, b in zip(argv, argv[1:], strict=False) if a == "--config"]


def _unknown(tree: dict, cls: type, prefix: str = "") -> list[str]:
    hints, unknown = get_type_hints(cls), []
    for key, value in tree.items():
        kind = hints.get(key)
        if kind is None:
            unknown.append(f"{prefix}{key}")
        elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
            unknown += _unknown(value, kind, f"{prefix}{key}.")
        elif get_origin(kind) is list and isinstance(value, list):
            item = get_args(kind)[0]
            for i, v in enumerate(value):
                unknown += _unknown(v, item, f"{prefix}{key}[{i}].") if isinstance(v, dict) else []
    return unknown


def _nearest(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else f"; known: {', '.join(names)}"
