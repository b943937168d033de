"""Tables of labels or of pixels as people have them: which belong together, their columns, their rows.

A CSV may be UTF-8 with or without a byte order mark, or UTF-16; its values may stand between commas, semicolons, tabs
or `|`, as its first line shows. Text in another encoding is an error: no file tells which code page it was written in.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.data import listing
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, read_parquet
from fer_ray.data.pixels import DELIMITERS

TEXT, ALL = (".csv", ".tsv"), (".csv", ".tsv", ".parquet")  # extensions of tables
# What others call the columns that are asked for by these names.
CALLED = {"image": ("filename", "file_name", "file", "path", "image_path", "image_name", "img"),
          "expression": ("emotion", "label", "emotion_label", "expression_label")}
# As Hugging Face numbers the files of one table: train-00000-of-00002-a09b74b3ef9c3b56.parquet, train/0000.parquet.
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?$|/\d{4}$")


class NotATableError(DataError):
    """A file that can be read but is no table."""


def is_parquet(file: str) -> bool:
    """Whether the extension is that of a Parquet file."""
    return file.lower().endswith(".parquet")


def header(files: Listing, file: str) -> list[str]:
    """The names of a table's columns. Raises: DataError for a file that cannot be read or is no table."""
    if is_parquet(file):
        return schema(files, file).names
    with _open(files, file) as records:
        return records.columns()


def schema(files: Listing, file: str) -> pa.Schema:
    """Names and types of the columns of a Parquet file. Raises: DataError."""
    with _parquet(files, file) as stream:
        return pq.read_schema(stream)


def class_names(files: Listing, file: str, column: str) -> dict[str, str]:
    """What the numbers of a column mean, where Hugging Face's `datasets` wrote that into a Parquet file; else empty."""
    if not is_parquet(file):
        return {}
    try:
        about = json.loads((schema(files, file).metadata or {})[b"huggingface"])["info"]["features"][column]
        return {str(number): str(name) for number, name in enumerate(about["names"])}
    except (KeyError, TypeError, ValueError):  # another program's file, or a column of another type
        return {}


def spelled(columns: Sequence[str], names: Iterable[str], where: str) -> dict[str, str]:
    """Each of `names` as the table spells it: exactly so, else in upper or lower case, else by a name of `CALLED`.

    `where` names the table. Raises: DataError for a column that is not there, or twice apart from its case.
    """
    found = {}
    for name in names:
        same = next((same for asked in (name, *CALLED.get(name, ())) if (same := _same(columns, asked))), [])
        if not same:
            raise NotATableError(f"{where}: no column {name!r}; {_shown(columns)}")
        if len(same) > 1:
            raise NotATableError(f"{where}: has columns {' and '.join(same)}; nobody knows which is {name!r}")
        found[name] = same[0]
    return found


def _same(columns: Sequence[str], name: str) -> list[str]:
    return [name] if name in columns else [column for column in columns if column.casefold() == name.casefold()]


def has_columns(files: Listing, file: str, *names: str) -> bool:
    """Whether a file is a table that has these columns, in upper or lower case.

    Raises: DataError only for a file that cannot be read: then nobody knows what it is.
    """
    try:
        spelled(header(files, file), names, file)
    except NotATableError:
        return False
    return True


def described(files: Listing) -> str:
    """What an error says of the tables that are there instead."""
    def what(file: str) -> str:
        try:
            return f"{posixpath.basename(file)}: {_shown(header(files, file))}"
        except DataError as error:
            return str(error)

    found = [what(file) for file in files.tables(*ALL)[:3]]
    return f"; {'; '.join(found)}" if found else ""


def _shown(columns: Sequence[str]) -> str:
    shown = ", ".join(columns)[:100]
    data = any(listing.whole_number(name) is not None or listing.is_image(name) for name in columns)
    return f"its first line names no columns, but holds {shown}" if data else f"its columns are {shown}"


