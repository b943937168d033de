"""The table that all layouts become: schema, the eight classes and their fixed order, rejects."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import pyarrow as pa

EXPRESSIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
SYNONYMS = {
    "angry": "anger", "contemptuous": "contempt", "disgusted": "disgust", "afraid": "fear", "fearful": "fear",
    "scared": "fear", "happy": "happiness", "joy": "happiness", "smile": "happiness", "none": "neutral",
    "sad": "sadness", "surprised": "surprise",
}
SCHEMA = pa.schema([("image", pa.string()), ("expression", pa.string()), ("subject", pa.string()),
                    ("sequence", pa.string()), ("frame", pa.int32()), ("position", pa.float32()),
                    ("dataset", pa.string())])
REJECT_SCHEMA = pa.schema([("image", pa.string()), ("dataset", pa.string()), ("reason", pa.string())])


class DataError(ValueError):
    """The data cannot be used as given; the message names file, value and what would be right."""


@dataclass(frozen=True)
class Manifest:
    """Usable images (`SCHEMA`) and those that are not (`REJECT_SCHEMA`), each sorted by data set and image."""

    rows: pa.Table
    rejected: pa.Table


def build(rows: list[dict], rejected: list[dict]) -> Manifest:
    """Sorted tables: the order of files on disk never matters. Keys that a row lacks become null."""
    def key(row: dict) -> tuple[str, str]:
        return row["dataset"], row["image"]

    def complete(row: dict, schema: pa.Schema) -> dict:
        return {name: row.get(name) for name in schema.names}

    return Manifest(
        pa.Table.from_pylist([complete(r, SCHEMA) for r in sorted(rows, key=key)], schema=SCHEMA),
        pa.Table.from_pylist([complete(r, REJECT_SCHEMA) for r in sorted(rejected, key=key)], schema=REJECT_SCHEMA),
    )


def merge(manifests: list[Manifest]) -> Manifest:
    """Several data sets as one."""
    return build([r for m in manifests for r in m.rows.to_pylist()],
                 [r for m in manifests for r in m.rejected.to_pylist()])


def canonical_expression(name: str, where: str) -> str:
    """One of `EXPRESSIONS` for any common spelling; `where` names file and row for the message.

    Raises: DataError for an unknown name.
    """
    plain = str(name).strip().casefold()
    plain = SYNONYMS.get(plain, plain)
    if plain not in EXPRESSIONS:
        near = difflib.get_close_matches(plain, EXPRESSIONS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise DataError(f"{where}: unknown expression {name!r}{hint}; known: {', '.join(EXPRESSIONS)}")
    return plain
