"""AffectNet (Mollahosseini et al. 2017) in both forms. The set names no people and has no public test split.

The forms are CSV lists with face boxes, and `images/ID.jpg` with `annotations/ID_exp.npy` in `train_set/` and
`val_set/`.
"""

from __future__ import annotations

import io
import itertools
import posixpath
from collections.abc import Iterator

import numpy as np

from fer_ray.data import listing, tables
from fer_ray.data.image_names import ImageNames
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig

LOOKS = "training.csv with subDirectory_filePath and expression, or train_set/annotations/0_exp.npy"
CODES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
OTHER = {8: "none of the eight expressions", 9: "annotator uncertain", 10: "not a face"}
PATH = "subDirectory_filePath"
# The lists' columns. AffectNet's validation.csv was published without this first line, unlike training.csv.
BOX = ("face_x", "face_y", "face_width", "face_height")
COLUMNS = (PATH, *BOX, "facial_landmarks", "expression", "valence", "arousal")
NO_BOX = ("", "NULL")
LONGEST_SIDE = 1_000_000  # px; a box beyond it is a slip, and would not fit into the manifest's int32
SPLITS = {"train_set": "train", "val_set": "val"}
ANNOTATION_SUFFIX = "_exp.npy"


def recognise(files: Listing, data: DataConfig) -> str | None:
    """Its lists, or its folders of annotations."""
    if found := _lists(files):
        return ", ".join(map(posixpath.basename, found))
    return ", ".join(f"{part.name}/annotations" for part in _sets(files)) or None


def read(files: Listing, data: DataConfig) -> Reading:
    """All rows of the lists, or all annotated images. Raises: DataError if there are none or a row is wrong."""
    if lists := _lists(files):
        rows, read = [row for file in lists for row in _read_list(files, file)], set(map(files.uri, lists))
    elif sets := _sets(files):
        rows = [row for part in sets for row in _read_set(part)]
        read = {part.uri(path) for part in sets for path in _annotations(part).values()}
    else:
        raise DataError(f"{files.root}: no AffectNet; it has {LOOKS}{tables.described(files)}")
    return Reading([row for row in rows if "reason" not in row], [row for row in rows if "reason" in row],
                   read=frozenset(read))


def _lists(files: Listing) -> list[str]:
    return [file for file in files.tables(".csv")
            if tables.has_columns(files, file, PATH, "expression") or _lacks_header(files, file)]


def _lacks_header(files: Listing, file: str) -> bool:
    row = tables.first_row(files, file, COLUMNS)
    return bool(row and listing.is_image(row[PATH]) and listing.whole_number(row["expression"].strip()) is not None)


def _sets(files: Listing) -> list[Listing]:
    found = (files.find(name) for name in SPLITS)
    return [files.below(folder) for folder in found if folder and files.has_folder(f"{folder}/annotations")]


def _annotations(part: Listing) -> dict[str, str]:
    """The path of each annotation, by the name of its image."""
    return {file.name.removesuffix(ANNOTATION_SUFFIX): f"annotations/{file.name}"
            for file in part.below("annotations").direct()
            if file.name.endswith(ANNOTATION_SUFFIX) and part.has_file(f"annotations/{file.name}")}


def _labelled(code: str, where: str) -> dict:
    """`expression`, or `reason` for the codes that are none. `where` names file and row. Raises: DataError."""
    number = listing.whole_number(code.strip())
    if number in OTHER:
        return {"reason": OTHER[number]}
    if number is None or number >= len(CODES):
        raise DataError(f"{where}: expression {code.strip()[:40]!r}; right is a whole number from 0 to 10")
    return {"expression": CODES[number]}


def _read_list(files: Listing, file: str) -> Iterator[dict]:
    where, names = files.uri(file), COLUMNS if _lacks_header(files, file) else ()
    if names:
        print(f"{where}: has no header; its columns are taken as those of AffectNet's other lists", flush=True)
    stem = posixpath.splitext(posixpath.basename(file))[0].lower()
    spelled = tables.spelled(names or tables.header(files, file), (PATH, "expression"), where)
    first = itertools.islice(tables.rows(files, file, names=names), 100)  # one image may be missing, not all of these
    bases = (_base(files, row[spelled[PATH]].replace("\\", "/")) for _, _, row in first)
    images = ImageNames(where, files, next((base for base in bases if base is not None), ""))
    for _, number, row in tables.rows(files, file, names=names):
        labelled = _labelled(row[spelled["expression"]], f"{where} row {number}")
        image = images.find(row[spelled[PATH]])
        found = {"image": image, "official": "val" if "valid" in stem else "train", **labelled}
        if "auto" in stem:
            found["reason"] = "labelled by a machine"
        yield found | _box(row) if "reason" not in found else found
    images.tell()


def _box(row: dict[str, str]) -> dict:
    """`face`, or `reason` for a box that is none. Nothing without a box: then the face is searched."""
    values = {name.casefold(): value.strip() for name, value in row.items()}
    texts = [values.get(column, "") for column in BOX]
    if all(text in NO_BOX for text in texts):
        return {}
    try:
        box = [round(float(text)) for text in texts]
    except (ValueError, OverflowError):  # OverflowError: infinity
        box = [0, 0, 0, 0]
    if "_" in "".join(texts) or max(map(abs, box)) > LONGEST_SIDE or min(box[2:]) <= 0:
        return {"reason": f"no face box: {' '.join(text[:20] or '(empty)' for text in texts)}"}
    return {"face": box}


def _base(files: Listing, name: str) -> str | None:
    """The folder that the names of a list start from."""
    level = [""]
    for _ in range(4):
        for folder in level:
            if files.has_file(files.path_of(name, folder)):
                return folder
        level = [posixpath.join(folder, inner) for folder in level for inner in files.below(folder).folders()[:50]]
    return None


def _read_set(part: Listing) -> Iterator[dict]:
    paths = _annotations(part)
    contents = part.read_many(paths.values())
    labels = {name: _annotation(content, part.uri(paths[name]))
              for name, content in zip(paths, contents, strict=True)}
    folder = part.below("images")
    images = {posixpath.splitext(file.name)[0]: folder.uri(file.path) for file in folder.images()}
    for name, code in labels.items():
        labelled = _labelled(code, part.uri(paths[name]))
        if name in images:
            yield {"image": images[name], "official": SPLITS[part.name], **labelled}
        else:
            yield {"image": folder.uri(f"{name}.jpg"), **labelled, "reason": "file not found"}
    for name in sorted(images.keys() - labels.keys()):
        yield {"image": images[name], "reason": "image without annotation"}


def _annotation(content: bytes, file: str) -> str:
    """The one value in a NumPy file: a string of a whole number, as AffectNet has it, or the number itself."""
    try:
        return str(np.load(io.BytesIO(content), allow_pickle=False).item())
    except Exception as error:  # NumPy raises ValueError, EOFError, SyntaxError, AttributeError... at damaged files
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file}: not a NumPy file with one value ({what})") from None
