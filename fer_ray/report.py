"""Results to self-contained HTML files (jinja2)."""

from __future__ import annotations

import numpy as np

from fer_ray import figures, metrics, storage
from fer_ray.manifest import EXPRESSIONS

HEADLINE = ("balanced_accuracy", "balanced_accuracy_ci95", "accuracy", "macro_f1", "test_images")
IN_REPORT_ONLY = ("calibration", "groups", "also", "explained", "labels")
GROUPS_SHOWN = 12


def write(folder: str, result: dict, shown: dict) -> str:
    """Write `report.html`, `report.json` (every number of the page), `summary.png` and, last, the short `result.json`
    to a folder; URI of `result.json`. `result`, `shown`: see `render`.
    """
    page = storage.join(folder, "report.html")
    storage.write_bytes(page, render(result, shown).encode())
    storage.write_bytes(storage.join(folder, "summary.png"), figures.summary_png(result, shown["montage"]))
    numbers = result | {"report": page, "explained": _without_pixels(shown["explained"])}
    storage.write_json(storage.join(folder, "report.json"), numbers)
    target = storage.join(folder, "result.json")
    headline = {k: result["metrics"][k] for k in HEADLINE}
    storage.write_json(target, {k: v for k, v in numbers.items() if k not in IN_REPORT_ONLY} | headline)
    return target


def render(result: dict, shown: dict) -> str:
    """The report as one HTML page without external requests.

    Args:
        result: what `evaluation.evaluate` describes.
        shown: the pictures: `montage` (dicts of `crop`, uint8 [H, W(, 3)], `expression`, `split`), `augmented` (uint8
            [224, 224, 3] images of one crop), `explained` (see `evaluation.evaluate`); each may be empty.
    """
    pictures = {"crops": _picture(figures.crops_figure, shown["montage"]),
                "augmented": _picture(figures.row_figure, shown["augmented"]),
                "bars": _picture(figures.bars_figure, result["counts"]["after"]),
                "curves": _picture(figures.curves_figure, result["history"]),
                "recall": _picture(figures.recall_figure, result["metrics"]),
                "confusion": _picture(figures.confusion_figure, result["metrics"]["confusion"]),
                "reliability": _picture(figures.reliability_figure, result["calibration"])}
    explained = {name: {"mistakes": _picture(figures.heat_figure, one.get("mistakes")),
                        "typical": _picture(figures.heat_figure, one.get("typical")),
                        "lookalikes": _picture(figures.lookalikes_figure, one.get("lookalikes"))}
                 for name, one in shown["explained"].items()}
    also = {a["name"]: {"recall": _picture(figures.recall_figure, a["metrics"]),
                        "confusion": _picture(figures.confusion_figure, a["metrics"]["confusion"])}
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
    pictures = {"runs": _picture(figures.runs_figure, rows)}
    if summary["pooled"]:
        pictures |= {"recall": _picture(figures.recall_figure, summary["pooled"]),
                     "confusion": _picture(figures.confusion_figure, summary["pooled"]["confusion"])}
    return _page("protocol.html.j2", s=summary, rows=rows, pictures=pictures, config=_flatten(summary["config"]),
                 also=list(rows[0]["also"]))


def render_labels(summary: dict, sheets: dict[str, list[dict]]) -> str:
    """The page of a label audit. `sheets`: for each class dicts of `crop` and `title`, the most doubtful first."""
    return _page("labels.html.j2", s=summary,
                 sheets={e: _picture(figures.sheet_figure, shown) for e, shown in sheets.items() if shown})


def render_matrix(summary: dict) -> str:
    """The page of networks tested on each other's data sets: `names`, `scores`, `classes`, `left_out` [N][N]."""
    picture = figures.matrix_figure(summary["names"], summary["scores"], summary["classes"])
    return _page("matrix.html.j2", s=summary, picture=figures.data_uri(picture))


def render_tune(summary: dict) -> str:
    """The page of a search, see `tuning.summarise`."""
    shown = [t for t in summary["trials"] if t["history"]]
    return _page("tune.html.j2", s=summary, ranked=sorted(summary["trials"], key=lambda t: -t["score"]),
                 states={state: sum(t["state"] == state for t in summary["trials"]) for state in figures.STATES},
                 pictures={"plane": _picture(figures.plane_figure, shown),
                           "rungs": figures.data_uri(figures.rungs_figure(shown, summary["rungs"])),
                           "cost": figures.data_uri(figures.cost_figure(summary))},
                 config=_flatten({"tune": summary["tune"], "train": summary["train"]}))


def is_leaking(summary: dict) -> bool:
    """Whether a test score on this split holds for no new face: people, videos or pictures stand on both sides."""
    return summary["split"] in ("image", "sequence") or any(summary["leaks"].values())


def _picture(figure, content) -> str | None:
    return figures.data_uri(figure(content)) if content else None


def _page(template: str, **content) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("fer_ray"), autoescape=True, undefined=StrictUndefined)
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
