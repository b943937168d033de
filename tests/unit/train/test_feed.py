"""Where a training's images come from, and what it says about that."""

import dataclasses

import pytest

from fer_ray.config import ConfigError, TrainConfig
from fer_ray.train import inputs


def node(cpus: int, gpus: int = 0) -> dict:
    return {"Alive": True, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


HEAD = {"Alive": True, "Resources": {}}


@pytest.mark.parametrize(("train", "size_gb", "nodes", "feed", "why"), [
    ({}, 3, [node(2)], "memory", "3.0 GiB fit into train.cache_gb 8, and every node trains"),
    ({}, 9, [node(2)], "stream", "9.0 GiB do not fit into train.cache_gb 8"),
    ({}, 3, [node(2), node(2), HEAD], "stream", "1 nodes without a training worker"),
    ({"num_workers": 2}, 3, [node(2), node(2), HEAD], "memory", "every node trains"),
    ({"device": "cuda"}, 6, [node(8, 1), node(16), HEAD], "stream", "1 nodes without a training worker"),
    ({"device": "cuda"}, 3, [node(8, 1), node(16), HEAD], "memory", "3.0 GiB fit into a GPU"),
    ({"device": "cuda"}, 6, [node(8, 1), {"Alive": False, "Resources": {"CPU": 9}}], "memory", "every node trains"),
    ({"sampling": "balanced"}, 3, [node(2), node(2)], "memory", "train.sampling is balanced"),
    ({"feed": "memory"}, 3, [node(2), node(2)], "memory", "as train.feed says"),
    ({"feed": "stream"}, 3, [node(2)], "stream", "as train.feed says")])
def test_the_feed_follows_the_cluster_and_the_set(train, size_gb, nodes, feed, why):
    found = inputs.choose_feed(TrainConfig(**{"device": "cpu", "num_workers": 1} | train), size_gb, nodes)
    assert found[0] == feed and why in found[1]


@pytest.mark.parametrize(("train", "words"), [({"feed": "memory"}, "train.feed memory: .*9.0 GiB do not fit"),
                                              ({"sampling": "balanced"}, "train.sampling balanced: .*class_weights")])
def test_what_cannot_be_had_is_refused(train, words):
    with pytest.raises(ConfigError, match=words):
        inputs.choose_feed(TrainConfig(**train), 9, [node(2)])


def test_a_number_format_that_the_processor_lacks_is_refused(monkeypatch):
    settings = TrainConfig(precision="bf16", device="cpu")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    inputs.check_precision(settings)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    for other in ({"precision": "auto"}, {"precision": "fp32"}, {"device": "cuda"}):
        inputs.check_precision(dataclasses.replace(settings, **other))
    with pytest.raises(ConfigError, match="lacks AVX-512.*--train.precision auto"):
        inputs.check_precision(settings)
