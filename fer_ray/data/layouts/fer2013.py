"""FER2013 (Goodfellow et al. 2013): one CSV of 48 x 48 grey faces; FER+ (Barsoum et al. 2016): ten votes for each.

The columns are `emotion,pixels,Usage`, or with blanks and in another order in `icml_face_data.csv`. `fer2013new.csv` of
FER+ has no pixels: its rows are in the order of FER2013's.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from fer_ray.data import listing, tables
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig

COLUMNS = ("emotion", "pixels", "usage")  # in lower case: copies spell them differently
LOOKS = "a CSV with the columns emotion, pixels, Usage"
CODES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
VOTES = "fer2013new.csv"
# FER+ heads its columns with these; the last two are no expressions
VOTED = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
OTHER = {"unknown": "the annotators do not know", "NF": "not a face"}


def recognise(files: Listing, data: DataConfig) -> str | None:
    """The table, and whether the votes are beside it."""
    file = find_table(files)
    return f"{posixpath.basename(file)}{f' with {VOTES} of FER+' if files.find(VOTES) else ''}" if file else None


def read(files: Listing, data: DataConfig) -> Reading:
    """Every row of the table, labelled by FER2013 or by FER+'s votes.

    Raises: DataError if a table, a column or a row is missing or wrong.
    """
    file = find_table(files)
    if file is None:
        raise DataError(f"{files.root}: not there: {LOOKS}{tables.described(files)}")
    rows = read_pixel_table(files, file, CODES)
    votes = files.find(VOTES)
    options = data.fer2013
    if options.labels == "ferplus" and votes is None:
        raise DataError(f"{files.root}: data.fer2013.labels ferplus needs {VOTES} there")
    if options.labels == "fer2013" or votes is None:
        return Reading(rows, [], read=frozenset([files.uri(file)]))
    voted = list(_read_votes(files, votes, options.min_agreement))
    if len(voted) != len(rows):
        raise DataError(f"{files.uri(votes)}: {len(voted)} rows, but {file} has {len(rows)}; FER+ names its images by "
                        "their order")
    labelled = [row | vote for row, vote in zip(rows, voted, strict=True)]
    return Reading([r for r in labelled if "reason" not in r], [r for r in labelled if "reason" in r],
                   read=frozenset([files.uri(file), files.uri(votes)]))


def find_table(files: Listing) -> str | None:
    """The CSV with the columns of FER2013, at most one folder down."""
    for file in files.tables(".csv"):
        if posixpath.basename(file) != "ckextended.csv" and tables.has_columns(files, file, *COLUMNS):
            return file
    return None


def read_pixel_table(files: Listing, file: str, codes: tuple[str, ...]) -> list[dict]:
    """Rows of a CSV with emotion (a code), pixels and Usage.

    Raises: DataError if it is none, lacks a column, or has another code or Usage.
    """
    header, where = tables.header(files, file), files.uri(file)
    spelled = {name.lower(): name for name in header}
    if missing := [name for name in COLUMNS if name not in spelled]:
        raise DataError(f"{where}: no column {', '.join(missing)}; right is {LOOKS}")
    emotion, pixels, usage = (spelled[name] for name in COLUMNS)
    found = []
    for place, number, row in tables.rows(files, file):
        text, split = row[emotion].strip(), row[usage].strip()
        code = listing.whole_number(text)
        if code is None or code >= len(codes):
            raise DataError(f"{where} row {number}: emotion {text[:40]!r}; right is 0 to {len(codes) - 1}")
        if split.lower() not in listing.OFFICIAL:
            raise DataError(f"{where} row {number}: Usage {split[:40]!r}; right is Training, PublicTest or PrivateTest")
        found.append({"image": f"{place},column={header.index(pixels)}", "expression": codes[code],
                      "official": listing.OFFICIAL[split.lower()], "cropped": True})
    return found


def _read_votes(files: Listing, file: str, min_agreement: float) -> Iterator[dict]:
    """What FER+ says of each row: `expression`, or `reason`. Raises: DataError if votes are no whole numbers."""
    for _, number, row in tables.rows(files, file):
        counts = {name: _votes(row.get(name, "").strip(), f"{files.uri(file)} row {number}: votes for {name}")
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
