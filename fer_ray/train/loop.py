"""`fit`, the loop that every worker runs, whatever runs the worker: a task, Ray Train's group, or a Ray Tune trial."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from typing import Protocol

import cv2
import torch
import torch.distributed as dist
import torch.nn.functional as F

from fer_ray import scratch, storage
from fer_ray.config import TrainConfig
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import backbones, checkpoints, metrics
from fer_ray.train import batches, schedule, tracking

NUM_CLASSES = len(EXPRESSIONS)
ON_DEVICE_SHARE = 0.25  # of a GPU's free memory that a split may take


class Place(Protocol):
    """Where a worker runs. `rank` of `world` workers, each on its `device`."""

    rank: int
    world: int
    device: torch.device

    def parallel(self, model: torch.nn.Module) -> torch.nn.Module:
        """The network with its gradients averaged over the workers."""

    def report(self, numbers: dict, folder: str | None) -> None:
        """Take the numbers of an epoch (`score` alone: of a part of one) and, on rank 0, its checkpoint, a local
        folder that now belongs to the place."""


def fit(c: dict, place: Place) -> None:
    """Train an epoch, validate, keep a checkpoint, until the epochs or the patience end. Goes on where the run is.

    All that is random is a function of (seed, epoch, step, rank), so a resumed run ends with the same weights.

    Args:
        c: `run` (URI of its folder), `train` (TrainConfig), `config` (all of it, as plain values), `fingerprint` (of
            the data), `state` (reference to the state dict to start from), `sources` (see `training.load`), `threads`.
    """
    t: TrainConfig = c["train"]
    begun = time.time()
    rank, world, device = place.rank, place.world, place.device
    torch.set_num_threads(c["threads"])
    cv2.setNumThreads(1)  # a pool for each image costs more than it gains
    model, progress, optimizer_state = _resume(c, t)
    if rank == 0:
        tracking.catch_up(c["run"], progress["history"], t.mlflow)
    model = model.to(device, memory_format=torch.channels_last)
    train_data, val_data = (_open(*c["sources"][split], t, place, c["threads"]) for split in ("train", "val"))
    network = backbones.head(model, t.backbone) if t.layers == "head" else model
    optimizer = sgd(network, t)
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)
    forward = torch.compile(network) if t.compile else network
    ddp = place.parallel(forward) if world > 1 else forward
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(t, device))
    weights = loss_weights(train_data.labels, t.class_weights).to(device)
    batch_size = min(t.batch_size, len(train_data.labels))

    while not schedule.is_finished(progress, t):
        epoch, first = progress["epoch"], progress["step"]
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(epoch, t)
        network.train()
        total = torch.tensor(progress["total"], dtype=torch.float64).div(world).to(device)  # loss, images
        clock = Clock()
        steps = train_data.train_steps(epoch, t.batch_size, first, t.sampling)
        for step, (images, labels) in enumerate(clock.waits(steps), start=first):
            torch.manual_seed(hash((t.seed, epoch, step, rank)) % 2**63)  # dropout
            loss = train_step(ddp, optimizer, train_data.to_input(images, device), batches.to_device(labels, device),
                              weights, batch_size / world, t, autocast)
            total += torch.stack([loss.double(), loss.new_tensor(len(labels), dtype=torch.float64)])
            if t.checkpoint_every_steps and (step + 1) % t.checkpoint_every_steps == 0:
                so_far = all_sum(total, world)
                if not math.isfinite(so_far[0]):
                    break
                report(model, optimizer, progress | {"step": step + 1, "total": so_far.tolist()}, None, c, place)
        total = all_sum(total, world)
        seconds = clock.seconds()
        val_loss, confusion = validate(network, val_data, t.batch_size, world, device, autocast)
        train_loss = float(total[0] / total[1])
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            return _diverged(c, epoch, train_loss, val_loss, rank)
        seen = float(total[1]) - progress["total"][1]
        result = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss,
                  "val_accuracy": float(confusion.trace() / confusion.sum()),
                  "val_balanced_accuracy": metrics.balanced_accuracy(confusion),
                  "val_chance": metrics.chance(confusion), "lr": schedule.lr_at(epoch, t),
                  "images": int(total[1]), "images_per_s": seen / seconds, "train_s": seconds,
                  "data_wait_s": clock.waited, "workers": world, "loop_begun_at": begun,
                  "first_batch_at": clock.first_at, "ended_at": time.time()}
        if result["val_balanced_accuracy"] > progress["best"]:
            progress |= {"best": result["val_balanced_accuracy"], "best_epoch": epoch}
        progress |= {"epoch": epoch + 1, "step": 0, "total": [0.0, 0.0], "history": [*progress["history"], result]}
        report(model, optimizer, progress, result, c, place)


def train_step(model, optimizer, images, labels, weights, share: float, t: TrainConfig, autocast) -> torch.Tensor:
    """One optimiser step on this worker's part of a batch; the sum of its losses.

    DDP averages the workers' gradients, so each divides by its `share` of the batch, global size by workers: every
    image weighs the same even in uneven shares.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=images.device)
    parts = list(zip(images.chunk(t.micro_batches), labels.chunk(t.micro_batches), strict=True))
    for number, (x, y) in enumerate(parts, start=1):
        last = number == len(parts)
        with contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
            with autocast:
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y, weights, reduction="none",
                                   label_smoothing=t.label_smoothing).sum()
            (loss / share).backward()
        total += loss.detach()
    if t.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.clip_norm)
    optimizer.step()
    return total


