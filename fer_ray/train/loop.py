"""`fit`, the loop that every training worker runs, whatever runs the worker: a Ray task, Ray Train or Ray Tune."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypedDict

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fer_ray import scratch, storage
from fer_ray.config import TrainConfig, to_dict
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import backbones, checkpoints, metrics
from fer_ray.train import averaging, batches, live, schedule, stream, tracking
from fer_ray.train.job import SplitInput, TrainJob

NUM_CLASSES = len(EXPRESSIONS)
STEP_COST = 3  # forward passes that a training step takes as long as: backward takes about two
ON_DEVICE_SHARE = 0.25  # of a GPU's free memory that a split may take; the network's activations need the rest


class Worker(Protocol):
    """What `fit` needs to know of the worker that runs it, and whom it reports to."""

    rank: int
    """Number of this worker, from 0. Rank 0 keeps checkpoints and numbers."""
    world: int
    """Number of workers."""
    device: torch.device
    """Where this worker computes."""

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The network with its gradients averaged over the workers."""

    def report(self, numbers: dict | None, checkpoint: str | None) -> None:
        """Keep what training came to.

        Args:
            numbers: those of the epoch that has just ended; None within an epoch.
            checkpoint: on rank 0, a local folder that the worker moves to storage; None on other ranks.
        """


class Progress(TypedDict):
    """How far a run has come. Each checkpoint holds it."""

    epoch: int
    """The epoch to go on with, from 0."""
    step: int
    """The step of that epoch to go on with."""
    total: list[float]
    """Sum of the losses of that epoch's earlier steps, and the number of their images, over all workers."""
    best: float
    """Highest validation balanced accuracy so far; -1 before the first epoch has ended."""
    best_epoch: int
    """The epoch that reached it; -1 before."""
    history: list[dict]
    """The numbers of every epoch that has ended."""


