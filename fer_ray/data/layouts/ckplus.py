"""Extended Cohn-Kanade (CK+): sequences from neutral to apex, one label a sequence (Lucey et al. 2010, README).

593 sequences of 6 to 71 frames of 123 people, 327 of them labelled. Frames are numbered from 1, and a label file is
named after the last frame, the apex: `S005_001_00000011_emotion.txt`. So the numbers tell how far a frame is on the
way, also in the many copies that keep only some frames of each sequence.
"""

from __future__ import annotations

import collections
import posixpath
import re
from dataclasses import dataclass

from fer_ray.data import listing
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import File, Listing
from fer_ray.data.manifest import DataError, is_expression
from fer_ray.data_config import CkPlusConfig, DataConfig

LOOKS = "cohn-kanade-images/S005/001/*.png beside Emotion/S005/001/*_emotion.txt"
PEOPLE = "ckplus"  # whatever name the source has: a copy of CK+ and CK+48 show the same people
CODES = {0: "neutral", 1: "anger", 2: "contempt", 3: "disgust", 4: "fear", 5: "happiness", 6: "sadness",
         7: "surprise"}
FRAME = re.compile(r"^(S\d+)_(\d+)_(\d+)\.\w+$", re.IGNORECASE)
LABEL = re.compile(r"^(?:(S\d+)_(\d+)_(?:(\d+)_)?)?emotion\.txt$", re.IGNORECASE)
SHORTEST, LONGEST = 6, 71  # frames of a sequence
# `3.0000000e+00` in the original, `3` in some copies. `float` alone would also accept `0_3`.
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?(e[-+]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Frame:
    """What the name of a frame tells: `S005_001_00000011.png` is frame 11 of sequence S005/001."""

    sequence: str
    number: int

    @property
    def subject(self) -> str:
        """The person."""
        return self.sequence.partition("/")[0]


def frame_of(name: str) -> Frame | None:
    """The frame that a file's name tells; None if it is no CK+ frame's."""
    match = FRAME.match(name)
    return Frame(_sequence(match), int(match[3])) if match and listing.is_image(name) else None


def folder_sequence(path: str) -> str | None:
    """The sequence of the folder S005/001 that a file lies in; None if its folder is not named so."""
    match = re.search(r"(?:^|/)(S\d+)/(\d+)/[^/]*$", path, re.IGNORECASE)
    return _sequence(match) if match else None


def in_class(path: str) -> bool:
    """Whether a file lies below a folder that is named after an expression, as the frames of CK+48 do."""
    return any(is_expression(folder) for folder in path.split("/")[:-1])


def _sequence(match: re.Match) -> str:
    """`S005/001`, however a copy writes it: s005, S005/1."""
    return f"{match[1].upper()}/{int(match[2]):03d}"


def recognise(files: Listing, data: DataConfig) -> str | None:
    """Frames and labels by their names, however nested; not the frames of CK+48, which lie in folders of classes."""
    frame = next((file.path for file in files.files if frame_of(file.name) and not in_class(file.path)), None)
    label = next((file.path for file in files.files if _is_label(file)), None)
    return f"{_home(frame)}/ and {_home(label)}/" if frame and label else None


def _is_label(file: File) -> bool:
    match = LABEL.match(file.name)
    return bool(match and (match[1] or folder_sequence(file.path)))


def _home(path: str) -> str:
    """The folder that holds the folders of the people."""
    folder = posixpath.dirname(path)
    return posixpath.basename(posixpath.dirname(posixpath.dirname(folder)) if folder_sequence(path) else folder) or "."


def read(files: Listing, data: DataConfig) -> Reading:
    """Frames of all sequences, selected by their position between neutral (0 %) and apex (100 %).

    Raises: DataError if there are no sequences, or a label file cannot be read or contradicts another.
    """
    labels, label_files = _labels(files)
    sequences, rejected = _sequences(files)
    if not sequences or not any(map(_is_label, files.files)):
        missing = "frame S005_001_00000001.png" if not sequences else "label S005_001_00000011_emotion.txt"
        raise DataError(f"{files.root}: no {missing}; CK+ has {LOOKS}")
    rows = []
    for sequence, frames in sequences.items():
        label, labelled = labels.get(sequence, (None, None))
        ends = span(list(frames), labelled)
        for number, path in frames.items():
            expression, reason = select(label, number, ends, data.ckplus)
            row = {"image": files.uri(path), "expression": expression or label, "subject": sequence.partition("/")[0],
                   "sequence": sequence, "frame": number, "position": ends.position(number)}
            (rejected if reason else rows).append(row | ({"reason": reason} if reason else {}))
    rejected += [{"image": files.uri(path), "reason": "label without its sequence"}
                 for path, sequence in label_files.items() if sequence not in sequences]
    return Reading(rows, rejected, read=frozenset(files.uri(path) for path, sequence in label_files.items()
                                                  if sequence in sequences))


# --- places in a sequence ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """The numbers of a sequence's first and last frame, neutral and apex; None where a copy does not tell."""

    first: int | None
    apex: int | None

    def position(self, number: int) -> float | None:
        """How far a frame is on the way from neutral (0) to apex (1); None: unknown."""
        if number == self.apex:
            return 1.0
        if self.first is None or self.apex is None:
            return None
        return min(1.0, (number - self.first) / (self.apex - self.first))


def span(numbers: list[int], labelled: int | None) -> Span:
    """Where a sequence begins and ends, from the numbers of the frames that are there and that of the labelled one.

    `labelled` is None without a label file. Frames that a copy lacks change nothing. What is unknown is never taken as
    neutral: the last frames of a sequence, renumbered from 1, look like a whole sequence that is shorter than all of
    CK+; and without the labelled frame nobody knows which frames a few others are.
    """
    last = max(numbers)
    if labelled is None or labelled in numbers:
        apex = last if labelled is None else labelled
    elif len(numbers) < SHORTEST:
        return Span(None, None)
    else:
        apex = max(labelled, last)
    if apex <= LONGEST:
        first = min(1, *numbers)
    else:  # the numbers count something else than the sequence's frames, so only a whole sequence shows its beginning
        first = min(numbers) if len(numbers) >= SHORTEST else apex
    return Span(first if apex - first + 1 >= SHORTEST else None, apex)


def select(label: str | None, number: int, ends: Span, options: CkPlusConfig) -> tuple[str | None, str | None]:
    """(expression, None) of frame `number` of a sequence with these ends, or (None, why it is left out)."""
    position, peak = ends.position(number), options.protocol == "peak"
    if label is None and options.unlabelled == "skip":
        return None, "sequence without label"
    if position is None or ends.apex is None:
        return None, "place in the sequence unknown: frames renumbered, or the labelled one missing"
    percent = round(100 * position, 6)
    if number == ends.first if peak else percent <= options.neutral_below and position < 1:
        return "neutral", None
    if label is None:
        return None, "sequence without label"
    if ends.apex - number < options.peak_frames if peak else percent >= options.expression_above:
        return label, None
    return None, "between neutral and expression"


# --- frames --------------------------------------------------------------------------------------------


def _sequences(files: Listing) -> tuple[dict[str, dict[int, str]], list[dict]]:
    """The paths of the frames by sequence and number, in order, and rejected rows for other images among them."""
    found, rejected = collections.defaultdict(dict), []
    for file in files.images():
        frame, place = frame_of(file.name), folder_sequence(file.path)
        if (frame is None and place is None) or in_class(file.path):
            continue
        row = {"image": files.uri(file.path)}
        if frame is None:
            rejected.append(row | {"reason": "no CK+ frame name"})
        elif place not in (None, frame.sequence):
            rejected.append(row | {"reason": f"frame of {frame.sequence} in another's folder"})
        elif first := found[frame.sequence].get(frame.number):
            rejected.append(row | {"reason": f"the same frame as {first}"})
        else:
            found[frame.sequence][frame.number] = file.path
    return {sequence: dict(sorted(frames.items())) for sequence, frames in sorted(found.items()) if frames}, rejected


# --- labels --------------------------------------------------------------------------------------------


def _labels(files: Listing) -> tuple[dict[str, tuple[str, int | None]], dict[str, str]]:
    """The emotion and the number of the labelled frame by sequence, and the sequence of each label file by its path.

    266 of the 593 sequences have none.

    Raises: DataError for a file that holds no emotion code or is of another sequence, and for files that differ.
    """
    sequences = {file.path: _labelled_sequence(files, file) for file in files.files
                 if _is_label(file) and files.has_file(file.path)}
    contents = dict(zip(sequences, files.read_many(sequences), strict=True))
    found = collections.defaultdict(list)
    for path, sequence in sequences.items():
        found[sequence].append(path)
    return {sequence: _label(files, paths, contents) for sequence, paths in found.items()}, sequences


def _labelled_sequence(files: Listing, file: File) -> str:
    match, place = LABEL.match(file.name), folder_sequence(file.path)
    named = _sequence(match) if match and match[1] else None
    if named and place not in (None, named):
        raise DataError(f"{files.uri(file.path)}: is named after {named} but lies in the folder of {place}; move or "
                        "remove it")
    return named or str(place)


def _label(files: Listing, paths: list[str], contents: dict[str, bytes]) -> tuple[str, int | None]:
    told = {path: _emotion(contents[path], files.uri(path)) for path in paths}
    if len(set(told.values())) > 1:
        said = ", ".join(f"{posixpath.basename(path)} says {emotion}" for path, emotion in told.items())
        raise DataError(f"{files.uri(posixpath.dirname(paths[0]))}: its label files contradict each other ({said}); "
                        "keep the right one")
    numbers = [int(match[3]) for path in paths if (match := LABEL.match(posixpath.basename(path))) and match[3]]
    return told[paths[0]], max(numbers, default=None)


def _emotion(content: bytes, file: str) -> str:
    """The emotion in a label file. Raises: DataError."""
    text = listing.decode(content, file).strip()
    code = float(text) if _NUMBER.fullmatch(text) else -1.0
    if code not in CODES:  # 3.0 is in, since it equals 3; 2.7 and infinity are not
        raise DataError(f"{file}: {text[:40]!r} is no emotion code; right is a whole number from 0 to 7")
    return CODES[int(code)]
