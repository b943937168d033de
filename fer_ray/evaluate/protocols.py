"""How a score is made from several runs: hold-out, folds, seeds, and the paper's split beside an honest one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from fer_ray.checks import check
from fer_ray.config import Config, TrainConfig
from fer_ray.data import splits
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import results
from fer_ray.model import metrics
from fer_ray.train import batches, job, live, resources, training

SCORES = ("balanced_accuracy", "accuracy", "macro_f1", "log_loss", "ece")
BY_IMAGE = "by image, as in the paper"
MIN_FOLDS = 3  # test, val and train
MAX_RETRIES = 3  # of what starts and watches a training
MIN_COMMON_CLASSES = 2  # with one alone there is nothing to tell apart


def plan(config: Config, index: pd.DataFrame | None = None) -> dict[str, Config]:
    """The runs of `config.protocol` by their labels; all share one prepared set, split in their own ways.

    Args:
        config: of the study.
        index: of the prepared set. `paper_vs_honest` needs it to know how many people a split by subject tests: where
            those are fewer than `metrics.MIN_PEOPLE`, folds are planned instead, which test everybody. Without it,
            as before the data is prepared, one split is planned.

    Raises: ConfigError if the protocol cannot be had with this split; DataError if there are too few people to split.
    """
    base = dataclasses.replace(config, prepared=config.prepared or config.name)
    kind, repeats = config.protocol.kind, config.protocol.repeats

    def run(suffix: str, split: dict | None = None, train: dict | None = None) -> Config:
        return check(dataclasses.replace(base, name=f"{config.name}-{suffix}",
                                         split=dataclasses.replace(config.split, **split or {}),
                                         train=dataclasses.replace(config.train, **train or {})))

    if kind == "folds":
        return {f"fold {k + 1}": run(f"fold{k}", split={"folds": repeats, "fold": k}) for k in range(repeats)}
    if kind == "seeds":
        return {f"seed {s}": run(f"seed{s}", train={"seed": s}) for s in range(repeats)}
    if kind == "paper_vs_honest":
        runs = {BY_IMAGE: run("image", split={"by": "image"})}
        folds = _honest_folds(index, config) if index is not None else 0
        if not folds:
            return runs | {"by subject": run("subject", split={"by": "subject"})}
        return runs | {f"by subject, fold {k + 1}": run(f"subject-fold{k}",
                                                        split={"by": "subject", "folds": folds, "fold": k})
                       for k in range(folds)}
    return {"hold-out": base}


def _honest_folds(index: pd.DataFrame, config: Config) -> int:
    """Into how many folds of people the honest side of `paper_vs_honest` is cut.

    0 where one split tests enough people, or where all people together are too few.
    """
    subjects = index["subject"].astype(object).where(index["subject"].notna(), None)
    tested = subjects[splits.assign(index, by="subject", seed=config.split.seed) == "test"]
    if metrics.num_people(tested.tolist()) >= metrics.MIN_PEOPLE:
        return 0
    if metrics.num_people(subjects.tolist()) < metrics.MIN_PEOPLE:
        return 0
    return max(MIN_FOLDS, config.protocol.repeats)


def train_all(runs: dict[str, tuple[Config, str]], parallel: int = 0) -> None:
    """Train all runs (configuration and prepared set), `parallel` side by side; finished ones cost nothing.

    A run that fails ends the others only when they are done. Raises: as `training.train`, the first one's error.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    runs = {label: (dataclasses.replace(config, train=resources.settle(config.train, parallel or len(runs))), prepared)
            for label, (config, prepared) in runs.items()}
    train = next(iter(runs.values()))[0].train
    resources.wait_for_workers(train)
    parallel = parallel or min(len(runs), num_parallel_runs(ray.cluster_resources(), train))
    # no CPU for the task: the workers that it starts hold them. (Ray's types know no arguments with defaults: Any)
    # When the node is lost that runs it, Ray calls it again elsewhere, and the run goes on.
    task: Any = ray.remote(training.train).options(num_cpus=0, max_retries=MAX_RETRIES)
    print(f"{len(runs)} trainings, {parallel} side by side, each with {resources.describe_workers(train)}", flush=True)
    waiting, running, errors = list(runs.values()), [], []
    with live.show({label: job.run_uri(config) for label, (config, _) in runs.items()}, train):
        while waiting or running:
            while waiting and len(running) < parallel:
                config, prepared = waiting.pop(0)
                running.append(task.remote(config, prepared, parallel))
            (done,), running = ray.wait(running)
            try:
                ray.get(done)
            except RayError as error:  # one of the training, or one that says how its process ended
                errors.append(error.cause if isinstance(error, RayTaskError) else error)
    if errors:
        raise errors[0]


