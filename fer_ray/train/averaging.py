"""Averaging of weights over the steps of a training: the average recognises new people better than the last step."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average:
    """An exponential moving average of a network in training, buffers included, or that network itself.

    Attributes:
        network: what is validated, kept and used.
    """

    def __init__(self, trained: torch.nn.Module, decay: float, steps: int = 0):
        """The average begins as a copy of the network.

        Args:
            trained: the network that the optimiser changes.
            decay: part of the average that a step leaves; 0: `network` is `trained`.
            steps: number of steps that the average already holds.
        """
        self.trained, self.averaged, self.network = trained, None, trained
        if decay:
            self.averaged = AveragedModel(trained, multi_avg_fn=_ema(decay), use_buffers=True)
            self.averaged.n_averaged.fill_(steps)
            self.network = self.averaged.module

    def update(self) -> None:
        """Take in the network as it is after a step."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.trained)

    def state(self) -> dict:
        """What a checkpoint needs beside the weights of `network`: those in training, and how many steps went in."""
        if self.averaged is None:
            return {}
        return {"trained": self.trained.state_dict(), "averaged_steps": int(self.averaged.n_averaged)}


def _ema(decay: float):
    """The moving average, in which the start weights count little: after n steps at most n of n + 10 parts are old."""
    def average(averaged, current, number) -> None:
        get_ema_multi_avg_fn(min(decay, float(number + 1) / (float(number) + 10)))(averaged, current, number)

    return average
