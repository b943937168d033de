"""The table that all layouts become: schema, the eight classes and their fixed order, rejects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import UserError

EXPRESSIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
PROBABILITIES = [f"p_{expression}" for expression in EXPRESSIONS]  # columns of every table of predictions
SYNONYMS = {
    "anger": "angry ang an", "contempt": "contemptuous con co", "disgust": "disgusted disgusting dis di",
    "fear": "afraid fearful scared fea fe af", "happiness": "happy joy joyful smile hap ha", "neutral": "neu ne normal",
    "sadness": "sad sa", "surprise": "surprised sur su",
}
_PLAIN = {word: expression for expression, words in SYNONYMS.items() for word in (expression, *words.split())}
SCHEMA = pa.schema([("image", pa.string()), ("expression", pa.string()), ("subject", pa.string()),
                    ("sequence", pa.string()), ("frame", pa.int32()), ("position", pa.float32()),
                    ("dataset", pa.string()),
                    ("official", pa.string()),  # train, val or test where the data set's authors say so
                    ("face", pa.list_(pa.int32())),  # x, y, w, h in px where the data set says so
                    ("cropped", pa.bool_()),  # the image is a face and nothing else: no search
                    ("groups", pa.string()),  # the user's own columns, as JSON
                    ("excluded", pa.string()),  # why the user leaves it out
                    # of the file that holds the image, as it was listed
                    ("file_size", pa.int64()), ("file_mtime_ns", pa.int64())])
FILE_COLUMNS = ("file_size", "file_mtime_ns")  # tell whether a file was touched, nothing of the image
REJECT_SCHEMA = pa.schema([("image", pa.string()), ("dataset", pa.string()), ("expression", pa.string()),
                           ("reason", pa.string())])

# What the name of a data set ends with whose faces fer_ray drew itself: a report must not pass them off as people.
DRAWN = " (drawn sample)"

# Reasons of images that were not opened, and must not be.
NOT_THERE, OUTSIDE = "file not found", "path leaves the data set's folder"
UNREADABLE = "cannot be read: Permission denied"  # as pixels.ImageError has it


class DataError(UserError):
    """The data cannot be used as it is; the message names the file, the value and what would be right."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def is_drawn(datasets: Iterable[str]) -> bool:
    """Whether any of these data sets holds drawn faces, as its name says."""
    return any(name.endswith(DRAWN) for name in datasets)


def printable(text: str) -> str:
    """`text` with control characters, which a terminal would obey, and bytes that are no UTF-8 as escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Manifest:
    """Usable images (`SCHEMA`) and those that are not (`REJECT_SCHEMA`), each sorted by data set and image."""

    rows: pa.Table
    rejected: pa.Table
    ledger: dict = field(default_factory=dict)  # what became of each file, of `ledger.balance`


def build(rows: list[dict], rejected: list[dict], dataset: str, people: str) -> Manifest:
    """Sorted tables: the order of files on disk never matters. Keys that a row lacks become null.

    `people` names whom subjects and sequences belong to, so that S001 of two data sets are two persons.
    """
    def complete(row: dict, schema: pa.Schema) -> dict:
        named = {k: printable(f"{people}:{row[k]}") for k in ("subject", "sequence") if row.get(k) is not None}
        return {name: row.get(name) for name in schema.names} | named | {"dataset": printable(dataset)}

    def table(rows: list[dict], schema: pa.Schema) -> pa.Table:
        return pa.Table.from_pylist([complete(r, schema) for r in rows], schema=schema).sort_by("image")

    return Manifest(table(rows, SCHEMA), table(rejected, REJECT_SCHEMA))


def merge(manifests: list[Manifest]) -> Manifest:
    """Several data sets as one."""
    order = [("dataset", "ascending"), ("image", "ascending")]
    return Manifest(pa.concat_tables([m.rows for m in manifests]).sort_by(order),
                    pa.concat_tables([m.rejected for m in manifests]).sort_by(order))


def read_parquet(source, columns: list[str] | None = None, filesystem=None) -> pa.Table:
    """A table of a Parquet file, wherever it comes from. Raises: DataError as `plain`; pyarrow.ArrowException."""
    return plain(pq.read_table(source, columns=columns, filesystem=filesystem))


def plain(table: pa.Table) -> pa.Table:
    """`table`, if looking at its values runs nothing.

    Once Ray Data is imported, pyarrow unpickles the columns that a file declares as Ray's objects, which runs code of
    whoever wrote the file. Ray guards its own readers only.

    Raises: DataError for a column of such a type.
    """
    if odd := [f.name for f in table.schema if _holds_extension(f.type)]:
        raise DataError(f"columns {', '.join(odd)}: a Parquet file may hold plain values only, no Python objects")
    return table


def _holds_extension(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_extension(kind.value_type)
    return isinstance(kind, pa.BaseExtensionType) or any(
        _holds_extension(kind.field(i).type) for i in range(kind.num_fields))


def canonical_expression(name: str, where: str, names: dict[str, str] | None = None) -> str:
    """One of `EXPRESSIONS` for any common spelling ("Happy", "HA", "3_fear") or one of the user's `names`.

    `where` names file and row for the message. Raises: DataError for an unknown name.
    """
    raw, plain = _spelled(name, names)
    if plain not in _PLAIN:
        near = nearest(name, names)
        hint = (f" (did you mean {near!r}?)" if near else "") + "; say what it is by data.names"
        if raw.isdecimal():
            hint = '; a number means another expression in every data set: say which by data.names, {"0": "anger", ...}'
        raise DataError(f"{where}: unknown expression {name!r}{hint}; known: {', '.join(EXPRESSIONS)}")
    return _PLAIN[plain]


def is_expression(name: str, names: dict[str, str] | None = None) -> bool:
    """Whether `canonical_expression` knows the name."""
    return _spelled(name, names)[1] in _PLAIN


def nearest(name: str, names: dict[str, str] | None = None) -> str | None:
    """The known spelling, or the user's name, that an unknown one is near to; None if none is, or it is one itself."""
    plain = _spelled(name, names)[1]
    found = difflib.get_close_matches(plain, (*_PLAIN, *(names or {})), n=1) if plain not in _PLAIN else []
    return found[0] if found else None


def said_by(names: dict[str, str] | None, name: str) -> str:
    """What the user's `names` say that a name is, whatever its case; the name itself if they say nothing."""
    if not names or name in names:
        return (names or {}).get(name, name)
    return {known.casefold(): meant for known, meant in names.items()}.get(name.casefold(), name)


def _spelled(name: str, names: dict[str, str] | None) -> tuple[str, str]:
    """A name in lower case, with the user's `names` put in, and without a leading number."""
    raw = str(name).strip()
    raw = re.sub(r"^([0-9]+)[.,]0+$", r"\1", raw) if raw not in (names or {}) else raw  # 3.0 of a spreadsheet is 3
    raw = said_by(names, raw).casefold()
    return raw, re.sub(r"^\d+[\W_]+", "", raw)
