"""AffectNet (Mollahosseini et al. 2017) in both forms. The set names no people and has no public test split.

The forms are CSV lists with face boxes, and `images/ID.jpg` with `annotations/ID_exp.npy` in `train_set/` and
`val_set/`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fer_ray.data import listing, tables
from fer_ray.data.manifest import DataError

LOOKS = "training.csv with subDirectory_filePath and expression, or train_set/annotations/0_exp.npy"
CODES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
OTHER = {8: "none of the eight expressions", 9: "annotator uncertain", 10: "not a face"}
PATH = "subDirectory_filePath"
BOX = ("face_x", "face_y", "face_width", "face_height")
NO_BOX = ("", "NULL")
LONGEST_SIDE = 1_000_000  # px; a box beyond it is a slip, and would not fit into the manifest's int32
SPLITS = {"train_set": "train", "val_set": "val"}
ANNOTATION_SUFFIX = "_exp.npy"


def recognise(root: Path) -> str | None:
    """Its lists, or its folders of annotations."""
    if found := _lists(root):
        return ", ".join(file.name for file in found)
    return ", ".join(f"{folder.name}/annotations" for folder in _sets(root)) or None


def read(root: Path, options: None = None) -> tuple[list[dict], list[dict]]:
    """All rows of the lists, or all annotated images. Raises: DataError if there are none or a row is wrong."""
    if lists := _lists(root):
        rows = [row for file in lists for row in _read_list(file, root)]
    elif sets := _sets(root):
        rows = [row for folder in sets for row in _read_set(folder)]
    else:
        raise DataError(f"{root}: no AffectNet; it has {LOOKS}{tables.described(root)}")
    return [row for row in rows if "reason" not in row], [row for row in rows if "reason" in row]


def _lists(root: Path) -> list[Path]:
    return [file for file in listing.tables(root, ".csv") if tables.has_columns(file, PATH, "expression")]


def _sets(root: Path) -> list[Path]:
    found = (listing.find(root, name) for name in SPLITS)
    return [folder for folder in found if folder and os.path.isdir(folder / "annotations")]


def _labelled(code: str, where: str) -> dict:
    """`expression`, or `reason` for the codes that are none. `where` names file and row. Raises: DataError."""
    number = listing.whole_number(code.strip())
    if number in OTHER:
        return {"reason": OTHER[number]}
    if number is None or number >= len(CODES):
        raise DataError(f"{where}: expression {code.strip()[:40]!r}; right is a whole number from 0 to 10")
    return {"expression": CODES[number]}


def _read_list(file: Path, root: Path) -> Iterator[dict]:
    base = None
    if missing := {PATH, "expression"} - set(tables.header(file)):  # recognised, but spelled in another case
        raise DataError(f"{file}: no column {', '.join(sorted(missing))}")
    for _, number, row in tables.rows(file):
        labelled = _labelled(row["expression"], f"{file} row {number}")
        name = row[PATH]
        base = base or _base(root, name) or root
        found = {"image": Path(base, name), "official": "val" if "valid" in file.stem.lower() else "train", **labelled}
        if "auto" in file.stem.lower():
            found["reason"] = "labelled by a machine"
        yield found | _box(row) if "reason" not in found else found


def _box(row: dict[str, str]) -> dict:
    """`face`, or `reason` for a box that is none. Nothing without a box: then the face is searched."""
    texts = [row.get(column, "").strip() for column in BOX]
    if all(text in NO_BOX for text in texts):
        return {}
    try:
        box = [round(float(text)) for text in texts]
    except (ValueError, OverflowError):  # OverflowError: infinity
        box = [0, 0, 0, 0]
    if "_" in "".join(texts) or max(map(abs, box)) > LONGEST_SIDE or min(box[2:]) <= 0:
        return {"reason": f"no face box: {' '.join(text[:20] or '(empty)' for text in texts)}"}
    return {"face": box}


def _base(root: Path, name: str) -> Path | None:
    """The folder that the names of a list start from."""
    level = [root]
    for _ in range(4):
        for folder in level:
            if os.path.isfile(folder / name):  # the name may be none at all: `is_file` would raise
                return folder
        level = [inner for folder in level for inner in listing.folders(folder)[:50]]
    return None


def _read_set(folder: Path) -> Iterator[dict]:
    labels, refusal = {}, listing.gate(folder)
    for name in listing.names(folder / "annotations"):
        if name.endswith(ANNOTATION_SUFFIX) and not refusal(folder / "annotations" / name):
            labels[name.removesuffix(ANNOTATION_SUFFIX)] = _annotation(folder / "annotations" / name)
    images = {p.stem: p for p in listing.images(folder / "images")} if os.path.isdir(folder / "images") else {}
    for name, code in labels.items():
        labelled = _labelled(code, f"{folder}/annotations/{name}{ANNOTATION_SUFFIX}")
        if name in images:
            yield {"image": images[name], "official": SPLITS[folder.name], **labelled}
        else:
            yield {"image": folder / "images" / f"{name}.jpg", **labelled, "reason": "file not found"}
    for name in sorted(images.keys() - labels.keys()):
        yield {"image": images[name], "reason": "image without annotation"}


def _annotation(file: Path) -> str:
    """The one value in a NumPy file: a string of a whole number, as AffectNet has it, or the number itself."""
    try:
        return str(np.load(file, allow_pickle=False).item())
    except Exception as error:  # NumPy raises ValueError, EOFError, SyntaxError, AttributeError... at damaged files
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file}: not a NumPy file with one value ({what})") from None
