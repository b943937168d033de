"""`fit`, the loop that every worker runs, and the Ray Train trainer around it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import tempfile
import threading
import time
import uuid

import torch
import torch.distributed as dist
import torch.nn.functional as F

from fer_ray import augment, backbones, batches, checkpoints, metrics, prepare, storage, tracking
from fer_ray.config import Config, ConfigError, TrainConfig, to_dict
from fer_ray.manifest import EXPRESSIONS

NUM_CLASSES = len(EXPRESSIONS)
# what may differ between two runs of one command that resume each other
RESUMABLE = {"epochs", "patience", "num_workers", "min_workers", "use_gpu", "num_to_keep", "max_failures", "cache_gb",
             "checkpoint_every_steps", "micro_batches", "compile", "precision", "mlflow"}


class TrainingError(RuntimeError):
    """Training ended without a result; the message says why."""


def train(config: Config, prepared: str, side_by_side: int = 1) -> str:
    """Fine-tune on the prepared set at `prepared`; URI of the run folder. The same run name resumes.

    `side_by_side`: trainings that share the machines, so that each takes its part of the cores.

    Raises: ConfigError if the run exists with another configuration or the cluster is too small;
        backbones.WeightsError; checkpoints.CheckpointError; TrainingError.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    t = config.train
    run = run_uri(config)
    fingerprint = storage.read_json(storage.join(prepared, "prepared.json"))["fingerprint"]
    run_id = _claim(run, t, fingerprint)
    newest = checkpoints.find_latest(run)
    if newest and is_finished(checkpoints.load_train_state(newest)["progress"], t):
        _publish(config, run)
        return run
    storage.delete_file(storage.join(run, "diverged.json"))
    _mend_snapshot(run)
    resources = worker_resources(ray.cluster_resources(), t)
    index = prepare.read_index(prepared)
    if not {"train", "val"} <= set(index["split"]):
        raise ConfigError(f"{prepared}: a split by {config.split.by} without train and val has nothing to train on")
    loop_config = {
        "run": run, "train": t, "config": to_dict(config), "fingerprint": fingerprint,
        # read once; every node keeps one copy in shared memory, whatever the number of workers on it
        "state": ray.put(start_state(t)),
        # workers may share a node: the threads of all must not exceed its cores
        "threads": max(1, int(ray.cluster_resources()["CPU"] / len(ray.nodes()) // (t.num_workers * side_by_side))),
        "sources": {split: _source(prepared, index[index["split"] == split], t) for split in ("train", "val")},
    }
    trainer = TorchTrainer(
        fit,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(num_workers=(t.min_workers, t.num_workers) if t.min_workers else t.num_workers,
                                     use_gpu=t.use_gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=config.name, storage_path=os.path.dirname(run), failure_config=FailureConfig(t.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=t.num_to_keep, checkpoint_score_attribute="score"),
            callbacks=[tracking.epoch_log(run, run_id, t.mlflow)],
        ),
    )
    try:
        with contextlib.nullcontext() if side_by_side > 1 else progress({"": run}, t):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"{run}: {_cause(error)}") from error
    diverged = storage.join(run, "diverged.json")
    if storage.exists(diverged):
        raise TrainingError(f"{run}: {storage.read_json(diverged)['reason']}")
    _publish(config, run)
    return run


@functools.lru_cache(maxsize=1)  # a job asks before Ray starts and again when it trains
def start_state(t: TrainConfig) -> dict[str, torch.Tensor]:
    """State dict that training starts from: ImageNet's, random, a file's, or that of one of our own checkpoints.

    Raises: backbones.WeightsError, checkpoints.CheckpointError.
    """
    if not storage.exists(storage.join(t.weights, "model.json")):
        return backbones.initial_state(t.backbone, t.weights, t.seed)
    other = checkpoints.describe(t.weights)["backbone"]
    if other != t.backbone:
        raise backbones.WeightsError(f"train.weights {t.weights}: is a checkpoint of {other}, not of {t.backbone}")
    return checkpoints.load_weights(t.weights)


def worker_resources(cluster: dict, t: TrainConfig) -> dict:
    """Resources of one worker. Raises: ConfigError if the cluster cannot hold `num_workers` of them."""
    cpus = cluster.get("CPU", 0)
    needed = t.min_workers or t.num_workers
    if t.use_gpu and cluster.get("GPU", 0) < needed:
        raise ConfigError(f"train.num_workers: {needed} workers need {needed} GPUs, the cluster has "
                          f"{cluster.get('GPU', 0):g}; lower it or set train.use_gpu false")
    if cpus < 0.5 * needed:
        raise ConfigError(f"train.num_workers: {needed} workers need at least half a CPU each, the cluster has "
                          f"{cpus:g}")
    return {"CPU": 1 if cpus >= t.num_workers else 0.5, **({"GPU": 1} if t.use_gpu else {})}


# --- on every worker -----------------------------------------------------------------------------------


def fit(c: dict) -> None:
    """What every worker runs: train an epoch, validate, keep a checkpoint, until the epochs or the patience end.

    All that is random is a function of (seed, epoch, step, rank), so a resumed run ends with the same weights.
    """
    import ray.train.torch

    t: TrainConfig = c["train"]
    begun = time.time()
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(c["threads"])
    device = ray.train.torch.get_device()
    model, progress, optimizer_state = _resume(c, t)
    model = model.to(device, memory_format=torch.channels_last)
    sources = {split: _open(*c["sources"][split], t, rank, world, c["threads"]) for split in ("train", "val")}
    network, to_input = model, augment.to_tensor
    if t.layers == "head":
        sources = {s: _features(model, t, source, rank, world, device) for s, source in sources.items()}
        network, to_input = backbones.head(model, t.backbone), _to_device
    train_data, val_data = sources["train"], sources["val"]
    optimizer = sgd(network, t)
    if optimizer_state:
        optimizer.load_state_dict(optimizer_state)
    forward = torch.compile(network) if t.compile else network
    ddp = ray.train.torch.prepare_model(forward) if world > 1 else forward
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(t, device))
    weights = loss_weights(train_data.labels, t.class_weights).to(device)
    batch_size = min(t.batch_size, len(train_data.labels))

    while not is_finished(progress, t):
        epoch, first = progress["epoch"], progress["step"]
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, t)
        network.train()
        total = torch.tensor(progress["total"], dtype=torch.float64).div(world).to(device)  # loss, images
        clock = Clock()
        steps = train_data.train_steps(epoch, t.batch_size, first, t.sampling)
        for step, (images, labels) in enumerate(clock.waits(steps), start=first):
            torch.manual_seed(hash((t.seed, epoch, step, rank)) % 2**63)  # dropout
            loss = train_step(ddp, optimizer, to_input(images, device), _to_device(labels, device), weights,
                              batch_size / world, t, autocast)
            total += torch.stack([loss.double(), loss.new_tensor(len(labels), dtype=torch.float64)])
            if t.checkpoint_every_steps and (step + 1) % t.checkpoint_every_steps == 0:
                so_far = all_sum(total, world)
                if not math.isfinite(so_far[0]):
                    break
                report(model, optimizer, progress | {"step": step + 1, "total": so_far.tolist()}, None, c, rank)
        total = all_sum(total, world)
        seconds = clock.seconds()
        val_loss, confusion = validate(network, val_data, t.batch_size, world, to_input, device, autocast)
        train_loss = float(total[0] / total[1])
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            return _diverged(c, epoch, train_loss, val_loss, rank)
        seen = float(total[1]) - progress["total"][1]
        result = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss,
                  "val_accuracy": float(confusion.trace() / confusion.sum()),
                  "val_balanced_accuracy": metrics.balanced_accuracy(confusion), "lr": lr_at(epoch, t),
                  "images": int(total[1]), "images_per_s": seen / seconds, "train_s": seconds,
                  "data_wait_s": clock.waited, "workers": world, "loop_begun_at": begun,
                  "first_batch_at": clock.first_at, "ended_at": time.time()}
        if result["val_balanced_accuracy"] > progress["best"]:
            progress |= {"best": result["val_balanced_accuracy"], "best_epoch": epoch}
        progress |= {"epoch": epoch + 1, "step": 0, "total": [0.0, 0.0], "history": [*progress["history"], result]}
        report(model, optimizer, progress, result, c, rank)


