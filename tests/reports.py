"""What tests of scores and pages share: probabilities of a made-up network, and results that fill a report."""

import numpy as np

from fer_ray.report import pages

NO_PICTURES = {"montage": [], "augmented": [], "explained": {}}
NO_SHORTCUTS = {"images": 4, "people": 4, "classes": 1, "reason": "few people", "warning": None}
CARD = {"intended_use": "tests", "limits": "", "provenance": "", "licence": ""}


def one_hot(predicted) -> np.ndarray:
    """Probabilities [N, 8] of a network that is sure of these classes."""
    return np.eye(8)[np.asarray(predicted)] * 0.93 + 0.00875


def result_for(scores: dict, split: str = "subject", leaks: dict | None = None, dataset: str = "faces") -> dict:
    """All that a report shows, around these scores of `metrics.evaluate`."""
    return {"name": "<b>x</b>", "created": "now", "command": "python jobs/pipeline.py", "split": split,
            "leaks": leaks or {"subject": 0, "sequence": 0}, "leak_examples": [], "remarks": [], "unseen": [],
            "shortcuts": NO_SHORTCUTS,
            "conflicts": 0, "near_duplicates": 0, "metrics": scores,
            "validation": {"balanced_accuracy": 0.5, "epoch": 1},
            "counts": {"read": {dataset: {"anger": 4}}, "before": {dataset: {"anger": 3}}, "after": {}},
            "rejected": {"no face found": 2}, "config": {"a": {"b": 1}, "card": CARD}, "versions": {"ray": "2"},
            "floor": None,
            "train": {"backbone": "n", "weights": "none", "lr": 1, "momentum": 0, "batch_size": 1, "epochs_run": 1},
            "checkpoint": "c", "fingerprint": "f" * 64, "history": [], "also": [], "groups": {}, "labels": None,
            "calibration": None}


def page_of(result: dict, shown: dict = NO_PICTURES) -> str:
    """The report as HTML, with its lines joined so that sentences can be searched."""
    return " ".join(pages.render(result, shown, pages.draw(result, shown)).split())
