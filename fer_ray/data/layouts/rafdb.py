"""RAF-DB, basic emotions (Li, Deng, Du 2017): `list_patition_label.txt` (so spelled) beside `Image/`.

Also the copies with numbered folders, `DATASET/train/4/train_00123_aligned.jpg`, or with tables of numbers,
`train_labels.csv`. The set names no people.
"""

from __future__ import annotations

import collections
import itertools
import posixpath
import re
from collections.abc import Iterator, Mapping

from fer_ray.data import listing, tables
from fer_ray.data.image_names import MADE
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import File, Listing
from fer_ray.data.manifest import DataError, canonical_expression, is_expression
from fer_ray.data_config import DataConfig

LOOKS = "list_patition_label.txt with Image/aligned/train_00001_aligned.jpg"
LISTS = ("list_patition_label.txt", "list_partition_label.txt")
CODES = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happiness", "5": "sadness", "6": "anger", "7": "neutral"}
# Pictures of each class in the whole set, in the order of CODES: 12,271 of training and 3,068 of test.
SIZES = (1290 + 329, 281 + 74, 717 + 160, 4772 + 1185, 1982 + 478, 705 + 162, 2524 + 680)
# `rest` is what programs that multiply the pictures add to a name: train_00123_aligned_aug1.jpg.
NAME = re.compile(r"^(?P<id>(?P<split>train|test)_\d+)(?P<aligned>_aligned)?(?P<rest>.*)\.\w+$", re.IGNORECASE)
# Two orders of the classes that are in use, RAF-DB's and FER2013's, differ in 8 % of the pictures: half of that, in a
# copy of some hundred pictures or more, tells which one it is.
NEAR, ENOUGH = 0.04, 300


def recognise(files: Listing, data: DataConfig) -> str | None:
    """The list of labels, or its pictures in numbered folders or in tables of numbers."""
    if lists := _lists(files):
        return posixpath.basename(lists[0])
    if any(map(_number_of, files.images())):
        return "train_*_aligned.jpg in numbered folders"
    return ", ".join(map(posixpath.basename, _tables(files))) or None


def read(files: Listing, data: DataConfig) -> Reading:
    """Aligned faces where they are there, else the original photographs.

    Pictures that were made from others of the set (`_aug1`) are rejected: by another split than the official one they
    could be in another split than what they were made from.

    Raises: DataError if there is no list, one of its lines is wrong, or folders do not tell which class they are.
    """
    lists = _lists(files)
    if lists or any(map(_number_of, files.images())):
        readings = [_read_list(files, path) for path in lists] or [_read_numbered(files, data.names)]
    else:
        lists = _tables(files)
        readings = _read_tables(files, lists, data.names)
    rows = [row for reading in readings for row in reading.rows]
    _reject_second_labels(rows)
    return Reading([row for row in rows if "reason" not in row],
                   [row for reading in readings for row in reading.rejected] + [row for row in rows if "reason" in row],
                   frozenset(map(files.uri, lists)),
                   {path: why for reading in readings for path, why in reading.unused.items()})


def _picture(path: str) -> re.Match | None:
    """What the name of an image tells: `id`, `split`, `aligned`, `rest`; None if it is no RAF-DB name."""
    return NAME.match(posixpath.basename(path)) if listing.is_image(path) else None


def _reject_second_labels(rows: list[dict]) -> None:
    """Give all rows of a picture that is there under two labels the reason, and those after the first of one label."""
    by_picture = collections.defaultdict(list)
    for row in rows:
        by_picture[_id_of(row["image"])].append(row)
    for found in by_picture.values():
        labels = sorted({row["expression"] for row in found})
        for row in found if len(labels) > 1 else found[1:]:
            row["reason"] = f"conflicting labels: {', '.join(labels)}" if len(labels) > 1 else "listed twice"


def _id_of(path: str) -> str:
    match = _picture(path)
    return match["id"].casefold() if match else path


# --- the list of labels --------------------------------------------------------------------------------


def _lists(files: Listing) -> list[str]:
    return [file.path for file in files.files if file.name.casefold() in LISTS and files.has_file(file.path)]


def _read_list(files: Listing, path: str) -> Reading:
    """The images below the folder around the list's, which are those of its data set."""
    where = files.uri(path)
    lines = [_line(line, f"{where} line {number}")
             for number, line in enumerate(files.read_text(path).splitlines(), start=1) if line.strip()]
    return _labelled(files, posixpath.dirname(posixpath.dirname(path)), [(name, CODES[code]) for name, code in lines])


