"""Results to pictures (matplotlib)."""

from __future__ import annotations

import base64
import io
import textwrap

import numpy as np

from fer_ray.data.manifest import EXPRESSIONS

SPLITS = ("train", "val", "test")
BLUE, ORANGE, GREY = "#2f5d8a", "#d1772e", "#8a8f98"
STATES = {"finished": "o", "ended": "x", "diverged": "v", "unfinished": "s"}  # of trials, and their marks
MOMENTA = (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def beside_each_other(pictures: list[bytes]) -> bytes:
    """Four PNG files as one."""
    import matplotlib.image as image
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, len(pictures), width_ratios=[1.3, 1.2, 1.2, 1])
    for axis, picture in zip(axes, pictures, strict=True):
        axis.imshow(image.imread(io.BytesIO(picture)))
        axis.axis("off")
    return png(figure)


def crops_figure(montage: list[dict]):
    """One row of crops a class."""
    from matplotlib.figure import Figure

    names = [e for e in EXPRESSIONS if any(m["expression"] == e for m in montage)]
    rows = [[m["crop"][::2, ::2] for m in montage if m["expression"] == e] for e in names]
    figure = Figure(figsize=(0.95 * max(map(len, rows)) + 1.2, 0.95 * len(rows)), layout="constrained")
    axis = figure.subplots()
    side = _tiles(axis, rows)
    axis.set_yticks(np.arange(len(rows)) * side + side / 2, names)
    axis.tick_params(left=False)
    return figure


