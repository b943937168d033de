"""A temperature is kept only where validation can carry it and where it helps people it was not fitted on."""

import numpy as np
import pytest
from reports import one_hot, page_of, result_for

from fer_ray.evaluate import calibration
from fer_ray.model import metrics


def drawn_set(images, people, sharpness, seed=0):
    """Probabilities as a network gives them that is `sharpness` times too sure, the true labels, and people."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (images, 8))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([rng.choice(8, p=p) for p in honest])
    return calibration.at_temperature(honest, 1 / sharpness), labels, [f"p{i % people}" for i in range(images)]


def test_temperature_undoes_overconfidence():
    boasting, labels, people = drawn_set(4000, 40, 3)
    test, test_labels, _ = drawn_set(500, 10, 3, seed=1)
    found = calibration.calibrate(boasting, labels, people, test, test_labels)
    assert found["temperature"] == pytest.approx(3, rel=0.1) and found["reason"] is None
    assert found["scaled"]["log_loss"] < found["as_is"]["log_loss"]
    assert found["validation"]["scaled_log_loss"] < found["validation"]["log_loss"]
    assert found["scaled"]["ece"] < 0.1 < found["as_is"]["ece"]


def test_four_people_that_are_all_read_right_sharpen_nothing():
    """The quickstart's case: fitted on them the temperature ran to 0.05, and log loss on test from 0.016 to 0.141."""
    labels = np.tile(np.arange(8), 11)
    test = one_hot(np.r_[np.arange(8), 1])
    found = calibration.calibrate(one_hot(labels), labels, [f"p{i % 4}" for i in range(88)], test,
                                  np.r_[np.arange(8), 0])
    assert found["temperature"] == 1.0 and found["scaled"] is None
    assert "88 images of 4 people" in found["reason"] and "100 images of 10 people" in found["reason"]
    assert found["validation"]["scaled_log_loss"] is None


def test_a_fit_without_a_minimum_is_not_kept():
    labels = np.tile(np.arange(8), 30)  # all right: the sharper, the better, without end
    found = calibration.calibrate(one_hot(labels), labels, [f"p{i % 20}" for i in range(240)], one_hot([1]),
                                  np.array([0]))
    assert found["temperature"] == 1.0 and "no temperature between 0.2 and 5" in found["reason"]


def test_a_fit_that_does_not_help_other_people_is_not_kept():
    """One person is always misread with great confidence: what the fit gains there it loses on the others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, 120)
    people = [f"p{i % 10}" for i in range(120)]
    wrong = np.array([p == "p0" for p in people])
    probabilities = np.where(wrong[:, None], 0.999 * np.eye(8)[(labels + 1) % 8] + 0.001 / 8,
                             0.88 * np.eye(8)[labels] + 0.12 / 8)
    found = calibration.calibrate(probabilities, labels, people, probabilities, labels)
    assert calibration.fit_temperature(probabilities, labels) is not None
    assert found["temperature"] == 1.0 and "held out" in found["reason"]
    assert found["validation"]["scaled_log_loss"] >= found["validation"]["log_loss"]


@pytest.mark.parametrize("people", [40, 4])
def test_report_shows_log_loss_before_and_after_or_why_there_is_no_temperature(people):
    val, val_labels, names = drawn_set(400, people, 3)
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    found = calibration.calibrate(val, val_labels, names, val[:50], val_labels[:50])
    page = page_of(result_for(scores) | {"calibration": found})
    assert ("No temperature is used" in page) == (people == 4)
    assert (f"from {found['validation']['log_loss']:.3f} to" in page) == (people == 40)
