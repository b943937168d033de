import numpy as np
import pytest
import torch

from fer_ray.config import ConfigError
from fer_ray.model import backbones


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "efficientnet_lite0", "tiny", "timm:test_convnext",
                                  "resnet18@64"])
def test_a_new_last_layer_gives_eight_outputs(name):
    model = backbones.build(name).eval()
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 8)
    assert backbones.head(model, name).out_features == 8


def test_a_network_with_a_side_sees_the_same_images_smaller():
    whole, smaller = (backbones.build(name).eval() for name in ("timm:test_resnet", "timm:test_resnet@64"))
    backbones.fill(smaller, whole.state_dict())
    images = torch.randn(2, 3, 224, 224)
    reduced = torch.nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    assert torch.equal(smaller(images), whole(reduced)) and not torch.equal(smaller(images), whole(images))


def test_a_state_dict_of_tensors_or_arrays_fills_an_empty_network():
    model = backbones.build("timm:test_resnet").eval()
    arrays = {name: values.numpy() for name, values in model.state_dict().items()}
    for values in arrays.values():
        values.flags.writeable = False  # as in Ray's shared memory
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbones.load("timm:test_resnet", arrays).eval()(images), model(images))


@pytest.mark.parametrize(("change", "words"), [
    (lambda state: state.pop("conv1.weight"), "1 of 122 tensors are missing, the first is 'conv1.weight'"),
    (lambda state: state.update(more=torch.zeros(1)), "1 of 122 tensors are unknown, the first is 'more'"),
    (lambda state: state.update({"fc.bias": np.zeros(7)}),
     r"1 of 122 tensors have another shape, the first is 'fc.bias' with \[7\] instead of \[8\]")])
def test_tensors_of_another_network_are_named(change, words):
    model = backbones.build("resnet18")
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(backbones.MisfitError, match=words):
        backbones.fill(model, state)


@pytest.mark.parametrize(("name", "words"), [
    ("timm:resnet1800", "timm has no 'resnet1800'.*near"),
    ("resnet1800", "unknown backbone 'resnet1800'; known: alexnet, vgg19"),
    ("timm:deit_tiny_distilled_patch16_224", "does not end in one linear layer")])
def test_a_backbone_that_cannot_be_built_is_named(name, words):
    with pytest.raises(ConfigError, match=words):
        backbones.build(name)
