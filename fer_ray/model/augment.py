"""The train and the evaluation transform: the only home of both.

Random per image and reproducible from (seed, epoch, row id), so the pixels are equal wherever they are made: on CPUs
bit for bit, on a GPU, which takes whole batches, but for rounding.
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


def draws(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """What the train transform of these row ids draws: float64 [N, 5] in [0, 1). Each row's numbers are a pure function
    of (seed, epoch, row), its place in one stream."""
    stream = np.random.default_rng((seed, epoch, 1))  # not that of the order, (seed, epoch)
    return stream.random((int(rows.max(initial=-1)) + 1, 5))[rows]


def affine(drawn: np.ndarray, side: int) -> np.ndarray:
    """Maps from pixels (x, y, 1) of the output to those of square crops with this side: float64 [N, 2, 3]."""
    left, top = np.floor(drawn[:, :2].T * (side - CROP + 1))
    mirrored = np.where(drawn[:, 2] < FLIP_P, -1.0, 1.0)
    angle = np.deg2rad((2 * drawn[:, 4] - 1) * DEGREES)
    # rotate (and mirror) about the output's centre, then shift to where it was cut
    c, cos, sin = (CROP - 1) / 2, np.cos(angle), np.sin(angle)
    x, y = np.stack([cos * mirrored, -sin], 1), np.stack([sin * mirrored, cos], 1)
    return np.stack([np.column_stack([x, left + c - c * x.sum(1)]), np.column_stack([y, top + c - c * y.sum(1)])], 1)


def is_gray(drawn: np.ndarray) -> np.ndarray:
    """Whether colours are taken away, bool [N]."""
    return drawn[:, 3] < GRAY_P


def train_transform(crops: list[np.ndarray], drawn: np.ndarray) -> np.ndarray:
    """Random 224 crop, flip p = 0.5, rotation uniform in ±1°, grayscale p = 0.1 (paper, data augmentation).

    One affine map does crop, flip and rotation in a single pass over the pixels.

    Args:
        crops: N of one side, uint8 [S, S] or [S, S, 3], S >= 224.
        drawn: of `draws`, a row for each.

    Returns: uint8 [N, 224, 224, 3].
    """
    out = np.empty((len(crops), CROP, CROP, 3), np.uint8)
    for to, crop, m, gray in zip(out, crops, affine(drawn, crops[0].shape[0]), is_gray(drawn), strict=True):
        seen = cv2.warpAffine(crop, m, (CROP, CROP), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REFLECT_101)
        if gray and seen.ndim == 3:
            seen = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
        to[...] = to_rgb(seen)
    return out


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
    return _normalised(batch.float())


def train_tensor(crops, drawn: np.ndarray):
    """`train_transform` and `to_tensor` at once, where the crops lie: pixels differ by less than rounding to 1/32 px
    and to whole grey levels does.

    Args:
        crops: uint8 tensor [N, S, S, 3].
        drawn: of `draws`, a row for each.
    """
    import torch
    import torch.nn.functional as F

    side = crops.shape[1]
    maps = torch.from_numpy(affine(drawn, side).astype(np.float32)).to(crops.device)[:, None, None]
    x = torch.arange(CROP, device=crops.device, dtype=torch.float32)[:, None]
    y = x[:, None]
    grid = (maps[..., 0] * x + maps[..., 1] * y + maps[..., 2]) * (2 / (side - 1)) - 1  # [N, 224, 224, 2] in -1..1
    seen = F.grid_sample(crops.permute(0, 3, 1, 2).float(), grid, "bilinear", "reflection", align_corners=True)
    luma = (seen * seen.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    seen = torch.where(torch.from_numpy(is_gray(drawn)).to(crops.device).view(-1, 1, 1, 1), luma, seen)
    return _normalised(seen.permute(0, 2, 3, 1).contiguous())


def eval_tensor(crops):
    """`eval_transform` and `to_tensor` of a uint8 tensor [N, S, S, 3], where it lies."""
    o = (crops.shape[1] - CROP) // 2
    return _normalised(crops[:, o : o + CROP, o : o + CROP].float().contiguous())


def _normalised(batch):
    """float32 [N, 224, 224, 3] in 0..255, overwritten -> [N, 3, 224, 224]."""
    import torch

    # a value for each pixel: three that are repeated on the fly take three times as long
    mean, std = (torch.from_numpy(v * 255).to(batch.device).repeat(CROP * CROP) for v in (MEAN, STD))
    # stays channels-last in memory, which convolutions on CPU and tensor cores prefer
    return batch.flatten(1).sub_(mean).div_(std).view(batch.shape).permute(0, 3, 1, 2)
