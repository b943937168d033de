"""A network applied to the crops of a prepared set, side by side on a cluster."""

from __future__ import annotations

import functools
import os

import numpy as np
import pandas as pd

from fer_ray import progress
from fer_ray.model import checkpoints
from fer_ray.train import batches, resources

# Of a task. Those on a GPU load the network anew, since their process ends with them to give the GPU's memory back.
MAX_ROWS = {"cpu": 2000, "cuda": 20_000}


def predict(prepared: str, index: pd.DataFrame, batch_size: int, checkpoint: str = "", backbone: str = "",
            device: str = "cpu") -> np.ndarray:
    """Probabilities or features of images of a prepared set, by tasks side by side.

    Plain tasks: they run in processes that have imported torch already and keep the network, where actors would start
    anew.

    Args:
        prepared: URI of the prepared set.
        index: N rows of its index.
        batch_size: images of a forward pass.
        checkpoint: URI of the checkpoint whose probabilities are wanted, or "".
        backbone: name of the network whose ImageNet features are wanted, if there is no checkpoint.
        device: cpu, or cuda: each task takes a GPU.

    Returns: float32 [N, 8] of a checkpoint, [N, D] of a backbone, in the order of the rows.

    Raises: checkpoints.CheckpointError, start_weights.WeightsError.
    """
    tasks = resources.task_count(len(index), batches.MIN_ROWS_TO_FORWARD, MAX_ROWS[device])
    # a run that was made again keeps other weights under the same name, which a task's cache must not confuse
    content = checkpoints.describe(checkpoint)["sha256"] if checkpoint else ""
    network = (checkpoint, backbone, content, max(1, (os.cpu_count() or 1) // tasks), device)
    make = functools.partial(_predict_part, prepared, batch_size, network)
    refs = batches.start_parts(make, {"all": index}, tasks, num_cpus=1, num_gpus=int(device == "cuda"))["all"]
    rows = [rows for _, _, rows, _ in batches.rows_by_part(index)]
    outputs = progress.get(refs, "evaluate" if checkpoint else "features of the floor", [len(part) for part in rows])
    return np.concatenate(outputs)[pd.Index(np.concatenate(rows)).get_indexer(index["row"])]


def _predict_part(prepared: str, batch_size: int, network: tuple, *rows) -> np.ndarray:
    predictor, crops = _load_predictor(*network), batches.load_part(prepared, *rows).images
    wants_probabilities = bool(network[0])  # the URI of a checkpoint
    return predictor.probabilities(crops, batch_size) if wants_probabilities else predictor.features(crops, batch_size)


@functools.lru_cache(maxsize=1)  # a task scores many parts, and its process the next prepared set
def _load_predictor(checkpoint: str, backbone: str, content: str, threads: int, device: str):
    """The network of the checkpoint or, without one, the backbone. `content` tells checkpoints of one name apart."""
    from fer_ray.model import backbones, predictor, start_weights

    if checkpoint:
        return predictor.Predictor.from_checkpoint(checkpoint, threads, device)
    state = start_weights.initial_state(backbone, "imagenet", seed=0)
    return predictor.Predictor(backbones.load(backbone, state), backbone, threads, device)
