"""The pipeline from manifest to prepared set (Ray Data): crop on the workers, split, audit."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Collection

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import storage
from fer_ray.config import Config, FacesConfig, SplitConfig, to_dict
from fer_ray.data import duplicates, faces, manifest, pixels, prepared_set, splits
from fer_ray.data.prepared_set import PART_ROWS, PART_SCHEMA, SCHEMA_VERSION, write_table


def prepare(config: Config, data: manifest.Manifest) -> str:
    """Crop every image of `data`, split and audit; the prepared set's URI.

    The same data and configuration is a no-op; an interrupted run goes on with the parts that are missing.

    Raises: manifest.DataError if no face is left or the subjects do not suffice for the split; faces.DetectorError.
    """
    uri = prepared_set.uri_of(config)
    faces.finder(config.faces)  # fails here, with its reason, rather than on a worker
    excluded = data.rows.column("excluded").to_pylist()
    crops_id = _digest(_sources(data.rows.drop_columns("excluded")), data.rejected.to_pylist(), to_dict(config.faces))
    request = _digest(crops_id, excluded, to_dict(config.split))
    if prepared_set.is_complete(uri) and storage.read_json(storage.join(uri, "prepared.json"))["request"] == request:
        return uri
    marker = storage.join(uri, "crops.json")
    if not (storage.exists(marker) and storage.read_json(marker)["crops_id"] == crops_id):
        storage.delete_dir(uri)
        storage.write_json(marker, {"crops_id": crops_id})
    for name in ("prepared.json", "prepare.html"):
        storage.delete_file(storage.join(uri, name))  # until the new index is written, nothing is complete
    rejected = write_parts(uri, data.rows, config.faces)
    _write_index(uri, config, data, rejected, request)
    return uri


def resplit(uri: str, split: SplitConfig, without: Collection[str] = ()) -> str:
    """Split a prepared set in another way; URI of the prepared set below it that shares its pictures.

    `without`: images that neither train nor val may use; in test they stay. The same call again is a no-op.

    Raises: manifest.DataError as `prepare`.
    """
    base = storage.read_json(storage.join(uri, "prepared.json"))
    request = _digest(base["request"], dataclasses.asdict(split), sorted(without))
    fold = f"-fold{split.fold}of{split.folds}" if split.folds else ""
    target = storage.join(uri, "splits", f"{split.by}-seed{split.seed}{fold}" + ("-without" if without else ""))
    if (prepared_set.is_complete(target)
            and storage.read_json(storage.join(target, "prepared.json"))["request"] == request):
        return target
    index = _split(prepared_set.read_index(uri).drop(columns=["split", "fold"], errors="ignore"), split)
    index = index[~index["image"].isin(without) | (index["split"] == "test")]
    told = {"counts": base["counts"], "rejected": base["rejected"],
            "config": base["config"] | {"split": dataclasses.asdict(split)}}
    _write_split(target, index, prepared_set.read_table(uri, "rejected"), told, split, request)
    return target


def write_parts(uri: str, rows: pa.Table, config: FacesConfig) -> dict[int, str]:
    """Crop on the workers, a part a task; reasons of the rows that gave no crop."""
    import ray.data

    images = rows.select(["image", "face", "cropped"]).to_pylist()
    # a part that an earlier run finished needs no task
    parts = [{"part": p, "images": images[p * PART_ROWS : (p + 1) * PART_ROWS]}
             for p in range(-(-len(images) // PART_ROWS)) if not storage.exists(prepared_set.part_uri(uri, p))]
    if parts:
        # between two tasks a core waits for the next: long ones where there are many, short ones to share out few
        tasks = min(len(parts), max(len(parts) // 8, int(8 * ray.cluster_resources().get("CPU", 1))))
        (ray.data.from_items(parts, override_num_blocks=tasks)
         .map_batches(functools.partial(crop_parts, uri=uri, config=config), batch_size=1)
         .take_all())
    return {int(row): reason for p in range(-(-len(images) // PART_ROWS))
            for row, reason in storage.read_json(prepared_set.rejects_uri(uri, p)).items()}


@functools.cache  # once per process: reading the cascade takes 11-30 ms
def _finder(config: FacesConfig):
    cv2.setNumThreads(1)  # the tasks are the parallelism
    return faces.finder(config)


def crop_parts(batch: dict, uri: str, config: FacesConfig) -> dict:
    """Write the parts of `batch`; what a part rejects, with the reasons, lies beside it."""
    for part, images in zip(batch["part"], batch["images"], strict=True):
        rows, reasons = crop_images(images, int(part) * PART_ROWS, config)
        storage.write_json(prepared_set.rejects_uri(uri, int(part)), reasons)
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA), sink, compression="none")
        # last: a part that is there is whole
        storage.write_bytes(prepared_set.part_uri(uri, int(part)), sink.getvalue())
    return {"part": batch["part"]}


def crop_images(images: list[dict], first: int, config: FacesConfig) -> tuple[list[dict], dict[int, str]]:
    """Rows of `PART_SCHEMA`, numbered from `first`, and the reason of each row number that gave none.

    `images`: `image`, the manifest's name of one; `face`, its box [x, y, w, h], and `cropped`, both None if unknown.
    """
    rows, reasons = [], {}
    for row, image in enumerate(images, start=first):
        try:
            rows.append({"row": row, **_crop_one(image["image"], image["face"], image["cropped"], config)})
        except (ValueError, OSError, MemoryError, cv2.error) as error:
            reasons[row] = " ".join(str(error).split()) or type(error).__name__
    return rows, reasons


def _crop_one(image: str, face: list[int] | None, cropped: bool | None, config: FacesConfig) -> dict:
    """A row of `PART_SCHEMA` without its number. Raises: ValueError with the reason if there is no usable face."""
    picture = pixels.load(image)
    height, width = picture.shape[:2]
    whole = cropped or config.already_cropped
    box = face if face is not None else None if whole else _finder(config).find(picture)
    if box is None and not whole and config.on_no_face == "reject":
        raise ValueError("no face found")
    if face is not None and not (box[2] > 0 and box[3] > 0 and box[0] < width and box[1] < height
                                 and box[0] + box[2] > 0 and box[1] + box[3] > 0):
        raise ValueError(f"the box {list(box)} given for the face lies outside the {width} x {height} px")
    crop = (faces.cut(picture, (0, 0, width, height), 0.0) if box is None
            else faces.cut(picture, box, config.enlarge))
    bgr = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return {"box": [int(v) for v in box or (0, 0, width, height)], "face_found": box is not None,
            "width": width, "height": height, "channels": 1 if picture.ndim == 2 else 3,
            "digest": hashlib.blake2b(crop.tobytes(), digest_size=16).hexdigest(),
            **duplicates.looks_of(crop, picture), "crop": encoded}


def _write_index(uri: str, config: Config, data: manifest.Manifest, reasons: dict[int, str], request: str) -> None:
    """Split and audit what the parts hold."""
    before = data.rows.to_pandas().assign(row=np.arange(data.rows.num_rows))
    if len(reasons) == len(before):
        why = pd.Series(list(reasons.values())).value_counts()
        raise manifest.DataError(f"{config.data.root}: none of {len(before)} images gave a face ({why.index[0]}: "
                                 f"{why.iloc[0]}); see faces.already_cropped and faces.on_no_face")
    made = prepared_set.read_metadata(uri, -(-len(before) // PART_ROWS))
    index = before.merge(made, on="row", validate="one_to_one")
    index["cluster"] = duplicates.clusters(index)
    index = index.drop(columns=duplicates.THUMBNAILS)
    index = _split(index[index["excluded"].isna()].drop(columns="excluded"), config.split)
    reasons = before["excluded"].dropna().to_dict() | reasons
    lost = before.loc[sorted(reasons), ["image", "dataset", "expression"]].assign(
        reason=[reasons[r] for r in sorted(reasons)])
    rejected = pd.concat([data.rejected.to_pandas(), lost], ignore_index=True)
    told = {"counts": {"read": _counts(pd.concat([before, data.rejected.to_pandas()])), "before": _counts(before)},
            "rejected": {str(k): int(v) for k, v in rejected["reason"].value_counts().items()},
            "config": {k: v for k, v in to_dict(config).items() if k in ("data", "faces", "split")}}
    _write_split(uri, index, rejected, told, config.split, request)


def _split(index: pd.DataFrame, split: SplitConfig) -> pd.DataFrame:
    """The index with the columns `split` and, in cross-validation, `fold`."""
    if not split.folds:
        return index.assign(split=splits.assign(index, by=split.by, seed=split.seed))
    fold = splits.folds(index, split.by, split.folds, split.seed)
    return index.assign(fold=fold, split=splits.of_fold(fold, split.fold))


def _write_split(uri: str, index: pd.DataFrame, rejected: pd.DataFrame, told: dict, split: SplitConfig,
                 request: str) -> None:
    """Audit a split and write all files of a prepared set but the pictures; `prepared.json` last."""
    write_table(uri, "index", pa.Table.from_pandas(index, preserve_index=False))
    write_table(uri, "rejected", pa.Table.from_pandas(rejected, schema=manifest.REJECT_SCHEMA, preserve_index=False))
    storage.write_json(storage.join(uri, "prepared.json"), told | audit(uri, index) | {
        "schema_version": SCHEMA_VERSION,
        "request": request,
        # of what the set holds, wherever and from whatever path it was made
        "fingerprint": _digest(index[["dataset", "expression", "subject", "split", "digest"]]
                               .astype(object).where(lambda t: t.notna(), None).values.tolist()),
        "split": split.by,
        "folds": split.folds,
        "remarks": splits.remarks(index, split.by),
        "counts": told["counts"] | {"after": _nested(index, ["dataset", "split", "expression"])},
    })


def audit(uri: str, index: pd.DataFrame) -> dict:
    """Write `leaks.parquet` and `conflicts.parquet` of a prepared set; their counts."""
    leaks, conflicts = splits.audit(index), splits.conflicts(index)
    write_table(uri, "leaks", pa.Table.from_pandas(leaks, preserve_index=False))
    write_table(uri, "conflicts", pa.Table.from_pandas(conflicts, preserve_index=False))
    copies = len(index) - index["cluster"].nunique()
    return {"leaks": splits.summarize(leaks), "conflicts": len(conflicts), "near_duplicates": copies}


def _counts(rows: pd.DataFrame) -> dict:
    return _nested(rows.fillna({"expression": "none"}), ["dataset", "expression"])


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
    """What identifies the input: the manifest, and size and time of each file."""
    stat = functools.cache(storage.stat)  # one table may hold thousands of images
    return [rows.to_pylist(), [stat(pixels.file_of(image)) for image in rows.column("image").to_pylist()]]


def _digest(*content) -> str:
    return hashlib.sha256(json.dumps([SCHEMA_VERSION, *content], sort_keys=True).encode()).hexdigest()
