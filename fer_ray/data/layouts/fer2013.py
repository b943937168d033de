"""FER2013 (Goodfellow et al. 2013): one CSV of 48 x 48 grey faces; FER+ (Barsoum et al. 2016): ten votes for each.

The columns are `emotion,pixels,Usage`, or with blanks and in another order in `icml_face_data.csv`. `fer2013new.csv` of
FER+ has no pixels: its rows are in the order of FER2013's.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator

from fer_ray.data import listing, tables
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig

COLUMNS = ("emotion", "pixels", "Usage")  # in upper or lower case
LOOKS = "a CSV with the columns emotion, pixels, Usage"
CODES = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
VOTES = "fer2013new.csv"
# FER+ heads its columns with these; the last two are no expressions
VOTED = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
OTHER = {"unknown": "the annotators do not know", "NF": "not a face"}
SIDE = 48  # px


def recognise(files: Listing, data: DataConfig) -> str | None:
    """The tables, and whether the votes are beside them."""
    found = [posixpath.basename(file) for file in (_whole(files)[:1] or _parts(files))]
    return f"{', '.join(found)}{f' with {VOTES} of FER+' if files.find(VOTES) else ''}" if found else None


def read(files: Listing, data: DataConfig) -> Reading:
    """Every row of the tables, labelled by FER2013 or by FER+'s votes.

    Raises: DataError if a table, a column or a row is missing or wrong, or two tables say different things.
    """
    rows, read, unused = _read_tables(files)
    votes = files.find(VOTES)
    options = data.fer2013
    if options.labels == "ferplus" and votes is None:
        raise DataError(f"{files.root}: data.fer2013.labels ferplus needs {VOTES} there")
    if options.labels == "fer2013" or votes is None:
        return Reading(rows, [], read=frozenset(read), unused=unused)
    voted = list(_read_votes(files, votes, options.min_agreement))
    if len(voted) != len(rows):
        raise DataError(f"{files.uri(votes)}: {len(voted)} rows, but {', '.join(read)} has {len(rows)}; FER+ names its "
                        "images by their order")
    labelled = [row | vote for row, vote in zip(rows, voted, strict=True)]
    return Reading([r for r in labelled if "reason" not in r], [r for r in labelled if "reason" in r],
                   read=frozenset([*read, files.uri(votes)]), unused=unused)


def _read_tables(files: Listing) -> tuple[list[dict], list[str], dict[str, str]]:
    """All rows, the tables that they come from, and those that say nothing more, with the reason."""
    whole, parts = _whole(files), _parts(files)
    if not whole and not parts:
        raise DataError(f"{files.root}: not there: {LOOKS}{tables.described(files)}")
    if not whole:
        found = tables.belonging_together(parts)
        splits = {file: split or tables.split_in(posixpath.basename(file)) for file, split in found.items()}
        for file, split in splits.items():
            print(f"{files.uri(file)}: no column Usage; its rows belong to the split {split or 'that nobody knows'}, "
                  "by the file's name", flush=True)
        if "test" not in splits.values():
            print(f"{files.root}: there are no official test images of FER2013", flush=True)
        rows = [row | {"official": split} for file, split in splits.items()
                for row in read_pixel_table(files, file, CODES, COLUMNS[:2])]
        return rows, [files.uri(file) for file in found], {}
    first, *others = whole
    rows, unused = read_pixel_table(files, first, CODES), {}
    known = Counter((row["expression"], row["official"]) for row in rows)
    for file in others:
        if Counter((row["expression"], row["official"]) for row in read_pixel_table(files, file, CODES)) != known:
            raise DataError(f"{files.uri(first)} and {files.uri(file)} are different tables of FER2013; keep the right "
                            "one in the data set's folder")
        unused[files.uri(file)] = f"a copy of {posixpath.basename(first)}"
    labels = Counter(row["expression"] for row in rows)
    for file in parts:
        if not Counter(row["expression"] for row in read_pixel_table(files, file, CODES, COLUMNS[:2])) <= labels:
            raise DataError(f"{files.uri(file)}: has more images of an expression than {files.uri(first)}; keep the "
                            "right one in the data set's folder")
        unused[files.uri(file)] = f"a part of {posixpath.basename(first)}"
    return rows, [files.uri(first)], unused


def _whole(files: Listing) -> list[str]:
    """The CSVs with all columns of FER2013, at most one folder down."""
    return [file for file in _tables(files) if tables.has_columns(files, file, *COLUMNS)]


def _parts(files: Listing) -> list[str]:
    """The CSVs of FER2013's images without `Usage`, such as Kaggle's train.csv."""
    def fits(file: str) -> bool:
        if tables.has_columns(files, file, *COLUMNS) or not tables.has_columns(files, file, *COLUMNS[:2]):
            return False
        row = next((row for _, _, row in tables.rows(files, file)), {})  # other tables have words or larger images
        values = {name.casefold(): value for name, value in row.items()}
        return listing.whole_number(values.get("emotion", "").strip()) is not None and len(
            values.get("pixels", "").split()) == SIDE * SIDE

    return [file for file in _tables(files) if fits(file)]


def _tables(files: Listing) -> list[str]:
    return [file for file in files.tables(*tables.TEXT) if posixpath.basename(file).lower() != "ckextended.csv"]


def read_pixel_table(files: Listing, file: str, codes: tuple[str, ...],
                     columns: tuple[str, ...] = COLUMNS) -> list[dict]:
    """Rows of a CSV with emotion (a code), pixels and, if it is among `columns`, Usage.

    Raises: DataError if it is none, lacks a column, or has another code or Usage.
    """
    where = files.uri(file)
    name = tables.spelled(tables.header(files, file), columns, where)
    found = []
    for image, number, row in tables.rows(files, file, name["pixels"]):
        text = row[name["emotion"]].strip()
        code = listing.whole_number(text)
        if code is None or code >= len(codes):
            raise DataError(f"{where} row {number}: emotion {text[:40]!r}; right is 0 to {len(codes) - 1}")
        found.append({"image": image, "expression": codes[code], "cropped": True})
        if "Usage" in columns:
            found[-1]["official"] = _official(row[name["Usage"]].strip(), f"{where} row {number}")
    return found


def _official(usage: str, where: str) -> str:
    if (split := listing.split_named(usage)) is None:
        raise DataError(f"{where}: Usage {usage[:40]!r}; right is Training, PublicTest or PrivateTest")
    return split


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
