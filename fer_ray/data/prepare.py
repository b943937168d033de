"""The pipeline from manifest to prepared set (Ray Data): crop on the workers, split, audit."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fer_ray import storage
from fer_ray.config import Config, to_dict
from fer_ray.data import crops, duplicates, faces, leaks, manifest, prepared_set, provenance, shortcuts, splits
from fer_ray.data.prepared_set import SCHEMA_VERSION, write_table
from fer_ray.data_config import FacesConfig, SplitConfig
from fer_ray.progress import Progress

PARTS_PER_TASK = 8  # at most: tasks that are long save the pauses between them
TASKS_PER_CPU = 8  # at least, as far as the parts go round: all CPUs are busy to the end
IMAGES_PER_READ = 500  # that a task reads to know whether they are still the same


def prepare(config: Config, data: manifest.Manifest) -> str:
    """Crop every image of `data`, split and audit; the prepared set's URI.

    What is there and whole is kept: the same call again is a no-op, an interrupted one goes on, and files that are
    damaged are made again. A crop stays as long as an image of the same content is asked for, whatever its name, label
    or split; an image more costs one crop. Until all is made, the set that was there stays as it was. Crops of other
    options are never overwritten unless `config.replace`.

    Raises: manifest.DataError if a set of other options lies there, if no face is left, or if the subjects do not
        suffice for the split; faces.DetectorError; storage.DamagedError; storage.StorageError.
    """
    uri = prepared_set.uri_of(config)
    faces.finder(config.faces)  # fails here, with its reason, rather than on a worker
    for folder in (uri, storage.join(uri, "images")):
        storage.remove_abandoned(folder)
    stored = _stored_parts(uri, config)
    contents = provenance.read_contents(uri)
    wanted, unknown = provenance.recall(provenance.deal(data.rows), contents, stored)
    if unknown.any():
        wanted.loc[unknown, "content"] = _read_contents(wanted.loc[unknown, "image"].tolist())
    parts, missing = provenance.plan(wanted, stored)
    sources = _digest(SCHEMA_VERSION, to_dict(config.faces), data.rejected.to_pylist(),
                      data.rows.drop_columns(list(manifest.FILE_COLUMNS)).to_pylist())
    request = _digest(sources, data.ledger, _identity(config.split))
    if not missing and prepared_set.is_up_to_date(uri, request, parts.values()):
        now = provenance.contents_of(wanted)
        if contents is None or not contents.equals(now):
            _renew_contents(uri, now)
        _sweep(uri, stored, parts)
        return uri
    parts |= write_parts(uri, missing, config.faces, len(wanted))
    origin = {"request": request, "images": _digest(sources, sorted(parts.values()))}
    _write_index(uri, config, data, wanted, parts, origin)
    _sweep(uri, stored, parts)
    return uri


def _sweep(uri: str, stored: provenance.Stored, parts: dict[int, str]) -> None:
    """Remove the parts that other ones have taken the place of."""
    for name in sorted(set(stored.names) - set(parts.values())):
        storage.delete_file(prepared_set.part_uri(uri, name))


def _stored_parts(uri: str, config: Config) -> provenance.Stored:
    """The parts that are there. Raises: manifest.DataError if they were made with other options, unless `replace`."""
    stored = provenance.Stored(uri)
    asked = crops.made_with(config.faces)
    differing = [f"faces.{name} was {value!r} and is {asked['faces'].get(name)!r}" for made_with in stored.made_with
                 # an option that was not there yet when the set was made did what its default does
                 for name, value in (to_dict(FacesConfig()) | made_with["faces"]).items()
                 if asked["faces"].get(name) != value]
    if _is_of_another_format(uri) or any(made_with["version"] != crops.VERSION for made_with in stored.made_with):
        differing = ["it was made by another version of this program"]
    if not differing:
        return stored
    if not config.replace:
        raise manifest.DataError(
            f"{uri}: holds a prepared set of other options: {'; '.join(differing)}. It is left as it is; "
            "--replace deletes it, its splits included, and makes it anew, --prepared NAME makes another one beside it")
    storage.delete_dir(uri)
    return provenance.Stored(uri)


def _is_of_another_format(uri: str) -> bool:
    try:
        summary = storage.read_own_json(storage.join(uri, "prepared.json"), {"schema_version": int}, "")
    except storage.DamagedError:  # or not there
        return False
    return summary["schema_version"] != SCHEMA_VERSION


def _renew_contents(uri: str, contents: pa.Table) -> None:
    """Write the sizes and times of files that were touched or moved."""
    summary = prepared_set.read_summary(uri)
    summary["files"] |= write_table(uri, "contents", contents)
    storage.write_json(storage.join(uri, "prepared.json"), summary)


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
    request = _digest(base["images"], _identity(split), sorted(without))
    fold = f"-fold{split.fold}of{split.folds}" if split.folds else ""
    target = storage.join(uri, "splits", f"{split.by}-seed{split.seed}{fold}" + ("-without" if without else ""))
    storage.remove_abandoned(target)
    if prepared_set.is_up_to_date(target, request):
        return target
    index = _split(prepared_set.read_index(uri).drop(columns=["split", "fold"], errors="ignore"), split)
    index = index[~index["image"].isin(without) | (index["split"] == "test")]
    summary = {key: base[key] for key in ("images", "counts", "rejected", "faces", "shortcuts", "ledger")} | {
        "request": request, "files": {}, "config": base["config"] | {"split": dataclasses.asdict(split)}}
    _write_split(target, index, prepared_set.read_table(uri, "rejected"), summary, split)
    return target


def _read_contents(images: list[str]) -> list[str]:
    """What `provenance.content_of` says of each image."""
    chunks = [images[first : first + IMAGES_PER_READ] for first in range(0, len(images), IMAGES_PER_READ)]
    found: dict[int, list[str]] = {}
    with Progress("prepare: compare", len(images)) as progress:
        for done in _on_workers(_contents_of, [{"number": n, "images": chunk} for n, chunk in enumerate(chunks)]):
            for number, contents in zip(done["number"], done["contents"], strict=True):
                found[int(number)] = list(contents)
                progress.advance(len(contents))
    return [content for number in range(len(chunks)) for content in found[number]]


def _contents_of(batch: dict) -> dict:
    contents = np.empty(len(batch["number"]), object)
    contents[:] = [[provenance.content_of(str(image)) for image in images] for images in batch["images"]]
    return {"number": batch["number"], "contents": contents}


def write_parts(uri: str, missing: list[dict], config: FacesConfig, num_images: int) -> dict[int, str]:
    """Make parts.

    Args:
        uri: of the prepared set.
        missing: of `provenance.plan`.
        config: how faces are found and cropped.
        num_images: of the whole set; for the progress that is shown.

    Returns: their names by number.
    """
    made: dict[int, str] = {}
    by_node: Counter[str] = Counter()
    new = sum(not image["kept_in"] for part in missing for image in part["images"])
    with Progress("prepare: crop", num_images, done=num_images - new) as progress:
        for done in _on_workers(functools.partial(crops.crop_parts, uri=uri, config=config), missing):
            made |= zip(map(int, done["part"]), map(str, done["name"]), strict=True)
            progress.advance(int(np.sum(done["new"])))
            by_node.update(dict(zip(map(str, done["node"]), map(int, done["new"]), strict=True)))
    if len(by_node) > 1:
        print(f"prepare: cropped on {len(by_node)} nodes: "
              f"{', '.join(f'{node} {number:,}' for node, number in sorted(by_node.items()))}", flush=True)
    return made


def _on_workers(function: Callable[[dict], dict], items: list[dict]) -> Iterator[dict]:
    """Apply a function of batches of one item to all items; what it returned, in the order in which it is ready."""
    import ray.data

    if not items:
        return
    cpus = ray.cluster_resources().get("CPU", 1)
    num_tasks = min(len(items), max(len(items) // PARTS_PER_TASK, int(TASKS_PER_CPU * cpus)))
    done: Any = ray.data.from_items(items, override_num_blocks=num_tasks).map_batches(
        function, batch_size=1)  # ty: ignore[invalid-argument-type]
    yield from done.iter_batches(batch_size=None, prefetch_batches=0)


def _write_index(uri: str, config: Config, data: manifest.Manifest, wanted: pd.DataFrame, parts: dict[int, str],
                 origin: dict) -> None:
    """Split and audit what the parts hold.

    Args:
        uri: of the prepared set.
        config: `data`, `faces` and `split`.
        data: the manifest.
        wanted: of `provenance.recall`.
        parts: names of all parts by number.
        origin: `request` and `images` of `prepared.json`.
    """
    before = data.rows.drop_columns(list(manifest.FILE_COLUMNS)).to_pandas().assign(row=np.arange(data.rows.num_rows))
    places = wanted.assign(part=wanted["number"].map(parts)).merge(
        prepared_set.read_columns(uri, sorted(parts.values()), ["content", "reason", "search"]).to_pandas(),
        on=["part", "part_row"], suffixes=("_known", ""), validate="one_to_one").sort_values("row", ignore_index=True)
    lost = places["reason"].astype(object).where(places["reason"].notna(), None)
    words, rejects = decide_searches(before["dataset"], places["search"], config.faces)
    lost[rejects] = crops.NO_FACE
    if lost.notna().all():
        why = lost.value_counts()
        raise manifest.DataError(f"{config.data.root}: none of {len(before)} images gave a face ({why.index[0]}: "
                                 f"{why.iloc[0]}); see faces.already_cropped and faces.on_no_face")
    index = before[lost.isna()].join(places[["part", "part_row", "search"]])
    index = index.merge(prepared_set.read_metadata(uri, sorted(parts.values())), on=["part", "part_row"],
                        validate="one_to_one")
    index["cluster"] = duplicates.clusters(index, prepared_set.read_thumbnails(uri, index))
    index = _split(index[index["excluded"].isna()].drop(columns="excluded"), config.split)
    reasons = lost.fillna(before["excluded"])
    rejected = pd.concat([data.rejected.to_pandas(), before[["image", "dataset", "expression"]].assign(
        reason=reasons)[reasons.notna()]], ignore_index=True)
    contents = write_table(uri, "contents", provenance.contents_of(places))
    summary = origin | {
        "counts": {"read": _counts(pd.concat([before, data.rejected.to_pandas()])), "before": _counts(before)},
        "rejected": {str(reason): int(count) for reason, count in rejected["reason"].value_counts().items()},
        "config": {key: value for key, value in to_dict(config).items() if key in ("data", "faces", "split")},
        "faces": [*words, *tell_several(index)],
        "shortcuts": shortcuts.audit(index, config.split.seed, config.faces.gray),
        "ledger": data.ledger, "parts": sorted(parts.values()), "files": contents}
    _write_split(uri, index, rejected, summary, config.split)


def decide_searches(datasets: pd.Series, searches: pd.Series, config: FacesConfig) -> tuple[list[str], np.ndarray]:
    """What becomes of the images in which no face was found, by data set.

    Args:
        datasets: str [N], the data set of each image.
        searches: [N], one of `faces.SEARCHES`, or None where no face was searched.
        config: `already_cropped` and `on_no_face`.

    Returns: what was decided and why, a sentence a data set; bool [N], which images are rejected.
    """
    rejects = (searches == "none").to_numpy() & (config.on_no_face == "reject")
    words = []
    for dataset, of_dataset in searches.groupby(datasets):
        found, filling, none = ((of_dataset == kind).sum() for kind in faces.SEARCHES)
        if config.already_cropped != "auto" or not found + filling + none:
            continue
        if not filling + none:
            words.append(f"{dataset}: taken for photographs, since a face was found in all {found:,} images")
            continue
        cropped = faces.are_crops(found, filling, none)
        rejects &= ~(cropped & (datasets == dataset).to_numpy())
        whole = cropped or config.on_no_face == "whole"
        unseen = f", the {none:,} too in which none is seen (prepare.html shows some)" if none else ""
        words.append(
            f"{dataset}: taken for {'pictures cropped to the face' if cropped else 'photographs'}, since a face was "
            f"found in {found:,} of {found + filling + none:,} images, and fills {filling:,} of the others; "
            f"{f'these are used whole{unseen}' if whole else f'the {none:,} without any are rejected'}")
    return words, rejects


def tell_several(index: pd.DataFrame) -> list[str]:
    """How many pictures show several large faces, of which a label can only mean one, a sentence a data set."""
    return [f"{dataset}: another face, not much smaller than the one used, is in {number:,} of the images"
            for dataset, number in index.loc[index["several"], "dataset"].value_counts(sort=False).items()]


def _identity(split: SplitConfig) -> dict:
    """What must be the same for a split that is there to be the one asked for."""
    return to_dict(split) | ({"version": splits.FOLDS_VERSION} if split.folds else {})


def _split(index: pd.DataFrame, split: SplitConfig) -> pd.DataFrame:
    """The index with the columns `split` and, in cross-validation, `fold`."""
    if not split.folds:
        return index.assign(split=splits.assign(index, by=split.by, seed=split.seed))
    fold = splits.folds(index, split.by, split.folds, split.seed)
    return index.assign(fold=fold, split=splits.of_fold(index, split.by, fold, split.fold, split.seed))


def _write_split(uri: str, index: pd.DataFrame, rejected: pd.DataFrame, summary: dict, split: SplitConfig) -> None:
    """Audit a split and write all files of a prepared set but the pictures; `prepared.json` last."""
    for name in ("prepared.json", "prepare.html"):  # they tell of the files that are now replaced
        storage.delete_file(storage.join(uri, name))
    tables = write_table(uri, "index", pa.Table.from_pandas(index, preserve_index=False)) | write_table(
        uri, "rejected", pa.Table.from_pandas(rejected, schema=manifest.REJECT_SCHEMA, preserve_index=False))
    found = audit(uri, index)
    storage.write_json(storage.join(uri, "prepared.json"), summary | found | {
        "schema_version": SCHEMA_VERSION,
        "files": summary["files"] | tables | found["files"],
        # of what the set holds, wherever and from whatever path it was made
        "fingerprint": _digest(crops.VERSION, index[["dataset", "expression", "subject", "split", "digest"]]
                               .astype(object).where(lambda table: table.notna(), None).values.tolist()),
        "split": split.by,
        "folds": split.folds,
        "remarks": splits.remarks(index, split.by),
        "unseen": splits.unseen(index),
        "counts": summary["counts"] | {"after": _nested(index, ["dataset", "split", "expression"])},
    })


def audit(uri: str, index: pd.DataFrame) -> dict:
    """Write `leaks.parquet` and `conflicts.parquet` of a prepared set; their counts, and their entries in `files`."""
    found = leaks.audit(index)
    conflicts = leaks.conflicts(index, functools.partial(prepared_set.read_crops, uri, make=duplicates.thumbnail))
    files = write_table(uri, "leaks", pa.Table.from_pandas(found, preserve_index=False)) | write_table(
        uri, "conflicts", pa.Table.from_pandas(conflicts, preserve_index=False))
    copies = len(index) - index["cluster"].nunique()
    return {"leaks": leaks.summarize(found), "conflicts": len(conflicts), "near_duplicates": copies, "files": files}


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
