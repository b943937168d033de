"""A folder for each class: `class/image`, with folders of splits or of people around: `train/ann/fear/1.jpg`."""

from __future__ import annotations

import collections
import os
import posixpath
import re
from dataclasses import dataclass

from fer_ray.data import listing
from fer_ray.data.image_names import MADE, made_from_others
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression, is_expression, said_by
from fer_ray.data_config import DataConfig

LOOKS = "happiness/photo.jpg, train/happiness/photo.jpg or ann/happiness/photo.jpg"
NO_EXPRESSION = {"unknown", "uncertain", "none", "non-face", "noface", "other", "others"}
FEWEST_PEOPLE = 3  # fewer cannot be split into train, val and test
# Folders in the classes that are no people.
_PART = re.compile(r"(?<![a-z])(parts?|batch|folds?|chunk|group|session|(fe)?male|(wo)?m[ae]n|boys?|girls?|child(ren)?|"
                   r"adults?|left|right|front|profile|view|cam|camera|light|level|intensity|video|clip|seq|sequence|"
                   r"frames?|others?|misc|new|old)(?![a-z])|^\W*\d+\W*$", re.IGNORECASE)
# Folders around the classes that are data sets of their own, and no people.
_SET = re.compile(r"data|sets?(?![a-z])|images?|photos?|pictures?|faces?|aug|crop|raw|20[012]\d|"
                  r"^(fer|ferplus|raf|raf-?db|affectnet|ck|ck\+|ck\+?48|jaffe|sfew|kdef|expw)$", re.IGNORECASE)


@dataclass(frozen=True)
class Arrangement:
    """How the folders of a data set are arranged: `classes` has the folder of the class of each folder of images."""

    classes: dict[str, str]
    unlabelled: frozenset[str]  # folders of a split with images directly in them
    people: dict[str, str]  # the person of each folder of images; empty: none, or told by a pattern
    separate: bool  # the folders in the root are data sets of their own


def recognise(files: Listing, data: DataConfig) -> str | None:
    """Folders named after expressions, or numbered ones, below folders of splits and of people."""
    found = arrange(files, data)
    folders = set(found.classes.values())
    named = {_expression(folder, "", data.names) for folder in folders if _is_class(folder, data.names)}
    named.discard(None)
    numbers = {listing.whole_number(posixpath.basename(folder)) for folder in folders}
    if folders == found.classes.keys() and numbers >= set(range(1, 6)) and numbers <= set(range(9)):
        return "numbered folders"  # `read` asks what the numbers mean
    if found.separate or not named or 2 * sum(_is_class(folder, data.names) for folder in folders) < len(folders):
        return None
    people = f", of {len(set(found.people.values()))} people by their folders" if found.people else ""
    return f"folders of {', '.join(sorted(map(str, named)))}{people}"


def read(files: Listing, data: DataConfig) -> Reading:
    """Every image below the folder of its class. Raises: DataError for a folder whose name is no expression."""
    pattern = listing.compile_pattern(data.folder.subject_pattern, "data.folder.subject_pattern")
    found = arrange(files, data)
    expressions = {folder: _expression(folder, files.uri(folder), data.names) for folder in found.classes.values()}
    made, rows, rejected = made_from_others(files.images()), [], []
    for file in files.files:
        folder = posixpath.dirname(file.path)
        row = {"image": files.uri(file.path), "official": listing.official_split(folder)}
        if (place := found.classes.get(folder)) is None:
            if folder in found.unlabelled and listing.is_image(file.path):
                rejected.append(row | {"reason": "not in the folder of a class"})
            continue
        row |= {"expression": expressions[place],
                "subject": listing.subject_in(file.path, pattern) if pattern else found.people.get(folder)}
        if expressions[place] is None:
            rejected.append(row | {"reason": f"no expression: {posixpath.basename(place)}"})
        elif not listing.is_image(file.path):
            rejected.append(row | {"reason": "not an image by its name"})
        elif file.path in made:
            rejected.append(row | {"reason": MADE})
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"{files.root}: no image in a folder named after its expression, like {LOOKS}")
    return Reading(rows, rejected)


def _expression(folder: str, where: str, names: dict[str, str]) -> str | None:
    """The expression that a folder is named after; None if it says that there is none. Raises: DataError."""
    name = posixpath.basename(folder)
    return None if _is_none(name, names) else canonical_expression(name, where, names)


def _is_none(name: str, names: dict[str, str]) -> bool:
    return said_by(names, name).casefold() in NO_EXPRESSION


def _is_class(folder: str, names: dict[str, str]) -> bool:
    name = posixpath.basename(folder)
    return _is_none(name, names) or is_expression(name, names)


