"""The networks: torchvision's, EfficientNet-Lite, any of timm and a tiny one, each with a new last layer."""

from __future__ import annotations

import difflib
import functools
import warnings
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fer_ray import values
from fer_ray.config import ConfigError
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.errors import UserError

TINY = "tiny"
TIMM = "timm:"


class MisfitError(UserError):
    """Tensors are not those of the network; the message names the first that differ."""


def build(backbone: str, num_classes: int = len(EXPRESSIONS)) -> nn.Module:
    """The network with random weights and `num_classes` outputs. Raises: ConfigError for a name that is not known.

    It takes images of 224 px whatever its name says: one that ends in @SIDE reduces them as its first step.
    """
    model = _architecture(values.architecture_of(backbone))
    if (side := values.side_of(backbone)) < values.LARGEST_SIDE:
        model.register_forward_pre_hook(functools.partial(_reduce, side))
    *path, name = head_name(backbone, model).split(".")
    parent = model.get_submodule(".".join(path)) if path else model
    setattr(parent, name, nn.Linear(getattr(parent, name).in_features, num_classes))
    return model


def _reduce(side: int, _model: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    """Images [N, 3, 224, 224] at [side, side] px."""
    return F.interpolate(inputs[0], (side, side), mode="bilinear", antialias=True)


def load(backbone: str, state: Mapping[str, torch.Tensor | np.ndarray]) -> nn.Module:
    """The network with the weights of a state dict. Raises: MisfitError; ConfigError for a name that is not known."""
    return fill(empty(backbone), state)


def empty(backbone: str) -> nn.Module:
    """The network with memory for its weights, which hold arbitrary values until `fill` sets them.

    Drawing weights at random, which `build` does, takes a second for AlexNet and would be thrown away.
    """
    with torch.device("meta"):
        model = build(backbone)
    if {name for name, _ in model.named_buffers()} <= model.state_dict().keys():
        return model.to_empty(device="cpu")
    # Some networks compute constants that are no part of the state dict: `fill` could not set them.
    return build(backbone)


def fill(model: nn.Module, state: Mapping[str, torch.Tensor | np.ndarray]) -> nn.Module:
    """`model`, its weights overwritten by a copy of those in a state dict. Raises: MisfitError."""
    with warnings.catch_warnings():
        # Ray's shared memory is read-only, of which torch warns; load_state_dict only reads it.
        warnings.filterwarnings("ignore", message=".*not writable")
        tensors = {name: torch.as_tensor(array) for name, array in state.items()}
        if wrong := differences(model.state_dict(), tensors):
            raise MisfitError(f"does not fit the network: {wrong}")
        model.load_state_dict(tensors)
    return model


def differences(expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """In words, how `state` differs from `expected` in names and shapes; empty if it does not."""
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    reshaped = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    told = [f"{len(names)} of {len(expected)} tensors are {what}, the first is {names[0]!r}"
            for names, what in ((missing, "missing"), (unknown, "unknown")) if names]
    if reshaped:
        name = reshaped[0]
        told.append(f"{len(reshaped)} of {len(expected)} tensors have another shape, the first is {name!r} with "
                    f"{list(state[name].shape)} instead of {list(expected[name].shape)}")
    return "; ".join(told)


def head(model: nn.Module, backbone: str) -> nn.Linear:
    """The last layer of a network that `build` made."""
    layer = model.get_submodule(head_name(backbone, model))
    assert isinstance(layer, nn.Linear)
    return layer


def head_name(backbone: str, model: nn.Module) -> str:
    """Name of the last layer in the network. Raises: ConfigError if a network of timm has none that can be replaced."""
    architecture = values.architecture_of(backbone)
    if not architecture.startswith(TIMM):
        if architecture in values.EFFICIENTNETS:
            return "_fc"
        return {"alexnet": "classifier.6", "vgg19": "classifier.6"}.get(architecture, "fc")
    settings = vars(model)["pretrained_cfg"]  # of timm, which gives it to each network that it creates
    name = settings.get("classifier")
    if not isinstance(name, str) or not hasattr(model.get_submodule(name), "in_features"):
        raise ConfigError(f"train.backbone: {backbone} does not end in one linear layer, which could be replaced")
    return name


def create_timm(backbone: str, pretrained: bool) -> nn.Module:
    """The network `timm:NAME` as timm makes it. Raises: ConfigError if timm is not there or does not know the name."""
    try:
        import timm
    except ImportError:
        raise ConfigError("train.backbone: timm:NAME needs the package timm: pip install -e '.[timm]'") from None
    name = backbone.removeprefix(TIMM)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(f"train.backbone: timm has no {name!r}" + (f"; near: {', '.join(near)}" if near else ""))
    return timm.create_model(name, pretrained=pretrained)


def _architecture(backbone: str) -> nn.Module:
    if backbone.startswith(TIMM):
        return create_timm(backbone, pretrained=False)
    if backbone in values.EFFICIENTNETS:
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name(backbone.replace("_", "-"))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                # The package's 0.01 lags the new data by hundreds of steps, more than a short fine-tuning has.
                layer.momentum = 0.1
        return model
    if backbone == TINY:
        return _tiny()
    if backbone not in values.BACKBONES:
        raise ConfigError(f"train.backbone: unknown backbone {backbone!r}; known: {', '.join(values.BACKBONES)}, "
                          "timm:NAME")
    import torchvision

    return torchvision.models.get_model(backbone, weights=None)


def _tiny() -> nn.Module:
    """Three convolutions and a linear layer, 26,000 weights: it shows in seconds whether data and cluster work.

    All others import torchvision or timm, or have a hundred times its weights. Group normalisation does not see the
    other images of a batch, so that one worker and several train it alike.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs, size, stride) in enumerate([(3, 16, 7, 4), (16, 32, 3, 2), (32, 64, 3, 2)], 1):
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        layers[f"norm{number}"] = nn.GroupNorm(8, outputs)
        layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(64, 8)})
