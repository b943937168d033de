"""The transforms of images for training and for evaluation: the only place where either is defined.

The train transform is random for each image and reproducible from (seed, epoch, row id), so that an image gives the
same pixels wherever they are made: bit for bit on CPUs, and but for rounding on a GPU, which transforms whole batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    import torch

CROP = 224
FLIP_P = 0.5
GRAY_P = 0.1
PAPER_COLUMNS, COLUMNS = 5, 15  # numbers drawn for an image: for what the paper does, and for all
ROWS_DRAWN_OVER = 100  # drawing so many takes as long as advancing the stream
SMALLEST, LARGEST = 0.15, 0.45  # sides of the rectangle that is painted over, as parts of the image's side


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed, beyond what all trainings have: a random crop, flips, some images in grey."""

    degrees: float
    """Largest rotation to either side."""
    zoom: float = 1.0
    """Largest factor by which an image is enlarged or reduced."""
    tone: float = 0.0
    """Largest change of gamma, contrast and brightness: factors between 1 / (1 + tone) and 1 + tone."""
    erase_p: float = 0.0
    """Part of the images in which a rectangle is painted over (random erasing; Zhong et al. 2017)."""


# `paper`: the paper's. `strong`: no face of somebody new is lost because it is tilted, of another size or in another
# light than those in training, or because one part of it is hidden.
NAMED = {"paper": Augmentation(degrees=1.0), "strong": Augmentation(degrees=12.0, zoom=1.2, tone=0.4, erase_p=0.25)}
# ImageNet's mean and standard deviation of red, green and blue in 0..1, with which the backbones were pre-trained.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def to_rgb(crop: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> uint8 [H, W, 3]."""
    return crop if crop.ndim == 3 else np.repeat(crop[..., None], 3, axis=2)


def draws(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """Random numbers of the train transform, float64 [N, 15] in [0, 1), for row ids int64 [N].

    The columns decide on the crop's left and top edge, the flip, the loss of colours, the angle; the zoom; gamma,
    contrast, brightness; whether a rectangle is painted over, its width, height, left and top edge and grey level.
    A row's numbers are a function of (seed, epoch, row id) alone: they stand at the row's position in two streams of
    the epoch. So neither the other rows of a batch nor the number of workers change them.
    """
    # (seed, epoch) without a third number is the stream of the images' order, and 2 that of the windows of rows
    return np.hstack([_of_stream((seed, epoch, 1), rows, PAPER_COLUMNS),
                      _of_stream((seed, epoch, 3), rows, COLUMNS - PAPER_COLUMNS)])


def _of_stream(seed: tuple[int, int, int], rows: np.ndarray, columns: int) -> np.ndarray:
    """The numbers, float64 [N, columns], at these rows of a stream that has `columns` of them a row.

    The stream is advanced over the rows that are not asked for, if they are so many that drawing them takes longer.
    """
    stream = np.random.default_rng(seed)
    wanted, place = np.unique(rows, return_inverse=True)
    drawn, position = [np.zeros((0, columns))], 0
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > ROWS_DRAWN_OVER) + 1):
        if len(run):
            stream.bit_generator.advance((int(run[0]) - position) * columns)  # ty: ignore[missing-attribute]
            position = int(run[-1]) + 1
            drawn.append(stream.random((position - int(run[0]), columns))[run - run[0]])
    return np.concatenate(drawn)[place]


def affine(drawn: np.ndarray, side: int, augmentation: Augmentation) -> np.ndarray:
    """Maps from pixels (x, y, 1) of the output to pixels (x, y) of the crop, float64 [N, 2, 3].

    They go backwards, since both OpenCV and torch ask for each output pixel where it comes from.

    Args:
        drawn: random numbers of `draws`, [N, 15].
        side: of the square crops, in px, at least 224.
        augmentation: how far images are turned and zoomed.
    """
    left, top = np.floor(drawn[:, :2].T * (side - CROP + 1))
    mirrored = np.where(drawn[:, 2] < FLIP_P, -1.0, 1.0)
    angle = np.deg2rad((2 * drawn[:, 4] - 1) * augmentation.degrees)
    scale = augmentation.zoom ** (2 * drawn[:, 5] - 1)
    # Rotate, zoom and perhaps mirror about the output's centre, then shift to where the output was cut from the crop.
    centre, cos, sin = (CROP - 1) / 2, scale * np.cos(angle), scale * np.sin(angle)
    x_from, y_from = np.stack([cos * mirrored, -sin], 1), np.stack([sin * mirrored, cos], 1)
    x_shift = left + centre - centre * x_from.sum(1)
    y_shift = top + centre - centre * y_from.sum(1)
    return np.stack([np.column_stack([x_from, x_shift]), np.column_stack([y_from, y_shift])], 1)


def is_gray(drawn: np.ndarray) -> np.ndarray:
    """Which images lose their colours, bool [N], for random numbers of `draws`, [N, 15]."""
    return drawn[:, 3] < GRAY_P


def change_tone(levels: Any, drawn: Any, augmentation: Augmentation) -> Any:
    """Grey levels or colours in 0..255 with another gamma, contrast and brightness, in 0..255.

    Args:
        levels: float array of NumPy or torch, its first dimension that of the images or 1.
        drawn: random numbers of `draws`, [15, N], by the same library, with as many dimensions as `levels` after it.
        augmentation: how far tones are changed.
    """
    gamma, contrast, brightness = ((1 + augmentation.tone) ** (2 * numbers - 1) for numbers in drawn[6:9])
    return (((levels / 255) ** gamma - 0.5) * contrast + 0.5 * brightness).clip(0, 1) * 255


