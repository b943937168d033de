"""The pipeline from manifest to prepared set (Ray Data): crop on the workers, split, audit."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import socket
from collections.abc import Collection, Iterator

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import storage
from fer_ray.config import Config, to_dict
from fer_ray.data import duplicates, faces, manifest, pixels, prepared_set, provenance, splits
from fer_ray.data.prepared_set import PART_ROWS, PART_SCHEMA, SCHEMA_VERSION, write_table
from fer_ray.data_config import FacesConfig, SplitConfig
from fer_ray.progress import Progress

CROPS_VERSION = 4  # part of the fingerprint: another way to cut or hash crops makes another number
PARTS_PER_TASK = 8  # at most: tasks that are long save the pauses between them
TASKS_PER_CPU = 8  # at least, as far as the parts go round: all CPUs are busy to the end


def prepare(config: Config, data: manifest.Manifest) -> str:
    """Crop every image of `data`, split and audit; the prepared set's URI.

    What is there and whole is kept: the same call again is a no-op, an interrupted one goes on, and files that are
    damaged are made again. Crops stay if only labels, split, or the images' paths and times have changed. Crops of
    other images or other options are never overwritten unless `config.replace`.

    Raises: manifest.DataError if a set of other images or options lies there, if no face is left, or if the subjects do
        not suffice for the split; faces.DetectorError; storage.StorageError.
    """
    uri = prepared_set.uri_of(config)
    faces.finder(config.faces)  # fails here, with its reason, rather than on a worker
    for folder in (uri, storage.join(uri, "images")):
        storage.remove_abandoned(folder)
    finished = _finished_parts(uri, config, data.rows)
    request = _digest(SCHEMA_VERSION, data.rows.to_pylist(), data.rejected.to_pylist(), to_dict(config.faces),
                      to_dict(config.split))
    if len(finished) == _num_parts(data.rows) and prepared_set.is_up_to_date(uri, request):
        return uri
    records = write_parts(uri, data.rows, config.faces, finished)
    _write_index(uri, config, data, records, request)
    return uri


def _finished_parts(uri: str, config: Config, rows: pa.Table) -> set[int]:
    """Numbers of the parts that are whole and hold the crops that are wanted.

    Raises: manifest.DataError if there are parts of other images or options, unless `config.replace` says to delete
        the set.
    """
    records = provenance.read_records(uri, provenance.recorded_parts(uri))
    differing, stale = provenance.compare(records, _parts(rows), to_dict(config.faces))
    if _is_of_another_format(uri):
        differing = ["it was made by another version of this program"]
    if not differing:
        for part in stale:
            provenance.write_record(uri, part, records[part])
        return provenance.whole_parts(uri, records)
    if not config.replace:
        raise manifest.DataError(
            f"{uri}: holds a prepared set of other images or options: {'; '.join(differing)}. It is left as it is; "
            "--replace deletes it, its splits included, and makes it anew, --prepared NAME makes another one beside it")
    storage.delete_dir(uri)
    return set()


def _is_of_another_format(uri: str) -> bool:
    if "crops.json" in storage.list_files(uri):  # which formats up to 4 began with
        return True
    try:
        summary = storage.read_own_json(storage.join(uri, "prepared.json"), {"schema_version": int}, "")
    except storage.DamagedError:  # or not there
        return False
    return summary["schema_version"] != SCHEMA_VERSION


def resplit(uri: str, split: SplitConfig, without: Collection[str] = ()) -> str:
    """Split a prepared set in another way; URI of the prepared set below it that shares its pictures.

    The same call again is a no-op.

    Args:
        uri: the prepared set that holds the pictures.
        split: the other way.
        without: images that neither train nor val may use; in test they stay.

    Raises: manifest.DataError as `prepare`; storage.DamagedError; storage.StorageError.
    """
    base = prepared_set.read_summary(uri)
    request = _digest(SCHEMA_VERSION, base["request"], dataclasses.asdict(split), sorted(without))
    fold = f"-fold{split.fold}of{split.folds}" if split.folds else ""
    target = storage.join(uri, "splits", f"{split.by}-seed{split.seed}{fold}" + ("-without" if without else ""))
    storage.remove_abandoned(target)
    if prepared_set.is_up_to_date(target, request):
        return target
    index = _split(prepared_set.read_index(uri).drop(columns=["split", "fold"], errors="ignore"), split)
    index = index[~index["image"].isin(without) | (index["split"] == "test")]
    summary = {"counts": base["counts"], "rejected": base["rejected"], "files": {},
               "config": base["config"] | {"split": dataclasses.asdict(split)}}
    _write_split(target, index, prepared_set.read_table(uri, "rejected"), summary, split, request)
    return target


def _num_parts(rows: pa.Table) -> int:
    return -(-rows.num_rows // PART_ROWS)


def _parts(rows: pa.Table) -> list[list[dict]]:
    """The images of each part, in order."""
    images = rows.select(["image", "face", "cropped"]).to_pylist()
    return [images[first : first + PART_ROWS] for first in range(0, len(images), PART_ROWS)]


def write_parts(uri: str, rows: pa.Table, config: FacesConfig, finished: Collection[int] = ()) -> dict[int, dict]:
    """Crop the images of all parts that are not `finished`; the records of all parts (see `provenance`)."""
    parts = _parts(rows)
    if missing := [{"part": part, "images": images} for part, images in enumerate(parts) if part not in finished]:
        with Progress("prepare: crop", rows.num_rows, done=sum(len(parts[part]) for part in finished)) as progress:
            for num_images in _crop_on_workers(missing, uri, config):
                progress.advance(num_images)
    return provenance.read_records(uri, range(len(parts)))


def _crop_on_workers(parts: list[dict], uri: str, config: FacesConfig) -> Iterator[int]:
    """Run `crop_parts`; the number of images in what each finished task wrote."""
    import ray.data

    cpus = ray.cluster_resources().get("CPU", 1)
    num_tasks = min(len(parts), max(len(parts) // PARTS_PER_TASK, int(TASKS_PER_CPU * cpus)))
    cropping = ray.data.from_items(parts, override_num_blocks=num_tasks).map_batches(
        functools.partial(crop_parts, uri=uri, config=config), batch_size=1)  # ty: ignore[invalid-argument-type]
    for batch in cropping.iter_batches(batch_size=None, prefetch_batches=0):
        yield int(np.sum(batch["images"]))


@functools.cache  # once per process: reading the cascade takes 11-30 ms
def _finder(config: FacesConfig):
    cv2.setNumThreads(1)  # the tasks are the parallelism
    return faces.finder(config)


def crop_parts(batch: dict, uri: str, config: FacesConfig) -> dict:
    """Write the parts of `batch` and their records; the number of images of each part. A batch as Ray Data makes it."""
    for part, images in zip(batch["part"], batch["images"], strict=True):
        images = [_plain(image) for image in images]
        rows, rejected, digests = crop_images(images, int(part) * PART_ROWS, config)
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=PART_SCHEMA), sink, compression="none")
        storage.write_bytes(prepared_set.part_uri(uri, int(part)), sink.getvalue())
        # last: a part that has a record is whole
        provenance.write_record(uri, int(part), {
            **prepared_set.promise(sink.getvalue()), "faces": to_dict(config),
            "images": [provenance.image_entry(*entry) for entry in zip(images, digests, strict=True)],
            "rejected": {str(number): reason for number, reason in rejected.items()}})
    return {"part": batch["part"], "images": np.array([len(images) for images in batch["images"]])}


def crop_images(images: list[dict], first: int,
                config: FacesConfig) -> tuple[list[dict], dict[int, str], list[str]]:
    """Crop the face of each image.

    Args:
        images: `image`, the manifest's name of one; `face`, its box [x, y, w, h] in px, and `cropped`, both None if
            unknown.
        first: the row number of the first image.
        config: how faces are found and cropped.

    Returns: rows of `PART_SCHEMA`; by row number, the reason of each image that gave none; `provenance.digest` of the
        bytes of each image, "" where they could not be read.

    Raises: storage.StorageError if storage cannot be reached, which says nothing of an image.
    """
    rows, reasons, digests = [], {}, []
    for number, image in enumerate(images, start=first):
        row, reason, digest = _crop_or_reason(image, config)
        if row is None:
            reasons[number] = reason
        else:
            rows.append({"row": number, **row})
        digests.append(digest)
    return rows, reasons, digests


def _plain(image: dict) -> dict:
    """An image's `image`, `face` and `cropped` without NumPy's types, which Ray Data makes of lists."""
    face, cropped = image["face"], image["cropped"]
    return {"image": str(image["image"]), "face": None if face is None else [int(value) for value in face],
            "cropped": None if cropped is None else bool(cropped)}


def _crop_or_reason(image: dict, config: FacesConfig) -> tuple[dict | None, str, str]:
    """A row of `PART_SCHEMA` without its number, or None and the reason; and the digest of the image's bytes."""
    content = ""
    try:
        encoded = pixels.read(image["image"])
        content = provenance.digest(encoded)
        picture = pixels.decode_content(image["image"], encoded)
        return _crop(picture, image["face"], bool(image["cropped"]), config), "", content
    except pixels.ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # it was there when the data set was listed
            raise storage.StorageError(f"{image['image']}: is not to be found on {socket.gethostname()}; the data must "
                                       "lie under the same path on every node, and stay there") from None
        return None, str(error), content
    except cv2.error as error:  # of a picture that no step can handle, such as one of 9 x 100,000 px
        if error.code == cv2.Error.StsNoMem:
            raise
        return None, " ".join(str(error).split()), content