@torch.inference_mode()
def validate(model, data, batch_size: int, world: int, device, autocast):
    """Mean loss and confusion matrix (int64 [8, 8], rows true), exact: each image counts once, on one worker."""
    model.eval()
    sums = torch.zeros(NUM_CLASSES**2 + 1, dtype=torch.float64, device=device)
    for images, labels in data.eval_batches(batch_size):
        y = batches.to_device(labels, device)
        with autocast:
            logits = model(data.to_input(images, device))
        sums[0] += F.cross_entropy(logits.float(), y, reduction="sum")
        sums[1:] += torch.bincount(y * NUM_CLASSES + logits.argmax(1), minlength=NUM_CLASSES**2)
    sums = all_sum(sums, world)
    confusion = sums[1:].reshape(NUM_CLASSES, NUM_CLASSES)
    return float(sums[0] / confusion.sum()), confusion.long().numpy()


def all_sum(tensor: torch.Tensor, world: int) -> torch.Tensor:
    """The sum over all workers, on CPU."""
    tensor = tensor.clone()
    if world > 1:
        dist.all_reduce(tensor)
    return tensor.cpu()


def report(model, optimizer, progress: dict, result: dict | None, c: dict, place: Place) -> None:
    """Tell the epoch's numbers and keep a checkpoint (rank 0).

    Within an epoch there is no `result`, and the lowest score lets that checkpoint go when the next one is there.
    """
    folder = None
    if place.rank == 0:
        folder = tempfile.mkdtemp(dir=scratch.folder())
        description = {"progress": {k: progress[k] for k in ("epoch", "step")}, "at_end_of_epoch": result is not None,
                       "parameters": sum(p.numel() for p in model.parameters()), "metrics": result or {},
                       "history": progress["history"], "config": c["config"],
                       "data_fingerprint": c["fingerprint"], "versions": {"torch": torch.__version__}}
        checkpoints.save(folder, c["train"].backbone, model,
                         {"optimizer": optimizer.state_dict(), "progress": progress}, description)
    place.report((result or {}) | {"score": result["val_balanced_accuracy"] if result else -1.0}, folder)


class Clock:
    """Seconds of an epoch, and how many of them went by waiting for data."""

    def __init__(self):
        self.start, self.waited, self.first_at = time.perf_counter(), 0.0, None

    def waits(self, batches_of):
        """The items of an iterator, timing each wait for the next."""
        iterator = iter(batches_of)
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


def sgd(model, t: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum; weight decay for matrices and kernels only."""
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": t.weight_decay},
              {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=schedule.lr_at(0, t), momentum=t.momentum, nesterov=t.nesterov, fused=True)


def loss_weights(labels, how: str) -> torch.Tensor:
    """float32 [8] with mean 1 over the training images; classes without images get 0."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=NUM_CLASSES).double()
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[how]
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def uses_bf16(t: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass is in bf16: on CPU only if asked for, since few have the instructions."""
    if t.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return t.precision == "bf16"


def _resume(c: dict, t: TrainConfig) -> tuple[torch.nn.Module, dict, dict | None]:
    """Model, progress and optimiser state: of the most advanced checkpoint that is whole, or of the start."""
    import ray

    model = backbones.empty(t.backbone)  # beside those who still make the start
    newest = checkpoints.find_latest(c["run"])
    if newest is None:
        return (backbones.fill(model, ray.get(c["state"])),
                {"epoch": 0, "step": 0, "total": [0.0, 0.0], "best": -1.0, "best_epoch": -1, "history": []}, None)
    saved = checkpoints.load_train_state(newest)
    return backbones.fill(model, checkpoints.load_weights(newest)), saved["progress"], saved["optimizer"]


def _open(kind: str, content, t: TrainConfig, place: Place, threads: int):
    """The source of batches that `training.load` made ready, on this worker."""
    if kind == "streamed":
        return batches.Streamed(*content, t.seed, place.rank, place.world)
    if kind == "features":
        return batches.Features(*batches.fetch_features(content), t.seed, place.rank, place.world)
    crops = batches.fetch_crops(content)
    if batches.device_bytes(crops) < ON_DEVICE_SHARE * _free_bytes(place.device):
        return batches.OnDevice(crops, t.seed, place.rank, place.world, place.device)
    # a thread keeps ahead of a CPU; a GPU needs all that its worker has
    return batches.Cached(crops, t.seed, place.rank, place.world, threads if t.use_gpu else 1)


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing holds; 0 on CPUs, where crops lie in Ray's shared memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _diverged(c: dict, epoch: int, train_loss: float, val_loss: float, rank: int) -> None:
    """Ends the run without an exception, which Ray would only answer with restarts that diverge again."""
    if rank == 0:
        t = c["train"]
        storage.write_json(storage.join(c["run"], "diverged.json"), {"epoch": epoch, "reason": (
            f"the loss is {train_loss} (validation {val_loss}) in epoch {epoch + 1}: train.lr {t.lr} is too high for "
            f"momentum {t.momentum}; the checkpoints of the epochs before are kept")})
