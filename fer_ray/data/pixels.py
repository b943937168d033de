"""Where the pixels of one image lie, and what they are.

An image is named by one string, the manifest's `image`:
- a path or URI of an image file; a local name that is not UTF-8, or reads like one of the two below, is a
  percent-encoded `file://` URI;
- `TABLE.csv#row=000000017,bytes=1200-3300,column=1`: grey values as text in column 1 of row 17, found without
  reading the rest of the file;
- `TABLE.parquet#row=000000017,column=image`: an encoded image inside a Parquet file.
Row numbers are padded so that names sort in the order of the rows.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_ray import storage
from fer_ray.data import manifest

# those of the layouts' extensions: what else Pillow reads is seldom tested, and EPS runs a program, Ghostscript
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 100_000_000
MIN_SIDE = 8
_CSV = re.compile(r"^(?P<file>.+)#row=\d+,bytes=(?P<first>\d+)-(?P<end>\d+),column=(?P<column>\d+)$", re.DOTALL)
_PARQUET = re.compile(r"^(?P<file>.+)#row=(?P<row>\d+),column=(?P<column>.+)$", re.DOTALL)

csv.field_size_limit(2**24)  # 48 x 48 grey values as text are 8 kB; the default of 128 kB ends at 180 x 180


def name_of(path: str | os.PathLike) -> str:
    """The manifest's name of a local file, whatever bytes its own name is made of."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote(os.fsencode(name))
    # a picture may be called x#row=1,column=y.png, which must not send the reader to x
    return name if file_of(name) == name else "file://" + urllib.parse.quote(name)


def load(image: str) -> np.ndarray:
    """uint8 [H, W] (grey) or [H, W, 3] (RGB) of any image the manifest can name.

    Raises: ValueError with the reason when there is no usable image; OSError when it cannot be read.
    """
    if match := _CSV.match(image):
        first, end = int(match["first"]), int(match["end"])
        return _grey_values(storage.read_range(match["file"], first, end - first), int(match["column"]))
    if match := _PARQUET.match(image):
        return decode(_cell(match["file"], int(match["row"]), match["column"]))
    return decode(storage.read_bytes(image))


def file_of(image: str) -> str:
    """The file that holds the image's pixels."""
    match = _CSV.match(image) or _PARQUET.match(image)
    return match["file"] if match else image


def csv_rows(file: Path) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Rows of a CSV: `NAME#row=R,bytes=A-B`, R as an editor counts (the header is 1), and the values by column.

    Header names lose the blanks around them (`icml_face_data.csv`). The caller adds `,column=C`.

    Raises: ValueError for text that is no CSV.
    """
    with open(file, "rb") as stream:
        lines = _Lines(stream)
        reader = csv.reader(lines)
        try:
            header = [name.strip().lstrip("\ufeff") for name in next(reader, [])]
            first = lines.position
            for number, values in enumerate(reader, start=2):
                if values:
                    yield (f"{name_of(file)}#row={number:09d},bytes={first}-{lines.position}", number,
                           dict(zip(header, values, strict=False)))
                first = lines.position
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: not a CSV ({error})") from None


class _Lines:
    """Text lines of a binary file and the position after the last one handed out."""

    def __init__(self, stream: io.BufferedReader):
        self.stream, self.position = stream, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        self.position += len(line)
        return line.decode()


def _grey_values(record: bytes, column: int) -> np.ndarray:
    text = next(csv.reader(io.StringIO(record.decode())))[column]
    try:
        values = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError("pixels are not whole numbers") from None
    side = int(np.sqrt(len(values)))
    if side * side != len(values) or side < MIN_SIDE:
        raise ValueError(f"{len(values)} pixels are no square image of at least {MIN_SIDE} px")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"pixels from {values.min()} to {values.max()}, right is 0 to 255")
    return values.astype(np.uint8).reshape(side, side)


@functools.lru_cache(maxsize=2)  # rows are read in their order: the row group at hand is the next one too
def _row_group(file: str, group: int, column: str) -> list:
    filesystem, path = storage.resolve(file)
    values = pq.ParquetFile(path, filesystem=filesystem).read_row_group(group, columns=[column])
    return manifest.plain(values).column(column).to_pylist()


@functools.lru_cache(maxsize=2)
def _group_ends(file: str) -> np.ndarray:
    filesystem, path = storage.resolve(file)
    metadata = pq.ParquetFile(path, filesystem=filesystem).metadata
    return np.cumsum([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)])


def _cell(file: str, row: int, column: str) -> bytes:
    ends = _group_ends(file)
    group = int(np.searchsorted(ends, row, side="right"))
    value = _row_group(file, group, column)[row - (int(ends[group - 1]) if group else 0)]
    value = value.get("bytes") if isinstance(value, dict) else value  # {"bytes", "path"} as Hugging Face writes them
    if not isinstance(value, bytes):
        raise ValueError(f"column {column!r} holds {type(value).__name__}, right are the bytes of an image file")
    return value


def decode(content: bytes) -> np.ndarray:
    """Any image file -> uint8 [H, W] (grey) or [H, W, 3] (RGB), upright after its EXIF orientation.

    Animations give their first frame; 16-bit images are scaled to 8; CMYK, palette and alpha become RGB.

    Raises: ValueError with the reason when the bytes are no usable image.
    """
    if not content:
        raise ValueError("empty file")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size  # known before a pixel is decoded
        if width * height > MAX_PIXELS:
            raise ValueError(f"too large: {width * height} px, at most {MAX_PIXELS} are decoded")
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"too small: {width} x {height} px")
        image.load()
        image = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise ValueError(f"too large: {found[0]} px, at most {MAX_PIXELS} are decoded") from None
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged image: {error}") from None
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float32)
        top = 65535.0 if values.max() > 255 else 255.0
        return np.clip(values * (255.0 / top), 0, 255).astype(np.uint8)
    return np.asarray(image if image.mode == "L" else image.convert("L" if image.mode in ("1", "LA") else "RGB"))
