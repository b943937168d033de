"""Temperature scaling: can the probabilities be made more honest by one number fitted on validation images?

Guo et al., "On Calibration of Modern Neural Networks", 2017. The fit is kept only where validation can carry it: a
network that is right on all validation images of four people would be sharpened without end, and be all the more wrong
on the next person.
"""

from __future__ import annotations

import numpy as np

from fer_ray.model import metrics

MIN_IMAGES = 100  # validation images that a fit needs
LOWEST, HIGHEST = 0.2, 5.0  # temperatures that are tried; a fit that ends there has found no minimum
NUM_FOLDS = 5


def calibrate(val: np.ndarray, val_labels: np.ndarray, val_subjects: list[str | None], test: np.ndarray,
              labels: np.ndarray) -> dict:
    """Reliability of the test probabilities as they are, and at the temperature fitted on validation if that is kept.

    Args:
        val: float [M, 8], probabilities of the validation images.
        val_labels: int [M].
        val_subjects: M names of people; None if unknown.
        test: float [N, 8], probabilities of the test images.
        labels: int [N].

    Returns: `temperature` (1.0 if none is kept), `reason` (why none is kept, else None), `validation` (`images`,
        `people`, `log_loss` before, and `scaled_log_loss` after, of images that were held out from the fit; None if
        there was no fit), and of the test images `as_is` and `scaled` (None if no temperature is kept), each with
        `ece`, `log_loss` and the `bins` of `metrics.reliability`.
    """
    people = metrics.num_people(val_subjects)
    temperature, reason, after = 1.0, too_few(len(val_labels), people), None
    before = metrics.log_loss(val, val_labels) if len(val_labels) else None
    if reason is None and before is not None:
        fitted = fit_temperature(val, val_labels)
        after = held_out_log_loss(val, val_labels, val_subjects)
        if fitted is None:
            reason = f"no temperature between {LOWEST:g} and {HIGHEST:g} has the least log loss on validation"
        elif after >= before:
            reason = "on validation images that were held out from the fit it does not lower the log loss"
        else:
            temperature = fitted
    scaled = None if reason else _reliability(at_temperature(test, temperature), labels)
    validation = {"images": len(val_labels), "people": people, "log_loss": before, "scaled_log_loss": after}
    return {"temperature": temperature, "reason": reason, "validation": validation,
            "as_is": _reliability(test, labels), "scaled": scaled}


def too_few(images: int, people: int) -> str | None:
    """Why a temperature cannot be fitted on so many validation images of so many people; None if it can."""
    if images >= MIN_IMAGES and people >= metrics.MIN_PEOPLE:
        return None
    return (f"validation has {images} images of {people} people, and a fit needs at least {MIN_IMAGES} images of "
            f"{metrics.MIN_PEOPLE} people")


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature of the least log loss; None if it does not lie between `LOWEST` and `HIGHEST`.

    Args:
        probabilities: float [N, 8].
        labels: int [N].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return metrics.log_loss(at_temperature(probabilities, np.exp(log_temperature)), labels)

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    # the bounded search never tries the bounds themselves: it ends a little inside of the one it is driven to
    if min(loss(bound) for bound in bounds) <= found.fun or min(abs(found.x - np.array(bounds))) < 1e-3:
        return None
    return float(np.exp(found.x))


def held_out_log_loss(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None]) -> float:
    """Log loss of all images, each at a temperature that was fitted on images of other people.

    Args:
        probabilities: float [N, 8].
        labels: int [N].
        subjects: N names of people, at least two different ones; each unknown person (None) is one of its own.
    """
    from sklearn.model_selection import GroupKFold

    people = [f"known {s}" if s is not None else f"unknown {i}" for i, s in enumerate(subjects)]
    folds = GroupKFold(min(NUM_FOLDS, len(set(people)))).split(probabilities, labels, people)
    scaled = np.empty_like(probabilities, dtype=np.float64)
    for fitted_on, held_out in folds:
        # a fold without a minimum counts as it is
        temperature = fit_temperature(probabilities[fitted_on], labels[fitted_on]) or 1.0
        scaled[held_out] = at_temperature(probabilities[held_out], temperature)
    return metrics.log_loss(scaled, labels)


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax probabilities [N, 8] as if the logits had been divided by `temperature`, as `Predictor` does it."""
    from scipy.special import softmax

    # A larger bound than the least float32 would count: at temperature 5, 1e-12 becomes 0.004.
    return softmax(np.log(np.clip(probabilities, np.finfo(np.float32).tiny, 1)) / temperature, axis=1)


def _reliability(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    return {"ece": metrics.calibration_error(probabilities, labels),
            "log_loss": metrics.log_loss(probabilities, labels), "bins": metrics.reliability(probabilities, labels)}