def _labelled(files: Listing, place: str, labels: list[tuple[str, str]]) -> Reading:
    """The images below the folder `place`, by the names and expressions of a list."""
    pictures = collections.defaultdict(list)
    for file in files.images():
        if (not place or file.path.startswith(place + "/")) and (match := _picture(file.path)):
            pictures[match["id"].casefold()].append((match["rest"] != "", not _is_aligned(file.path), file.path))
    rows, rejected, unused = [], [], {}
    for name, expression in labels:
        row = {"expression": expression, "official": posixpath.basename(name).partition("_")[0].casefold()}
        found = sorted(pictures.get(_id_of(name), []))
        if not found or found[0][0]:
            missing = posixpath.join(place, name)
            rejected.append(row | {"image": files.uri(missing), "reason": "file not found"})
        else:
            used = found[0][2]
            rows.append(row | {"image": files.uri(used), "cropped": _is_aligned(used)})
            unused |= {files.uri(other): "another file of the same picture is used" for copy, _, other in found[1:]
                       if not copy}
        rejected += [row | {"image": files.uri(other), "reason": MADE}
                     for copy, _, other in found if copy]
    return Reading(rows, rejected, unused=unused)


def _line(line: str, where: str) -> tuple[str, str]:
    """Name and code of a line of the list. Raises: DataError."""
    name, code = (*line.split(), "", "")[:2]
    if not _picture(name) or code not in CODES or len(line.split()) != 2:
        compound = listing.whole_number(code) in range(8, 12)
        hint = ("; 8 and more are RAF-DB's compound emotions, which are none of the eight: give the folder of the "
                "basic ones") if compound else ""
        raise DataError(f"{where}: {line.strip()[:60]!r}; right is like 'train_00001.jpg 5', 1 to 7{hint}")
    return name, code


def _is_aligned(path: str) -> bool:
    return "aligned" in path.casefold().split("/")[:-1] or bool((match := _picture(path)) and match["aligned"])


# --- tables of numbers ---------------------------------------------------------------------------------


def _tables(files: Listing) -> list[str]:
    """CSVs with a name of RAF-DB and a number in each row, whose pictures lie in no folder of a class."""
    if not (pictures := [file for file in files.images() if _picture(file.path)]) or any(
            is_expression(posixpath.basename(posixpath.dirname(file.path))) for file in pictures):
        return []
    found = [file for file in files.tables(*tables.TEXT) if tables.has_columns(files, file, "image", "expression")]
    return [file for file in found if all(map(_is_numbered, itertools.islice(_table_rows(files, file), 5)))]


def _table_rows(files: Listing, file: str) -> Iterator[tuple[str, str]]:
    """Name and label of each row."""
    column = tables.spelled(tables.header(files, file), ("image", "expression"), files.uri(file))
    for _, _, row in tables.rows(files, file):
        yield row[column["image"]].strip().replace("\\", "/"), row[column["expression"]].strip()


def _is_numbered(row: tuple[str, str]) -> bool:
    return bool(_picture(row[0])) and listing.whole_number(row[1]) is not None


def _read_tables(files: Listing, found: list[str], names: Mapping[str, str]) -> list[Reading]:
    if not found:
        raise DataError(f"{files.root}: no RAF-DB; it has {LOOKS}{tables.described(files)}")
    labels = {file: list(_table_rows(files, file)) for file in found}
    for file, rows in labels.items():
        if wrong := next((row for row in rows if not _is_numbered(row)), None):
            raise DataError(f"{files.uri(file)}: {', '.join(wrong)[:60]!r}; right is like 'train_00001_aligned.jpg, 5'")
    numbers = {label: str(listing.whole_number(label)) for rows in labels.values() for _, label in rows}
    counts = collections.Counter(numbers[label] for rows in labels.values() for _, label in rows)
    classes = numbering(counts, names, f"{files.root}: {', '.join(map(posixpath.basename, found))}", "number")
    return [_labelled(files, posixpath.dirname(file), [(name, classes[numbers[label]]) for name, label in rows])
            for file, rows in labels.items()]


# --- numbered folders ----------------------------------------------------------------------------------


def _number_of(file: File) -> str | None:
    """The name of the numbered folder that a picture of RAF-DB lies in."""
    folder = posixpath.basename(posixpath.dirname(file.path))
    return folder if _picture(file.path) and listing.whole_number(folder) is not None else None


