"""The plan of a training: the learning rate of each epoch, and when it is over."""

from __future__ import annotations

import math

from fer_ray.config import TrainConfig


def peak_lr(settings: TrainConfig) -> float:
    """The highest learning rate: `train.lr`, with `lr_per_256` scaled to the batch size.

    The linear scaling rule is that of Goyal et al. 2017, arXiv:1706.02677.
    """
    return settings.lr * settings.batch_size / 256 if settings.lr_per_256 else settings.lr


def lr_at(epoch: int, settings: TrainConfig) -> float:
    """Learning rate of an epoch (from 0): linear warm-up, then the schedule."""
    peak, warmup = peak_lr(settings), settings.warmup_epochs
    if epoch < warmup:
        return peak * (epoch + 1) / (warmup + 1)
    if settings.schedule == "step":
        return peak * 0.1 ** ((epoch - warmup) // settings.step_epochs)
    if settings.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * (epoch - warmup) / max(1, settings.epochs - warmup))) / 2
    return peak


def is_finished(epochs_done: int, best_epoch: int, settings: TrainConfig) -> bool:
    """Whether the epochs, or the patience, have run out. `best_epoch`: from 0; -1 before the first."""
    return epochs_done >= settings.epochs or epochs_done - best_epoch > settings.patience
