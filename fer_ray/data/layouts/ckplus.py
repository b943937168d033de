"""Extended Cohn-Kanade (CK+): sequences from neutral to apex, one label a sequence (Lucey et al. 2010, README).

593 sequences of 6 to 71 frames of 123 people, 327 of them labelled.
"""

from __future__ import annotations

import posixpath
import re

from fer_ray.data import listing
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
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


def recognise(files: Listing) -> str | None:
    """Both folders of CK+."""
    images, labels = _images(files), _labels(files)
    return f"{images.name}/ and {labels.name}/" if images and labels else None


def read(files: Listing, options: CkPlusConfig) -> Reading:
    """Frames of all sequences, selected by their position between neutral (0 %) and apex (100 %).

    Raises: DataError if there are no sequences, or a label file cannot be read or contradicts another.
    """
    images, labels = _images(files), _labels(files)
    if images is None or labels is None:
        missing = "cohn-kanade-images/" if images is None else "Emotion/"
        raise DataError(f"{files.root}: no folder {missing}; CK+ has {LOOKS}")
    rows, rejected = [], []
    sequences, contents = _sequences(images), _label_files(labels)
    for sequence in sequences:
        label = _label(labels, sequence, contents)
        frames, others = _frames(images, sequence)
        rejected += others
        for i, (frame, image) in enumerate(frames):
            expression, reason = _select(label, i, len(frames), options)
            row = {"image": image, "expression": expression or label, "subject": sequence.partition("/")[0],
                   "sequence": sequence, "frame": frame, "position": i / max(1, len(frames) - 1)}
            (rejected if reason else rows).append(row | ({"reason": reason} if reason else {}))
    if not rows and not rejected:
        raise DataError(f"{images.root}: no frame found; their names look like S005/001/S005_001_00000001.png")
    rejected += [{"image": labels.uri(path), "reason": "label without its sequence"}
                 for path in contents if posixpath.dirname(path) not in sequences]
    return Reading(rows, rejected, read=frozenset(map(labels.uri, contents)))


def _sequences(folders: Listing) -> dict[str, None]:
    """`S005/001` and so on, in order."""
    return {f"{subject}/{sequence}": None for subject in folders.folders()
            for sequence in folders.below(subject).folders()}


def _frames(images: Listing, sequence: str) -> tuple[list[tuple[int, str]], list[dict]]:
    """The frames of a sequence's folder, as (number, name) in their order, and rejected rows for its other images."""
    frames, others = [], []
    for file in images.below(sequence).direct():
        image, match = images.uri(f"{sequence}/{file.name}"), FRAME.match(file.name)
        if match and _belongs(match, sequence):
            frames.append((int(match[3]), image))
        elif match:
            others.append({"image": image, "reason": f"frame of {match[1]}/{match[2]} in another's folder"})
        elif listing.is_image(file.name):
            others.append({"image": image, "reason": "no CK+ frame name"})
    return sorted(frames), others


def _belongs(match: re.Match, sequence: str) -> bool:
    """Whether subject and sequence of a file's name are those of the folder."""
    subject, _, number = sequence.partition("/")
    return match[1].casefold() == subject.casefold() and match[2].lstrip("0") == number.lstrip("0")


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


def _label_files(labels: Listing) -> dict[str, bytes]:
    """The content of each file of labels that lies in a sequence's folder, by its path `S005/001/...`."""
    paths = [file.path for file in labels.files if file.path.count("/") == 2 and file.path.endswith(LABEL_SUFFIX)
             and labels.has_file(file.path)]
    return dict(zip(paths, labels.read_many(paths), strict=True))


def _label(labels: Listing, sequence: str, contents: dict[str, bytes]) -> str | None:
    """The sequence's emotion; None where its folder is absent or empty, as for 266 of the 593 sequences.

    Raises: DataError for a file that holds no emotion code or is of another sequence, and for files that differ.
    """
    found = {}
    for name in (file.name for file in labels.below(sequence).direct()):
        path = f"{sequence}/{name}"
        if path in contents:
            match = re.match(r"(S\d+)_(\d+)_", name, re.IGNORECASE)
            if match and not _belongs(match, sequence):
                raise DataError(f"{labels.uri(path)}: is named after {match[1]}/{match[2]} but lies in the folder of "
                                f"{sequence}; move or remove it")
            found[name] = _emotion(contents[path], labels.uri(path))
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} says {emotion}" for name, emotion in found.items())
        raise DataError(f"{labels.uri(sequence)}: its label files contradict each other ({told}); keep the right one")
    return next(iter(found.values()), None)


def _emotion(content: bytes, file: str) -> str:
    """The emotion in a label file. Raises: DataError."""
    text = listing.decode(content, file).strip()
    code = float(text) if _NUMBER.fullmatch(text) else -1.0
    if code not in CODES:  # 3.0 is in, since it equals 3; 2.7 and infinity are not
        raise DataError(f"{file}: {text[:40]!r} is no emotion code; right is a whole number from 0 to 7")
    return CODES[int(code)]


def _images(files: Listing) -> Listing | None:
    found = files.find("cohn-kanade-images")
    return files.below(found) if found else None


def _labels(files: Listing) -> Listing | None:
    found = files.find("Emotion", "Emotion_labels")
    if not found:
        return None
    labels = files.below(found)
    return labels.below("Emotion") if labels.has_folder("Emotion") else labels
