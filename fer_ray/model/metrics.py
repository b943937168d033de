"""Scores of a classifier from its confusion matrix and probabilities, with intervals.

Rows of a confusion matrix are the true classes, columns the predicted ones, both in the order of `EXPRESSIONS`.
"Present" is a class with at least one test image: balanced accuracy and chance are taken over those only.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pandas as pd

from fer_ray.data.manifest import EXPRESSIONS

NUM_CLASSES = len(EXPRESSIONS)
CLASSES = np.arange(NUM_CLASSES)
NUM_BINS = 15  # of the reliability diagram
MIN_PEOPLE_FOR_INTERVAL = 5  # of fewer the 95 % intervals would span nearly everything
MIN_PEOPLE = 10  # fewer are too few to compare groups or splits by, or to fit a temperature on
GROUPS_TOLD = 4  # on a terminal, of one column
MIN_IMAGES = 30  # a group or test set with fewer images is marked as too small to quote


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes present (the paper's "average accuracy across classes").

    Args:
        confusion: int [8, 8].

    Returns: 0..1, or nan if there is no image at all.
    """
    images = np.asarray(confusion).sum(1)
    recall = np.diagonal(confusion) / np.maximum(images, 1)
    return float(recall[images > 0].mean()) if images.any() else float("nan")


def chance(confusion: np.ndarray) -> float:
    """The balanced accuracy of guessing, or of always naming one class: one over the number of classes present.

    Args:
        confusion: int [8, 8].

    Returns: 1/8..1, or nan if there is no image at all.
    """
    present = int((np.asarray(confusion).sum(1) > 0).sum())
    return 1 / present if present else float("nan")


