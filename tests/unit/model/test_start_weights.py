"""What a training starts from: the check without torch before any work, and the loading that looks at each tensor."""

import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fer_ray import storage
from fer_ray.cli import stages
from fer_ray.config import Config, ConfigError, EvaluateConfig, TrainConfig, to_dict
from fer_ray.data_config import DataConfig
from fer_ray.model import backbones, checkpoints, start_weights
from fer_ray.model.start_weights import WeightsError

TINY = "tiny"
DESCRIPTION = {"progress": {"epoch": 1, "step": 0}, "at_end_of_epoch": True, "config": to_dict(Config()),
               "metrics": {"val_balanced_accuracy": 0.5}}


def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return dict(backbones.build(TINY).state_dict())


def load(file, backbone: str = TINY) -> dict[str, torch.Tensor]:
    """What a training would do: the cheap check must let pass all that can be loaded."""
    train = TrainConfig(backbone=backbone, weights=str(file))
    start_weights.check(train)
    return start_weights.load(train)


def test_lite0_takes_the_real_imagenet_weights_below_a_seeded_head():
    first, second = (start_weights.initial_state("efficientnet_lite0", "imagenet", s) for s in (0, 1))
    assert torch.equal(first["_conv_stem.weight"], second["_conv_stem.weight"])
    assert not torch.equal(first["_fc.weight"], second["_fc.weight"])
    assert not torch.equal(start_weights.initial_state("efficientnet_lite0", "none", 0)["_conv_stem.weight"],
                           first["_conv_stem.weight"])


def test_weights_from_a_torchvision_style_file(tmp_path):
    import torchvision

    torch.manual_seed(7)
    saved = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(saved, tmp_path / "w.pth")
    state = load(tmp_path / "w.pth", "resnet18")
    assert torch.equal(state["conv1.weight"], saved["conv1.weight"]) and state["fc.weight"].shape == (8, 512)


def named(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": values for name, values in state.items()}


@pytest.mark.parametrize(("wrap", "said"), [
    (lambda state: state, "w.pt: not used: fc$"),  # the last layer, which is replaced
    (lambda state: named("module.", state), "the prefix 'module.' of its names is stripped"),
    (lambda state: named("model.module.", dict(sorted(state.items()))), "the prefix 'model.module.'"),
    (lambda state: {"state_dict": state, "epoch": 3}, "under 'state_dict' is used, not what is under epoch"),
    (lambda state: {"model_state_dict": state, "optimizer_state_dict": {}}, "not what is under optimizer_state_dict"),
    (lambda state: {"model": named("module.", state), "args": None}, "under 'model' is used, not .* args"),
    (lambda state: {"model": {"state_dict": state}}, "(?s)'model' is used.*'state_dict' is used"),
    (lambda state: {"state_dict": {"loss.weight": torch.ones(8), **named("net.", state)},
                    "pytorch-lightning_version": "2.5.0", "hyper_parameters": {"lr": 0.1}},
     "(?s)'net.' of its names is stripped.*not used: loss"),
    (lambda state: {"state_dict": {**named("ema.", {"conv1.weight": torch.ones(1)}), **named("net.", state)}},
     "(?s)'net.' of its names is stripped.*not used: ema")],
    ids=["plain", "DDP", "two prefixes, sorted", "wrapped", "PyTorch's tutorial", "torchvision's scripts",
         "wrapped twice", "Lightning", "part of a second network"])
def test_files_of_other_programs(tmp_path, capsys, wrap, said):
    saved = tiny_state()
    torch.save(wrap(saved), tmp_path / "w.pt")
    state = load(tmp_path / "w.pt")
    assert state.keys() == saved.keys()
    assert all(torch.equal(state[name], saved[name]) for name in saved if not name.startswith("fc."))
    assert re.search(said, capsys.readouterr().out, re.M)


def test_a_file_of_two_networks_or_of_a_deeper_one_is_refused(tmp_path):
    import torchvision

    torch.save(named("net.", tiny_state()) | named("ema.", tiny_state()), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="several networks, named 'net.', 'ema.'; save the state dict of one alone"):
        load(tmp_path / "w.pt")
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "w.pt")  # has all names of resnet18
    with pytest.raises(WeightsError, match="does not fit resnet18: .* unknown, the first is 'layer1.2.conv1.weight'"):
        load(tmp_path / "w.pt", "resnet18")