def is_finished(progress: dict, t: TrainConfig) -> bool:
    """Whether the epochs, or the patience, have run out."""
    return progress["epoch"] >= t.epochs or progress["epoch"] - progress["best_epoch"] > t.patience


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
def validate(model, data, batch_size: int, world: int, to_input, device, autocast):
    """Mean loss and confusion matrix (int64 [8, 8], rows true), exact: each image counts once, on one worker."""
    model.eval()
    sums = torch.zeros(NUM_CLASSES**2 + 1, dtype=torch.float64, device=device)
    for images, labels in data.eval_batches(batch_size):
        y = _to_device(labels, device)
        with autocast:
            logits = model(to_input(images, device))
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


def report(model, optimizer, progress: dict, result: dict | None, c: dict, rank: int) -> None:
    """Keep a checkpoint (rank 0) and tell Ray the epoch's numbers (every rank: it is a barrier).

    The upload goes on while the next epoch runs. Within an epoch there is no `result`, and the lowest score lets Ray
    drop that checkpoint when the next one is there.
    """
    import ray.train

    checkpoint = None
    if rank == 0:
        folder = tempfile.mkdtemp(prefix="fer_ray_")
        description = {"progress": {k: progress[k] for k in ("epoch", "step")}, "at_end_of_epoch": result is not None,
                       "parameters": sum(p.numel() for p in model.parameters()), "metrics": result or {},
                       "history": progress["history"], "config": c["config"],
                       "data_fingerprint": c["fingerprint"], "versions": {"torch": torch.__version__}}
        checkpoints.save(folder, c["train"].backbone, model,
                         {"optimizer": optimizer.state_dict(), "progress": progress}, description)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
    score = result["val_balanced_accuracy"] if result else -1.0
    ray.train.report((result or {}) | {"score": score}, checkpoint=checkpoint,
                     checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                     delete_local_checkpoint_after_upload=True)


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
    return torch.optim.SGD(groups, lr=lr_at(0, t), momentum=t.momentum, nesterov=t.nesterov, fused=True)


