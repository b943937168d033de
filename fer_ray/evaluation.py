"""Checkpoint x test split to results."""

from __future__ import annotations

import datetime
import importlib.metadata
import shlex
import sys

import numpy as np

from fer_ray import backbones, batches, checkpoints, inference, metrics, prepare, storage, tracking
from fer_ray.config import Config, to_dict
from fer_ray.manifest import EXPRESSIONS, DataError

PACKAGES = ("ray", "torch", "torchvision", "opencv-python-headless", "numpy", "pyarrow", "scikit-learn")


def evaluate(config: Config, prepared: str) -> dict:
    """Score the run's best checkpoint on the test split; everything the report tells.

    The probabilities of each test image go to `predictions.csv` in the run's folder.

    Raises: checkpoints.CheckpointError; manifest.DataError if the checkpoint was trained on another split, whose
        training images could stand in this test split, or if the test split is empty.
    """
    run = storage.absolute(storage.join(config.storage, "runs", config.name))
    checkpoint = config.evaluate.checkpoint or checkpoints.find_best(run)
    description = checkpoints.describe(checkpoint)
    summary = storage.read_json(storage.join(prepared, "prepared.json"))
    if description["data_fingerprint"] != summary["fingerprint"]:
        raise DataError(f"{checkpoint} was trained on another prepared set or split than {prepared}: its training "
                        "images may stand in this test split")
    test, probabilities = inference.predict(prepared, ["test"], config.evaluate.batch_size, checkpoint=checkpoint,
                                            use_gpu=config.train.use_gpu)
    if not len(test):
        raise DataError(f"{prepared}: the test split is empty")
    scores = metrics.evaluate(probabilities, batches.labels_of(test), test["subject"].tolist(), config.split.seed)
    # the chosen checkpoint knows its own epochs only
    history = description["history"] if config.evaluate.checkpoint else tracking.read(run)
    result = _describe(config, prepared, summary, checkpoint, description, scores, history)
    if config.evaluate.floor:
        result["floor"] = floor(config, prepared, description["backbone"])
    predictions = test[["image", "dataset", "subject", "expression"]].assign(
        **{f"p_{e}": probabilities[:, i] for i, e in enumerate(EXPRESSIONS)})
    storage.write_bytes(storage.join(run, "predictions.csv"), predictions.to_csv(index=False).encode())
    return result


def floor(config: Config, prepared: str, backbone: str) -> dict:
    """The score that fine-tuning must beat: logistic regression on frozen ImageNet features of the same split.

    The regularisation is chosen by balanced accuracy on val; test is scored once.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbones.initial_state(backbone, "imagenet", seed=0)  # fails here, with its reason, rather than in an actor
    rows, features = inference.predict(prepared, ["train", "val", "test"], config.evaluate.batch_size,
                                       backbone=backbone, use_gpu=config.train.use_gpu)
    labels, split = batches.labels_of(rows), rows["split"].to_numpy()
    best = None
    for c in (1e-4, 1e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=2000))
        model.fit(features[split == "train"], labels[split == "train"])
        score = _balanced(labels[split == "val"], model.predict(features[split == "val"]), balanced_accuracy_score)
        if best is None or score > best[0]:
            best = (score, c, model)
    truth, guess = labels[split == "test"], best[2].predict(features[split == "test"])
    return {"method": f"logistic regression on frozen {backbone} features (C = {best[1]:g} chosen on val)",
            "balanced_accuracy": _balanced(truth, guess, balanced_accuracy_score),
            "accuracy": float(accuracy_score(truth, guess))}


def _balanced(truth: np.ndarray, guess: np.ndarray, score) -> float:
    import warnings

    with warnings.catch_warnings():  # a class that is guessed but has no image here only warns
        warnings.simplefilter("ignore", UserWarning)
        return float(score(truth, guess))


def _describe(config: Config, prepared: str, summary: dict, checkpoint: str, description: dict, scores: dict,
              history: list[dict]) -> dict:
    leaks = prepare.read_table(prepared, "leaks").to_dict("records")
    told = ("split", "remarks", "leaks", "conflicts", "near_duplicates", "counts", "rejected", "fingerprint")
    trained = description["config"]["train"]
    return {
        "name": config.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        **{key: summary[key] for key in told},
        "leak_examples": leaks[:20],
        "metrics": scores,
        "validation": {"balanced_accuracy": description["metrics"]["val_balanced_accuracy"],
                       "epoch": description["metrics"]["epoch"] + 1},
        "train": trained | {"epochs_run": len(history)},
        "history": history,
        "parameters": description["parameters"],
        "config": to_dict(config),
        "versions": {"python": sys.version.split()[0],
                     **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "floor": None,
        "checkpoint": checkpoint,
    }
