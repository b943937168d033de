"""What workers need before they can train, made by Ray tasks and kept in Ray's object store, once on each node."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import pandas as pd

from fer_ray.config import Config, ConfigError, TrainConfig
from fer_ray.data import prepared_set
from fer_ray.model import start_weights
from fer_ray.train import batches, resources
from fer_ray.train.job import SplitInput, TrainingInput


def load_inputs(config: Config, prepared: str) -> TrainingInput:
    """Start loading what any training of this network on this prepared set needs.

    Raises: ConfigError if there is nothing to train on, or `train.sampling` cannot be had for a set of this size.
    """
    index = prepared_set.read_index(prepared)
    if not {"train", "val"} <= set(index["split"]):
        raise ConfigError(f"{prepared}: a split by {config.split.by} without train and val has nothing to train on")
    start_state, start_loaded = load_start_state(config.train)
    splits = {split: index[index["split"] == split] for split in ("train", "val")}
    return TrainingInput(fingerprint(prepared), start_state, start_loaded,
                         **_load_splits(prepared, splits, config.train, start_state))


def fingerprint(prepared: str) -> str:
    """What identifies the content of a prepared set. Raises: as `prepared_set.read_summary`."""
    return prepared_set.read_summary(prepared)["fingerprint"]


def load_start_state(settings: TrainConfig) -> tuple:
    """Two references: the state dict that training starts from, as arrays, and an empty result.

    `ray.get` of the second raises if the weights could not be loaded: start_weights.WeightsError or
    checkpoints.CheckpointError. Whoever only wants to know that need not fetch hundreds of MB.

    The state is loaded by a task on the caller's own node, since `train.weights` may be a path of that machine. It is
    not loaded by the caller itself: a job's main process only waits, and is spared the seconds of importing torch.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task: Any = ray.remote(_load_start_state).options(num_cpus=0, num_returns=2, scheduling_strategy=here)
    state, loaded = task.remote(settings)
    return state, loaded


def _load_start_state(settings: TrainConfig) -> tuple[dict[str, np.ndarray], None]:
    # Ray shares arrays between processes without a copy, but not tensors. NumPy lacks bfloat16 and its like.
    state = start_weights.load(settings)
    return {name: (values.float() if values.is_floating_point() else values).numpy()
            for name, values in state.items()}, None


def _load_splits(prepared: str, splits: dict[str, pd.DataFrame], settings: TrainConfig,
                 start_state) -> dict[str, SplitInput]:
    """How workers get the batches of each split (name -> index rows). Raises: ConfigError."""
    if settings.layers == "head":
        references = start_features(prepared, splits, settings, start_state)
        return {split: SplitInput("features", references[split]) for split in splits}
    every_row = pd.concat(splits.values())
    size_gb = batches.decoded_gb(every_row)
    if size_gb <= settings.cache_gb:
        tasks = resources.task_count(len(every_row), batches.MIN_ROWS_TO_DECODE)
        load = functools.partial(batches.load_part, prepared)
        references = batches.start_parts(load, splits, tasks, **resources.reading_task_options())
        return {split: SplitInput("cached", references[split]) for split in splits}
    if settings.sampling == "balanced":
        raise ConfigError(f"train.sampling balanced needs a set that fits into train.cache_gb {settings.cache_gb:g}; "
                          f"this one takes {size_gb:.1f} GiB; raise it or use train.class_weights")
    return {split: SplitInput("streamed", prepared=prepared, index=rows[["row", "part", "part_row", "expression"]])
            for split, rows in splits.items()}


def start_features(prepared: str, splits: dict[str, pd.DataFrame], settings: TrainConfig, state) -> dict[str, list]:
    """Start computing the features of these index rows: inputs of the last layer, for the centre of each crop.

    Args:
        prepared: URI of the prepared set.
        splits: index rows by name of the split.
        settings: backbone, batch size, and the device, which is chosen.
        state: reference to the network's state dict.

    Returns: by split, a reference to (float32 [n, D], int64 [n] classes) for each of its parts, in the order of
        `batches.rows_by_part`; `batches.fetch_features` joins them.
    """
    tasks = resources.task_count(sum(map(len, splits.values())), batches.MIN_ROWS_TO_FORWARD)
    threads = max(1, (os.cpu_count() or 1) // tasks)
    make = functools.partial(_part_features, prepared, settings, state, threads)
    gpus = int(settings.device == "cuda")
    return batches.start_parts(make, splits, tasks, **resources.reading_task_options(), num_gpus=gpus)


def _part_features(prepared: str, settings: TrainConfig, state, threads: int, *part) -> tuple[np.ndarray, np.ndarray]:
    import ray

    from fer_ray.model import backbones, predictor

    model = backbones.load(settings.backbone, ray.get(state))
    network = predictor.Predictor(model, settings.backbone, threads, settings.device)
    crops = batches.load_part(prepared, *part)
    return network.features(crops.images, settings.batch_size), crops.labels