def _crop(picture: np.ndarray, face: list[int] | None, cropped: bool, config: FacesConfig) -> dict:
    """A row of `PART_SCHEMA` without its number. Raises: pixels.ImageError if there is no usable face."""
    height, width = picture.shape[:2]
    is_whole = cropped or config.already_cropped
    box = face
    if face is None and not is_whole:
        box = _finder(config).find(picture)
        if box is None and config.on_no_face == "reject":
            raise pixels.ImageError("no face found")
    if face is not None and not (face[2] > 0 and face[3] > 0 and face[0] < width and face[1] < height
                                 and face[0] + face[2] > 0 and face[1] + face[3] > 0):
        raise pixels.ImageError(f"the box {face} given for the face lies outside the {width} x {height} px")
    found = box is not None
    x, y, w, h = (0, 0, width, height) if box is None else box
    crop = faces.cut(picture, (x, y, w, h), config.enlarge if found else 0.0)
    bgr = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    return {"box": [x, y, w, h], "face_found": found, "width": width, "height": height,
            "channels": 1 if picture.ndim == 2 else 3,
            "digest": hashlib.blake2b(crop.tobytes(), digest_size=16).hexdigest(),
            **duplicates.looks_of(crop, picture), "crop": encoded}


def _write_index(uri: str, config: Config, data: manifest.Manifest, records: dict[int, dict], request: str) -> None:
    """Split and audit what the parts hold. `records`: of `write_parts`."""
    reasons = {int(row): reason for record in records.values() for row, reason in record["rejected"].items()}
    before = data.rows.to_pandas().assign(row=np.arange(data.rows.num_rows))
    if len(reasons) == len(before):
        why = pd.Series(list(reasons.values())).value_counts()
        raise manifest.DataError(f"{config.data.root}: none of {len(before)} images gave a face ({why.index[0]}: "
                                 f"{why.iloc[0]}); see faces.already_cropped and faces.on_no_face")
    made = prepared_set.read_metadata(uri, _num_parts(data.rows))
    index = before.merge(made, on="row", validate="one_to_one")
    index["cluster"] = duplicates.clusters(index)
    index = index.drop(columns=duplicates.THUMBNAILS)
    index = _split(index[index["excluded"].isna()].drop(columns="excluded"), config.split)
    reasons = before["excluded"].dropna().to_dict() | reasons
    lost = before.loc[sorted(reasons), ["image", "dataset", "expression"]].assign(
        reason=[reasons[r] for r in sorted(reasons)])
    rejected = pd.concat([data.rejected.to_pandas(), lost], ignore_index=True)
    summary = {
        "counts": {"read": _counts(pd.concat([before, data.rejected.to_pandas()])), "before": _counts(before)},
        "rejected": {str(reason): int(count) for reason, count in rejected["reason"].value_counts().items()},
        "config": {key: value for key, value in to_dict(config).items() if key in ("data", "faces", "split")},
        "files": {f"images/part-{part:05d}.parquet": {key: record[key] for key in ("size", "sha256")}
                  for part, record in records.items()}}
    _write_split(uri, index, rejected, summary, config.split, request)


