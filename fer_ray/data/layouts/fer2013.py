"""FER2013 (Goodfellow et al. 2013): one CSV of 48 x 48 grey faces; FER+ (Barsoum et al. 2016): ten votes for each.

The columns are `emotion,pixels,Usage`, or with blanks and in another order in `icml_face_data.csv`. `fer2013new.csv` of
FER+ has no pixels: its rows stand in the order of FER2013's.
"""

from __future__ import annotations

import csv
from pathlib import Path

from fer_ray.config import Fer2013Config
from fer_ray.data import listing, pixels
from fer_ray.data.manifest import DataError

LOOKS = "a CSV with the columns emotion, pixels, Usage"
CODES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
VOTES = "fer2013new.csv"
# FER+ heads its columns with these; the last two are no expressions
VOTED = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
OTHER = {"unknown": "the annotators do not know", "NF": "not a face"}


def recognise(root: Path) -> str | None:
    """The table, and whether the votes lie beside it."""
    file = find_table(root)
    votes = listing.find(root, VOTES)
    return f"{file.name}{f' with {votes.name} of FER+' if votes else ''}" if file else None


def read(root: Path, options: Fer2013Config) -> tuple[list[dict], list[dict]]:
    """Every row of the table, labelled by FER2013 or by FER+'s votes.

    Raises: DataError if a table, a column or a row is missing or wrong.
    """
    file = find_table(root)
    if file is None:
        raise DataError(f"{root}: no {LOOKS}")
    rows = read_pixel_table(file, CODES)
    votes = listing.find(root, VOTES)
    if options.labels == "ferplus" and votes is None:
        raise DataError(f"{root}: data.fer2013.labels ferplus needs {VOTES} there")
    if options.labels == "fer2013" or votes is None:
        return rows, []
    voted = list(_votes(votes, options.min_agreement))
    if len(voted) != len(rows):
        raise DataError(f"{votes}: {len(voted)} rows, but {file} has {len(rows)}; FER+ names its images by their order")
    labelled = [row | vote for row, vote in zip(rows, voted, strict=True)]
    return [r for r in labelled if "reason" not in r], [r for r in labelled if "reason" in r]


def find_table(root: Path) -> Path | None:
    """The CSV with the columns of FER2013, at most one folder down."""
    for file in listing.tables(root, ".csv"):
        if file.name != "ckextended.csv" and is_pixel_table(file):
            return file
    return None


def is_pixel_table(file: Path) -> bool:
    """Whether the CSV's first line names emotion, pixels and Usage."""
    with open(file, errors="replace") as stream:
        return {"emotion", "pixels", "usage"} <= {c.strip().lower() for c in stream.readline().split(",")}


def read_pixel_table(file: Path, codes: tuple[str, ...]) -> list[dict]:
    """Rows of a CSV with emotion (a code), pixels and Usage. Raises: DataError for another code or Usage."""
    with open(file, errors="replace") as stream:
        header = [c.strip() for c in stream.readline().split(",")]
    column, rows = header.index("pixels"), []
    try:
        for image, number, row in pixels.csv_rows(file):
            code, usage = row.get("emotion", "").strip(), row.get("Usage", "").strip()
            if not code.isdecimal() or int(code) >= len(codes):
                raise DataError(f"{file} row {number}: emotion {code!r}; right is 0 to {len(codes) - 1}")
            if usage.lower() not in listing.OFFICIAL:
                raise DataError(f"{file} row {number}: Usage {usage!r}; right is Training, PublicTest or PrivateTest")
            rows.append({"image": f"{image},column={column}", "expression": codes[int(code)],
                         "official": listing.OFFICIAL[usage.lower()], "cropped": True})
    except ValueError as error:
        raise DataError(str(error)) from None
    return rows


def _votes(file: Path, min_agreement: float):
    """What FER+ says of each row: `expression`, or `reason`."""
    with open(file, newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            try:
                counts = {name: int(row[name]) for name in (*VOTED, *OTHER)}
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{file} row {number}: no whole number of votes ({error})") from None
            top = max(counts.values())
            winners = [name for name, count in counts.items() if count == top]
            total = sum(counts.values())
            if not row.get("Image name"):
                yield {"reason": "FER+ removed the image"}
            elif winners[0] in OTHER and len(winners) == 1:
                yield {"reason": f"FER+: {OTHER[winners[0]]}"}
            elif len(winners) > 1:
                yield {"reason": f"FER+: tie between {' and '.join(winners)}"}
            elif top < min_agreement * total:
                yield {"reason": f"FER+: less than {min_agreement:.0%} of the votes agree"}
            else:
                yield {"expression": winners[0]}
