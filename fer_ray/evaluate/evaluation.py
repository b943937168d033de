"""A run's best checkpoint to scores: on the test split, on other data sets, and on new people."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import shlex
import sys

import numpy as np
import pandas as pd

from fer_ray import progress, storage
from fer_ray.config import Config, to_dict
from fer_ray.data import prepared_set
from fer_ray.data.manifest import EXPRESSIONS, DataError, is_drawn
from fer_ray.evaluate import acquainted, calibration, inference, results
from fer_ray.model import checkpoints, metrics
from fer_ray.train import batches, job, tracking

PACKAGES = ("ray", "torch", "torchvision", "opencv-python-headless", "numpy", "pyarrow", "scikit-learn")
FLOOR_C = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse strengths of regularisation that the floor tries on validation


def evaluate(config: Config, prepared: str, also: dict[str, str]) -> tuple[dict, dict]:
    """Score the run's best checkpoint on the test split and on every image of further prepared sets.

    The probabilities of each image go to `predictions.csv` (`predictions-NAME.csv`) in the run's folder.

    Args:
        config: of the run; `evaluate.device` is chosen.
        prepared: URI of the prepared set.
        also: URIs of the further prepared sets, by name.

    Returns: all that the report shows, ready for JSON, and the pictures of `explanation.explain` by data set ("" for
        the test split).

    Raises: checkpoints.CheckpointError; manifest.DataError as `check_origin`, or if the test split is empty;
        storage.DamagedError.
    """
    run = job.run_uri(config)
    checkpoint = config.evaluate.checkpoint or checkpoints.find_best(run)
    description = checkpoints.describe(checkpoint)
    # a checkpoint that the user chose knows the epochs up to its own; the run's log knows all
    history = description["history"]
    if not config.evaluate.checkpoint:
        history = tracking.read_whole(run, len(history))
    summary = prepared_set.read_summary(prepared)
    check_origin(checkpoint, description, prepared, summary["fingerprint"])
    index = prepared_set.read_index(prepared).sort_values("row").reset_index(drop=True)
    held_out = index[index["split"] != "train"]
    test, val = held_out[held_out["split"] == "test"], held_out[held_out["split"] == "val"]
    if not len(test):
        raise DataError(f"{prepared}: the test split is empty")
    everything = inference.predict(prepared, held_out, config.evaluate.batch_size, checkpoint=checkpoint,
                                   device=config.evaluate.device)
    is_test = (held_out["split"] == "test").to_numpy()
    probabilities = everything[is_test]
    labels, subjects = batches.labels_of(test), column_of(test, "subject")
    calibrated = calibration.calibrate(everything[~is_test], batches.labels_of(val), column_of(val, "subject"),
                                       probabilities, labels)
    result = _describe(config, prepared, summary, checkpoint, description, history) | {
        "metrics": metrics.evaluate(probabilities, labels, subjects),
        "calibration": calibrated,
        "groups": _by_groups(config, test, probabilities),
        "floor": floor(config, prepared, index, description["backbone"]) if config.evaluate.floor else None,
    }
    _store_temperature(checkpoint, calibrated)
    results.write_predictions(run, "predictions.csv", test, probabilities)
    pictures = {"": _explain(config, prepared, checkpoint, test, probabilities)}
    trained = index[index["split"] == "train"]
    result["also"] = []
    for name, uri in also.items():
        scored, pictures[name] = _score_whole(config, checkpoint, prepared, trained, name, uri, run)
        result["also"].append(scored)
    return result, pictures


def _by_groups(config: Config, rows: pd.DataFrame, probabilities: np.ndarray) -> dict[str, list[dict]]:
    """`metrics.by_group` by `results.CONDITIONS` and by the columns that the user asks for."""
    conditions = results.conditions(rows)
    values = {name: conditions[name].tolist() for name in results.CONDITIONS} | {
        name: column_of(rows, name) for name in config.evaluate.groups}
    return {name: metrics.by_group(probabilities, batches.labels_of(rows), column_of(rows, "subject"), of_name)
            for name, of_name in values.items()}


def _store_temperature(checkpoint: str, calibrated: dict) -> None:
    """Keep the fitted temperature with the weights. The scores do not need it: a read-only folder ends nothing."""
    try:
        checkpoints.write_calibration(checkpoint, calibrated["temperature"], calibrated["reason"])
    except storage.StorageError as error:
        progress.say(f"evaluate: the temperature could not be stored with the checkpoint: {error}")


def check_origin(checkpoint: str, description: dict, prepared: str, fingerprint: str) -> None:
    """Refuse a checkpoint whose score on this prepared set would say nothing.

    Args:
        checkpoint: URI.
        description: its `model.json`.
        prepared: URI of the prepared set.
        fingerprint: of that set.

    Raises: manifest.DataError if the checkpoint was trained on another set or split, whose training images could be in
        this test split, or if it is from within an epoch, so that validation has not chosen it.
    """
    if description["data_fingerprint"] != fingerprint:
        raise DataError(f"{checkpoint} was trained on another prepared set or split than {prepared}: its training "
                        "images may be in this test split; evaluate.also scores it on other data")
    if not description["at_end_of_epoch"]:
        raise DataError(f"{checkpoint} is from within an epoch and has no validation score; give evaluate.checkpoint "
                        "one from the end of an epoch, or leave it empty for the best one")


def column_of(rows: pd.DataFrame, name: str) -> list[str | None]:
    """The values of a column of the index, or of one of the user's own (`groups`); None where there is none."""
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

    rows, frozen = _frozen_features(prepared_set.base_uri(prepared), backbone, config.evaluate.batch_size,
                                    config.evaluate.device)
    features = frozen[rows.get_indexer(index["row"])]
    labels, split = batches.labels_of(index), index["split"].to_numpy()

    def confusion(model, part: str) -> np.ndarray:
        members = split == part
        return confusion_matrix(labels[members], model.predict(features[members]), labels=metrics.CLASSES)

    models = {}
    for strength in FLOOR_C:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=2000))
        models[strength] = model.fit(features[split == "train"], labels[split == "train"])
    # the first, most regularised one, of equals
    best = max(FLOOR_C, key=lambda strength: metrics.balanced_accuracy(confusion(models[strength], "val")))
    test = confusion(models[best], "test")
    return {"method": f"logistic regression on frozen {backbone} features (C = {best:g} chosen on val)",
            "balanced_accuracy": metrics.balanced_accuracy(test), "accuracy": float(test.trace() / test.sum()),
            "confusion": test.tolist()}