def fit(job: TrainJob, worker: Worker) -> None:
    """Train an epoch, validate and report, until the epochs or the patience end. Goes on where the run is.

    All that is random is a function of (seed, epoch, step, rank), so that a run that was interrupted ends with the
    same weights as one that was not. A loss that is not finite ends the run; `diverged.json` in its folder says why.
    """
    begun = time.time()
    settings, rank, world, device = job.config.train, worker.rank, worker.world, worker.device
    torch.set_num_threads(job.threads)
    cv2.setNumThreads(1)  # images are small: a pool of threads for each costs more than it gains
    model, progress, saved = _resume(job, rank, world)
    if rank == 0:
        tracking.catch_up(job.run, progress["history"], settings.mlflow)
    # channels last, as the batches are: convolutions are faster so
    model = model.to(device).to(memory_format=torch.channels_last)
    average = averaging.Average(model, settings.average, saved.get("averaged_steps", 0))
    if "trained" in saved:  # `model` has the weights of the average, with which it goes on
        backbones.fill(model, saved["trained"])
    train_data = open_source(job.input.train, job, worker)
    val_data = open_source(job.input.val, job, worker)
    network = _part_in_training(model, settings)
    optimizer = sgd(model, settings)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
    parallel = worker.wrap(network) if world > 1 else network
    stepped: Any = torch.compile(parallel) if settings.compile else parallel  # in this order it splits at DDP's buckets
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(settings, device))
    class_weights = loss_weights(train_data.labels, settings.class_weights).to(device)
    batch_size = min(settings.batch_size, len(train_data.labels))
    num_steps = len(train_data.labels) // batch_size
    ticker = live.Ticker(job.run, rank)
    # what would fail after an epoch fails now; the first batch pays for what comes only once, the second is timed
    for _ in range(2):
        clock = Clock()
        validate(_part_in_training(average.network, settings), val_data, settings, world, device, autocast, 1)
    seconds = clock.seconds() / min(settings.batch_size / settings.micro_batches, len(val_data.labels))
    images = STEP_COST * len(train_data.labels) + len(val_data.labels)
    ticker.plan(num_steps, seconds * images * (settings.epochs - progress["epoch"]))

    while not schedule.is_finished(progress["epoch"], progress["best_epoch"], settings):
        epoch, first = progress["epoch"], progress["step"]
        lr = schedule.lr_at(epoch, settings)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_share"]
        network.train()
        # sum of losses, and images; what earlier workers of this epoch did is shared out among those of today
        total = torch.tensor(progress["total"], dtype=torch.float64).div(world).to(device)
        clock = Clock()
        steps = train_data.train_steps(epoch, settings.batch_size, first, settings.sampling)
        for step, (images, labels) in enumerate(clock.time_waits(steps), start=first):
            torch.manual_seed(hash((settings.seed, epoch, step, rank)) % 2**63)  # of dropout
            loss = train_step(stepped, optimizer, train_data.to_input(images, device),
                              batches.to_device(labels, device), class_weights, batch_size / world, settings, autocast)
            average.after_step(step, num_steps)
            total += torch.stack([loss.double(), loss.new_tensor(len(labels), dtype=torch.float64)])
            ticker.tick(epoch, (step + 1) * batch_size, num_steps * batch_size)
            if settings.checkpoint_every_steps and (step + 1) % settings.checkpoint_every_steps == 0:
                so_far = sum_over_workers(total, world)
                if not math.isfinite(so_far[0]):
                    break
                average_buffers(model, average.network, world)
                within: Progress = {**progress, "step": step + 1, "total": so_far.tolist()}
                worker.report(None, save(job, worker, average, optimizer, within, None))
        total = sum_over_workers(total, world)
        train_s = clock.seconds()
        average_buffers(model, average.network, world)
        val_loss, confusion = validate(_part_in_training(average.network, settings), val_data, settings, world, device,
                                       autocast)
        train_loss = float(total[0] / total[1])
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            return _note_divergence(job, epoch, train_loss, val_loss, rank)
        numbers = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss,
                   "val_accuracy": float(confusion.trace() / confusion.sum()),
                   "val_balanced_accuracy": metrics.balanced_accuracy(confusion),
                   "val_chance": metrics.chance(confusion), "lr": lr, "images": int(total[1]),
                   "images_per_s": (float(total[1]) - progress["total"][1]) / train_s, "train_s": train_s,
                   "data_wait_s": clock.waited, "workers": world, "loop_begun_at": begun,
                   "first_batch_at": clock.first_at, "ended_at": time.time()}
        progress = _after_epoch(progress, numbers)
        worker.report(numbers, save(job, worker, average, optimizer, progress, numbers))


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor,
               class_weights: torch.Tensor, share: float, settings: TrainConfig,
               autocast: contextlib.AbstractContextManager) -> torch.Tensor:
    """One optimiser step on this worker's part of a batch; the sum of the images' cross-entropies, float32 [].

    It is that of `validate`, so that both can be compared: without class weights and label smoothing.

    Args:
        model: the network, which averages gradients over the workers if there are several.
        optimizer: of its weights.
        images: float32 [n, 3, 224, 224], or [n, D] for the last layer alone.
        labels: int64 [n].
        class_weights: float32 [8], weight of each class in the loss.
        share: images of the whole batch divided by the number of workers. The gradient is divided by this and not by
            `n`: DDP averages over the workers, and so each image weighs the same even if workers have unequal parts.
        settings: of the training.
        autocast: context of the forward pass.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    no_sync: Any = getattr(model, "no_sync", None)  # of DDP; a compiled network passes on what it wraps
    parts = list(zip(images.chunk(settings.micro_batches), labels.chunk(settings.micro_batches), strict=True))
    for number, (inputs, targets) in enumerate(parts, start=1):
        # several workers exchange their gradients once, with the last part
        with no_sync() if no_sync and number < len(parts) else contextlib.nullcontext():
            with autocast:
                logits = model(inputs)
            # Weights given to cross_entropy itself would also share out what is smoothed: most to the rarest class.
            losses = F.cross_entropy(logits.float(), targets, reduction="none",
                                     label_smoothing=settings.label_smoothing)
            ((losses * class_weights[targets]).sum() / share).backward()
        total += F.cross_entropy(logits.detach().float(), targets, reduction="sum")
    if settings.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    return total


@torch.inference_mode()
def validate(model: torch.nn.Module, data: batches.Source, settings: TrainConfig, world: int, device: torch.device,
             autocast: contextlib.AbstractContextManager, num_batches: int | None = None) -> tuple[float, np.ndarray]:
    """Mean loss and confusion matrix (int64 [8, 8], true classes in rows) over the images of all workers.

    Both are exact: each image counts once, on one worker. A forward pass has as many images as one of training.

    `num_batches`: of each worker; None: all.
    """
    model.eval()
    batch_size = math.ceil(settings.batch_size / (world * settings.micro_batches))
    sums = torch.zeros(NUM_CLASSES**2 + 1, dtype=torch.float64, device=device)
    for images, classes in itertools.islice(data.eval_batches(batch_size), num_batches):
        labels = batches.to_device(classes, device)
        with autocast:
            logits = model(data.to_input(images, device))
        sums[0] += F.cross_entropy(logits.float(), labels, reduction="sum")
        sums[1:] += torch.bincount(labels * NUM_CLASSES + logits.argmax(1), minlength=NUM_CLASSES**2)
    sums = sum_over_workers(sums, world)
    confusion = sums[1:].reshape(NUM_CLASSES, NUM_CLASSES)
    return float(sums[0] / confusion.sum()), confusion.long().numpy()


def average_buffers(model: torch.nn.Module, averaged: torch.nn.Module, world: int) -> None:
    """Give all workers the mean of their buffers: the running statistics of BatchNorm, which each takes of its images.

    As `distribute_bn` of timm. `averaged`: the moving average of the weights, or `model` itself.
    """
    # a dict keeps their order, which must be the same on all workers; without a moving average both are one
    for network in dict.fromkeys([model, averaged]) if world > 1 else ():
        for values in network.buffers():
            if values.is_floating_point():
                dist.all_reduce(values)
                values /= world


def sum_over_workers(tensor: torch.Tensor, world: int) -> torch.Tensor:
    """The sum over all workers, on the CPU."""
    tensor = tensor.clone()
    if world > 1:
        dist.all_reduce(tensor)
    return tensor.cpu()


def save(job: TrainJob, worker: Worker, average: averaging.Average, optimizer: torch.optim.Optimizer,
         progress: Progress, numbers: dict | None) -> str | None:
    """Write a checkpoint to a temporary folder, on rank 0; the folder. `numbers`: of an epoch that has just ended."""
    if worker.rank != 0:
        return None
    folder = tempfile.mkdtemp(dir=scratch.folder())
    description = {"progress": {key: progress[key] for key in ("epoch", "step")},
                   "at_end_of_epoch": numbers is not None,
                   "parameters": sum(weights.numel() for weights in average.network.parameters()),
                   "metrics": numbers or {}, "history": progress["history"], "config": to_dict(job.config),
                   "data_fingerprint": job.input.data_fingerprint, "versions": {"torch": torch.__version__}}
    checkpoints.save(folder, job.config.train.backbone, average.network,
                     {"optimizer": optimizer.state_dict(), "progress": progress, **average.state()}, description)
    return folder


class Clock:
    """Seconds of an epoch, and how many of them went by waiting for data."""

    def __init__(self):
        self.start, self.waited = time.perf_counter(), 0.0
        self.first_at: float | None = None  # Unix time of the first item

    def time_waits(self, items: Iterable) -> Iterator:
        """The items, timing each wait for the next."""
        iterator = iter(items)
        while True:
            begun = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - begun
            self.first_at = self.first_at or time.time()
            yield item

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.start


def sgd(model: torch.nn.Module, settings: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum over what `train.layers` names.

    Weight decay is for matrices and kernels only, not for biases and norms. A group's `lr_share` is the part of the
    learning rate that it gets: layers that come with ImageNet weights may need less than the new last one.
    """
    head = set(backbones.head(model, settings.backbone).parameters())
    groups: dict[tuple, list] = {}
    for weights in _part_in_training(model, settings).parameters():
        groups.setdefault((weights in head, weights.ndim > 1), []).append(weights)
    return torch.optim.SGD(
        [{"params": members, "weight_decay": settings.weight_decay if decayed else 0.0,
          "lr_share": 1.0 if is_head else settings.body_lr} for (is_head, decayed), members in groups.items()],
        lr=schedule.lr_at(0, settings), momentum=settings.momentum, nesterov=settings.nesterov, fused=True)


