"""A folder a class: `class/image`, or `split/class/image`."""

from __future__ import annotations

import itertools
from pathlib import Path

from fer_ray.config import DataConfig
from fer_ray.data import listing
from fer_ray.data.manifest import DataError, canonical_expression

LOOKS = "happiness/photo.jpg or train/happiness/photo.jpg"
NO_EXPRESSION = {"unknown", "uncertain", "none", "non-face", "noface", "other", "others"}


def recognise(root: Path, data: DataConfig) -> str | None:
    """Folders named after expressions, at the root or below folders named after splits."""
    try:
        places = _places(root)
        named = [canonical_expression(f.name, "", data.names) for _, place in places for f in listing.folders(place)
                 if f.name.casefold() not in NO_EXPRESSION]
    except DataError:
        return None
    images = any(True for _, place in places for _ in itertools.islice(listing.images(place), 1))
    return f"folders of {', '.join(sorted(set(named)))}" if named and images else None


def read(root: Path, data: DataConfig) -> tuple[list[dict], list[dict]]:
    """Every image below the folder of its class. Raises: DataError for a folder whose name is no expression."""
    pattern = listing.compile_pattern(data.folder.subject_pattern, "data.folder.subject_pattern")
    rows, rejected = [], []
    for split, place in _places(root):
        for folder in listing.folders(place):
            unlabelled = folder.name.casefold() in NO_EXPRESSION and folder.name not in data.names
            expression = None if unlabelled else canonical_expression(folder.name, str(folder), data.names)
            for path in listing.files(folder):
                row = {"image": path, "expression": expression, "official": split,
                       "subject": listing.subject_in(str(path.relative_to(place)), pattern)}
                if unlabelled:
                    rejected.append(row | {"reason": f"no expression: {folder.name}"})
                elif path.suffix.lower() not in listing.IMAGE_SUFFIXES:
                    rejected.append(row | {"reason": "not an image by its name"})
                else:
                    rows.append(row)
    if not rows:
        raise DataError(f"{root}: no image in a folder named after its expression, like {LOOKS}")
    return rows, rejected


def _places(root: Path) -> list[tuple[str | None, Path]]:
    """Folders that hold class folders, with the split they stand for."""
    inner = listing.folders(root)
    splits = [(listing.OFFICIAL[f.name.casefold()], f) for f in inner if f.name.casefold() in listing.OFFICIAL]
    return splits if splits and len(splits) == len(inner) else [(None, root)]