@functools.lru_cache(maxsize=1)  # the folds of a study share the features of their prepared set
def _frozen_features(prepared: str, backbone: str, batch_size: int, device: str) -> tuple[pd.Index, np.ndarray]:
    """Row numbers and ImageNet features, float32 [N, D], of every image of a prepared set."""
    index = prepared_set.read_index(prepared)
    return pd.Index(index["row"]), inference.predict(prepared, index, batch_size, backbone=backbone, device=device)


def harmonise(probabilities: np.ndarray, classes: list[str]) -> np.ndarray:
    """Probabilities [N, 8] over `classes` alone: the others become 0, and rows sum to 1 again."""
    kept = np.where(np.isin(EXPRESSIONS, classes), probabilities, 0.0)
    return kept / np.maximum(kept.sum(1, keepdims=True), 1e-12)


def _score_whole(config: Config, checkpoint: str, prepared: str, trained: pd.DataFrame, name: str, uri: str,
                 run: str) -> tuple[dict, dict]:
    """Scores and pictures of all images of a prepared set of which nothing was trained on."""
    rows = prepared_set.read_index(uri).sort_values("row").reset_index(drop=True)
    classes = [e for e in EXPRESSIONS if e in set(trained["expression"]) & set(rows["expression"])]
    other, seen = ~rows["expression"].isin(classes).to_numpy(), acquainted.find(prepared, trained, uri, rows)
    copied, known = seen.copied & ~other, seen.known & ~seen.copied & ~other
    left_out = {"of classes that training did not have": int(other.sum()),
                "copies of training pictures": int(copied.sum()),
                "of people whom training has seen": int(known.sum())}
    rows = rows[~(other | copied | known)].reset_index(drop=True)
    scored = {"name": name, "prepared": uri, "drawn": is_drawn(rows["dataset"]), "classes": classes,
              "left_out": left_out, "people_seen": seen.people, "codes_shared": seen.codes, "metrics": None,
              "groups": {}}
    if not len(rows):
        return scored, {}
    probabilities = harmonise(inference.predict(uri, rows, config.evaluate.batch_size, checkpoint=checkpoint,
                                                device=config.evaluate.device), classes)
    scored["metrics"] = metrics.evaluate(probabilities, batches.labels_of(rows), column_of(rows, "subject"))
    scored["groups"] = _by_groups(config, rows, probabilities)
    results.write_predictions(run, f"predictions-{name}.csv", rows, probabilities)
    return scored, _explain(config, uri, checkpoint, rows, probabilities)


def _explain(config: Config, prepared: str, checkpoint: str, rows: pd.DataFrame, probabilities: np.ndarray) -> dict:
    """`explanation.explain` as a task: the machine that submits a job need not hold the network."""
    import ray

    task = ray.remote(_explain_on_worker).options(num_cpus=1)
    explaining = task.remote(prepared, checkpoint, rows, probabilities, config.split.seed)
    return progress.get([explaining], "explain", [1], "data set")[0]


def _explain_on_worker(prepared: str, checkpoint: str, rows: pd.DataFrame, probabilities: np.ndarray,
                       seed: int) -> dict:
    from fer_ray.evaluate import explanation  # imports torch, which only the worker needs

    return explanation.explain(prepared, checkpoint, rows, probabilities, seed)


def _describe(config: Config, prepared: str, summary: dict, checkpoint: str, description: dict,
              history: list[dict]) -> dict:
    """What the report says beside the scores: data, training, command, versions."""
    leaks = prepared_set.read_table(prepared, "leaks").to_dict("records")
    of_data = ("split", "remarks", "unseen", "shortcuts", "leaks", "conflicts", "near_duplicates", "counts", "rejected",
               "fingerprint")
    return {
        "name": config.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        **{key: summary[key] for key in of_data},
        "drawn": is_drawn(summary["counts"]["read"]),
        "leak_examples": leaks[:20],
        "validation": {"balanced_accuracy": description["metrics"]["val_balanced_accuracy"],
                       "epoch": description["metrics"]["epoch"] + 1},
        "train": description["config"]["train"] | {"epochs_run": len(history)},
        "history": history,
        "parameters": description["parameters"],
        "config": to_dict(config),
        "versions": {"python": sys.version.split()[0],
                     **{package: importlib.metadata.version(package) for package in PACKAGES}},
        "checkpoint": checkpoint,
        "labels": read_labels(config),
    }


def read_labels(config: Config) -> dict | None:
    """The summary of the label audit of this prepared set; None if there was none, or if its file is damaged.

    A damaged one is told on the terminal: the scores do not need it.
    """
    file = storage.join(config.storage, "labels", config.prepared or config.name, "labels.json")
    if not storage.exists(file):
        return None
    try:
        return storage.read_own_json(file, {"suspects": int, "images": int, "network": dict, "by_class": dict},
                                     "python jobs/audit.py --labels with the options of your run makes it again")
    except storage.DamagedError as error:
        progress.say(f"evaluate: the report goes without the label audit: {error}")
        return None