def _read_numbered(files: Listing, names: Mapping[str, str]) -> Reading:
    folders = {posixpath.dirname(file.path): number for file in files.images() if (number := _number_of(file))}
    images = [file for file in files.images() if posixpath.dirname(file.path) in folders]
    made = _made_from_others(images)
    counts = collections.Counter(folders[posixpath.dirname(file.path)] for file in images
                                 if _picture(file.path) and file.path not in made)
    classes = numbering({number: counts[number] for number in folders.values()}, names, files.root)
    rows, rejected = [], []
    for file in images:
        folder, match = posixpath.dirname(file.path), _picture(file.path)
        split = listing.official_split(folder) or (match["split"].casefold() if match else None)
        row = {"image": files.uri(file.path), "expression": classes[folders[folder]], "official": split,
               "cropped": _is_aligned(file.path)}
        if match is None:
            rejected.append(row | {"reason": "no RAF-DB name"})
        elif file.path in made:
            rejected.append(row | {"reason": MADE})
        else:
            rows.append(row)
    return Reading(rows, rejected, unused=_compared(files, {_id_of(row["image"]): row["expression"] for row in rows}))


def _compared(files: Listing, known: Mapping[str, str]) -> dict[str, str]:
    """Tables beside numbered folders, which say the same. Raises: DataError if one says something else."""
    unused = {}
    for file in _tables(files):
        for name, label in _table_rows(files, file):
            said = CODES.get(str(listing.whole_number(label)))
            if (folder := known.get(_id_of(name))) not in (None, said):
                raise DataError(f"{files.uri(file)}: {name} has the label {label!r} and lies in the folder of "
                                f"{folder}; keep the table or the folders, whichever is right")
        unused[files.uri(file)] = "the folders say the same"
    return unused


def _made_from_others(images: list[File]) -> set[str]:
    """Paths of the images whose name is another's with something added.

    One of them stands for an original that is not there.
    """
    by_picture = collections.defaultdict(list)
    for file in images:
        if match := _picture(file.path):
            by_picture[match["id"].casefold()].append((match["rest"], file.path))
    return {path for found in by_picture.values() for rest, path in found if rest and (rest, path) != min(found)}


def numbering(counts: Mapping[str, int], names: Mapping[str, str], where: str,
              what: str = "numbered folder") -> dict[str, str]:
    """The expression of each numbered folder, or of each number of a table.

    Folders 1 to 7 are RAF-DB's own codes; copies with 0 to 6 may count from 0, or follow any other list. What tells is
    how many pictures of each class the set has.

    Args:
        counts: pictures by the name of the folder or the number, of training and test together.
        names: the user's own names of folders.
        where: the data set's folder, for the message.
        what: what is numbered, for the message.

    Raises: DataError if the numbers and the counts do not tell, or contradict `names`.
    """
    numbers = {name: int(name) for name in counts}
    named = {name: canonical_expression(name, where, dict(names)) for name in counts} if counts.keys() <= names.keys() \
        else {}
    first = 0 if 0 in numbers.values() else 1
    own = {name: CODES.get(str(number + 1 - first)) for name, number in numbers.items()}
    told = ", ".join(f"{name}: {counts[name]}" for name in sorted(counts, key=numbers.__getitem__))
    in_order = [sum(counts[name] for name in counts if own[name] == expression) for expression in CODES.values()]
    fits = None not in own.values() and sum(in_order) >= ENOUGH and _distance(in_order, SIZES) <= NEAR
    if named:
        if fits and named != own:
            raise DataError(f"{where}: data.names says other expressions than the numbers of pictures ({told}), which "
                            f"are those of RAF-DB with {_shown(own)}; correct or remove data.names")
        return named
    other_order = (sum(in_order) >= ENOUGH and not fits and _distance(sorted(in_order), sorted(SIZES)) <= NEAR
                   and _distance(in_order, SIZES) > 2 * NEAR)
    if fits or (first == 1 and 7 in numbers.values() and None not in own.values() and not other_order):
        return {name: str(expression) for name, expression in own.items()}
    raise DataError(f"{where}: which expression each {what} stands for cannot be told. RAF-DB's codes are 1 to 7, "
                    f"and the numbers of pictures ({told}) are not those of its classes in this order; say it by "
                    'data.names, such as {"0": "surprise", "1": "fear", "2": "disgust", ...}')


def _distance(counts: list[int], sizes: tuple[int, ...] | list[int]) -> float:
    """Part of the pictures that would have to be in another class for the counts to have the proportions of `sizes`."""
    return sum(abs(count / sum(counts) - size / sum(sizes)) for count, size in zip(counts, sizes, strict=True)) / 2


def _shown(classes: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {expression}" for name, expression in sorted(classes.items()))
