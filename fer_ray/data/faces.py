"""Find the face in one image and cut it out. Boxes are x, y, width, height in px, with the origin at the top left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import cv2.data
import numpy as np

from fer_ray.data_config import FacesConfig
from fer_ray.errors import UserError

CROP_SIDE = 256
COARSE_SIDE = 112  # px; a face of at least a fifth of the picture is still above the cascade's 24 px
# Lenient, so that no face is missed: the fine search discards what the coarse one finds wrongly.
COARSE_SCALE, COARSE_NEIGHBORS = 1.15, 2
SMALLEST_SIDE = 96  # px; smaller images are enlarged, or their faces would be below the cascade's 24 px

Box = tuple[int, int, int, int]


class DetectorError(UserError):
    """The face detector cannot be loaded; the message names its model file."""


def grow_box(box: Box, enlarge: float) -> tuple[int, int, int]:
    """The square about the box's centre whose side is its longer side grown by `enlarge`; (x, y, side) in px."""
    x, y, w, h = box
    side = int(round(max(w, h) * (1 + enlarge)))
    return int(round(x + w / 2 - side / 2)), int(round(y + h / 2 - side / 2)), side


def shift_inside(square: tuple[int, int, int], width: int, height: int) -> tuple[int, int, int]:
    """The square moved as little as needed to lie in the image, as far as it fits; (x, y, side) in px.

    Where it is larger than the image, it hangs over on both sides alike.
    """
    x, y, side = square
    left, top = (max(0, min(first, length - side)) if side <= length else (length - side) // 2
                 for first, length in ((x, width), (y, height)))
    return left, top, side


def to_gray(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W(, 3)] RGB -> uint8 [H, W]."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def cut(image: np.ndarray, box: Box, enlarge: float, size: int = CROP_SIDE) -> np.ndarray:
    """The face of `box`, grown, as uint8 [size, size(, 3)]; what hangs over the image is padded with its edge."""
    height, width = image.shape[:2]
    x, y, side = shift_inside(grow_box(box, enlarge), width, height)
    found = image[max(0, y) : y + side, max(0, x) : x + side]
    if found.shape[:2] != (side, side):
        top, left = max(0, -y), max(0, -x)
        found = cv2.copyMakeBorder(found, top, side - top - found.shape[0], left, side - left - found.shape[1],
                                   cv2.BORDER_REPLICATE)
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(found, (size, size), interpolation=how)


class HaarFinder:
    """OpenCV's frontal face Haar cascade (Viola and Jones 2001; the paper's detector), coarse to fine."""

    def __init__(self, config: FacesConfig):
        self.config = config
        self.cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def find(self, image: np.ndarray) -> Box | None:
        """The largest face in uint8 [H, W(, 3)] as (x, y, w, h) in its pixels, or None.

        The cost of a search grows with the pixels and the scales. So a small copy is searched first, and then only
        the surroundings of what was found, at about its scale. Where the small copy shows nothing, or the fine search
        does not confirm it, the whole picture is searched (its copy of `detect_side` if it is larger).
        """
        gray = to_gray(image)
        picture, scale = _reduce(gray, self.config.detect_side)
        box = self._near_coarse(picture) or self._search(picture)
        return None if box is None else _scaled(box, scale)

    def _near_coarse(self, picture: np.ndarray) -> Box | None:
        if max(picture.shape) < 1.5 * COARSE_SIDE:
            return None  # nothing to gain
        small, scale = _reduce(picture, COARSE_SIDE)
        found = self.cascade.detectMultiScale(small, COARSE_SCALE, COARSE_NEIGHBORS)
        if not len(found):
            return None
        x, y, w, h = (v / scale for v in _largest(found))
        left, top = max(0, int(x - 0.3 * w)), max(0, int(y - 0.3 * h))
        around = picture[top : int(y + 1.3 * h), left : int(x + 1.3 * w)]
        box = self._search(around, minSize=(int(0.7 * w),) * 2, maxSize=(int(1.45 * w),) * 2)
        return None if box is None else (box[0] + left, box[1] + top, box[2], box[3])

    def _search(self, picture: np.ndarray, **sizes) -> Box | None:
        found = self.cascade.detectMultiScale(picture, self.config.scale_factor, self.config.min_neighbors, **sizes)
        return _largest(found) if len(found) else None


class YunetFinder:
    """OpenCV's YuNet (`FaceDetectorYN`), from a model file that the user names."""

    def __init__(self, config: FacesConfig):
        self.config = config
        if not Path(config.model).is_file():
            raise DetectorError(f"faces.model: {config.model!r} is no file; detector yunet needs OpenCV's "
                                "face_detection_yunet_2023mar.onnx (github.com/opencv/opencv_zoo)")
        try:
            self.detector = cv2.FaceDetectorYN.create(config.model, "", (320, 320))
        except cv2.error as error:
            raise DetectorError(f"faces.model: {config.model} is no YuNet model ({error.err})") from None

    def find(self, image: np.ndarray) -> Box | None:
        """The largest face in uint8 [H, W(, 3)] as (x, y, w, h) in its pixels, or None."""
        rgb = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        picture, scale = _reduce(rgb, self.config.detect_side)
        self.detector.setInputSize(picture.shape[1::-1])
        found = self.detector.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
        return None if found is None else _scaled(_largest(found[:, :4]), scale)


def finder(config: FacesConfig) -> HaarFinder | YunetFinder:
    """The configured detector. Raises: DetectorError."""
    return {"haar": HaarFinder, "yunet": YunetFinder}[config.detector](config)


def _reduce(picture: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The picture with its longer side at most `side` (and, for tiny ones, at least SMALLEST_SIDE), and its scale."""
    longest = max(picture.shape[:2])
    scale = SMALLEST_SIDE / longest if longest < SMALLEST_SIDE else min(1.0, side / longest)
    if scale == 1:
        return picture, scale
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how), scale


def _scaled(box: Sequence[float], scale: float) -> Box:
    """A box found in a copy reduced by `scale`, in pixels of the original."""
    x, y, w, h = (round(value / scale) for value in box)
    return x, y, w, h


def _largest(boxes) -> Box:
    """The largest of int or float [N, 4] boxes; among equals the leftmost, then the topmost."""
    x, y, w, h = max(np.asarray(boxes).tolist(), key=lambda box: (box[2] * box[3], -box[0], -box[1]))
    return x, y, w, h
