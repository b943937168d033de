"""Confusion matrix and probabilities to numbers with intervals.

Rows of a confusion matrix are the true classes, columns the predicted ones, in the order of `EXPRESSIONS`.
"""

from __future__ import annotations

import warnings

import numpy as np

from fer_ray.data.manifest import EXPRESSIONS

CLASSES = np.arange(len(EXPRESSIONS))
DRAWS = 1000
BINS = 15  # of the reliability diagram
SMALL_IMAGES, SMALL_PEOPLE = 30, 5  # a group with fewer says little


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes that have images ("average accuracy across classes" in the paper).

    Args:
        confusion: int [8, 8]. Returns: 0..1; nan when it counts no image.
    """
    return float(_balanced(np.asarray(confusion)[None])[0])


def chance(confusion: np.ndarray) -> float:
    """The balanced accuracy of guessing, or of always naming one class: one over the number of classes present.

    Args:
        confusion: int [8, 8].

    Returns: 1/8..1, or nan if there is no image at all.
    """
    present = int((np.asarray(confusion).sum(1) > 0).sum())
    return 1 / present if present else float("nan")


def evaluate(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None], seed: int = 0) -> dict:
    """All numbers of a test set.

    Args:
        probabilities: float [N, 8], rows sum to 1. labels: int [N]. subjects: N names; the bootstrap draws whole
            people, since images of one person are not independent. Unknown people (None) count one each.

    Returns: see the keys below; what cannot be computed (a class without images, an interval from one person) is
        None, never 0.
    """
    # here, since the workers that train import this module for the confusion matrix alone
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    guesses = probabilities.argmax(1)
    confusion = confusion_matrix(labels, guesses, labels=CLASSES)
    present = np.unique(labels)
    draws = _draws(labels, guesses, subjects, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        precision, recall, f1, support = precision_recall_fscore_support(labels, guesses, labels=CLASSES,
                                                                         zero_division=0)
    with np.errstate(invalid="ignore"):
        recalls = np.diagonal(draws, axis1=1, axis2=2) / draws.sum(2)
    return {
        "balanced_accuracy": balanced_accuracy(confusion),
        "balanced_accuracy_ci95": _interval(_balanced(draws), _num_people(subjects)),
        "accuracy": float(accuracy_score(labels, guesses)),
        "macro_f1": float(f1_score(labels, guesses, labels=present, average="macro", zero_division=0)),
        "log_loss": log_loss(probabilities, labels),
        "ece": calibration_error(probabilities, labels),
        "per_class": {name: {"precision": _known(precision[i], support[i]), "recall": _known(recall[i], support[i]),
                             "f1": _known(f1[i], support[i]), "support": int(support[i]),
                             "recall_ci95": _recall_interval(recalls[:, i], _num_people(
                                 [s for s, label in zip(subjects, labels, strict=True) if label == i]))}
                      for i, name in enumerate(EXPRESSIONS)},
        "confusion": confusion.tolist(),
        "test_images": int(len(labels)),
        "test_subjects": len({s for s in subjects if s is not None}),
    }


def balanced_accuracy_interval(labels: np.ndarray, guesses: np.ndarray, subjects: list[str | None],
                               seed: int = 0) -> list[float] | None:
    """95 % interval of the balanced accuracy, by the percentiles of test sets made of people drawn with replacement.

    None for one person, whose images could say nothing about others.
    """
    return _interval(_balanced(_draws(labels, guesses, subjects, seed)), _num_people(subjects))


def cautions(scores: dict) -> list[str]:
    """What keeps these numbers of `evaluate` from being quoted, in sentences."""
    found = []
    if absent := [name for name, c in scores["per_class"].items() if not c["support"]]:
        found.append(f"No test image shows {', '.join(absent)}: the numbers say nothing about that.")
    guessed = [name for name, n in zip(EXPRESSIONS, np.sum(scores["confusion"], axis=0), strict=True) if n]
    if len(guessed) == 1 and scores["test_images"] > 1:
        found.append(f"Every test image was taken for {guessed[0]}: the network tells nothing apart.")
    if scores["test_images"] < SMALL_IMAGES:
        found.append(f"The test split has {scores['test_images']} image(s), far too few for a figure to quote.")
    if scores["balanced_accuracy_ci95"] is None:
        found.append("All test images show one person: nothing follows for others.")
    return found


def by_group(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None], values: list[str | None],
             seed: int = 0) -> list[dict]:
    """Scores of the images of each value ("unknown" for None), worst first; `small` marks groups that say little."""
    values = np.array(["unknown" if v is None else str(v) for v in values])
    rows = []
    for value in np.unique(values):
        member = np.flatnonzero(values == value)
        s = evaluate(probabilities[member], labels[member], [subjects[i] for i in member], seed)
        people = _num_people([subjects[i] for i in member])
        rows.append({"value": str(value), "images": len(member), "people": people,
                     "small": bool(len(member) < SMALL_IMAGES or people < SMALL_PEOPLE),
                     **{k: s[k] for k in ("balanced_accuracy", "balanced_accuracy_ci95", "accuracy", "log_loss")}})
    return sorted(rows, key=lambda r: r["balanced_accuracy"])


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true class; probabilities below 1e-7 count as that."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the top class (Guo et al. 2017), 0..1."""
    bins = reliability(probabilities, labels)
    return sum(abs(b["accuracy"] - b["confidence"]) * b["images"] for b in bins) / len(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
    """The reliability diagram: mean confidence, accuracy and number of images of each bin that has any."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [{"confidence": float(confidence[which == b].mean()), "accuracy": float(right[which == b].mean()),
             "images": int((which == b).sum())} for b in np.unique(which)]


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, 0.05..20, that gives the least log loss (Guo et al. 2017); to be fitted on val."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda t: log_loss(at_temperature(probabilities, np.exp(t)), labels), bounds=(-3, 3),
                            method="bounded")
    return float(np.exp(found.x))


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax probabilities [N, 8] as if the logits had been divided by `temperature`."""
    from scipy.special import softmax

    return softmax(np.log(np.clip(probabilities, 1e-12, 1)) / temperature, axis=1)


def per_class_table(scores: dict) -> str:
    """The per-class numbers for a terminal."""
    lines = [f"{'':12}{'recall':>8}{'95 % interval':>17}{'precision':>11}{'images':>8}"]
    for name, c in scores["per_class"].items():
        if c["support"]:
            interval = "one person" if c["recall_ci95"] is None else "{:.2f} to {:.2f}".format(*c["recall_ci95"])
            lines.append(f"{name:12}{c['recall']:8.3f}{interval:>17}{c['precision']:11.3f}{c['support']:8d}")
        else:
            lines.append(f"{name:12}{'no test images':>44}")
    interval = interval_text(scores["balanced_accuracy_ci95"])
    lines.append(f"balanced accuracy {scores['balanced_accuracy']:.3f} ({interval}), accuracy "
                 f"{scores['accuracy']:.3f}, {scores['test_images']} images")
    return "\n".join(lines)


def interval_text(interval: list[float] | None) -> str:
    """An interval in words."""
    if interval is None:
        return "no interval: all images show one person"
    return "95 % interval over people {:.3f} to {:.3f}".format(*interval)


def _draws(labels: np.ndarray, guesses: np.ndarray, subjects: list[str | None], seed: int) -> np.ndarray:
    """Confusion matrices [DRAWS, 8, 8] of test sets made of people drawn with replacement."""
    names = [f"known {s}" if s is not None else f"unknown {i}" for i, s in enumerate(subjects)]
    people, owner = np.unique(names, return_inverse=True)
    k = len(EXPRESSIONS)
    each = np.zeros((len(people), k * k))
    np.add.at(each, (owner, labels * k + guesses), 1)
    times = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), size=DRAWS)
    return (times @ each).reshape(-1, k, k)


