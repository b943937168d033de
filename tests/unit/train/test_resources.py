"""What a training asks of a cluster, and what it says when that is not there."""

import pytest
import ray

from fer_ray.config import ConfigError, TrainConfig
from fer_ray.train import resources


@pytest.mark.parametrize(("cluster", "train", "words"), [
    ({"CPU": 2}, {"num_workers": 8}, "train.num_workers: 8 workers need at least half a CPU each, the cluster has 2 in "
                                     "all; start more nodes or use --train.num_workers 4"),
    ({}, {}, "1 workers need at least half a CPU each, the cluster has 0 in all"),
    ({"CPU": 2}, {"num_workers": 2, "use_gpu": True},
     "2 workers need 2 GPUs, the cluster has 0, and 2 CPUs; start more nodes or use --train.use_gpu false"),
    ({"CPU": 2, "GPU": 1}, {"num_workers": 4, "use_gpu": True},
     "4 workers need 4 GPUs, the cluster has 1, and 2 CPUs; start more nodes or use --train.num_workers 1"),
    ({"CPU": 9, "GPU": 1}, {"num_workers": 4, "min_workers": 2, "use_gpu": True},
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


def test_workers_share_the_cores_of_a_node(monkeypatch):
    def threads(*cores, **train):
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": c >= 0, "Resources": {"CPU": c} if c > 0 else {}}
                                                   for c in cores])
        return resources.threads_per_worker(TrainConfig(**train), 1)

    assert threads(8) == 8 and threads(8, num_workers=4) == 2 and threads(1, num_workers=4) == 1
    assert threads(0, 8, 8, -1, num_workers=2) == 8  # a head without job work, two nodes and one that is gone
    assert threads(4, 8, num_workers=3) == 2
