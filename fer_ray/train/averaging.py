"""Averaging of weights over the steps of a training: the average recognises new people better than the last step."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# Steps between two updates, each of which moves all weights through memory. After every single step that would take
# AlexNet, which has many weights for its computing, a noticeable time (docs/benchmarks.md). torchvision's reference
# waits for 32 steps.
EVERY = 4


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
        self.decay, self.steps = decay, steps
        if decay:
            self.averaged = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
            self.averaged.n_averaged.fill_(steps)  # at 0 the first update copies the network
            self.network = self.averaged.module

    def after_step(self, step: int, num_steps: int) -> None:
        """Take in the network, if this was the last step of an epoch or the fourth one since that was done.

        Args:
            step: number of the step in its epoch, from 0.
            num_steps: of the epoch.
        """
        if self.averaged is not None and ((step + 1) % EVERY == 0 or step + 1 == num_steps):
            new = step % EVERY + 1
            # The start weights count little: after n steps at most n of n + 10 parts are old. Torch counts updates and
            # not steps, and gives their number as a value on the device: reading it would wait for all work there.
            old_part = min(self.decay, (self.steps + 1) / (self.steps + 10)) ** new
            self.averaged.multi_avg_fn = get_ema_multi_avg_fn(old_part)
            self.averaged.update_parameters(self.trained)
            self.steps += new

    def state(self) -> dict:
        """What a checkpoint needs beside the weights of `network`: those in training, and how many steps went in."""
        if self.averaged is None:
            return {}
        return {"trained": self.trained.state_dict(), "averaged_steps": self.steps}
