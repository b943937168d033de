import numpy as np
import pytest
import torch

from fer_ray.model import augment, backbones, predictor

CROPS = [np.random.default_rng(n).integers(0, 256, (256, 256, 3)[: 2 + n % 2], dtype=np.uint8) for n in range(5)]


@pytest.fixture(scope="module")
def network():
    return build("cpu")


def build(device: str) -> predictor.Predictor:
    torch.manual_seed(0)
    return predictor.Predictor(backbones.build("tiny"), "tiny", device=device)


def test_probabilities_are_the_softmax_of_the_network_over_centre_crops(network):
    made = network.probabilities(CROPS, batch_size=2)
    assert made.shape == (5, 8) and made.dtype == np.float32 and made.sum(1) == pytest.approx(1)
    images = augment.to_tensor(np.stack([augment.eval_transform(crop) for crop in CROPS]))
    with torch.inference_mode():
        assert made == pytest.approx(network.model(images).softmax(1).numpy(), abs=1e-5)


def test_a_flip_average_scores_a_crop_and_its_mirror_image_alike(network):
    flipping = predictor.Predictor(network.model, "tiny", flip_average=True)
    mirrored = [np.ascontiguousarray(crop[:, ::-1]) for crop in CROPS]
    made = flipping.probabilities(CROPS)
    assert made == pytest.approx(flipping.probabilities(mirrored), abs=1e-5)
    logits = [np.log(network.probabilities(crops)) for crops in (CROPS, mirrored)]
    assert made == pytest.approx(torch.from_numpy(sum(logits) / 2).softmax(1).numpy(), abs=1e-5)


def test_features_are_what_the_last_layer_makes_logits_of(network):
    features = network.features(CROPS, batch_size=3)
    assert features.shape == (5, network.head.in_features) and features.dtype == np.float32
    with torch.inference_mode():
        probabilities = network.head(torch.from_numpy(features)).softmax(1).numpy()
    assert probabilities == pytest.approx(network.probabilities(CROPS), abs=1e-5)


def test_every_device_gives_the_same(network, device):
    other = build(device)
    assert other.probabilities(CROPS, batch_size=2) == pytest.approx(network.probabilities(CROPS), abs=5e-3)
    assert other.features(CROPS) == pytest.approx(network.features(CROPS), rel=0.01, abs=0.01)


def test_no_crops_give_no_rows(network):
    assert network.probabilities([]).shape == (0, 8)
    assert network.features([]).shape == (0, network.head.in_features)
