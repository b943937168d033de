"""`ckextended.csv` (Kaggle): 920 faces of CK+ as rows of 48 x 48 grey values, in the columns of FER2013."""

from __future__ import annotations

from fer_ray.data.layouts import fer2013
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig

LOOKS = "ckextended.csv"
CODES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral", "contempt")
NO_SUBJECTS = ("ckextended.csv does not say who is in a picture, and most of its people are in several: it cannot be "
               "split by subject. Use CK+ or CK+48 itself, whose names tell the subject; or --split.by official or "
               "image, whose test scores do not hold for a new face")


def recognise(files: Listing, data: DataConfig) -> str | None:
    """The file by its name."""
    return LOOKS if files.find(LOOKS, depth=1) else None


def read(files: Listing, data: DataConfig) -> Reading:
    """Every row. Raises: DataError if the file is missing or a row is wrong."""
    file = files.find(LOOKS, depth=1)
    if file is None:
        raise DataError(f"{files.root}: no {LOOKS}")
    return Reading(fer2013.read_pixel_table(files, file, CODES), [], read=frozenset([files.uri(file)]))