def row_figure(images: list[np.ndarray]):
    """Images side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(images), 1.2), layout="constrained")
    _tiles(figure.subplots(), [images])
    return figure


def _tiles(axis, rows: list[list[np.ndarray]], gap: int = 8) -> int:
    """Show rows of uint8 [S, S(, 3)] images as one picture (an axis each takes long); S and the gap, in px."""
    side = rows[0][0].shape[0] + gap
    picture = np.full((side * len(rows), side * max(map(len, rows)), 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture[y * side : (y + 1) * side - gap, x * side : (x + 1) * side - gap] = np.atleast_3d(image)
    axis.imshow(picture)
    axis.set_xticks([]), axis.set_yticks([])
    axis.spines[:].set_visible(False)
    return side


def bars_figure(counts: dict):
    """Images by class; a column a data set, colours by split. `counts`: data set -> split -> class -> number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axis, (name, by_split) in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts.items(), strict=True):
        left = np.zeros(len(EXPRESSIONS))
        for split, colour in zip(SPLITS, (GREY, ORANGE, BLUE), strict=True):
            numbers = np.array([by_split.get(split, {}).get(e, 0) for e in EXPRESSIONS])
            axis.barh(EXPRESSIONS, numbers, left=left, color=colour, label=split)
            left += numbers
        axis.invert_yaxis()
        axis.set(title=name, xlabel="images")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def sizes_figure(index):
    """How large the images are, and the faces in them (px)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    whole, face = figure.subplots(1, 2)
    whole.hist(np.maximum(index["width"], index["height"]), bins=30, color=GREY)
    whole.set(xlabel="longer side of the image (px)", ylabel="images")
    found = index[index["face_found"]]
    if len(found):
        face.hist([max(b[2], b[3]) for b in found["box"]], bins=30, color=BLUE)
    face.set(xlabel="side of the face found (px)")
    return figure


def pairs_figure(pairs: list[list[tuple[np.ndarray, str]]]):
    """Pairs of pictures one above the other, each with its title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * max(4, len(pairs)), 3.6), layout="constrained")
    axes = figure.subplots(2, max(4, len(pairs)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for column, pair in zip(axes.T, pairs, strict=False):
        for axis, (picture, title) in zip(column, pair, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axis.set_title(title, fontsize=7)
    return figure


def examples_figure(examples: dict[str, list[np.ndarray]]):
    """A row of pictures a reason."""
    from matplotlib.figure import Figure

    columns = max(map(len, examples.values()))
    figure = Figure(figsize=(1.1 * columns + 3, 1.2 * len(examples)), layout="constrained")
    for row, (reason, pictures) in zip(figure.subplots(len(examples), columns, squeeze=False), examples.items(),
                                       strict=True):
        for axis, picture in zip(row, pictures, strict=False):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        for axis in row:
            axis.set_xticks([]), axis.set_yticks([])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(textwrap.fill(reason, 28), rotation=0, ha="right", va="center", fontsize=8)
    return figure


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
    loss.xaxis.get_major_locator().set_params(integer=True)
    accuracy.set(ylabel="balanced accuracy", ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure


def recall_figure(scores: dict):
    """Recall of each class with its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(EXPRESSIONS):
        c = scores["per_class"][name]
        if not c["support"]:
            axis.text(0.01, i, "no test images", va="center", color=GREY)
            continue
        axis.barh(i, c["recall"], color=BLUE, alpha=0.85)
        if c["recall_ci95"]:
            axis.plot(c["recall_ci95"], [i, i], color="black", lw=1.5)
        axis.text(1.02, i, f"{c['recall']:.2f}  of {c['support']}", va="center", fontsize=9)
    axis.set_yticks(range(len(EXPRESSIONS)), EXPRESSIONS)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="share recognised (line: 95 % interval over people)")
    return figure


def confusion_figure(confusion: list[list[int]]):
    """Counts as text, colour by share of the row."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    counts = np.array(confusion)
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axis = figure.subplots()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(share, display_labels=EXPRESSIONS)
    display.plot(ax=axis, cmap="Blues", colorbar=False, include_values=False, xticks_rotation=45,
                 im_kw={"vmin": 0, "vmax": 1})
    for (i, j), n in np.ndenumerate(counts):
        if n:
            axis.text(j, i, n, ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    return figure


def reliability_figure(calibration: dict):
    """Accuracy against confidence, as the network is and at the temperature fitted on val (Guo et al. 2017)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
    for key, colour, label in (("as_is", ORANGE, "as it is"),
                               ("scaled", BLUE, f"at temperature {calibration['temperature']:.2f}")):
        bins = calibration[key]["bins"]
        sizes = np.array([b["images"] for b in bins])
        confidence, accuracy = ([b[k] for b in bins] for k in ("confidence", "accuracy"))
        axis.plot(confidence, accuracy, color=colour, lw=1, alpha=0.6)
        axis.scatter(confidence, accuracy, color=colour, s=15 + 150 * sizes / sizes.sum(),
                     label=f"{label}: calibration error {calibration[key]['ece']:.3f}")
    axis.set(xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def heat_figure(shown: list[dict]):
    """Crops (top) with the part that spoke for the guess (Grad-CAM, below), and what was guessed of them."""
    from matplotlib.figure import Figure

    columns = max(4, len(shown))
    figure = Figure(figsize=(1.45 * columns, 3.5), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for (above, below), one in zip(axes.T, shown, strict=False):
        above.imshow(one["crop"])
        right = one["guess"] == one["expression"]
        title = one["expression"] if right else f"{one['expression']}\ntaken for {one['guess']}"
        above.set_title(f"{title}\n{one['probability']:.2f}", fontsize=7)
        if one["heat"] is not None:
            below.imshow(one["crop"])
            below.imshow(one["heat"], cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    return figure


def lookalikes_figure(shown: list[dict]):
    """Test images (top) above the training image that is nearest to them; a column each, pairs of classes together."""
    return pairs_figure([[(one["crop"], f"{one['expression']}\ntaken for {one['guess']}"),
                          (one["nearest_crop"], f"nearest {one['guess']}\ndistance {one['distance']:.2f}")]
                         for one in shown])


def runs_figure(rows: list[dict]):
    """Balanced accuracy of each run with its 95 % interval; runs that leak are orange."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    axis = figure.subplots()
    for i, row in enumerate(rows):
        colour = ORANGE if row["leaking"] else BLUE
        axis.plot(row["balanced_accuracy"], i, "o", color=colour)
        if row["balanced_accuracy_ci95"]:
            axis.plot(row["balanced_accuracy_ci95"], [i, i], color=colour)
        axis.text(1.02, i, f"{row['balanced_accuracy']:.3f}", va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="balanced accuracy (line: 95 % interval over people)")
    axis.grid(axis="x", alpha=0.3)
    return figure


def matrix_figure(names: list[str], scores: list[list[float | None]], classes: list[list[int]]):
    """Balanced accuracy of the network of each row's data set on each column's, with the number of classes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 * len(names) + 2, 1.1 * len(names) + 1.5), layout="constrained")
    axis = figure.subplots()
    values = np.array([[np.nan if s is None else s for s in row] for row in scores], float)
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(values):
        text = "–" if np.isnan(value) else f"{value:.3f}\n{classes[i][j]} classes"
        axis.text(j, i, text, ha="center", va="center", color="white" if value > 0.5 else "black", fontsize=9)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="tested on", ylabel="trained on")
    return figure


def sheet_figure(shown: list[dict]):
    """A contact sheet: crops with the label they have and what they look like."""
    from matplotlib.figure import Figure

    columns = 8
    figure = Figure(figsize=(1.3 * columns, 1.65 * -(-len(shown) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, one in zip(axes.flat, shown, strict=False):
        axis.imshow(one["crop"], cmap="gray", vmin=0, vmax=255)
        axis.set_title(textwrap.fill(one["title"], 22), fontsize=6)
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
        axis.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(frameon=False)
    return figure


def search_figure(summary: dict):
    """The plane and the learning curves of a search side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [t for t in summary["trials"] if t["history"]]
    _plane(left, shown, figure)
    _rungs(right, shown, summary["rungs"])
    return figure


def plane_figure(trials: list[dict]):
    """Learning rate by momentum, a mark a trial, coloured by its best validation score; crosses ended early."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    _plane(figure.subplots(), trials, figure)
    return figure


def rungs_figure(trials: list[dict], rungs: list[int]):
    """Validation score by epoch, a line a trial; the dotted lines are the epochs at which trials may be ended."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    _rungs(figure.subplots(), trials, rungs)
    return figure


def cost_figure(summary: dict):
    """Epochs that the search took, that its trials would have taken in full, and that a grid takes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.9), layout="constrained")
    axis = figure.subplots()
    bars = [("this search", summary["epochs_spent"]), ("its trials in full", summary["full_epochs"]),
            ("the grid", summary["grid_epochs"])]
    axis.barh([name for name, _ in bars], [n for _, n in bars], color=[BLUE, GREY, GREY])
    for i, (_, n) in enumerate(bars):
        axis.text(n, i, f" {n}", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="epochs", xlim=(0, 1.1 * max(n for _, n in bars)))
    return figure


def _plane(axis, trials: list[dict], figure) -> None:
    top = max(t["score"] for t in trials)
    best = max(trials, key=lambda t: t["score"])
    for state, marker in STATES.items():
        some = [t for t in trials if t["state"] == state]
        if some:
            drawn = axis.scatter([t["settings"]["lr"] for t in some], [1 - t["settings"]["momentum"] for t in some],
                                 c=[t["score"] for t in some], vmin=0, vmax=top, cmap="viridis_r", marker=marker, s=70,
                                 label=state)
    axis.scatter(best["settings"]["lr"], 1 - best["settings"]["momentum"], s=220, facecolors="none",
                 edgecolors=ORANGE, linewidths=2, label="best")
    rates, damping = [t["settings"]["lr"] for t in trials], [1 - t["settings"]["momentum"] for t in trials]
    axis.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="momentum",
             ylim=(max(damping) * 1.3, min(damping) / 1.3), xlim=(min(rates) / 1.5, max(rates) * 1.5))
    ticks = [m for m in MOMENTA if min(damping) / 1.3 <= 1 - m <= max(damping) * 1.3]
    axis.set_yticks([1 - m for m in ticks], [f"{m:g}" for m in ticks])
    axis.yaxis.set_minor_locator(_none())
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=5)
    figure.colorbar(drawn, ax=axis, label="validation balanced accuracy")


def _rungs(axis, trials: list[dict], rungs: list[int]) -> None:
    best = max(trials, key=lambda t: t["score"])
    for t in trials:
        numbers = [e["epoch"] + 1 for e in t["history"]]
        scores = [e["val_balanced_accuracy"] for e in t["history"]]
        chosen = t is best
        axis.plot(numbers, scores, color=ORANGE if chosen else BLUE, alpha=1 if chosen else 0.5, lw=2 if chosen else 1,
                  zorder=3 if chosen else 2)
        axis.plot(numbers[-1], scores[-1], STATES[t["state"]], color=ORANGE if chosen else BLUE, ms=5)
    for rung in rungs:
        axis.axvline(rung, color=GREY, lw=0.8, ls=":")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="epoch (dotted: rungs)", ylabel="validation balanced accuracy")


def _none():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def png(figure) -> bytes:
    """A figure as a PNG file."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text():  # of a name: matplotlib would read it as a formula
            text.set_parse_math(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG file as a picture inside the page."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