def _split(index: pd.DataFrame, split: SplitConfig) -> pd.DataFrame:
    """The index with the columns `split` and, in cross-validation, `fold`."""
    if not split.folds:
        return index.assign(split=splits.assign(index, by=split.by, seed=split.seed))
    fold = splits.folds(index, split.by, split.folds, split.seed)
    return index.assign(fold=fold, split=splits.of_fold(fold, split.fold))


def _write_split(uri: str, index: pd.DataFrame, rejected: pd.DataFrame, summary: dict, split: SplitConfig,
                 request: str) -> None:
    """Audit a split and write all files of a prepared set but the pictures; `prepared.json` last."""
    for name in ("prepared.json", "prepare.html"):  # they tell of the files that are now replaced
        storage.delete_file(storage.join(uri, name))
    tables = write_table(uri, "index", pa.Table.from_pandas(index, preserve_index=False)) | write_table(
        uri, "rejected", pa.Table.from_pandas(rejected, schema=manifest.REJECT_SCHEMA, preserve_index=False))
    found = audit(uri, index)
    storage.write_json(storage.join(uri, "prepared.json"), summary | found | {
        "schema_version": SCHEMA_VERSION,
        "request": request,
        "files": summary["files"] | tables | found["files"],
        # of what the set holds, wherever and from whatever path it was made
        "fingerprint": _digest(CROPS_VERSION, index[["dataset", "expression", "subject", "split", "digest"]]
                               .astype(object).where(lambda table: table.notna(), None).values.tolist()),
        "split": split.by,
        "folds": split.folds,
        "remarks": splits.remarks(index, split.by),
        "counts": summary["counts"] | {"after": _nested(index, ["dataset", "split", "expression"])},
    })