def peak_lr(t: TrainConfig) -> float:
    """The highest learning rate; by the linear scaling rule (Goyal et al. 2017) if wished."""
    return t.lr * t.batch_size / 256 if t.lr_per_256 else t.lr


def lr_at(epoch: int, t: TrainConfig) -> float:
    """Learning rate of an epoch (from 0): linear warm-up, then the schedule."""
    peak = peak_lr(t)
    if epoch < t.warmup_epochs:
        return peak * (epoch + 1) / (t.warmup_epochs + 1)
    if t.schedule == "step":
        return peak * 0.1 ** ((epoch - t.warmup_epochs) // t.step_epochs)
    if t.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * (epoch - t.warmup_epochs) / max(1, t.epochs - t.warmup_epochs))) / 2
    return peak


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

    model = backbones.build(t.backbone)
    newest = checkpoints.find_latest(c["run"])
    if newest is None:
        model.load_state_dict(ray.get(c["state"]))
        return model, {"epoch": 0, "step": 0, "total": [0.0, 0.0], "best": -1.0, "best_epoch": -1, "history": []}, None
    model.load_state_dict(checkpoints.load_weights(newest))
    saved = checkpoints.load_train_state(newest)
    return model, saved["progress"], saved["optimizer"]


def _open(kind: str, content, t: TrainConfig, rank: int, world: int, threads: int):
    """The source of batches that `_source` prepared, on this worker."""
    if kind == "streamed":
        return batches.Streamed(*content, t.seed, rank, world)
    # a thread keeps ahead of a CPU; a GPU needs all that its worker has
    return batches.Cached(batches.get(content), t.seed, rank, world, threads if t.use_gpu else 1)


