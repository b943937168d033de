"""The pipeline from manifest to prepared set (Ray Data).

A prepared set is a folder:
- `images/part-NNNNN.parquet`: `row`, `image`, `box`, `phash`, `crop` (PNG, 256 x 256, 1 or 3 channels);
- `index.parquet`: one row an image: manifest columns, `box`, `split`, `row`, `part`. The split stands here and not
  beside the pixels, so that another split never decodes an image again;
- `rejected.parquet`, `leaks.parquet`;
- `prepared.json`: counts, fingerprints and configuration, written last: without it the set is not complete.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import faces, manifest, splits, storage
from fer_ray.config import Config, FacesConfig, to_dict

SCHEMA_VERSION = 1
PART_ROWS = 128  # fixed, so that the parts do not depend on the number of workers
_PART_SCHEMA = pa.schema([("row", pa.int64()), ("image", pa.string()), ("box", pa.list_(pa.int32())),
                          ("phash", pa.uint64()), ("crop", pa.binary())])


def prepare(config: Config, data: manifest.Manifest) -> str:
    """Crop every image of `data`, split and audit; the prepared set's URI.

    The same data and configuration is a no-op; an interrupted run goes on with the parts that are missing.

    Raises: manifest.DataError if no face is left or the subjects do not suffice for the split.
    """
    uri = storage.absolute(storage.join(config.storage, "prepared", config.name))
    crops_id = _fingerprint(_sources(data.rows), data.rejected.to_pylist(), to_dict(config.faces))
    fingerprint = _fingerprint(crops_id, to_dict(config.split))
    if is_complete(uri) and storage.read_json(storage.join(uri, "prepared.json"))["fingerprint"] == fingerprint:
        return uri
    marker = storage.join(uri, "crops.json")
    if not (storage.exists(marker) and storage.read_json(marker)["crops_id"] == crops_id):
        storage.delete_dir(uri)
        storage.write_json(marker, {"crops_id": crops_id})
    rejected = _write_parts(uri, data.rows, config.faces)
    _write_index(uri, config, data, rejected, fingerprint)
    return uri


def is_complete(uri: str) -> bool:
    """Whether a prepared set lies there, whole."""
    return storage.exists(storage.join(uri, "prepared.json"))


def read_index(uri: str) -> pd.DataFrame:
    """The index of a prepared set. Raises: FileNotFoundError, manifest.DataError if it is not complete."""
    if not is_complete(uri):
        raise manifest.DataError(f"{uri}: no complete prepared set (prepared.json is missing); run jobs/prepare.py")
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, "index.parquet")))).to_pandas()


def read_part(uri: str, part: int) -> pa.Table:
    """One file of crops, see the module's docstring."""
    return pq.read_table(io.BytesIO(storage.read_bytes(_part(uri, part))))


def decode_crop(encoded: bytes) -> np.ndarray:
    """PNG bytes -> uint8 [256, 256] or [256, 256, 3] (RGB)."""
    crop = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    return crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)


def _part(uri: str, part: int) -> str:
    return storage.join(uri, "images", f"part-{part:05d}.parquet")


def _write_parts(uri: str, rows: pa.Table, config: FacesConfig) -> dict[str, str]:
    """Crop on the workers, a part a task; reasons of the images that gave no crop."""
    import ray.data

    names = rows.column("image").to_pylist()
    parts = [{"part": p, "first": first, "images": names[first : first + PART_ROWS]}
             for p, first in enumerate(range(0, len(names), PART_ROWS))]
    found = (ray.data.from_items(parts, override_num_blocks=len(parts))
             .map_batches(functools.partial(_crop_parts, uri=uri, config=config), batch_size=1)
             .take_all())
    return {r["image"]: r["reason"] for r in found if r["image"] is not None}


@functools.cache  # once per process: reading the cascade takes 11-30 ms
def _finder(config: FacesConfig) -> faces.FaceFinder:
    cv2.setNumThreads(1)  # the tasks are the parallelism
    options = dataclasses.asdict(config)
    options.pop("on_no_face")
    return faces.FaceFinder(**options)