def evaluate(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None]) -> dict:
    """All scores of a test set.

    Args:
        probabilities: float [N, 8], rows sum to 1.
        labels: int [N].
        subjects: N names of people, since images of one person are not independent. An image of an unknown person
            (None) counts as a person of its own.

    Returns: a dict ready for JSON. What cannot be computed (recall of a class without images, an interval from few
        people) is None, never 0; `no_interval` beside an interval that is None says why.
    """
    # imported here because workers that train need this module for the confusion matrix alone
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    predicted = probabilities.argmax(1)
    confusion = confusion_matrix(labels, predicted, labels=CLASSES)
    present = np.unique(labels)
    correct, images = counts_by_person(labels, predicted, subjects)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class without images is expected
        precision, recall, f1, support = precision_recall_fscore_support(labels, predicted, labels=CLASSES,
                                                                         zero_division=0)
    people, people_of = len(images), np.count_nonzero(images, axis=0).tolist()
    return {
        "balanced_accuracy": balanced_accuracy(confusion),
        "balanced_accuracy_ci95": _interval_of(correct, images),
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
                             "recall_ci95": _interval_of(*(n[images[:, i] > 0, i : i + 1] for n in (correct, images))),
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
    if people >= MIN_PEOPLE_FOR_INTERVAL:
        return None
    return (f"no 95 % interval: the images show {count_people(people)}, and fewer than {MIN_PEOPLE_FOR_INTERVAL} do "
            "not tell how much people differ")


def counts_by_person(labels: np.ndarray, predicted: np.ndarray, subjects: list[str | None]
                     ) -> tuple[np.ndarray, np.ndarray]:
    """How many images of each class were recognised, and how many there are, of each person; int64 [people, 8] both.

    Args: as of `evaluate`; predicted: int [N].
    """
    person = pd.factorize(np.array(subjects, object))[0]
    unknown = person < 0
    person[unknown] = person.max(initial=-1) + 1 + np.arange(unknown.sum())
    cell = person * NUM_CLASSES + labels
    shape = person.max(initial=-1) + 1, NUM_CLASSES
    correct, images = (np.bincount(c, minlength=shape[0] * shape[1]) for c in (cell[predicted == labels], cell))
    return correct.reshape(shape), images.reshape(shape)


def interval(correct: np.ndarray, images: np.ndarray) -> np.ndarray:
    """95 % intervals of balanced accuracies over people, float [..., 2].

    Wilson's score interval (1927) of as many independent images as would vary as much as the people do, with Student's
    quantile for so many people. How much they vary is seen by leaving out each in turn (the jackknife), which tells
    nothing of a class that one person alone shows: of that, the spread of a single image is taken. docs/evaluation.md
    has how often the intervals cover the truth.

    Args:
        correct: number of recognised images, int [..., people, classes].
        images: number of images, of the same shape; each person has at least one. Classes without any do not count.
    """
    from scipy.special import stdtrit

    people = images.shape[-2]
    of_class = images.sum(-2, keepdims=True)
    recall = correct.sum(-2, keepdims=True) / np.maximum(of_class, 1)
    classes = (of_class > 0).sum(-1, keepdims=True)
    score = recall.sum((-2, -1)) / classes[..., 0, 0]
    others = of_class - images
    change = ((correct - recall * images) / np.maximum(others, 1) / classes).sum(-1)
    alone = ((images > 0) & (others == 0)).sum((-2, -1)) / classes[..., 0, 0] ** 2
    of_image = score * (1 - score)
    variance = (people - 1) / people * ((change**2).sum(-1) + alone * of_image)
    # where all people are read equally well or badly, each counts as one image
    equivalent = np.where(variance > 0, of_image / np.where(variance > 0, variance, 1), people)
    weight = stdtrit(people - 1, 0.975) ** 2 / equivalent
    middle = (score + weight / 2) / (1 + weight)
    half = np.sqrt(weight * (of_image + weight / 4)) / (1 + weight)
    return np.stack([middle - half, middle + half], -1)


def _interval_of(correct: np.ndarray, images: np.ndarray) -> list[float] | None:
    """`interval` of one test set; None if it shows too few people."""
    return None if no_interval(len(images)) else interval(correct, images).tolist()


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


def by_group(probabilities: np.ndarray, labels: np.ndarray, subjects: list[str | None], values: list[str | None]
             ) -> list[dict]:
    """Scores of the images of each value, lowest balanced accuracy first.

    Args: as of `evaluate`; values: the group of each image, None is shown as "unknown".

    Returns: a dict a group, of which `small` marks those with too few images or people to conclude from. Groups with
        other classes compare badly, so `common_accuracy` is that over the `common_classes`, which all groups have
        (None if there is none).
    """
    groups = pd.Series(["unknown" if v is None else str(v) for v in values])
    members_of = groups.groupby(groups).indices
    common = functools.reduce(np.intersect1d, [labels[members] for members in members_of.values()])
    rows = []
    for group, members in members_of.items():
        shared = members[np.isin(labels[members], common)]
        scores = evaluate(probabilities[members], labels[members], [subjects[i] for i in members])
        rows.append({"value": str(group), "images": len(members), "people": scores["test_people"],
                     "common_classes": len(common),
                     "common_accuracy": _if_present(np.mean(probabilities[shared].argmax(1) == labels[shared])
                                                    if len(shared) else 0.0, len(shared)),
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


def group_lines(groups: dict[str, list[dict]]) -> list[str]:
    """The scores of `by_group` by several columns as lines for a terminal; columns of a single value tell nothing."""
    lines = []
    for column, rows in groups.items():
        if 1 < len(rows) <= GROUPS_TOLD:
            shown = "; ".join(f"{row['value']}: balanced accuracy {row['balanced_accuracy']:.3f} (chance "
                              f"{row['chance']:.3f}), accuracy {row['accuracy']:.3f}, {row['images']} images"
                              for row in rows)
            lines.append(f"by {column}: {shown}")
            if classes := rows[0]["common_classes"]:
                lines.append(f"    accuracy over the {classes} class(es) of all these: "
                             + ", ".join(f"{row['value']} {row['common_accuracy']:.3f}" for row in rows))
    return lines


def interval_cell(ends: list[float] | None, people: int) -> str:
    """A table's cell: both ends of an interval, or how few people keep it from being given."""
    if ends is None:
        return f"none: {count_people(people)}"
    return "{:.2f} to {:.2f}".format(*ends)


def count_people(people: int) -> str:
    """In words: "one person" or "4 people"."""
    return f"{people} people" if people != 1 else "one person"


def _if_present(value: float, support: int) -> float | None:
    return float(value) if support else None
