"""Which labels are likely wrong: out-of-fold predictions, confident learning, and duplicates that disagree.

Confident learning: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021 (cleanlab).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fer_ray.data import duplicates
from fer_ray.data.manifest import EXPRESSIONS


def rank(expressions: list[str], probabilities: np.ndarray, rows: pd.DataFrame) -> pd.DataFrame:
    """One row an image, the most doubtful first.

    Args:
        expressions: N given labels. probabilities: float [N, 8], of a network that did not see the image.
        rows: the N rows of the index, for `cluster`, `duplicates.HASHES` and `sequence`: frames of one video look
            alike while the expression changes, so they do not contradict each other.

    Returns: `position` (in the input), `suggested` (the likeliest class), `quality` (0..1, the probability of
        the given label), `ambiguity` (0..1, entropy of the probabilities: how hard the image is, whatever its label),
        `twins` (the expressions of its near-duplicates, where they differ), `reason` (why it is a suspect, else "").
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
    else:  # nothing to be confused with
        doubted, quality = np.zeros(len(labels), bool), np.ones(len(labels))
    entropy = -(kept * np.log(np.clip(kept, 1e-12, 1))).sum(1) / np.log(max(2, len(present)))
    twins = _twins(rows.assign(expression=expressions).reset_index(drop=True))
    suggested = [present[i] for i in kept.argmax(1)]
    reason = [f"duplicates say {twin}" if twin else f"looks like {guess} ({p:.2f})" if doubt else ""
              for twin, guess, p, doubt in zip(twins, suggested, kept.max(1), doubted, strict=True)]
    ranked = pd.DataFrame({"position": np.arange(len(labels)), "suggested": suggested, "quality": quality,
                           "ambiguity": entropy, "twins": twins, "reason": reason})
    order = np.lexsort((quality, ranked["reason"] == "", [not t for t in twins]))
    return ranked.iloc[order].reset_index(drop=True)


def _twins(rows: pd.DataFrame) -> list[str]:
    """The other expressions of each row's near-duplicates, as a comma list; "" where all agree."""
    found = [""] * len(rows)
    for _, group in rows[rows.duplicated("cluster", keep=False)].groupby("cluster"):
        for i, others in zip(group.index, duplicates.contradictions(group), strict=True):
            found[i] = ",".join(sorted(set(group["expression"][others])))
    return found
