"""Networks applied side by side on a cluster: to the crops of a prepared set, and to photographs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import progress, storage
from fer_ray.config import Config
from fer_ray.data import manifest, pixels, prepare, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.data.prepared_set import PART_ROWS
from fer_ray.data_config import FacesConfig
from fer_ray.evaluate.results import PROBABILITIES
from fer_ray.model import checkpoints
from fer_ray.train import batches, resources

# between the two steps of a part of the photographs: found and cropped faces, to be classified
_CROPPED = pa.schema([("uri", pa.string()), ("rows", pa.list_(pa.struct([
    ("image", pa.string()), ("box", pa.string()), ("crop", pa.binary()), ("reason", pa.string())])))])
_PREDICTED = pa.schema([("image", pa.string()), ("expression", pa.string()),
                        *((column, pa.float32()) for column in PROBABILITIES), ("box", pa.string()),
                        ("reason", pa.string())])


def predict(prepared: str, index: pd.DataFrame, batch_size: int, checkpoint: str = "", backbone: str = "",
            use_gpu: bool = False) -> np.ndarray:
    """Probabilities or features of images of a prepared set, by tasks side by side.

    Plain tasks: they run in processes that have imported torch already and keep the network, where actors would start
    anew.

    Args:
        prepared: URI of the prepared set.
        index: N rows of its index.
        batch_size: images of a forward pass.
        checkpoint: URI of the checkpoint whose probabilities are wanted, or "".
        backbone: name of the network whose ImageNet features are wanted, if there is no checkpoint.
        use_gpu: whether each task takes a GPU.

    Returns: float32 [N, 8] of a checkpoint, [N, D] of a backbone, in the order of the rows.

    Raises: checkpoints.CheckpointError, start_weights.WeightsError.
    """
    tasks = resources.task_count(len(index), batches.MIN_ROWS_TO_FORWARD)
    # a run that was made again keeps other weights under the same name, which a task's cache must not confuse
    content = checkpoints.describe(checkpoint)["sha256"] if checkpoint else ""
    network = (checkpoint, backbone, content, max(1, (os.cpu_count() or 1) // tasks), use_gpu)
    make = functools.partial(_predict_part, prepared, batch_size, network)
    refs = batches.start_parts(make, {"all": index}, tasks, num_cpus=1, num_gpus=int(use_gpu))["all"]
    rows = [rows for _, rows, _ in batches.rows_by_part(index)]
    outputs = progress.get(refs, "evaluate" if checkpoint else "features of the floor", [len(part) for part in rows])
    return np.concatenate(outputs)[pd.Index(np.concatenate(rows)).get_indexer(index["row"])]


def _predict_part(prepared: str, batch_size: int, network: tuple, *rows) -> np.ndarray:
    predictor, crops = _load_predictor(*network), batches.load_part(prepared, *rows).images
    wants_probabilities = bool(network[0])  # the URI of a checkpoint
    return predictor.probabilities(crops, batch_size) if wants_probabilities else predictor.features(crops, batch_size)


@functools.lru_cache(maxsize=1)  # a task scores many parts, and its process the next prepared set
def _load_predictor(checkpoint: str, backbone: str, content: str, threads: int, use_gpu: bool):
    """The network of the checkpoint or, without one, the backbone. `content` tells checkpoints of one name apart."""
    from fer_ray.model import backbones, predictor, start_weights

    if checkpoint:
        return predictor.Predictor.from_checkpoint(checkpoint, threads, use_gpu)
    state = start_weights.initial_state(backbone, "imagenet", seed=0)
    return predictor.Predictor(backbones.load(backbone, state), backbone, threads, use_gpu)


def predict_images(config: Config, checkpoint: str, images: list[tuple[str, str | None]]) -> str:
    """Find, crop and classify the largest face of each photograph.

    The same photographs, face options and checkpoint cost nothing again; a killed job goes on with the parts that are
    missing or damaged. With others the table is made anew.

    Args:
        config: `faces`, `train.use_gpu`, and the name of the folder of predictions.
        checkpoint: URI.
        images: of `sources.find_images`.

    Returns: URI of `predictions/NAME/predictions.csv`, which has a row for each photograph, in their order: `image`,
        `expression` (the most probable), `p_EXPRESSION` (probabilities), `box` (x, y, width, height of the face in
        px), and `reason` where there is no prediction.

    Raises: checkpoints.CheckpointError.
    """
    uri = storage.join(config.storage, "predictions", config.name)
    table, marker = storage.join(uri, "predictions.csv"), storage.join(uri, "request.json")
    stats = [storage.stat(pixels.file_of(image)) if reason is None else reason for image, reason in images]
    request = hashlib.sha256(json.dumps([images, stats, checkpoints.describe(checkpoint)["sha256"],
                                         dataclasses.asdict(config.faces)]).encode()).hexdigest()
    if not _is_of(request, marker):
        storage.delete_dir(uri)
        storage.write_json(marker, {"request": request})
    if _has_all(images, table):
        return table
    rows = [{"image": image, "face": None, "cropped": None} for image, reason in images if reason is None]
    parts = {storage.join(uri, f"part-{first:09d}.parquet"): rows[first : first + PART_ROWS]
             for first in range(0, len(rows), PART_ROWS)}
    missing = {part: of_part for part, of_part in parts.items() if _read_part(part) is None}
    if missing:
        _make_parts(config, checkpoint, missing, len(rows))
    found = [pd.DataFrame([{"image": image, "reason": reason} for image, reason in images if reason],
                          columns=["image", "reason"]), *map(_read_part, parts)]
    columns = ["image", "expression", *PROBABILITIES, "box", "reason"]
    ordered = pd.concat([part.reindex(columns=columns).astype(object) for part in found if part is not None])
    storage.write_bytes(table, ordered.set_index("image").loc[[image for image, _ in images]].to_csv().encode())
    return table


def _is_of(request: str, marker: str) -> bool:
    """Whether the file `marker` says that what lies beside it was made for this request."""
    try:
        return storage.read_own_json(marker, {"request": str}, "")["request"] == request
    except storage.DamagedError:
        return False


def _has_all(images: list[tuple[str, str | None]], table: str) -> bool:
    """Whether the CSV file `table` is there and whole, with a row for each of these images."""
    try:
        content = storage.read_bytes(table)
        names = pd.read_csv(io.BytesIO(content), usecols=["image"], dtype=str, keep_default_na=False)["image"]
    except (FileNotFoundError, ValueError):
        return False
    return content.endswith(b"\n") and names.tolist() == [image for image, _ in images]


def _read_part(uri: str) -> pd.DataFrame | None:
    """A part of the predictions; None if it is missing or damaged, and must be made again."""
    try:
        table = manifest.read_parquet(io.BytesIO(storage.read_bytes(uri)))
    except (FileNotFoundError, manifest.DataError, pa.ArrowException, OSError) as error:
        if isinstance(error, storage.StorageError):  # an outage says nothing of the part
            raise
        return None
    return table.to_pandas() if table.schema.equals(_PREDICTED) else None


def _make_parts(config: Config, checkpoint: str, parts: dict[str, list[dict]], total: int) -> None:
    """Write these parts of the predictions (URI -> photographs), of `total` photographs in all."""
    import ray.data

    items = [{"uri": uri, "images": images} for uri, images in parts.items()]
    crop: Any = _crop_part  # Ray's types leave out that batches may be Arrow tables
    done = (ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(crop, fn_kwargs={"config": config.faces}, batch_size=1, batch_format="pyarrow")
            .map_batches(PartPredictor, batch_size=1, batch_format="pyarrow",
                         **_single_actor_options(config.train.use_gpu, checkpoint)))
    with progress.Progress("predict", total, done=total - sum(map(len, parts.values()))) as shown:
        for written in done.iter_rows():
            shown.advance(len(parts[written["uri"]]))


class PartPredictor:
    """An actor that classifies the cropped faces of one part at a time, and writes it, so that a killed job goes on."""

    def __init__(self, checkpoint: str, threads: int, use_gpu: bool):
        from fer_ray.model import predictor

        self.predictor = predictor.Predictor.from_checkpoint(checkpoint, threads, use_gpu)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Parts of `_CROPPED` -> the URIs to which they were written."""
        for part in batch.to_pylist():
            rows = part["rows"]
            crops = [prepared_set.decode_crop(row.pop("crop")) for row in rows if row["crop"]]
            outputs = iter(self.predictor.probabilities(crops))
            for row in rows:
                if row["reason"] is None:
                    probabilities = next(outputs)
                    row |= {"expression": EXPRESSIONS[probabilities.argmax()],
                            **{column: float(p) for column, p in zip(PROBABILITIES, probabilities, strict=True)}}
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=_PREDICTED), sink)
            storage.write_bytes(part["uri"], sink.getvalue())
        return batch.select(["uri"])


