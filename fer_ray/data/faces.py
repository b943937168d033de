"""Find the face in one image and cut it out. Boxes are x, y, width, height in px, with the origin at the top left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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
# Smallest faces, in px of that copy, of a first search and of a second one. Most of the time goes into the smallest, so
# these are looked for only where the first search shows none that is clearly larger than where it began.
COARSE_SMALLEST, CLEARLY = (40, 0), 1.3
# Where all faces are wanted, the whole picture is searched at wider steps, which is faster, and what that proposes is
# confirmed by a fine search nearby.
ALL_SCALE, ALL_NEIGHBORS = 1.25, 1
SAME_FACE = 0.5  # a box of which another covers more is of the same face
# Pictures that are a face and nothing else: Haar's template shows the face's surroundings too, so half of them show it
# only with a border (a part of the picture's longer side) about the picture, and its box is as large as the picture.
# scripts/measure_faces.py measures both numbers, docs/data.md has the figures.
BORDER, FILLS = 0.25, 0.8
FEWEST_FILLED = 3  # pictures that a face fills, of which most faces are found, that show what the others are
RIVAL = 0.5  # another face of so much of the largest one's side may be the one that a label means
RIVAL_SIDE = 30  # px of such a face in the copy in which it is searched; the cascade's smallest is 24
SEARCHES = ("found", "fills", "none")  # what looking for a face came to
SMALLEST_SIDE = 96  # px; smaller images are enlarged, or their faces would be below the cascade's 24 px

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Found:
    """A face in an image."""

    box: Box
    """x, y, width, height in px of the image."""
    score: float
    """How sure the detector is. Haar: number of overlapping detections. YuNet: 0..1."""


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


def cut_in_ratio(image: np.ndarray, box: Box, enlarge: float, size: int = CROP_SIDE) -> np.ndarray:
    """The middle of `box`, grown and ended at the image's border, its shorter side scaled to `size`.

    As in the paper, which then crops 224 px at random out of 256 x N; here the middle square stands for 256 x N.

    Returns: uint8 [size, size(, 3)].
    """
    height, width = image.shape[:2]
    x, y, w, h = box
    left, right = (min(max(round(x + w / 2 + sign * w * (1 + enlarge) / 2), 0), width) for sign in (-1, 1))
    top, bottom = (min(max(round(y + h / 2 + sign * h * (1 + enlarge) / 2), 0), height) for sign in (-1, 1))
    side = max(1, min(right - left, bottom - top))
    left, top = (left + right - side) // 2, (top + bottom - side) // 2
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=how)


def crop_for(image: np.ndarray, box: Box | None, config: FacesConfig) -> np.ndarray:
    """What a network sees of uint8 [H, W(, 3)]: the face of `box`, grown, or the whole image; uint8 [256, 256(, 3)]."""
    height, width = image.shape[:2]
    take = cut_in_ratio if config.shape == "ratio" else cut
    crop = take(image, box or (0, 0, width, height), config.enlarge if box else 0.0)
    return to_gray(crop) if config.gray else crop


class Finder(ABC):
    """Finds faces in an image."""

    @abstractmethod
    def find_largest(self, image: np.ndarray) -> Found | None:
        """The largest face in uint8 [H, W(, 3)], or None."""

    @abstractmethod
    def find_all(self, image: np.ndarray, min_side: int = 0) -> list[Found]:
        """All faces in uint8 [H, W(, 3)] of at least `min_side` px a side, the largest first."""

    def find_near(self, image: np.ndarray, box: Box) -> Found | None:
        """The face in uint8 [H, W(, 3)] at about this place and of about this size.

        None if there is none, and always of a detector that searches a whole picture as fast.
        """
        return None

    def has_rival(self, image: np.ndarray, box: Box) -> bool:
        """Whether uint8 [H, W(, 3)] shows another face that is not much smaller (`RIVAL`) than the one in `box`."""
        return _has_rival(box, self.find_all(image, int(RIVAL * min(box[2:]))))

    def find(self, image: np.ndarray) -> Box | None:
        """The box of `find_largest`."""
        found = self.find_largest(image)
        return found.box if found else None


def fills(finder: Finder, picture: np.ndarray) -> bool:
    """Whether a face that was not found in uint8 [H, W(, 3)] fills it: it is found once a border lies about it."""
    gray = to_gray(picture)
    margin = round(BORDER * max(gray.shape))
    bordered = cv2.copyMakeBorder(gray, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=float(gray.mean()))
    box = finder.find(bordered)
    return box is not None and max(box[2:]) >= FILLS * min(gray.shape)


def are_crops(found: int, filling: int, none: int) -> bool:
    """Whether the pictures of a data set are cropped to the face, so that those without a found face are used too.

    The arguments count `SEARCHES`. Where nine of ten faces are found, the others may be anything, unless several and
    most of these are filled by one. Of photographs without a found face hardly any is, but half of the pictures that
    are cropped to the face are, or a tenth where the crops are so tight that Haar is nearly blind.
    """
    if found >= 0.9 * (found + filling + none):
        return filling >= FEWEST_FILLED and filling >= 2 / 3 * (filling + none)
    return filling >= (1 / 3 if found >= filling + none else 1 / 10) * (filling + none)


class HaarFinder(Finder):
    """OpenCV's frontal face Haar cascade (Viola and Jones 2001; the paper's detector), coarse to fine."""

    def __init__(self, config: FacesConfig):
        self.config = config
        self.cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def find_largest(self, image: np.ndarray) -> Found | None:
        """The largest face in uint8 [H, W(, 3)], or None.

        The cost of a search grows with the pixels and the scales. So a small copy is searched first, and then only
        the surroundings of what was found, at about its scale. Where the small copy shows nothing, or the fine search
        does not confirm it, the whole picture is searched (its copy of `detect_side` if it is larger).
        """
        picture, scale = _reduce(to_gray(image), self.config.detect_side)
        found = self._near_coarse(picture) or next(iter(self._search(picture)), None)
        return Found(_scaled(found.box, scale), found.score) if found else None

    def find_all(self, image: np.ndarray, min_side: int = 0) -> list[Found]:
        """All faces in uint8 [H, W(, 3)] of at least `min_side` px a side, the largest first.

        The face of `find_largest` is among them, with the same box. A lenient search of the whole picture proposes the
        others, and a fine search of the surroundings of each confirms it.
        """
        picture, scale = _reduce(to_gray(image), self.config.detect_side)
        near = self._near_coarse(picture)
        found = [near] if near else []
        # smaller, since a box is the mean of overlapping detections, of which some are smaller than the box
        smallest = int(0.6 * min_side * scale)
        proposed = self.cascade.detectMultiScale(picture, ALL_SCALE, ALL_NEIGHBORS, minSize=(smallest, smallest))
        for box in sorted(map(_box, proposed), key=_by_size):
            if is_new(box, found) and (one := self._around(picture, box)) and is_new(one.box, found):
                found.append(one)
        found = found or self._search(picture)[:1]  # as `find_largest`
        return largest_first([Found(_scaled(one.box, scale), one.score) for one in found], min_side)

    def find_near(self, image: np.ndarray, box: Box) -> Found | None:
        """The face in uint8 [H, W(, 3)] at about this place and of about this size, or None."""
        picture, scale = _reduce(to_gray(image), self.config.detect_side)
        found = self._around(picture, [value * scale for value in box])
        return Found(_scaled(found.box, scale), found.score) if found else None

    def has_rival(self, image: np.ndarray, box: Box) -> bool:
        """In a small copy: searching the whole picture takes longer than finding its largest face."""
        side = RIVAL * min(box[2:])
        scale = min(1.0, RIVAL_SIDE / side)
        small = cv2.resize(to_gray(image), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = self._search(small, minSize=(int(side * scale),) * 2)
        return _has_rival(box, [Found(_scaled(one.box, scale), one.score) for one in found])

    def _near_coarse(self, picture: np.ndarray) -> Found | None:
        if max(picture.shape) < 1.5 * COARSE_SIDE:
            return None  # nothing to gain
        small, scale = _reduce(picture, COARSE_SIDE)
        for smallest in COARSE_SMALLEST:
            found = self.cascade.detectMultiScale(small, COARSE_SCALE, COARSE_NEIGHBORS, minSize=(smallest, smallest))
            largest = min(map(_box, found), key=_by_size, default=None)
            if largest and largest[2] >= CLEARLY * smallest:
                x, y, w, h = (value / scale for value in largest)
                return self._around(picture, (x, y, w, h))
        return None

    def _around(self, picture: np.ndarray, box: Sequence[float]) -> Found | None:
        """The face at about this place and of about this size."""
        x, y, w, h = box
        left, top = max(0, int(x - 0.3 * w)), max(0, int(y - 0.3 * h))
        around = picture[top : int(y + 1.3 * h), left : int(x + 1.3 * w)]
        fine = self._search(around, minSize=(int(0.7 * w),) * 2, maxSize=(int(1.45 * w),) * 2)
        if not fine:
            return None
        x, y, w, h = fine[0].box
        return Found((x + left, y + top, w, h), fine[0].score)

    def _search(self, picture: np.ndarray, **sizes) -> list[Found]:
        """Every face, the largest first, in px of `picture`."""
        boxes, counts = self.cascade.detectMultiScale2(picture, self.config.scale_factor, self.config.min_neighbors,
                                                       **sizes)
        found = [Found(_box(box), float(count)) for box, count in zip(boxes, counts, strict=True)]
        return largest_first(found)


class YunetFinder(Finder):
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

    def find_largest(self, image: np.ndarray) -> Found | None:
        """The largest face in uint8 [H, W(, 3)], or None."""
        return next(iter(self.find_all(image)), None)

    def find_all(self, image: np.ndarray, min_side: int = 0) -> list[Found]:
        """All faces in uint8 [H, W(, 3)] of at least `min_side` px a side, the largest first."""
        rgb = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        picture, scale = _reduce(rgb, self.config.detect_side)
        self.detector.setInputSize(picture.shape[1::-1])
        found = self.detector.detect(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
        faces = [] if found is None else sorted(found.tolist(), key=_by_size)
        boxes = [Found(_scaled(row[:4], scale), row[-1]) for row in faces]
        return [one for one in boxes if min(one.box[2:]) >= min_side]


def finder(config: FacesConfig) -> Finder:
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


def _shared(a: Box, b: Box) -> float:
    """The part of the smaller of two boxes that the other covers, 0..1."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height) / max(1, min(a[2] * a[3], b[2] * b[3]))


def is_new(box: Box, found: list[Found]) -> bool:
    """Whether the box is of another face than those found."""
    return all(_shared(box, one.box) < SAME_FACE for one in found)


def _has_rival(box: Box, found: list[Found]) -> bool:
    return any(is_new(one.box, [Found(box, 0.0)]) for one in found)


def _box(row: Sequence[float]) -> Box:
    x, y, w, h = (int(value) for value in row)
    return x, y, w, h


def _by_size(box: Sequence[float]) -> tuple:
    """Sorts the largest first; among equals the leftmost, then the topmost."""
    return -box[2] * box[3], box[0], box[1]


def largest_first(found: list[Found], min_side: int = 0) -> list[Found]:
    """The faces of at least this many px a side, the largest first."""
    return sorted((one for one in found if min(one.box[2:]) >= min_side), key=lambda one: _by_size(one.box))
