"""CK+48: the last three frames of each labelled CK+ sequence as 48 x 48 face crops, a folder a class, no neutral."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.layouts.ckplus import FRAME
from fer_ray.data.manifest import DataError, canonical_expression

LOOKS = "anger/S010_004_00000017.png"
PEOPLE = "ckplus"  # S010 is the same person in both


def recognise(root: Path) -> str | None:
    """Class folders with CK+ frame names."""
    place = _place(root)
    return f"CK+ frames in {', '.join(p.name + '/' for p in listing.folders(place)[:3])}..." if place else None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """Every frame below its class folder. Raises: DataError if there is none, or for an unknown class."""
    place = _place(root)
    if place is None:
        raise DataError(f"{root}: no CK+48 frame found; they look like {LOOKS}")
    rows, rejected = [], []
    for folder in listing.folders(place):
        expression = canonical_expression(folder.name, str(folder))
        for path in listing.files(folder):
            if match := FRAME.match(path.name):
                subject, sequence, frame, _ = match.groups()
                rows.append({"image": path, "expression": expression, "subject": subject,
                             "sequence": f"{subject}/{sequence}", "frame": int(frame), "cropped": True})
            else:
                rejected.append({"image": path, "expression": expression, "reason": "no CK+ frame name"})
    return rows, rejected


def _place(root: Path) -> Path | None:
    for place in (root, *listing.folders(root)):
        inner = listing.folders(place)
        # directly inside: below CK+'s own folders lie subjects
        frames = [any(FRAME.match(p.name) for p in itertools.islice(f.iterdir(), 20)) for f in inner]
        if frames and all(frames) and not any(re.fullmatch(r"\d+", f.name) for f in inner):
            return place
    return None
