"""Boxes and expressions drawn onto a photograph."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fer_ray.report.figures import COLOURS
from fer_ray.use.recognition import Face


def annotate(picture: np.ndarray, faces: Mapping[int, Face], numbered: bool = False) -> Image.Image:
    """The photograph with the box of each face, its expression and the probability of that.

    Args:
        picture: uint8 [H, W(, 3)].
        faces: of that photograph, by their numbers.
        numbered: write the numbers too.

    Returns: an RGB image of Pillow of the same size.
    """
    image = Image.fromarray(picture).convert("RGB")
    draw = ImageDraw.Draw(image)
    line = max(2, round(max(image.size) / 320))
    font = ImageFont.load_default(max(11, max(image.size) / 36))
    for number, face in faces.items():
        colour = COLOURS[face.expression]
        corners = _corners(face)
        draw.line([*corners, corners[0]], fill=colour, width=line, joint="curve")
        text = f"{number}: " * numbered + f"{face.expression} {face.probabilities[face.expression]:.0%}"
        _write(draw, text, corners, font, colour, image.size)
    return image


def _corners(face: Face) -> list[tuple[float, float]]:
    """Corners of the box, turned as the face is."""
    x, y, width, height = face.box
    cos, sin = math.cos(math.radians(face.angle)), math.sin(math.radians(face.angle))
    around = [(-width / 2, -height / 2), (width / 2, -height / 2), (width / 2, height / 2), (-width / 2, height / 2)]
    return [(x + width / 2 + dx * cos - dy * sin, y + height / 2 + dx * sin + dy * cos) for dx, dy in around]


def _write(draw: ImageDraw.ImageDraw, text: str, corners: list[tuple[float, float]], font, colour: str,
           size: tuple[int, int]) -> None:
    """Write white on `colour` above the corners, or inside where there is no room."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = (bottom - top) // 3
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(min(x for x, _ in corners), size[0] - width))
    y = max(0, min(y for _, y in corners) - height)
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + pad - left, y + pad - top), text, font=font, fill="white")
