"""CSV tables of labels or of pixels: their columns, and their rows with the place of each in the file."""

from __future__ import annotations

import contextlib
import csv
import posixpath
from collections.abc import Generator, Iterator
from typing import BinaryIO

from fer_ray.data import listing
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError


def header(files: Listing, file: str) -> list[str]:
    """The names of a CSV's columns. Raises: DataError for a file that cannot be read or is no CSV."""
    with _open(files, file) as lines:
        return _columns(csv.reader(lines), lines.file)


def has_columns(files: Listing, file: str, *names: str) -> bool:
    """Whether a file is a CSV that has these columns, written in upper or lower case.

    Raises: DataError only for a file that cannot be read: then nobody knows what it is.
    """
    with _open(files, file) as lines:
        try:
            columns = _columns(csv.reader(lines), lines.file)
            return {name.lower() for name in names} <= {name.lower() for name in columns}
        except DataError:
            return False


def described(files: Listing) -> str:
    """What an error says of the CSVs that are there instead. Raises: DataError if one is no CSV."""
    found = [f"{posixpath.basename(file)} has the columns {', '.join(header(files, file))[:100]}"
             for file in files.tables(".csv")]
    return f"; {'; '.join(found[:3])}" if found else ""


def rows(files: Listing, file: str) -> Iterator[tuple[str, int, dict[str, str]]]:
    """The rows of a CSV: of each its place, its number and its values by column.

    The place is `FILE#row=R,bytes=A-B`; with `,column=C` added it names an image of the manifest. The number counts as
    an editor does, from 1 for the header. Names of columns lose the blanks around them (`icml_face_data.csv` has some).

    Raises: DataError for a file that cannot be read or is no CSV, and for a row with more or fewer values than columns.
    """
    with _open(files, file) as lines:
        reader, where = csv.reader(lines), lines.file
        columns = _columns(reader, where)
        number, first = 1, lines.position
        while (values := _next(reader, where)) is not None:
            number += 1
            if values:  # a blank line has none
                if len(values) < len(columns) or any(values[len(columns):]):
                    raise DataError(f"{where} row {number}: {len(values)} values, the header has {len(columns)}")
                place = f"{where}#row={number:09d},bytes={first}-{lines.position}"
                yield place, number, dict(zip(columns, values, strict=False))
            first = lines.position


def _columns(reader, file: str) -> list[str]:
    names = _next(reader, file)
    if not names:
        raise DataError(f"{file}: is empty; the first line of a table names its columns")
    if any("\0" in name for name in names):
        raise DataError(f"{file}: has zero bytes in its first line, so it is no UTF-8 text; save it as a UTF-8 CSV")
    stripped = [name.strip() for name in names]
    if twice := sorted({name for name in stripped if name and stripped.count(name) > 1}):
        raise DataError(f"{file}: has two columns named {', '.join(twice)}; nobody knows which one is meant")
    return stripped


def _next(reader, file: str) -> list[str] | None:
    """The next record of a CSV reader; None at the end."""
    try:
        return next(reader, None)
    except csv.Error as error:
        raise DataError(f"{file} line {reader.line_num}: not a CSV ({error})") from None


@contextlib.contextmanager
def _open(files: Listing, file: str) -> Generator[_Lines]:
    with files.open(file) as stream:
        yield _Lines(stream, files.uri(file))


class _Lines:
    """The lines of a binary file as text, and the position after the last one, which a text file does not tell."""

    def __init__(self, stream: BinaryIO, file: str):
        self.stream, self.file, self.position, self.number = stream, file, 0, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        self.position += len(line)
        self.number += 1
        return listing.decode(line, f"{self.file} line {self.number}")
