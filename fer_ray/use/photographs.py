"""From a photograph to the crops that the network sees: the faces are found and cut as those it was trained on."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from fer_ray.data import faces, pixels
from fer_ray.data_config import FacesConfig

TILT = 30.0  # degrees; Haar's cascade finds faces that are upright within about 15
NO_FACE = "no face found"
Photograph = str | os.PathLike | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Search:
    """Which faces of a photograph are wanted, and how they are found and cut."""

    config: FacesConfig
    """The options by which the network's training images were cropped."""
    faces: Literal["all", "largest"] = "all"
    """All faces, or the largest one alone, whose search costs less."""
    tilt: bool = False
    """Where no face is found, turn the photograph by 30 degrees to either side and search again."""
    min_face: int = 0
    """Smallest side of a face in px; smaller ones are left out."""


@dataclass(frozen=True)
class Crop:
    """A face as the network gets it."""

    pixels: np.ndarray
    """uint8 [256, 256] or [256, 256, 3]."""
    box: faces.Box
    """x, y, width, height in px of the photograph."""
    score: float | None
    """Of the detector; None if there was none."""
    angle: float = 0.0
    """Degrees, counterclockwise, by which the photograph was turned."""
    whole: bool = False
    """The photograph was used whole."""


class Cutter:
    """Finds and cuts the faces of photographs, in several threads at once.

    Raises: faces.DetectorError if the detector cannot be loaded.
    """

    def __init__(self, search: Search):
        self.search = search
        self._of_thread = threading.local()  # OpenCV's detectors serve one thread each
        self._finder()

    def _finder(self) -> faces.Finder:
        if not hasattr(self._of_thread, "finder"):
            self._of_thread.finder = faces.finder(self.search.config)
        return self._of_thread.finder

    def crops(self, picture: np.ndarray, before: Sequence[Crop] = ()) -> list[Crop]:
        """The faces in uint8 [H, W(, 3)], the largest first.

        `before`: those of the frame before it in a video. If each is found again nearby, nothing else is searched for.

        Raises: pixels.ImageError if there is none, or OpenCV cannot handle a picture of this shape.
        """
        try:
            cropped = self.search.config.already_cropped
            found = [] if cropped is True else (self._again(picture, before) or self._upright(picture)
                                                or self._tilted(picture))
            if not found and (cropped is True or self.search.config.on_no_face == "whole"
                              or cropped == "auto" and faces.fills(self._finder(), picture)):
                height, width = picture.shape[:2]
                box = (0, 0, width, height)
                found = [Crop(faces.crop_for(picture, None, self.search.config), box, None, whole=True)]
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise
            raise pixels.ImageError(" ".join(str(error).split())) from None
        if not found:
            raise pixels.ImageError(NO_FACE)
        return found

    def _upright(self, picture: np.ndarray) -> list[Crop]:
        finder, search = self._finder(), self.search
        if search.faces == "all":
            found = finder.find_all(picture, search.min_face)
        else:
            largest = finder.find_largest(picture)
            found = [largest] if largest and min(largest.box[2:]) >= search.min_face else []
        return self._cut(picture, found)

    def _again(self, picture: np.ndarray, before: Sequence[Crop]) -> list[Crop]:
        """The faces of the frame before, where each is found again, and none at the place of another; else none."""
        if any(crop.angle or crop.whole for crop in before):
            return []
        found: list[faces.Found] = []
        for crop in before:
            one = self._finder().find_near(picture, crop.box)
            if not one or min(one.box[2:]) < self.search.min_face or not faces.is_new(one.box, found):
                return []
            found.append(one)
        return self._cut(picture, faces.largest_first(found))

    def _cut(self, picture: np.ndarray, found: list[faces.Found]) -> list[Crop]:
        return [Crop(faces.crop_for(picture, one.box, self.search.config), one.box, one.score) for one in found]

    def _tilted(self, picture: np.ndarray) -> list[Crop]:
        """The faces of the picture turned to the side on which there are more, or the surer ones."""
        if not self.search.tilt:
            return []
        sides = []
        for angle in (TILT, -TILT):
            turned, back = _turn(picture, angle)
            sides.append([dataclasses.replace(crop, box=_moved(crop.box, back), angle=angle)
                          for crop in self._upright(turned)])
        return max(sides, key=lambda found: (len(found), sum(crop.score or 0 for crop in found)))


def load(photograph: Any) -> np.ndarray:
    """The pixels of a photograph, uint8 [H, W] (grey) or [H, W, 3] (RGB).

    Args:
        photograph: a path or URI, the bytes of an image file, an image of Pillow, or pixels as they are returned.

    Raises: pixels.ImageError if the image is not usable; TypeError or ValueError for what can be no image; as
        `pixels.load`.
    """
    if isinstance(photograph, np.ndarray):
        if photograph.dtype != np.uint8 or photograph.ndim not in (2, 3) or photograph.shape[2:] not in ((), (3,)):
            raise ValueError(f"an image must be uint8 [H, W] or [H, W, 3] (RGB), and not {photograph.dtype} "
                             f"{list(photograph.shape)}")
        if min(photograph.shape[:2]) < pixels.MIN_SIDE:
            raise pixels.ImageError(f"too small: {photograph.shape[1]} x {photograph.shape[0]} px")
        return photograph
    if isinstance(photograph, Image.Image):
        return pixels.from_pil(photograph)
    if isinstance(photograph, bytes):
        return pixels.decode(photograph)
    if isinstance(photograph, str | os.PathLike):
        return pixels.load(name_of(photograph))
    raise TypeError("an image must be a path, bytes, a PIL image or a uint8 array, and not "
                    f"{type(photograph).__name__}")


def name_of(path: str | os.PathLike) -> str:
    """How `pixels` and tables name an image: a URI as it is, a local path as `pixels.name_of` has it."""
    return path if isinstance(path, str) and "://" in path else pixels.name_of(path)


def _turn(picture: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture turned counterclockwise about its centre, on a larger canvas, and the map back, float64 [2, 3]."""
    height, width = picture.shape[:2]
    forward = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    cos, sin = abs(forward[0, 0]), abs(forward[0, 1])
    size = (int(height * sin + width * cos), int(height * cos + width * sin))
    forward[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    return cv2.warpAffine(picture, forward, size, borderMode=cv2.BORDER_REPLICATE), cv2.invertAffineTransform(forward)


def _moved(box: faces.Box, back: np.ndarray) -> faces.Box:
    """The box of the same size about the place that its centre has in the picture that was not turned."""
    x, y, width, height = box
    centre = back @ np.array([x + width / 2, y + height / 2, 1.0])
    return round(centre[0] - width / 2), round(centre[1] - height / 2), width, height
