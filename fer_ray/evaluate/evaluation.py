"""Checkpoint x test split to results, and the same checkpoint on other data sets and new people."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import shlex
import sys

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.config import Config, to_dict
from fer_ray.data import duplicates, prepared_set
from fer_ray.data.manifest import EXPRESSIONS, DataError
from fer_ray.evaluate import inference
from fer_ray.model import checkpoints, metrics
from fer_ray.train import batches, tracking, workers

PACKAGES = ("ray", "torch", "torchvision", "opencv-python-headless", "numpy", "pyarrow", "scikit-learn")


def evaluate(config: Config, prepared: str, also: dict[str, str]) -> tuple[dict, dict]:
    """Score the run's best checkpoint on the test split and on every image of the prepared sets `also` (name -> URI).

    The probabilities of each image go to `predictions.csv` (`predictions-NAME.csv`) in the run's folder.

    Returns: all that the report tells, ready for JSON, and the pictures of `explanation.explain` by data set ("" for
        the test split).

    Raises: checkpoints.CheckpointError; manifest.DataError if the checkpoint was trained on another split, whose
        training images could stand in this test split, or if the test split is empty.
    """
    run = workers.run_uri(config)
    checkpoint = config.evaluate.checkpoint or checkpoints.find_best(run)
    description = checkpoints.describe(checkpoint)
    summary = storage.read_json(storage.join(prepared, "prepared.json"))
    if description["data_fingerprint"] != summary["fingerprint"]:
        raise DataError(f"{checkpoint} was trained on another prepared set or split than {prepared}: its training "
                        "images may stand in this test split; evaluate.also scores it on other data")
    index = prepared_set.read_index(prepared).sort_values("row").reset_index(drop=True)
    held_out = index[index["split"] != "train"]
    test = held_out[held_out["split"] == "test"]
    if not len(test):
        raise DataError(f"{prepared}: the test split is empty")
    everything = inference.predict(prepared, held_out, config.evaluate.batch_size, checkpoint=checkpoint,
                                   use_gpu=config.train.use_gpu)
    is_test = (held_out["split"] == "test").to_numpy()
    probabilities, val = everything[is_test], held_out[~is_test]
    labels, subjects = batches.labels_of(test), test["subject"].tolist()
    # the chosen checkpoint knows its own epochs only
    history = description["history"] if config.evaluate.checkpoint else tracking.read(run)
    result = _describe(config, prepared, summary, checkpoint, description, history) | {
        "metrics": metrics.evaluate(probabilities, labels, subjects, config.split.seed),
        "calibration": calibration(everything[~is_test], batches.labels_of(val), probabilities, labels),
        "groups": {name: metrics.by_group(probabilities, labels, subjects, column_of(test, name), config.split.seed)
                   for name in config.evaluate.groups},
        "floor": floor(config, prepared, index, description["backbone"]) if config.evaluate.floor else None,
    }
    _write_predictions(run, "predictions.csv", test, probabilities)
    pictures = {"": _explain(config, prepared, checkpoint, test, probabilities)}
    trained = index[index["split"] == "train"]
    result["also"] = []
    for name, uri in also.items():
        scored, pictures[name] = _score_whole(config, checkpoint, prepared, trained, name, uri, run)
        result["also"].append(scored)
    return result, pictures


def calibration(val: np.ndarray, val_labels: np.ndarray, test: np.ndarray, labels: np.ndarray) -> dict:
    """Reliability of the test probabilities [N, 8] as they are and at the temperature that was fitted on val."""
    temperature = metrics.fit_temperature(val, val_labels)
    scaled = metrics.at_temperature(test, temperature)

    def told(probabilities: np.ndarray) -> dict:
        return {"ece": metrics.calibration_error(probabilities, labels),
                "log_loss": metrics.log_loss(probabilities, labels), "bins": metrics.reliability(probabilities, labels)}

    return {"temperature": temperature, "as_is": told(test), "scaled": told(scaled)}


def column_of(rows: pd.DataFrame, name: str) -> list[str | None]:
    """The values of a column of the index, or of one of the user's own; None where there is none."""
    if name in rows:
        return rows[name].astype(object).where(rows[name].notna(), None).tolist()
    return [json.loads(groups)[name] if isinstance(groups, str) else None for groups in rows["groups"]]


