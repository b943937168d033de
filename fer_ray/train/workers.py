"""What runs the loop: one task for a single worker, or a group of Ray Train. Either goes on when a process dies."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from fer_ray import storage
from fer_ray.config import Config, to_dict
from fer_ray.errors import UserError
from fer_ray.model import checkpoints
from fer_ray.train import resources, tracking

if TYPE_CHECKING:
    import torch


class TrainingError(UserError):
    """Training ended without a result; the message says why."""


def run_uri(config: Config) -> str:
    """The folder of the run that `config` names."""
    return storage.join(config.storage, "runs", config.name)


def run_single(config: Config, loaded: dict, side_by_side: int = 1) -> None:
    """Run the loop of a single worker as a task, and again when its process or node dies.

    A group of one would start two more processes, one after the other, and take processor time from a small machine.

    Raises: TrainingError; ConfigError if the cluster has become too small; what `training.start` does.
    """
    import ray

    t, run = config.train, run_uri(config)
    storage.delete_file(storage.join(run, "diverged.json"))
    for failures_left in reversed(range(t.max_failures + 1)):
        takes = resources.worker_resources(ray.cluster_resources(), t, resources.has_autoscaler(ray.nodes()))
        task = ray.remote(fit_single).options(num_cpus=takes["CPU"], num_gpus=takes.get("GPU", 0), max_retries=0)
        fitting = task.remote(config, loaded, resources.threads_per_worker(t, side_by_side))
        ray.get(loaded["can_start"])
        try:
            ray.get(fitting)
        except ray.exceptions.RayError as error:
            if not failures_left:
                raise TrainingError(f"{run}: {_last_line(error)}") from error
            resources.wait_for_workers(t)
        else:
            return _refuse_diverged(run)


def fit_single(config: Config, loaded: dict, threads: int) -> None:
    """The loop in the task of a single worker."""
    from fer_ray.train import loop

    place = SingleWorker(config)
    loop.fit(given(config, loaded, threads), place)
    place.finish()


def given(config: Config, loaded: dict, threads: int) -> dict:
    """What `loop.fit` takes."""
    return loaded | {"run": run_uri(config), "train": config.train, "config": to_dict(config), "threads": threads}


class SingleWorker:
    """The only worker of a run (`loop.Place`). It keeps checkpoints and numbers itself, while the next epoch runs."""

    rank, world = 0, 1

    def __init__(self, config: Config):
        import torch

        self.run, self.train = run_uri(config), config.train
        self.device = torch.device("cuda" if config.train.use_gpu else "cpu")
        # made when needed: a search sends what it tells Tune, and this with it, to the controller of a group
        self.thread: ThreadPoolExecutor | None = None
        self.kept: Future | None = None

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """There is one worker."""
        return model

    def report(self, numbers: dict, folder: str | None) -> None:
        """Upload the checkpoint and write the numbers, once those before are kept."""
        self.finish()
        self.thread = self.thread or ThreadPoolExecutor(1)
        self.kept = self.thread.submit(self._keep, numbers, folder)

    def finish(self) -> None:
        """Wait until what was reported last is kept. Raises: what kept it from being so."""
        if self.kept:
            self.kept.result()

    def _keep(self, numbers: dict, folder: str) -> None:
        name = checkpoints.folder_name(checkpoints.describe(folder)["progress"])
        checkpoints.move(folder, storage.join(self.run, name))
        checkpoints.prune(self.run, self.train.num_to_keep)
        tracking.log(self.run, numbers, self.train.mlflow)


def run_group(config: Config, loaded: dict, side_by_side: int = 1, callbacks: list | None = None) -> None:
    """Run the loop on `num_workers` processes that Ray Train starts, and starts again when they die.

    `callbacks`: of Ray Train, beside our own.

    Raises: TrainingError; what `training.start` does.
    """
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    t, run = config.train, run_uri(config)
    filesystem, path = storage.resolve(run)
    storage.delete_file(storage.join(run, "diverged.json"))
    _mend_snapshot(run)
    ray.get(loaded["can_start"])
    trainer = TorchTrainer(
        fit_in_group,
        train_loop_config=given(config, loaded, resources.threads_per_worker(t, side_by_side)),
        scaling_config=ScalingConfig(num_workers=(t.min_workers, t.num_workers) if t.min_workers else t.num_workers,
                                     use_gpu=t.use_gpu,
                                     resources_per_worker=resources.worker_resources(ray.cluster_resources(), t,
                                                                         resources.has_autoscaler(ray.nodes()))),
        run_config=RunConfig(
            name=config.name, storage_path=os.path.dirname(path), storage_filesystem=filesystem,
            failure_config=FailureConfig(t.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=t.num_to_keep, checkpoint_score_attribute="score"),
            callbacks=[tracking.epoch_log(run, t.mlflow), *(callbacks or [])],
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"{run}: {_cause(error)}") from error
    _refuse_diverged(run)


def fit_in_group(c: dict) -> None:
    """The loop on a worker of Ray Train."""
    from fer_ray.train import loop

    loop.fit(c, RayTrainWorker(c["run"]))


class RayTrainWorker:
    """A worker among those of Ray Train (`loop.Place`)."""

    def __init__(self, run: str):
        import ray.train.torch

        self.run = run
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """DDP."""
        import ray.train.torch

        return ray.train.torch.prepare_model(model)

    def report(self, numbers: dict, folder: str | None) -> None:
        """Tell Ray Train (a barrier of all workers). The upload goes on while the next epoch runs."""
        import ray.train

        def upload(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            checkpoints.move(local.path, storage.join(self.run, name))
            filesystem, path = storage.resolve(storage.join(self.run, name))
            return ray.train.Checkpoint(path, filesystem)

        ray.train.report(numbers, checkpoint=folder and ray.train.Checkpoint.from_directory(folder),
                         checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC, checkpoint_upload_fn=upload,
                         delete_local_checkpoint_after_upload=False)  # `checkpoints.move` has removed it


def _mend_snapshot(run: str) -> None:
    """Drop Ray's list of checkpoints if it is damaged or names one that is gone: Ray would refuse the whole run.

    Workers find their checkpoint themselves, so nothing but Ray's record of old scores is lost.
    """
    file = storage.join(run, "checkpoint_manager_snapshot.json")
    if not storage.exists(file):
        return
    try:
        listed = storage.read_json(file)["checkpoint_results"]
        there = set(storage.list_dirs(run))
        whole = all(entry["checkpoint_dir_name"] in there for entry in listed)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        storage.delete_file(file)


def _refuse_diverged(run: str) -> None:
    diverged = storage.join(run, "diverged.json")
    if storage.exists(diverged):
        raise TrainingError(f"{run}: {storage.read_json(diverged)['reason']}")


def _cause(error: Exception) -> str:
    """What the first worker that failed said."""
    workers = getattr(error, "worker_failures", None) or {}
    return _last_line(next(iter(workers.values()), error))


def _last_line(error: Exception) -> str:
    """The worker's own words, without Ray's frames around them."""
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