def belonging_together(found: list[str]) -> dict[str, str | None]:
    """The tables of one data set, and the split that each is named after: one table, one in shards, or one a split.

    Raises: DataError if they are several others, or a shard is missing.
    """
    shards: dict[str, list[str]] = defaultdict(list)
    for file in found:
        shards[_SHARD.sub("", posixpath.splitext(file)[0])].append(file)
    splits = {name: _split_of(name) if len(shards) > 1 else None for name in shards}
    if len(shards) > 1 and (None in splits.values() or len(set(splits.values())) < len(splits)):
        raise DataError(f"{len(found)} tables fit: {', '.join(found[:5])}; name the right one by data.table.file")
    for name, parts in shards.items():
        totals = [int(match[2]) for part in parts
                  if (match := _SHARD.search(posixpath.splitext(part)[0])) and match[2]]
        if set(totals) - {len(parts)}:
            raise DataError(f"{name}: {len(parts)} of {max(totals)} shards are there, such as "
                            f"{posixpath.basename(parts[0])}; all are needed")
    return {part: splits[name] for name, parts in shards.items() for part in parts}


def _split_of(name: str) -> str | None:
    return split_in(posixpath.basename(name)) or split_in(posixpath.basename(posixpath.dirname(name)))


def are_splits(folders: Iterable[str]) -> bool:
    """Whether each of these folders is named after another split."""
    splits = [split_in(posixpath.basename(folder)) for folder in folders]
    return None not in splits and len(set(splits)) == len(splits)


def split_in(name: str) -> str | None:
    """train, val or test, where the words of a table's name say one of them."""
    found = {listing.OFFICIAL[word] for word in re.split(r"[^a-z]+", name.casefold()) if word in listing.OFFICIAL}
    return found.pop() if len(found) == 1 else None


# --- rows ----------------------------------------------------------------------------------------------


def rows(files: Listing, file: str, pixels: str = "",
         names: Sequence[str] = ()) -> Iterator[tuple[str | None, int, dict[str, str]]]:
    """The rows of a CSV, in one pass: the manifest's name of the image in column `pixels`, number, values by column.

    The number counts as an editor does, from 1 for the header. `names` are the columns of a file without a header.
    Names of columns lose the blanks around them (`icml_face_data.csv` has some). Rows without a value are passed over.

    Raises: DataError for a file that cannot be read or is no CSV, and for a row with more or fewer values than columns.
    """
    with _open(files, file, names) as records:
        columns = records.columns() if not names else list(names)
        if pixels and records.lines.position is None:
            raise DataError(f"{records.file}: is UTF-16 text, in which single images cannot be found; save it as UTF-8")
        place = f",column={columns.index(pixels)}" if pixels else ""
        while (record := records.next()) is not None:
            values, first, end = record
            if not any(map(str.strip, values)):
                continue
            where = f"{records.file} row {records.number}"
            if len(values) < len(columns) or any(values[len(columns):]):
                raise DataError(f"{where}: {len(values)} values, the header has {len(columns)}")
            image = f"{files.uri(file)}#row={records.number:09d},bytes={first}-{end}{place}" if pixels else None
            yield image, records.number, dict(zip(columns, values, strict=False))


def first_row(files: Listing, file: str, names: Sequence[str]) -> dict[str, str] | None:
    """The first line of a CSV as a row with the columns `names`; None if it has more or fewer values."""
    try:
        with _open(files, file, names) as records:
            record = records.next()
    except NotATableError:
        return None
    return dict(zip(names, record[0], strict=True)) if record and len(record[0]) == len(names) else None


