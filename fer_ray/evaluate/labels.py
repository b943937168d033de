"""Which labels are likely wrong: out-of-fold predictions, confident learning, and duplicates that disagree.

Confident learning: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021 (cleanlab).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from fer_ray.data import duplicates
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.errors import UserError
from fer_ray.model import metrics

MIN_SKILL = 0.1  # of the way from chance to a balanced accuracy of 1
NUM_SHUFFLES = 1000


class UntrustworthyError(UserError):
    """The network is too near chance to doubt anybody's labels; the message gives its score and what it must reach."""


def check_network(labels: np.ndarray, predicted: np.ndarray) -> dict:
    """The score of the network that is to judge the labels; a network near chance would doubt nearly all of them.

    Its balanced accuracy must lie at least `MIN_SKILL` of the way from chance to 1, and above 99 % of the scores that
    it gets when its predictions are shuffled among the images.

    Args:
        labels: int [N], the labels to judge.
        predicted: int [N], of networks that did not see the image.

    Returns: `balanced_accuracy`, `chance`, and `required`, the least that is trusted.

    Raises: UntrustworthyError.
    """
    confusion = _confusion(labels, predicted)
    score, chance = metrics.balanced_accuracy(confusion), metrics.chance(confusion)
    rng = np.random.default_rng(0)
    shuffled = [metrics.balanced_accuracy(_confusion(labels, rng.permutation(predicted))) for _ in range(NUM_SHUFFLES)]
    required = max(chance + MIN_SKILL * (1 - chance), float(np.percentile(shuffled, 99)))
    if score < required:
        raise UntrustworthyError(
            f"labels: the network that is to judge the labels reaches a balanced accuracy of {score:.3f} on images it "
            f"has not seen, where chance is {chance:.3f}; below {required:.3f} its doubts mean nothing, so none are "
            "listed. Train it better first (train.weights imagenet, more train.epochs, another train.lr) until "
            "jobs/crossval.py with the same options shows a higher score")
    return {"balanced_accuracy": score, "chance": chance, "required": required}


def _confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    size = metrics.NUM_CLASSES
    return np.bincount(labels * size + predicted, minlength=size**2).reshape(size, size)


def rank(expressions: list[str], probabilities: np.ndarray, rows: pd.DataFrame,
         read_thumbnails: Callable[[pd.DataFrame], dict[str, np.ndarray]]) -> pd.DataFrame:
    """One row an image, the most doubtful first.

    Args:
        expressions: N labels to judge.
        probabilities: float [N, 8], of a network that did not see the image.
        rows: the N rows of the index.
        read_thumbnails: of some of the rows by image; see `duplicates.contradictions`.

    Returns: `position` (in the input), `suggested` (the likeliest class), `quality` (0..1, the probability of
        the label), `ambiguity` (0..1, entropy of the probabilities: how hard the image is, whatever its label),
        `twins` (the expressions of the same picture elsewhere, where they differ), `reason` (why it is a suspect,
        else "").
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    present = [e for e in EXPRESSIONS if e in set(expressions)]
    labels = np.array([present.index(e) for e in expressions])
    kept = probabilities[:, [EXPRESSIONS.index(e) for e in present]]
    kept = kept / kept.sum(1, keepdims=True)
    if len(present) > 1:
        # of cleanlab's ways to choose, the one that finds planted noise best: scripts/measure_labels.py
        doubted = find_label_issues(labels, kept, filter_by="low_self_confidence", n_jobs=1)
        quality = get_label_quality_scores(labels, kept, method="self_confidence")
    else:  # there is no other class that the label could be
        doubted, quality = np.zeros(len(labels), bool), np.ones(len(labels))
    entropy = -(kept * np.log(np.clip(kept, 1e-12, 1))).sum(1) / np.log(max(2, len(present)))
    twins = _labels_of_twins(rows.assign(expression=expressions).reset_index(drop=True), read_thumbnails)
    suggested = [present[i] for i in kept.argmax(1)]
    reason = [f"duplicates say {twin}" if twin else f"looks like {guess} ({p:.2f})" if doubt else ""
              for twin, guess, p, doubt in zip(twins, suggested, kept.max(1), doubted, strict=True)]
    ranked = pd.DataFrame({"position": np.arange(len(labels)), "suggested": suggested, "quality": quality,
                           "ambiguity": entropy, "twins": twins, "reason": reason})
    # the last key of lexsort weighs most: contradicted by duplicates, then suspects, then the lowest quality
    order = np.lexsort((quality, np.array(reason) == "", np.array(twins) == ""))
    return ranked.iloc[order].reset_index(drop=True)


def _labels_of_twins(rows: pd.DataFrame, read_thumbnails: Callable[[pd.DataFrame], dict[str, np.ndarray]]) -> list[str]:
    """The other expressions of each row's picture elsewhere, as a comma list; "" where all agree."""
    found: list[set[str]] = [set() for _ in range(len(rows))]
    expressions = rows["expression"].tolist()
    for first, second in duplicates.contradictions(rows, read_thumbnails):
        found[first].add(expressions[second])
        found[second].add(expressions[first])
    return [",".join(sorted(labels)) for labels in found]
