"""A table of labels, with image names beside a folder of images, or with the pixels in its own rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.data import listing, pixels, tables
from fer_ray.data.manifest import DataError, canonical_expression, read_parquet
from fer_ray.data_config import DataConfig, TableConfig

LOOKS = "one CSV or Parquet file with the columns of data.table"


def recognise(root: Path, data: DataConfig) -> str | None:
    """One table with the configured columns."""
    try:
        file = _find(root, data.table.file)
        columns = _columns(file)
    except DataError:
        return None
    return file.name if all(column in columns for column in _needed(data.table)) else None


def read(root: Path, data: DataConfig) -> tuple[list[dict], list[dict]]:
    """A row for each row of the table.

    Raises: DataError for a missing table, column or image folder, an unknown label or an unknown split.
    """
    options, file = data.table, _find(root, data.table.file)
    columns = _columns(file)
    for column in _needed(options):
        if column not in columns:
            raise DataError(f"{file}: no column {column!r}; its columns are {', '.join(columns)}")
    folder = root / options.images
    if not options.pixels_column and not os.path.isdir(folder):
        raise DataError(f"{folder} is not a folder (data.table.images)")
    pattern = listing.compile_pattern(options.subject_pattern, "data.table.subject_pattern")
    found = []
    for inside, number, row in _rows(file, options, columns):
        where = f"{file} row {number}"
        name = row.get(options.image_column, "")
        subject = row[options.subject_column].casefold() if options.subject_column else ""
        groups = {column: row[column] for column in options.group_columns}
        found.append({
            "image": inside or folder / name,
            "expression": canonical_expression(row[options.expression_column], where, data.names),
            "subject": subject or listing.subject_in(Path(name).name, pattern),
            "groups": json.dumps(groups) if groups else None,
            "official": _official(row, options, where),
            "cropped": bool(inside) and file.suffix == ".csv"})  # text of grey values is that of faces, as in FER2013
    return found, []


def elsewhere(root: Path, data: DataConfig) -> list[Path]:
    """The folder of images where the configuration names one outside the root. A link in the data set names none."""
    images = root / data.table.images
    return [images] if Path(os.path.relpath(images, root)).parts[:1] == ("..",) else []


def _needed(options: TableConfig) -> list[str]:
    return [column for column in (options.pixels_column or options.image_column, options.expression_column,
                                  options.subject_column, options.split_column, *options.group_columns) if column]


def _official(row: dict[str, str], options: TableConfig, where: str) -> str | None:
    if not options.split_column:
        return None
    value = row[options.split_column].strip()
    if value.casefold() not in listing.OFFICIAL:
        raise DataError(f"{where}: split {value[:40]!r}; right is train, val or test")
    return listing.OFFICIAL[value.casefold()]


def _find(root: Path, file: str) -> Path:
    if file:
        if not os.path.isfile(root / file):
            raise DataError(f"{root / file}: no such table (data.table.file)")
        return root / file
    found = listing.tables(root, ".csv", ".parquet")
    if len(found) != 1:
        raise DataError(f"{root}: {len(found)} CSV or Parquet files; name the right one by data.table.file")
    return found[0]


def _columns(file: Path) -> list[str]:
    if file.suffix != ".parquet":
        return tables.header(file)
    try:
        return pq.read_schema(file).names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable Parquet file ({_one_line(error)})") from None


def _rows(file: Path, options: TableConfig, columns: list[str]) -> Iterator[tuple[str | None, int, dict[str, str]]]:
    """Of every row the name of the pixels inside the table or None, its number, and its values as text by column.

    The number is that of an editor in a CSV (the header is 1), and counts from 0 in Parquet.
    """
    inside = options.pixels_column
    if file.suffix == ".parquet":
        wanted = {*_needed(options), options.image_column} - {inside}
        try:
            table = read_parquet(file, [column for column in columns if column in wanted])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: not a readable Parquet file ({_one_line(error)})") from None
        for number, row in enumerate(table.to_pylist()):
            # A missing value must not become a person called "None" or "nan".
            values = {column: "" if value is None or value != value else str(value) for column, value in row.items()}
            yield f"{pixels.name_of(file)}#row={number:09d},column={inside}" if inside else None, number, values
        return
    for place, number, row in tables.rows(file):
        yield f"{place},column={columns.index(inside)}" if inside else None, number, row


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
