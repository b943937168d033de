"""A training from prepared set to best checkpoint: what its workers are given, and what becomes of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import threading
import uuid

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.config import Config, ConfigError, TrainConfig
from fer_ray.data import prepared_set
from fer_ray.model import checkpoints, start_weights
from fer_ray.train import batches, resources, schedule, tracking, workers

# what may differ between two runs of one command that resume each other
RESUMABLE = {"epochs", "patience", "num_workers", "min_workers", "use_gpu", "num_to_keep", "max_failures", "cache_gb",
             "checkpoint_every_steps", "micro_batches", "compile", "precision", "mlflow", "from_tune"}


def train(config: Config, prepared: str, side_by_side: int = 1) -> str:
    """Fine-tune on the prepared set at `prepared`; URI of the run folder. The same run name resumes.

    `side_by_side`: trainings that share the machines, so that each takes its part of the cores.

    Raises: ConfigError if the run exists with another configuration or the cluster is too small;
        start_weights.WeightsError; checkpoints.CheckpointError; workers.TrainingError.
    """
    resources.wait_for_workers(config.train)
    if not is_done(config, prepared):
        with contextlib.nullcontext() if side_by_side > 1 else progress({"": workers.run_uri(config)}, config.train):
            run_loop = workers.run_group if config.train.num_workers > 1 else workers.run_single
            run_loop(config, load_inputs(config, prepared), side_by_side)
    write_best(config, workers.run_uri(config), config.name)
    return workers.run_uri(config)


def is_done(config: Config, prepared: str) -> bool:
    """Whether nothing is left to train or to tell. Raises: ConfigError if the run exists with another configuration."""
    run = workers.run_uri(config)
    claim(storage.join(run, "run.json"), train_values(config.train, prepared))
    newest = checkpoints.find_latest(run)
    if newest is None:
        return False
    progress = checkpoints.load_train_state(newest)["progress"]
    return schedule.is_finished(progress, config.train) and len(tracking.read(run)) >= len(progress["history"])


def load_inputs(config: Config, prepared: str) -> dict:
    """What workers of any run on this prepared set need, made by tasks and held once per node: `fingerprint`, `state`
    and `can_start` (see `start`) and `sources` (train and val, each a kind and what `loop` opens it with).

    Raises: ConfigError.
    """
    t, index = config.train, prepared_set.read_index(prepared)
    if not {"train", "val"} <= set(index["split"]):
        raise ConfigError(f"{prepared}: a split by {config.split.by} without train and val has nothing to train on")
    state, can_start = load_start_state(t)
    splits = {s: index[index["split"] == s] for s in ("train", "val")}
    return {"fingerprint": _fingerprint(prepared), "state": state, "can_start": can_start,
            "sources": _sources(prepared, splits, t, state)}


def load_start_state(t: TrainConfig) -> tuple:
    """References to the state dict that training starts from (`start_weights.load`, as arrays), and to nothing,
    which raises what keeps that from being there: start_weights.WeightsError, checkpoints.CheckpointError.

    By a task beside the caller, where a path of the user's means what it says: a job's own process, which only waits,
    is spared the seconds of importing torch.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_start).options(num_cpus=0, num_returns=2, scheduling_strategy=here).remote(t)


def _start(t: TrainConfig) -> tuple:
    # as arrays, which Ray shares without copies; NumPy lacks some types of small floats
    state = start_weights.load(t)
    return {k: (v.float() if v.is_floating_point() else v).numpy() for k, v in state.items()}, None


