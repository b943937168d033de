"""Is a configuration right? Types and ranges of single values, then what must hold between several of them.

All that is wrong is told in one `ConfigError`: file, key, value and what would be right.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from fer_ray.config import Config, ConfigError, to_dict
from fer_ray.values import (
    BACKBONES,
    CREDENTIALS,
    LARGEST_SIDE,
    SMALLEST_SIDE,
    hints,
    is_backbone,
    is_section,
    legal,
    shown,
    text_of,
    walk,
)

_SAFE_PLACE = {"train.mlflow": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"}
# Schemes that people mean as such, also in capitals or without `//`: as paths they would make a local folder `s3:`.
_SCHEME = re.compile(r"(s3[an]?|gs|gcs|https?|ftp|file|hdfs|abfss?|az|r2):", re.I)


def check(config: Config) -> Config:
    """Return `config` if all its values are right. Raises: ConfigError listing all that are not."""
    right, problems, missing = build(to_dict(config), {})
    refuse(right, problems, missing)
    return config


def refuse(config: Config, problems: list[str], missing: list[str]) -> None:
    """Raise a ConfigError that lists `problems` and what else is wrong; return if nothing is.

    Args:
        config: of the right types, with defaults in place of what `problems` are about.
        problems: what is wrong with single values.
        missing: keys whose value is such a default, so that rules between them and others cannot be checked.
    """
    if leaking := [key for key, _, value in walk(config) if isinstance(value, str) and CREDENTIALS.match(value)]:
        # Alone, before anything else is told: no other message may repeat the credentials.
        raise ConfigError("; ".join(
            f"{key}: carries credentials, which would end up in results and logs; leave them out of it and give them "
            f"by {_SAFE_PLACE.get(key, 'the AWS environment')}" for key in leaking))
    texts = [f"{key}: {shown(value)} {wrong}" for key, kind, value in walk(config)
             if (wrong := _wrong_text(key, text_of(kind), value))]
    together = [line for line in _contradictions(config) if not any(key in line for key in missing)]
    if found := [*problems, *texts, *together, *_wrong_endpoint(config)]:
        raise ConfigError("; ".join(found))


def build(tree: dict[str, Any], origins: Mapping[str, str]) -> tuple[Config, list[str], list[str]]:
    """A configuration from nested keys and values, whose numbers and booleans may still be text.

    Args:
        tree: nested dictionaries; what is missing takes its default.
        origins: the file that a key comes from, by dotted key; for messages.

    Returns: the configuration, with defaults in place of what is wrong; what is wrong; the keys of it.
    """
    from pydantic import ValidationError

    try:
        return _adapter().validate_python(tree), [], []
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
    wrong = {_option(Config, entry["loc"]): entry for entry in reversed(found)}
    for keys in wrong:
        tree = _without(tree, keys)
    config, problems, missing = build(tree, origins)
    return config, [*(_line(entry, origins) for entry in found), *problems], [*map(".".join, wrong), *missing]


@functools.cache
def _adapter() -> Any:
    """Pydantic's validator of `Config`. Imported late: it takes 0.1 s, which `--help` does not need."""
    from pydantic import ConfigDict, TypeAdapter

    # read by pydantic from the class; it holds for the sections too
    Config.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # ty: ignore[missing-attribute]
    return TypeAdapter(Config)