def floor(config: Config, prepared: str, index: pd.DataFrame, backbone: str) -> dict:
    """The score that fine-tuning must beat: logistic regression on frozen ImageNet features of the same split.

    The regularisation is chosen by balanced accuracy on val; test is scored once.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import confusion_matrix
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, frozen = _frozen_features(prepared_set.whole(prepared), backbone, config.evaluate.batch_size,
                                    config.train.use_gpu)
    features = frozen[rows.get_indexer(index["row"])]
    labels, split = batches.labels_of(index), index["split"].to_numpy()

    def confusion(model, part: str) -> np.ndarray:
        chosen = split == part
        return confusion_matrix(labels[chosen], model.predict(features[chosen]), labels=metrics.CLASSES)

    best = None
    for c in (1e-4, 1e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=2000))
        model.fit(features[split == "train"], labels[split == "train"])
        score = metrics.balanced_accuracy(confusion(model, "val"))
        if best is None or score > best[0]:
            best = (score, c, model)
    test = confusion(best[2], "test")
    return {"method": f"logistic regression on frozen {backbone} features (C = {best[1]:g} chosen on val)",
            "balanced_accuracy": metrics.balanced_accuracy(test), "accuracy": float(test.trace() / test.sum()),
            "confusion": test.tolist()}


@functools.lru_cache(maxsize=1)  # the folds of a set share them
def _frozen_features(prepared: str, backbone: str, batch_size: int, use_gpu: bool) -> tuple[pd.Index, np.ndarray]:
    """Row numbers and ImageNet features, float32 [N, D], of every image of a prepared set."""
    index = prepared_set.read_index(prepared)
    return pd.Index(index["row"]), inference.predict(prepared, index, batch_size, backbone=backbone, use_gpu=use_gpu)


def harmonise(probabilities: np.ndarray, classes: list[str]) -> np.ndarray:
    """Probabilities [N, 8] of the `classes` alone: the others are 0, rows sum to 1 again."""
    kept = np.where(np.isin(EXPRESSIONS, classes), probabilities, 0.0)
    return kept / np.maximum(kept.sum(1, keepdims=True), 1e-12)


def copies_of(prepared: str, trained: pd.DataFrame, other: str, rows: pd.DataFrame) -> np.ndarray:
    """Which of the `rows` of the prepared set `other` are near-duplicates of `trained` rows of `prepared`; bool [N]."""
    looks = [prepared_set.read_metadata(uri, int(index["part"].max()) + 1).set_index("row").loc[index["row"]]
             for uri, index in ((prepared, trained), (other, rows))]
    cluster = duplicates.clusters(pd.concat(looks, ignore_index=True))
    return np.isin(cluster[len(trained) :], cluster[: len(trained)])


def _score_whole(config: Config, checkpoint: str, prepared: str, trained: pd.DataFrame, name: str, uri: str,
                 run: str) -> tuple[dict, dict]:
    """Results and pictures of a prepared set of which nothing was trained on."""
    rows = prepared_set.read_index(uri).sort_values("row").reset_index(drop=True)
    classes = [e for e in EXPRESSIONS if e in set(trained["expression"]) & set(rows["expression"])]
    other, copied = ~rows["expression"].isin(classes).to_numpy(), copies_of(prepared, trained, uri, rows)
    left_out = {"of classes that training did not have": int(other.sum()),
                "copies of training pictures": int((copied & ~other).sum())}
    rows = rows[~(other | copied)].reset_index(drop=True)
    told = {"name": name, "prepared": uri, "classes": classes, "left_out": left_out, "metrics": None}
    if not len(rows):
        return told, {}
    probabilities = harmonise(inference.predict(uri, rows, config.evaluate.batch_size, checkpoint=checkpoint,
                                                use_gpu=config.train.use_gpu), classes)
    labels, subjects = batches.labels_of(rows), rows["subject"].tolist()
    told["metrics"] = metrics.evaluate(probabilities, labels, subjects, config.split.seed)
    _write_predictions(run, f"predictions-{name}.csv", rows, probabilities)
    return told, _explain(config, uri, checkpoint, rows, probabilities)


def _explain(config: Config, prepared: str, checkpoint: str, rows: pd.DataFrame, probabilities: np.ndarray) -> dict:
    """On a worker: the machine that submits a job need not hold the network."""
    import ray

    task = ray.remote(_explain_here).options(num_cpus=1)
    return ray.get(task.remote(prepared, checkpoint, rows, probabilities, config.split.seed))


def _explain_here(*given) -> dict:
    from fer_ray.evaluate import explanation

    return explanation.explain(*given)


def _write_predictions(run: str, name: str, rows: pd.DataFrame, probabilities: np.ndarray) -> None:
    table = rows[["image", "dataset", "subject", "expression"]].assign(
        **{f"p_{e}": probabilities[:, i] for i, e in enumerate(EXPRESSIONS)})
    storage.write_bytes(storage.join(run, name), table.to_csv(index=False).encode())


def _describe(config: Config, prepared: str, summary: dict, checkpoint: str, description: dict,
              history: list[dict]) -> dict:
    leaks = prepared_set.read_table(prepared, "leaks").to_dict("records")
    told = ("split", "remarks", "leaks", "conflicts", "near_duplicates", "counts", "rejected", "fingerprint")
    return {
        "name": config.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        **{key: summary[key] for key in told},
        "leak_examples": leaks[:20],
        "validation": {"balanced_accuracy": description["metrics"]["val_balanced_accuracy"],
                       "epoch": description["metrics"]["epoch"] + 1},
        "train": description["config"]["train"] | {"epochs_run": len(history)},
        "history": history,
        "parameters": description["parameters"],
        "config": to_dict(config),
        "versions": {"python": sys.version.split()[0],
                     **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "checkpoint": checkpoint,
        "labels": read_labels(config),
    }


def read_labels(config: Config) -> dict | None:
    """The numbers of the label audit of this prepared set, if there was one."""
    file = storage.join(config.storage, "labels", config.prepared or config.name, "labels.json")
    return storage.read_json(file) if storage.exists(file) else None
