"""What runs the training loop: one Ray task for a single worker, a group of Ray Train for several.

Either way rank 0 keeps the checkpoints and the numbers itself, and workers that start again find the newest checkpoint
themselves. Ray Train is told the numbers of each epoch, but no checkpoints: it would keep books of its own about them,
which after a kill name folders that are gone, or miss folders that are there.
"""

from __future__ import annotations

import datetime
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn

from fer_ray import storage
from fer_ray.config import TrainConfig
from fer_ray.errors import UserError
from fer_ray.model import checkpoints
from fer_ray.train import resources, tracking
from fer_ray.train.job import TrainJob

if TYPE_CHECKING:
    import torch


GROUP_TIMEOUT = datetime.timedelta(minutes=30)  # that a worker waits for another: as Ray Train's own


class TrainingError(UserError):
    """Training ended without a result; the message says why."""


def run_single(job: TrainJob) -> None:
    """Run the loop of a single worker as a Ray task, and again when its process or node dies.

    A group of Ray Train would start two more processes, one after the other, and take time from a small machine.

    Raises: TrainingError; ConfigError if the cluster has become too small; as `inputs.load_start_state`.
    """
    import ray.exceptions

    settings = job.config.train
    storage.delete_file(storage.join(job.run, "diverged.json"))
    for failures_left in reversed(range(settings.max_failures + 1)):
        needs = resources.worker_resources(ray.cluster_resources(), settings, resources.has_autoscaler(ray.nodes()))
        # not by `options`: a GPU that a decorator names makes the process end with its task, and give its memory back
        task: Any = ray.remote(num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=0)(fit_single)
        fitting = task.remote(job)  # before the start state is there: the worker's process starts meanwhile
        ray.get(job.input.start_loaded)
        try:
            ray.get(fitting)
        except ray.exceptions.RayError as error:
            if not failures_left:
                _raise_failed(job, error)
            resources.wait_for_workers(settings)
        else:
            return _refuse_diverged(job)


def fit_single(job: TrainJob) -> None:
    """The loop, in the task of a single worker."""
    from fer_ray.train import loop

    worker = SingleWorker(job)
    loop.fit(job, worker)
    worker.finish()


class Keeper:
    """Keeps checkpoints and numbers of a run, in a thread while the next epoch runs. Only rank 0 has one."""

    def __init__(self, run: str, settings: TrainConfig):
        self.run, self.settings = run, settings
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future | None = None

    def submit(self, numbers: dict | None, checkpoint: str) -> None:
        """Keep this local checkpoint, then these numbers, once those before are kept.

        Raises: what kept those before from being kept; this checkpoint is removed then.
        """
        try:
            self.finish()
        except BaseException:
            shutil.rmtree(checkpoint, ignore_errors=True)
            raise
        self.pending = self.thread.submit(self._keep, numbers, checkpoint)

    def finish(self) -> None:
        """Wait until what was submitted last is kept. Raises: what kept it from being so."""
        if self.pending:
            self.pending.result()

    def _keep(self, numbers: dict | None, checkpoint: str) -> None:
        name = checkpoints.folder_name(checkpoints.describe(checkpoint)["progress"])
        checkpoints.move(checkpoint, storage.join(self.run, name))
        checkpoints.prune(self.run, self.settings.num_to_keep)
        if numbers:
            tracking.log(self.run, numbers, self.settings.mlflow)


