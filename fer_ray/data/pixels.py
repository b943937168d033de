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
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from fer_ray import storage
from fer_ray.data import manifest
from fer_ray.errors import UserError

# Pillow reads more formats, but few of them are tested well, and for EPS it runs a program (Ghostscript).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# How files begin that Pillow does not read, or not in every installation (ISO 14496-12: the brand of `ftyp`).
_FOREIGN = {"HEIC": rb"....ftyp(hei|hev|mif|msf)", "AVIF": rb"....ftypavi", "JPEG XL": rb"\xff\x0a|....JXL ",
            "damaged TIFF image, or one of odd pixels such as floating point colours": rb"II\*\0|MM\0\*"}
MAX_PIXELS = 100_000_000
MIN_SIDE = 8
DELIMITERS = (",", ";", "\t", "|")  # what may stand between the values of a CSV
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners deliver, in files that have room for 16 or 32
_CSV = re.compile(r"^(?P<file>.+)#row=\d+,bytes=(?P<first>\d+)-(?P<end>\d+),column=(?P<column>\d+)$", re.DOTALL)
_PARQUET = re.compile(r"^(?P<file>.+)#row=(?P<row>\d+),column=(?P<column>.+)$", re.DOTALL)

# Spelled as people do: `int` also accepts 1_0 and digits of other scripts.
_WHOLE_NUMBERS = re.compile(r"(\s*-?[0-9]{1,9}(?=\s|$))*\s*", re.ASCII)
# What undoes each value of the EXIF tag Orientation (EXIF 2.32, 4.6.4 A; 1 is upright).
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}

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


class ImageError(ValueError):
    """One image that cannot be used; the message is the reason, without the image's name."""


def load(image: str) -> np.ndarray:
    """The pixels of any image that the manifest can name: uint8 [H, W] (grey) or [H, W, 3] (RGB).

    Raises: what `read` and `decode_content` raise.
    """
    return decode_content(image, read(image))


def read(image: str) -> bytes:
    """The bytes that an image's pixels are decoded from: those of its file, of its row in a CSV or its Parquet cell.

    Raises:
        ImageError: this image cannot be read: its file or row is missing or unreadable.
        UserError: no image can be read from there: storage does not answer (`storage.StorageError`), or the table
            declares Python objects (`manifest.DataError`).
    """
    try:
        if match := _CSV.match(image):
            first, end = int(match["first"]), int(match["end"])
            return storage.read_range(match["file"], first, end - first)
        if match := _PARQUET.match(image):
            return _cell(match["file"], int(match["row"]), match["column"])
        return storage.read_bytes(image)
    except storage.StorageError as error:
        if isinstance(error.__cause__, (PermissionError, IsADirectoryError, NotADirectoryError)):
            raise ImageError(f"cannot be read: {error.__cause__.strerror}") from error  # of this one file
        raise
    except (ImageError, UserError):
        raise
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or _one_line(error)}") from error
    except Exception as error:  # of pyarrow or int: the row is not what the name promises
        raise ImageError(f"damaged row: {_one_line(error)}") from error


