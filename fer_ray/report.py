"""Results to one self-contained HTML file with the pictures (jinja2, matplotlib)."""

from __future__ import annotations

import base64
import io
import textwrap

import numpy as np

from fer_ray import storage
from fer_ray.manifest import EXPRESSIONS

HEADLINE = ("balanced_accuracy", "balanced_accuracy_ci95", "accuracy", "macro_f1", "test_images")
SPLITS = ("train", "val", "test")
BLUE, ORANGE, GREY = "#2f5d8a", "#d1772e", "#8a8f98"


def write(folder: str, result: dict, montage: list[dict], augmented: list[np.ndarray]) -> str:
    """Write `report.html`, `summary.png` and, last, `result.json` to a folder; URI of `result.json`."""
    page = storage.join(folder, "report.html")
    storage.write_bytes(page, render(result, montage, augmented, result["history"]).encode())
    storage.write_bytes(storage.join(folder, "summary.png"), summary_png(result, montage, result["history"]))
    target = storage.join(folder, "result.json")
    storage.write_json(target, result | {"report": page} | {k: result["metrics"][k] for k in HEADLINE})
    return target


def render(result: dict, montage: list[dict], augmented: list[np.ndarray], epochs: list[dict]) -> str:
    """The report as one HTML page without external requests.

    Args:
        result: what `evaluation` describes, with `metrics` of `metrics.evaluate`.
        montage: dicts of `crop` (uint8 [H, W(, 3)]), `expression`, `split`.
        augmented: uint8 [224, 224, 3] images of one crop.
        epochs: the training history, may be empty.
    """
    pictures = {"crops": data_uri(crops_figure(montage)) if montage else None,
                "augmented": data_uri(row_figure(augmented)) if augmented else None,
                "curves": data_uri(curves_figure(epochs)) if epochs else None,
                "recall": data_uri(recall_figure(result["metrics"])),
                "confusion": data_uri(confusion_figure(result["metrics"]["confusion"]))}
    return _page("report.html.j2", r=result, m=result["metrics"], pictures=pictures, leaking=is_leaking(result),
                 config=_flatten(result["config"]))


def render_prepared(name: str, summary: dict, index, leaks: list[dict], pictures: dict) -> str:
    """The page of a prepared set, see `overview`. `summary`: prepared.json. `index`: its rows (pandas)."""
    return _page("prepare.html.j2", name=name, p=summary, images=len(index), subjects=index["subject"].nunique(),
                 found=int(index["face_found"].sum()), leaks=leaks, leaking=is_leaking(summary), pictures=pictures,
                 config=_flatten(summary["config"]))


def is_leaking(summary: dict) -> bool:
    """Whether a test score on this split holds for no new face: people, videos or pictures stand on both sides."""
    return summary["split"] in ("image", "sequence") or any(summary["leaks"].values())


def _page(template: str, **content) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("fer_ray"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(expressions=EXPRESSIONS, splits=SPLITS, **content)


def summary_png(result: dict, montage: list[dict], epochs: list[dict]) -> bytes:
    """The main figures side by side as one PNG: crops, curves, recall, confusion matrix."""
    import matplotlib.image as image
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    panels = [crops_figure(montage), curves_figure(epochs), recall_figure(result["metrics"]),
              confusion_figure(result["metrics"]["confusion"])]
    axes = figure.subplots(1, len(panels), width_ratios=[1.3, 1.2, 1.2, 1])
    for axis, panel in zip(axes, panels, strict=True):
        axis.imshow(image.imread(io.BytesIO(png(panel))))
        axis.axis("off")
    return png(figure)


def crops_figure(montage: list[dict]):
    """One row of crops a class."""
    from matplotlib.figure import Figure

    names = [e for e in EXPRESSIONS if any(m["expression"] == e for m in montage)]
    columns = max(sum(m["expression"] == e for m in montage) for e in names)
    figure = Figure(figsize=(0.95 * columns + 0.9, 0.95 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), columns, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        chosen = [m for m in montage if m["expression"] == name]
        for axis, m in zip(row, chosen, strict=False):
            axis.imshow(m["crop"][::2, ::2], cmap="gray", vmin=0, vmax=255)
        for axis in row:
            axis.set_xticks([]), axis.set_yticks([])
            axis.spines[:].set_visible(False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def row_figure(images: list[np.ndarray]):
    """Images side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(images), 1.2), layout="constrained")
    for axis, picture in zip(figure.subplots(1, len(images), squeeze=False)[0], images, strict=True):
        axis.imshow(picture)
        axis.axis("off")
    return figure


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
        low, high = c["recall_ci95"]
        axis.barh(i, c["recall"], color=BLUE, alpha=0.85)
        axis.plot([low, high], [i, i], color="black", lw=1.5)
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


def png(figure) -> bytes:
    """A figure as a PNG file."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()


def data_uri(figure) -> str:
    """A figure as a picture inside the page."""
    return "data:image/png;base64," + base64.b64encode(png(figure)).decode()


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
