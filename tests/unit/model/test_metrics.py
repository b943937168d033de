"""Scores by hand, intervals that cover the truth, and none where few people cannot carry one."""

import numpy as np
import pytest
from reports import one_hot

from fer_ray.model import metrics

BASE = np.array([1, -1, 0, -0.5, 3, 2, 0.5, 1.5])  # log-odds at which each class is recognised


def test_known_numbers_by_hand():
    scores = metrics.evaluate(one_hot([0, 0, 1, 5]), np.array([0, 0, 0, 5]), ["a", "a", "b", "c"])
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["accuracy"] == 0.75
    anger = scores["per_class"]["anger"]
    assert anger["precision"] == 1.0 and anger["recall"] == pytest.approx(2 / 3) and anger["f1"] == pytest.approx(0.8)
    assert anger["support"] == 3 and anger["people"] == 2
    assert scores["per_class"]["fear"]["recall"] is None
    assert scores["confusion"][0][:2] == [2, 1]
    assert "no test images" in metrics.per_class_table(scores)


@pytest.mark.parametrize("present", [[5], [0, 5], [0, 1, 2, 5], list(range(8))])
def test_chance_is_what_a_network_that_names_one_class_scores(present):
    labels = np.repeat(present, 3)
    scores = metrics.evaluate(one_hot(np.full(len(labels), 5)), labels, [None] * len(labels))
    assert scores["chance"] == scores["balanced_accuracy"] == 1 / len(present)
    assert f"chance {1 / len(present):.3f}" in metrics.per_class_table(scores)


def draw_test_set(rng, people=60, spread=1.0):
    """Labels, predictions and people of a test set; each person is easier or harder to read by the same amount."""
    hard = rng.normal(0, spread, people)
    owner = np.repeat(np.arange(people), 8)
    labels = np.tile(np.arange(8), people)
    right = rng.random(len(owner)) < 1 / (1 + np.exp(-(BASE[labels] + hard[owner])))
    return labels, np.where(right, labels, (labels + 1) % 8), owner


def test_intervals_cover_the_truth():
    hard = np.random.default_rng(1).normal(0, 1, 200_000)
    truth = np.mean([np.mean(1 / (1 + np.exp(-(b + hard)))) for b in BASE])
    covered = 0
    for seed in range(500):
        labels, predicted, owner = draw_test_set(np.random.default_rng(seed))
        resampled = metrics.resampled_confusions(labels, predicted, [str(o) for o in owner], seed)
        low, high = metrics.interval(metrics.balanced_accuracies(resampled))
        covered += low <= truth <= high
    assert 0.93 <= covered / 500 <= 0.97


def test_interval_over_people_is_wider_than_over_images():
    rng = np.random.default_rng(0)
    good = np.repeat(rng.random(20) < 0.5, 20)  # a person is read right always or never
    labels = np.tile(np.arange(8), 50)
    predicted = np.where(good, labels, (labels + 1) % 8)
    people = [str(i // 20) for i in range(400)]
    low, high = metrics.evaluate(one_hot(predicted), labels, people)["balanced_accuracy_ci95"]
    each = metrics.evaluate(one_hot(predicted), labels, [None] * 400)["balanced_accuracy_ci95"]
    assert high - low > 2 * (each[1] - each[0])


@pytest.mark.parametrize(("people", "words"), [(1, "one person"), (4, "4 people"), (9, "9 people"), (10, None)])
def test_fewer_than_ten_people_get_no_interval_but_the_reason(people, words):
    labels = np.tile([0, 1], people)
    predicted = labels.copy()
    predicted[0] = 1
    scores = metrics.evaluate(one_hot(predicted), labels, np.repeat([f"p{i}" for i in range(people)], 2).tolist())
    group = metrics.by_group(one_hot(predicted), labels, np.repeat(np.arange(people), 2).tolist(), ["x"] * len(labels))
    table = metrics.per_class_table(scores)
    for found in (scores, scores["per_class"]["anger"] | {"balanced_accuracy_ci95": None}, group[0]):
        if words is not None:
            assert found["balanced_accuracy_ci95"] is None and words in found["no_interval"]
    if words is None:
        assert scores["no_interval"] is None and scores["per_class"]["anger"]["recall_ci95"] is not None
        assert scores["balanced_accuracy_ci95"][0] < 1 and "95 % interval of the balanced accuracy" in table
    else:
        assert scores["per_class"]["anger"]["recall_ci95"] is None
        assert words in table and "fewer than 10" in table and group[0]["small"]


def test_a_class_that_few_people_show_gets_no_interval_though_the_test_set_does():
    labels = np.array([0] * 12 + [1] * 9)
    scores = metrics.evaluate(one_hot(labels), labels, [f"p{i}" for i in range(12)] + [f"p{i}" for i in range(9)])
    assert scores["balanced_accuracy_ci95"] and scores["per_class"]["anger"]["recall_ci95"]
    assert scores["per_class"]["contempt"]["recall_ci95"] is None
    assert "9 people" in scores["per_class"]["contempt"]["no_interval"]


def test_none_recognised_of_ten_people_is_no_certainty():
    scores = metrics.evaluate(one_hot([1] * 10), np.zeros(10, int), list("abcdefghij"))
    assert scores["per_class"]["anger"]["recall_ci95"] == pytest.approx([0, 0.308], abs=1e-3)


def test_calibration_error_of_an_overconfident_coin():
    assert metrics.calibration_error(np.tile([1.0] + [0.0] * 7, (100, 1)), np.array([0, 1] * 50)) == pytest.approx(0.5)


def test_groups_are_ranked_and_small_ones_marked():
    labels = np.array([0, 1] * 40)
    predicted = np.where(np.arange(80) < 70, labels, 7)
    people = [str(i) for i in range(80)]
    groups = metrics.by_group(one_hot(predicted), labels, people, ["old"] * 70 + [None] * 10)
    assert [(g["value"], g["images"], g["small"]) for g in groups] == [("unknown", 10, True), ("old", 70, False)]
    assert groups[0]["balanced_accuracy"] == 0 and groups[1]["balanced_accuracy"] == 1