def decode_content(image: str, content: bytes) -> np.ndarray:
    """The pixels of an image whose bytes `read` gave. Raises: ImageError if no decoder makes pixels of them."""
    if not (match := _CSV.match(image)):
        return decode(content)
    try:
        return _grey_values(content, int(match["column"]))
    except ImageError:
        raise
    except Exception as error:  # of csv, or no such column
        raise ImageError(f"damaged row: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def file_of(image: str) -> str:
    """The file that holds the image's pixels."""
    match = _CSV.match(image) or _PARQUET.match(image)
    return match["file"] if match else image


def _grey_values(record: bytes, column: int) -> np.ndarray:
    """The square image whose grey values stand as text in one column of one row of a CSV; uint8 [side, side]."""
    cells = [next(csv.reader(io.StringIO(record.decode("utf-8-sig")), delimiter=mark, skipinitialspace=True))
             for mark in DELIMITERS]  # grey values stand between blanks, so that only one cut leaves nothing else
    text = next((row[column] for row in cells if len(row) > column and _WHOLE_NUMBERS.fullmatch(row[column])), None)
    if text is None:
        raise ImageError("pixels are not whole numbers" if any(len(row) > column for row in cells)
                         else f"damaged row: it has no column {column}")
    values = np.array(text.split(), dtype=np.int64)
    side = int(np.sqrt(len(values)))
    if side * side != len(values) or side < MIN_SIDE:
        raise ImageError(f"{len(values)} pixels are no square image of at least {MIN_SIDE} px")
    if values.min() < 0 or values.max() > 255:
        raise ImageError(f"pixels from {values.min()} to {values.max()}, right is 0 to 255")
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
        raise ImageError(f"column {column!r} holds {type(value).__name__}, right are the bytes of an image file")
    return value


def decode(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of any image file: uint8 [H, W] (grey) or [H, W, 3] (RGB), turned upright by its EXIF orientation.

    Animations give their first frame; CMYK, palette and alpha become RGB. Pictures with more than 8 bits a value are
    scaled by the least depth of `DEPTHS` that holds their brightest value: a 12-bit picture in a 16-bit file would be
    black otherwise. Floating point values count from 0 to 1 if they stay below 2. EXIF that cannot be understood counts
    as upright: the pixels do not depend on it.

    Raises: ImageError.
    """
    if not content:
        raise ImageError("empty file")
    return _converted(lambda: Image.open(io.BytesIO(content), formats=FORMATS), content, max_pixels)


def format_of(content: bytes) -> str:
    """The format of an image file, as Pillow names it; "values" if these bytes are the row of a table."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(content), formats=FORMATS).format or ""
    except UnidentifiedImageError:
        return "values"


def from_pil(image: Image.Image) -> np.ndarray:
    """As `decode`, of an image that Pillow has opened. Raises: ImageError."""
    return _converted(lambda: image)


def _converted(open_image: Callable[[], Image.Image], content: bytes = b"",
               max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """`content` is the image's file, where there is one: what Pillow gives of it may have lost bits."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata without naming the file
            return _pixels_of(open_image(), content, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise ImageError(f"too large: {found[0] if found else '?'} px, at most {max_pixels} are decoded") from None
    except UnidentifiedImageError:
        foreign = next((name for name, start in _FOREIGN.items() if re.match(start, content, re.DOTALL)), None)
        if foreign:
            raise ImageError(f"{foreign}: not read; save it as PNG or JPEG") from None
        if content.startswith(b"version https://git-lfs"):
            raise ImageError("not the image but Git LFS's pointer to it; run git lfs pull") from None
        link = re.fullmatch(rb"(\.\./)+[\x20-\x7e]{1,300}", content)
        raise ImageError("a link that was copied as text; copy the file itself" if link else "not an image") from None
    except Exception as error:
        # Pillow's decoders raise what they stumble upon: OSError, SyntaxError, struct.error, ZeroDivisionError,
        # TypeError, MemoryError... One file among thousands must not end the job.
        raise ImageError(f"damaged image: {_one_line(error)}") from error


def _pixels_of(image: Image.Image, content: bytes, max_pixels: int) -> np.ndarray:
    width, height = image.size  # known before a pixel is decoded
    if width * height > max_pixels:
        raise ImageError(f"too large: {width * height} px, at most {max_pixels} are decoded")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"too small: {width} x {height} px")
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        found = _scaled(np.asarray(image))
    elif content and _has_deep_colours(image, content):
        found = _scaled(_deep_colours(image, content))
    else:
        found = np.asarray(image if image.mode == "L" else image.convert("L" if image.mode in ("1", "LA") else "RGB"))
    if found.min() < found.max() < 16:
        raise ImageError(f"nearly black: pixels up to {found.max()} of 255, as if they had fewer than 8 bits")
    return _upright(found, image)


def _upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Not `ImageOps.exif_transpose`: that writes all EXIF anew and fails at any tag of the wrong type."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF is read leniently by all viewers; what Pillow raises on damaged ones is not documented
        return pixels
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _has_deep_colours(image: Image.Image, content: bytes) -> bool:
    """Whether the file has colours of more than 8 bits, of which Pillow keeps the upper 8 only."""
    if image.format == "PNG":
        return content[24] == 16 and image.mode != "L"  # the bit depth in the header (ISO 15948, 11.2.1)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (8,))) > 8
    return image.format == "JPEG2000" and image.mode in ("RGB", "RGBA")  # Pillow does not tell: OpenCV shows it


def _deep_colours(image: Image.Image, content: bytes) -> np.ndarray:
    """All bits of a colour picture: uint8 or uint16 [H, W] or [H, W, 3] (RGB). Raises: ImageError."""
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image.mode not in ("RGB", "RGBA", "LA") or found is None or found.shape[:2] != image.size[::-1]:
        raise ImageError(f"{image.format} with {image.mode} colours of more than 8 bits: not read; save it with 8 bits")
    return found[..., 0] if image.mode == "LA" else cv2.cvtColor(found[..., :3], cv2.COLOR_BGR2RGB)


def _scaled(values: np.ndarray) -> np.ndarray:
    """uint8 of values of any depth, in the same shape. Raises: ImageError for values that belong to no depth."""
    if values.dtype == np.uint8:
        return values
    if not np.isfinite(values).all():
        raise ImageError("pixels are not finite numbers")
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(values.dtype, np.floating) and high < 2:  # above 1 by resampling, as below 0
        top = 1.0
    else:
        top = next((2.0**bits - 1 for bits in DEPTHS if high < 2**bits), 0.0)
    if not top or low < -0.1 * top:
        raise ImageError(f"pixels from {low:g} to {high:g}; right is 0 to 1, or 0 to {2**DEPTHS[-1] - 1} at most")
    return np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)
