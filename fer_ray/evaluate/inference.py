"""Prepared sets or photographs in, probabilities or features out, by workers with a `predictor.Predictor` each."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import storage
from fer_ray.config import Config, FacesConfig
from fer_ray.data import manifest, pixels, prepare, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.data.prepared_set import PART_ROWS
from fer_ray.model import checkpoints
from fer_ray.train import batches, resources

_CROPPED = pa.schema([("uri", pa.string()), ("rows", pa.list_(pa.struct([
    ("image", pa.string()), ("box", pa.string()), ("crop", pa.binary()), ("reason", pa.string())])))])
_PREDICTED = pa.schema([("image", pa.string()), ("expression", pa.string()),
                        *((f"p_{e}", pa.float32()) for e in EXPRESSIONS), ("box", pa.string()),
                        ("reason", pa.string())])


def predict(prepared: str, index: pd.DataFrame, batch_size: int, checkpoint: str = "", backbone: str = "",
            use_gpu: bool = False) -> np.ndarray:
    """The probabilities of `checkpoint`, float32 [N, 8], or the frozen ImageNet features of `backbone`, float32 [N, D],
    for these index rows of a prepared set, in their order.

    By plain tasks, which find processes that have imported all and hold the network: actors would start anew.

    Raises: CheckpointError, WeightsError.
    """
    import ray

    tasks = resources.task_count(len(index), batches.MIN_ROWS_TO_FORWARD)
    # a run that was made again keeps other weights under the same name
    content = checkpoints.describe(checkpoint)["sha256"] if checkpoint else ""
    network = (checkpoint, backbone, content, max(1, (os.cpu_count() or 1) // tasks), use_gpu)
    make = functools.partial(_predict_part, prepared, batch_size, network)
    refs = batches.start_parts(make, {"all": index}, tasks, num_cpus=1, num_gpus=int(use_gpu))["all"]
    rows = np.concatenate([rows for _, rows, _ in batches.rows_by_part(index)])
    return np.concatenate(ray.get(refs))[pd.Index(rows).get_indexer(index["row"])]


def _predict_part(prepared: str, batch_size: int, network: tuple, *rows) -> np.ndarray:
    predictor, crops = _predictor(*network), batches.load_part(prepared, *rows).images
    asks_for_checkpoint = bool(network[0])
    return predictor.probabilities(crops, batch_size) if asks_for_checkpoint else predictor.features(crops, batch_size)


@functools.lru_cache(maxsize=1)  # a task scores many parts, and the same process the next set
def _predictor(checkpoint: str, backbone: str, content: str, threads: int, use_gpu: bool):
    from fer_ray.model import backbones, predictor, start_weights

    if checkpoint:
        return predictor.Predictor.from_checkpoint(checkpoint, threads, use_gpu)
    state = start_weights.initial_state(backbone, "imagenet", seed=0)
    return predictor.Predictor(backbones.load(backbone, state), backbone, threads, use_gpu)


def predict_images(config: Config, checkpoint: str, images: list[tuple[str, str | None]]) -> str:
    """Find, crop and classify the largest face of each image; URI of `predictions/NAME/predictions.csv`.

    `images`: of `datasets.find_images`. The table has a row for each, in their order: `image`, `expression` (the most
    probable), `p_EXPRESSION` (probabilities), `box` (x, y, width, height of the face in px), and `reason` where there
    is no prediction. The same images, face options and checkpoint are a no-op; a killed job goes on with the parts
    that are missing; with others the table is made anew.

    Raises: CheckpointError.
    """
    import ray.data

    uri = storage.join(config.storage, "predictions", config.name)
    table, marker = storage.join(uri, "predictions.csv"), storage.join(uri, "request.json")
    stats = [storage.stat(pixels.file_of(image)) if reason is None else reason for image, reason in images]
    request = hashlib.sha256(json.dumps([images, stats, checkpoints.describe(checkpoint)["sha256"],
                                         dataclasses.asdict(config.faces)]).encode()).hexdigest()
    if not (storage.exists(marker) and storage.read_json(marker)["request"] == request):
        storage.delete_dir(uri)
        storage.write_json(marker, {"request": request})
    if storage.exists(table):
        return table
    rows = [{"image": image, "face": None, "cropped": None} for image, reason in images if reason is None]
    parts = [{"uri": storage.join(uri, f"part-{first:09d}.parquet"), "images": rows[first : first + PART_ROWS]}
             for first in range(0, len(rows), PART_ROWS)]
    missing = [part for part in parts if not storage.exists(part["uri"])]
    if missing:
        (ray.data.from_items(missing, override_num_blocks=len(missing))
         .map_batches(_crop_part, fn_kwargs={"config": config.faces}, batch_size=1, batch_format="pyarrow")
         .map_batches(PartPredictor, batch_size=1, batch_format="pyarrow",
                      **_one_actor(config.train.use_gpu, checkpoint))
         .take_all())
    found = [pd.DataFrame([{"image": i, "reason": r} for i, r in images if r], columns=["image", "reason"]),
             *(manifest.read_parquet(io.BytesIO(storage.read_bytes(part["uri"]))).to_pandas() for part in parts)]
    columns = ["image", "expression", *(f"p_{e}" for e in EXPRESSIONS), "box", "reason"]
    ordered = pd.concat([one.reindex(columns=columns).astype(object) for one in found]).set_index("image")
    storage.write_bytes(table, ordered.loc[[image for image, _ in images]].to_csv().encode())
    return table


class PartPredictor:
    """Writes what a network says of a part of the images, so that a killed job goes on."""

    def __init__(self, checkpoint: str, threads: int, use_gpu: bool):
        from fer_ray.model import predictor

        self.predictor = predictor.Predictor.from_checkpoint(checkpoint, threads, use_gpu)

    def __call__(self, batch: pa.Table) -> pa.Table:
        for part in batch.to_pylist():
            rows = part["rows"]
            crops = [prepared_set.decode_crop(row.pop("crop")) for row in rows if row["crop"]]
            outputs = iter(self.predictor.probabilities(crops))
            for row in rows:
                if row["reason"] is None:
                    probabilities = next(outputs)
                    row |= {"expression": EXPRESSIONS[probabilities.argmax()],
                            **{f"p_{e}": float(p) for e, p in zip(EXPRESSIONS, probabilities, strict=True)}}
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=_PREDICTED), sink)
            storage.write_bytes(part["uri"], sink.getvalue())
        return batch.select(["uri"])


def _crop_part(batch: pa.Table, config: FacesConfig) -> pa.Table:
    done = []
    for part in batch.to_pylist():
        images = part["images"]
        crops, reasons = prepare.crop_images(images, 0, config)
        rows = {crop["row"]: {"box": " ".join(map(str, crop["box"])), "crop": crop["crop"], "reason": None}
                for crop in crops}
        rows |= {number: {"box": None, "crop": None, "reason": reason} for number, reason in reasons.items()}
        done.append({"uri": part["uri"], "rows": [{"image": image["image"], **rows[number]}
                                                  for number, image in enumerate(images)]})
    return pa.Table.from_pylist(done, schema=_CROPPED)


def _one_actor(use_gpu: bool, checkpoint: str) -> dict:
    """Options of `map_batches` for one actor with this network and the threads of its node."""
    import ray
    import ray.data

    # a CPU stays free for the tasks that read: one actor that held them all would wait for ever
    cpus = 0.5 if ray.cluster_resources().get("CPU", 2) < 2 else 1
    return {"num_cpus": cpus, "num_gpus": int(use_gpu), "compute": ray.data.ActorPoolStrategy(size=1),
            "max_restarts": 0,  # a restart warns on the terminal
            "fn_constructor_kwargs": {"checkpoint": checkpoint, "threads": os.cpu_count() or 1, "use_gpu": use_gpu}}
