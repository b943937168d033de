"""JAFFE: `KA.AN1.39.tiff` is person KA, anger, take 1, serial 39 (data set README; 213 images of 10 people)."""

from __future__ import annotations

import re

from fer_ray.data import listing
from fer_ray.data.image_names import MADE
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import File, Listing
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig

LOOKS = "KA.AN1.39.tiff"
PEOPLE = "jaffe"  # whatever name the source has: two copies show the same people
# Converted copies have names such as KA.AN1.39.tiff.bmp, KA-AN1.39.tiff, KA_AN1_39.png and KA.AN1.39.jpeg.
START = r"^(K[ALMR]|MK|N[AM]|TM|UY|YM)[-._ ]?(AN|DI|FE|HA|NE|SA|SU)(\d)"
NAME = re.compile(START + r"(?:[-._ ](\d+))?(?:\.tiff?)?\.\w+$", re.IGNORECASE)
# Copies that were made of its images: KA.AN1.39_flip.png.
COPY = re.compile(START + r"[-._ ].*\.\w+$", re.IGNORECASE)
CODES = {"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness", "NE": "neutral", "SA": "sadness",
         "SU": "surprise"}


def recognise(files: Listing, data: DataConfig) -> str | None:
    """Its file names."""
    matching = [file.name for file in files.files if _match(file)]
    return f"{len(matching)} names like {matching[0]}" if matching else None


def read(files: Listing, data: DataConfig) -> Reading:
    """Every JAFFE image, however nested. Raises: DataError if there is none."""
    rows, rejected, first_of = [], [], {}
    for file in files.files:
        if match := _match(file):
            person, code, take, serial = (group.upper() for group in match.groups(""))
            row = {"image": files.uri(file.path), "expression": CODES[code], "subject": person}
            first = first_of.setdefault((person, code, take, serial), file)
            if first != file:
                rejected.append(row | {"reason": f"the same image as {first.name}"})
            else:
                rows.append(row)
        elif listing.is_image(file.name) and (match := COPY.match(file.name)):
            person, code, _ = (group.upper() for group in match.groups())
            rejected.append({"image": files.uri(file.path), "expression": CODES[code], "subject": person,
                             "reason": MADE})
    if not rows:
        raise DataError(f"{files.root}: no JAFFE image found; their names look like {LOOKS}")
    return Reading(rows, rejected)


def _match(file: File) -> re.Match | None:
    return NAME.match(file.name) if listing.is_image(file.name) else None
