"""A network on one process: crops in, what it says of them out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fer_ray.model import augment, backbones, checkpoints


def classifier(checkpoint: str) -> nn.Module:
    """The network of a checkpoint: softmax probabilities, [N, 8]. Raises: CheckpointError."""
    return nn.Sequential(checkpoints.load_model(checkpoint)[0], nn.Softmax(1))


def extractor(backbone: str, state: Mapping[str, torch.Tensor | np.ndarray]) -> nn.Module:
    """A network without its last layer: features, [N, D]."""
    return backbones.strip_head(backbones.load(backbone, state), backbone)


class Predictor:
    """A network that predicts, on its device."""

    def __init__(self, model: nn.Module, threads: int, use_gpu: bool):
        torch.set_num_threads(threads)
        self.device = "cuda" if use_gpu else "cpu"
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def predict(self, crops: list[np.ndarray]) -> np.ndarray:
        """Outputs, float32, for uint8 [256, 256(, 3)] crops; at least one."""
        images = np.stack([augment.eval_transform(crop) for crop in crops])
        return self.model(augment.to_tensor(images, self.device)).float().cpu().numpy()

    def predict_all(self, crops: list[np.ndarray], batch_size: int) -> np.ndarray:
        """The same, so many at once."""
        return np.concatenate([self.predict(crops[i : i + batch_size]) for i in range(0, len(crops), batch_size)])
