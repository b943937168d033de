"""Export a checkpoint: write it in formats that run without fer_ray, and score each beside the original.

The result is the folder `exports/NAME/` of the storage: the files of `FILES` that were asked for, `export.md` (a page
for whoever gets the files) and `export.json` (all numbers), which is written last. What differs too much from the
original is an error that leaves none of them.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from fer_ray import progress, scratch, storage
from fer_ray.config import Config
from fer_ray.data import prepared_set
from fer_ray.data.manifest import EXPRESSIONS, DataError
from fer_ray.evaluate import evaluation
from fer_ray.model import augment, checkpoints, metrics
from fer_ray.train import batches
from fer_ray.use import export_page
from fer_ray.use.onnx_model import EXTRA, OnnxError, OnnxModel

FILES = {"onnx": "model.onnx", "onnx_fp16": "model-fp16.onnx", "onnx_int8": "model-int8.onnx", "torch": "model.pt2"}
# The largest difference of a probability from the original's. float32 differs by the order of sums alone. In int8
# single images may differ by anything, so what counts there is the mean over the images of each one's largest.
LARGEST_DIFFERENCE = {"onnx": 1e-4, "torch": 1e-4, "onnx_fp16": 0.02}
LARGEST_MEAN_DIFFERENCE = {"onnx_int8": 0.1}
CALIBRATION_IMAGES = 128  # of the validation split, to measure the ranges of activations for int8
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class MismatchError(OnnxError):
    """An exported network does not give the original's probabilities."""


class _Network(Protocol):
    def probabilities(self, crops: list[np.ndarray], batch_size: int) -> np.ndarray: ...


def check(config: Config, prepared: str, checkpoint: str) -> None:
    """Refuse what cannot be exported, before any work.

    Raises: OnnxError if a package is missing; manifest.DataError as `evaluation.check_origin`, or if a split that is
        needed is empty; checkpoints.CheckpointError; storage.DamagedError.
    """
    if missing := [name for name in PACKAGES if not importlib.util.find_spec(name)]:
        raise OnnxError(f"export: needs the package {missing[0]}: {EXTRA}")
    evaluation.check_origin(checkpoint, checkpoints.describe(checkpoint), prepared,
                            prepared_set.read_summary(prepared)["fingerprint"])
    splits = set(prepared_set.read_index(prepared)["split"])
    if "test" not in splits:
        raise DataError(f"{prepared}: the test split is empty, and an export is scored on it")
    if "onnx_int8" in config.export.formats and "val" not in splits:
        raise DataError(f"{prepared}: the validation split is empty, and export.formats onnx_int8 is calibrated on it")


def export(config: Config, prepared: str, checkpoint: str) -> str:
    """Export a checkpoint by a task, since a job's own process does not import torch; URI of `export.json`.

    Args:
        config: `export`, `evaluate.batch_size`, and the name of the folder.
        prepared: URI of the prepared set whose test split scores the export.
        checkpoint: URI.

    Raises: as `check` and `export_checkpoint`.
    """
    import ray

    task: Any = ray.remote(_export_on_worker).options(num_cpus=1, num_returns="streaming")
    print(export_page.HEAD, flush=True)
    with progress.Progress("export", len(config.export.formats) + 1, "networks") as shown:
        for row in task.remote(config, prepared, checkpoint):
            progress.say(export_page.line(ray.get(row)))
            shown.advance()
    return storage.join(folder_of(config), "export.json")


def _export_on_worker(config: Config, prepared: str, checkpoint: str) -> Iterator[dict]:
    check(config, prepared, checkpoint)  # this machine may lack packages that the driver's has
    yield from export_checkpoint(config, prepared, checkpoint, threads=os.cpu_count() or 1)


def folder_of(config: Config) -> str:
    """Where the exports of this name lie."""
    return storage.join(config.storage, "exports", config.name)