def rectangles(drawn: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """What is painted over: left, top, right and bottom edge in px and the grey level, int64 [N, 5].

    Where nothing is, the rectangle is empty. `drawn`: random numbers of `draws`, [N, 15].
    """
    size = (SMALLEST + (LARGEST - SMALLEST) * drawn[:, 10:12]) * (drawn[:, 9:10] < augmentation.erase_p)
    first = drawn[:, 12:14] * (1 - size)
    return np.column_stack([first * CROP, (first + size) * CROP, drawn[:, 14] * 256]).astype(int)


def train_transform(crops: list[np.ndarray], drawn: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """Random 224 crop, flip p = 0.5, grayscale p = 0.1 (paper, data augmentation), and what `augmentation` says.

    One affine map does crop, flip, rotation and zoom together: pixels are interpolated once, and read once.

    Args:
        crops: N of one side, uint8 [S, S] or [S, S, 3], S >= 224.
        drawn: random numbers of `draws`, [N, 15].
        augmentation: one of `NAMED`.

    Returns: uint8 [N, 224, 224, 3].
    """
    images = np.empty((len(crops), CROP, CROP, 3), np.uint8)
    maps, painted = affine(drawn, crops[0].shape[0], augmentation), rectangles(drawn, augmentation)
    # of each image, what becomes of each of the 256 levels
    tables = change_tone(np.arange(256.0)[None], drawn.T[..., None], augmentation).round().astype(np.uint8)
    for number, (crop, gray) in enumerate(zip(crops, is_gray(drawn), strict=True)):
        warped = cv2.warpAffine(crop, maps[number], (CROP, CROP), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                                borderMode=cv2.BORDER_REFLECT_101)
        if gray and warped.ndim == 3:
            warped = cv2.cvtColor(warped, cv2.COLOR_RGB2GRAY)
        left, top, right, bottom, level = painted[number]
        if augmentation.tone:
            warped = cv2.LUT(warped, tables[number])
        warped[top:bottom, left:right] = level
        images[number] = to_rgb(warped)
    return images


def eval_transform(crop: np.ndarray) -> np.ndarray:
    """Centre crop, uint8 [S, S] or [S, S, 3] with S >= 224 -> uint8 [224, 224, 3]."""
    first = (crop.shape[0] - CROP) // 2
    return to_rgb(crop[first : first + CROP, first : first + CROP])


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
    """uint8 [N, 224, 224, 3] images -> normalised float32 tensor [N, 3, 224, 224] on `device`.

    They travel to the device as uint8, a quarter of the bytes, and are normalised there as one batch.
    """
    import torch

    batch = torch.from_numpy(images)
    if str(device) != "cpu":
        batch = batch.pin_memory().to(device, non_blocking=True)
    return _normalise(batch.float())


def train_tensor(crops: torch.Tensor, drawn: np.ndarray, augmentation: Augmentation) -> torch.Tensor:
    """`train_transform` and `to_tensor` of uint8 crops [N, S, S, 3], on the device where they lie.

    Pixels differ from those of `train_transform` by rounding alone: OpenCV rounds positions to 1/32 px and results to
    whole grey levels, which torch does not.

    Args:
        crops: on any device.
        drawn: random numbers of `draws`, [N, 15].
        augmentation: one of `NAMED`.

    Returns: normalised float32 [N, 3, 224, 224].
    """
    import torch
    import torch.nn.functional as F

    side, numbers = crops.shape[1], torch.from_numpy(drawn.astype(np.float32)).to(crops.device)
    maps = torch.from_numpy(affine(drawn, side, augmentation).astype(np.float32)).to(crops.device)[:, None, None]
    x = torch.arange(CROP, device=crops.device, dtype=torch.float32)[:, None]
    y = x[:, None]
    positions = maps[..., 0] * x + maps[..., 1] * y + maps[..., 2]  # [N, 224, 224, 2] in px of the crop
    grid = positions * (2 / (side - 1)) - 1  # grid_sample takes -1 for the first pixel and 1 for the last
    warped = F.grid_sample(crops.permute(0, 3, 1, 2).float(), grid, "bilinear", "reflection", align_corners=True)
    # OpenCV's weights of red, green and blue in grey (ITU-R BT.601)
    luma = (warped * warped.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    gray = torch.from_numpy(is_gray(drawn)).to(crops.device).view(-1, 1, 1, 1)
    images = torch.where(gray, luma, warped)
    if augmentation.tone:
        images = change_tone(images, numbers.T[..., None, None, None], augmentation)
    painted = torch.from_numpy(rectangles(drawn, augmentation)).to(crops.device).view(-1, 5, 1, 1, 1)
    left, top, right, bottom, level = painted.unbind(1)
    inside = (x.view(1, 1, 1, -1) >= left) & (x.view(1, 1, 1, -1) < right) & (x >= top) & (x < bottom)
    return _normalise(torch.where(inside, level.float(), images).permute(0, 2, 3, 1).contiguous())


def eval_tensor(crops: torch.Tensor) -> torch.Tensor:
    """`eval_transform` and `to_tensor` of uint8 crops [N, S, S, 3], on the device where they lie."""
    first = (crops.shape[1] - CROP) // 2
    return _normalise(crops[:, first : first + CROP, first : first + CROP].float().contiguous())


def _normalise(batch: torch.Tensor) -> torch.Tensor:
    """float32 [N, 224, 224, 3] in 0..255, which is overwritten -> normalised [N, 3, 224, 224].

    The result stays channels-last in memory, the format in which convolutions are fastest on CPUs and tensor cores.
    """
    import torch

    # A mean and a deviation for each pixel: broadcasting the three values of a pixel takes three times as long.
    mean, std = (torch.from_numpy(values * 255).to(batch.device).repeat(CROP * CROP) for values in (MEAN, STD))
    return batch.flatten(1).sub_(mean).div_(std).view(batch.shape).permute(0, 3, 1, 2)
