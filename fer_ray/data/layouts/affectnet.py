"""AffectNet (Mollahosseini et al. 2017), both forms: CSV lists with face boxes, and `images/ID.jpg` with
`annotations/ID_exp.npy` in `train_set/` and `val_set/`. The set names no people and has no public test split.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fer_ray.data import listing, pixels
from fer_ray.data.manifest import DataError

LOOKS = "training.csv with subDirectory_filePath and expression, or train_set/annotations/0_exp.npy"
CODES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
OTHER = {8: "none of the eight expressions", 9: "annotator uncertain", 10: "not a face"}
PATH = "subDirectory_filePath"
SPLITS = {"train_set": "train", "val_set": "val"}


def recognise(root: Path) -> str | None:
    """Its lists, or its folders of annotations."""
    if found := _lists(root):
        return ", ".join(f.name for f in found)
    return ", ".join(f"{p.name}/annotations" for p in _sets(root)) or None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """All rows of the lists, or all annotated images. Raises: DataError if there are none or a row is wrong."""
    if found := _lists(root):
        rows = [row for file in found for row in _read_list(file, root)]
    elif found := _sets(root):
        rows = [row for folder in found for row in _read_set(folder)]
    else:
        raise DataError(f"{root}: no AffectNet; it has {LOOKS}")
    return [r for r in rows if "reason" not in r], [r for r in rows if "reason" in r]


def _lists(root: Path) -> list[Path]:
    def is_list(file: Path) -> bool:
        with open(file, errors="replace") as stream:
            return {PATH, "expression"} <= {c.strip() for c in stream.readline().split(",")}

    return [f for f in listing.tables(root, ".csv") if is_list(f)]


def _sets(root: Path) -> list[Path]:
    return [p for p in (listing.find(root, name) for name in SPLITS) if p and (p / "annotations").is_dir()]


def _labelled(code: object, where: str) -> dict:
    """`expression`, or `reason` for the codes that are none."""
    text = str(code).strip()
    number = int(text) if text.isdecimal() else -1
    if number in OTHER:
        return {"reason": OTHER[number]}
    if not 0 <= number < len(CODES):
        raise DataError(f"{where}: expression {text!r}; right is 0 to 10")
    return {"expression": CODES[number]}


def _read_list(file: Path, root: Path):
    base = None
    for _, number, row in pixels.csv_rows(file):
        labelled = _labelled(row["expression"], f"{file} row {number}")
        name = row[PATH]
        base = base or _base(root, name) or root
        found = {"image": Path(base, name), "official": "val" if "valid" in file.stem.lower() else "train", **labelled}
        if "auto" in file.stem.lower():
            found["reason"] = "labelled by a machine"
        try:
            found["face"] = [round(float(row[c])) for c in ("face_x", "face_y", "face_width", "face_height")]
        except (KeyError, ValueError, OverflowError):
            pass  # without a box the face is searched
        yield found


def _base(root: Path, name: str) -> Path | None:
    """The folder that the names of a list start from."""
    level = [root]
    for _ in range(4):
        for folder in level:
            if os.path.isfile(folder / name):  # the name may be none at all: `is_file` would raise
                return folder
        level = [f for folder in level for f in listing.folders(folder)[:50]]
    return None


def _read_set(folder: Path):
    labels, refused = {}, listing.gate(folder)
    for file in sorted((folder / "annotations").glob("*_exp.npy")):
        if refused(file):
            continue
        try:
            labels[file.name.removesuffix("_exp.npy")] = np.load(file, allow_pickle=False).item()
        except (ValueError, OSError) as error:
            raise DataError(f"{file}: not a NumPy file with one number ({error})") from None
    images = {p.stem: p for p in listing.images(folder / "images")} if (folder / "images").is_dir() else {}
    for name, code in labels.items():
        labelled = _labelled(code, f"{folder}/annotations/{name}_exp.npy")
        if name in images:
            yield {"image": images[name], "official": SPLITS[folder.name], **labelled}
        else:
            yield {"image": folder / "images" / f"{name}.jpg", **labelled, "reason": "file not found"}
    for name in sorted(images.keys() - labels.keys()):
        yield {"image": images[name], "reason": "image without annotation"}
