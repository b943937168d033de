"""Results to self-contained HTML files (jinja2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fer_ray import storage
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import metrics
from fer_ray.report import figures

HEADLINE = ("balanced_accuracy", "balanced_accuracy_ci95", "accuracy", "macro_f1", "test_images")
IN_REPORT_ONLY = ("calibration", "groups", "also", "explained", "labels")
SUMMARY = ("crops", "curves", "recall", "confusion")
GROUPS_SHOWN = 12


def write(folder: str, result: dict, shown: dict) -> str:
    """Write `report.html`, `report.json` (every number of the page), `summary.png` and, last, the short `result.json`
    to a folder; URI of `result.json`. `result`, `shown`: see `render`.
    """
    page, drawn = storage.join(folder, "report.html"), draw(result, shown)
    storage.write_bytes(page, render(result, shown, drawn).encode())
    storage.write_bytes(storage.join(folder, "summary.png"), figures.beside_each_other([drawn[k] for k in SUMMARY]))
    numbers = result | {"report": page, "explained": _without_pixels(shown["explained"])}
    storage.write_json(storage.join(folder, "report.json"), numbers)
    target = storage.join(folder, "result.json")
    headline = {k: result["metrics"][k] for k in HEADLINE}
    storage.write_json(target, {k: v for k, v in numbers.items() if k not in IN_REPORT_ONLY} | headline)
    return target


def draw(result: dict, shown: dict) -> dict[str, bytes | None]:
    """The pictures of a test split as PNG files; None where there is nothing to show. Arguments: see `render`."""
    wanted = {"crops": (figures.crops_figure, shown["montage"]),
              "augmented": (figures.row_figure, shown["augmented"]),
              "bars": (figures.bars_figure, result["counts"]["after"]),
              "curves": (figures.curves_figure, result["history"]),
              "recall": (figures.recall_figure, result["metrics"]),
              "confusion": (figures.confusion_figure, result["metrics"]["confusion"]),
              "reliability": (figures.reliability_figure, result["calibration"])}
    return {name: figures.png(figure(content)) if content else None for name, (figure, content) in wanted.items()}


def render(result: dict, shown: dict, drawn: dict[str, bytes | None]) -> str:
    """The report as one HTML page without external requests.

    Args:
        result: what `evaluation.evaluate` describes.
        shown: the pictures: `montage` (dicts of `crop`, uint8 [H, W(, 3)], `expression`, `split`), `augmented` (uint8
            [224, 224, 3] images of one crop), `explained` (see `evaluation.evaluate`); each may be empty.
        drawn: of `draw`.
    """
    pictures = {name: png and figures.data_uri(png) for name, png in drawn.items()}
    explained = {name: {"mistakes": picture(figures.heat_figure, one.get("mistakes")),
                        "typical": picture(figures.heat_figure, one.get("typical")),
                        "lookalikes": picture(figures.lookalikes_figure, one.get("lookalikes"))}
                 for name, one in shown["explained"].items()}
    also = {a["name"]: {"recall": picture(figures.recall_figure, a["metrics"]),
                        "confusion": picture(figures.confusion_figure, a["metrics"]["confusion"])}
            for a in result["also"] if a["metrics"]}
    return _page("report.html.j2", r=result, m=result["metrics"], pictures=pictures, explained=explained, also=also,
                 leaking=is_leaking(result), cautions=metrics.cautions(result["metrics"]),
                 config=_flatten(result["config"]))


def render_prepared(name: str, summary: dict, index, leaks: list[dict], pictures: dict) -> str:
    """The page of a prepared set, see `overview`. `summary`: prepared.json. `index`: its rows (pandas)."""
    return _page("prepare.html.j2", name=name, p=summary, images=len(index), subjects=index["subject"].nunique(),
                 found=int(index["face_found"].sum()), leaks=leaks, leaking=is_leaking(summary), pictures=pictures,
                 config=_flatten(summary["config"]))


def render_protocol(summary: dict) -> str:
    """The page of several runs, see `protocols.summarise`."""
    rows = [row | {"leaking": is_leaking(row)} for row in summary["runs"]]
    pictures = {"runs": picture(figures.runs_figure, rows)}
    if summary["pooled"]:
        pictures |= {"recall": picture(figures.recall_figure, summary["pooled"]),
                     "confusion": picture(figures.confusion_figure, summary["pooled"]["confusion"])}
    return _page("protocol.html.j2", s=summary, rows=rows, pictures=pictures, config=_flatten(summary["config"]),
                 also=list(rows[0]["also"]))


def render_labels(summary: dict, sheets: dict[str, list[dict]]) -> str:
    """The page of a label audit. `sheets`: for each class dicts of `crop` and `title`, the most doubtful first."""
    return _page("labels.html.j2", s=summary,
                 sheets={e: picture(figures.sheet_figure, shown) for e, shown in sheets.items() if shown})


def render_matrix(summary: dict) -> str:
    """The page of networks tested on each other's data sets: `names`, `scores`, `classes`, `left_out` [N][N]."""
    shown = figures.png(figures.matrix_figure(summary["names"], summary["scores"], summary["classes"]))
    return _page("matrix.html.j2", s=summary, picture=figures.data_uri(shown))


def render_tune(summary: dict) -> str:
    """The page of a search, see `tuning.summarise`."""
    shown = [t for t in summary["trials"] if t["history"]]
    return _page("tune.html.j2", s=summary, ranked=sorted(summary["trials"], key=lambda t: -t["score"]),
                 states={state: sum(t["state"] == state for t in summary["trials"]) for state in figures.STATES},
                 pictures={"plane": picture(figures.plane_figure, shown),
                           "rungs": figures.data_uri(figures.png(figures.rungs_figure(shown, summary["rungs"]))),
                           "cost": figures.data_uri(figures.png(figures.cost_figure(summary)))},
                 config=_flatten({"tune": summary["tune"], "train": summary["train"]}))


def is_leaking(summary: dict) -> bool:
    """Whether a test score on this split holds for no new face: people, videos or pictures stand on both sides."""
    return summary["split"] in ("image", "sequence") or any(summary["leaks"].values())


def picture(figure: Callable, content) -> str | None:
    """`figure(content)` inside the page; None if there is no content."""
    return figures.data_uri(figures.png(figure(content))) if content else None


def _page(template: str, **content) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("fer_ray.report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(template).render(expressions=EXPRESSIONS, splits=figures.SPLITS,
                                                     groups_shown=GROUPS_SHOWN, **content)


def _without_pixels(explained: dict) -> dict:
    def numbers(one: dict) -> dict:
        return {k: v for k, v in one.items() if not isinstance(v, np.ndarray)}

    return {name: {kind: [numbers(one) for one in each] for kind, each in kinds.items()}
            for name, kinds in explained.items()}


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
