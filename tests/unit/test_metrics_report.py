import numpy as np
import pytest

from fer_ray.evaluate import comparison
from fer_ray.model import metrics
from fer_ray.report import pages

CARD = {"intended_use": "tests", "limits": "", "provenance": "", "licence": ""}
NOTHING = {"montage": [], "augmented": [], "explained": {}}


def one_hot(guesses):
    return np.eye(8)[np.asarray(guesses)] * 0.93 + 0.00875


def result_for(scores, split="subject", leaks=None):
    return {"name": "<b>x</b>", "created": "now", "command": "python jobs/pipeline.py", "split": split,
            "leaks": leaks or {"subject": 0, "sequence": 0}, "leak_examples": [], "remarks": [], "conflicts": 0,
            "near_duplicates": 0, "metrics": scores,
            "validation": {"balanced_accuracy": 0.5, "epoch": 1},
            "counts": {"read": {"t": {"anger": 4}}, "before": {"t": {"anger": 3}}, "after": {}},
            "rejected": {"no face found": 2}, "config": {"a": {"b": 1}, "card": CARD}, "versions": {"ray": "2"},
            "floor": None,
            "train": {"backbone": "n", "weights": "none", "lr": 1, "momentum": 0, "batch_size": 1, "epochs_run": 1},
            "checkpoint": "c", "fingerprint": "f" * 64, "history": [], "also": [], "groups": {}, "labels": None,
            "calibration": None}


def test_known_numbers_by_hand():
    scores = metrics.evaluate(one_hot([0, 0, 1, 5]), np.array([0, 0, 0, 5]), ["a", "a", "b", "c"])
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["accuracy"] == 0.75
    assert scores["per_class"]["anger"] | {"recall_ci95": 0} == {
        "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3, "recall_ci95": 0}
    assert scores["per_class"]["fear"]["recall"] is None
    assert scores["confusion"][0][:2] == [2, 1]
    assert "no test images" in metrics.per_class_table(scores)


def page_of(result: dict, shown: dict) -> str:
    return pages.render(result, shown, pages.draw(result, shown))


def test_interval_over_people_is_wider_than_over_images():
    rng = np.random.default_rng(0)
    good = np.repeat(rng.random(20) < 0.5, 20)  # a person is read right always or never
    labels = np.tile(np.arange(8), 50)
    guesses = np.where(good, labels, (labels + 1) % 8)
    people = [str(i // 20) for i in range(400)]
    low, high = metrics.evaluate(one_hot(guesses), labels, people)["balanced_accuracy_ci95"]
    each = metrics.evaluate(one_hot(guesses), labels, [None] * 400)["balanced_accuracy_ci95"]
    assert high - low > 2 * (each[1] - each[0])


def test_calibration_error_of_an_overconfident_coin():
    assert metrics.calibration_error(np.tile([1.0] + [0.0] * 7, (100, 1)), np.array([0, 1] * 50)) == pytest.approx(0.5)


@pytest.mark.parametrize(("labels", "guesses"), [([3], [3]), ([3], [1]), ([0, 1, 2], [5, 5, 5])])
def test_report_of_tiny_and_one_sided_results(labels, guesses):
    scores = metrics.evaluate(one_hot(guesses), np.array(labels), ["p"] * len(labels))
    page = page_of(result_for(scores), NOTHING)
    assert "no test images" in page and "class=\"leak\"" not in page
    assert "<b>x</b>" not in page and "http://" not in page and "https://" not in page


def test_report_warns_of_a_split_that_leaks():
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    assert "does not say how well" in page_of(result_for(scores, split="image"), NOTHING)
    assert "2 people stand" in page_of(result_for(scores, leaks={"subject": 2}), NOTHING)
    epochs = [{"epoch": 0, "train_loss": 2.0, "val_loss": 2.0, "val_balanced_accuracy": 0.1}]
    montage = [{"crop": np.zeros((256, 256), np.uint8), "expression": "fear", "split": "test"}]
    result = result_for(scores) | {"history": epochs}
    page = page_of(result, NOTHING | {"montage": montage, "augmented": [np.zeros((224, 224, 3), np.uint8)]})
    assert page.count("data:image") == 5


def draw_test_set(rng, people=60, spread=1.0):
    """Labels, guesses and people of a test set; each person is easier or harder to read by the same amount."""
    hard = rng.normal(0, spread, people)
    owner = np.repeat(np.arange(people), 8)
    labels = np.tile(np.arange(8), people)
    right = rng.random(len(owner)) < 1 / (1 + np.exp(-(BASE[labels] + hard[owner])))
    return labels, np.where(right, labels, (labels + 1) % 8), owner


BASE = np.array([1, -1, 0, -0.5, 3, 2, 0.5, 1.5])


def test_intervals_cover_the_truth():
    hard = np.random.default_rng(1).normal(0, 1, 200_000)
    truth = np.mean([np.mean(1 / (1 + np.exp(-(b + hard)))) for b in BASE])
    covered = 0
    for seed in range(500):
        labels, guesses, owner = draw_test_set(np.random.default_rng(seed))
        low, high = metrics.balanced_accuracy_interval(labels, guesses, [str(o) for o in owner], seed)
        covered += low <= truth <= high
    assert 0.93 <= covered / 500 <= 0.97


def test_no_interval_from_one_person():
    scores = metrics.evaluate(one_hot([0, 1, 1]), np.array([0, 1, 2]), ["p"] * 3)
    assert scores["balanced_accuracy_ci95"] is None and scores["per_class"]["anger"]["recall_ci95"] is None
    assert "one person" in metrics.per_class_table(scores)


def test_none_recognised_of_few_people_is_no_certainty():
    scores = metrics.evaluate(one_hot([1] * 5), np.zeros(5, int), list("abcde"))
    assert scores["per_class"]["anger"]["recall_ci95"] == pytest.approx([0, 0.522], abs=1e-3)


def test_temperature_undoes_overconfidence():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 8))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(8, p=p) for p in honest])
    boasting = metrics.at_temperature(honest, 1 / 3)
    assert metrics.fit_temperature(boasting, labels) == pytest.approx(3, rel=0.1)
    assert metrics.calibration_error(boasting, labels) > 0.1 > metrics.calibration_error(honest, labels)


