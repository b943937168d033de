"""What is explained and how, what two data sets share, and checkpoints that are not worth a score."""

import numpy as np
import pandas as pd
import pytest

from fer_ray.data import manifest
from fer_ray.evaluate import evaluation, explanation


def test_harmonised_probabilities_know_the_shared_classes_only():
    kept = evaluation.harmonise(np.full((3, 8), 1 / 8), ["anger", "fear"])
    assert kept[:, [0, 3]].tolist() == [[0.5, 0.5]] * 3 and kept.sum() == 3


def test_what_is_explained_are_the_surest_mistakes_one_a_person():
    rows = pd.DataFrame({"image": list("abcd"), "expression": ["fear", "fear", "anger", "anger"],
                         "subject": ["p", "p", None, "q"]})
    sure = np.array([0.5, 0.9, 0.6, 0.7])
    probabilities = np.zeros((4, 8))
    probabilities[:3, 7], probabilities[3, 0] = sure[:3], sure[3]
    chosen = explanation.choose(rows, probabilities)
    assert chosen["mistakes"]["image"].tolist() == ["b", "c"] and chosen["typical"]["image"].tolist() == ["d"]
    assert chosen["mistakes"]["guess"].tolist() == ["surprise", "surprise"]
    assert set(chosen["confused"]["image"]) == {"a", "b", "c"}


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18", "efficientnet_lite0"])
def test_heat_maps_lie_between_0_and_1_and_leave_the_network_as_it_was(backbone):
    from fer_ray.model import backbones

    model = backbones.build(backbone).eval()
    crop = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    maps = explanation.heat_maps(model, [crop, crop], [0, 3])
    assert len(maps) == 2 and maps[0].shape == (224, 224) and 0 <= maps[0].min() and maps[0].max() <= 1
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize(("description", "words"), [
    ({"data_fingerprint": "other", "at_end_of_epoch": True}, "another prepared set or split"),
    ({"data_fingerprint": "same", "at_end_of_epoch": False}, "within an epoch")])
def test_a_checkpoint_whose_score_would_say_nothing_is_refused(description, words):
    with pytest.raises(manifest.DataError, match=words):
        evaluation.check_origin("runs/x/checkpoint", description, "prepared/x", "same")
