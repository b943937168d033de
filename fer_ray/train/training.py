"""A training from prepared set to best checkpoint: claim the run's name, start the workers, publish the best."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import uuid
from typing import Any

from fer_ray import storage
from fer_ray.config import Config, ConfigError
from fer_ray.model import checkpoints
from fer_ray.train import inputs, live, resources, schedule, tracking, workers
from fer_ray.train.job import TrainingInput, TrainJob, run_uri

# Options that may differ between two commands of which the second resumes the first: they change how long, where or
# how fast a network is trained, but not towards what. `from_tune` has become the values that it names.
RESUMABLE = {"epochs", "patience", "num_workers", "min_workers", "device", "num_to_keep", "max_failures", "feed",
             "cache_gb", "checkpoint_every_steps", "micro_batches", "compile", "precision", "mlflow", "from_tune"}


def train(config: Config, prepared: str, side_by_side: int = 1) -> str:
    """Fine-tune on the prepared set at `prepared`; URI of the run's folder. The same run name resumes.

    `side_by_side`: trainings that run at the same time, so that each takes its part of the cores.

    Raises: ConfigError if the run exists with other settings or the cluster is too small; start_weights.WeightsError;
        checkpoints.CheckpointError; workers.TrainingError; storage.StorageError.
    """
    config = dataclasses.replace(config, train=resources.settle(config.train, side_by_side))
    resources.wait_for_workers(config.train)
    run = run_uri(config)
    progress = open_run(config, prepared)
    if progress and is_done(progress, config):
        print(f"{config.name}: already trained, {progress['epoch']} epochs; nothing to do", flush=True)
    else:
        job = make_job(config, inputs.load_inputs(config, prepared), side_by_side)
        print(f"{config.name}: {resources.describe_workers(config.train)}; {live.describe_feed(job.input)}", flush=True)
        with contextlib.nullcontext() if side_by_side > 1 else live.show({"": run}, config.train):
            workers.run_group(job) if config.train.num_workers > 1 else workers.run_single(job)
    checkpoints.prune(run, config.train.num_to_keep)  # what a kill between the last checkpoint and its pruning left
    write_best(config, run, config.name)
    return run


def make_job(config: Config, loaded: TrainingInput, side_by_side: int = 1) -> TrainJob:
    """The job of a training with these inputs."""
    return TrainJob(config, loaded, resources.threads_per_worker(config.train, side_by_side))


def open_run(config: Config, prepared: str) -> dict | None:
    """Claim the run's name; its progress (`loop.Progress`), None before its first checkpoint.

    Raises: ConfigError if the run exists with other settings; storage.StorageError.
    """
    run, values = run_uri(config), run_values(dataclasses.asdict(config.train), inputs.fingerprint(prepared))
    newest = checkpoints.find_latest(run)
    description = checkpoints.describe(newest) if newest else None
    recorded = run_values(description["config"]["train"], description["data_fingerprint"]) if description else values
    claim(storage.join(run, "run.json"), values, recorded)
    return checkpoints.load_train_state(newest)["progress"] if newest else None


def is_done(progress: dict, config: Config) -> bool:
    """Whether a run with this progress has nothing left to train, nor to write down."""
    return (schedule.is_finished(progress["epoch"], progress["best_epoch"], config.train)
            and len(tracking.read(run_uri(config))) >= len(progress["history"]))


def run_values(settings: dict, data_fingerprint: str) -> dict:
    """What must be the same for a run to be resumed: its data, and the settings of `train` that shape the network."""
    return {"data": data_fingerprint, **{f"train.{k}": v for k, v in settings.items() if k not in RESUMABLE}}


def claim(file: str, values: dict, recorded: dict | None = None) -> None:
    """Write `file`, with a new id, or see that it holds the same values: resuming must never mix two kinds of run.

    Args:
        file: `run.json` of a run or `search.json` of a search.
        values: what must be the same.
        recorded: the values by the newest checkpoint of the run. They stand for a file that is lost or damaged.

    Raises: ConfigError if the values differ; storage.DamagedError if the file is damaged and nothing stands for it.
    """
    content: dict[str, Any] = {"id": uuid.uuid4().hex, "values": values if recorded is None else recorded}
    if not storage.exists(file):
        storage.create_json(file, content)  # two jobs may come here at once: one creates it, both read what is there
    try:
        found = storage.read_own_json(file, {"id": str, "values": dict}, "remove it and run the same command again; "
                                      "what was trained is kept")
    except storage.DamagedError:
        if recorded is None:
            raise
        storage.write_json(file, content)
        found = content
    changed = [f"{key} (was {found['values'].get(key)!r}, now {value!r})" for key, value in values.items()
               if found["values"].get(key) != value]
    if changed:
        raise ConfigError(f"{os.path.dirname(file)} was made with other settings: {', '.join(changed)}; choose another "
                          "--name or remove that folder")


def write_best(config: Config, run: str, name: str) -> None:
    """Write `best/NAME.json`, which names the run's best checkpoint by its path in the storage: that may be moved.

    Raises: checkpoints.CheckpointError if there is none.
    """
    best = checkpoints.find_best(run)
    description = checkpoints.describe(best)
    storage.write_json(storage.join(config.storage, "best", f"{name}.json"),
                       {"checkpoint": storage.below(config.storage, best), "metric": "val_balanced_accuracy",
                        "sha256": description["sha256"], "value": description["metrics"]["val_balanced_accuracy"]})