def _crop_part(batch: pa.Table, config: FacesConfig) -> pa.Table:
    """Find and crop the faces of parts of the photographs; a table of `_CROPPED`."""
    done = []
    for part in batch.to_pylist():
        images = part["images"]
        crops, reasons, _ = prepare.crop_images(images, 0, config)
        rows = {crop["row"]: {"box": " ".join(map(str, crop["box"])), "crop": crop["crop"], "reason": None}
                for crop in crops}
        rows |= {number: {"box": None, "crop": None, "reason": reason} for number, reason in reasons.items()}
        done.append({"uri": part["uri"], "rows": [{"image": image["image"], **rows[number]}
                                                  for number, image in enumerate(images)]})
    return pa.Table.from_pylist(done, schema=_CROPPED)


def _single_actor_options(use_gpu: bool, checkpoint: str) -> dict:
    """Options of `map_batches` for one `PartPredictor` that uses all threads of its node."""
    import ray
    import ray.data

    # On one CPU, the actor takes half of it: if it took all, the tasks that crop would wait for it forever.
    cpus = 0.5 if ray.cluster_resources().get("CPU", 2) < 2 else 1
    return {"num_cpus": cpus, "num_gpus": int(use_gpu), "compute": ray.data.ActorPoolStrategy(size=1),
            # no restarts: Ray would warn of each on the terminal; the same command goes on with what is missing
            "max_restarts": 0,
            "fn_constructor_kwargs": {"checkpoint": checkpoint, "threads": os.cpu_count() or 1, "use_gpu": use_gpu}}
