import numpy as np
import pytest
import torch

from fer_ray.config import ConfigError, TrainConfig
from fer_ray.model import backbones, checkpoints
from fer_ray.train import loop, resources, schedule


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "efficientnet_lite0"])
def test_new_head_over_the_body(name):
    model = backbones.build(name).eval()
    images = torch.zeros(1, 3, 224, 224)
    assert model(images).shape == (1, 8)
    assert backbones.strip_head(model, name)(images).shape[1] > 8


def test_lite0_takes_the_real_imagenet_weights_below_a_seeded_head():
    first, second = (backbones.initial_state("efficientnet_lite0", "imagenet", s) for s in (0, 1))
    assert torch.equal(first["_conv_stem.weight"], second["_conv_stem.weight"])
    assert not torch.equal(first["_fc.weight"], second["_fc.weight"])
    assert not torch.equal(backbones.initial_state("efficientnet_lite0", "none", 0)["_conv_stem.weight"],
                           first["_conv_stem.weight"])


def test_weights_from_a_torchvision_style_file(tmp_path):
    import torchvision

    torch.manual_seed(7)
    saved = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(saved, tmp_path / "w.pth")
    state = backbones.initial_state("resnet18", str(tmp_path / "w.pth"), 0)
    assert torch.equal(state["conv1.weight"], saved["conv1.weight"]) and state["fc.weight"].shape == (8, 512)
    with pytest.raises(backbones.WeightsError, match="does not fit alexnet"):
        backbones.initial_state("alexnet", str(tmp_path / "w.pth"), 0)
    with pytest.raises(backbones.WeightsError, match="not 'imagenet', 'none' or a readable file"):
        backbones.initial_state("alexnet", str(tmp_path / "gone.pth"), 0)


def test_missing_imagenet_weights_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(backbones.WeightsError, match=r"alexnet-owt-7be5be79.pth.*checkpoints"):
        backbones.initial_state("alexnet", "imagenet", 0)


def test_checkpoint_round_trip_and_damage(tmp_path):
    model = backbones.build("resnet18").eval()
    folder = tmp_path / "checkpoint_1"
    folder.mkdir()
    checkpoints.save(str(folder), "resnet18", model, {"epoch": 3},
                     {"metrics": {"val_balanced_accuracy": 0.5}, "history": [{"epoch": 0}], "at_end_of_epoch": True,
                      "progress": {"epoch": 1, "step": 0}})
    (tmp_path / "checkpoint_2").mkdir()  # died before model.json was written
    assert checkpoints.find_best(str(tmp_path)).endswith("checkpoint_1")
    loaded, description = checkpoints.load_model(str(folder))
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(loaded(images), model(images)) and description["backbone"] == "resnet18"
    assert checkpoints.load_train_state(str(folder)) == {"epoch": 3}
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(checkpoints.CheckpointError, match="sha256 differs"):
        checkpoints.load_model(str(folder))


def test_the_older_checkpoint_serves_where_the_newest_is_damaged(tmp_path):
    model = backbones.build("resnet18")
    for epoch in (1, 2, 3):
        folder = tmp_path / f"checkpoint_{9 - epoch}"  # names say nothing of the order
        folder.mkdir()
        checkpoints.save(str(folder), "resnet18", model, {"epoch": epoch},
                         {"metrics": {"val_balanced_accuracy": 0.1 * epoch}, "history": [{}] * epoch,
                          "at_end_of_epoch": epoch < 3, "progress": {"epoch": epoch, "step": 0}})
    assert checkpoints.find_latest(str(tmp_path)).endswith("checkpoint_6")
    assert checkpoints.find_best(str(tmp_path)).endswith("checkpoint_7")  # 3 is in the middle of an epoch
    for victim, name in (("checkpoint_6", "train_state.pt"), ("checkpoint_7", "model.safetensors")):
        file = tmp_path / victim / name
        file.write_bytes(file.read_bytes()[:1000])
    assert checkpoints.find_latest(str(tmp_path)).endswith("checkpoint_8")
    assert checkpoints.find_best(str(tmp_path)).endswith("checkpoint_8")
    assert checkpoints.find_latest(str(tmp_path / "nowhere")) is None


def test_transfer_from_our_own_checkpoint_keeps_its_head(tmp_path):
    model = backbones.build("resnet18")
    checkpoints.save(str(tmp_path), "resnet18", model, {}, {"metrics": {}})
    state = checkpoints.start_state(TrainConfig(backbone="resnet18", weights=str(tmp_path)))
    assert torch.equal(state["fc.weight"], model.state_dict()["fc.weight"])
    with pytest.raises(backbones.WeightsError, match="checkpoint of resnet18, not of alexnet"):
        checkpoints.start_state(TrainConfig(backbone="alexnet", weights=str(tmp_path)))


def test_a_file_named_after_its_hash_is_verified(tmp_path):
    import torchvision

    file = tmp_path / "resnet18-0123abcd.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    with pytest.raises(backbones.WeightsError, match="does not begin with the 0123abcd"):
        backbones.initial_state("resnet18", str(file), 0)


def test_timm_names():
    model = backbones.build("timm:test_convnext").eval()
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 8)
    assert backbones.head(model, "timm:test_convnext").out_features == 8
    with pytest.raises(ConfigError, match="timm has no 'resnet1800'.*near"):
        backbones.build("timm:resnet1800")


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
