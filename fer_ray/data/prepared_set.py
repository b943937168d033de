"""The prepared set on disk: what a folder of crops holds, and how to read it.

A prepared set is a folder:
- `images/part-NNNNN-HASH.parquet`: one row an image, those without a crop included, of `PART_SCHEMA` and in row groups
  of `SHARD_ROWS`; the rows are in the order of a hash, so that each group is a fair sample; `crop` is a PNG of
  256 x 256, 1 or 3 channels. HASH begins the sha256 of the file: a part is never changed, another one takes its place,
  and whoever still reads by an older index finds its file or none, but never other crops;
- `index.parquet`: one row an image: the manifest's columns, those of the parts without the pictures, `row` (its number
  in the manifest), `part` and `part_row` (where its crop lies), `cluster` (near-duplicates share a number), `split`,
  and `fold` in cross-validation. The split stands here and not beside the pixels, so that another split never decodes
  an image again;
- `contents.parquet`: the sha256 of each image's bytes, with size and time of its file (see `provenance`);
- `splits/NAME/`: a prepared set like this one, split in another way; it has the same files but for the pictures;
- `rejected.parquet`, `leaks.parquet`, `conflicts.parquet`;
- `prepared.json`: counts, fingerprint, configuration, names of the parts, size and sha256 of the tables. It is written
  last: without it the set is not complete.

Readers raise an error that names the file and the command that makes it again, whatever is wrong with a file. Tables
are held against their sha256. Parts are not, since they are read once an epoch: a PNG has checksums of its own.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import storage
from fer_ray.config import Config
from fer_ray.data import duplicates, manifest
from fer_ray.storage import DamagedError

SCHEMA_VERSION = 9
SUMMARY: dict[str, type] = {"schema_version": int, "request": str, "fingerprint": str, "files": dict, "counts": dict,
                            "config": dict}  # what all readers of prepared.json rely on
SHARD_ROWS = 32  # of a row group: about 1 MB of crops, which can be read without the rest of the part
THREADS = 16  # they wait for storage, or hash without Python's lock
TABLES = ("index", "rejected", "leaks", "conflicts")
# What a crop was made of: sha256 of the bytes that an image is decoded from (or why they cannot be read), and what the
# data set says of the face in it.
KEY = [("content", pa.string()), ("face", pa.list_(pa.int32())), ("cropped", pa.bool_())]
# `several`: whether a face was searched for, and another one in the picture is not much smaller (`faces.RIVAL`).
META = [("box", pa.list_(pa.int32())), ("face_found", pa.bool_()), ("several", pa.bool_()), ("width", pa.int32()),
        ("height", pa.int32()), ("channels", pa.int8()), ("chroma", pa.float32()), ("brightness", pa.float32()),
        ("contrast", pa.float32()), ("format", pa.string()), ("digest", pa.string()),
        *((name, pa.uint64()) for name in duplicates.HASHES), *((name, pa.binary()) for name in duplicates.THUMBNAILS)]
# `reason`: why there is no crop. `search`: what looking for a face came to, one of `faces.SEARCHES`.
PART_SCHEMA = pa.schema([*KEY, ("reason", pa.string()), ("search", pa.string()), *META, ("crop", pa.binary())])


def uri_of(config: Config) -> str:
    """Where the prepared set of this configuration lies."""
    return storage.join(config.storage, "prepared", config.prepared or config.name)


def remedy(uri: str) -> str:
    """What the user does about a damaged file of this prepared set."""
    verb = "prepare" if base_uri(uri) == uri else "crossval"
    return f"run jobs/{verb}.py again with the same options, which makes again what is damaged"


def read_summary(uri: str) -> dict:
    """`prepared.json` of a prepared set.

    Raises: manifest.DataError if the set is not complete or of another format; storage.DamagedError.
    """
    file = storage.join(uri, "prepared.json")
    try:
        summary = storage.read_own_json(file, SUMMARY, remedy(uri))
    except DamagedError:
        if not storage.exists(file):
            raise manifest.DataError(
                f"{uri}: no complete prepared set (prepared.json is missing); run jobs/prepare.py") from None
        summary = storage.read_own_json(file, {"schema_version": int}, remedy(uri))
        if summary["schema_version"] == SCHEMA_VERSION:
            raise
    if (version := summary["schema_version"]) != SCHEMA_VERSION:
        raise manifest.DataError(
            f"{uri}: was made by another version of this program (format {version}, this one reads {SCHEMA_VERSION}); "
            "make it anew by jobs/prepare.py --replace, or a second one beside it by --prepared NAME")
    if base_uri(uri) != uri and read_summary(base_uri(uri)).get("images") != summary.get("images"):
        raise manifest.DataError(f"{uri}: is a split of what {base_uri(uri)} held before its images or labels changed; "
                                 "run jobs/crossval.py again, which splits what it holds now")
    return summary


def read_index(uri: str) -> pd.DataFrame:
    """The index of a prepared set.

    Raises: manifest.DataError if the set is not complete or of another format; storage.DamagedError.
    """
    return read_table(uri, "index")


def read_table(uri: str, name: str) -> pd.DataFrame:
    """A table of a prepared set, `TABLES` or contents. Raises: as `read_index`."""
    file = storage.join(uri, f"{name}.parquet")
    promised = read_summary(uri)["files"].get(f"{name}.parquet")
    try:
        content = storage.read_bytes(file)
    except FileNotFoundError:
        raise DamagedError(f"{file}: is missing; {remedy(uri)}") from None
    if promised != promise(content):
        raise DamagedError(f"{file}: is damaged (not the bytes that prepared.json promises); {remedy(uri)}")
    return manifest.read_parquet(io.BytesIO(content)).to_pandas()


def is_up_to_date(uri: str, request: str, parts: Iterable[str] = ()) -> bool:
    """Whether a complete set that was made by this request of these parts lies there, with whole tables."""
    try:
        summary = read_summary(uri)
    except (manifest.DataError, DamagedError):
        return False
    files = {f"{name}.parquet": storage.join(uri, f"{name}.parquet") for name in TABLES}
    return summary["request"] == request and summary.get("parts", []) == sorted(parts) and all(
        verifies(file, summary["files"].get(name)) for name, file in files.items())


def read_part(uri: str, part: str) -> list[bytes | None]:
    """The encoded crops of one part by position, None for an image without. Raises: DataError; DamagedError."""
    return _read_part(uri, part, ["crop"]).column("crop").to_pylist()


def read_whole_part(uri: str, part: str) -> pa.Table:
    """All columns of a part. Raises: manifest.DataError; storage.DamagedError."""
    return _read_part(uri, part, PART_SCHEMA.names)


def read_crops_of_part(uri: str, part: str, positions: np.ndarray) -> list[np.ndarray]:
    """The crops at these positions of a part, uint8 [256, 256(, 3)] each.

    Raises: manifest.DataError; storage.DamagedError.
    """
    return _decode(uri, part, read_part(uri, part), positions)


def read_shards_of_part(uri: str, part: str, positions: np.ndarray) -> list[np.ndarray]:
    """As `read_crops_of_part`, but only those row groups are read that hold one of the positions."""
    def read(filesystem, path: str) -> tuple[pa.Table, np.ndarray]:
        with filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)
            sizes = np.array([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
            ends = np.cumsum(sizes)
            groups, group = np.unique(np.searchsorted(ends, positions, side="right"), return_inverse=True)
            table = manifest.plain(file.read_row_groups(groups.tolist(), columns=["crop"]))
        left_out = ends[groups] - np.cumsum(sizes[groups])  # rows before each group that are not read
        return table, positions - left_out[group]

    table, within = _reading(uri, part, read)
    return _decode(uri, part, table.column("crop").to_pylist(), within)


def _decode(uri: str, part: str, encoded: list[bytes | None], positions: np.ndarray) -> list[np.ndarray]:
    try:
        return [decode_crop(encoded[int(position)] or b"") for position in positions]
    except (IndexError, ValueError):
        raise DamagedError(f"{part_uri(uri, part)}: is damaged (a crop is missing or no PNG); {remedy(base_uri(uri))}"
                           ) from None


def decode_crop(encoded: bytes) -> np.ndarray:
    """PNG bytes -> uint8 [256, 256] or [256, 256, 3] (RGB). Raises: ValueError if a bit of them has changed."""
    crop = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if encoded else None
    if crop is None:
        raise ValueError("damaged PNG")
    crop = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
    return align(crop) if os.environ.get("FER_ALIGN") else crop


EYES = threading.local()


def align(crop: np.ndarray) -> np.ndarray:
    """The crop turned, sized and shifted so that its eyes stand where they are in the median; as it is if not seen."""
    if not hasattr(EYES, "cascade"):
        EYES.cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_eye.xml")
    grey = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    found = [(x + w / 2, y + 30 + h / 2) for x, y, w, h in
             EYES.cascade.detectMultiScale(grey[30:160], 1.1, 5, minSize=(30, 30), maxSize=(90, 90))]
    pairs = [(abs(r[0] - l[0] - 92) + abs(r[1] - l[1]), l, r) for l in found if l[0] < 128 for r in found
             if r[0] >= 128 and r[0] - l[0] > 50 and abs(r[1] - l[1]) < 0.45 * (r[0] - l[0])]
    if not pairs:
        return crop
    _, left, right = min(pairs)
    dx, dy = right[0] - left[0], right[1] - left[1]
    middle = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
    turn = cv2.getRotationMatrix2D(middle, float(np.degrees(np.arctan2(dy, dx))), 90 / float(np.hypot(dx, dy)))
    turn[:, 2] += (126 - middle[0], 101 - middle[1])
    return cv2.warpAffine(crop, turn, (256, 256), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def read_crops(uri: str, rows: pd.DataFrame, make: Callable[[np.ndarray], np.ndarray] = np.asarray
               ) -> dict[str, np.ndarray]:
    """The crops of index rows by image, uint8 [256, 256(, 3)], or what `make` makes of each, which is kept instead.

    Of each part only the row groups are read that hold one of them. Raises: manifest.DataError; storage.DamagedError.
    """
    def read(part: tuple[Any, pd.DataFrame]) -> dict[str, np.ndarray]:
        name, images = part
        crops = read_shards_of_part(uri, str(name), images["part_row"].to_numpy())
        return dict(zip(images["image"], map(make, crops), strict=True))

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(read, rows.groupby("part", sort=False))
        return {image: made for of_part in found for image, made in of_part.items()}


def read_metadata(uri: str, parts: Iterable[str]) -> pd.DataFrame:
    """`META` without thumbnails of the images of these parts that have a crop, with `part` and `part_row`.

    Raises: manifest.DataError; storage.DamagedError.
    """
    table = read_columns(uri, parts, ["reason", *(name for name, _ in META if name not in duplicates.THUMBNAILS)])
    return table.filter(table["reason"].is_null()).drop_columns("reason").to_pandas()


def read_thumbnails(uri: str, rows: pd.DataFrame) -> list[np.ndarray]:
    """The columns `duplicates.THUMBNAILS` of N index rows, uint8 [N, 32, 32] each. Raises: DataError; DamagedError."""
    side, part_row = duplicates.THUMBNAIL_SIDE, rows["part_row"].to_numpy()
    found = [np.empty((len(rows), side, side), np.uint8) for _ in duplicates.THUMBNAILS]

    def read(part: tuple[Any, np.ndarray]) -> None:
        name, places = part
        table = _reading(uri, str(name), lambda filesystem, path: manifest.read_parquet(
            path, duplicates.THUMBNAILS, filesystem).take(part_row[places]))
        for column, thumbnails in zip(table.columns, found, strict=True):
            thumbnails[places] = duplicates.stacked(column.to_pylist())

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(read, rows.groupby("part").indices.items()):
            pass  # raises what reading raised
    return found


def read_columns(uri: str, parts: Iterable[str], columns: list[str]) -> pa.Table:
    """Columns of these parts, one row an image, with `part` and `part_row`. Raises: DataError; DamagedError."""
    def read(part: str) -> pa.Table:
        # of each row group there is a chunk, and thousands of them take more memory than what they hold
        table = _read_part(uri, part, columns, whole_file=False).combine_chunks()
        return table.append_column("part", pa.array([part] * len(table), pa.string())).append_column(
            "part_row", pa.array(np.arange(len(table))))

    with ThreadPoolExecutor(THREADS) as pool:
        return pa.concat_tables(pool.map(read, parts))


def _read_part(uri: str, part: str, columns: list[str], whole_file: bool = True) -> pa.Table:
    """Some columns of a part. `whole_file`: the columns are most of it, so it is fetched at once."""
    if whole_file:
        return _reading(uri, part, lambda *_: manifest.read_parquet(
            io.BytesIO(storage.read_bytes(part_uri(uri, part))), columns))
    return _reading(uri, part, lambda filesystem, path: manifest.read_parquet(path, columns, filesystem))


def _reading(uri: str, part: str, read: Callable) -> Any:
    """What `read(filesystem, path)` gives of a part. Raises: storage.DamagedError; storage.StorageError."""
    file = part_uri(uri, part)
    try:
        return read(*storage.resolve(file))
    except FileNotFoundError:
        raise DamagedError(f"{file}: is missing; {remedy(base_uri(uri))}") from None
    except storage.StorageError:
        raise
    except (pa.ArrowException, OSError) as error:  # pyarrow raises OSError too for bytes that it cannot unpack
        storage.stat(file)  # raises StorageError if it is storage that fails
        reason = " ".join(str(error).split())
        raise DamagedError(f"{file}: is damaged ({reason[:100]}); {remedy(base_uri(uri))}") from None


def base_uri(uri: str) -> str:
    """The prepared set that holds the pictures: `uri` itself, or the set that it is another split of."""
    return re.sub(r"/splits/[^/]+$", "", uri)


def part_uri(uri: str, part: str) -> str:
    """The Parquet file of a part, `part` as the index names it."""
    return storage.join(base_uri(uri), "images", f"{part}.parquet")


def write_part(uri: str, number: int, table: pa.Table) -> str:
    """Write a part, if it is not there yet; its name."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="none", row_group_size=SHARD_ROWS)
    name = f"part-{number:05d}-{_short_hash(sink.getvalue())}"
    storage.write_bytes(part_uri(uri, name), sink.getvalue())
    return name


def number_of(part: str) -> int:
    """The number of a part, from its name."""
    return int(part.split("-")[1])


def is_whole(part: str, content: bytes) -> bool:
    """Whether `content` is the content of the part of this name."""
    return part.endswith(f"-{_short_hash(content)}")


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_table(uri: str, name: str, table: pa.Table) -> dict[str, dict]:
    """Write a table beside `prepared.json`; its entry in the `files` of `prepared.json`."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(uri, f"{name}.parquet"), sink.getvalue())
    return {f"{name}.parquet": promise(sink.getvalue())}


def promise(content: bytes) -> dict:
    """What `prepared.json` says of a file, so that damage is seen."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def verifies(file: str, promised: dict | None) -> bool:
    """Whether a file is there as promised. On S3 its size must do: S3 checks what it keeps, and a hash is a download.

    Raises: storage.StorageError.
    """
    try:
        return (promised is not None and storage.stat(file)[0] == promised["size"]
                and (file.startswith("s3://") or storage.sha256(file) == promised["sha256"]))
    except FileNotFoundError:
        return False
