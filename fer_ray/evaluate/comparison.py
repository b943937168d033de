"""Runs of several backbones beside each other: one table, one picture (the paper's Fig 12)."""

from __future__ import annotations

import pandas as pd

from fer_ray import storage
from fer_ray.train import tracking


def matrix(reports: dict[str, dict]) -> dict:
    """Balanced accuracy of each network (row) on each data set (column). `reports`: report.json by data set.

    Returns: `names`, `scores` and `classes` [N][N], and `pairs`, a dict each.
    """
    names, pairs = list(reports), []
    for trained_on, own in reports.items():
        elsewhere = {a["name"]: a for a in own["also"]}
        for tested_on in names:
            scored = own if tested_on == trained_on else elsewhere[tested_on]
            scores = scored["metrics"]
            pairs.append({"trained_on": trained_on, "tested_on": tested_on, "left_out": scored.get("left_out", {}),
                          "classes": sum(c["support"] > 0 for c in scores["per_class"].values()) if scores else 0,
                          "balanced_accuracy": scores and scores["balanced_accuracy"],
                          "images": scores["test_images"] if scores else 0})
    rows = [pairs[i : i + len(names)] for i in range(0, len(pairs), len(names))]
    return {"names": names, "pairs": pairs, "scores": [[p["balanced_accuracy"] for p in row] for row in rows],
            "classes": [[p["classes"] for p in row] for row in rows]}


def table(root: str, names: list[str]) -> tuple[list[dict], dict[str, list[dict]]]:
    """A row of numbers for each finished run below the storage `root`, and the epochs of each backbone."""
    rows, curves = [], {}
    for name in names:
        run = storage.join(root, "runs", name)
        result = storage.read_json(storage.join(run, "result.json"))
        epochs = tracking.read(run)
        curves[result["train"]["backbone"]] = epochs
        rows.append({
            "backbone": result["train"]["backbone"], "parameters_m": result["parameters"] / 1e6,
            "epochs": len(epochs), "epoch_s": sum(e["train_s"] for e in epochs) / len(epochs),
            "images_per_s": sum(e["images_per_s"] for e in epochs) / len(epochs),
            "train_loss": epochs[-1]["train_loss"], "val_balanced_accuracy": result["validation"]["balanced_accuracy"],
            "test_balanced_accuracy": result["balanced_accuracy"], "test_ci95": result["balanced_accuracy_ci95"],
            "test_accuracy": result["accuracy"], "result": storage.join(run, "result.json"),
        })
    return rows, curves


def as_text(rows: list[dict]) -> str:
    """The rows of `table` for a terminal."""
    return pd.DataFrame(rows).drop(columns=["test_ci95", "result"]).to_string(index=False, float_format="{:.3f}".format)
