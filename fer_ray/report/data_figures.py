"""Figures of a prepared set: its faces, what each class has, what is alike, what was left out (matplotlib)."""

from __future__ import annotations

import textwrap

import numpy as np

from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.report.figures import BLUE, GREY, ORANGE, SPLITS, captioned, tiles

SHEET_COLUMNS = 8


def crops_figure(montage: list[dict]):
    """One row of crops for each class. `montage`: of `prepared_page.montage`."""
    from matplotlib.figure import Figure

    names = [e for e in EXPRESSIONS if any(m["expression"] == e for m in montage)]
    rows = [[m["crop"][::2, ::2] for m in montage if m["expression"] == e] for e in names]
    figure = Figure(figsize=(0.95 * max(map(len, rows)) + 1.2, 0.95 * len(rows)), layout="constrained")
    axis = figure.subplots()
    side = tiles(axis, rows)
    axis.set_yticks(np.arange(len(rows)) * side + side / 2, names)
    axis.tick_params(left=False)
    return figure


def row_figure(images: list[np.ndarray]):
    """Images side by side: uint8 [S, S(, 3)] each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.1 * len(images), 1.2), layout="constrained")
    tiles(figure.subplots(), [images])
    return figure


def bars_figure(counts: dict):
    """Images by class: an axis for each data set, coloured by split. `counts`: data set -> split -> class -> number."""
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


def preselection_figure(counts: dict):
    """Images of each class before and after the selection of frames, an axis for each data set.

    `counts`: `read` and `before` of prepared.json, data set -> class -> number.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(counts["read"]), squeeze=False)[0]
    for axis, (name, read) in zip(axes, counts["read"].items(), strict=True):
        kept = counts["before"].get(name, {})
        classes = [*EXPRESSIONS, *(["none"] if read.get("none") else [])]
        axis.barh(classes, [read.get(e, 0) for e in classes], color=GREY, label="read")
        axis.barh(classes, [kept.get(e, 0) for e in classes], color=BLUE, height=0.5, label="kept")
        axis.invert_yaxis()
        axis.set(title=f"{name}: {sum(kept.values()):,} of {sum(read.values()):,}", xlabel="images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def sizes_figure(index):
    """How large the images and the faces in them are, in px. `index`: of a prepared set (pandas)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    whole, face = figure.subplots(1, 2)
    whole.hist(np.maximum(index["width"], index["height"]), bins=30, color=GREY)
    whole.set(xlabel="longer side of the image (px)", ylabel="images")
    found = index[index["face_found"]]
    if len(found):
        face.hist([max(width, height) for _, _, width, height in found["box"]], bins=30, color=BLUE)
    face.set(xlabel="side of the face found (px)")
    return figure


def pairs_figure(pairs: list[list[tuple[np.ndarray, str]]]):
    """Pairs of pictures, one above the other, each with its title."""
    return captioned([list(row) for row in zip(*pairs, strict=True)], side=1.4)


def examples_figure(examples: dict[str, list[np.ndarray]]):
    """A row of pictures for each reason. `examples`: uint8 pictures by reason."""
    return captioned([[(picture, textwrap.fill(reason, 28) if picture is pictures[0] else "") for picture in pictures]
                      for reason, pictures in examples.items()], side=1.4)


def sheet_figure(shown: list[dict]):
    """A contact sheet: crops with their titles. `shown`: of `prepared_page.contact_sheets`, one class."""
    titled = [(one["crop"], textwrap.fill(one["title"], 22)) for one in shown]
    return captioned([titled[first : first + SHEET_COLUMNS] for first in range(0, len(titled), SHEET_COLUMNS)],
                     side=1.2, fontsize=6)
