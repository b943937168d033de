"""RAF-DB, basic emotions (Li, Deng, Du 2017): `list_patition_label.txt` (so spelled) beside `Image/`.

Also the copy on Kaggle, `DATASET/train/4/train_00123_aligned.jpg`. The set names no people.
"""

from __future__ import annotations

import posixpath
import re

from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError

LOOKS = "list_patition_label.txt with Image/aligned/train_00001_aligned.jpg"
LISTS = ("list_patition_label.txt", "list_partition_label.txt")
CODES = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happiness", "5": "sadness", "6": "anger", "7": "neutral"}
SPLITS = ("train", "test")
NAME = re.compile(r"^(train|test)_\d+(_aligned)?\.(jpg|png)$")


def recognise(files: Listing) -> str | None:
    """The list of labels, or its pictures in numbered folders."""
    if found := files.find(*LISTS):
        return posixpath.basename(found)
    return "train_*_aligned.jpg in numbered folders" if _numbered_root(files) else None


def read(files: Listing, options: None = None) -> Reading:
    """Aligned faces where they are there, else the original photographs.

    Raises: DataError if the list is missing or one of its lines is wrong.
    """
    file = files.find(*LISTS)
    if file is None:
        return _read_numbered(files)
    rows, rejected = [], []
    aligned, original = files.find("aligned", depth=3), files.find("original", depth=3)
    for number, line in enumerate(files.read_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        name, _, code = line.strip().rpartition(" ")
        if not NAME.match(name) or code not in CODES:
            raise DataError(f"{files.uri(file)} line {number}: {line.strip()[:60]!r}; right is like "
                            "'train_00001.jpg 5', 1 to 7")
        row = {"expression": CODES[code], "official": name.partition("_")[0]}
        stem, dot, suffix = name.rpartition(".")
        choices = [(f"{folder}/{picture}", cropped) for folder, picture, cropped in
                   ((aligned, f"{stem}_aligned{dot}{suffix}", True), (original, name, False)) if folder]
        found = next(((path, cropped) for path, cropped in choices if files.has_file(path)), None)
        if found:
            rows.append(row | {"image": files.uri(found[0]), "cropped": found[1]})
        else:
            missing = choices[0][0] if choices else posixpath.join(posixpath.dirname(file), name)
            rejected.append(row | {"image": files.uri(missing), "reason": "file not found"})
    return Reading(rows, rejected, read=frozenset([files.uri(file)]))


def _numbered_root(files: Listing) -> Listing | None:
    """The folder, the root or one in it, that has `train/1` to `test/7` with pictures of RAF-DB in them."""
    for place in (files, *map(files.below, files.folders())):
        if any(NAME.match(file.name) for split in SPLITS for code in CODES
               for file in place.below(f"{split}/{code}").direct()):
            return place
    return None


def _read_numbered(files: Listing) -> Reading:
    place = _numbered_root(files)
    if place is None:
        raise DataError(f"{files.root}: no RAF-DB; it has {LOOKS}")
    rows, rejected = [], []
    for split in SPLITS:
        for code, expression in CODES.items():
            folder = place.below(f"{split}/{code}")
            for file in folder.images():
                row = {"image": folder.uri(file.path), "expression": expression, "official": split,
                       "cropped": "_aligned" in file.name}
                if NAME.match(file.name):
                    rows.append(row)
                else:
                    rejected.append(row | {"reason": "no RAF-DB name"})
    return Reading(rows, rejected)
