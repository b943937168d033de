"""`fit`, the loop that every worker runs, and the Ray Train trainer around it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import threading
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

from fer_ray import augment, backbones, batches, checkpoints, metrics, storage
from fer_ray.config import Config, ConfigError, TrainConfig, to_dict
from fer_ray.manifest import EXPRESSIONS

NUM_CLASSES = len(EXPRESSIONS)


class TrainingError(RuntimeError):
    """Training ended without a result; the message says why."""


def train(config: Config, prepared: str) -> str:
    """Fine-tune on the prepared set at `prepared`; URI of the run folder. The same run name resumes.

    Raises: ConfigError if the run exists with another configuration or the cluster is too small;
        backbones.WeightsError; TrainingError.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    t = config.train
    run = storage.absolute(storage.join(config.storage, "runs", config.name))
    fingerprint = storage.read_json(storage.join(prepared, "prepared.json"))["fingerprint"]
    _claim(run, t, fingerprint)
    resources = worker_resources(ray.cluster_resources(), t)
    state = ray.put(backbones.initial_state(t.backbone, t.weights, t.seed))
    loop_config = {
        "run": run, "train": t, "state": state, "config": to_dict(config), "fingerprint": fingerprint,
        # workers may share a node: the threads of all must not exceed its cores
        "threads": max(1, int(ray.cluster_resources()["CPU"] / len(ray.nodes()) // t.num_workers)),
        "train_crops": batches.load_refs(prepared, "train"), "val_crops": batches.load_refs(prepared, "val"),
    }
    trainer = TorchTrainer(
        fit,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(num_workers=t.num_workers, use_gpu=t.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=config.name, storage_path=os.path.dirname(run), failure_config=FailureConfig(t.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=t.num_to_keep,
                                               checkpoint_score_attribute="val_balanced_accuracy"),
        ),
    )
    try:
        with _progress(run, t.epochs):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"{run}: {_cause(error)}") from error
    _publish(config, run)
    return run


@contextlib.contextmanager
def _progress(run: str, num_epochs: int):
    """Print a line an epoch while the workers train: what they print themselves drowns in Ray's own log."""
    file, stop = storage.join(run, "epochs.json"), threading.Event()

    def read() -> list[dict]:
        return storage.read_json(file)["epochs"] if storage.exists(file) else []

    def follow() -> None:
        shown = len(read())
        if shown:
            print(f"resuming after epoch {shown}", flush=True)
        while True:
            ended = stop.wait(1.0)
            for e in read()[shown:]:
                print(f"epoch {e['epoch'] + 1:3d}/{num_epochs}  loss {e['train_loss']:.3f}  val loss "
                      f"{e['val_loss']:.3f}  val balanced accuracy {e['val_balanced_accuracy']:.3f}  "
                      f"{e['images_per_s']:.0f} images/s", flush=True)
                shown += 1
            if ended:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def worker_resources(cluster: dict, t: TrainConfig) -> dict:
    """Resources of one worker. Raises: ConfigError if the cluster cannot hold `num_workers` of them."""
    cpus = cluster.get("CPU", 0)
    if t.use_gpu and cluster.get("GPU", 0) < t.num_workers:
        raise ConfigError(f"train.num_workers: {t.num_workers} workers need {t.num_workers} GPUs, the cluster has "
                          f"{cluster.get('GPU', 0):g}; lower it or set train.use_gpu false")
    if cpus < 0.5 * t.num_workers:
        raise ConfigError(f"train.num_workers: {t.num_workers} workers need at least half a CPU each, the cluster has "
                          f"{cpus:g}")
    return {"CPU": 1 if cpus >= t.num_workers else 0.5, **({"GPU": 1} if t.use_gpu else {})}


def fit(c: dict) -> None:
    """What every worker runs: train an epoch, validate, keep a checkpoint, until the epochs or the patience end.

    Raises: TrainingError when a loss is not finite; the checkpoints before it stay.
    """
    import ray
    import ray.train.torch

    t: TrainConfig = c["train"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(c["threads"])
    torch.manual_seed(t.seed)
    device = ray.train.torch.get_device()
    train_crops, val_crops = batches.get(c["train_crops"]), batches.get(c["val_crops"])

    model = backbones.build(t.backbone)
    model.load_state_dict(ray.get(c["state"]))
    model = model.to(device, memory_format=torch.channels_last)
    progress = {"epoch": -1, "best": -1.0, "best_epoch": -1, "history": []}
    optimizer = sgd(model, t)
    if checkpoint := ray.train.get_checkpoint():
        uri = checkpoint.path if checkpoint.filesystem.type_name == "local" else f"s3://{checkpoint.path}"
        model.load_state_dict(checkpoints.load_model(uri)[0].state_dict())
        train_state = checkpoints.load_train_state(uri)
        optimizer.load_state_dict(train_state["optimizer"])
        progress = train_state["progress"]
    ddp = ray.train.torch.prepare_model(model) if world > 1 else model
    class_weights = loss_weights(train_crops.labels, t.class_weights).to(device)

    for epoch in range(progress["epoch"] + 1, t.epochs):
        if epoch - 1 - progress["best_epoch"] >= t.patience and progress["history"]:
            break
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, t)
        start = time.perf_counter()
        train_loss, seen = train_epoch(ddp, optimizer, train_crops, class_weights, t, epoch, rank, world, device)
        seconds = time.perf_counter() - start
        val_loss, confusion = validate(model, val_crops, t.batch_size, rank, world, device)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise TrainingError(f"the loss is {train_loss} (validation {val_loss}) in epoch {epoch + 1}: train.lr "
                                f"{t.lr} is too high for momentum {t.momentum}")
        result = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss,
                  "val_accuracy": float(confusion.trace() / confusion.sum()),
                  "val_balanced_accuracy": metrics.balanced_accuracy(confusion), "lr": lr_at(epoch, t),
                  "seconds": seconds, "images_per_s": seen / seconds}
        if result["val_balanced_accuracy"] > progress["best"]:
            progress |= {"best": result["val_balanced_accuracy"], "best_epoch": epoch}
        progress = {**progress, "epoch": epoch, "history": [*progress["history"], result]}
        report(model, optimizer, progress, c, rank)


