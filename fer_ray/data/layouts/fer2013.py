"""FER2013 (Goodfellow et al. 2013): one CSV of 48 x 48 grey faces; FER+ (Barsoum et al. 2016): ten votes for each.

The columns are `emotion,pixels,Usage`, or with blanks and in another order in `icml_face_data.csv`. `fer2013new.csv` of
FER+ has no pixels: its rows are in the order of FER2013's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fer_ray.data import listing, tables
from fer_ray.data.manifest import DataError
from fer_ray.data_config import Fer2013Config

COLUMNS = ("emotion", "pixels", "usage")  # in lower case: copies spell them differently
LOOKS = "a CSV with the columns emotion, pixels, Usage"
CODES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
VOTES = "fer2013new.csv"
# FER+ heads its columns with these; the last two are no expressions
VOTED = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
OTHER = {"unknown": "the annotators do not know", "NF": "not a face"}


def recognise(root: Path) -> str | None:
    """The table, and whether the votes are beside it."""
    file = find_table(root)
    votes = listing.find(root, VOTES)
    return f"{file.name}{f' with {votes.name} of FER+' if votes else ''}" if file else None


def read(root: Path, options: Fer2013Config) -> tuple[list[dict], list[dict]]:
    """Every row of the table, labelled by FER2013 or by FER+'s votes.

    Raises: DataError if a table, a column or a row is missing or wrong.
    """
    file = find_table(root)
    if file is None:
        raise DataError(f"{root}: not there: {LOOKS}{tables.described(root)}")
    rows = read_pixel_table(file, CODES)
    votes = listing.find(root, VOTES)
    if options.labels == "ferplus" and votes is None:
        raise DataError(f"{root}: data.fer2013.labels ferplus needs {VOTES} there")
    if options.labels == "fer2013" or votes is None:
        return rows, []
    voted = list(_read_votes(votes, options.min_agreement))
    if len(voted) != len(rows):
        raise DataError(f"{votes}: {len(voted)} rows, but {file} has {len(rows)}; FER+ names its images by their order")
    labelled = [row | vote for row, vote in zip(rows, voted, strict=True)]
    return [r for r in labelled if "reason" not in r], [r for r in labelled if "reason" in r]


def find_table(root: Path) -> Path | None:
    """The CSV with the columns of FER2013, at most one folder down."""
    for file in listing.tables(root, ".csv"):
        if file.name != "ckextended.csv" and tables.has_columns(file, *COLUMNS):
            return file
    return None


def read_pixel_table(file: Path, codes: tuple[str, ...]) -> list[dict]:
    """Rows of a CSV with emotion (a code), pixels and Usage.

    Raises: DataError if it is none, lacks a column, or has another code or Usage.
    """
    header = tables.header(file)
    spelled = {name.lower(): name for name in header}
    if missing := [name for name in COLUMNS if name not in spelled]:
        raise DataError(f"{file}: no column {', '.join(missing)}; right is {LOOKS}")
    emotion, pixels, usage = (spelled[name] for name in COLUMNS)
    found = []
    for place, number, row in tables.rows(file):
        text, split = row[emotion].strip(), row[usage].strip()
        code = listing.whole_number(text)
        if code is None or code >= len(codes):
            raise DataError(f"{file} row {number}: emotion {text[:40]!r}; right is 0 to {len(codes) - 1}")
        if split.lower() not in listing.OFFICIAL:
            raise DataError(f"{file} row {number}: Usage {split[:40]!r}; right is Training, PublicTest or PrivateTest")
        found.append({"image": f"{place},column={header.index(pixels)}", "expression": codes[code],
                      "official": listing.OFFICIAL[split.lower()], "cropped": True})
    return found


def _read_votes(file: Path, min_agreement: float) -> Iterator[dict]:
    """What FER+ says of each row: `expression`, or `reason`. Raises: DataError if votes are no whole numbers."""
    for _, number, row in tables.rows(file):
        counts = {name: _votes(row.get(name, "").strip(), f"{file} row {number}: votes for {name}")
                  for name in (*VOTED, *OTHER)}
        most = max(counts.values())
        winners = [name for name, count in counts.items() if count == most]
        if not row.get("Image name"):
            yield {"reason": "FER+ removed the image"}
        elif winners[0] in OTHER and len(winners) == 1:
            yield {"reason": f"FER+: {OTHER[winners[0]]}"}
        elif len(winners) > 1:
            yield {"reason": f"FER+: tie between {' and '.join(winners)}"}
        elif most < min_agreement * sum(counts.values()):
            yield {"reason": f"FER+: less than {min_agreement:.0%} of the votes agree"}
        else:
            yield {"expression": winners[0]}


def _votes(text: str, where: str) -> int:
    if (number := listing.whole_number(text)) is None:
        raise DataError(f"{where}: {text[:40]!r}; right is a whole number")
    return number
