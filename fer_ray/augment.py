"""The train and the evaluation transform: the only home of both.

Random per image and reproducible from (seed, epoch, row id), so the pixels are equal wherever they are made.
"""

from __future__ import annotations

import cv2
import numpy as np

CROP = 224
DEGREES = 1.0
FLIP_P = 0.5
GRAY_P = 0.1
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def to_rgb(crop: np.ndarray) -> np.ndarray:
    """uint8 HxW or HxWx3 -> uint8 HxWx3."""
    return crop if crop.ndim == 3 else np.repeat(crop[..., None], 3, axis=2)


def train_transform(crop: np.ndarray, seed: int, epoch: int, row: int) -> np.ndarray:
    """Random 224 crop, flip p = 0.5, rotation uniform in ±1°, grayscale p = 0.1 (paper, data augmentation).

    One affine map does crop, flip and rotation in a single pass over the pixels.

    Args:
        crop: uint8 [S, S] or [S, S, 3], S >= 224.
        seed, epoch, row: what the random draw is a pure function of.

    Returns: uint8 [224, 224, 3].
    """
    rng = np.random.default_rng((seed, epoch, row))
    slack = crop.shape[0] - CROP
    left, top = rng.integers(0, slack + 1, size=2)
    flip, gray = rng.random() < FLIP_P, rng.random() < GRAY_P
    angle = np.deg2rad(rng.uniform(-DEGREES, DEGREES))
    # output pixel -> source pixel: rotate (and mirror) about the crop's centre, then shift to where it was cut
    c = (CROP - 1) / 2
    cos, sin, side = np.cos(angle), np.sin(angle), -1.0 if flip else 1.0
    m = np.array([[cos * side, -sin, 0], [sin * side, cos, 0]])
    m[:, 2] = np.array([left + c, top + c]) - m[:, :2] @ np.array([c, c])
    out = cv2.warpAffine(crop, m, (CROP, CROP), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                         borderMode=cv2.BORDER_REFLECT_101)
    if gray and out.ndim == 3:
        out = cv2.cvtColor(out, cv2.COLOR_RGB2GRAY)
    return to_rgb(out)


def eval_transform(crop: np.ndarray) -> np.ndarray:
    """Centre crop. uint8 [S, S(, 3)] -> uint8 [224, 224, 3]."""
    o = (crop.shape[0] - CROP) // 2
    return to_rgb(crop[o : o + CROP, o : o + CROP])


def to_tensor(images: np.ndarray, device="cpu"):
    """uint8 [N, 224, 224, 3] images to one normalised float32 tensor [N, 3, 224, 224].

    Shipped as uint8 and normalised on the device as one batch operation: a quarter of the bytes.
    """
    import torch

    batch = torch.from_numpy(images)
    if str(device) != "cpu":
        batch = batch.pin_memory().to(device, non_blocking=True)
    # a value for each pixel: three that are repeated on the fly take three times as long
    mean, std = (torch.from_numpy(v * 255).to(device).repeat(CROP * CROP) for v in (MEAN, STD))
    # stays channels-last in memory, which convolutions on CPU and tensor cores prefer
    return batch.flatten(1).float().sub_(mean).div_(std).view(batch.shape).permute(0, 3, 1, 2)
