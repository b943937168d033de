"""A table of labels, with image names beside a folder of images, or with the pixels in its own rows."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.data import listing, tables
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression, read_parquet
from fer_ray.data_config import DataConfig, TableConfig

LOOKS = "one CSV or Parquet file with the columns of data.table"


def recognise(files: Listing, data: DataConfig) -> str | None:
    """One table with the configured columns."""
    try:
        file = _find(files, data.table.file)
        columns = _columns(files, file)
    except DataError:
        return None
    return posixpath.basename(file) if all(column in columns for column in _needed(data.table)) else None


def read(files: Listing, data: DataConfig) -> Reading:
    """A row for each row of the table.

    Raises: DataError for a missing table, column or image folder, an unknown label or an unknown split.
    """
    options, file = data.table, _find(files, data.table.file)
    columns, place = _columns(files, file), files.uri(file)
    for column in _needed(options):
        if column not in columns:
            raise DataError(f"{place}: no column {column!r}; its columns are {', '.join(columns)}")
    images, folder = (files, "") if options.pixels_column else _images(files, options.images)
    pattern = listing.compile_pattern(options.subject_pattern, "data.table.subject_pattern")
    found = []
    for inside, number, row in _rows(files, file, options, columns):
        where = f"{place} row {number}"
        name = row.get(options.image_column, "")
        subject = row[options.subject_column].casefold() if options.subject_column else ""
        groups = {column: row[column] for column in options.group_columns}
        found.append({
            "image": inside or images.uri(images.path_of(name, folder)),
            "expression": canonical_expression(row[options.expression_column], where, data.names),
            "subject": subject or listing.subject_in(posixpath.basename(name), pattern),
            "groups": json.dumps(groups) if groups else None,
            "official": _official(row, options, where),
            "cropped": bool(inside) and file.endswith(".csv")})  # text of grey values is that of faces, as in FER2013
    return Reading(found, [], read=frozenset([place]), beside=() if images is files else (images,))


def _images(files: Listing, folder: str) -> tuple[Listing, str]:
    """The listing that has the folder of images, and its path there. Raises: DataError if it is no folder.

    It may lie outside of `files` if the configuration says so.
    """
    images = files.at(folder)
    if images.root == files.root or images.root.startswith(files.root + "/"):
        path = files.path_of(folder)
        if not files.has_folder(path):
            raise DataError(f"{files.uri(path)} is not a folder (data.table.images): {files.refusal(path)}")
        return files, path
    return images, ""


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


def _find(files: Listing, file: str) -> str:
    if file:
        path = files.path_of(file)
        if not files.has_file(path):
            raise DataError(f"{files.uri(path)}: no such table (data.table.file)")
        return path
    found = files.tables(".csv", ".parquet")
    if len(found) != 1:
        raise DataError(f"{files.root}: {len(found)} CSV or Parquet files; name the right one by data.table.file")
    return found[0]


def _columns(files: Listing, file: str) -> list[str]:
    if not file.endswith(".parquet"):
        return tables.header(files, file)
    try:
        with files.open(file) as stream:
            return pq.read_schema(stream).names
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{files.uri(file)}: not a readable Parquet file ({_one_line(error)})") from None


def _rows(files: Listing, file: str, options: TableConfig,
          columns: list[str]) -> Iterator[tuple[str | None, int, dict[str, str]]]:
    """Of every row the name of the pixels inside the table or None, its number, and its values as text by column.

    The number is that of an editor in a CSV (the header is 1), and counts from 0 in Parquet.
    """
    inside = options.pixels_column
    if file.endswith(".parquet"):
        wanted = {*_needed(options), options.image_column} - {inside}
        try:
            with files.open(file) as stream:
                table = read_parquet(stream, [column for column in columns if column in wanted])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{files.uri(file)}: not a readable Parquet file ({_one_line(error)})") from None
        for number, row in enumerate(table.to_pylist()):
            # A missing value must not become a person called "None" or "nan".
            values = {column: "" if value is None or value != value else str(value) for column, value in row.items()}
            yield f"{files.uri(file)}#row={number:09d},column={inside}" if inside else None, number, values
        return
    for place, number, row in tables.rows(files, file):
        yield f"{place},column={columns.index(inside)}" if inside else None, number, row


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
