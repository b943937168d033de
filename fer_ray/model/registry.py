"""What lies in a storage for others to use: list the runs and their best checkpoints, and fetch one."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from fer_ray import storage
from fer_ray.model import checkpoints

PART = 8 * 2**20  # bytes; what S3's own tools use
SIDE_BY_SIDE = 8


def listing(root: str) -> list[dict]:
    """An entry for each run and each best checkpoint in the storage `root`, newest first.

    `name`; `state` (best: to be pulled, else unfinished); `backbone`; `data` (kind and root of its data sets);
    `validation` and `test` balanced accuracy (None if unknown); `date` (UTC, ISO 8601, of the best or of the run's
    start).
    """
    named = [name.removesuffix(".json") for name in storage.list_files(storage.join(root, "best"))
             if name.endswith(".json")]
    started = [name for name in storage.list_dirs(storage.join(root, "runs")) if name not in named]
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:  # each waits for several answers of a distant server
        entries = [*pool.map(lambda name: _best(root, name), named), *pool.map(lambda name: _run(root, name), started)]
    return sorted((e for e in entries if e), key=lambda e: e["date"], reverse=True)


def find(root: str, name: str = "") -> str:
    """URI of the best checkpoint of that name; without a name of the only one.

    Raises: CheckpointError if there is none of that name, or several to choose from.
    """
    names = [n.removesuffix(".json") for n in storage.list_files(storage.join(root, "best")) if n.endswith(".json")]
    if not names:
        raise checkpoints.CheckpointError(f"{root}: no best checkpoint yet; a finished jobs/train.py leaves one there")
    if name not in names and (name or len(names) > 1):
        raise checkpoints.CheckpointError(f"{root}: {f'no {name!r} among' if name else 'choose one by --name:'} "
                                          f"{', '.join(names)}")
    return storage.read_json(storage.join(root, "best", f"{name or names[0]}.json"))["checkpoint"]


def fetch(checkpoint: str, folder: str, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Copy a checkpoint's weights and description to a local folder, in parts side by side.

    Parts that are there from an interrupted fetch are kept. What does not verify is removed; `model.json` is written
    last, so that the folder is a checkpoint only when it is whole. The optimiser's state stays behind: it is as large
    as the weights and serves only to resume the run where it lies.

    `progress` is told bytes that are there and bytes in all.

    Raises: CheckpointError if the checkpoint is not complete, `folder` holds another one, or the sha256 differs.
    """
    description = checkpoints.describe(checkpoint)
    target = Path(folder)
    if (target / "model.json").exists():
        if checkpoints.describe(folder)["sha256"] != description["sha256"]:
            raise checkpoints.CheckpointError(f"{folder} holds another checkpoint; choose another folder")
        whole = target / "model.safetensors"
        if whole.exists() and storage.sha256(str(whole)) == description["sha256"]:
            return
    target.mkdir(parents=True, exist_ok=True)
    source, weights = storage.join(checkpoint, "model.safetensors"), target / "model.safetensors.part"
    try:
        size = storage.stat(source)[0]
    except FileNotFoundError:
        raise checkpoints.CheckpointError(f"{source}: is missing") from None
    journal = target / "model.safetensors.parts"
    _fetch_parts(source, weights, journal, f"{description['sha256']} {size}", progress)
    if storage.sha256(str(weights)) != description["sha256"]:
        weights.unlink(), journal.unlink()
        raise checkpoints.CheckpointError(f"{source}: sha256 differs from model.json; the file is damaged in storage, "
                                          "or was on its way: run the same command again")
    os.replace(weights, target / "model.safetensors")
    journal.unlink()
    storage.write_json(str(target / "model.json"), description)


def _fetch_parts(source: str, file: Path, journal: Path, what: str, progress: Callable[[int, int], None]) -> None:
    """Fill `file`; `journal` names what is fetched and, a line each, the parts that are there."""
    size = int(what.split()[1])
    lines = journal.read_text().splitlines() if journal.exists() and file.exists() else []
    there = {int(n) for n in lines[1:] if n.isdecimal()} if lines[:1] == [what] else set()
    if not there:
        journal.write_text(what + "\n")
        file.write_bytes(b"")
        os.truncate(file, size)
    spans = {n: (first, min(PART, size - first)) for n, first in enumerate(range(0, size, PART))}
    done = sum(spans[n][1] for n in there)
    progress(done, size)
    with open(file, "r+b") as target, open(journal, "a") as notes, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        asked = {pool.submit(storage.read_range, source, *spans[n]): n for n in spans if n not in there}
        try:
            for answer in as_completed(asked):
                number, content = asked.pop(answer), answer.result()
                target.seek(spans[number][0])
                target.write(content)
                target.flush()
                notes.write(f"{number}\n")
                notes.flush()
                progress(done := done + len(content), size)
        finally:
            pool.shutdown(cancel_futures=True)


def _best(root: str, name: str) -> dict | None:
    file = storage.join(root, "best", f"{name}.json")
    try:
        best = storage.read_json(file)
        description = checkpoints.describe(best["checkpoint"])
    except (FileNotFoundError, checkpoints.CheckpointError):
        return None  # removed meanwhile
    return {"name": name, "state": "best", "validation": best["value"], "date": _date(file),
            "test": _test_score(storage.join(best["checkpoint"].rpartition("/")[0], "result.json"), best["checkpoint"]),
            **_origin(description["config"])}


def _run(root: str, name: str) -> dict | None:
    file = storage.join(root, "runs", name, "run.json")
    if not storage.exists(file):
        return None  # a folder of something else
    values = storage.read_json(file)["values"]
    return {"name": name, "state": "unfinished", "validation": None, "test": None, "date": _date(file),
            "backbone": values["train.backbone"], "data": ""}


def _test_score(file: str, checkpoint: str) -> float | None:
    try:
        result = storage.read_json(file)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result["balanced_accuracy"] if result["checkpoint"] == checkpoint else None


def _origin(config: dict) -> dict:
    data = config["data"]
    return {"backbone": config["train"]["backbone"],
            "data": "+".join(s["kind"] for s in data["sources"]) or f"{data['kind']}:{data['root']}"}


def _date(file: str) -> str:
    seconds = storage.stat(file)[1] / 1e9
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(sep=" ", timespec="minutes")[:16]
