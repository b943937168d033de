"""The prepared set on disk: what a folder of crops holds, and how to read it.

A prepared set is a folder:
- `images/part-NNNNN.parquet`: one row an image, `PART_SCHEMA`; `crop` is a PNG of 256 x 256, 1 or 3 channels;
- `index.parquet`: one row an image: the manifest's columns, those of the parts without the pictures, `part`, `cluster`
  (near-duplicates share a number), `split`, and `fold` in cross-validation. The split stands here and not beside the
  pixels, so that another split never decodes an image again;
- `splits/NAME/`: a prepared set like this one, split in another way; it has the same files but for the pictures;
- `rejected.parquet`, `leaks.parquet`, `conflicts.parquet`;
- `prepared.json`: counts, fingerprint and configuration, written last: without it the set is not complete.
"""

from __future__ import annotations

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

SCHEMA_VERSION = 4
PART_ROWS = 128  # fixed, so that the parts do not depend on the number of workers
META = [("row", pa.int64()), ("box", pa.list_(pa.int32())), ("face_found", pa.bool_()), ("width", pa.int32()),
         ("height", pa.int32()), ("channels", pa.int8()), ("digest", pa.string()),
         *((name, pa.uint64()) for name in duplicates.HASHES),
         *((name, pa.binary()) for name in duplicates.THUMBNAILS)]
PART_SCHEMA = pa.schema([*META, ("crop", pa.binary())])


def uri_of(config: Config) -> str:
    """Where the prepared set of this configuration lies."""
    return storage.join(config.storage, "prepared", config.prepared or config.name)


def is_complete(uri: str) -> bool:
    """Whether a prepared set lies there, whole."""
    return storage.exists(storage.join(uri, "prepared.json"))


def read_index(uri: str) -> pd.DataFrame:
    """The index of a prepared set. Raises: FileNotFoundError, manifest.DataError if it is not complete."""
    if not is_complete(uri):
        raise manifest.DataError(f"{uri}: no complete prepared set (prepared.json is missing); run jobs/prepare.py")
    return read_table(uri, "index")


def read_table(uri: str, name: str) -> pd.DataFrame:
    """`index`, `leaks`, `conflicts` or `rejected` of a prepared set."""
    return manifest.read_parquet(io.BytesIO(storage.read_bytes(storage.join(uri, f"{name}.parquet")))).to_pandas()


def read_part(uri: str, part: int) -> dict[int, bytes]:
    """The encoded crops of one part by row number."""
    content = io.BytesIO(storage.read_bytes(part_uri(uri, part)))
    table = manifest.read_parquet(content, ["row", "crop"]).to_pydict()
    return dict(zip(table["row"], table["crop"], strict=True))


def decode_crop(encoded: bytes) -> np.ndarray:
    """PNG bytes -> uint8 [256, 256] or [256, 256, 3] (RGB)."""
    crop = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)


def read_crops(uri: str, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """The crops of index rows by image, uint8 [256, 256(, 3)]."""
    crops: dict[str, np.ndarray] = {}
    for part, group in rows.groupby("part"):
        encoded = read_part(uri, int(part))
        crops |= {r["image"]: decode_crop(encoded[r["row"]]) for r in group.to_dict("records")}
    return crops


def read_metadata(uri: str, num_parts: int) -> pd.DataFrame:
    """All columns of the first `num_parts` parts but the crops, and `part`."""
    filesystem, _ = storage.resolve(uri)
    columns = [name for name, _ in META]
    return pd.concat([manifest.read_parquet(storage.resolve(part_uri(uri, p))[1], columns, filesystem)
                      .to_pandas().assign(part=p) for p in range(num_parts)], ignore_index=True)


def whole(uri: str) -> str:
    """The prepared set that holds the pictures: `uri` itself, or the set that it is another split of."""
    return re.sub(r"/splits/[^/]+$", "", uri)


def part_uri(uri: str, part: int) -> str:
    return storage.join(whole(uri), "images", f"part-{part:05d}.parquet")


def rejects_uri(uri: str, part: int) -> str:
    return storage.join(uri, "images", f"rejected-{part:05d}.json")


def write_table(uri: str, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(uri, f"{name}.parquet"), sink.getvalue())
