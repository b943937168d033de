"""JAFFE: `KA.AN1.39.tiff` is person KA, anger, take 1, serial 39 (data set README; 213 images, 10 people)."""

from __future__ import annotations

import re
from pathlib import Path

from fer_ray.manifest import DataError, Manifest, build

# some copies carry double extensions such as KA.AN1.39.tiff.bmp
NAME = re.compile(r"^([A-Z]{2})\.(AN|DI|FE|HA|NE|SA|SU)(\d)\.(\d+)(?:\.tiff?)?\.(tiff?|jpg|png|bmp)$")
CODES = {"AN": "anger", "DI": "disgust", "FE": "fear", "HA": "happiness", "NE": "neutral", "SA": "sadness",
         "SU": "surprise"}


def read(root: Path, options: None = None) -> Manifest:
    """Every JAFFE image below `root`, however nested. Raises: DataError if there is none."""
    rows = []
    for path in sorted(root.rglob("*")):
        if match := NAME.match(path.name):
            person, code, _take, _serial, _extension = match.groups()
            rows.append({"image": str(path), "expression": CODES[code], "subject": f"jaffe:{person}",
                         "dataset": "jaffe"})
    if not rows:
        raise DataError(f"{root}: no JAFFE image found; their names look like KA.AN1.39.tiff")
    return build(rows, [])
