"""Extended Cohn-Kanade (CK+): sequences from neutral to apex, one label a sequence (Lucey et al. 2010, README).

593 sequences of 6 to 71 frames of 123 people, 327 of them labelled.
"""

from __future__ import annotations

import re
from pathlib import Path

from fer_ray.config import CkPlusConfig
from fer_ray.data import listing
from fer_ray.data.manifest import DataError

LOOKS = "cohn-kanade-images/S005/001/*.png beside Emotion/S005/001/*_emotion.txt"
PEOPLE = "ckplus"  # whatever name the source has: a copy of CK+ and CK+48 show the same people
CODES = {0: "neutral", 1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happiness", 6: "sadness",
         7: "surprise"}
FRAME = re.compile(r"^(S\d+)_(\d+)_(\d+)\.(png|tiff?|jpg)$", re.IGNORECASE)


def recognise(root: Path) -> str | None:
    """Both folders of CK+."""
    images, labels = _images(root), _labels(root)
    return f"{images.name}/ and {labels.name}/" if images and labels else None


def read(root: Path, options: CkPlusConfig) -> tuple[list[dict], list[dict]]:
    """Frames of all sequences, pre-selected by their place between neutral (0 %) and apex (100 %).

    Raises: DataError if there are no sequences or a label file cannot be read.
    """
    images, labels = _images(root), _labels(root)
    if images is None or labels is None:
        missing = "cohn-kanade-images/" if images is None else "Emotion/"
        raise DataError(f"{root}: no folder {missing}; CK+ has {LOOKS}")
    rows, rejected, seen = [], [], set()
    for folder in (sequence for subject in listing.folders(images) for sequence in listing.folders(subject)):
        frames = sorted((int(m[3]), p) for p in folder.iterdir() if (m := FRAME.match(p.name)))
        place = f"{folder.parent.name}/{folder.name}"
        seen.add(place)
        label = _label(labels / place, root)
        for i, (frame, path) in enumerate(frames):
            expression, reason = _select(label, i, len(frames), options)
            row = {"image": path, "expression": expression or label, "subject": folder.parent.name,
                   "sequence": place, "frame": frame, "position": i / max(1, len(frames) - 1)}
            (rejected if reason else rows).append(row | ({"reason": reason} if reason else {}))
    if not rows and not rejected:
        raise DataError(f"{images}: no frame found; their names look like S005/001/S005_001_00000001.png")
    for file in labels.glob("*/*/*_emotion.txt"):
        if f"{file.parent.parent.name}/{file.parent.name}" not in seen:
            rejected.append({"image": file, "reason": "label without its sequence"})
    return rows, rejected


def _select(label: str | None, number: int, count: int, options: CkPlusConfig) -> tuple[str | None, str | None]:
    """(expression, None) of frame `number` of `count`, or (None, why it is left out)."""
    if label is None and options.unlabelled == "skip":
        return None, "sequence without label"
    percent = 100 * number / max(1, count - 1)
    peak = options.protocol == "peak"
    if number == 0 if peak else percent <= options.neutral_below:
        return "neutral", None
    if label is None:
        return None, "sequence without label"
    if number >= count - options.peak_frames if peak else percent >= options.expression_above:
        return label, None
    return None, "between neutral and expression"


def _label(folder: Path, root: Path) -> str | None:
    """The sequence's emotion; None where its folder is absent or empty, as for 266 of the 593 sequences."""
    found = sorted(f for f in folder.glob("*_emotion.txt")
                   if not listing.is_junk(f.name) and listing.stays_inside(f, root)) if folder.is_dir() else []
    if not found:
        return None
    text = found[-1].read_text(errors="replace").strip()
    try:
        return CODES[int(float(text))]
    except (ValueError, KeyError, OverflowError):
        raise DataError(f"{found[-1]}: {text[:40]!r} is no emotion code; right is a number from 0 to 7") from None


def _images(root: Path) -> Path | None:
    return listing.find(root, "cohn-kanade-images")


def _labels(root: Path) -> Path | None:
    found = listing.find(root, "Emotion", "Emotion_labels")
    inner = found / "Emotion" if found else None
    return inner if inner and inner.is_dir() else found