class SingleWorker:
    """The only worker of a run (`loop.Worker`)."""

    rank, world = 0, 1

    def __init__(self, job: TrainJob):
        import torch

        self.device = torch.device(job.config.train.device)
        self.keeper = Keeper(job.run, job.config.train)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The network itself: there is nobody to exchange gradients with."""
        return model

    def report(self, numbers: dict | None, checkpoint: str | None) -> None:
        """Keep both while training goes on."""
        assert checkpoint
        self.keeper.submit(numbers, checkpoint)

    def finish(self) -> None:
        """Wait until all is kept. Raises: what kept it from being so."""
        self.keeper.finish()


def run_group(job: TrainJob, callbacks: list | None = None) -> None:
    """Run the loop on `num_workers` processes that Ray Train starts, and starts again when one of them dies.

    `callbacks`: Ray Train calls them with the numbers of each epoch, when those are kept.

    Raises: TrainingError; as `inputs.load_start_state`.
    """
    import ray.train
    from ray.train.backend import Backend, BackendConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    # Ray Train has two versions of these classes, and the environment chooses: for a type checker they are both
    train: Any = ray.train
    settings = job.config.train
    filesystem, path = storage.resolve(job.run)
    storage.delete_file(storage.join(job.run, "diverged.json"))
    needs = resources.worker_resources(ray.cluster_resources(), settings, resources.has_autoscaler(ray.nodes()))
    # a range lets Ray Train go on with fewer workers when nodes are lost
    number = (settings.min_workers, settings.num_workers) if settings.min_workers else settings.num_workers

    class Visible(Backend):
        """As TorchTrainer's: a worker sees all GPUs of its node that the group has, for NCCL to copy between them."""

        share_cuda_visible_devices = True

    class VisibleConfig(BackendConfig):
        backend_cls = Visible

    class Trainer(DataParallelTrainer):
        """As TorchTrainer, without what takes seconds at the start.

        Ray's `TorchConfig` imports torch into this process, and once more into the controller that waits for it;
        `RayTrainWorker` sets up torch's process group instead.
        """

        def _register_sigint_handler(self, controller) -> None:
            """Leave Ctrl-C to the command: Ray Train's handler ends it with exit code 1 and without a word."""

        def _create_default_callbacks(self) -> list:
            """Without the one that starts a process for data sets of Ray Train: our workers read their own."""
            from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

            return [each for each in super()._create_default_callbacks() if not isinstance(each, DatasetsCallback)]

    trainer = Trainer(
        fit_in_group, train_loop_config={"job": job, "keep_first": bool(callbacks)}, backend_config=VisibleConfig(),
        scaling_config=train.ScalingConfig(num_workers=number, use_gpu=settings.device == "cuda",
                                           resources_per_worker=needs),
        run_config=train.RunConfig(
            name=job.config.name, storage_path=os.path.dirname(path), storage_filesystem=filesystem,
            failure_config=train.FailureConfig(settings.max_failures), callbacks=callbacks),
    )
    try:
        trainer.fit()  # the start state may still be loading: the workers start meanwhile, and wait for it
    except ray.train.TrainingFailedError as error:
        ray.get(job.input.start_loaded)  # its own error, if that is the cause
        workers = getattr(error, "worker_failures", None) or {}
        _raise_failed(job, next(iter(workers.values()), error))  # the first worker's error is the cause of the others'
    _refuse_diverged(job)


def fit_in_group(arguments: dict) -> None:
    """The loop, on a worker of Ray Train. `arguments`: those of `RayTrainWorker`."""
    from torch import distributed as dist

    from fer_ray.train import loop

    worker = RayTrainWorker(**arguments)
    loop.fit(arguments["job"], worker)
    worker.finish()
    dist.destroy_process_group()


class RayTrainWorker:
    """One of several workers of Ray Train (`loop.Worker`)."""

    def __init__(self, job: TrainJob, keep_first: bool):
        """`keep_first`: Ray Train hears of an epoch when it is kept, since a search may end the trial on hearing it."""
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self._join_group()
        self.keeper = Keeper(job.run, job.config.train) if self.rank == 0 else None
        self.keep_first = keep_first

    def _join_group(self) -> None:
        """Set up torch's process group, over which the workers exchange gradients."""
        import ray.util
        import torch
        import torch.distributed as dist
        from ray.train.collective import broadcast_from_rank_zero

        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.rank == 0:
            host = ray.util.get_node_ip_address()
            store = dist.TCPStore(host, 0, self.world, is_master=True, wait_for_workers=False)  # on a free port
            broadcast_from_rank_zero((host, store.port))
        else:
            store = dist.TCPStore(*broadcast_from_rank_zero(None), self.world)
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", store=store, rank=self.rank,
                                world_size=self.world, timeout=GROUP_TIMEOUT)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The network in DDP."""
        import torch

        # buffers: the loop averages them before they are used (`loop.average_buffers`)
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None, broadcast_buffers=False)

    def report(self, numbers: dict | None, checkpoint: str | None) -> None:
        """Keep both while training goes on; tell Ray Train the numbers of an epoch, which waits for all workers."""
        import ray.train

        if self.keeper and checkpoint:
            self.keeper.submit(numbers, checkpoint)
        if numbers:
            if self.keep_first:
                self.finish()
            ray.train.report(numbers)

    def finish(self) -> None:
        """Wait until all is kept. Raises: what kept it from being so."""
        if self.keeper:
            self.keeper.finish()


def _refuse_diverged(job: TrainJob) -> None:
    """Raises: TrainingError if the loop ended since its loss was not finite."""
    file = storage.join(job.run, "diverged.json")
    if storage.exists(file):
        reason = storage.read_own_json(file, {"reason": str}, "run the same command again")["reason"]
        raise TrainingError(f"{job.run}: {reason}")


def _raise_failed(job: TrainJob, error: Exception) -> NoReturn:
    """Raises: TrainingError with the last line of an error, the worker's own words without Ray's frames around them."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    raise TrainingError(f"{job.run}: {lines[-1]}") from error