def _part_in_training(model: torch.nn.Module, settings: TrainConfig) -> torch.nn.Module:
    """The network, or its last layer if that alone is trained."""
    return backbones.head(model, settings.backbone) if settings.layers == "head" else model


def loss_weights(labels: np.ndarray, how: str) -> torch.Tensor:
    """Weight of each class in the loss, float32 [8], with mean 1 over the training images; 0 for an absent class."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=NUM_CLASSES).double()
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[how]
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def uses_bf16(settings: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass is in bf16: on CPUs only if asked for, since few have the instructions."""
    if settings.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return settings.precision == "bf16"


def open_source(split: SplitInput, job: TrainJob, worker: Worker) -> batches.Source:
    """The batches of a split for this worker."""
    settings = job.config.train
    place = settings.seed, worker.rank, worker.world
    augmented = settings.augmentation, *place
    if split.kind == "streamed":
        assert split.index is not None
        return stream.Streamed(split.prepared, split.index, *augmented, settings.epochs)
    if split.kind == "features":
        return batches.Features(*batches.fetch_features(split.references), *place)
    crops = batches.fetch_crops(split.references)
    if batches.device_bytes(crops) < ON_DEVICE_SHARE * _free_bytes(worker.device):
        return batches.OnDevice(crops, *augmented, worker.device)
    # One thread keeps ahead of a CPU, and more would take time from the network; a GPU needs all that its worker has.
    return batches.Cached(crops, *augmented, job.threads if worker.device.type == "cuda" else 1)


