"""What each option means, made from `fer_ray.config`: `--help` of a verb, and docs/options.md.

Make the page again: `python -m fer_ray.cli.reference > docs/options.md`
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from fer_ray import config as configuration
from fer_ray import data_config, options, values
from fer_ray.config import Config

# The options that a verb reads, by name or by section.
_RUN = ("name", "storage", "prepared")
_PREPARE = (*_RUN, "replace", "data", "faces", "split")
_SCORE = ("evaluate.batch_size", "evaluate.device", "evaluate.floor", "evaluate.groups", "card")
_ALL_STAGES = (*_PREPARE, "train", "evaluate", "card")
USES = {
    "pipeline": _ALL_STAGES,
    "prepare": _PREPARE,
    "train": (*_RUN, "train"),
    "evaluate": (*_PREPARE, "evaluate", "card", "train.seed"),
    "predict": ("name", "storage", "predict", "data.table.image_column", "faces.model"),
    "export": (*_RUN, "export", "evaluate.batch_size", "evaluate.device"),
    "serve": ("name", "storage", "serve", "predict.checkpoint", "predict.faces", "predict.tilt", "predict.min_face",
              "predict.device", "faces.model"),
    "tune": (*_PREPARE, "train", "tune", *_SCORE),
    "crossval": (*_ALL_STAGES, "protocol"),
    "compare": (*_ALL_STAGES, "compare"),
    "crossdata": ("name", "storage", "replace", "data", "faces", "split", "train", *_SCORE),
    "audit": (*_ALL_STAGES, "protocol", "labels", "retrain"),
    "paper": ("name", "storage", "replace", "data", "faces", "split.seed", "train", "evaluate", "card",
              "compare.backbones", "tune", "protocol.parallel", "paper"),
}
# These come first in `--help`, since most commands give some of them.
COMMON = ("name", "storage", "prepared", "data.root", "data.kind", "predict.images", "predict.checkpoint",
          "export.checkpoint", "export.formats", "serve.host", "serve.port", "labels", "paper.scale", "paper.new_face",
          "train.backbone", "train.epochs", "train.batch_size", "train.lr", "train.num_workers", "train.device",
          "evaluate.device", "predict.device")
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as people read it."""

    key: str
    legal: str
    default: str
    text: str
    section: str


def all_options(section: Any = Config, prefix: str = "") -> Iterator[Option]:
    """Every option, in the order of `config`; those of the root before its sections."""
    texts = _texts()[section.__name__]
    fields = dataclasses.fields(section)
    for one in fields:
        if not values.is_section(kind := values.hints(section)[one.name]):
            yield Option(f"{prefix}{one.name}", values.legal(kind), _default(one), texts[one.name],
                         prefix.rstrip("."))
    for one in fields:
        if values.is_section(kind := values.hints(section)[one.name]):
            yield from all_options(kind, f"{prefix}{one.name}.")


def used_by(verb: str) -> list[Option]:
    """The options that a verb reads."""
    return [option for option in all_options()
            if any(option.key == used or option.key.startswith(f"{used}.") for used in USES[verb])]


@functools.cache
def _texts() -> dict[str, dict[str, str]]:
    """The text below each field of each dataclass of the options, by class and field; "" is the class itself."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(data_config) + inspect.getsource(configuration)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {"": _plain(ast.get_docstring(node) or "")}
            for field, text in zip(node.body, node.body[1:], strict=False):
                match field, text:
                    case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words)))):
                        found[node.name][name] = _plain(words)
    return found


def _plain(words: str) -> str:
    return " ".join(words.split())


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # ty: ignore
    return "empty" if value in ("", [], {}) else value if isinstance(value, str) else json.dumps(value)


# --- a terminal ------------------------------------------------------------------------------------------


def help_of(verb: str, description: str) -> str:
    """The page of `fer_ray VERB --help`: the options that the verb uses, the common ones first, then by section."""
    used = {option.key: option for option in used_by(verb)}
    first = [used.pop(key) for key in COMMON if key in used]
    lines = [f"usage: fer_ray {verb} [--config FILE] [--OPTION VALUE ...]", "",
             *textwrap.wrap(description, WIDTH), "", "Common options:",
             *_entry("--config FILE", "A YAML file with any options, in nested sections. Options that come after it on "
                                      "the command line win over it.")]
    lines += [line for option in first for line in _option_lines(option)]
    for section in dict.fromkeys(option.section for option in used.values()):
        lines += ["", *textwrap.wrap(f"{section or 'other'}: {_section_text(section)}", WIDTH)]
        lines += [line for option in used.values() if option.section == section for line in _option_lines(option)]
    closing = (f"These are the options that {verb} uses. It takes those of all other verbs too, so that one file can "
               f"serve several: docs/options.md lists all. The environment variable {options.VARIABLE} holds further "
               "options that win over these.")
    return "\n".join([*lines, "", *textwrap.wrap(closing, WIDTH)])


def _section_text(section: str) -> str:
    cls = Config
    for name in section.split(".") if section else []:
        cls = values.hints(cls)[name]
    return _texts()[cls.__name__][""]


def _option_lines(option: Option) -> list[str]:
    return _entry(f"--{option.key} VALUE", f"{option.text} [{option.legal}; default: {option.default}]")


def _entry(option: str, text: str) -> list[str]:
    return [f"  {option}", *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)]


# --- docs/options.md -------------------------------------------------------------------------------------

_HEAD = f"""# Options

Made by `python -m fer_ray.cli.reference > docs/options.md` from `fer_ray/config.py` and `fer_ray/data_config.py`.

Every verb takes every option and uses those of the sections that concern it; `fer_ray VERB --help` lists these. An
option is written `--section.option VALUE` on the command line and in nested sections in a YAML file:

```
fer_ray train --config my.yaml --train.lr 0.01 --name try2
```

- Later words win over earlier ones, whether they are options or files (`--config` may stand several times).
- Lists and mappings are written as in YAML: `--tune.lr '[0.001, 0.1]'`, `--data.names '{{0: anger, 1: fear}}'`.
- `--labels` without a value means `--labels true`, likewise for every option that is true or false.
- `~` and environment variables such as `$FER_DATA` are expanded in paths. Relative paths start in the folder in which
  the command is run; those of `data.sources`, `evaluate.also` and `data.table` start in the data set's folder.
- The environment variable `{options.VARIABLE}` holds further options in the syntax of a shell, which every verb appends
  to its own, so that they win: `{options.VARIABLE}="--train.epochs 1" python jobs/pipeline.py ...`. A line on stderr
  says that they were taken.
- Whatever is wrong is told at once, in one line, before any work begins.
"""


def markdown() -> str:
    """The page docs/options.md."""
    lines, section = [_HEAD], None
    for option in all_options():
        if option.section != section:
            section = option.section
            lines += ["", f"## {section or 'Run'}", "", _section_text(section), "",
                      "| option | meaning | value | default |", "|---|---|---|---|"]
        default = option.default if option.default == "empty" else f"`{option.default}`"
        cells = (f"`{option.key}`", option.text, option.legal, default)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
