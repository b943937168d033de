"""The label audit: which labels are doubted, and by what network they may be."""

import numpy as np
import pandas as pd
import pytest

from fer_ray import config, options
from fer_ray.data.duplicates import HASHES
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import labels


def noisy(n=400, flipped=40, seed=0):
    """Labels of which some are wrong, and the probabilities of a network that knows better."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 8, n)
    given = truth.copy()
    bad = rng.choice(n, flipped, replace=False)
    given[bad] = (truth[bad] + rng.integers(1, 8, flipped)) % 8
    logits = rng.normal(0, 1, (n, 8)) + 5 * np.eye(8)[truth]
    return [EXPRESSIONS[i] for i in given], np.exp(logits) / np.exp(logits).sum(1, keepdims=True), set(bad)


def index_of(n):
    """Index rows of pictures that are no duplicates of each other."""
    hashes = np.random.default_rng(0).integers(0, 2**63, (n, len(HASHES))).astype(np.uint64)
    return pd.DataFrame(hashes, columns=HASHES).assign(
        cluster=range(n), sequence=None, digest=range(n), image=[f"{i}.png" for i in range(n)])


def no_thumbnails(rows):
    """Of rows that are identical or not alike, no crop is looked at."""
    assert rows.empty
    return {}


def test_planted_label_noise_is_found():
    given, probabilities, bad = noisy()
    ranked = labels.rank(given, probabilities, index_of(len(given)), no_thumbnails)
    found = set(ranked["position"][ranked["reason"] != ""])
    assert len(found & bad) >= 0.8 * len(bad) and len(found & bad) >= 0.6 * len(found)
    assert sorted(ranked["position"]) == list(range(len(given)))


def test_duplicates_that_disagree_come_first_but_not_the_frames_of_one_video():
    given, probabilities, _ = noisy(flipped=0)
    rows = index_of(len(given))
    for first, second in ((0, 10), (20, 21)):  # copies
        rows.loc[second, [*HASHES, "cluster", "digest"]] = rows.loc[first, [*HASHES, "cluster", "digest"]]
    rows.loc[[20, 21], "sequence"] = "v"
    rows.loc[30, "cluster"] = 0  # linked by a third picture, not alike itself
    given[0], given[10], given[20], given[21], given[30] = "fear", "anger", "neutral", "surprise", "disgust"
    ranked = labels.rank(given, probabilities, rows, no_thumbnails)
    assert set(ranked["position"][:2]) == {0, 10}
    assert ranked["reason"][:2].str.startswith("duplicates say").all() and (ranked["twins"] != "").sum() == 2


def test_labels_of_one_class_alone_are_not_doubted():
    ranked = labels.rank(["fear"] * 5, np.full((5, 8), 1 / 8), index_of(5), no_thumbnails)
    assert (ranked["reason"] == "").all()


def balanced_set(right, images=250, seed=0):
    """Labels, and what a network predicts that knows the label of this fraction of them and guesses the others."""
    rng = np.random.default_rng(seed)
    truth = np.arange(images) % 8
    return truth, np.where(rng.random(images) < right, truth, rng.integers(0, 8, images))


def test_a_network_near_chance_doubts_nobody():
    """The case of the drawn sample: 13.5 % where chance is 12.5 %, and 210 of 250 labels were doubted."""
    with pytest.raises(labels.UntrustworthyError, match=r"where chance is 0\.125; below 0\.2\d+ its doubts"):
        labels.check_network(*balanced_set(0.02))
    network = labels.check_network(*balanced_set(0.5))
    assert network["chance"] == 0.125 < 0.2 < network["required"] < network["balanced_accuracy"]


def test_few_images_need_a_higher_score_than_many():
    few, many = (labels.check_network(*balanced_set(0.9, images))["required"] for images in (24, 800))
    assert few > many == pytest.approx(0.125 + 0.1 * 0.875)
    assert labels.check_network(np.full(5, 3), np.full(5, 3))["required"] == 1  # one class: nothing to confuse


def test_switches_need_no_value():
    assert options.load(["--labels", "--train.nesterov", "--name", "x"]).labels
    assert not options.load(["--labels", "false"]).labels
    with pytest.raises(config.ConfigError, match="retrain"):
        options.load(["--retrain"])
