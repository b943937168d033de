"""CK+48: the last three frames of each labelled CK+ sequence as 48 x 48 face crops, a folder a class, no neutral."""

from __future__ import annotations

import re

from fer_ray.data.layouts.ckplus import FRAME
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression

LOOKS = "anger/S010_004_00000017.png"
PEOPLE = "ckplus"  # S010 is the same person in both


def recognise(files: Listing) -> str | None:
    """Class folders with CK+ frame names."""
    classes = _classes(files)
    return f"CK+ frames in {', '.join(name + '/' for name in classes.folders()[:3])}..." if classes else None


def read(files: Listing, options: None = None) -> Reading:
    """Every frame below its class folder. Raises: DataError if there is none, or for an unknown class."""
    classes = _classes(files)
    if classes is None:
        raise DataError(f"{files.root}: no CK+48 frame found; they look like {LOOKS}")
    rows, rejected = [], []
    for folder in classes.folders():
        expression = canonical_expression(folder, classes.uri(folder))
        inside = classes.below(folder)
        for file in inside.files:
            image = inside.uri(file.path)
            if match := FRAME.match(file.name):
                subject, sequence, frame, _ = match.groups()
                rows.append({"image": image, "expression": expression, "subject": subject,
                             "sequence": f"{subject}/{sequence}", "frame": int(frame), "cropped": True})
            else:
                rejected.append({"image": image, "expression": expression, "reason": "no CK+ frame name"})
    return Reading(rows, rejected)


def _classes(files: Listing) -> Listing | None:
    """The root or the folder in it whose folders all hold CK+ frames directly."""
    for place in (files, *map(files.below, files.folders())):
        inner = place.folders()
        has_frames = [any(FRAME.match(file.name) for file in place.below(name).direct()) for name in inner]
        # In CK+ itself the frames lie in numbered folders, one for each sequence.
        if has_frames and all(has_frames) and not any(re.fullmatch(r"\d+", name) for name in inner):
            return place
    return None