def num_parallel_runs(cluster: dict, train: TrainConfig) -> int:
    """How many trainings a cluster with these resources holds at once, at least 1."""
    return max(1, int(cluster.get("GPU" if train.device == "cuda" else "CPU", 0) // train.num_workers))


def pooled(runs: list[str]) -> pd.DataFrame:
    """The test predictions of several runs (URIs of their folders) below each other, with the column `run`.

    Raises: storage.DamagedError.
    """
    return pd.concat([results.read_predictions(run).assign(run=run.rpartition("/")[2]) for run in runs],
                     ignore_index=True)


def probabilities_of(predictions: pd.DataFrame) -> np.ndarray:
    """float64 [N, 8] of a table of predictions."""
    return predictions[results.PROBABILITIES].to_numpy()


def scores_of(predictions: pd.DataFrame) -> dict:
    """`metrics.evaluate` of a table of predictions."""
    return metrics.evaluate(probabilities_of(predictions), batches.labels_of(predictions), _subjects(predictions))


def groups_of(predictions: pd.DataFrame) -> dict[str, list[dict]]:
    """`metrics.by_group` of a table of predictions by each of `results.CONDITIONS`."""
    return {name: metrics.by_group(probabilities_of(predictions), batches.labels_of(predictions),
                                   _subjects(predictions), predictions[name].tolist())
            for name in results.CONDITIONS}


def _subjects(predictions: pd.DataFrame) -> list[str | None]:
    return predictions["subject"].astype(object).where(predictions["subject"].notna(), None).tolist()


def compare_sides(by_image: pd.DataFrame, by_subject: pd.DataFrame) -> dict:
    """What the leak is worth: the difference between both sides' balanced accuracy over the classes that both test.

    Args:
        by_image: test predictions on the paper's split.
        by_subject: test predictions on the split, or all folds, by subject.

    Returns: `classes` (tested by both), `sides` (a dict each: the scores over those classes, and how many classes,
        images and people there are), `points` (the difference in percentage points; None if it is withheld) and
        `withheld` (why, in words that end a sentence; None if it is not).
    """
    tested = [set(side["expression"]) for side in (by_image, by_subject)]
    classes = [e for e in EXPRESSIONS if e in tested[0] & tested[1]]
    sides, scores = [], []
    for label, side in ((BY_IMAGE, by_image), ("by subject", by_subject)):
        common = side[side["expression"].isin(classes)]
        scores.append(scores_of(common) if classes else {})
        sides.append({"label": label, "runs": side["run"].nunique(), "all_classes": side["expression"].nunique(),
                      "images": len(common), "people": scores[-1].get("test_people", 0),
                      **{key: scores[-1].get(key) for key in ("balanced_accuracy", "balanced_accuracy_ci95",
                                                              "no_interval", "chance")}})
    withheld, points = None, None
    if len(classes) < MIN_COMMON_CLASSES:
        withheld = f"the two test splits have {len(classes)} class(es) in common, and at least two are needed"
    elif scores[1]["test_people"] < metrics.MIN_PEOPLE:
        withheld = (f"the split by subject tests {metrics.count_people(scores[1]['test_people'])}, and fewer than "
                    f"{metrics.MIN_PEOPLE} do not tell how a new person is read")
    else:
        points = 100 * (scores[0]["balanced_accuracy"] - scores[1]["balanced_accuracy"])
    return {"classes": classes, "sides": sides, "points": points, "withheld": withheld}


def table(summary: dict) -> str:
    """The runs for a terminal."""
    rows = [{"run": run["label"], "balanced accuracy": run["balanced_accuracy"], "chance": run["chance"],
             "95 % interval": metrics.interval_cell(run["balanced_accuracy_ci95"], run["test_people"]),
             "accuracy": run["accuracy"], "macro-F1": run["macro_f1"], "log loss": run["log_loss"],
             "images": run["test_images"]} | {f"on {name}": score for name, score in run["also"].items()}
            for run in summary["runs"]]
    lines = [pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format)]
    if summary["kind"] != "paper_vs_honest" and len(summary["runs"]) > 1:
        spread = summary["spread"]["balanced_accuracy"]
        lines.append(f"balanced accuracy {spread['mean']:.3f} ± {spread['sd']:.3f} (mean ± sd of the runs)")
    if summary["pooled"]:
        lines.append("all folds together:\n" + metrics.per_class_table(summary["pooled"]))
        lines += metrics.group_lines(summary["groups"])
    if compared := summary["comparison"]:
        for side in compared["sides"]:
            if side["balanced_accuracy"] is not None:
                lines.append(f"{side['label']}: balanced accuracy {side['balanced_accuracy']:.3f} over the "
                             f"{len(compared['classes'])} classes that both test, {side['images']} images of "
                             f"{metrics.count_people(side['people'])}")
        lines.append(f"what the leak is worth is not said: {compared['withheld']}" if compared["withheld"]
                     else f"what the leak is worth: {compared['points']:+.1f} points of balanced accuracy")
    return "\n".join(lines)


def summarise(config: Config, runs: dict[str, Config], reports: dict[str, dict]) -> dict:
    """What the page of a protocol shows, ready for JSON.

    Args:
        config: of the study.
        runs: of `plan`, by label.
        reports: `report.json` of each run, by label.

    Returns: see the keys. `pooled` are the scores over the test images of all folds, each of which was tested once
        (None without folds); `comparison` is that of `compare_sides` (None but for `paper_vs_honest`).

    Raises: storage.DamagedError.
    """
    rows = [_row(label, report) for label, report in reports.items()]
    spread = {score: {"mean": float(np.mean([row[score] for row in rows])),
                      "sd": float(np.std([row[score] for row in rows], ddof=1)) if len(rows) > 1 else None}
              for score in SCORES}
    kind, together, groups, floor, compared = config.protocol.kind, None, {}, None, None
    if kind == "folds":
        predictions = pooled([job.run_uri(run) for run in runs.values()])
        together = scores_of(predictions)
        groups = groups_of(predictions)
        floor = _pooled_floor([report["floor"] for report in reports.values()])
    if kind == "paper_vs_honest":
        compared = _compare_runs(config, runs, rows)
    first = next(iter(reports.values()))
    return {"name": config.name, "kind": kind, "runs": rows, "spread": spread, "pooled": together, "groups": groups,
            "floor": floor,
            "comparison": compared,
            **{key: first[key] for key in ("created", "command", "config", "versions", "train", "counts")}}


def _row(label: str, report: dict) -> dict:
    """What the page of a protocol shows of one run."""
    scores = report["metrics"]
    of_scores = ("test_images", "test_people", "test_subjects", "chance", "balanced_accuracy_ci95", "no_interval",
                 *SCORES)
    return {
        "label": label,
        **{key: report[key] for key in ("name", "split", "leaks", "remarks")},
        "epochs": report["train"]["epochs_run"],
        "validation": report["validation"]["balanced_accuracy"],
        "train_images": sum(sum(by_split.get("train", {}).values()) for by_split in report["counts"]["after"].values()),
        **{key: scores[key] for key in of_scores},
        "floor": report["floor"]["balanced_accuracy"] if report["floor"] else None,
        "also": {other["name"]: other["metrics"]["balanced_accuracy"] if other["metrics"] else None
                 for other in report["also"]},
    }


def _pooled_floor(floors: list[dict | None]) -> dict | None:
    """The score of the floors of all folds together; None where one is missing. `floors`: of `evaluation.floor`."""
    known = [floor for floor in floors if floor]
    if len(known) < len(floors):
        return None
    confusion = np.sum([floor["confusion"] for floor in known], axis=0)
    return {"balanced_accuracy": metrics.balanced_accuracy(confusion),
            "accuracy": float(confusion.trace() / confusion.sum()),
            # without the regularisation in brackets, which each fold chose for itself
            "method": known[0]["method"].partition(" (")[0]}


def _compare_runs(config: Config, runs: dict[str, Config], rows: list[dict]) -> dict:
    """`compare_sides` of these runs; withheld also if the split by subject does not keep people apart."""
    honest = [label for label in runs if label != BY_IMAGE]
    compared = compare_sides(pooled([job.run_uri(runs[BY_IMAGE])]),
                             pooled([job.run_uri(runs[label]) for label in honest]))
    if any(any(row["leaks"].values()) or row["remarks"] for row in rows if row["label"] in honest):
        compared |= {"points": None,
                     "withheld": "the split by subject does not keep all people apart either (see what leaks, below)"}
    for side, labels in zip(compared["sides"], ([BY_IMAGE], honest), strict=True):
        side["train_images"] = round(np.mean([row["train_images"] for row in rows if row["label"] in labels]))
    return compared
