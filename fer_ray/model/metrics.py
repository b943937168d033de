"""Scores of a classifier from its confusion matrix and probabilities, with intervals.

Rows of a confusion matrix are the true classes, columns the predicted ones, both in the order of `EXPRESSIONS`.
"Present" is a class with at least one test image: balanced accuracy and chance are taken over those only.
"""

from __future__ import annotations

import warnings

import numpy as np

from fer_ray.data.manifest import EXPRESSIONS

NUM_CLASSES = len(EXPRESSIONS)
CLASSES = np.arange(NUM_CLASSES)
NUM_RESAMPLES = 1000  # test sets that the bootstrap draws
NUM_BINS = 15  # of the reliability diagram
MIN_PEOPLE = 10  # fewer do not show how much people differ: no interval is given
MIN_IMAGES = 30  # a group or test set with fewer images is marked as too small to quote


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes present (the paper's "average accuracy across classes").

    Args:
        confusion: int [8, 8].

    Returns: 0..1, or nan if there is no image at all.
    """
    return float(balanced_accuracies(np.asarray(confusion)[None])[0])


def balanced_accuracies(confusions: np.ndarray) -> np.ndarray:
    """`balanced_accuracy` of many confusion matrices, [N, 8, 8] -> float [N]."""
    images = confusions.sum(2)
    correct = np.diagonal(confusions, axis1=1, axis2=2)
    recall = np.where(images > 0, correct / np.maximum(images, 1), 0.0)
    present = (images > 0).sum(1)
    return np.where(present > 0, recall.sum(1) / np.maximum(present, 1), np.nan)


def chance(confusion: np.ndarray) -> float:
    """The balanced accuracy of guessing, or of always naming one class: one over the number of classes present.

    Args:
        confusion: int [8, 8].

    Returns: 1/8..1, or nan if there is no image at all.
    """
    present = int((np.asarray(confusion).sum(1) > 0).sum())
    return 1 / present if present else float("nan")


def evaluate(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None], seed: int = 0) -> dict:
    """All scores of a test set.

    Args:
        probabilities: float [N, 8], rows sum to 1.
        labels: int [N].
        subjects: N names of people. The bootstrap draws whole people, since images of one person are not independent.
            An image of an unknown person (None) counts as a person of its own.
        seed: of the bootstrap.

    Returns: a dict ready for JSON. What cannot be computed (recall of a class without images, an interval from few
        people) is None, never 0; `no_interval` beside an interval that is None says why.
    """
    # imported here because workers that train need this module for the confusion matrix alone
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    predicted = probabilities.argmax(1)
    confusion = confusion_matrix(labels, predicted, labels=CLASSES)
    present = np.unique(labels)
    resampled = resampled_confusions(labels, predicted, subjects, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class without images is expected
        precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=CLASSES,
                                                                         zero_division=0)
    with np.errstate(invalid="ignore"):
        recalls = np.diagonal(resampled, axis1=1, axis2=2) / resampled.sum(2)
    people = num_people(subjects)
    people_of = [num_people([s for s, label in zip(subjects, labels, strict=True) if label == i]) for i in CLASSES]
    return {
        "balanced_accuracy": balanced_accuracy(confusion),
        "balanced_accuracy_ci95": None if no_interval(people) else interval(balanced_accuracies(resampled)),
        "no_interval": no_interval(people),
        "chance": chance(confusion),
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, labels=present, average="macro", zero_division=0)),
        "log_loss": log_loss(probabilities, labels),
        "ece": calibration_error(probabilities, labels),
        "per_class": {name: {"precision": _if_present(precision[i], support[i]),
                             "recall": _if_present(recall[i], support[i]),
                             "f1": _if_present(f1[i], support[i]), "support": int(support[i]),
                             "people": people_of[i],
                             "recall_ci95": _recall_interval(recalls[:, i], people_of[i]),
                             "no_interval": no_interval(people_of[i])}
                      for i, name in enumerate(EXPRESSIONS)},
        "confusion": confusion.tolist(),
        "test_images": int(len(labels)),
        "test_people": people,
        "test_subjects": len({s for s in subjects if s is not None}),
    }


def num_people(subjects: list[str | None]) -> int:
    """How many people the images show; each image of an unknown person (None) counts as one."""
    return len({s for s in subjects if s is not None}) + sum(s is None for s in subjects)


def no_interval(people: int) -> str | None:
    """Why images of so few people get no interval, in words that end a sentence; None if they get one."""
    if people >= MIN_PEOPLE:
        return None
    return (f"no 95 % interval: the images show {count_people(people)}, and fewer than {MIN_PEOPLE} do not tell "
            "how much people differ")


def resampled_confusions(labels: np.ndarray, predicted: np.ndarray, subjects: list[str | None],
                         seed: int) -> np.ndarray:
    """Confusion matrices, float [NUM_RESAMPLES, 8, 8], of test sets made of people drawn with replacement.

    Args: as of `evaluate`; predicted: int [N].
    """
    # the prefixes keep an unknown person apart from a known one whose name is a number
    names = [f"known {s}" if s is not None else f"unknown {i}" for i, s in enumerate(subjects)]
    people, person_of = np.unique(names, return_inverse=True)
    confusion_of = np.zeros((len(people), NUM_CLASSES**2))
    np.add.at(confusion_of, (person_of, labels * NUM_CLASSES + predicted), 1)
    draws = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)),
                                                    size=NUM_RESAMPLES)
    return (draws @ confusion_of).reshape(-1, NUM_CLASSES, NUM_CLASSES)


def interval(values: np.ndarray) -> list[float]:
    """The percentiles 2.5 and 97.5 of resampled scores [NUM_RESAMPLES], without those that are nan."""
    low, high = np.percentile(values[np.isfinite(values)], [2.5, 97.5])
    return [float(low), float(high)]


def cautions(scores: dict) -> list[str]:
    """What keeps these scores of `evaluate` from being quoted, in sentences."""
    found = []
    if absent := [name for name, c in scores["per_class"].items() if not c["support"]]:
        found.append(f"No test image shows {', '.join(absent)}: the scores say nothing about that.")
    predicted = [name for name, n in zip(EXPRESSIONS, np.sum(scores["confusion"], axis=0), strict=True) if n]
    if len(predicted) == 1 and scores["test_images"] > 1:
        found.append(f"Every test image was taken for {predicted[0]}: the network tells nothing apart.")
    if scores["test_images"] < MIN_IMAGES:
        found.append(f"The test split has {scores['test_images']} image(s), far too few for a score to quote.")
    if scores["test_people"] == 1:
        found.append("All test images show one person: nothing follows for others.")
    return found


def by_group(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None], values: list[str | None],
             seed: int = 0) -> list[dict]:
    """Scores of the images of each value, lowest balanced accuracy first.

    Args: as of `evaluate`; values: the group of each image, None is shown as "unknown".

    Returns: a dict a group, of which `small` marks those with too few images or people to conclude from.
    """
    groups = np.array(["unknown" if v is None else str(v) for v in values])
    rows = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        scores = evaluate(probabilities[members], labels[members], [subjects[i] for i in members], seed)
        rows.append({"value": str(group), "images": len(members), "people": scores["test_people"],
                     "small": bool(len(members) < MIN_IMAGES or scores["test_people"] < MIN_PEOPLE),
                     **{key: scores[key] for key in ("balanced_accuracy", "balanced_accuracy_ci95", "no_interval",
                                                     "chance", "accuracy", "log_loss")}})
    return sorted(rows, key=lambda row: row["balanced_accuracy"])


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true class; a probability below 1e-7 counts as 1e-7."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1)).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error of the most probable class (Guo et al. 2017), 0..1."""
    bins = reliability(probabilities, labels)
    return sum(abs(b["accuracy"] - b["confidence"]) * b["images"] for b in bins) / len(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
    """The reliability diagram: mean confidence, accuracy and number of images of each bin that has any."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    return [{"confidence": float(confidence[bin_of == b].mean()), "accuracy": float(correct[bin_of == b].mean()),
             "images": int((bin_of == b).sum())} for b in np.unique(bin_of)]


def per_class_table(scores: dict) -> str:
    """The scores of `evaluate` as lines for a terminal."""
    lines = [f"{'':12}{'recall':>8}{'95 % interval':>17}{'precision':>11}{'images':>8}"]
    for name, c in scores["per_class"].items():
        if c["support"]:
            lines.append(f"{name:12}{c['recall']:8.3f}{interval_cell(c['recall_ci95'], c['people']):>17}"
                         f"{c['precision']:11.3f}{c['support']:8d}")
        else:
            lines.append(f"{name:12}{'no test images':>44}")
    lines.append(f"balanced accuracy {scores['balanced_accuracy']:.3f} (chance {scores['chance']:.3f}), accuracy "
                 f"{scores['accuracy']:.3f}, {scores['test_images']} images of {count_people(scores['test_people'])}")
    if ends := scores["balanced_accuracy_ci95"]:
        lines.append("95 % interval of the balanced accuracy over people: {:.3f} to {:.3f}".format(*ends))
    else:
        lines.append(scores["no_interval"])
    return "\n".join(lines)


def interval_cell(ends: list[float] | None, people: int) -> str:
    """A table's cell: both ends of an interval, or how few people keep it from being given."""
    if ends is None:
        return f"none: {count_people(people)}"
    return "{:.2f} to {:.2f}".format(*ends)


def _recall_interval(recalls: np.ndarray, people: int) -> list[float] | None:
    """95 % interval of a class's recall from its resampled values [NUM_RESAMPLES].

    Where all or none of the images are recognised, drawing people again always gives the same recall. The interval is
    then the exact one of as many successes as people (Clopper, Pearson 1934).
    """
    if no_interval(people):
        return None
    low, high = interval(recalls)
    if low < high:
        return [low, high]
    from scipy.stats import binomtest

    exact = binomtest(round(low * people), people).proportion_ci()
    return [float(exact.low), float(exact.high)]


def count_people(people: int) -> str:
    """In words: "one person" or "4 people"."""
    return f"{people} people" if people != 1 else "one person"


def _if_present(value: float, support: int) -> float | None:
    return float(value) if support else None
