"""What a training asks of a cluster, and what it says when that is not there."""

import pytest
import ray

from fer_ray.config import ConfigError, TrainConfig
from fer_ray.train import resources


@pytest.mark.parametrize(("cluster", "train", "words"), [
    ({"CPU": 2}, {"num_workers": 8}, "train.num_workers: 8 workers need at least half a CPU each, the cluster has 2 in "
                                     "all; start more nodes or use --train.num_workers 4"),
    ({}, {"num_workers": 1}, "1 workers need at least half a CPU each, the cluster has 0 in all"),
    ({"CPU": 2}, {"num_workers": 2, "device": "cuda"},
     "2 workers need 2 GPUs, the cluster has 0, and 2 CPUs; start more nodes or use --train.device cpu"),
    ({"CPU": 2, "GPU": 1}, {"num_workers": 4, "device": "cuda"},
     "4 workers need 4 GPUs, the cluster has 1, and 2 CPUs; start more nodes or use --train.num_workers 1"),
    ({"CPU": 9, "GPU": 1}, {"num_workers": 4, "min_workers": 2, "device": "cuda"},
     "train.min_workers: 2 workers need 2 GPUs")])
def test_a_cluster_that_is_too_small_is_named_at_once(monkeypatch, cluster, train, words):
    t = TrainConfig(**train)
    with pytest.raises(ConfigError, match=words):
        resources.worker_resources(cluster, t)
    node = {"Alive": True, "Labels": {"ray.io/node-id": "1"}}
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    monkeypatch.setattr(ray, "nodes", lambda: [node, {"Alive": False, "Labels": {"ray.io/node-group": "gpu"}}])
    with pytest.raises(ConfigError, match=words):
        resources.are_available(t)
    monkeypatch.setattr(ray, "nodes", lambda: [node | {"Labels": {"ray.io/node-group": "head"}}])
    assert not resources.are_available(t)  # an autoscaler may start what is missing


def test_auto_takes_all_gpus_of_the_cluster_and_what_is_asked_for_stays(monkeypatch):
    def settled(cluster, side_by_side=1, **train):
        monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
        settings = resources.settle(TrainConfig(**train), side_by_side)
        return settings.device, settings.num_workers

    gpus = {"CPU": 16, "GPU": 8}
    assert settled(gpus) == ("cuda", 8) and settled({"CPU": 16}) == ("cpu", 1)
    assert settled(gpus, device="cpu") == ("cpu", 1) and settled(gpus, num_workers=2) == ("cuda", 2)
    assert settled(gpus, side_by_side=3) == ("cuda", 2) and settled(gpus, side_by_side=16) == ("cuda", 1)
    assert settled(gpus, batch_size=4) == ("cuda", 4)  # a worker without images would wait for nothing
    assert settled({"CPU": 16}, device="cuda") == ("cuda", 1)  # refused by `worker_resources`, or it waits for nodes


@pytest.mark.parametrize(("key", "node", "comes"), [("evaluate.device", {}, False), ("predict.device", {}, False),
                                                    ("predict.device", {"ray.io/node-group": "head"}, True)])
def test_scoring_on_gpus_that_are_not_there_is_refused(monkeypatch, key, node, comes):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": node}])
    assert resources.device_for("auto", key) == resources.device_for("cpu", key) == "cpu"
    if comes:
        assert resources.device_for("cuda", key) == "cuda"
    else:
        with pytest.raises(ConfigError, match=f"{key}: cuda, but the cluster has no GPU.*--{key} cpu"):
            resources.device_for("cuda", key)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2, "GPU": 1})
    assert resources.device_for("auto", key) == "cuda"


@pytest.mark.parametrize(("cpus", "rows", "tasks"), [(2, 250, 2), (8, 250, 2), (2, 50, 1), (0, 50_000, 25),
                                                     (2, 50_000, 25)])
def test_scoring_asks_for_tasks_by_the_set_also_of_a_cluster_without_nodes(monkeypatch, cpus, rows, tasks):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus} if cpus else {"memory": 1})
    assert resources.task_count(rows, 100, 2000) == tasks


def test_workers_share_the_cores_of_a_node(monkeypatch):
    def threads(*cores, **train):
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": c >= 0, "Resources": {"CPU": c} if c > 0 else {}}
                                                   for c in cores])
        return resources.threads_per_worker(TrainConfig(**{"num_workers": 1} | train), 1)

    assert threads(8) == 8 and threads(8, num_workers=4) == 2 and threads(1, num_workers=4) == 1
    assert threads(0, 8, 8, -1, num_workers=2) == 8  # a head without job work, two nodes and one that is gone
    assert threads(4, 8, num_workers=3) == 2


def test_the_process_of_a_gpu_task_ends_with_it_and_gives_its_memory_back(monkeypatch):
    asked = []
    monkeypatch.setattr("ray.remote_function.RemoteFunction._remote",
                        lambda self, args, kwargs, **options: asked.append((self._max_calls, options["num_gpus"])))
    for gpus in (1, 0):
        resources.run_in_tasks(str, [("a",)], 1, num_cpus=1, num_gpus=gpus)
    assert asked == [(1, 1), (0, 0)]  # 0: any number of calls
