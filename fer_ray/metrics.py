"""Confusion matrix and probabilities to numbers with intervals.

Rows of a confusion matrix are the true classes, columns the predicted ones, in the order of `EXPRESSIONS`.
"""

from __future__ import annotations

import warnings

import numpy as np

from fer_ray.manifest import EXPRESSIONS

CLASSES = np.arange(len(EXPRESSIONS))
DRAWS = 1000


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes that have images ("average accuracy across classes" in the paper).

    Args:
        confusion: int [8, 8]. Returns: 0..1; nan when it counts no image.
    """
    return float(_balanced(np.asarray(confusion)[None])[0])


def evaluate(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None], seed: int = 0) -> dict:
    """All numbers of a test set.

    Args:
        probabilities: float [N, 8], rows sum to 1. labels: int [N]. subjects: N names; the bootstrap draws whole
            people, since images of one person are not independent. Unknown people (None) count one each.

    Returns: see the keys below; what cannot be computed (a class without images) is None, never 0.
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
        "balanced_accuracy_ci95": _interval(_balanced(draws)),
        "accuracy": float(accuracy_score(labels, guesses)),
        "macro_f1": float(f1_score(labels, guesses, labels=present, average="macro", zero_division=0)),
        "log_loss": float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)).mean()),
        "ece": calibration_error(probabilities, labels),
        "per_class": {name: {"precision": _known(precision[i], support[i]), "recall": _known(recall[i], support[i]),
                             "f1": _known(f1[i], support[i]), "support": int(support[i]),
                             "recall_ci95": _interval(recalls[:, i]) if support[i] else None}
                      for i, name in enumerate(EXPRESSIONS)},
        "confusion": confusion.tolist(),
        "test_images": int(len(labels)),
        "test_subjects": len({s for s in subjects if s is not None}),
    }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of the top class (Guo et al. 2017), 0..1."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(sum(abs(right[which == b].mean() - confidence[which == b].mean()) * (which == b).mean()
                     for b in np.unique(which)))


def per_class_table(scores: dict) -> str:
    """The per-class numbers for a terminal."""
    lines = [f"{'':12}{'recall':>8}{'95 % interval':>17}{'precision':>11}{'images':>8}"]
    for name, c in scores["per_class"].items():
        if c["support"]:
            low, high = c["recall_ci95"]
            lines.append(f"{name:12}{c['recall']:8.3f}{f'{low:.2f} to {high:.2f}':>17}{c['precision']:11.3f}"
                         f"{c['support']:8d}")
        else:
            lines.append(f"{name:12}{'no test images':>44}")
    low, high = scores["balanced_accuracy_ci95"]
    lines.append(f"balanced accuracy {scores['balanced_accuracy']:.3f} (95 % interval over people {low:.3f} to "
                 f"{high:.3f}), accuracy {scores['accuracy']:.3f}, {scores['test_images']} images")
    return "\n".join(lines)


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


def _interval(values: np.ndarray) -> list[float]:
    values = values[np.isfinite(values)]
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def _known(value: float, support: int) -> float | None:
    return float(value) if support else None