def _option(cls: type, location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys that lead to the option in which pydantic found something wrong, without those inside its value."""
    first, *rest = location
    inner = hints(cls).get(str(first))
    return (str(first), *_option(inner, tuple(rest))) if inner and is_section(inner) and rest else (str(first),)


def _without(tree: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of nested dictionaries without the value that `keys` lead to."""
    first, *rest = keys
    if rest:
        return tree | {first: _without(tree[first], tuple(rest))}
    return {key: value for key, value in tree.items() if key != first}


def _line(entry: Any, origins: Mapping[str, str]) -> str:
    """What pydantic found, in words of ours."""
    location = entry["loc"]
    key, kind, parent = "", Config, Config
    for part in location:
        parent = kind
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
        kind = _inner(kind, part)
    file = origins.get(".".join(_option(Config, location)), "")
    where = f"{file}: " if file else ""
    if entry["type"] == "unexpected_keyword_argument":
        before = key.rpartition(".")[0]
        return f"{where}unknown key {key!r}{nearest(key, [f'{before}.{name}' for name in hints(parent)])}"
    return f"{where}{key}: {shown(entry['input'])} must be {legal(kind)}"


def _inner(kind: Any, part: int | str) -> Any:
    """The type of a key of a section, of an item of a list, or of a value of a mapping."""
    if is_section(kind):
        return hints(kind).get(str(part), str)
    return get_args(kind)[-1] if get_origin(kind) in (list, dict) else kind


def nearest(key: str, names: list[str]) -> str:
    """The end of a message about an unknown key: what was probably meant, or all keys of its section."""
    section, _, last = key.rpartition(".")
    siblings = [name for name in names if name.rpartition(".")[0] == section]
    near = (difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
            or [name for name in names if name.rpartition(".")[2] == last]
            or difflib.get_close_matches(key, names, n=1, cutoff=0.7))
    return f" (did you mean {near[0]!r}?)" if near else f"; known: {', '.join(siblings or names)}"


# --- texts that name something ---------------------------------------------------------------------------


def _wrong_text(key: str, of: str, value: Any) -> str:
    """What is wrong with a text that names something; "" if nothing is."""
    if of == "name" and (value or key == "name") and not _is_plain(value):
        return "must be a plain name without '/': letters, digits, and blanks . _ + - after the first"
    if of == "backbone" and not is_backbone(value):
        return (f"is no known backbone; known: {', '.join(BACKBONES)}, timm:NAME, each with @SIDE if it is to reduce "
                f"its images to {SMALLEST_SIDE} to {LARGEST_SIDE} px")
    if of in ("path", "place below", "uri", "weights") and "\0" in value:
        return "must not hold a zero byte"
    if of in ("uri", "place below", "weights"):
        return _wrong_uri(value) if value or key not in ("storage", "train.weights") else "must not be empty"
    if of == "path" and ("://" in value or _SCHEME.match(value)):
        return "must be a path on this machine, not a URI"
    return ""


def _wrong_uri(uri: str) -> str:
    if uri.startswith("s3://"):
        if not uri.removeprefix("s3://").partition("/")[0]:
            return "names no bucket; use s3://bucket/prefix"
        if "?" in uri:
            return "has a query; endpoint and region come from the AWS environment (AWS_ENDPOINT_URL)"
    elif ("://" in uri or _SCHEME.match(uri)) and not uri.startswith("file:///"):
        return "is of an unknown kind; use a path, file:///... or s3://bucket/prefix"
    return ""


def _is_plain(name: str) -> bool:
    """Whether a name can be a folder's, of a path and of a URI, and no option of a command."""
    return bool(re.fullmatch(r"\w[\w .+-]*", name))


def _wrong_endpoint(config: Config) -> list[str]:
    """What boto3 would answer with a traceback, for configurations that use S3."""
    if not any(isinstance(value, str) and value.startswith("s3://") for _, _, value in walk(config)):
        return []
    problems = []
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        url = os.environ.get(name, "")
        try:
            parts = urllib.parse.urlsplit(url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
        except ValueError:  # a port that is no number
            right = False
        if url and not right:
            problems.append(f"{name}: {shown(url)} in the environment must be a URL such as https://host:9000")
    return problems


# --- values that must go together ------------------------------------------------------------------------


def _contradictions(config: Config) -> list[str]:
    """What is wrong between several values. Each line names their keys in full."""
    train, split, tune, protocol, ckplus = config.train, config.split, config.tune, config.protocol, config.data.ckplus
    unnamed = [source.root for source in config.evaluate.also if not source.name]
    names = [source.name for source in config.evaluate.also]
    groups = {"dataset", "subject", "sequence", *config.data.table.group_columns}
    rules = [
        (train.mlflow and not importlib.util.find_spec("mlflow"),
         "train.mlflow: needs the package mlflow: pip install -e '.[mlflow]'"),
        (train.sampling == "balanced" and train.class_weights != "none",
         f"train.class_weights: {train.class_weights} with train.sampling balanced makes up for rare classes twice; "
         "use one of them"),
        (train.nesterov and train.momentum == 0, "train.nesterov: needs train.momentum greater than 0"),
        (0 < train.num_workers < train.min_workers,
         f"train.min_workers: {train.min_workers} must not exceed train.num_workers {train.num_workers}"),
        (train.feed == "stream" and train.sampling == "balanced",
         "train.sampling: balanced draws images several times an epoch, which train.feed stream reads once; use "
         "train.class_weights or another train.feed"),
        (train.feed == "stream" and train.layers == "head",
         "train.feed: stream has nothing to do for train.layers head, whose features are computed once"),
        (train.batch_size < train.num_workers,
         f"train.batch_size: {train.batch_size} is smaller than train.num_workers {train.num_workers}"),
        (config.faces.detector == "yunet" and not config.faces.model,
         "faces.model: needs the model file of faces.detector yunet"),
        (split.folds and (split.folds < 3 or split.by in ("official", "test")),
         f"split.folds: {split.folds} with split.by {split.by}; at least 3 folds (test, val, train), and not with "
         "split.by official or test"),
        (split.fold >= max(1, split.folds),
         f"split.fold: {split.fold} must be less than split.folds ({split.folds}), or 0 without folds"),
        (protocol.kind == "folds" and protocol.repeats < 3,
         f"protocol.repeats: {protocol.repeats} must be at least 3 with protocol.kind folds"),
        (unnamed, f"evaluate.also: each data set needs a name of its own (without: {shown(unnamed)})"),
        (len(set(names)) < len(names), f"evaluate.also: two data sets have one name ({shown(names)})"),
        (set(config.evaluate.groups) - groups,
         f"evaluate.groups: unknown columns {shown(sorted(set(config.evaluate.groups) - groups))}; known: "
         f"{', '.join(sorted(groups))} (more by data.table.group_columns)"),
        (not config.compare.backbones, "compare.backbones: [] must name at least one network"),
        (not config.export.formats, "export.formats: [] must name at least one format"),
        (len(set(config.export.formats)) < len(config.export.formats),
         f"export.formats: {shown(config.export.formats)} must name each format once"),
        (config.retrain and not config.labels, "retrain: needs --labels"),
        (ckplus.neutral_below > ckplus.expression_above,
         f"data.ckplus.neutral_below: {ckplus.neutral_below:g} must not exceed data.ckplus.expression_above "
         f"{ckplus.expression_above:g}"),
        (tune.grace_epochs > tune.max_epochs,
         f"tune.grace_epochs: {tune.grace_epochs} must not exceed tune.max_epochs {tune.max_epochs}"),
        *(_wrong_ends(name, getattr(tune, name)) for name in ("lr", "momentum", "weight_decay", "label_smoothing")),
        (not tune.momentum, "tune.momentum: [] must be [lowest, highest]"),
    ]
    return [line for wrong, line in rules if wrong]


def _wrong_ends(name: str, ends: list[float]) -> tuple[bool, str]:
    right = not ends or (len(ends) == 2 and ends[0] <= ends[1])
    return not right, f"tune.{name}: {shown(ends)} must be [lowest, highest]"
