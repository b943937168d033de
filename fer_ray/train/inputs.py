"""What workers need before they can train, made by Ray tasks and kept in Ray's object store, once on each node."""

from __future__ import annotations

import functools
import os
import platform
from typing import Any, Literal

import numpy as np
import pandas as pd

from fer_ray.config import Config, ConfigError, TrainConfig
from fer_ray.data import prepared_set
from fer_ray.model import start_weights
from fer_ray.train import batches, resources
from fer_ray.train.job import SplitInput, TrainingInput

GPU_GB = 4.0  # a quarter of the memory of most GPUs, of which `loop.open_source` gives a quarter to the crops


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

    `ray.get` of the second raises if the weights could not be loaded, or `check_precision` does:
    start_weights.WeightsError, checkpoints.CheckpointError or ConfigError. Whoever only wants to know that need not
    fetch hundreds of MB.

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
    check_precision(settings)
    # Ray shares arrays between processes without a copy, but not tensors. NumPy lacks bfloat16 and its like.
    state = start_weights.load(settings)
    return {name: (values.float() if values.is_floating_point() else values).numpy()
            for name, values in state.items()}, None


def check_precision(settings: TrainConfig) -> None:
    """See that this machine can compute in `train.precision`, where `settings.device` is chosen.

    Raises: ConfigError if it would do so in software, which takes many times as long as fp32.
    """
    import torch

    if (settings.precision == "bf16" and settings.device == "cpu" and platform.machine() in ("x86_64", "AMD64")
            and not torch.backends.cpu.get_cpu_capability().startswith("AVX512")):
        raise ConfigError("train.precision bf16: this machine's processor lacks AVX-512 and would take many times "
                          "as long as in fp32; use --train.precision auto, which is fp32 on processors")


def _load_splits(prepared: str, splits: dict[str, pd.DataFrame], settings: TrainConfig,
                 start_state) -> dict[str, SplitInput]:
    """How workers get the batches of each split (name -> index rows). Raises: ConfigError."""
    if settings.layers == "head":
        references = start_features(prepared, splits, settings, start_state)
        return {split: SplitInput("features", references[split], why="of the last layer, computed once")
                for split in splits}
    import ray

    sizes_gb = {split: batches.decoded_gb(rows) for split, rows in splits.items()}
    feed, why = choose_feed(settings, sum(sizes_gb.values()), ray.nodes())
    # validation images are the same in each epoch: where they fit, they are decoded once
    streamed = [split for split in splits if feed == "stream" and (
        split == "train" or sizes_gb[split] > settings.cache_gb)]
    cached = {split: rows for split, rows in splits.items() if split not in streamed}
    tasks = resources.task_count(sum(map(len, cached.values())), batches.MIN_ROWS_TO_DECODE)
    load = functools.partial(batches.load_part, prepared)
    references = batches.start_parts(load, cached, tasks, **resources.reading_task_options()) if cached else {}
    index = ["row", "part", "part_row", "expression"]
    return {split: SplitInput("streamed", prepared=prepared, index=rows[index], why=why) if split in streamed
            else SplitInput("cached", references[split], why=why) for split, rows in splits.items()}


def choose_feed(settings: TrainConfig, size_gb: float, nodes: list[dict]) -> tuple[Literal["memory", "stream"], str]:
    """How the workers get their images, and why in words.

    Args:
        settings: `feed`, `cache_gb`, `sampling`, and device and number of workers as of `resources.settle`.
        size_gb: GiB that the crops take when they are decoded.
        nodes: of `ray.nodes()`.

    Raises: ConfigError if they cannot be had in this way.
    """
    fits = size_gb <= settings.cache_gb
    size = f"{size_gb:.1f} GiB {'' if fits else 'do not '}fit into train.cache_gb {settings.cache_gb:g}"
    if not fits and (settings.feed == "memory" or settings.sampling == "balanced"):
        key = "train.feed memory" if settings.feed == "memory" else "train.sampling balanced"
        raise ConfigError(f"{key}: the crops' {size}; raise it or use train.feed stream and train.class_weights")
    if settings.feed != "auto":
        return settings.feed, "as train.feed says"
    if not fits:
        return "stream", size
    if settings.sampling == "balanced":
        return "memory", f"{size}, and train.sampling is balanced"
    if settings.device == "cuda" and size_gb <= GPU_GB:
        return "memory", f"{size_gb:.1f} GiB fit into a GPU"
    with_cpus = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    idle = (sum(not node.get("GPU") for node in with_cpus) if settings.device == "cuda"
            else max(0, len(with_cpus) - settings.num_workers))
    if idle:
        return "stream", f"{idle} nodes without a training worker decode and augment"
    return "memory", f"{size}, and every node trains"


def start_features(prepared: str, splits: dict[str, pd.DataFrame], settings: TrainConfig, state) -> dict[str, list]:
    """Start computing the features of these index rows: inputs of the last layer, for the centre of each crop.

    Args:
        prepared: URI of the prepared set.
        splits: index rows by name of the split.
        settings: backbone, batch size, and the device, which is chosen.
        state: reference to the network's state dict.

    Returns: by split, a reference to (float32 [n, D], int64 [n] classes, int64 [n] shards) for each of its parts, in
        the order of `batches.rows_by_part`; `batches.fetch_features` joins them.
    """
    tasks = resources.task_count(sum(map(len, splits.values())), batches.MIN_ROWS_TO_FORWARD)
    threads = max(1, (os.cpu_count() or 1) // tasks)
    make = functools.partial(_part_features, prepared, settings, state, threads)
    gpus = int(settings.device == "cuda")
    return batches.start_parts(make, splits, tasks, **resources.reading_task_options(), num_gpus=gpus)


def _part_features(prepared: str, settings: TrainConfig, state, threads: int, *part) -> tuple[np.ndarray, ...]:
    import ray

    from fer_ray.model import backbones, predictor

    model = backbones.load(settings.backbone, ray.get(state))
    network = predictor.Predictor(model, settings.backbone, threads, settings.device)
    crops = batches.load_part(prepared, *part)
    return network.features(crops.images, settings.batch_size), crops.labels, crops.shards
