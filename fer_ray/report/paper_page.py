"""The pictures of a study of the paper, in its order (`pages.render_paper` shows them)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fer_ray.data import prepared_set
from fer_ray.report import data_figures, pages, prepared_page, score_figures, search_figures

PAIRS = 8  # of look-alikes


def draw(summary: dict, montage: list[dict], augmented: list[np.ndarray], view: str, new_face: str
         ) -> dict[str, str | None]:
    """The pictures by their names in the template, each inside the page as `figures.data_uri` makes it, or None.

    Args:
        summary: paper.json.
        montage: of `prepared_page.montage`.
        augmented: uint8 [224, 224, 3] images of one crop.
        view: URI of the prepared set in the paper's split.
        new_face: URI of the prepared set of the new face; empty: there is none.
    """
    report = summary["by_image"]
    column = summary["together"]["columns"]["new_face"]
    scored = column and column["all"]
    wanted: dict[str, tuple[Any, Any]] = {
        "preselection": (data_figures.preselection_figure, summary["preselection"]),
        "crops": (data_figures.crops_figure, montage),
        "augmented": (data_figures.row_figure, augmented),
        "networks": (score_figures.comparison_figure, summary["compared"]["curves"]),
        "search": (search_figures.plane_figure, [trial for trial in summary["search"]["trials"] if trial["history"]]),
        "curves": (score_figures.curves_figure, report["history"]),
        "recall": (score_figures.recall_figure, report["metrics"]),
        "confusion": (score_figures.confusion_figure, report["metrics"]["confusion"]),
        "lookalikes": (score_figures.lookalikes_figure, _lookalikes(report, view)),
        "new_face_crops": (data_figures.crops_figure, prepared_page.montage(new_face, 0) if new_face else []),
        "new_face_recall": (score_figures.recall_figure, scored),
        "new_face_confusion": (score_figures.confusion_figure, scored and scored["confusion"]),
        "columns": (score_figures.columns_figure, summary["together"]["columns"])}
    for name in ("folds", "ours"):
        wanted[f"{name}_recall"] = score_figures.recall_figure, summary[name]["pooled"]
        wanted[f"{name}_confusion"] = score_figures.confusion_figure, summary[name]["pooled"]["confusion"]
    return {name: pages.picture(figure, content) for name, (figure, content) in wanted.items()}


def _lookalikes(report: dict, view: str) -> list[dict]:
    """Of `explanation.explain`, the first pairs of a report with their crops from the prepared set."""
    shown = report["explained"][""].get("lookalikes", [])[:PAIRS]
    index = prepared_set.read_index(view)
    crops = prepared_set.read_crops(view, index[index["image"].isin(
        {one[side] for one in shown for side in ("image", "nearest")})])
    return [one | {"crop": crops[one["image"]], "nearest_crop": crops[one["nearest"]]} for one in shown]
