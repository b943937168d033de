"""JAFFE: `KA.AN1.39.tiff` is person KA, anger, take 1, serial 39 (data set README; 213 images of 10 people)."""

from __future__ import annotations

import re
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.manifest import DataError

LOOKS = "KA.AN1.39.tiff"
PEOPLE = "jaffe"  # whatever name the source has: two copies show the same people
# Some copies have double extensions such as KA.AN1.39.tiff.bmp.
NAME = re.compile(r"^([A-Z]{2})\.(AN|DI|FE|HA|NE|SA|SU)(\d)\.(\d+)(?:\.tiff?)?\.(tiff?|jpg|png|bmp)$", re.IGNORECASE)
CODES = {"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness", "NE": "neutral", "SA": "sadness",
         "SU": "surprise"}


def recognise(root: Path) -> str | None:
    """Its file names, at most two folders down."""
    first = listing.folders(root)
    for folder in (root, *first, *(inner for outer in first for inner in listing.folders(outer))):
        if matching := [name for name in listing.names(folder) if NAME.match(name)]:
            return f"{len(matching)} names like {matching[0]}"
    return None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """Every JAFFE image below `root`, however nested. Raises: DataError if there is none."""
    rows, rejected, first_of = [], [], {}
    for path in listing.files(root):
        if match := NAME.match(path.name):
            person, code, take, serial, _ = (group.upper() for group in match.groups())
            row = {"image": path, "expression": CODES[code], "subject": person}
            first = first_of.setdefault((person, code, take, serial), path)
            if first != path:
                rejected.append(row | {"reason": f"the same image as {first.name}"})
            else:
                rows.append(row)
    if not rows:
        raise DataError(f"{root}: no JAFFE image found; their names look like {LOOKS}")
    return rows, rejected