# --- how the folders are arranged ----------------------------------------------------------------------


def arrange(files: Listing, data: DataConfig) -> Arrangement:
    """Find the folder of the class of each image, and what the folders around it are.

    Raises: DataError if several folders around the classes may be the people.
    """
    with_images = collections.Counter(posixpath.dirname(file.path) for file in files.images())
    level = _level(with_images, data.names)
    parts = {folder: folder.split("/") for folder in {posixpath.dirname(file.path) for file in files.files}}
    depth = {folder: _depth(names, level, data.names) for folder, names in parts.items()}
    classes = {folder: "/".join(parts[folder][: found + 1]) for folder, found in depth.items() if found is not None}
    around = {posixpath.dirname(place) for place in classes.values()}
    unlabelled = set()
    for folder in with_images.keys() - classes.keys():
        beside = next((n for n in range(len(parts[folder])) if "/".join(parts[folder][:n]) in around
                       and not listing.split_named(parts[folder][n])), None)
        if folder and beside is not None:  # beside folders of classes: its name is wrong, which `read` says
            classes[folder] = "/".join(parts[folder][: beside + 1])
        elif folder and all(map(listing.split_named, parts[folder])):
            unlabelled.add(folder)
    if not classes:
        classes = {folder: place for folder in with_images if (place := _outermost(parts[folder]))}
    places = {folder: classes[folder] for folder in with_images if folder in classes}
    people, separate = ({}, False) if data.folder.subject_pattern else _people(set(places.values()), files.root)
    people = {folder: people[place] for folder, place in places.items()} if people else {}
    if not people and not data.folder.subject_pattern:
        people = _people_inside(places)
    return Arrangement(classes, frozenset(unlabelled), people, separate)


def _level(with_images: collections.Counter[str], names: dict[str, str]) -> int | None:
    """How deep most folders of classes lie. A person called Su is no surprise if the classes lie below the people."""
    votes = collections.Counter()
    for folder, count in with_images.items():
        for depth, part in enumerate(folder.split("/")):
            if _is_class(part, names):
                votes[depth] += count
    return min(votes, key=lambda depth: (-votes[depth], depth), default=None)


def _depth(parts: list[str], level: int | None, names: dict[str, str]) -> int | None:
    """How deep the class of a folder lies: at `level`, or at the first folder that is named after an expression."""
    if level is not None and level < len(parts) and _is_class(parts[level], names):
        return level
    return next((depth for depth, part in enumerate(parts) if _is_class(part, names)), None)


def _outermost(parts: list[str]) -> str | None:
    """The highest folder that is no split: where no name is an expression, that of a class whose name is wrong."""
    depth = next((n for n, part in enumerate(parts) if part and not listing.split_named(part)), None)
    return None if depth is None else "/".join(parts[: depth + 1])


def _people(places: set[str], root: str) -> tuple[dict[str, str], bool]:
    """The person of each folder of a class, after the folder around it, and whether these are data sets instead."""
    above = {place: tuple(part for part in place.split("/")[:-1] if not listing.split_named(part))
             for place in places}
    common = len(os.path.commonprefix(sorted(above.values()))) if above else 0
    around = {names[common:] for names in above.values()}
    if len(around) < 2 or () in around:
        return {}, False
    splits_inside = any(listing.official_split("/".join(place.split("/")[common + 1:-1])) for place in places)
    if len(around) < FEWEST_PEOPLE or splits_inside or any(_SET.search(names[-1]) for names in around):
        return {}, common == 0
    if any(len(names) > 1 for names in around):
        some = "/".join(min(around, key=len)), "/".join(max(around, key=len))
        raise DataError(f"{root}: which of the folders around the classes are the people, as in {some[0]} and "
                        f"{some[1]}? Say it by data.folder.subject_pattern, or give the data sets by data.sources")
    return {place: names[-1].casefold() for place, names in above.items()}, False


def _people_inside(places: dict[str, str]) -> dict[str, str]:
    """The person of each folder of images, after the folder in that of the class: `happy/ann/1.jpg`.

    Only where it is evident: all images lie in such folders, each name is in several classes, and none is that of a
    part of a data set or a number, which may count videos.

    Args:
        places: the folder of the class of each folder of images.
    """
    inside = {folder: folder[len(place) + 1:].split("/")[0].casefold() for folder, place in places.items()}
    classes_of = collections.defaultdict(set)
    for folder, name in inside.items():
        classes_of[name].add(posixpath.basename(places[folder]).casefold())
    evident = len(classes_of) >= FEWEST_PEOPLE and all(
        name and len(classes) > 1 and not _SET.search(name) and not _PART.search(name) and not listing.split_named(name)
        for name, classes in classes_of.items())
    return inside if evident else {}