def _crop_parts(batch: dict, uri: str, config: FacesConfig) -> dict:
    """Write the part of `batch` unless it is there; its rejected images and their reasons."""
    rejected = []
    for part, first, images in zip(batch["part"], batch["first"], batch["images"], strict=True):
        target, reject_file = _part(uri, int(part)), storage.join(uri, "images", f"rejected-{int(part):05d}.json")
        if not storage.exists(target):
            rows, reasons = [], {}
            for i, image in enumerate(images):
                try:
                    rows.append({"row": int(first) + i, "image": image, **_crop_one(image, config)})
                except (ValueError, OSError, MemoryError, cv2.error) as error:
                    reasons[image] = " ".join(str(error).split()) or type(error).__name__
            storage.write_json(reject_file, reasons)
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=_PART_SCHEMA), sink, compression="none")
            storage.write_bytes(target, sink.getvalue())  # last: a part that is there is whole
        rejected += storage.read_json(reject_file).items()
    columns = list(zip(*rejected, strict=True)) or [(None,), (None,)]
    return {"image": np.array(columns[0], object), "reason": np.array(columns[1], object)}


def _crop_one(image: str, config: FacesConfig) -> dict:
    """Raises: ValueError with the reason if there is no usable face."""
    pixels = faces.decode(storage.read_bytes(image))
    gray = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    finder = _finder(config)
    box = finder.find(gray)
    if box is None:
        if config.on_no_face == "reject":
            raise ValueError("no face found")
        box = (0, 0, gray.shape[1], gray.shape[0])
    crop = finder.crop(pixels, box)
    bgr = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return {"box": [int(v) for v in box], "phash": splits.perceptual_hash(crop), "crop": encoded}


def _write_index(uri: str, config: Config, data: manifest.Manifest, reasons: dict, fingerprint: str) -> None:
    num_parts = -(-data.rows.num_rows // PART_ROWS)
    index = data.rows.to_pandas()
    crops = pd.concat([read_part(uri, p).drop(["crop"]).to_pandas().assign(part=p) for p in range(num_parts)]
                      or [pd.DataFrame()])
    if crops.empty:
        raise manifest.DataError(f"{config.data.root}: no face in any of {len(index)} images; "
                                 "see faces.on_no_face for sets that are cropped already")
    index = index.merge(crops, on="image", validate="one_to_one")
    index["split"] = splits.assign(index, by=config.split.by, seed=config.split.seed)
    leaks = splits.audit(index)
    lost = [{"image": r["image"], "dataset": r["dataset"], "reason": reasons[r["image"]]}
            for r in data.rows.to_pylist() if r["image"] in reasons]
    rejected = pa.concat_tables([data.rejected, pa.Table.from_pylist(lost, schema=manifest.REJECT_SCHEMA)])
    for name, table in (("index", pa.Table.from_pandas(index, preserve_index=False)), ("rejected", rejected),
                        ("leaks", pa.Table.from_pandas(leaks, preserve_index=False))):
        sink = io.BytesIO()
        pq.write_table(table, sink)
        storage.write_bytes(storage.join(uri, f"{name}.parquet"), sink.getvalue())
    summary = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "split": config.split.by,
        "counts": {"before": _nested(data.rows.to_pandas(), ["dataset", "expression"]),
                   "after": _nested(index, ["dataset", "split", "expression"])},
        "rejected": {str(k): int(v) for k, v in rejected.to_pandas()["reason"].value_counts().items()},
        "leaks": splits.summarize(leaks),
        "config": {k: v for k, v in to_dict(config).items() if k in ("data", "faces", "split")},
    }
    storage.write_json(storage.join(uri, "prepared.json"), summary)


def _nested(rows: pd.DataFrame, columns: list[str]) -> dict:
    """Counts as nested dictionaries, one level a column."""
    tree: dict = {}
    for key, count in rows.groupby(columns).size().items():
        node = tree
        for part in key[:-1]:
            node = node.setdefault(part, {})
        node[key[-1]] = int(count)
    return tree


def _sources(rows: pa.Table) -> list:
    """What identifies the input: the manifest and each file's size and time."""
    stats = [(s.st_size, s.st_mtime_ns) for s in map(os.stat, rows.column("image").to_pylist())]
    return [rows.to_pylist(), stats]


def _fingerprint(*content) -> str:
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, *content], sort_keys=True).encode()).hexdigest()
