"""Tables of labels, with image names beside a folder of images, or with the pixels in their own rows."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator

import pyarrow as pa

from fer_ray.data import listing, tables
from fer_ray.data.image_names import ImageNames
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression
from fer_ray.data_config import DataConfig, TableConfig

LOOKS = "a CSV or Parquet file with the columns of data.table, in shards or one a split"
# How tables write that a value is missing, in lower case: it must not become a person of that name.
NO_VALUE = {"", "-", "?", "nan", "none", "null", "nil", "<na>", "n/a", "#n/a", "unknown"}


def recognise(files: Listing, data: DataConfig) -> str | None:
    """The tables with the configured columns.

    Raises: DataError if there are several in one folder that do not belong together.
    """
    found = [file for file in _candidates(files, data.table.file)
             if tables.has_columns(files, file, *_needed(files, file, data.table))]
    if not found or len(set(map(posixpath.dirname, found))) > 1:  # in several folders are several data sets
        return None
    return ", ".join(map(posixpath.basename, tables.belonging_together(found)))


def read(files: Listing, data: DataConfig) -> Reading:
    """A row for each row of the tables.

    Raises: DataError for a missing table, column or image folder, an unknown label or an unknown split.
    """
    options = data.table
    candidates = _candidates(files, options.file)
    fit = [file for file in candidates if tables.has_columns(files, file, *_needed(files, file, options))]
    if not candidates or not fit and len(candidates) > 1:
        raise DataError(f"{files.root}: not there: {LOOKS}{tables.described(files)}")
    for file in candidates:
        if fit and file not in fit and tables.split_in(posixpath.basename(file)):  # another split would vanish unsaid
            tables.spelled(tables.header(files, file), _needed(files, file, options), files.uri(file))
    found = tables.belonging_together(fit or candidates)
    images, rejected, beside = None, [], ()
    if not all(_pixels_column(files, file, options) for file in found):
        place, folder = _images(files, options.images)
        images = ImageNames(", ".join(map(files.uri, found)), place, folder)
        beside = () if place is files else (place,)
    rows = [row for file, split in found.items() for row in _read(files, file, data, images, split)]
    if images:
        images.check()
        images.tell()
        rejected = images.unlisted()
    unused = {files.uri(file): "lacks columns of data.table, or data.table.file names another table"
              for file in files.tables(".csv", ".parquet") if file not in found}
    return Reading(rows, rejected, read=frozenset(map(files.uri, found)), unused=unused, beside=beside)


def _read(files: Listing, file: str, data: DataConfig, images: ImageNames | None, split: str | None) -> list[dict]:
    """The rows of one table. `split`: which one its name tells, if any."""
    options, place = data.table, files.uri(file)
    column = tables.spelled(tables.header(files, file), _needed(files, file, options), place)
    names = tables.class_names(files, file, column[options.expression_column]) | data.names
    pattern = listing.compile_pattern(options.subject_pattern, "data.table.subject_pattern")
    found = []
    for inside, number, row in _rows(files, file, options, column):
        where = f"{place} row {number}"
        name = row.get(column.get(options.image_column, ""), "") if images else ""
        groups = {group: row[column[group]] for group in options.group_columns}
        subject = _subject(row[column[options.subject_column]], where) if options.subject_column else ""
        found.append({
            "image": inside or (images.find(name) if images else ""),
            "expression": canonical_expression(row[column[options.expression_column]], where, names),
            "subject": subject or listing.subject_in(posixpath.basename(name.replace("\\", "/")), pattern),
            "groups": json.dumps(groups) if groups else None,
            "official": _official(row[column[options.split_column]], where) if options.split_column else split,
            # text of grey values is that of faces, as in FER2013
            "cropped": bool(inside) and not tables.is_parquet(file)})
    return found


def _rows(files: Listing, file: str, options: TableConfig,
          column: dict[str, str]) -> Iterator[tuple[str | None, int, dict[str, str]]]:
    """Of every row the name of the pixels inside the table or None, its number, and its values as text by column.

    The number is that of an editor in a CSV (the header is 1), and counts from 0 in Parquet.
    """
    inside = column.get(_pixels_column(files, file, options), "")
    if not tables.is_parquet(file):
        yield from tables.rows(files, file, inside)
        return
    for number, row in tables.parquet_rows(files, file, set(column.values()) - {inside}):
        yield f"{files.uri(file)}#row={number:09d},column={inside}" if inside else None, number, row


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


def _pixels_column(files: Listing, file: str, options: TableConfig) -> str:
    """The column with the pixels: the configured one, or that of the images where Parquet holds their bytes there."""
    if options.pixels_column or not tables.is_parquet(file):
        return options.pixels_column
    kinds = {field.name.casefold(): field.type for field in tables.schema(files, file)}
    kind = kinds.get(options.image_column.casefold())
    kinds_of_bytes = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    return options.image_column if kind is not None and any(holds(kind) for holds in kinds_of_bytes) else ""


def _needed(files: Listing, file: str, options: TableConfig) -> list[str]:
    pixels = _pixels_column(files, file, options)
    return [column for column in (pixels or options.image_column, options.expression_column, options.subject_column,
                                  options.split_column, *options.group_columns) if column]


def _subject(text: str, where: str) -> str:
    """Who is in the image, empty if nobody knows. Raises: DataError for NA, which R writes for a missing value."""
    number = listing.whole_number(text.strip())
    subject = text.strip().casefold() if number is None or text.strip().isdecimal() else str(number)
    if subject == "na":
        raise DataError(f"{where}: subject {text!r} may be a missing value or a person of JAFFE; leave the cell empty "
                        "if nobody knows the person, else write another name")
    return "" if subject in NO_VALUE else subject


def _official(text: str, where: str) -> str:
    if (value := text.strip().casefold()) not in listing.OFFICIAL:
        raise DataError(f"{where}: split {text.strip()[:40]!r}; right is train, val or test")
    return listing.OFFICIAL[value]


def _candidates(files: Listing, file: str) -> list[str]:
    """The table that the configuration names, or all that are there. Raises: DataError if there is none of its name."""
    if not file:
        return files.tables(".csv", ".parquet")
    path = files.path_of(file)
    if not files.has_file(path):
        raise DataError(f"{files.uri(path)}: no such table (data.table.file)")
    return [path]
