"""Runs of several backbones beside each other: one table, one picture (the paper's Fig 12)."""

from __future__ import annotations

import pandas as pd

from fer_ray import report, storage, tracking


def write(folder: str, root: str, names: list[str]) -> str:
    """Write `compare.json` and `compare.png` of finished runs below the storage `root`; the table as text."""
    rows, curves = [], {}
    for name in names:
        run = storage.absolute(storage.join(root, "runs", name))
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
    storage.write_bytes(storage.join(folder, "compare.png"), report.png(report.comparison_figure(curves)))
    storage.write_json(storage.join(folder, "compare.json"), {"runs": rows})
    return pd.DataFrame(rows).drop(columns=["test_ci95", "result"]).to_string(index=False, float_format="{:.3f}".format)