def test_safetensors_and_the_old_format_of_torch(tmp_path):
    from safetensors.torch import save_file

    saved = tiny_state()
    save_file(saved, tmp_path / "w.safetensors")
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pth"):
        assert torch.equal(load(tmp_path / name)["conv1.weight"], saved["conv1.weight"])


@pytest.mark.parametrize(("content", "words"), [
    ([torch.ones(1)], "holds a list, not a dict of tensors"),
    (torch.ones(1), "holds a Tensor, not a dict of tensors"),
    ({"epoch": 3}, "holds a dict whose 'epoch' is a int, not a dict of tensors"),
    ({}, "does not fit tiny: .* tensors are missing"),
    (Path("x"), "holds more than tensors")], ids=["list", "tensor", "numbers", "empty", "object"])
def test_a_file_of_something_else_is_one_line(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=words) as error:
        load(tmp_path / "w.pt")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_weights_that_do_not_fit_or_are_no_numbers_are_named(tmp_path):
    state = tiny_state()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="w.pt: does not fit timm:test_convnext: .*missing, the first is 'stem"):
        load(tmp_path / "w.pt", "timm:test_convnext")
    for value in ("nan", "inf", "-inf"):
        state["conv1.weight"][0, 0] = float(value)
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(WeightsError, match="1 of .* tensors hold NaN or infinity, the first is 'conv1.weight'"):
            load(tmp_path / "w.pt")


def test_a_file_named_after_its_hash_is_verified(tmp_path):
    torch.save(tiny_state(), tmp_path / "resnet-0123abcd.pth")
    with pytest.raises(WeightsError, match="does not begin with the 0123abcd"):
        load(tmp_path / "resnet-0123abcd.pth")


def test_our_own_checkpoint_keeps_its_last_layer(tmp_path):
    model = backbones.build(TINY)
    checkpoints.save(str(tmp_path), TINY, model, {}, DESCRIPTION)
    assert torch.equal(load(tmp_path)["fc.weight"], model.state_dict()["fc.weight"])
    for step in (start_weights.check, start_weights.load):
        with pytest.raises(WeightsError, match="checkpoint of tiny, not of alexnet"):
            step(TrainConfig(backbone="alexnet", weights=str(tmp_path)))


def check(weights, backbone: str = TINY) -> None:
    start_weights.check(TrainConfig(backbone=backbone, weights=str(weights)))


def test_the_check_finds_what_is_cut_short(tmp_path):
    from safetensors.torch import save_file

    save_file(tiny_state(), tmp_path / "w.safetensors")
    torch.save(tiny_state(), tmp_path / "w.pt")
    checkpoints.save(str(tmp_path / "c"), TINY, backbones.build(TINY), {}, DESCRIPTION)
    for file in (tmp_path / "w.safetensors", tmp_path / "w.pt", tmp_path / "c/model.safetensors"):
        content = file.read_bytes()
        weights = file.parent if file.parent.name == "c" else file
        for length in (len(content) - 1000, 100, 3, 0):
            file.write_bytes(content[:length])
            with pytest.raises(WeightsError, match="damaged|not a file of torch.save") as error:
                check(weights)
            assert str(file) in str(error.value)
        file.write_bytes(content)
        check(weights)


def test_the_check_names_what_is_not_there(tmp_path):
    (tmp_path / "folder").mkdir()
    for missing in ("gone.pth", "gone.safetensors", "folder", "gone/x.pt", "Imagenet"):
        with pytest.raises(WeightsError, match="neither 'imagenet' nor 'none', nor a file or checkpoint"):
            check(tmp_path / missing)
        with pytest.raises(WeightsError, match="neither 'imagenet' nor 'none', nor a file or checkpoint"):
            start_weights.initial_state(TINY, str(tmp_path / missing), 0)


def test_imagenet_weights_that_are_nowhere_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(start_weights, "TORCHVISION_URL", "http://127.0.0.1:9/")  # nothing listens there
    for step in (start_weights.check, start_weights.load):
        with pytest.raises(WeightsError, match=r"Connection refused.*alexnet-owt-7be5be79.pth .*hub/checkpoints/"):
            step(TrainConfig(backbone="alexnet"))
    file = tmp_path / "hub/checkpoints/alexnet-owt-7be5be79.pth"
    file.write_bytes(b"half a download")
    for step in (start_weights.check, start_weights.load):
        with pytest.raises(WeightsError, match=f"{file}: "):
            step(TrainConfig(backbone="alexnet"))


