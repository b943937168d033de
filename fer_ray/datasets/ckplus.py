"""Extended Cohn-Kanade (CK+): sequences from neutral to apex, one label a sequence (Lucey et al. 2010, README)."""

from __future__ import annotations

import re
from pathlib import Path

from fer_ray.config import CkPlusConfig
from fer_ray.manifest import DataError, Manifest, build

CODES = {0: "neutral", 1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happiness", 6: "sadness",
         7: "surprise"}
FRAME = re.compile(r"^(S\d+)_(\d+)_(\d+)\.(png|tiff?|jpg)$")


def read(root: Path, options: CkPlusConfig) -> Manifest:
    """Frames of all sequences, pre-selected by their position between neutral (0 %) and apex (100 %).

    Raises: DataError if there are no sequences or a label file cannot be read.
    """
    images, labels = _find(root, "cohn-kanade-images"), _find(root, "Emotion", "Emotion_labels")
    if images is None or labels is None:
        missing = "cohn-kanade-images/" if images is None else "Emotion/"
        raise DataError(f"{root}: no folder {missing}; CK+ has cohn-kanade-images/S005/001/*.png and Emotion/S005/001/")
    rows, rejected = [], []
    for folder in sorted(p for p in images.glob("*/*") if p.is_dir()):
        frames = sorted((int(m[3]), p) for p in folder.iterdir() if (m := FRAME.match(p.name)))
        if not frames:
            continue
        label = _label(labels / folder.parent.name / folder.name)
        for i, (frame, path) in enumerate(frames):
            position = i / max(1, len(frames) - 1)
            expression, reason = _select(label, 100 * position, options)
            if reason:
                rejected.append({"image": str(path), "dataset": "ckplus", "reason": reason})
            else:
                rows.append({"image": str(path), "expression": expression,
                             "subject": f"ckplus:{folder.parent.name}",
                             "sequence": f"ckplus:{folder.parent.name}/{folder.name}", "frame": frame,
                             "position": position, "dataset": "ckplus"})
    if not rows and not rejected:
        raise DataError(f"{images}: no frame found; their names look like S005/001/S005_001_00000001.png")
    return build(rows, rejected)


def _select(label: str | None, percent: float, options: CkPlusConfig) -> tuple[str | None, str | None]:
    """(expression, None) of a frame at `percent` of its sequence, or (None, why it is left out)."""
    if label is None and options.unlabelled == "skip":
        return None, "sequence without label"
    if percent <= options.neutral_below:
        return "neutral", None
    if label is not None and percent >= options.expression_above:
        return label, None
    return None, "between neutral and expression" if label is not None else "sequence without label"


def _label(folder: Path) -> str | None:
    """The sequence's emotion; None where its folder is absent or empty, as for 266 of the 593 sequences."""
    files = sorted(folder.glob("*_emotion.txt")) if folder.is_dir() else []
    if not files:
        return None
    text = files[-1].read_text(errors="replace").strip()
    try:
        return CODES[int(float(text))]
    except (ValueError, KeyError, OverflowError):
        raise DataError(f"{files[-1]}: {text[:40]!r} is no emotion code; right is a number from 0 to 7") from None


def _find(root: Path, *names: str) -> Path | None:
    """The first folder of one of the names, at the root or one level down."""
    for pattern in ("{}", "*/{}"):
        for name in names:
            if found := sorted(p for p in root.glob(pattern.format(name)) if p.is_dir()):
                return found[0]
    return None
