"""RAF-DB, basic emotions (Li, Deng, Du 2017): `list_patition_label.txt` (so spelled) beside `Image/`.

Also the copy on Kaggle, `DATASET/train/4/train_00123_aligned.jpg`. The set names no people.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.manifest import DataError

LOOKS = "list_patition_label.txt with Image/aligned/train_00001_aligned.jpg"
LISTS = ("list_patition_label.txt", "list_partition_label.txt")
CODES = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happiness", "5": "sadness", "6": "anger", "7": "neutral"}
SPLITS = ("train", "test")
NAME = re.compile(r"^(train|test)_\d+(_aligned)?\.(jpg|png)$")


def recognise(root: Path) -> str | None:
    """The list of labels, or its pictures in numbered folders."""
    if found := listing.find(root, *LISTS):
        return found.name
    return "train_*_aligned.jpg in numbered folders" if _numbered_root(root) else None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """Aligned faces where they are there, else the original photographs.

    Raises: DataError if the list is missing or one of its lines is wrong.
    """
    file = listing.find(root, *LISTS)
    if file is None:
        return _read_numbered(root)
    rows, rejected = [], []
    aligned, original = listing.find(root, "aligned", depth=3), listing.find(root, "original", depth=3)
    for number, line in enumerate(listing.read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        name, _, code = line.strip().rpartition(" ")
        if not NAME.match(name) or code not in CODES:
            raise DataError(f"{file} line {number}: {line.strip()[:60]!r}; right is like 'train_00001.jpg 5', 1 to 7")
        row = {"expression": CODES[code], "official": name.partition("_")[0]}
        stem, dot, suffix = name.rpartition(".")
        choices = [(folder / picture, cropped) for folder, picture, cropped in
                   ((aligned, f"{stem}_aligned{dot}{suffix}", True), (original, name, False)) if folder]
        found = next(((path, cropped) for path, cropped in choices if os.path.isfile(path)), None)
        if found:
            rows.append(row | {"image": found[0], "cropped": found[1]})
        else:
            missing = choices[0][0] if choices else file.parent / name
            rejected.append(row | {"image": missing, "reason": "file not found"})
    return rows, rejected


def _numbered_root(root: Path) -> Path | None:
    """The folder, the root or one in it, that has `train/1` to `test/7` with pictures of RAF-DB in them."""
    for place in (root, *listing.folders(root)):
        if any(NAME.match(name) for split in SPLITS for code in CODES for name in listing.names(place / split / code)):
            return place
    return None


def _read_numbered(root: Path) -> tuple[list[dict], list[dict]]:
    place = _numbered_root(root)
    if place is None:
        raise DataError(f"{root}: no RAF-DB; it has {LOOKS}")
    rows, rejected = [], []
    for split in SPLITS:
        for code, expression in CODES.items():
            folder = place / split / code
            for path in listing.images(folder) if os.path.isdir(folder) else ():
                row = {"image": path, "expression": expression, "official": split, "cropped": "_aligned" in path.name}
                if NAME.match(path.name):
                    rows.append(row)
                else:
                    rejected.append(row | {"reason": "no RAF-DB name"})
    return rows, rejected
