"""The plan of a training: the learning rate of each epoch, and when it is over."""

from __future__ import annotations

import math

from fer_ray.config import TrainConfig


def peak_lr(t: TrainConfig) -> float:
    """The highest learning rate; by the linear scaling rule (Goyal et al. 2017) if wished."""
    return t.lr * t.batch_size / 256 if t.lr_per_256 else t.lr


def lr_at(epoch: int, t: TrainConfig) -> float:
    """Learning rate of an epoch (from 0): linear warm-up, then the schedule."""
    peak = peak_lr(t)
    if epoch < t.warmup_epochs:
        return peak * (epoch + 1) / (t.warmup_epochs + 1)
    if t.schedule == "step":
        return peak * 0.1 ** ((epoch - t.warmup_epochs) // t.step_epochs)
    if t.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * (epoch - t.warmup_epochs) / max(1, t.epochs - t.warmup_epochs))) / 2
    return peak


def is_finished(progress: dict, t: TrainConfig) -> bool:
    """Whether the epochs, or the patience, have run out."""
    return progress["epoch"] >= t.epochs or progress["epoch"] - progress["best_epoch"] > t.patience
