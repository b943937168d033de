"""What runs the loop: a group of Ray Train, or one task; what workers are given, and what becomes of their run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
import threading
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from fer_ray import augment, backbones, batches, checkpoints, loop, prepare, storage, tracking
from fer_ray.config import Config, ConfigError, TrainConfig, to_dict

# what may differ between two runs of one command that resume each other
RESUMABLE = {"epochs", "patience", "num_workers", "min_workers", "use_gpu", "num_to_keep", "max_failures", "cache_gb",
             "checkpoint_every_steps", "micro_batches", "compile", "precision", "mlflow", "from_tune"}


class TrainingError(RuntimeError):
    """Training ended without a result; the message says why."""


def train(config: Config, prepared: str, side_by_side: int = 1) -> str:
    """Fine-tune on the prepared set at `prepared`; URI of the run folder. The same run name resumes.

    `side_by_side`: trainings that share the machines, so that each takes its part of the cores.

    Raises: ConfigError if the run exists with another configuration or the cluster is too small;
        backbones.WeightsError; checkpoints.CheckpointError; TrainingError.
    """
    wait_for_room(config.train)
    if not is_done(config, prepared):
        with contextlib.nullcontext() if side_by_side > 1 else progress({"": run_uri(config)}, config.train):
            run_loop = run_group if config.train.num_workers > 1 else run_alone
            run_loop(config, load(config, prepared), side_by_side)
    publish(config, run_uri(config), config.name)
    return run_uri(config)


def is_done(config: Config, prepared: str) -> bool:
    """Whether the run has nothing more to train. Raises: ConfigError if it exists with another configuration."""
    run = run_uri(config)
    claim(storage.join(run, "run.json"), train_values(config.train, prepared))
    newest = checkpoints.find_latest(run)
    return bool(newest) and loop.is_finished(checkpoints.load_train_state(newest)["progress"], config.train)


def load(config: Config, prepared: str) -> dict:
    """What workers of any run on this prepared set need, held once per node: `fingerprint`, `state` (reference to the
    state dict to start from) and `sources` (train and val, each a kind and what `loop` opens it with).

    Raises: ConfigError, backbones.WeightsError, checkpoints.CheckpointError.
    """
    import ray

    t, index = config.train, prepare.read_index(prepared)
    if not {"train", "val"} <= set(index["split"]):
        raise ConfigError(f"{prepared}: a split by {config.split.by} without train and val has nothing to train on")
    state = ray.put(start_state(t))
    return {"fingerprint": _fingerprint(prepared), "state": state,
            "sources": {s: _source(prepared, index[index["split"] == s], t, state) for s in ("train", "val")}}


def run_alone(config: Config, loaded: dict, side_by_side: int = 1) -> None:
    """Run the loop of a single worker as a task, and again when its process or node dies.

    A group of one would start two more processes, one after the other, and take processor time from a small machine.

    Raises: TrainingError; ConfigError if the cluster has become too small.
    """
    import ray

    t, run = config.train, run_uri(config)
    storage.delete_file(storage.join(run, "diverged.json"))
    for failures_left in reversed(range(t.max_failures + 1)):
        wait_for_room(t)
        room = worker_resources(ray.cluster_resources(), t, may_grow(ray.nodes()))
        task = ray.remote(fit_alone).options(num_cpus=room["CPU"], num_gpus=room.get("GPU", 0), max_retries=0)
        try:
            ray.get(task.remote(config, loaded, threads(t, side_by_side)))
        except ray.exceptions.RayError as error:
            if not failures_left:
                raise TrainingError(f"{run}: {_last_line(error)}") from error
        else:
            return _refuse_diverged(run)


def fit_alone(config: Config, loaded: dict, threads: int) -> None:
    """The loop in the task of a single worker."""
    place = LonePlace(config)
    loop.fit(given(config, loaded, threads), place)
    place.finish()


def given(config: Config, loaded: dict, threads: int) -> dict:
    """What `loop.fit` takes."""
    return loaded | {"run": run_uri(config), "train": config.train, "config": to_dict(config), "threads": threads}


class LonePlace:
    """The only worker of a run (`loop.Place`). It keeps checkpoints and numbers itself, while the next epoch runs."""

    rank, world = 0, 1

    def __init__(self, config: Config):
        self.run, self.train = run_uri(config), config.train
        self.id = storage.read_json(storage.join(self.run, "run.json"))["id"]
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
        checkpoints.upload(folder, storage.join(self.run, name))
        shutil.rmtree(folder)
        checkpoints.prune(self.run, self.train.num_to_keep)
        tracking.log(self.run, self.id, numbers, self.train.mlflow)


def run_group(config: Config, loaded: dict, side_by_side: int = 1, callbacks: list | None = None) -> None:
    """Run the loop on `num_workers` processes that Ray Train starts, and starts again when they die.

    `callbacks`: of Ray Train, beside our own.

    Raises: TrainingError.
    """
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    t, run = config.train, run_uri(config)
    filesystem, path = storage.resolve(run)
    storage.delete_file(storage.join(run, "diverged.json"))
    _mend_snapshot(run)
    log = tracking.epoch_log(run, storage.read_json(storage.join(run, "run.json"))["id"], t.mlflow)
    trainer = TorchTrainer(
        fit_in_group,
        train_loop_config=given(config, loaded, threads(t, side_by_side)),
        scaling_config=ScalingConfig(num_workers=(t.min_workers, t.num_workers) if t.min_workers else t.num_workers,
                                     use_gpu=t.use_gpu,
                                     resources_per_worker=worker_resources(ray.cluster_resources(), t,
                                                                           may_grow(ray.nodes()))),
        run_config=RunConfig(
            name=config.name, storage_path=os.path.dirname(path), storage_filesystem=filesystem,
            failure_config=FailureConfig(t.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=t.num_to_keep, checkpoint_score_attribute="score"),
            callbacks=[log, *(callbacks or [])],
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"{run}: {_cause(error)}") from error
    _refuse_diverged(run)


def fit_in_group(c: dict) -> None:
    """The loop on a worker of Ray Train."""
    loop.fit(c, GroupPlace(c["run"]))


class GroupPlace:
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
            checkpoints.upload(local.path, storage.join(self.run, name))
            filesystem, path = storage.resolve(storage.join(self.run, name))
            return ray.train.Checkpoint(path, filesystem)

        ray.train.report(numbers, checkpoint=folder and ray.train.Checkpoint.from_directory(folder),
                         checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                         delete_local_checkpoint_after_upload=True, checkpoint_upload_fn=upload)


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


def worker_resources(cluster: dict, t: TrainConfig, grows: bool = False) -> dict:
    """Resources of one worker; `grows`: nodes are started for what is asked for.

    Raises: ConfigError if the cluster cannot hold `num_workers` of them.
    """
    cpus, gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    needed, key = (t.min_workers, "train.min_workers") if t.min_workers else (t.num_workers, "train.num_workers")
    if t.use_gpu and gpus < needed:
        raise ConfigError(f"{key}: {needed} workers need {needed} GPUs, the cluster has {gpus:g}, and {cpus:g} CPUs; "
                          f"start more nodes or use --{f'{key} {gpus:.0f}' if gpus >= 1 else 'train.use_gpu false'}")
    if cpus < 0.5 * needed:
        raise ConfigError(f"{key}: {needed} workers need at least half a CPU each, the cluster has {cpus:g} in all; "
                          f"start more nodes or use --{key} {max(1, int(2 * cpus))}")
    # a little must be left: for the tasks that stream, and for a search's own part of each trial; but where nodes are
    # started, half a CPU each would crowd all workers on the first
    return {"CPU": 1 if grows or cpus > t.num_workers else 0.5, **({"GPU": 1} if t.use_gpu else {})}


def is_room(t: TrainConfig) -> bool:
    """Whether the cluster holds the workers; False: an autoscaler must first start nodes for them.

    Raises: ConfigError if it does not and no nodes will come.
    """
    import ray

    try:
        worker_resources(ray.cluster_resources(), t)
    except ConfigError:
        if not may_grow(ray.nodes()):
            raise
        return False
    return True


def may_grow(nodes: list[dict]) -> bool:
    """Whether an autoscaler looks after these nodes (of `ray.nodes()`): `ray up` and KubeRay write down their group."""
    return any(node["Alive"] and "ray.io/node-group" in node.get("Labels", {}) for node in nodes)


def wait_for_room(t: TrainConfig) -> None:
    """Return when the cluster holds the workers; an autoscaler is asked for them. Raises: ConfigError as `is_room`."""
    import ray.util

    if is_room(t):
        return
    workers = t.min_workers or t.num_workers
    print(f"train: waiting for nodes for {workers} workers of {'a GPU and a CPU' if t.use_gpu else 'a CPU'} each; "
          "`ray status` tells what comes", flush=True)
    wanted = ray.util.placement_group([{"CPU": 1, **({"GPU": 1} if t.use_gpu else {})}] * workers)
    try:
        while not wanted.wait(2):  # seconds; short, for Ctrl-C waits for it
            pass
    finally:
        ray.util.remove_placement_group(wanted)  # the nodes stay until they have been idle for minutes


def threads(t: TrainConfig, side_by_side: int) -> int:
    """Threads of a worker: those of all that share a node must not exceed its cores."""
    import ray

    cores = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return max(1, int(min(cores) // math.ceil(t.num_workers * side_by_side / len(cores))))


def _source(prepared: str, rows, t: TrainConfig, state) -> tuple:
    """How workers get a split: references to its decoded crops, or to the features of those if the head alone is
    trained, or what streaming them needs."""
    if t.layers == "head":
        import ray

        parts = batches.rows_by_part(rows)
        task = ray.remote(_part_features).options(num_gpus=int(t.use_gpu))
        return "features", [task.remote(state, t, max(1, (os.cpu_count() or 1) // len(parts)), prepared, *part)
                            for part in parts]
    if batches.decoded_gb(rows) <= t.cache_gb:
        return "cached", batches.load_refs(prepared, rows)
    if t.sampling == "balanced":
        raise ConfigError(f"train.sampling balanced needs a set that fits into train.cache_gb {t.cache_gb:g}; this one "
                          f"takes {batches.decoded_gb(rows):.1f} GiB; raise it or use train.class_weights")
    return "streamed", (prepared, rows[["row", "part", "expression"]])


@torch.inference_mode()
def _part_features(state: dict, t: TrainConfig, threads: int, prepared: str, *rows) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of the last layer for the centre crops of one part (float32 [n, D]), and labels (int64 [n])."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if t.use_gpu else "cpu")
    model = backbones.build(t.backbone)
    model.load_state_dict(state)
    model.eval().to(device, memory_format=torch.channels_last)
    outputs, grab = [], []
    backbones.head(model, t.backbone).register_forward_pre_hook(lambda _, inputs: grab.append(inputs[0]))
    crops = batches.load_part(prepared, *rows)
    for images, _ in batches.Cached(crops, t.seed, 0, 1).eval_batches(t.batch_size):
        model(augment.to_tensor(images, device))
        outputs.append(grab.pop().float().cpu().numpy())
    return np.concatenate(outputs), crops.labels


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


def publish(config: Config, run: str, name: str) -> None:
    """Write `best/NAME.json`, which names the run's best checkpoint."""
    best = checkpoints.find_best(run)
    description = checkpoints.describe(best)
    storage.write_json(storage.join(config.storage, "best", f"{name}.json"),
                       {"checkpoint": best, "metric": "val_balanced_accuracy", "sha256": description["sha256"],
                        "value": description["metrics"]["val_balanced_accuracy"]})


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
