"""Tables of labels, with image names beside a folder of images, or with the pixels in their own rows."""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterator

import pyarrow as pa

from fer_ray.data import listing, tables
from fer_ray.data.image_names import ImageNames
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression, is_expression
from fer_ray.data_config import DataConfig, TableConfig

IMAGES = "images"  # the folder of images, if the configuration names none
LOOKED_AT = 100  # rows of a table that may be one
LOOKS = "a CSV or Parquet file with the columns of data.table, in shards or one a split"
# How tables write that a value is missing, in lower case: it must not become a person of that name.
NO_VALUE = {"", "-", "?", "nan", "none", "null", "nil", "<na>", "n/a", "#n/a", "unknown"}


def recognise(files: Listing, data: DataConfig) -> str | None:
    """The tables with the configured columns.

    Raises: DataError if there are several in one folder that do not belong together.
    """
    found = [file for file in _candidates(files, data.table.file) if _fits(files, file, data.table)]
    folders = set(map(posixpath.dirname, found))
    if not found or len(folders) > 1 and not tables.are_splits(folders):  # in several folders are several data sets
        return None
    return ", ".join(map(posixpath.basename, tables.belonging_together(found)))


def _fits(files: Listing, file: str, options: TableConfig) -> bool:
    """Whether a table has the columns. Under other names only if its images are there, in no folder of a class.

    Many tables have a path and a label, and what the folder of an image says holds more than such a label.
    """
    needed = _needed(files, file, options)
    if not tables.has_columns(files, file, *needed):
        return False
    column = tables.spelled(tables.header(files, file), needed, file)
    if _pixels_column(files, file, options) or all(name.casefold() == column[name].casefold() for name in needed):
        return True
    place, folder = _images(files, file, options.images)
    images = ImageNames(file, place, folder)
    for _, _, row in itertools.islice(_rows(files, file, options, column), LOOKED_AT):
        images.find(row[column[options.image_column]])
    return bool(images.found) and not any(is_expression(part) for path in images.found for part in path.split("/")[:-1])


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
    rows, images_in = [], {}
    for file, split in found.items():
        images = None
        if not _pixels_column(files, file, options):
            place, folder = _images(files, file, options.images)
            images = images_in.setdefault(folder, ImageNames(", ".join(map(files.uri, found)), place, folder))
        rows += _read(files, file, data, images, split)
    rejected = []
    for images in images_in.values():
        images.check()
        images.tell()
        own = images.files is not files or images.folder not in ("", *map(posixpath.dirname, found))
        rejected += images.unlisted(everywhere=own)
    unused = {files.uri(file): "lacks columns of data.table, or data.table.file names another table"
              for file in files.tables(*tables.ALL) if file not in found}
    beside = {images.files.root: images.files for images in images_in.values() if images.files is not files}
    return Reading(rows, rejected, read=frozenset(map(files.uri, found)), unused=unused, beside=tuple(beside.values()))


def _read(files: Listing, file: str, data: DataConfig, images: ImageNames | None, split: str | None) -> list[dict]:
    """The rows of one table. `split`: which one its name tells, if any."""
    options, place = data.table, files.uri(file)
    column = tables.spelled(tables.header(files, file), _needed(files, file, options), place)
    for name in (options.image_column, options.expression_column):
        if column.get(name, name).casefold() != name.casefold():
            print(f"{place}: column {column[name]!r} is taken for {name!r}", flush=True)
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


def _images(files: Listing, file: str, folder: str) -> tuple[Listing, str]:
    """The listing that has the folder of a table's images, and its path there. Raises: DataError if it is no folder.

    It may lie outside of `files` if the configuration says so.
    """
    if not folder:
        beside = posixpath.dirname(file)
        folder = next((path for path in (IMAGES, posixpath.join(beside, IMAGES))
                       if files.has_folder(path) or files.file(path)), beside)
        if files.has_folder(folder or "."):
            return files, folder
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
    if (split := listing.split_named(text)) is None:
        raise DataError(f"{where}: split {text.strip()[:40]!r}; right is train, val or test")
    return split


def _candidates(files: Listing, file: str) -> list[str]:
    """The table that the configuration names, or all that are there. Raises: DataError if there is none of its name."""
    if not file:
        return files.tables(*tables.ALL)
    path = files.path_of(file)
    if not files.has_file(path):
        raise DataError(f"{files.uri(path)}: no such table (data.table.file)")
    return [path]
