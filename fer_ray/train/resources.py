"""What a training takes of the cluster, and waiting until the cluster has it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

from fer_ray.config import ConfigError, TrainConfig

# CPU share that long-running workers leave free, so that small tasks can be scheduled beside them: those that read for
# the workers (`reading_task_options`), and the function that a search runs around a trial of several workers.
CPU_RESERVE = 0.01
DEVICES = {"cpu": "CPUs", "cuda": "GPUs"}  # in words


def settle(settings: TrainConfig, side_by_side: int = 1) -> TrainConfig:
    """The settings with the device and the number of workers that `auto` and 0 stand for on this cluster, as it is now.

    `side_by_side`: trainings that are to share the cluster's GPUs.
    """
    import ray

    device = choose_device(settings.device, ray.cluster_resources())
    gpus = int(ray.cluster_resources().get("GPU", 0)) if device == "cuda" else 1
    number = settings.num_workers or max(1, settings.min_workers, min(gpus // side_by_side, settings.batch_size))
    return dataclasses.replace(settings, device=device, num_workers=number)


def describe_workers(settings: TrainConfig) -> str:
    """The workers of a training in words: how many, on what, run by whom. `settings`: of `settle`."""
    number, device = settings.num_workers, DEVICES[settings.device]
    if number == 1:
        return f"one worker on {'a GPU' if settings.device == 'cuda' else device} (a Ray task)"
    at_least = f", {settings.min_workers} at least," if settings.min_workers else ""
    return f"{number} workers{at_least} on {device} (Ray Train)"


def choose_device(asked: str, cluster: dict) -> Literal["cpu", "cuda"]:
    """What a device option (`values.Device`) stands for on a cluster, of `ray.cluster_resources()`."""
    return "cuda" if asked == "cuda" or asked == "auto" and cluster.get("GPU", 0) >= 1 else "cpu"


def device_for(asked: str, key: str) -> Literal["cpu", "cuda"]:
    """Where this cluster is to score, by the value of the option `key`.

    Raises: ConfigError if GPUs are asked for, and there are none and none will come.
    """
    import ray

    cluster = ray.cluster_resources()
    if asked == "cuda" and cluster.get("GPU", 0) < 1 and not has_autoscaler(ray.nodes()):
        raise ConfigError(f"{key}: cuda, but the cluster has no GPU; start a node with one or use --{key} cpu")
    return choose_device(asked, cluster)


def worker_resources(cluster: dict, settings: TrainConfig, grows: bool = False) -> dict[str, float]:
    """CPUs and GPUs of one worker, as Ray asks for them.

    Args:
        cluster: as `ray.cluster_resources()` gives it.
        settings: number of workers and their device, of `settle`.
        grows: whether an autoscaler starts nodes for what is asked for.

    Raises: ConfigError if the cluster cannot hold all workers; with `train.min_workers`, not even those.
    """
    cpus, gpus = cluster.get("CPU", 0), cluster.get("GPU", 0)
    key = "train.min_workers" if settings.min_workers else "train.num_workers"
    needed = settings.min_workers or settings.num_workers
    if settings.device == "cuda" and gpus < needed:
        raise ConfigError(f"{key}: {needed} workers need {needed} GPUs, the cluster has {gpus:g}, and {cpus:g} CPUs; "
                          f"start more nodes or use --{f'{key} {gpus:.0f}' if gpus >= 1 else 'train.device cpu'}")
    if cpus < 0.5 * needed:
        raise ConfigError(f"{key}: {needed} workers need at least half a CPU each, the cluster has {cpus:g} in all; "
                          f"start more nodes or use --{key} {max(1, int(2 * cpus))}")
    # Half a CPU only where a whole one cannot be had: on a cluster that grows, or that has lost a node, Ray would
    # otherwise crowd all workers on the first node that is there.
    worker = {"CPU": (1 if grows or cpus >= needed else 0.5) - CPU_RESERVE}
    return worker | {"GPU": 1} if settings.device == "cuda" else worker


def reading_task_options() -> dict:
    """Options of Ray tasks that make what workers wait for: decoded crops, features.

    Ray makes an object again when the node that held it is lost. The workers may then hold every CPU that is left, and
    wait for that object: so these tasks ask for nearly no CPU. To keep no more of them than there are CPUs from running
    at once, each asks for the memory that falls to one CPU.
    """
    import ray

    per_cpu = [node["Resources"]["memory"] / node["Resources"]["CPU"] for node in ray.nodes()
               if node["Alive"] and node["Resources"].get("CPU")]
    return {"num_cpus": CPU_RESERVE / 10, "memory": int(min(per_cpu, default=0))}


def task_count(rows: int, min_rows: int, max_rows: int | None = None) -> int:
    """Number of tasks to work on so many rows: one for each CPU of the cluster, but each with at least `min_rows`.

    `max_rows`: of a task, about; an autoscaler starts nodes for the tasks that wait.
    """
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    return max(1, min(rows // min_rows, max(cpus, rows // max_rows if max_rows else 0)))


def run_in_tasks(make: Callable, items: list[tuple], count: int, **options) -> list:
    """Start `make(*item)` for each item, by `count` Ray tasks with these options; an object reference for each item.

    Not by one task for each item: for tasks that wait, Ray starts more processes than there are CPUs, just when the
    training worker's own process starts.
    """
    import ray

    count, references = min(count, len(items)), cast(list, [None] * len(items))
    # not by `options`: a GPU that a decorator names makes the process end with its task, and give its memory back
    task: Any = ray.remote(**options)(_make_each) if options else ray.remote(_make_each)
    for first in range(count):
        own = items[first::count]
        made: Any = task.options(num_returns=len(own)).remote(make, own)
        references[first::count] = made if len(own) > 1 else [made]  # of one result, Ray gives the bare reference
    return references


def _make_each(make: Callable, items: list[tuple]) -> Iterator:
    for item in items:
        yield make(*item)


def are_available(settings: TrainConfig) -> bool:
    """Whether the cluster holds the workers; False if an autoscaler must first start nodes for them.

    Raises: ConfigError if it does not hold them and no nodes will come.
    """
    import ray

    try:
        worker_resources(ray.cluster_resources(), settings)
    except ConfigError:
        if not has_autoscaler(ray.nodes()):
            raise
        return False
    return True


def has_autoscaler(nodes: list[dict]) -> bool:
    """Whether an autoscaler looks after these nodes (of `ray.nodes()`).

    Ray has no public way to ask. But `ray up` and KubeRay label each node with its group.
    """
    return any(node["Alive"] and "ray.io/node-group" in node.get("Labels", {}) for node in nodes)


def wait_for_workers(settings: TrainConfig) -> None:
    """Return when the cluster holds the workers; an autoscaler is asked for them.

    Raises: ConfigError as `are_available`.
    """
    import ray.util

    if are_available(settings):
        return
    workers, gpu = settings.min_workers or settings.num_workers, {"GPU": 1} if settings.device == "cuda" else {}
    print(f"train: waiting for nodes for {workers} workers of {'a GPU and a CPU' if gpu else 'a CPU'} each; "
          "`ray status` tells what comes", flush=True)
    # an autoscaler starts nodes for placement groups that are pending
    wanted = ray.util.placement_group([{"CPU": 1, **gpu}] * workers)
    try:
        while not wanted.wait(2):  # seconds; short, since Ctrl-C is not heard during one wait
            pass
    finally:
        ray.util.remove_placement_group(wanted)  # the nodes stay: they are stopped only after minutes without work


def threads_per_worker(settings: TrainConfig, side_by_side: int) -> int:
    """CPU threads of a worker, so that those of all workers on a node are not more than its cores.

    `side_by_side`: trainings that run at the same time.
    """
    import ray

    cores = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    workers_per_node = math.ceil(settings.num_workers * side_by_side / len(cores))
    return max(1, int(min(cores) // workers_per_node))
