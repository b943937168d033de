"""Results to self-contained HTML files (jinja2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.data import duplicates, ledger
from fer_ray.data.manifest import EXPRESSIONS, is_drawn
from fer_ray.evaluate import results
from fer_ray.model import metrics
from fer_ray.report import data_figures, figures, score_figures, search_figures

# what of the scores stands at the top of result.json, what it leaves to report.json, and the figures of summary.png
HEADLINE = ("balanced_accuracy", "balanced_accuracy_ci95", "no_interval", "chance", "accuracy", "macro_f1",
            "test_images", "test_people")
IN_REPORT_ONLY = ("calibration", "explained", "labels")
OF_OTHERS = ("name", "prepared", "classes", "left_out", "people_seen", "codes_shared", "groups")  # in result.json
SUMMARY = {"crops": 1.3, "curves": 1.2, "recall": 1.2, "confusion": 1.0}  # and their widths
PEOPLE_SHOWN = 20  # by name, whom training has seen
GROUPS_SHOWN = 12  # on the page; all are in report.json


def write(folder: str, result: dict, shown: dict) -> str:
    """Write a run's report into its folder.

    Files: `report.html`, `report.json` (every number of the page), `summary.png` and, last, the short `result.json`.

    Args:
        folder: URI.
        result: see `render`.
        shown: see `render`.

    Returns: URI of `result.json`.
    """
    page, pictures = storage.join(folder, "report.html"), draw(result, shown)
    storage.write_bytes(page, render(result, shown, pictures).encode())
    storage.write_bytes(storage.join(folder, "summary.png"),
                        figures.beside_each_other([(png, width) for name, width in SUMMARY.items()
                                                   if (png := pictures[name])]))
    numbers = result | {"report": page, "explained": _without_pixels(shown["explained"])}
    storage.write_json(storage.join(folder, "report.json"), numbers)
    target = storage.join(folder, "result.json")
    headline = {key: result["metrics"][key] for key in HEADLINE}
    headline["groups"] = {name: result["groups"][name] for name in results.CONDITIONS if name in result["groups"]}
    headline["also"] = [{key: other[key] for key in OF_OTHERS}
                        | {key: (other["metrics"] or {}).get(key) for key in HEADLINE} for other in result["also"]]
    storage.write_json(target, {key: value for key, value in numbers.items() if key not in IN_REPORT_ONLY} | headline)
    return target


def draw(result: dict, shown: dict) -> dict[str, bytes | None]:
    """The figures of a report as PNG files; None where there is nothing to show. Arguments: see `render`."""
    wanted: dict[str, tuple[Callable, Any]] = {
        "crops": (data_figures.crops_figure, shown["montage"]),
        "augmented": (data_figures.row_figure, shown["augmented"]),
        "bars": (data_figures.bars_figure, result["counts"]["after"]),
        "curves": (score_figures.curves_figure, result["history"]),
        "recall": (score_figures.recall_figure, result["metrics"]),
        "confusion": (score_figures.confusion_figure, result["metrics"]["confusion"]),
        "reliability": (score_figures.reliability_figure, result["calibration"])}
    return {name: figures.png(figure(content)) if content else None for name, (figure, content) in wanted.items()}


def render(result: dict, shown: dict, figures_of: dict[str, bytes | None]) -> str:
    """The report as one HTML page without external requests.

    Args:
        result: what `evaluation.evaluate` describes.
        shown: the pictures: `montage` (dicts of `crop`, uint8 [H, W(, 3)], `expression`, `split`), `augmented` (uint8
            [224, 224, 3] images of one crop), `explained` (see `evaluation.evaluate`); each may be empty.
        figures_of: of `draw`.
    """
    pictures = {name: png and figures.data_uri(png) for name, png in figures_of.items()}
    explained = {name: {"mistakes": picture(score_figures.heat_figure, one.get("mistakes")),
                        "typical": picture(score_figures.heat_figure, one.get("typical")),
                        "lookalikes": picture(score_figures.lookalikes_figure, one.get("lookalikes"))}
                 for name, one in shown["explained"].items()}
    also = {a["name"]: {"recall": picture(score_figures.recall_figure, a["metrics"]),
                        "confusion": picture(score_figures.confusion_figure, a["metrics"]["confusion"])}
            for a in result["also"] if a["metrics"]}
    return _page("report.html.j2", is_drawn(result["counts"]["read"]), r=result, m=result["metrics"],
                 present=sum(c["support"] > 0 for c in result["metrics"]["per_class"].values()), pictures=pictures,
                 explained=explained, also=also, leaking=is_leaking(result),
                 cautions=metrics.cautions(result["metrics"]), config=_flatten(result["config"]))


def render_prepared(name: str, summary: dict, index: pd.DataFrame, leaks: list[dict], same_pixels: int,
                    pictures: dict) -> str:
    """The page of a prepared set, see `prepared_page.write`.

    Args:
        name: of the set.
        summary: prepared.json.
        index: the rows of its index.
        leaks: rows of `leaks.parquet` to list.
        same_pixels: how many of the pictures with different expressions have equal pixels.
        pictures: by their names in the template, each inside the page as `figures.data_uri` makes it, or None.
    """
    return _page("prepare.html.j2", is_drawn(summary["counts"]["read"]), name=name, p=summary, images=len(index),
                 subjects=index["subject"].nunique(), found=int(index["face_found"].sum()), leaks=leaks,
                 leaking=is_leaking(summary), same_pixels=same_pixels,
                 same_difference=duplicates.SAME_PICTURE_DIFFERENCE, pictures=pictures,
                 ledger=ledger.line(summary["ledger"]),
                 config=_flatten(summary["config"]))


def render_protocol(summary: dict) -> str:
    """The page of several runs, see `protocols.summarise`."""
    rows = [row | {"leaking": is_leaking(row)} for row in summary["runs"]]
    pictures = {"runs": picture(score_figures.runs_figure, rows)}
    if summary["pooled"]:
        pictures |= {"recall": picture(score_figures.recall_figure, summary["pooled"]),
                     "confusion": picture(score_figures.confusion_figure, summary["pooled"]["confusion"])}
    return _page("protocol.html.j2", is_drawn(summary["counts"]["read"]), s=summary, rows=rows, pictures=pictures,
                 config=_flatten(summary["config"]), also=list(rows[0]["also"]))


def render_paper(summary: dict, pictures: dict[str, str | None]) -> str:
    """The page of a study of the paper.

    Args:
        summary: paper.json.
        pictures: of `paper_page.draw`.
    """
    report = summary["by_image"]
    recall = {name: one["recall"] for name, one in report["metrics"]["per_class"].items() if one["support"]}
    trained = sum(sum(by_split.get("train", {}).values()) for by_split in report["counts"]["after"].values())
    return _page("paper.html.j2", is_drawn(report["counts"]["read"]), s=summary, r=report, pictures=pictures,
                 trained=trained,
                 best=max(recall, key=recall.__getitem__), worst=min(recall, key=recall.__getitem__),
                 config=_flatten(summary["folds"]["config"]))


def render_labels(summary: dict, sheets: dict[str, list[dict]]) -> str:
    """The page of a label audit.

    Args:
        summary: labels.json.
        sheets: for each class dicts of `crop` and `title`, the most doubtful first.
    """
    return _page("labels.html.j2", is_drawn(summary["datasets"]), s=summary,
                 sheets={e: picture(data_figures.sheet_figure, shown) for e, shown in sheets.items() if shown})


def render_matrix(summary: dict) -> str:
    """The page of networks tested on each other's data sets. `summary`: of `comparison.matrix` and `datasets`."""
    shown = figures.png(score_figures.matrix_figure(summary["names"], summary["pairs"]))
    return _page("matrix.html.j2", is_drawn(summary["datasets"]), s=summary, picture=figures.data_uri(shown))


