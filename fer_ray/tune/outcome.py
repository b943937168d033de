"""What a search has found: the state of each trial, the best of them, and the numbers of the report."""

from __future__ import annotations

import numpy as np

from fer_ray import storage
from fer_ray.config import Config, TrainConfig, to_dict
from fer_ray.train import schedule, tracking, training, workers
from fer_ray.train.job import run_uri
from fer_ray.tune import policies, space
from fer_ray.tune.trial import trial_config

# of the numbers of an epoch
KEPT = ("epoch", "lr", "train_loss", "val_loss", "val_balanced_accuracy", "val_chance", "train_s")


def trials(config: Config) -> list[dict]:
    """What became of each trial, read from its run.

    Returns: by trial, `number`, `run` (URI), `point`, `settings` (of `train`), `history` (an entry an epoch),
        `best_epoch` (from 0; None before the first has ended), `score` (best validation balanced accuracy; 0 for a
        diverged trial), `state` and, for a diverged trial, its `reason`. The state is `finished`, `ended` (early, by
        the scheduler), `diverged` or `unfinished`.
    """
    return [_trial(config, number, point) for number, point in enumerate(space.read_points(config))]


def _trial(config: Config, number: int, point: dict) -> dict:
    one = trial_config(config, number, point)
    run = run_uri(one)
    history = [{key: numbers[key] for key in KEPT} for numbers in tracking.read(run)]
    state, reason = "unfinished", ""
    diverged = storage.join(run, "diverged.json")
    if storage.exists(diverged):
        remedy = f"remove it and run jobs/tune.py again, which trains trial {number:03d} again"
        state, reason = "diverged", storage.read_own_json(diverged, {"reason": str}, remedy)["reason"]
    elif storage.exists(storage.join(run, "ended.json")):
        state = "ended"
    elif is_finished(history, one.train):
        state = "finished"
    scores = [numbers["val_balanced_accuracy"] for numbers in history]
    return {"number": number, "run": run, "point": point, "state": state, "reason": reason, "history": history,
            "settings": space.settings(point) | {k: getattr(one.train, k) for k in ("lr", "momentum", "backbone")},
            "best_epoch": int(np.argmax(scores)) if scores else None,
            "score": max(scores) if scores and state != "diverged" else 0.0}


def is_finished(history: list[dict], settings: TrainConfig) -> bool:
    """Whether the epochs, or the patience, of a trial have run out."""
    best_epoch = int(np.argmax([numbers["val_balanced_accuracy"] for numbers in history])) if history else -1
    return schedule.is_finished(len(history), best_epoch, settings)


def choose(config: Config, found: list[dict]) -> dict:
    """The trial with the best validation score, for which `best/NAME.json` is written.

    Among equals it is the one that needed fewest epochs.

    Raises: workers.TrainingError if no trial came to a result.
    """
    usable = [trial for trial in found if trial["history"] and trial["state"] != "diverged"]
    if not usable:
        reasons = "; ".join(f"{trial['number']:03d}: {trial['reason'] or trial['state']}" for trial in found[:3])
        raise workers.TrainingError(f"{space.search_uri(config)}: no trial came to a result ({reasons})")
    best = max(usable, key=lambda trial: (trial["score"], -trial["best_epoch"]))
    training.write_best(config, best["run"], config.name)
    return best


def summarise(config: Config, found: list[dict], best: dict) -> dict:
    """The numbers of tune.html and tune.json."""
    grid_points = len(space.grid(space.axes(config), config.tune.grid_points))
    return {"name": config.name, "trials": found, "best": best, "rungs": policies.rungs(config.tune),
            "epochs_spent": sum(len(trial["history"]) for trial in found),
            "seconds": sum(numbers["train_s"] for trial in found for numbers in trial["history"]),
            "grid_epochs": grid_points * config.tune.max_epochs, "full_epochs": len(found) * config.tune.max_epochs,
            "tune": to_dict(config.tune), "train": to_dict(config.train)}
