"""The runs and best checkpoints that lie in a storage: list them, find one, and fetch it to this machine."""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from fer_ray import storage
from fer_ray.model import checkpoints

PART_BYTES = 8 * 2**20  # what S3's own tools use
CONNECTIONS = 8
REMEDY = "run the training or search of that name again with the same options"


def listing(root: str) -> list[dict]:
    """An entry for each best checkpoint and each unfinished run in the storage `root`, newest first.

    `name`; `state` (best: can be fetched; unfinished; damaged); `backbone`; `data` (kind and root of its data sets);
    `validation` and `test` balanced accuracy (None if unknown); `date` (UTC, ISO 8601, of the best or of the run's
    start); `problem` (which file is damaged and what makes it again; empty if all is well).

    Raises: storage.StorageError.
    """
    best = _best_names(root)
    started = [name for name in storage.list_dirs(storage.join(root, "runs")) if name not in best]
    with ThreadPoolExecutor(CONNECTIONS) as pool:  # each entry waits for several answers of a distant server
        entries = [*pool.map(lambda name: _entry(name, _best_file(root, name), functools.partial(_describe_best, root)),
                             best),
                   *pool.map(lambda name: _entry(name, _run_file(root, name), _describe_run), started)]
    return sorted((entry for entry in entries if entry), key=lambda entry: entry["date"], reverse=True)


def find(root: str, name: str = "") -> str:
    """URI of the best checkpoint of that name; without a name, of the only one.

    Raises: checkpoints.CheckpointError if there is none of that name, or several to choose from; storage.DamagedError;
        storage.StorageError.
    """
    names = _best_names(root)
    if name and name not in names and storage.exists(_run_file(root, name)):
        raise checkpoints.CheckpointError(f"{_best_file(root, name)}: is missing, since the run is unfinished or the "
                                          f"file was removed; {REMEDY}")
    if not names:
        raise checkpoints.CheckpointError(f"{root}: no best checkpoint yet; a finished jobs/train.py leaves one there")
    if name not in names and (name or len(names) > 1):
        problem = f"no {name!r} among" if name else "choose one by --name:"
        raise checkpoints.CheckpointError(f"{root}: {problem} {', '.join(names)}")
    return storage.join(root, _read_best(_best_file(root, name or names[0]))["checkpoint"])


