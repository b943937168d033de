"""Extended Cohn-Kanade (CK+): sequences from neutral to apex, one label a sequence (Lucey et al. 2010, README).

593 sequences of 6 to 71 frames of 123 people, 327 of them labelled.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.manifest import DataError
from fer_ray.data_config import CkPlusConfig

LOOKS = "cohn-kanade-images/S005/001/*.png beside Emotion/S005/001/*_emotion.txt"
PEOPLE = "ckplus"  # whatever name the source has: a copy of CK+ and CK+48 show the same people
CODES = {0: "neutral", 1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happiness", 6: "sadness",
         7: "surprise"}
FRAME = re.compile(r"^(S\d+)_(\d+)_(\d+)\.(png|tiff?|jpg)$", re.IGNORECASE)
LABEL_SUFFIX = "_emotion.txt"
# `3.0000000e+00` in the original, `3` in some copies. `float` alone would also accept `0_3`.
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?", re.IGNORECASE)


def recognise(root: Path) -> str | None:
    """Both folders of CK+."""
    images, labels = _images(root), _labels(root)
    return f"{images.name}/ and {labels.name}/" if images and labels else None


def read(root: Path, options: CkPlusConfig) -> tuple[list[dict], list[dict]]:
    """Frames of all sequences, selected by their position between neutral (0 %) and apex (100 %).

    Raises: DataError if there are no sequences, or a label file cannot be read or contradicts another.
    """
    images, labels = _images(root), _labels(root)
    if images is None or labels is None:
        missing = "cohn-kanade-images/" if images is None else "Emotion/"
        raise DataError(f"{root}: no folder {missing}; CK+ has {LOOKS}")
    rows, rejected, sequences = [], [], set()
    for folder in (sequence for subject in listing.folders(images) for sequence in listing.folders(subject)):
        sequence = f"{folder.parent.name}/{folder.name}"
        sequences.add(sequence)
        label = _label(labels / sequence, root)
        frames, others = _frames(folder)
        rejected += others
        for i, (frame, path) in enumerate(frames):
            expression, reason = _select(label, i, len(frames), options)
            row = {"image": path, "expression": expression or label, "subject": folder.parent.name,
                   "sequence": sequence, "frame": frame, "position": i / max(1, len(frames) - 1)}
            (rejected if reason else rows).append(row | ({"reason": reason} if reason else {}))
    if not rows and not rejected:
        raise DataError(f"{images}: no frame found; their names look like S005/001/S005_001_00000001.png")
    return rows, rejected + _labels_without_sequence(labels, sequences)


def _frames(folder: Path) -> tuple[list[tuple[int, Path]], list[dict]]:
    """The frames of a sequence's folder, as (number, path) in their order, and rejected rows for its other images."""
    frames, others = [], []
    for name in listing.names(folder):
        match = FRAME.match(name)
        if match and _belongs(match, folder):
            frames.append((int(match[3]), folder / name))
        elif match:
            others.append({"image": folder / name, "reason": f"frame of {match[1]}/{match[2]} in another's folder"})
        elif listing.is_image(folder / name):
            others.append({"image": folder / name, "reason": "no CK+ frame name"})
    return sorted(frames), others


def _belongs(match: re.Match, folder: Path) -> bool:
    """Whether subject and sequence of a file's name are those of the folder."""
    return (match[1].casefold() == folder.parent.name.casefold()
            and match[2].lstrip("0") == folder.name.lstrip("0"))


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
    """The sequence's emotion; None where its folder is absent or empty, as for 266 of the 593 sequences.

    Raises: DataError for a file that holds no emotion code or is of another sequence, and for files that differ.
    """
    found = {}
    for name in listing.names(folder):
        if name.endswith(LABEL_SUFFIX) and listing.stays_inside(folder / name, root):
            match = re.match(r"(S\d+)_(\d+)_", name, re.IGNORECASE)
            if match and not _belongs(match, folder):
                raise DataError(f"{folder / name}: is named after {match[1]}/{match[2]} but lies in the folder of "
                                f"{folder.parent.name}/{folder.name}; move or remove it")
            found[name] = _emotion(folder / name)
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} says {emotion}" for name, emotion in found.items())
        raise DataError(f"{folder}: its label files contradict each other ({told}); keep the right one")
    return next(iter(found.values()), None)


def _emotion(file: Path) -> str:
    """The emotion in a label file. Raises: DataError."""
    text = listing.read_text(file).strip()
    code = float(text) if _NUMBER.fullmatch(text) else -1.0
    if code not in CODES:  # 3.0 is in, since it equals 3; 2.7 and infinity are not
        raise DataError(f"{file}: {text[:40]!r} is no emotion code; right is a whole number from 0 to 7")
    return CODES[int(code)]


def _labels_without_sequence(labels: Path, sequences: set[str]) -> list[dict]:
    return [{"image": sequence / name, "reason": "label without its sequence"}
            for subject in listing.folders(labels) for sequence in listing.folders(subject)
            if f"{subject.name}/{sequence.name}" not in sequences
            for name in listing.names(sequence) if name.endswith(LABEL_SUFFIX)]


def _images(root: Path) -> Path | None:
    return listing.find(root, "cohn-kanade-images")


def _labels(root: Path) -> Path | None:
    found = listing.find(root, "Emotion", "Emotion_labels")
    inner = found / "Emotion" if found else None
    return inner if inner and os.path.isdir(inner) else found