def render_tune(summary: dict) -> str:
    """The page of a search. `summary`: of `outcome.summarise`, with `test` and `datasets` of the chosen trial."""
    trials = summary["trials"]
    shown = [trial for trial in trials if trial["history"]]
    rungs = figures.png(search_figures.rungs_figure(shown, summary["rungs"]))
    states = {state: sum(trial["state"] == state for trial in trials) for state in search_figures.STATES}
    return _page("tune.html.j2", is_drawn(summary["datasets"]), s=summary, states=states,
                 ranked=sorted(trials, key=lambda trial: -trial["score"]),
                 pictures={"plane": picture(search_figures.plane_figure, shown), "rungs": figures.data_uri(rungs),
                           "cost": picture(search_figures.cost_figure, summary)},
                 config=_flatten({"tune": summary["tune"], "train": summary["train"]}))


def render_gallery(content: dict) -> str:
    """The page of photographs with the faces drawn on them. `content`: of `use.gallery`."""
    return _page("gallery.html.j2", False, **content)


def render_timeline(content: dict) -> str:
    """The page of a video with the course of its faces' expressions. `content`: of `use.timeline`."""
    return _page("timeline.html.j2", False, **content)


def render_service(content: dict) -> str:
    """The web page of the service.

    Args:
        content: `calibrated`, whether the probabilities are; `token`, whether requests need one; `max_mb`, the
            largest request; `colours` of the expressions, in their order.
    """
    return _page("service.html.j2", False, **content)


def is_leaking(summary: dict) -> bool:
    """Whether people, videos or pictures are in several splits, so that a test score holds for no new face.

    `summary`: has `split` and `leaks` of prepared.json.
    """
    return summary["split"] in ("image", "sequence") or any(summary["leaks"].values())


def picture(figure: Callable, content) -> str | None:
    """`figure(content)` inside the page; None if there is no content."""
    return figures.data_uri(figures.png(figure(content))) if content else None


def _page(template: str, drawn: bool, **content) -> str:
    """A template with this content. `drawn`: whether the page must say that its faces are drawn."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("fer_ray.report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(
        expressions=EXPRESSIONS, splits=figures.SPLITS, groups_shown=GROUPS_SHOWN, people_shown=PEOPLE_SHOWN,
        min_people=metrics.MIN_PEOPLE, min_for_interval=metrics.MIN_PEOPLE_FOR_INTERVAL,
        min_images=metrics.MIN_IMAGES, drawn=drawn, **content)


def _without_pixels(explained: dict) -> dict:
    """What `explanation.explain` found without its pictures, ready for JSON."""
    def numbers(one: dict) -> dict:
        return {k: v for k, v in one.items() if not isinstance(v, np.ndarray)}

    return {name: {kind: [numbers(one) for one in each] for kind, each in kinds.items()}
            for name, kinds in explained.items()}


def _flatten(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