def fetch(checkpoint: str, folder: str, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Copy a checkpoint's weights, temperature and description to a local folder, in parts over several connections.

    Parts that are there from an interrupted fetch are kept. What does not verify is removed; `model.json` is written
    last, so that the folder is a checkpoint only when it is whole. The optimiser's state stays behind: it is as large
    as the weights and serves only to resume the run where it lies.

    `progress` is called with the bytes that are there and the bytes in all.

    Raises: checkpoints.CheckpointError if the checkpoint is not complete, `folder` holds another one, or the sha256
        differs; storage.StorageError.
    """
    description = checkpoints.describe(checkpoint)
    target = Path(folder)
    weights = target / "model.safetensors"
    if (target / "model.json").exists():
        if checkpoints.describe(folder)["sha256"] != description["sha256"]:
            raise checkpoints.CheckpointError(f"{folder} holds another checkpoint; choose another folder")
        if weights.exists() and storage.sha256(str(weights)) == description["sha256"]:
            return _fetch_calibration(checkpoint, folder)  # which may have been fitted since
    target.mkdir(parents=True, exist_ok=True)
    source, partial = storage.join(checkpoint, "model.safetensors"), target / "model.safetensors.part"
    try:
        size = storage.stat(source)[0]
    except FileNotFoundError:
        raise checkpoints.CheckpointError(f"{source}: is missing; {checkpoints.REMEDY}") from None
    journal = target / "model.safetensors.parts"
    _fetch_parts(source, size, description["sha256"], partial, journal, progress)
    if storage.sha256(str(partial)) != description["sha256"]:
        partial.unlink()
        journal.unlink()
        raise checkpoints.CheckpointError(f"{source}: sha256 differs from model.json; the file is damaged in storage, "
                                          "or was on its way: run the same command again")
    os.replace(partial, weights)
    journal.unlink()
    _fetch_calibration(checkpoint, folder)
    storage.write_json(str(target / "model.json"), description)


def _fetch_calibration(checkpoint: str, folder: str) -> None:
    source = storage.join(checkpoint, checkpoints.CALIBRATION)
    if storage.exists(source):
        storage.write_bytes(storage.join(folder, checkpoints.CALIBRATION), storage.read_bytes(source))


def _fetch_parts(source: str, size: int, sha256: str, file: Path, journal: Path,
                 progress: Callable[[int, int], None]) -> None:
    """Fill `file` with the `size` bytes of `source`.

    `journal` says in its first line which file is being fetched, and in each other line the number of a part that is
    there: a part is noted only after it was written, so that one that was cut short is fetched again.
    """
    title = f"{sha256} {size}"
    lines = journal.read_text().splitlines() if journal.exists() and file.exists() else []
    there = {int(line) for line in lines[1:] if line.isdecimal()} if lines[:1] == [title] else set()
    if not there:
        journal.write_text(title + "\n")
        file.write_bytes(b"")
        os.truncate(file, size)
    spans = {number: (first, min(PART_BYTES, size - first)) for number, first in enumerate(range(0, size, PART_BYTES))}
    done = sum(spans[number][1] for number in there)
    progress(done, size)
    with (open(file, "r+b") as target, open(journal, "a") as notes,
          ThreadPoolExecutor(CONNECTIONS) as pool):
        pending = {pool.submit(storage.read_range, source, *span): number
                   for number, span in spans.items() if number not in there}
        try:
            for answer in as_completed(pending):
                number, content = pending.pop(answer), answer.result()
                target.seek(spans[number][0])
                target.write(content)
                target.flush()
                notes.write(f"{number}\n")
                notes.flush()
                done += len(content)
                progress(done, size)
        finally:
            pool.shutdown(cancel_futures=True)


def _best_names(root: str) -> list[str]:
    files = storage.list_files(storage.join(root, "best"))
    return [file.removesuffix(".json") for file in files if file.endswith(".json")]


def _best_file(root: str, name: str) -> str:
    return storage.join(root, "best", f"{name}.json")


def _run_file(root: str, name: str) -> str:
    return storage.join(root, "runs", name, "run.json")


def _read_best(file: str) -> dict:
    return storage.read_own_json(file, {"checkpoint": str, "value": float}, REMEDY)


def _entry(name: str, file: str, describe: Callable[[str], dict]) -> dict | None:
    """The entry that `describe` makes of a file, or one that says what is damaged; None if the file is not there.

    Then the folder is that of something else, or was removed since it was listed.
    """
    try:
        entry = {"name": name, "state": "damaged", "backbone": "", "data": "", "validation": None, "test": None,
                 "date": _date(file), "problem": ""}
    except FileNotFoundError:
        return None
    try:
        return entry | describe(file)
    except (checkpoints.CheckpointError, storage.DamagedError) as error:
        return entry | {"problem": str(error)}


def _describe_best(root: str, file: str) -> dict:
    best = _read_best(file)
    checkpoint = storage.join(root, best["checkpoint"])
    description = checkpoints.describe(checkpoint)
    result, problem = storage.join(checkpoint.rpartition("/")[0], "result.json"), ""
    test = None
    if storage.exists(result):
        try:
            scored = storage.read_own_json(result, {"balanced_accuracy": float, "checkpoint": str},
                                           "run jobs/evaluate.py of that name again")
            # the storage may have been moved since
            test = scored["balanced_accuracy"] if scored["checkpoint"].endswith(f"/{best['checkpoint']}") else None
        except storage.DamagedError as error:
            problem = str(error)
    try:
        data = _data(description["config"])
    except (LookupError, TypeError):
        raise checkpoints.CheckpointError(f"{checkpoint}/model.json: config names no data sets; "
                                          f"{checkpoints.REMEDY}") from None
    return {"state": "best", "backbone": description["backbone"], "data": data, "validation": best["value"],
            "test": test, "problem": problem}


def _describe_run(file: str) -> dict:
    values = storage.read_own_json(file, {"values": dict}, REMEDY)["values"]
    return {"state": "unfinished", "backbone": values.get("train.backbone", "")}


def _data(config: dict) -> str:
    """The data sets that a configuration names: the kinds of its sources, or kind and root of the only one."""
    data = config["data"]
    return "+".join(source["kind"] for source in data["sources"]) or f"{data['kind']}:{data['root']}"


def _date(file: str) -> str:
    seconds = storage.stat(file)[1] / 1e9
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(sep=" ", timespec="minutes")[:16]