def export_checkpoint(config: Config, prepared: str, checkpoint: str, threads: int) -> Iterator[dict]:
    """Write a checkpoint in the formats of `export.formats` and score each; needs no Ray.

    An earlier export of this name is removed first, so that what lies there is never that of another checkpoint.

    `threads`: of the CPU, for each network.

    Yields: the row of the original and of each format, as soon as it is scored: `format`, `file`, `bytes`,
        `images_per_s` (crops in memory to probabilities, on this CPU), `balanced_accuracy`, `largest_difference` and
        `mean_difference` (over the images, of the largest) of probabilities from the original's, `same_expression`
        (share of images whose most probable expression is the original's).

    Raises: MismatchError if a format differs too much; OnnxError if the network cannot be written;
        checkpoints.CheckpointError; storage.StorageError.
    """
    from fer_ray.model.predictor import Predictor, flips
    from fer_ray.use import onnx_export

    target = folder_of(config)
    storage.delete_dir(target)
    network, description = checkpoints.load_model(checkpoint)
    temperature = checkpoints.read_temperature(checkpoint)
    index = prepared_set.read_index(prepared).sort_values("row")
    test = index[index["split"] == "test"]
    labels = np.array([EXPRESSIONS.index(e) for *_, expressions in batches.rows_by_part(test) for e in expressions])
    about = onnx_export.metadata_of(description, temperature)
    with tempfile.TemporaryDirectory(dir=scratch.folder()) as folder:
        _write(network, about, flips(description), config.export.formats, folder, prepared,
               index[index["split"] == "val"])
        weights = storage.join(checkpoint, "model.safetensors")
        original = Predictor.from_checkpoint(checkpoint, threads, temperature=temperature or 1.0)
        expected, speed = _apply(original, prepared, test, config.evaluate.batch_size)
        rows = [{"format": "original", "file": weights, "bytes": storage.stat(weights)[0], "images_per_s": speed,
                 **_compare(expected, expected, labels)}]
        yield rows[0]
        for name in config.export.formats:
            file = Path(folder) / FILES[name]
            made, speed = _apply(_open(name, str(file), threads), prepared, test, config.evaluate.batch_size)
            rows.append({"format": name, "file": file.name, "bytes": file.stat().st_size, "images_per_s": speed,
                         "sha256": storage.sha256(str(file)), **_compare(made, expected, labels)})
            yield rows[-1]
            _refuse_mismatch(rows[-1])
        for name in config.export.formats:
            storage.move(str(Path(folder) / FILES[name]), storage.join(target, FILES[name]))
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    summary = {**about, "name": config.name, "created": created, "checkpoint": checkpoint, "prepared": prepared,
               "test_images": len(test), "threads": threads, "rows": rows,
               "versions": {package: importlib.metadata.version(package) for package in ("torch", *PACKAGES)}}
    storage.write_bytes(storage.join(target, "export.md"), export_page.markdown(summary).encode())
    storage.write_json(storage.join(target, "export.json"), summary)


def _write(network, about: dict, flip_average: bool, formats: Sequence[str], folder: str, prepared: str,
           val: pd.DataFrame) -> None:
    """Write the network in these formats into a local folder."""
    import torch

    from fer_ray.use import onnx_export

    files = {name: str(Path(folder) / file) for name, file in FILES.items()}
    temperature, backbone = about["temperature"] or 1.0, about["backbone"]
    program = onnx_export.trace(onnx_export.CropClassifier(network, temperature, flip_average), backbone)
    if "torch" in formats:
        onnx_export.write_torch(program, files["torch"], about)
    if {"onnx", "onnx_int8"} & set(formats):
        onnx_export.write_onnx(program, files["onnx"], about)
    if "onnx_int8" in formats:
        some = val.iloc[np.linspace(0, len(val) - 1, min(len(val), CALIBRATION_IMAGES)).astype(int)]
        crops = [augment.to_rgb(crop) for part in _crops_by_part(prepared, some) for crop in part]
        onnx_export.quantize(files["onnx"], files["onnx_int8"], crops)
    if "onnx_fp16" in formats:
        half = onnx_export.CropClassifier(network, temperature, flip_average, torch.float16)
        onnx_export.write_onnx(onnx_export.trace(half, backbone), files["onnx_fp16"], about)


def _open(name: str, file: str, threads: int) -> _Network:
    from fer_ray.use import onnx_export

    return onnx_export.TorchModel(file) if name == "torch" else OnnxModel.load(file, threads=threads)


def _crops_by_part(prepared: str, rows: pd.DataFrame) -> Iterator[list[np.ndarray]]:
    """The crops of these index rows, part by part: a whole split need not fit into memory."""
    for part in batches.rows_by_part(rows):
        yield batches.load_part(prepared, *part).images


def _apply(network: _Network, prepared: str, rows: pd.DataFrame, batch_size: int) -> tuple[np.ndarray, float]:
    """Probabilities float32 [N, 8] of these index rows, part by part, and the images/s without reading them."""
    outputs, seconds = [], 0.0
    for crops in _crops_by_part(prepared, rows):
        if not outputs:
            network.probabilities(crops[:batch_size], batch_size)  # the first batch allocates memory
        begin = time.perf_counter()
        outputs.append(network.probabilities(crops, batch_size))
        seconds += time.perf_counter() - begin
    return np.concatenate(outputs), len(rows) / seconds


def _compare(made: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> dict:
    """The scores of probabilities [N, 8], and how they differ from the original's."""
    confusion = np.zeros((len(EXPRESSIONS),) * 2, np.int64)
    np.add.at(confusion, (labels, made.argmax(1)), 1)
    differences = np.abs(made - expected).max(1)
    return {"balanced_accuracy": metrics.balanced_accuracy(confusion),
            "largest_difference": float(differences.max()), "mean_difference": float(differences.mean()),
            "same_expression": float((made.argmax(1) == expected.argmax(1)).mean())}


def _refuse_mismatch(row: dict) -> None:
    """Raises: MismatchError. A difference that is no number is one too."""
    for key, limits in (("largest_difference", LARGEST_DIFFERENCE), ("mean_difference", LARGEST_MEAN_DIFFERENCE)):
        limit = limits.get(row["format"], np.inf)
        if not row[key] <= limit:
            raise MismatchError(
                f"export.formats {row['format']}: the exported network's probabilities differ from the original's by "
                f"{row[key]:.2g} ({key.replace('_', ' ')} over the test images), and {limit:g} is allowed; nothing was "
                "exported. Leave this format out of export.formats")
