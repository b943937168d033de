"""`ckextended.csv` (Kaggle): 920 faces of CK+ as rows of 48 x 48 grey values, in the columns of FER2013."""

from __future__ import annotations

from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.layouts import fer2013
from fer_ray.data.manifest import DataError

LOOKS = "ckextended.csv"
CODES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")
NO_SUBJECTS = ("ckextended.csv does not say who is in a picture, and most of its people are in several: it cannot be "
               "split by subject. Use CK+ or CK+48 itself, whose names tell the subject; or --split.by official or "
               "image, whose test scores do not hold for a new face")


def recognise(root: Path) -> str | None:
    """The file by its name."""
    file = listing.find(root, LOOKS, depth=1)
    return file.name if file else None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """Every row. Raises: DataError if the file is missing or a row is wrong."""
    file = listing.find(root, LOOKS, depth=1)
    if file is None:
        raise DataError(f"{root}: no {LOOKS}")
    return fer2013.read_pixel_table(file, CODES), []
