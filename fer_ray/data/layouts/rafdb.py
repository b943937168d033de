"""RAF-DB, basic emotions (Li, Deng, Du 2017): `list_patition_label.txt` (so spelled) beside `Image/`.

Also the copy on Kaggle, `DATASET/train/4/train_00123_aligned.jpg`. The set names no people.
"""

from __future__ import annotations

import re
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.manifest import DataError

LOOKS = "list_patition_label.txt with Image/aligned/train_00001_aligned.jpg"
LISTS = ("list_patition_label.txt", "list_partition_label.txt")
CODES = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happiness", "5": "sadness", "6": "anger", "7": "neutral"}
NAME = re.compile(r"^(train|test)_\d+(_aligned)?\.(jpg|png)$")


def recognise(root: Path) -> str | None:
    """The list of labels, or its pictures in numbered folders."""
    if found := listing.find(root, *LISTS):
        return found.name
    return "train_*_aligned.jpg in numbered folders" if _numbered(root) else None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """Aligned faces where they are there, else the original photographs.

    Raises: DataError if the list is missing or one of its lines is wrong.
    """
    file = listing.find(root, *LISTS)
    if file is None:
        return _read_numbered(root)
    rows, rejected = [], []
    aligned, original = listing.find(root, "aligned", depth=3), listing.find(root, "original", depth=3)
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, code = line.strip().rpartition(" ")
        if not NAME.match(name) or code not in CODES:
            raise DataError(f"{file} line {number}: {line.strip()[:60]!r}; right is like 'train_00001.jpg 5', 1 to 7")
        row = {"expression": CODES[code], "official": name.partition("_")[0]}
        stem, dot, suffix = name.rpartition(".")
        choices = [(folder / picture, cropped) for folder, picture, cropped in
                   ((aligned, f"{stem}_aligned{dot}{suffix}", True), (original, name, False)) if folder]
        found = next(((p, c) for p, c in choices if p.is_file()), None)
        if found:
            rows.append(row | {"image": found[0], "cropped": found[1]})
        else:
            missing = choices[0][0] if choices else file.parent / name
            rejected.append(row | {"image": missing, "reason": "file not found"})
    return rows, rejected


def _numbered(root: Path) -> Path | None:
    for place in (root, *listing.folders(root)):
        if any((place / split / code).is_dir() and any(NAME.match(p.name) for p in (place / split / code).iterdir())
               for split in ("train", "test") for code in CODES):
            return place
    return None


def _read_numbered(root: Path) -> tuple[list[dict], list[dict]]:
    place = _numbered(root)
    if place is None:
        raise DataError(f"{root}: no RAF-DB; it has {LOOKS}")
    rows = [{"image": path, "expression": expression, "official": split, "cropped": "_aligned" in path.name}
            for split in ("train", "test") for code, expression in CODES.items()
            if (place / split / code).is_dir()
            for path in listing.images(place / split / code) if NAME.match(path.name)]
    return rows, []
