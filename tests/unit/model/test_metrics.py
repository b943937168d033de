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


def draw_test_sets(people, log_odds, shown, most_images, sets=3000):
    """Recognised images and images, int [sets, people, 8]; each person is easier or harder to read by the same amount.

    Args:
        people: of each test set.
        log_odds: of the classes, at which a person of average difficulty is recognised.
        shown: part of the classes that a person shows.
        most_images: of a person and a class; each number up to it is as likely.
    """
    rng = np.random.default_rng(people)
    images = rng.integers(1, most_images + 1, (sets, people, 8)) * (rng.random((sets, people, 8)) < shown)
    hard = rng.normal(0, 1, (sets, people, 1))
    return rng.binomial(images, 1 / (1 + np.exp(-(log_odds + hard)))), images


@pytest.mark.parametrize(("log_odds", "shown", "most_images"), [(BASE, 1, 1), (BASE, 0.5, 3), (BASE + 2.5, 0.6, 3)],
                         ids=["all classes", "classes absent", "a good network"])
@pytest.mark.parametrize("people", [5, 10, 12, 20, 60, 100])
def test_intervals_cover_the_truth(people, log_odds, shown, most_images):
    hard = np.random.default_rng(1).normal(0, 1, (200_000, 1))
    recall = (1 / (1 + np.exp(-(log_odds + hard)))).mean(0)
    correct, images = draw_test_sets(people, log_odds, shown, most_images)
    present = images.sum(1) > 0
    truth = (recall * present).sum(1) / present.sum(1)
    low, high = metrics.interval(correct, images).T
    covered = np.mean((low <= truth) & (truth <= high))
    print(f"{people} people: {covered:.1%} of the intervals, {np.mean(high - low):.2f} wide")  # for docs/evaluation.md
    assert 0.93 <= covered <= (0.97 if people >= 10 else 0.99)
    assert low.min() >= 0 and high.max() <= 1


def test_interval_over_people_is_wider_than_over_images():
    rng = np.random.default_rng(0)
    good = np.repeat(rng.random(20) < 0.5, 20)  # a person is read right always or never
    labels = np.tile(np.arange(8), 50)
    predicted = np.where(good, labels, (labels + 1) % 8)
    people = [str(i // 20) for i in range(400)]
    low, high = metrics.evaluate(one_hot(predicted), labels, people)["balanced_accuracy_ci95"]
    each = metrics.evaluate(one_hot(predicted), labels, [None] * 400)["balanced_accuracy_ci95"]
    assert high - low > 2 * (each[1] - each[0])


@pytest.mark.parametrize(("people", "words"), [(1, "one person"), (4, "4 people"), (5, None)])
def test_fewer_than_five_people_get_no_interval_but_the_reason(people, words):
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
        assert words in table and "fewer than 5" in table and group[0]["small"]


def test_a_class_that_few_people_show_gets_no_interval_though_the_test_set_does():
    labels = np.array([0] * 12 + [1] * 4)
    scores = metrics.evaluate(one_hot(labels), labels, [f"p{i}" for i in range(12)] + [f"p{i}" for i in range(4)])
    assert scores["balanced_accuracy_ci95"] and scores["per_class"]["anger"]["recall_ci95"]
    assert scores["per_class"]["contempt"]["recall_ci95"] is None
    assert "4 people" in scores["per_class"]["contempt"]["no_interval"]


def test_none_recognised_of_ten_people_is_no_certainty():
    scores = metrics.evaluate(one_hot([1] * 10), np.zeros(10, int), list("abcdefghij"))
    assert scores["per_class"]["anger"]["recall_ci95"] == pytest.approx([0, 0.338], abs=1e-3)
    scores = metrics.evaluate(one_hot([0, 1] * 5), np.array([0, 1] * 5), list("aabbccddee"))
    assert scores["balanced_accuracy_ci95"][0] < 0.5 and scores["balanced_accuracy_ci95"][1] == 1


def test_calibration_error_of_an_overconfident_coin():
    assert metrics.calibration_error(np.tile([1.0] + [0.0] * 7, (100, 1)), np.array([0, 1] * 50)) == pytest.approx(0.5)


def test_groups_are_ranked_and_small_ones_marked():
    labels = np.array([0, 1] * 40)
    predicted = np.where(np.arange(80) < 70, labels, 7)
    people = [str(i) for i in range(80)]
    groups = metrics.by_group(one_hot(predicted), labels, people, ["old"] * 70 + [None] * 10)
    assert [(g["value"], g["images"], g["small"]) for g in groups] == [("unknown", 10, True), ("old", 70, False)]
    assert {(g["common_classes"], g["common_accuracy"]) for g in groups} == {(2, 0.0), (2, 1.0)}
    (line, common) = metrics.group_lines({"age": groups, "all alike": groups[:1]})
    assert line.startswith("by age: unknown: balanced accuracy 0.000") and common.endswith("unknown 0.000, old 1.000")
    assert groups[0]["balanced_accuracy"] == 0 and groups[1]["balanced_accuracy"] == 1