@torch.inference_mode()
def _features(model, t: TrainConfig, source, rank: int, world: int, device) -> batches.Features:
    """The inputs of the last layer for every image of a source, each computed once, on one worker."""
    model.eval()
    outputs, grab = [], []
    hook = backbones.head(model, t.backbone).register_forward_pre_hook(lambda _, inputs: grab.append(inputs[0]))
    for images, labels in source.eval_batches(t.batch_size):
        model(augment.to_tensor(images, device))
        outputs.append((grab.pop().float().cpu(), torch.from_numpy(labels)))
    hook.remove()
    mine = tuple(torch.cat(column) for column in zip(*outputs, strict=True))
    shares: list = [mine]
    if world > 1:
        shares = [None] * world
        dist.all_gather_object(shares, mine)
    features, labels = (torch.cat(column).numpy() for column in zip(*shares, strict=True))
    return batches.Features(features, labels, t.seed, rank, world)


def _to_device(values, device) -> torch.Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)


def _diverged(c: dict, epoch: int, train_loss: float, val_loss: float, rank: int) -> None:
    """Ends the run without an exception, which Ray would only answer with restarts that diverge again."""
    if rank == 0:
        t = c["train"]
        storage.write_json(storage.join(c["run"], "diverged.json"), {"epoch": epoch, "reason": (
            f"the loss is {train_loss} (validation {val_loss}) in epoch {epoch + 1}: train.lr {t.lr} is too high for "
            f"momentum {t.momentum}; the checkpoints of the epochs before are kept")})


# --- around the workers --------------------------------------------------------------------------------


def _source(prepared: str, rows, t: TrainConfig) -> tuple:
    """How workers get a split: references to its decoded crops, or what streaming them needs."""
    if batches.decoded_gb(rows) <= t.cache_gb:
        return "cached", batches.load_refs(prepared, rows)
    if t.sampling == "balanced":
        raise ConfigError(f"train.sampling balanced needs a set that fits into train.cache_gb {t.cache_gb:g}; this one "
                          f"takes {batches.decoded_gb(rows):.1f} GiB; raise it or use train.class_weights")
    return "streamed", (prepared, rows[["row", "part", "expression"]])


def run_uri(config: Config) -> str:
    """The folder of the run that `config` names."""
    return storage.absolute(storage.join(config.storage, "runs", config.name))


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
                          f"{e['val_balanced_accuracy']:.3f}  {e['images_per_s']:.0f} images/s", flush=True)
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


def _claim(run: str, t: TrainConfig, data_fingerprint: str) -> str:
    """The run's id. A run name belongs to one configuration and one prepared set: resuming must never mix two."""
    values = {"data": data_fingerprint,
              **{f"train.{k}": v for k, v in dataclasses.asdict(t).items() if k not in RESUMABLE}}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    file = storage.join(run, "run.json")
    if not storage.exists(file):
        storage.write_json(file, {"id": uuid.uuid4().hex, "digest": digest, "values": values})
    old = storage.read_json(file)
    if old["digest"] != digest:
        changed = [f"{k} (was {old['values'].get(k)!r}, now {v!r})" for k, v in values.items()
                   if old["values"].get(k) != v]
        raise ConfigError(f"{run} was trained with other settings: {', '.join(changed)}; choose another --name "
                          "or remove that folder")
    return old["id"]


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
    return text.splitlines()[-1] if text else type(error).__name__