def _sources(prepared: str, splits: dict[str, pd.DataFrame], t: TrainConfig, state) -> dict[str, tuple]:
    """How workers get each split: references to its decoded crops, or to the features of those if the head alone is
    trained, or what streaming them needs."""
    every = pd.concat(splits.values())
    if t.layers == "head":
        tasks = resources.task_count(len(every), batches.MIN_ROWS_TO_FORWARD)
        make = functools.partial(_part_features, prepared, t, state, max(1, (os.cpu_count() or 1) // tasks))
        refs = batches.start_parts(make, splits, tasks, **resources.reading_task_options(), num_gpus=int(t.use_gpu))
        return {split: ("features", refs[split]) for split in splits}
    gb = batches.decoded_gb(every)
    if gb <= t.cache_gb:
        tasks = resources.task_count(len(every), batches.MIN_ROWS_TO_DECODE)
        load = functools.partial(batches.load_part, prepared)
        refs = batches.start_parts(load, splits, tasks, **resources.reading_task_options())
        return {split: ("cached", refs[split]) for split in splits}
    if t.sampling == "balanced":
        raise ConfigError(f"train.sampling balanced needs a set that fits into train.cache_gb {t.cache_gb:g}; this one "
                          f"takes {gb:.1f} GiB; raise it or use train.class_weights")
    return {split: ("streamed", (prepared, rows[["row", "part", "expression"]])) for split, rows in splits.items()}


def _part_features(prepared: str, t: TrainConfig, state, threads: int, *rows) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the last layer for the centre crops of one part (float32 [n, D]), and labels (int64 [n])."""
    import ray

    from fer_ray.model import backbones, predictor

    network = predictor.Predictor(backbones.load(t.backbone, ray.get(state)), t.backbone, threads, t.use_gpu)
    crops = batches.load_part(prepared, *rows)
    return network.features(crops.images, t.batch_size), crops.labels


@contextlib.contextmanager
def progress(runs: dict[str, str], t: TrainConfig):
    """Print a line an epoch of each run (label -> URI) while the workers train.

    What they print themselves drowns in Ray's own log.
    """
    stop = threading.Event()
    shown = {label: len(tracking.read(run)) for label, run in runs.items()}
    for label, epochs in shown.items():
        if 0 < epochs < t.epochs:
            print(f"{label + ': ' if label else ''}resuming after epoch {epochs}", flush=True)

    def follow() -> None:
        while True:
            ended = stop.wait(1.0)
            for label, run in runs.items():
                for e in tracking.read(run)[shown[label] :]:
                    print(f"{label + '  ' if label else ''}epoch {e['epoch'] + 1:3d}/{t.epochs}  loss "
                          f"{e['train_loss']:.3f}  val loss {e['val_loss']:.3f}  val balanced accuracy "
                          f"{e['val_balanced_accuracy']:.3f} (chance {e['val_chance']:.3f})  "
                          f"{e['images_per_s']:.0f} images/s", flush=True)
                    shown[label] += 1
            if ended:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def train_values(t: TrainConfig, prepared: str) -> dict:
    """What a run must keep to be resumed: its settings and its data."""
    return {"data": _fingerprint(prepared),
            **{f"train.{k}": v for k, v in dataclasses.asdict(t).items() if k not in RESUMABLE}}


def claim(file: str, values: dict) -> str:
    """The id of a run, kept in `file`. A run name belongs to one set of values: resuming must never mix two.

    Raises: ConfigError if the file is there with other values.
    """
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    if not storage.exists(file):  # two jobs may come here at once: one creates it, both read what is there
        storage.create_json(file, {"id": uuid.uuid4().hex, "digest": digest, "values": values})
    old = storage.read_json(file)
    if old["digest"] != digest:
        changed = [f"{k} (was {old['values'].get(k)!r}, now {v!r})" for k, v in values.items()
                   if old["values"].get(k) != v]
        raise ConfigError(f"{os.path.dirname(file)} was made with other settings: {', '.join(changed)}; choose another "
                          "--name or remove that folder")
    return old["id"]


def _fingerprint(prepared: str) -> str:
    return storage.read_json(storage.join(prepared, "prepared.json"))["fingerprint"]


def write_best(config: Config, run: str, name: str) -> None:
    """Write `best/NAME.json`, which names the run's best checkpoint."""
    best = checkpoints.find_best(run)
    description = checkpoints.describe(best)
    storage.write_json(storage.join(config.storage, "best", f"{name}.json"),
                       {"checkpoint": best, "metric": "val_balanced_accuracy", "sha256": description["sha256"],
                        "value": description["metrics"]["val_balanced_accuracy"]})
