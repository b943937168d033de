"""The prepared set on disk: what a folder of crops holds, and how to read it.

A prepared set is a folder:
- `images/part-NNNNN.parquet`: one row an image, `PART_SCHEMA`; `crop` is a PNG of 256 x 256, 1 or 3 channels;
- `images/part-NNNNN.json`: the record of a part, written after it: size and sha256 of the part, the options and images
  it was cropped from (see `provenance`), and the reason of each image that gave no crop;
- `index.parquet`: one row an image: the manifest's columns, those of the parts without the pictures, `part`, `cluster`
  (near-duplicates share a number), `split`, and `fold` in cross-validation. The split stands here and not beside the
  pixels, so that another split never decodes an image again;
- `splits/NAME/`: a prepared set like this one, split in another way; it has the same files but for the pictures;
- `rejected.parquet`, `leaks.parquet`, `conflicts.parquet`;
- `prepared.json`: counts, fingerprint, configuration, and size and sha256 of all files above but the records. It is
  written last: without it the set is not complete.

Readers raise an error that names the file and the command that makes it again, whatever is wrong with a file. Tables
are held against their sha256. Parts are not, since they are read once an epoch: a PNG has checksums of its own.
"""

from __future__ import annotations

import hashlib
import io
import re

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import storage
from fer_ray.config import Config
from fer_ray.data import duplicates, manifest
from fer_ray.storage import DamagedError

SCHEMA_VERSION = 5
PART_ROWS = 128  # fixed, so that the parts do not depend on the number of workers
SUMMARY: dict[str, type] = {"schema_version": int, "request": str, "fingerprint": str, "files": dict, "counts": dict,
                            "config": dict}  # what all readers of prepared.json rely on
TABLES = ("index", "rejected", "leaks", "conflicts")
META = [("row", pa.int64()), ("box", pa.list_(pa.int32())), ("face_found", pa.bool_()), ("width", pa.int32()),
         ("height", pa.int32()), ("channels", pa.int8()), ("digest", pa.string()),
         *((name, pa.uint64()) for name in duplicates.HASHES),
         *((name, pa.binary()) for name in duplicates.THUMBNAILS)]
PART_SCHEMA = pa.schema([*META, ("crop", pa.binary())])


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
    return summary


def read_index(uri: str) -> pd.DataFrame:
    """The index of a prepared set.

    Raises: manifest.DataError if the set is not complete or of another format; storage.DamagedError.
    """
    return read_table(uri, "index")


def read_table(uri: str, name: str) -> pd.DataFrame:
    """One of `TABLES` of a prepared set. Raises: as `read_index`."""
    file = storage.join(uri, f"{name}.parquet")
    promised = read_summary(uri)["files"].get(f"{name}.parquet")
    try:
        content = storage.read_bytes(file)
    except FileNotFoundError:
        raise DamagedError(f"{file}: is missing; {remedy(uri)}") from None
    if promised != promise(content):
        raise DamagedError(f"{file}: is damaged (not the bytes that prepared.json promises); {remedy(uri)}")
    return manifest.read_parquet(io.BytesIO(content)).to_pandas()


def is_up_to_date(uri: str, request: str) -> bool:
    """Whether a complete set that was made by this request lies there, with whole tables."""
    try:
        summary = read_summary(uri)
    except (manifest.DataError, DamagedError):
        return False
    files = {f"{name}.parquet": storage.join(uri, f"{name}.parquet") for name in TABLES}
    return summary["request"] == request and all(
        verifies(file, summary["files"].get(name)) for name, file in files.items())


def read_part(uri: str, part: int) -> dict[int, bytes]:
    """The encoded crops of one part by row number. Raises: manifest.DataError; storage.DamagedError."""
    table = _read_part(uri, part, ["row", "crop"]).to_pydict()
    return dict(zip(table["row"], table["crop"], strict=True))


def read_crops_of_part(uri: str, part: int, rows: np.ndarray) -> list[np.ndarray]:
    """The crops of these row numbers of a part, uint8 [256, 256(, 3)] each.

    Raises: manifest.DataError; storage.DamagedError.
    """
    encoded = read_part(uri, part)
    try:
        return [decode_crop(encoded[int(row)]) for row in rows]
    except (KeyError, ValueError):
        raise DamagedError(f"{part_uri(uri, part)}: is damaged (a crop is missing or no PNG); {remedy(base_uri(uri))}"
                           ) from None


def decode_crop(encoded: bytes) -> np.ndarray:
    """PNG bytes -> uint8 [256, 256] or [256, 256, 3] (RGB). Raises: ValueError if a bit of them has changed."""
    crop = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if encoded else None
    if crop is None:
        raise ValueError("damaged PNG")
    return crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)


def read_crops(uri: str, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """The crops of index rows by image, uint8 [256, 256(, 3)]. Raises: manifest.DataError; storage.DamagedError."""
    crops: dict[str, np.ndarray] = {}
    for part in rows["part"].unique().tolist():
        group = rows[rows["part"] == part]
        crops |= zip(group["image"], read_crops_of_part(uri, part, group["row"].to_numpy()), strict=True)
    return crops


def read_metadata(uri: str, num_parts: int) -> pd.DataFrame:
    """All columns of the first `num_parts` parts but the crops, and `part`.

    Raises: manifest.DataError; storage.DamagedError.
    """
    columns = [name for name, _ in META]
    return pd.concat([_read_part(uri, part, columns, whole_file=False).to_pandas().assign(part=part)
                      for part in range(num_parts)], ignore_index=True)


def _read_part(uri: str, part: int, columns: list[str], whole_file: bool = True) -> pa.Table:
    """Some columns of a part. `whole_file`: the columns are most of it, so it is fetched at once."""
    file = part_uri(uri, part)
    try:
        if whole_file:
            return manifest.read_parquet(io.BytesIO(storage.read_bytes(file)), columns)
        filesystem, path = storage.resolve(file)
        return manifest.read_parquet(path, columns, filesystem)
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


def part_uri(uri: str, part: int) -> str:
    """The Parquet file of a part."""
    return storage.join(base_uri(uri), "images", f"part-{part:05d}.parquet")


def write_table(uri: str, name: str, table: pa.Table) -> dict[str, dict]:
    """Write one of `TABLES`; its entry in the `files` of `prepared.json`."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(uri, f"{name}.parquet"), sink.getvalue())
    return {f"{name}.parquet": promise(sink.getvalue())}


def promise(content: bytes) -> dict:
    """What `prepared.json` and the records of parts say of a file, so that damage is seen."""
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
