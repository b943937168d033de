"""Figures of trained networks: learning curves, scores, mistakes, runs beside each other (matplotlib)."""

from __future__ import annotations

import numpy as np

from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.report.data_figures import pairs_figure
from fer_ray.report.figures import BLUE, GREY, ORANGE, captioned, integer_axis

HEAT_OPACITY = 0.55
INTERVAL = " (line: 95 % interval over people)"


def curves_figure(epochs: list[dict]):
    """Loss (left axis) and validation accuracy (right axis) by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    loss = figure.subplots()
    accuracy = loss.twinx()
    numbers = [e["epoch"] + 1 for e in epochs]
    loss.plot(numbers, [e["train_loss"] for e in epochs], color=GREY, marker="o", label="training loss")
    loss.plot(numbers, [e["val_loss"] for e in epochs], color=ORANGE, marker="o", label="validation loss")
    accuracy.plot(numbers, [e["val_balanced_accuracy"] for e in epochs], color=BLUE, marker="o",
                  label="validation balanced accuracy")
    loss.set(xlabel="epoch", ylabel="cross-entropy")
    integer_axis(loss)
    accuracy.set(ylabel="balanced accuracy", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def recall_figure(scores: dict):
    """Recall of each class, with its 95 % interval where there is one. `scores`: of `metrics.evaluate`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    intervals = False
    for i, name in enumerate(EXPRESSIONS):
        c = scores["per_class"][name]
        if not c["support"]:
            axis.text(0.01, i, "no test images", va="center", color=GREY)
            continue
        axis.barh(i, c["recall"], color=BLUE, alpha=0.85)
        if c["recall_ci95"]:
            axis.plot(c["recall_ci95"], [i, i], color="black", lw=1.5)
            intervals = True
        axis.text(1.02, i, f"{c['recall']:.2f}  of {c['support']}", va="center", fontsize=9)
    axis.set_yticks(range(len(EXPRESSIONS)), EXPRESSIONS)
    axis.set(xlim=(0, 1), ylim=(len(EXPRESSIONS) - 0.5, -0.5), xlabel="recall" + INTERVAL * intervals)
    return figure


def confusion_figure(confusion: list[list[int]]):
    """Confusion matrix: counts as text, coloured by their fraction of the row (the true class)."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    counts = np.array(confusion)
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axis = figure.subplots()
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(fractions, display_labels=EXPRESSIONS)
    display.plot(ax=axis, cmap="Blues", colorbar=False, include_values=False, xticks_rotation=45,
                 im_kw={"vmin": 0, "vmax": 1})
    for (i, j), n in np.ndenumerate(counts):
        if n:
            axis.text(j, i, n, ha="center", va="center", color="white" if fractions[i, j] > 0.5 else "black")
    return figure


def reliability_figure(calibration: dict):
    """Accuracy against confidence: of the network as it is, and at its temperature if one was kept.

    `calibration`: of `calibration.calibrate`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
    for key, colour, label in (("as_is", ORANGE, "as it is"),
                               ("scaled", BLUE, f"at temperature {calibration['temperature']:.2f}")):
        if calibration[key] is None:
            continue
        bins = calibration[key]["bins"]
        images = np.array([b["images"] for b in bins])
        confidence, accuracy = ([b[k] for b in bins] for k in ("confidence", "accuracy"))
        axis.plot(confidence, accuracy, color=colour, lw=1, alpha=0.6)
        axis.scatter(confidence, accuracy, color=colour, s=15 + 150 * images / images.sum(),
                     label=f"{label}: calibration error {calibration[key]['ece']:.3f}")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def heat_figure(shown: list[dict]):
    """Crops (top), and which part of each made the network say what it said (Grad-CAM, below).

    `shown`: of `explanation.explain`.
    """
    titled = []
    for one in shown:
        right = one["guess"] == one["expression"]
        title = one["expression"] if right else f"{one['expression']}\ntaken for {one['guess']}"
        titled.append((one["crop"], f"{title}\n{one['probability']:.2f}"))
    heated = [(_under_heat(one["crop"], one["heat"]), "") for one in shown if one["heat"] is not None]
    return captioned([titled, heated] if heated else [titled], side=1.35)


