"""How a score is made from several runs: hold-out, folds, seeds, and the paper's split beside an honest one."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.checks import check
from fer_ray.config import Config, TrainConfig
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import metrics
from fer_ray.train import batches, resources, training, workers

SCORES = ("balanced_accuracy", "accuracy", "macro_f1", "log_loss", "ece")


def plan(config: Config) -> dict[str, Config]:
    """The runs of `config.protocol` by what tells them apart; all share one prepared set, split in their own ways.

    Raises: ConfigError if the protocol cannot be had with this split.
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
        return {"by image, as in the paper": run("image", split={"by": "image"}),
                "by subject": run("subject", split={"by": "subject"})}
    return {"hold-out": base}


def train_all(runs: dict[str, tuple[Config, str]], parallel: int = 0) -> None:
    """Train all runs (configuration and prepared set), `parallel` side by side; finished ones cost nothing.

    A run that fails ends the others only when they are done. Raises: as `training.train`, the first one's error.
    """
    import ray

    configs = [config for config, _ in runs.values()]
    resources.wait_for_workers(configs[0].train)
    parallel = parallel or min(len(runs), side_by_side(ray.cluster_resources(), configs[0].train))
    task = ray.remote(training.train).options(num_cpus=0, max_retries=0)  # its workers hold the CPUs
    waiting, running, errors = list(runs.values()), [], []
    with training.progress({label: workers.run_uri(config) for label, (config, _) in runs.items()}, configs[0].train):
        while waiting or running:
            while waiting and len(running) < parallel:
                running.append(task.remote(*waiting.pop(0), parallel))
            (done,), running = ray.wait(running)
            try:
                ray.get(done)
            except ray.exceptions.RayTaskError as error:
                errors.append(error.cause)
    if errors:
        raise errors[0]


def side_by_side(cluster: dict, t: TrainConfig) -> int:
    """How many trainings the cluster holds at once, at least 1."""
    return max(1, int(cluster.get("GPU" if t.use_gpu else "CPU", 0) // t.num_workers))


def pooled(runs: list[str]) -> pd.DataFrame:
    """The test predictions of several runs below each other, with the column `run`; URIs of their folders."""
    tables = [pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(run, "predictions.csv"))), dtype={"subject": str})
              for run in runs]
    return pd.concat([t.assign(run=run.rpartition("/")[2]) for t, run in zip(tables, runs, strict=True)],
                     ignore_index=True)


def probabilities_of(predictions: pd.DataFrame) -> np.ndarray:
    """float64 [N, 8] of a table of predictions."""
    return predictions[[f"p_{e}" for e in EXPRESSIONS]].to_numpy()


def scores_of(predictions: pd.DataFrame, seed: int) -> dict:
    """`metrics.evaluate` of a table of predictions."""
    subjects = predictions["subject"].astype(object).where(predictions["subject"].notna(), None).tolist()
    return metrics.evaluate(probabilities_of(predictions), batches.labels_of(predictions), subjects, seed)


def table(summary: dict) -> str:
    """The runs for a terminal."""
    columns = ["label", *SCORES, "test_images"]
    rows = [{k: run[k] for k in columns} | {f"on {name}": score for name, score in run["also"].items()}
            for run in summary["runs"]]
    lines = [pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format)]
    if summary["kind"] != "paper_vs_honest" and len(summary["runs"]) > 1:
        spread = summary["spread"]["balanced_accuracy"]
        lines.append(f"balanced accuracy {spread['mean']:.3f} ± {spread['sd']:.3f} (mean ± sd of the runs)")
    if summary["pooled"]:
        lines.append("all folds together:\n" + metrics.per_class_table(summary["pooled"]))
    return "\n".join(lines)


def summarise(config: Config, results: dict[str, dict]) -> dict:
    """What the page of a protocol tells. `results`: what `evaluation` describes, by label.

    `pooled` are the numbers over the test images of all folds, each of which was in test once; None otherwise.
    """
    rows = [{"label": label, "name": r["name"], "split": r["split"], "leaks": r["leaks"], "remarks": r["remarks"],
             "epochs": r["train"]["epochs_run"], "validation": r["validation"]["balanced_accuracy"],
             "test_images": r["metrics"]["test_images"], "test_subjects": r["metrics"]["test_subjects"],
             "balanced_accuracy_ci95": r["metrics"]["balanced_accuracy_ci95"],
             "floor": r["floor"]["balanced_accuracy"] if r["floor"] else None,
             "also": {a["name"]: a["metrics"]["balanced_accuracy"] if a["metrics"] else None for a in r["also"]},
             **{s: r["metrics"][s] for s in SCORES}} for label, r in results.items()]
    spread = {s: {"mean": float(np.mean([row[s] for row in rows])),
                  "sd": float(np.std([row[s] for row in rows], ddof=1)) if len(rows) > 1 else None} for s in SCORES}
    together, floor = None, None
    if config.protocol.kind == "folds":
        together = scores_of(pooled([workers.run_uri(run) for run in plan(config).values()]), config.split.seed)
        if all(r["floor"] for r in results.values()):
            confusion = np.sum([r["floor"]["confusion"] for r in results.values()], axis=0)
            floor = {"balanced_accuracy": metrics.balanced_accuracy(confusion),
                     "accuracy": float(confusion.trace() / confusion.sum()),
                     "method": next(iter(results.values()))["floor"]["method"].partition(" (")[0]}
    first = next(iter(results.values()))
    return {"name": config.name, "kind": config.protocol.kind, "runs": rows, "spread": spread, "pooled": together,
            "floor": floor, **{k: first[k] for k in ("created", "command", "config", "versions", "train")}}
