import numpy as np
import pytest

from fer_ray import figures, metrics, report

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
    page = report.render(result_for(scores), NOTHING)
    assert "no test images" in page and "class=\"leak\"" not in page
    assert "<b>x</b>" not in page and "http://" not in page and "https://" not in page


def test_report_warns_of_a_split_that_leaks():
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    assert "does not say how well" in report.render(result_for(scores, split="image"), NOTHING)
    assert "2 people stand" in report.render(result_for(scores, leaks={"subject": 2}), NOTHING)
    epochs = [{"epoch": 0, "train_loss": 2.0, "val_loss": 2.0, "val_balanced_accuracy": 0.1}]
    montage = [{"crop": np.zeros((256, 256), np.uint8), "expression": "fear", "split": "test"}]
    result = result_for(scores) | {"history": epochs}
    page = report.render(result, NOTHING | {"montage": montage, "augmented": [np.zeros((224, 224, 3), np.uint8)]})
    assert page.count("data:image") == 5
    assert figures.summary_png(result, montage).startswith(b"\x89PNG")
