"""CK+48: the last three frames of each labelled CK+ sequence as 48 x 48 face crops, a folder a class, no neutral."""

from __future__ import annotations

import re
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.layouts.ckplus import FRAME
from fer_ray.data.manifest import DataError, canonical_expression

LOOKS = "anger/S010_004_00000017.png"
PEOPLE = "ckplus"  # S010 is the same person in both
NAMES_READ = 20  # of each folder, to recognise it


def recognise(root: Path) -> str | None:
    """Class folders with CK+ frame names."""
    folder = _classes(root)
    return f"CK+ frames in {', '.join(p.name + '/' for p in listing.folders(folder)[:3])}..." if folder else None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """Every frame below its class folder. Raises: DataError if there is none, or for an unknown class."""
    classes = _classes(root)
    if classes is None:
        raise DataError(f"{root}: no CK+48 frame found; they look like {LOOKS}")
    rows, rejected = [], []
    for folder in listing.folders(classes):
        expression = canonical_expression(folder.name, str(folder))
        for path in listing.files(folder):
            if match := FRAME.match(path.name):
                subject, sequence, frame, _ = match.groups()
                rows.append({"image": path, "expression": expression, "subject": subject,
                             "sequence": f"{subject}/{sequence}", "frame": int(frame), "cropped": True})
            else:
                rejected.append({"image": path, "expression": expression, "reason": "no CK+ frame name"})
    return rows, rejected


def _classes(root: Path) -> Path | None:
    """The root or the folder in it whose folders all hold CK+ frames directly."""
    for place in (root, *listing.folders(root)):
        inner = listing.folders(place)
        has_frames = [any(FRAME.match(name) for name in listing.names(f)[:NAMES_READ]) for f in inner]
        # In CK+ itself the frames lie in numbered folders, one for each sequence.
        if has_frames and all(has_frames) and not any(re.fullmatch(r"\d+", f.name) for f in inner):
            return place
    return None
