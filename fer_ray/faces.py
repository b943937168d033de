"""Find the face in one image and cut it out."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
MIN_SIDE = 8
DETECT_MIN_SIDE = 96  # a face that fills a smaller image is below the cascade's 24 px with its margin


def decode(content: bytes) -> np.ndarray:
    """Any image file -> uint8 [H, W] (grey) or [H, W, 3] (RGB), upright after its EXIF orientation.

    Animations give their first frame; 16-bit images are scaled to 8; CMYK, palette and alpha become RGB.

    Raises: ValueError with the reason when the bytes are no usable image.
    """
    if not content:
        raise ValueError("empty file")
    try:
        image = Image.open(io.BytesIO(content))
        width, height = image.size  # known before a pixel is decoded
        if width * height > MAX_PIXELS:
            raise ValueError(f"too large: {width} x {height} px, at most {MAX_PIXELS} are decoded")
        if min(width, height) < MIN_SIDE:
            raise ValueError(f"too small: {width} x {height} px")
        image.load()
        image = ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise ValueError(f"too large: at most {MAX_PIXELS} px are decoded") from None
    except UnidentifiedImageError:
        raise ValueError("not an image") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged image: {error}") from None
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image).astype(np.float32)
        top = 65535.0 if pixels.max() > 255 else 255.0
        return np.clip(pixels * (255.0 / top), 0, 255).astype(np.uint8)
    return np.asarray(image if image.mode == "L" else image.convert("L" if image.mode in ("1", "LA") else "RGB"))


def grow_box(box: tuple[int, int, int, int], enlarge: float) -> tuple[int, int, int]:
    """The square about the box's centre whose side is its longer side grown by `enlarge`; (x, y, side) in px."""
    x, y, w, h = box
    side = int(round(max(w, h) * (1 + enlarge)))
    return int(round(x + w / 2 - side / 2)), int(round(y + h / 2 - side / 2)), side


class FaceFinder:
    """OpenCV's frontal face Haar cascade and the cut around what it finds."""

    def __init__(self, enlarge: float = 0.2, size: int = 256, scale_factor: float = 1.1, min_neighbors: int = 5,
                 detect_side: int = 320):
        self.enlarge, self.size, self.detect_side = enlarge, size, detect_side
        self.scale_factor, self.min_neighbors = scale_factor, min_neighbors
        self.cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def find(self, gray: np.ndarray) -> tuple[int, int, int, int] | None:
        """The largest face in uint8 [H, W] as (x, y, w, h) in its pixels, or None.

        The search runs on a copy whose longer side is `detect_side`: its cost grows with the number of pixels.
        """
        scale = min(1.0, self.detect_side / max(gray.shape))
        if max(gray.shape) < DETECT_MIN_SIDE:
            scale = DETECT_MIN_SIDE / max(gray.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        small = gray if scale == 1 else cv2.resize(gray, None, fx=scale, fy=scale, interpolation=how)
        found = self.cascade.detectMultiScale(small, self.scale_factor, self.min_neighbors)
        if not len(found):
            return None
        x, y, w, h = max(found.tolist(), key=lambda b: (b[2] * b[3], -b[0], -b[1]))
        return round(x / scale), round(y / scale), round(w / scale), round(h / scale)

    def crop(self, image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """The grown square, shifted then padded (edge pixels) to stay inside; uint8 [size, size(, 3)]."""
        height, width = image.shape[:2]
        x, y, side = grow_box(box, self.enlarge)
        x, y = max(0, min(x, width - side)), max(0, min(y, height - side))
        cut = image[y : y + side, x : x + side]
        down, right = side - cut.shape[0], side - cut.shape[1]
        if down or right:
            cut = cv2.copyMakeBorder(cut, down // 2, down - down // 2, right // 2, right - right // 2,
                                     cv2.BORDER_REPLICATE)
        how = cv2.INTER_AREA if side > self.size else cv2.INTER_LINEAR
        return cv2.resize(cut, (self.size, self.size), interpolation=how)