def parquet_rows(files: Listing, file: str, wanted: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a Parquet file: number, from 0, and values as text. Raises: DataError if it cannot be read."""
    with _parquet(files, file) as stream:
        found = read_parquet(stream, sorted(set(wanted)))
    for number, row in enumerate(found.to_pylist()):
        # A missing value must not become a person called "None" or "nan".
        yield number, {name: "" if value is None or value != value else str(value) for name, value in row.items()}


@contextlib.contextmanager
def _parquet(files: Listing, file: str) -> Generator[BinaryIO]:
    try:
        with files.open(file) as stream:
            yield stream
    except (OSError, pa.ArrowException) as error:
        why = " ".join(str(error).split())
        raise NotATableError(f"{files.uri(file)}: not a readable Parquet file ({why})") from None


@contextlib.contextmanager
def _open(files: Listing, file: str, names: Sequence[str] = ()) -> Generator[_Records]:
    with files.open(file) as stream:
        yield _Records(_Lines(stream, files.uri(file)), names)


class _Records:
    """The records of a CSV. `number`: of the last one, from 1."""

    def __init__(self, lines: _Lines, names: Sequence[str]):
        self.lines, self.file, self.number = lines, lines.file, 0
        first = next(lines, "")
        if "\r" in first.rstrip("\r\n"):
            raise NotATableError(f"{self.file}: its lines end as on old Macintoshes (CR); save it with other line ends")
        if excel := re.fullmatch(r"sep=(.)\s*", first):  # the first line says what stands between values
            self.number, start, delimiter = 1, lines.position, excel[1]
        else:
            start, delimiter = None if lines.position is None else 0, _delimiter(first, names, self.file)
            lines.again = first
        self.reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        self.end = start

    def next(self) -> tuple[list[str], int | None, int | None] | None:
        """Values of the next record and its first and last byte; None at the end. Raises: DataError."""
        start, self.number = self.end, self.number + 1
        try:
            values = next(self.reader, None)
        except csv.Error as error:
            raise NotATableError(f"{self.file} line {self.lines.number}: not a CSV ({error})") from None
        self.end = self.lines.position
        return None if values is None else (values, start, self.end)

    def columns(self) -> list[str]:
        """The names in the header. Raises: DataError if there are none, or one stands there twice."""
        record = self.next()
        if record is None or not record[0]:
            raise NotATableError(f"{self.file}: is empty; the first line of a table names its columns")
        names = [name.strip() for name in record[0]]
        if any("\0" in name for name in names):
            raise NotATableError(f"{self.file}: has zero bytes in its first line, so it is no UTF-8 text; save it as a "
                            "UTF-8 CSV")
        if twice := sorted({name for name in names if name and names.count(name) > 1}):
            raise NotATableError(f"{self.file}: has two columns named {', '.join(twice)}; nobody knows which one is "
                                   "meant")
        return names


def _delimiter(line: str, names: Sequence[str], file: str) -> str:
    """What cuts a table's first line into most values, or into as many as there are `names`. Raises: DataError."""
    cuts = {mark: len(next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])) for mark in DELIMITERS}
    if names:
        return next((mark for mark, count in cuts.items() if count == len(names)), ",")
    (mark, most), (other, second) = Counter(cuts).most_common(2)
    if most == second > 1:
        raise NotATableError(f"{file}: its first line has as many {mark!r} as {other!r}, so nobody knows which stands "
                        "between two columns; save it with commas")
    return mark


class _Lines:
    """The lines of a file as text, and the position after the last one, which a text file does not tell.

    The position is None in UTF-16: what lies between two positions of such a file is no text that can be read alone.
    """

    def __init__(self, stream: BinaryIO, file: str):
        self.file, self.number, self.again = file, 0, ""
        wide = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        stream.seek(0)
        self.stream = io.TextIOWrapper(stream, "utf-16", newline="") if wide else stream
        self.position: int | None = None if wide else 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.again:
            line, self.again = self.again, ""
            return line
        try:
            line = self.stream.readline()
        except UnicodeError as error:
            raise NotATableError(f"{self.file}: is damaged UTF-16 text ({error})") from None
        if not line:
            raise StopIteration
        self.number += 1
        if isinstance(line, str):
            return line
        self.position = (self.position or 0) + len(line)
        try:
            return listing.decode(line, f"{self.file} line {self.number}")
        except DataError as error:
            raise NotATableError(str(error)) from None
