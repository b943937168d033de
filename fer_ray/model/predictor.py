"""A network in one process: face crops in, probabilities or features out. Needs no Ray."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from fer_ray.model import augment, backbones, checkpoints

# EfficientNet-Lite0 on a CPU takes three times as long for an image in a batch of 64, whose activations come and go as
# new pages of memory (measured on two cores). A GPU needs many images to be busy.
BATCH_SIZES = {"cpu": 8, "cuda": 64}


class Predictor:
    """A network in evaluation mode on its device, which sees the centre of each crop."""

    def __init__(self, model: nn.Module, backbone: str, threads: int = 0, device: str = "cpu",
                 temperature: float = 1.0, flip_average: bool = False):
        """A network.

        Args:
            model: the network.
            backbone: its name.
            threads: of torch in this whole process; 0: as many as it has.
            device: cpu or cuda.
            temperature: divides the logits.
            flip_average: logits are the mean of those of a crop and of its mirror image.
        """
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        # channels-last, as `augment.to_tensor` makes the images: convolutions are faster in this memory format
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.head, self.batch_size = backbones.head(model, backbone), BATCH_SIZES[device]
        self.temperature, self.flip_average, self.shares_cpus = temperature, flip_average, device != "cpu"

    @classmethod
    def from_checkpoint(cls, uri: str, threads: int = 0, device: str = "cpu",
                        temperature: float = 1.0) -> Predictor:
        """The network of a checkpoint. Raises: checkpoints.CheckpointError; storage.StorageError."""
        model, description = checkpoints.load_model(uri)
        return cls(model, description["backbone"], threads, device, temperature, flips(description))

    @torch.inference_mode()
    def probabilities(self, crops: list[np.ndarray], batch_size: int = 0) -> np.ndarray:
        """Softmax over the classes, float32 [N, 8], of N crops, uint8 [S, S] or [S, S, 3] with S >= 224.

        `batch_size`: crops of a forward pass; 0: what suits the device.
        """
        rows = [(logits.float() / self.temperature).softmax(1).cpu().numpy()
                for logits in self._logits(crops, batch_size or self.batch_size, self.flip_average)]
        return np.concatenate(rows) if rows else np.zeros((0, self.head.out_features), np.float32)

    @torch.inference_mode()
    def features(self, crops: list[np.ndarray], batch_size: int = 64) -> np.ndarray:
        """Inputs of the last layer, float32 [N, D], of N crops, uint8 [S, S] or [S, S, 3] with S >= 224."""
        rows = []
        # Caught on their way into the last layer, rather than by cutting it off: the same network can then give
        # probabilities too.
        hook = self.head.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].float().cpu().numpy()))
        try:
            for _ in self._logits(crops, batch_size, mirrored_too=False):
                pass
        finally:
            hook.remove()
        return np.concatenate(rows) if rows else np.zeros((0, self.head.in_features), np.float32)

    def _logits(self, crops: list[np.ndarray], batch_size: int, mirrored_too: bool) -> Iterator[torch.Tensor]:
        for first in range(0, len(crops), batch_size):
            centres = np.stack([augment.eval_transform(crop) for crop in crops[first : first + batch_size]])
            images = augment.to_tensor(centres, self.device)
            logits = self.model(images)
            yield (logits + self.model(images.flip(3))) / 2 if mirrored_too else logits


def flips(description: dict) -> bool:
    """Whether a checkpoint was trained to be used with `train.flip_average`. `description`: its `model.json`."""
    return description["config"]["train"].get("flip_average", False)  # older checkpoints were not
