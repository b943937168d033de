"""Command line, environment and YAML files to one checked configuration: `--config FILE`, `--section.key VALUE`.

Later words win over earlier ones, whether they are options or files. The environment variable FER_RAY_OPTIONS holds
further options in the syntax of a shell. Every verb appends them to its own, so they win:

    FER_RAY_OPTIONS="--train.epochs 1 --data.sample.subjects 12" python jobs/pipeline.py --config FILE

All that is wrong is told in one error before any work begins.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import yaml
from yaml.constructor import BaseConstructor, ConstructorError

from fer_ray import checks, values
from fer_ray.config import Config, ConfigError

VARIABLE = "FER_RAY_OPTIONS"


def load(argv: list[str]) -> Config:
    """A checked configuration from options and the files that they name. Raises: ConfigError."""
    read = _Reader()
    for option, text in read.options(argv):
        if option == "config":
            read.file(text)
        else:
            read.option(option, text)
    config, problems, missing = checks.build(read.tree, read.origins)
    checks.refuse(config, [*read.problems, *problems], missing)
    return config


def from_environment() -> list[str]:
    """The options of FER_RAY_OPTIONS. Raises: ConfigError if its quotes do not match."""
    try:
        return shlex.split(os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from None


def absolute(config: Config) -> Config:
    """The configuration with every path absolute, `~` and $VARIABLES expanded.

    For the driver, before anything else reads the configuration: other processes have other working directories, and
    Ray Tune changes its own. Untouched are URIs, paths below a data set's root if they are relative, and values that
    name a variable which is not set: their verb may not use them, and says so if it does.

    Raises: ConfigError if `storage` names such a variable, or a value is wrong once it is expanded.
    """
    found = _with_paths(config)
    if _VARIABLE_NAME.search(found.storage):
        raise ConfigError(f"storage: {config.storage} names an environment variable that is not set")
    return checks.check(found)


_VARIABLE_NAME = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def _with_paths(section: Any) -> Any:
    new = {}
    for name, kind in values.hints(type(section)).items():
        value = getattr(section, name)
        if values.is_section(kind):
            new[name] = _with_paths(value)
        elif get_origin(kind) is list and values.is_section(get_args(kind)[0]):
            new[name] = [_with_paths(item) for item in value]
        elif of := values.text_of(kind):
            new[name] = _with_path(of, value)
    return dataclasses.replace(section, **new)


def _with_path(of: str, text: str) -> str:
    """The path absolute, if `text` is one (`of`: see `values.Text`)."""
    if not text or of in ("name", "backbone"):
        return text
    if (of == "weights" and text in ("imagenet", "none")) or (of == "url" and text == "databricks"):
        return text
    # a secret of the environment would be written into results with the configuration
    expanded = _VARIABLE_NAME.sub(
        lambda found: found[0] if re.search(values.SECRET_WORDS, found[0], re.I)
        else os.environ.get(found[1] or found[2], found[0]), text)
    if _VARIABLE_NAME.search(expanded):
        return text
    expanded = os.path.expanduser(expanded)
    return expanded if "://" in expanded or of == "place below" else os.path.abspath(expanded)


class _Reader:
    """Collects nested keys and values, and all that is wrong with the way they are written."""

    def __init__(self) -> None:
        self.known = values.known_options(Config)
        self.tree: dict[str, Any] = {}  # sections are dictionaries; other values are as they were written
        self.origins: dict[str, str] = {}  # the file of an option; absent if it comes from the command line
        self.problems: list[str] = []

    def options(self, argv: list[str]) -> Iterator[tuple[str, str]]:
        """Option and value, from `--option value`, `--option=value`, and `--option` for a boolean that is true."""
        rest = list(reversed(argv))
        while rest:
            word = rest.pop()
            if not word.startswith("--"):
                self.problems.append(f"{values.shown(word)}: options are written --option value")
                continue
            option, equals, text = word[2:].partition("=")
            if not equals and rest and not rest[-1].startswith("--"):
                text, equals = rest.pop(), "="
            if option != "config" and option not in self.known:
                self.problems.append(f"unknown option --{option}{checks.nearest(option, list(self.known))}")
            elif equals:
                yield option, text
            elif self.known.get(option) is bool:
                yield option, "true"
            else:
                legal = "a YAML file" if option == "config" else values.legal(self.known[option])
                self.problems.append(f"--{option}: a value is missing; it must be {legal}")

    def option(self, option: str, text: str) -> None:
        """Take an option of the command line. Its value is text; those of lists, mappings and sections are YAML."""
        value: Any = text
        kind = self.known[option]
        if values.is_section(kind) or get_origin(kind) in (list, dict):
            try:
                value = self.yaml(text, f"--{option}")
            except ValueError as error:
                self.problems.append(str(error))
                return
        for part in reversed(option.split(".")):
            value = {part: value}
        self.merge(Config, value, self.tree, "", "")

    def file(self, path: str) -> None:
        """Take all options of a YAML file."""
        try:
            with open(path, "rb") as stream:
                content = stream.read().decode("utf-8-sig")
            tree = self.yaml(content, f"--config {path}")
        except UnicodeDecodeError as error:
            self.problems.append(f"--config {path}: is not UTF-8 text (byte {error.start})")
        except OSError as error:
            self.problems.append(f"--config {path}: {error.strerror}")
        except ValueError as error:  # also of open: a path with a zero byte
            self.problems.append(str(error) if str(error).startswith("--config") else f"--config: {error}")
        else:
            if isinstance(tree, dict):
                self.merge(Config, tree, self.tree, "", path)
            else:
                found = "is empty" if tree is None else f"holds {values.shown(tree)}"
                self.problems.append(f"--config {path}: {found}; it must hold keys and values, such as name: x")

    def yaml(self, text: str, where: str) -> Any:
        """YAML to dictionaries, lists, text and None. Raises: ValueError."""
        try:
            loader = _Loader(text)
            tree = loader.get_single_data()
        except yaml.YAMLError as error:
            raise ValueError(f"{where}: is not YAML: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise ValueError(f"{where}: is nested too deeply; options lie at most three levels deep") from None
        self.problems += [f"{where}: line {line}: the key {values.shown(key)} stands there twice"
                          for line, key in loader.repeated]
        return tree

    def merge(self, section: type, new: dict[str, Any], into: dict[str, Any], prefix: str, origin: str) -> None:
        """Put what `new` says of a section into `into`, over what stands there."""
        where = f"{origin}: " if origin else ""
        hints = values.hints(section)
        for name, value in new.items():
            key, kind = f"{prefix}{name}", hints.get(name)
            if kind is None:
                self.problems.append(f"{where}unknown key {key!r}{checks.nearest(key, list(self.known))}")
            elif not values.is_section(kind):
                into[name] = values.with_bool(kind, value)
                self.origins.pop(key, None)
                if origin:
                    self.origins[key] = origin
            elif isinstance(value, dict):
                self.merge(kind, value, into.setdefault(name, {}), f"{key}.", origin)
            else:
                self.problems.append(f"{where}{key}: {values.shown(value)} must be {values.legal(kind)}")


_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML whose scalars stay text, apart from null: the type of an option decides how its text is read.

    YAML 1.1 would read `name: no` as False, `name: 010` as 8, and `lr: 1e-3` as text. Keys are text too.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag in (f"{_TAG}null", f"{_TAG}merge")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag]
                         for tag in (*(_TAG + name for name in ("null", "str", "seq", "map")), None)}

    def __init__(self, text: str):
        super().__init__(text)
        self.repeated: list[tuple[int, str]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A dictionary. Keys that stand there twice go to `repeated`: PyYAML would silently take the last."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                self.repeated.append((key.start_mark.line + 1, key.value))
            seen.add(key.value)
        self.flatten_mapping(node)  # `<<: *other`
        for key, _ in node.value:
            key.tag = f"{_TAG}str"
        return BaseConstructor.construct_mapping(self, node, deep)