def audit(uri: str, index: pd.DataFrame) -> dict:
    """Write `leaks.parquet` and `conflicts.parquet` of a prepared set; their counts, and their entries in `files`."""
    leaks = splits.audit(index)
    conflicts = splits.conflicts(index, functools.partial(prepared_set.read_crops, uri))
    files = write_table(uri, "leaks", pa.Table.from_pandas(leaks, preserve_index=False)) | write_table(
        uri, "conflicts", pa.Table.from_pandas(conflicts, preserve_index=False))
    copies = len(index) - index["cluster"].nunique()
    return {"leaks": splits.summarize(leaks), "conflicts": len(conflicts), "near_duplicates": copies, "files": files}


def audit_again(uri: str) -> dict:
    """Audit a complete prepared set; its summary. Raises: as `prepared_set.read_index`."""
    summary = prepared_set.read_summary(uri)
    found = audit(uri, prepared_set.read_index(uri))
    summary |= found | {"files": summary["files"] | found["files"]}
    storage.write_json(storage.join(uri, "prepared.json"), summary)
    return summary


def _counts(rows: pd.DataFrame) -> dict:
    return _nested(rows.fillna({"expression": "none"}), ["dataset", "expression"])


def _nested(rows: pd.DataFrame, columns: list[str]) -> dict:
    """Counts as nested dictionaries, one level a column."""
    tree: dict = {}
    for *path, last, count in rows.groupby(columns).size().reset_index().values.tolist():
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = int(count)
    return tree


def _digest(*content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