def _under_heat(crop: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A crop, uint8 [S, S, 3], through a coloured layer of its heat map, float [S, S] in 0 to 1."""
    from matplotlib import colormaps

    colours = 255 * colormaps["inferno"](heat)[..., :3]
    return ((1 - HEAT_OPACITY) * crop + HEAT_OPACITY * colours).astype(np.uint8)


def lookalikes_figure(shown: list[dict]):
    """Test images (top) above the training image that is nearest to them, a column each.

    `shown`: of `explanation.explain`.
    """
    return pairs_figure([[(one["crop"], f"{one['expression']}\ntaken for {one['guess']}"),
                          (one["nearest_crop"], f"nearest {one['guess']}\ndistance {one['distance']:.2f}")]
                         for one in shown])


def runs_figure(rows: list[dict]):
    """Balanced accuracy and chance of each run, with its 95 % interval where there is one; runs that leak are orange.

    `rows`: `runs` of `protocols.summarise`, with `leaking`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    for i, row in enumerate(rows):
        colour = ORANGE if row["leaking"] else BLUE
        axis.plot(row["chance"], i, "|", color=GREY, ms=14, mew=2)
        axis.plot(row["balanced_accuracy"], i, "o", color=colour, clip_on=False)
        if row["balanced_accuracy_ci95"]:
            axis.plot(row["balanced_accuracy_ci95"], [i, i], color=colour)
        axis.text(1.02, i, f"{row['balanced_accuracy']:.3f}", va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    intervals = any(row["balanced_accuracy_ci95"] for row in rows)
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5),
             xlabel="balanced accuracy (grey mark: chance)" + INTERVAL * intervals)
    axis.grid(axis="x", alpha=0.3)
    return figure


def columns_figure(columns: dict[str, dict | None]):
    """Balanced accuracy and chance of each column of a study of the paper over the classes and people of all.

    `columns`: of `evaluate.paper.beside_each_other`.
    """
    rows = [{"label": name.replace("_", " "), "leaking": name == "paper's split",
             **{key: column["common"][key] for key in ("balanced_accuracy", "balanced_accuracy_ci95", "chance")}}
            for name, column in columns.items() if column and column["common"]]
    return runs_figure(rows)


def matrix_figure(names: list[str], pairs: list[dict]):
    """Balanced accuracy of the network of each row's data set on each column's, with classes and chance.

    `names`, `pairs`: of `comparison.matrix`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * len(names) + 2, 1.2 * len(names) + 1.5), layout="constrained")
    axis = figure.subplots()
    scores = [np.nan if pair["balanced_accuracy"] is None else pair["balanced_accuracy"] for pair in pairs]
    axis.imshow(np.array(scores, float).reshape(len(names), len(names)), cmap="Blues", vmin=0, vmax=1)
    for number, (pair, score) in enumerate(zip(pairs, scores, strict=True)):
        row, column = divmod(number, len(names))
        text = "–" if np.isnan(score) else f"{score:.3f}\n{pair['classes']} classes\nchance {pair['chance']:.3f}"
        axis.text(column, row, text, ha="center", va="center", color="white" if score > 0.5 else "black", fontsize=9)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="tested on", ylabel="trained on")
    return figure


def comparison_figure(curves: dict[str, list[dict]]):
    """Training loss (left) and validation balanced accuracy (right) by epoch, a line a backbone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for name, epochs in curves.items():
        numbers = [e["epoch"] + 1 for e in epochs]
        loss.plot(numbers, [e["train_loss"] for e in epochs], marker="o", label=name)
        accuracy.plot(numbers, [e["val_balanced_accuracy"] for e in epochs], marker="o", label=name)
    loss.set(xlabel="epoch", ylabel="training loss (cross-entropy)")
    accuracy.set(xlabel="epoch", ylabel="validation balanced accuracy", ylim=(0, 1))
    for axis in (loss, accuracy):
        integer_axis(axis)
    loss.legend(frameon=False)
    return figure