def train_epoch(model, optimizer, crops, class_weights, t, epoch, rank, world, device) -> tuple[float, int]:
    """One pass over the training images; mean loss over all workers and the number of images seen by all."""
    model.train()
    total = torch.zeros(2, dtype=torch.float64)
    for positions in batches.epoch_steps(len(crops.labels), t.batch_size, t.seed, epoch, rank, world):
        images = augment.to_tensor(batches.train_batch(crops, positions, t.seed, epoch), device)
        labels = torch.from_numpy(crops.labels[positions]).to(device)
        losses = F.cross_entropy(model(images), labels, class_weights, reduction="none",
                                 label_smoothing=t.label_smoothing)
        # DDP averages the workers' gradients: scaled so that every image weighs the same, even in uneven shares
        global_batch = min(t.batch_size, len(crops.labels))
        loss = losses.sum() * world / global_batch
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += torch.tensor([losses.detach().sum().item(), len(positions)], dtype=torch.float64)
    total = all_sum(total, world, device)
    return float(total[0] / total[1]), int(total[1])


@torch.inference_mode()
def validate(model, crops, batch_size, rank, world, device):
    """Mean loss and confusion matrix (int64 [8, 8], rows true), exact: each image counts once, on one worker."""
    model.eval()
    confusion, loss = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    mine = range(rank, len(crops.labels), world)
    for first in range(0, len(mine), batch_size):
        chosen = list(mine[first : first + batch_size])
        images = augment.to_tensor([augment.eval_transform(crops.images[i]) for i in chosen], device)
        labels = torch.from_numpy(crops.labels[chosen]).to(device)
        logits = model(images)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        pairs = (labels * NUM_CLASSES + logits.argmax(1)).cpu()
        confusion += torch.bincount(pairs, minlength=NUM_CLASSES**2).reshape(confusion.shape)
    confusion, loss = all_sum(confusion, world, device), all_sum(loss, world, device)
    return float(loss / confusion.sum()), confusion.long().numpy()


def all_sum(tensor: torch.Tensor, world: int, device) -> torch.Tensor:
    """The sum over all workers, on CPU."""
    if world == 1:
        return tensor
    tensor = tensor.to(device)
    dist.all_reduce(tensor)
    return tensor.cpu()


def report(model, optimizer, progress: dict, c: dict, rank: int) -> None:
    """Keep a checkpoint (rank 0) and tell Ray the epoch's numbers (every rank: it is a barrier)."""
    import ray.train

    result, checkpoint, folder = progress["history"][-1], None, None
    if rank == 0:
        storage.write_json(storage.join(c["run"], "epochs.json"), {"epochs": progress["history"]})
        folder = tempfile.mkdtemp()
        description = {"metrics": result, "history": progress["history"], "config": c["config"],
                       "data_fingerprint": c["fingerprint"], "versions": {"torch": torch.__version__}}
        checkpoints.save(folder, c["train"].backbone, model,
                         {"optimizer": optimizer.state_dict(), "progress": progress}, description)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
    ray.train.report(result, checkpoint=checkpoint)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def sgd(model, t: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum; weight decay for matrices and kernels only."""
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": t.weight_decay},
              {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=t.lr, momentum=t.momentum)


def lr_at(epoch: int, t: TrainConfig) -> float:
    """Learning rate of an epoch (from 0)."""
    return t.lr if t.schedule == "constant" else t.lr * (1 + math.cos(math.pi * epoch / t.epochs)) / 2


def loss_weights(labels, how: str) -> torch.Tensor:
    """float32 [8] with mean 1 over the training images; classes without images get 0."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=NUM_CLASSES).double()
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[how]
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def _claim(run: str, t: TrainConfig, data_fingerprint: str) -> None:
    """A run name belongs to one configuration and one prepared set: resuming must never mix two."""
    free = {"epochs", "patience", "num_workers", "use_gpu", "num_to_keep", "max_failures"}
    values = {"data": data_fingerprint, **{f"train.{k}": v for k, v in vars(t).items() if k not in free}}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    file = storage.join(run, "run.json")
    if storage.exists(file):
        old = storage.read_json(file)
        if old["digest"] != digest:
            changed = [f"{k} (was {old['values'].get(k)!r}, now {v!r})" for k, v in values.items()
                       if old["values"].get(k) != v]
            raise ConfigError(f"{run} was trained with other settings: {', '.join(changed)}; choose another --name "
                              "or remove that folder")
    else:
        storage.write_json(file, {"digest": digest, "values": values})


def _publish(config: Config, run: str) -> None:
    best = checkpoints.find_best(run)
    description = checkpoints.describe(best)
    storage.write_json(storage.join(config.storage, "best", f"{config.name}.json"),
                       {"checkpoint": best, "metric": "val_balanced_accuracy", "sha256": description["sha256"],
                        "value": description["metrics"]["val_balanced_accuracy"]})


def _cause(error: Exception) -> str:
    """The worker's own last line, without Ray's frames around it."""
    workers = getattr(error, "worker_failures", None) or {}
    text = str(next(iter(workers.values()), error)).strip()
    logging.getLogger(__name__).debug("%s", error)
    return text.splitlines()[-1] if text else type(error).__name__
