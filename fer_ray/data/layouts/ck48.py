"""CK+48: the last three frames of each labelled CK+ sequence as 48 x 48 face crops, a folder a class, no neutral.

Copies divide it into `train/` and `test/`, or add a folder of neutral faces from elsewhere, which is not read here.
Others hold CK+'s own frames of 640 x 490 px in such folders, in which the face is searched.
"""

from __future__ import annotations

import posixpath

from fer_ray.data import listing
from fer_ray.data.layouts.ckplus import frame_of
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression, is_expression
from fer_ray.data_config import DataConfig

LOOKS = "anger/S010_004_00000017.png"
PEOPLE = "ckplus"  # S010 is the same person in both
LARGEST_CROP = 8192  # bytes; 48 x 48 px of three colours are 6,912, and a frame of CK+ has tens of thousands


def recognise(files: Listing, data: DataConfig) -> str | None:
    """Class folders with CK+ frame names."""
    names = dict.fromkeys(posixpath.basename(folder) for folder in _class_folders(files, data.names))
    return f"CK+ frames in {', '.join(name + '/' for name in list(names)[:3])}..." if names else None


def read(files: Listing, data: DataConfig) -> Reading:
    """Every file below the class folders that hold frames.

    Raises: DataError if there is none, or for a folder whose name is no expression.
    """
    classes = _class_folders(files, data.names)
    if not classes:
        raise DataError(f"{files.root}: no CK+48 frame found; they look like {LOOKS}")
    rows, rejected = [], []
    for file in files.files:
        folder = next((folder for folder in classes if file.path.startswith(folder + "/")), None)
        if folder is None:
            continue
        row = {"image": files.uri(file.path), "official": listing.official_split(folder),
               "expression": canonical_expression(posixpath.basename(folder), files.uri(folder), data.names)}
        if frame := frame_of(file.name):
            rows.append(row | {"subject": frame.subject, "sequence": frame.sequence, "frame": frame.number,
                               "cropped": file.size <= LARGEST_CROP})
        else:
            rejected.append(row | {"reason": "no CK+ frame name"})
    return Reading(rows, rejected)


def _class_folders(files: Listing, names: dict[str, str]) -> list[str]:
    """Folders of classes that hold frames, and folders of frames beside them, whose names may be misspelt."""
    holders = dict.fromkeys(posixpath.dirname(file.path) for file in files.files if frame_of(file.name))
    known = [above for folder in holders for above in [_class_of(folder, names)] if above]
    around = {posixpath.dirname(folder) for folder in known}
    beside = [folder for folder in holders if posixpath.dirname(folder) in around]
    return sorted({*known, *beside})


def _class_of(folder: str, names: dict[str, str]) -> str | None:
    """The folder itself, or the nearest one around it, that is named after an expression."""
    while folder and not is_expression(posixpath.basename(folder), names):
        folder = posixpath.dirname(folder)
    return folder or None
