"""What a training takes of the cluster, and waiting until the cluster has it."""

from __future__ import annotations

import math
from collections.abc import Callable

from fer_ray.config import ConfigError, TrainConfig

# CPU share that long-running workers leave free, so that small tasks can be scheduled beside them: those that read for
# the workers (`reading_task_options`), and the function that a search runs around a trial of several workers
CPU_RESERVE = 0.01


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
    # half a CPU each would crowd all workers on the first of the nodes that are started, or on the last that is left
    return {"CPU": (1 if grows or cpus >= needed else 0.5) - CPU_RESERVE, **({"GPU": 1} if t.use_gpu else {})}


def reading_task_options() -> dict:
    """Options of tasks that make what workers wait for.

    When a node is lost, its part is made again while workers may hold every CPU that is left, waiting for it: so these
    tasks take nearly none. For that no more of them run at once than there are CPUs, each takes the memory of one.
    """
    import ray

    shares = [node["Resources"]["memory"] / node["Resources"]["CPU"] for node in ray.nodes()
              if node["Alive"] and node["Resources"].get("CPU")]
    return {"num_cpus": CPU_RESERVE / 10, "memory": int(min(shares, default=0))}


def task_count(rows: int, least: int) -> int:
    """Into how many tasks work on so many rows is cut: one a CPU of the cluster, of at least so many rows each."""
    import ray

    return max(1, min(rows // least, int(ray.cluster_resources().get("CPU", 1))))


def run_in_tasks(make: Callable, items: list[tuple], count: int, **options) -> list:
    """References to `make(*item)` for each item, made by `count` tasks with these options of Ray.

    Not by a task an item: Ray starts processes for tasks that wait, just when the worker's own process starts.
    """
    import ray

    task, refs, count = ray.remote(_each), [None] * len(items), min(count, len(items))
    for first in range(count):
        own = items[first::count]
        made = task.options(num_returns=len(own), **options).remote(make, own)
        refs[first::count] = made if len(own) > 1 else [made]
    return refs


def _each(make: Callable, items: list[tuple]):
    for item in items:
        yield make(*item)


def are_available(t: TrainConfig) -> bool:
    """Whether the cluster holds the workers; False: an autoscaler must first start nodes for them.

    Raises: ConfigError if it does not and no nodes will come.
    """
    import ray

    try:
        worker_resources(ray.cluster_resources(), t)
    except ConfigError:
        if not has_autoscaler(ray.nodes()):
            raise
        return False
    return True


def has_autoscaler(nodes: list[dict]) -> bool:
    """Whether an autoscaler looks after these nodes (of `ray.nodes()`): `ray up` and KubeRay write down their group."""
    return any(node["Alive"] and "ray.io/node-group" in node.get("Labels", {}) for node in nodes)


def wait_for_workers(t: TrainConfig) -> None:
    """Return when the cluster holds the workers; an autoscaler is asked for them.

    Raises: ConfigError as `are_available`.
    """
    import ray.util

    if are_available(t):
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


def threads_per_worker(t: TrainConfig, side_by_side: int) -> int:
    """Threads of a worker: those of all that share a node must not exceed its cores."""
    import ray

    cores = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return max(1, int(min(cores) // math.ceil(t.num_workers * side_by_side / len(cores))))
