"""A table of labels, with image names beside a folder of images, or with the pixels in its own rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config import DataConfig, TableConfig
from fer_ray.data import listing, pixels
from fer_ray.data.manifest import DataError, canonical_expression, read_parquet

LOOKS = "one CSV or Parquet file with the columns of data.table"


def recognise(root: Path, data: DataConfig) -> str | None:
    """One table with the configured columns."""
    try:
        file = _find(root, data.table.file)
        columns = _columns(file)
    except DataError:
        return None
    return file.name if all(c in columns for c in _needed(data.table)) else None


def read(root: Path, data: DataConfig) -> tuple[list[dict], list[dict]]:
    """One row an image. A name listed twice counts once; with two different labels it is rejected.

    Raises: DataError for a missing table, column or image folder, an unknown label or an unknown split.
    """
    options, file = data.table, _find(root, data.table.file)
    columns = _columns(file)
    for column in _needed(options):
        if column not in columns:
            raise DataError(f"{file}: no column {column!r}; its columns are {', '.join(columns)}")
    folder = root / options.images
    if not options.pixels_column and not folder.is_dir():
        raise DataError(f"{folder} is not a folder (data.table.images)")
    pattern = listing.compile_pattern(options.subject_pattern, "data.table.subject_pattern")
    listed: dict[str | Path, list[dict]] = {}
    for inside, number, row in _rows(file, options, columns):
        where = f"{file} row {number}"
        name = str(row.get(options.image_column, ""))
        subject = str(row[options.subject_column]).casefold() if options.subject_column else ""
        listed.setdefault(inside or folder / name, []).append({
            "expression": canonical_expression(row[options.expression_column], where, data.names),
            "subject": subject or listing.subject_in(Path(name).name, pattern),
            "groups": json.dumps({c: str(row[c]) for c in options.group_columns}) if options.group_columns else None,
            "official": _official(row, options, where), "cropped": bool(inside) and file.suffix == ".csv"})
    rows, rejected = [], []
    for image, found in listed.items():
        labels = sorted({f["expression"] for f in found})
        row = {"image": image, **found[-1]}
        if len(labels) > 1:
            rejected += [row | f | {"reason": f"conflicting labels: {', '.join(labels)}"} for f in found]
        else:
            rejected += [row | {"reason": "listed twice"}] * (len(found) - 1)
            rows.append(row)
    return rows, [dict(r) for r in rejected]


def elsewhere(root: Path, data: DataConfig) -> list[Path]:
    """The folder of images where the configuration names one outside the root. A link in the data set names none."""
    images = root / data.table.images
    return [images] if Path(os.path.relpath(images, root)).parts[:1] == ("..",) else []


def _needed(options: TableConfig) -> list[str]:
    return [c for c in (options.pixels_column or options.image_column, options.expression_column,
                        options.subject_column, options.split_column, *options.group_columns) if c]


def _official(row: dict, options: TableConfig, where: str) -> str | None:
    if not options.split_column:
        return None
    value = str(row[options.split_column]).strip()
    if value.casefold() not in listing.OFFICIAL:
        raise DataError(f"{where}: split {value!r}; right is train, val or test")
    return listing.OFFICIAL[value.casefold()]


def _find(root: Path, file: str) -> Path:
    if file:
        if not (root / file).is_file():
            raise DataError(f"{root / file}: no such table (data.table.file)")
        return root / file
    found = listing.tables(root, ".csv", ".parquet")
    if len(found) != 1:
        raise DataError(f"{root}: {len(found)} CSV or Parquet files; name the right one by data.table.file")
    return found[0]


def _columns(file: Path) -> list[str]:
    try:
        if file.suffix == ".parquet":
            return pq.read_schema(file).names
        with open(file, encoding="utf-8-sig") as stream:
            return [c.strip().strip('"') for c in stream.readline().rstrip("\n").split(",")]
    except (ValueError, OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable table ({error})") from None


def _rows(file: Path, options: TableConfig, columns: list[str]):
    """(name of the pixels inside the table or None, row number as an editor counts, values) of every row."""
    inside = options.pixels_column
    if file.suffix == ".parquet":
        wanted = {*_needed(options), options.image_column} - {inside}
        table = read_parquet(file, [c for c in columns if c in wanted])
        for number, row in enumerate(table.to_pylist()):
            yield f"{pixels.name_of(file)}#row={number:09d},column={inside}" if inside else None, number, row
        return
    try:
        for image, number, row in pixels.csv_rows(file):
            if len(row) < len(columns):
                raise DataError(f"{file} row {number}: {len(row)} values, the header has {len(columns)}")
            yield f"{image},column={columns.index(inside)}" if inside else None, number, row
    except ValueError as error:
        raise DataError(str(error)) from None