def test_imagenet_weights_of_the_floor_are_missed_before_the_first_image_is_cropped(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(start_weights, "TORCHVISION_URL", "http://127.0.0.1:9/")  # nothing listens there
    config = Config(storage=str(tmp_path / "out"), data=DataConfig(root=str(tmp_path)),
                    train=TrainConfig(weights="none"), evaluate=EvaluateConfig(floor=True))
    with pytest.raises(WeightsError, match="ImageNet weights of alexnet cannot be had"):
        stages.run_prepare(config, [config.train])


def test_imagenet_weights_are_downloaded_once_and_verified(tmp_path, monkeypatch):
    import torchvision

    torch.manual_seed(7)
    saved = torchvision.models.resnet18(weights=None).state_dict()
    (tmp_path / "site").mkdir()
    torch.save(saved, tmp_path / "site/new.pth")
    digest = storage.sha256(str(tmp_path / "site/new.pth"))
    (tmp_path / "site/new.pth").rename(tmp_path / f"site/resnet18-{digest[:8]}.pth")
    shutil.copy(tmp_path / f"site/resnet18-{digest[:8]}.pth", tmp_path / "site/resnet18-00000000.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "site")) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        monkeypatch.setattr(start_weights, "TORCHVISION_URL", f"http://127.0.0.1:{site.server_port}/")
        monkeypatch.setitem(start_weights.TORCHVISION_FILES, "resnet18", "resnet18-00000000.pth")
        with pytest.raises(WeightsError, match="invalid hash"):
            load("imagenet", "resnet18")
        monkeypatch.setitem(start_weights.TORCHVISION_FILES, "resnet18", f"resnet18-{digest[:8]}.pth")
        assert torch.equal(load("imagenet", "resnet18")["conv1.weight"], saved["conv1.weight"])
        site.shutdown()
    assert torch.equal(load("imagenet", "resnet18")["conv1.weight"], saved["conv1.weight"])  # from the cache


def test_names_and_cache_are_those_of_torchvision_and_torch(tmp_path, monkeypatch):
    import torchvision

    for name, file in start_weights.TORCHVISION_FILES.items():
        weights = torchvision.models.get_model_weights(name)
        assert weights.IMAGENET1K_V1.url == start_weights.TORCHVISION_URL + file
    for key in ("TORCH_HOME", "XDG_CACHE_HOME", "ANY"):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.setenv(key, str(tmp_path))
        assert str(start_weights.cache_folder()) == f"{torch.hub.get_dir()}/checkpoints"


def test_timm_that_is_not_installed_is_said_by_the_check(monkeypatch):
    monkeypatch.setattr(start_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package timm"):
        check("none", "timm:test_resnet")


def test_a_network_without_imagenet_weights_says_so():
    with pytest.raises(WeightsError, match="tiny has no ImageNet weights: use --train.weights none"):
        check("imagenet")


def test_the_check_needs_neither_torch_nor_ray(tmp_path):
    checkpoints.save(str(tmp_path / "c"), TINY, backbones.build(TINY), {}, DESCRIPTION)
    torch.save(tiny_state(), tmp_path / "w.pt")
    code = ("import sys; from fer_ray.model import start_weights; from fer_ray.config import TrainConfig\n"
            f"for weights in {[str(tmp_path / 'c'), str(tmp_path / 'w.pt'), 'none']!r}:\n"
            f"    start_weights.check(TrainConfig(backbone={TINY!r}, weights=weights))\n"
            "start_weights.check(TrainConfig(backbone='timm:test_resnet', weights='imagenet'))\n"
            "print(sorted({'torch', 'ray', 'timm'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_outage_of_storage_is_not_taken_for_a_missing_file(monkeypatch):
    def refuse(uri, *_):
        raise storage.StorageError(f"{uri}: Connection refused")

    for name in ("exists", "read_bytes", "stat", "read_range"):
        monkeypatch.setattr(storage, name, refuse)
    for step in (start_weights.check, start_weights.load):
        with pytest.raises(storage.StorageError, match="Connection refused"):
            step(TrainConfig(backbone=TINY, weights="s3://bucket/w.pt"))
    with pytest.raises(storage.StorageError, match="Connection refused"):
        start_weights.initial_state(TINY, "s3://bucket/w.pt", 0)


def test_an_edited_checkpoint_is_refused_before_any_work(tmp_path):
    checkpoints.save(str(tmp_path), TINY, backbones.build(TINY), {}, DESCRIPTION)
    described = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(described | {"input_size": 448}))
    with pytest.raises(checkpoints.CheckpointError, match="input_size is 448"):
        check(tmp_path)