def test_groups_are_ranked_and_small_ones_marked():
    labels = np.array([0, 1] * 40)
    guesses = np.where(np.arange(80) < 70, labels, 7)
    people = [str(i) for i in range(80)]
    groups = metrics.by_group(one_hot(guesses), labels, people, ["old"] * 70 + [None] * 10)
    assert [(g["value"], g["images"], g["small"]) for g in groups] == [("unknown", 10, True), ("old", 70, False)]
    assert groups[0]["balanced_accuracy"] == 0 and groups[1]["balanced_accuracy"] == 1


@pytest.mark.parametrize(("labels", "guesses", "people", "words"), [
    ([0, 1], [0, 1], ["a", "b"], "No test image shows"), ([0, 1, 2], [5, 5, 5], "abc", "taken for neutral"),
    ([3], [3], ["a"], "one person"), ([3], [3], ["a"], "far too few")])
def test_report_says_what_keeps_a_number_from_being_quoted(labels, guesses, people, words):
    scores = metrics.evaluate(one_hot(guesses), np.array(labels), list(people))
    assert words in page_of(result_for(scores), NOTHING)


def test_matrix_of_data_sets_counts_the_classes_both_have():
    own = metrics.evaluate(one_hot([0, 1, 2]), np.array([0, 1, 2]), list("abc"))
    other = metrics.evaluate(one_hot([0, 0]), np.array([0, 1]), list("de"))
    reports = {"A": {"metrics": own, "also": [{"name": "B", "metrics": other, "left_out": {"copies": 3}}]},
               "B": {"metrics": other, "also": [{"name": "A", "metrics": None, "left_out": {}}]}}
    found = comparison.matrix(reports)
    assert found["scores"] == [[1.0, 0.5], [None, 0.5]] and found["classes"] == [[3, 2], [0, 2]]
    page = pages.render_matrix({"name": "x", "created": "now", "command": "c"} | found)
    assert "3 copies" in page and page.count("<tr>") == 5
