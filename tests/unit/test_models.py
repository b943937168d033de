import numpy as np
import pytest
import torch

from fer_ray.config import ConfigError, TrainConfig
from fer_ray.model import backbones
from fer_ray.train import loop, resources, schedule


def test_schedule_and_class_weights():
    assert schedule.lr_at(5, TrainConfig(lr=0.2, schedule="cosine", epochs=10)) == pytest.approx(0.1)
    warm = TrainConfig(lr=0.4, warmup_epochs=3, epochs=13, schedule="step", step_epochs=5)
    assert [schedule.lr_at(e, warm) for e in (0, 1, 2, 3, 7, 8)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.04])
    assert schedule.lr_at(0, TrainConfig(lr=0.1, batch_size=64, lr_per_256=True)) == pytest.approx(0.025)
    labels = np.array([0] * 6 + [1] * 2)
    weights = loop.loss_weights(labels, "balanced")
    assert weights[1] == pytest.approx(3 * weights[0]) and weights[2] == 0
    assert weights[labels].mean() == pytest.approx(1)


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
    import ray

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
    import ray

    def threads(*cores, **train):
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": c >= 0, "Resources": {"CPU": c} if c > 0 else {}}
                                                   for c in cores])
        return resources.threads_per_worker(TrainConfig(**train), 1)

    assert threads(8) == 8 and threads(8, num_workers=4) == 2 and threads(1, num_workers=4) == 1
    assert threads(0, 8, 8, -1, num_workers=2) == 8  # a head without job work, two nodes and one that is gone
    assert threads(4, 8, num_workers=3) == 2


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    import contextlib

    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 4, 5])
    ended = []
    for parts in (1, 3):
        torch.manual_seed(1)
        model = backbones.build("timm:test_convnext")
        t = TrainConfig(lr=0.1, micro_batches=parts, clip_norm=0.5, nesterov=True, weight_decay=0.1)
        loop.train_step(model, loop.sgd(model, t), images, labels, torch.ones(8), 6, t,
                        contextlib.nullcontext())
        ended.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*ended, atol=1e-6)


def test_weight_decay_spares_biases_and_norms():
    decayed, spared = loop.sgd(backbones.build("resnet18"), TrainConfig(weight_decay=0.1)).param_groups
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in spared["params"])