def _resume(job: TrainJob, rank: int, world: int) -> tuple[torch.nn.Module, Progress, dict]:
    """Network, progress and training state of the run's most advanced checkpoint that is whole, or of the start.

    The training state (`checkpoints.load_train_state`) is empty at the start. Rank 0 alone reads storage, and hands on
    what it found: each file is read once and not once a worker, and all workers begin at the same checkpoint.

    Raises: storage.StorageError if storage does not answer. That must never be taken for a run without checkpoints,
        which begins anew.
    """
    import ray

    model = backbones.empty(job.config.train.backbone)  # while another process may still load the start state
    found: list = [_load_newest(job.run) if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(found)
    if found[0] is None:
        begin: Progress = {"epoch": 0, "step": 0, "total": [0.0, 0.0], "best": -1.0, "best_epoch": -1, "history": []}
        return backbones.fill(model, ray.get(job.input.start_state)), begin, {}
    weights, saved = found[0]
    return backbones.fill(model, weights), saved["progress"], saved


def _load_newest(run: str) -> tuple[dict[str, torch.Tensor], dict] | None:
    """Weights and training state of the run's most advanced checkpoint that is whole; leftovers are removed."""
    newest = checkpoints.find_latest(run)
    checkpoints.remove_leftovers(run, newest)
    return (checkpoints.load_weights(newest), checkpoints.load_train_state(newest)) if newest else None


def _after_epoch(progress: Progress, numbers: dict) -> Progress:
    """The progress when an epoch has ended with these numbers."""
    ended: Progress = {**progress, "epoch": progress["epoch"] + 1, "step": 0, "total": [0.0, 0.0],
                       "history": [*progress["history"], numbers]}
    if numbers["val_balanced_accuracy"] > progress["best"]:
        ended |= {"best": numbers["val_balanced_accuracy"], "best_epoch": progress["epoch"]}
    return ended


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing holds; 0 on CPUs, whose crops already lie in memory, in Ray's object store."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _note_divergence(job: TrainJob, epoch: int, train_loss: float, val_loss: float, rank: int) -> None:
    """Write why the run ends. An exception would only make Ray restart the workers, which diverge again."""
    if rank == 0:
        settings = job.config.train
        storage.write_json(storage.join(job.run, "diverged.json"), {"epoch": epoch, "reason": (
            f"the loss is {train_loss} (validation {val_loss}) in epoch {epoch + 1}: train.lr {settings.lr} is too "
            f"high for momentum {settings.momentum}; the checkpoints of the epochs before are kept")})