def _balanced(confusions: np.ndarray) -> np.ndarray:
    """Mean recall over present classes for confusion matrices [N, 8, 8]; float [N]."""
    counts = confusions.sum(2)
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    recall = np.where(counts > 0, hits / np.maximum(counts, 1), 0.0)
    present = (counts > 0).sum(1)
    return np.where(present > 0, recall.sum(1) / np.maximum(present, 1), np.nan)


def _interval(values: np.ndarray, num_people: int) -> list[float] | None:
    """None where there are not two people, whose difference could say anything about others."""
    values = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(values, [2.5, 97.5])] if num_people > 1 else None


def _recall_interval(draws: np.ndarray, num_people: int) -> list[float] | None:
    """As `_interval`; where all or none are recognised, and drawing people again says nothing, the exact interval of as
    many successes as people (Clopper, Pearson 1934)."""
    found = _interval(draws, num_people)
    if found is None or found[0] < found[1]:
        return found
    from scipy.stats import binomtest

    exact = binomtest(round(found[0] * num_people), num_people).proportion_ci()
    return [float(exact.low), float(exact.high)]


def _num_people(subjects: list[str | None]) -> int:
    """Unknown people count one each."""
    return len({s for s in subjects if s is not None}) + sum(s is None for s in subjects)


def _known(value: float, support: int) -> float | None:
    return float(value) if support else None
