"""JAFFE: `KA.AN1.39.tiff` is person KA, anger, take 1, serial 39 (data set README; 213 images of 10 people)."""

from __future__ import annotations

import re

from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError

LOOKS = "KA.AN1.39.tiff"
PEOPLE = "jaffe"  # whatever name the source has: two copies show the same people
# Some copies have double extensions such as KA.AN1.39.tiff.bmp.
NAME = re.compile(r"^([A-Z]{2})\.(AN|DI|FE|HA|NE|SA|SU)(\d)\.(\d+)(?:\.tiff?)?\.(tiff?|jpg|png|bmp)$", re.IGNORECASE)
CODES = {"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness", "NE": "neutral", "SA": "sadness",
         "SU": "surprise"}


def recognise(files: Listing) -> str | None:
    """Its file names, at most two folders down."""
    matching = [file.name for file in files.files if file.path.count("/") <= 2 and NAME.match(file.name)]
    return f"{len(matching)} names like {matching[0]}" if matching else None


def read(files: Listing, options: None = None) -> Reading:
    """Every JAFFE image, however nested. Raises: DataError if there is none."""
    rows, rejected, first_of = [], [], {}
    for file in files.files:
        if match := NAME.match(file.name):
            person, code, take, serial, _ = (group.upper() for group in match.groups())
            row = {"image": files.uri(file.path), "expression": CODES[code], "subject": person}
            first = first_of.setdefault((person, code, take, serial), file)
            if first != file:
                rejected.append(row | {"reason": f"the same image as {first.name}"})
            else:
                rows.append(row)
    if not rows:
        raise DataError(f"{files.root}: no JAFFE image found; their names look like {LOOKS}")
    return Reading(rows, rejected)
