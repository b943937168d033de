"""Runs beside each other: networks on each other's data sets, and several backbones (the paper's Fig 12)."""

from __future__ import annotations

import pandas as pd

from fer_ray import storage
from fer_ray.evaluate import results
from fer_ray.model import metrics
from fer_ray.train import tracking


def matrix(reports: dict[str, dict]) -> dict:
    """Balanced accuracy of each network (row) on each data set (column).

    Args:
        reports: `report.json` of each network, by the name of the data set it was trained on.

    Returns: `names`, and `pairs`: a dict for each of the N x N pairs, row by row. `balanced_accuracy`, `chance` and
        the interval are None where no image was left to score.
    """
    pairs = []
    for trained_on, own in reports.items():
        elsewhere = {scored["name"]: scored for scored in own["also"]}
        for tested_on in reports:
            scored = own if tested_on == trained_on else elsewhere[tested_on]
            scores = scored["metrics"] or {}
            pairs.append({"trained_on": trained_on, "tested_on": tested_on, "left_out": scored.get("left_out", {}),
                          "classes": sum(c["support"] > 0 for c in scores.get("per_class", {}).values()),
                          "images": scores.get("test_images", 0), "people": scores.get("test_people", 0),
                          **{key: scores.get(key) for key in ("balanced_accuracy", "balanced_accuracy_ci95",
                                                              "no_interval", "chance")}})
    return {"names": list(reports), "pairs": pairs}


def table(root: str, names: list[str]) -> tuple[list[dict], dict[str, list[dict]]]:
    """A dict of numbers for each finished run below the storage `root`, and the epochs of each backbone.

    Raises: storage.DamagedError.
    """
    rows, curves = [], {}
    for name in names:
        run = storage.join(root, "runs", name)
        result, epochs = results.read_result(run), tracking.read(run)
        curves[result["train"]["backbone"]] = epochs
        rows.append({
            "backbone": result["train"]["backbone"], "parameters_m": result["parameters"] / 1e6,
            "epochs": len(epochs), "epoch_s": sum(e["train_s"] for e in epochs) / len(epochs),
            "images_per_s": sum(e["images_per_s"] for e in epochs) / len(epochs),
            "train_loss": epochs[-1]["train_loss"], "val_balanced_accuracy": result["validation"]["balanced_accuracy"],
            "test_balanced_accuracy": result["balanced_accuracy"], "test_chance": result["chance"],
            "test_ci95": result["balanced_accuracy_ci95"], "test_no_interval": result["no_interval"],
            "test_people": result["test_people"], "test_accuracy": result["accuracy"],
            "result": storage.join(run, "result.json"),
        })
    return rows, curves


def as_text(rows: list[dict]) -> str:
    """The rows of `table` for a terminal."""
    shown = [{"test_95_%": metrics.interval_cell(row["test_ci95"], row["test_people"])} | row for row in rows]
    columns = ["backbone", "parameters_m", "epochs", "epoch_s", "images_per_s", "train_loss", "val_balanced_accuracy",
               "test_balanced_accuracy", "test_chance", "test_95_%", "test_accuracy"]
    lines = [pd.DataFrame(shown)[columns].to_string(index=False, float_format="{:.3f}".format)]
    if too_few := rows[0]["test_no_interval"]:  # all runs test the same images
        lines.append(too_few)
    return "\n".join(lines)
