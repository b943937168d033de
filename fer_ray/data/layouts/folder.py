"""A folder for each class: `class/image`, or `split/class/image`."""

from __future__ import annotations

import itertools
from pathlib import Path

from fer_ray.data import listing
from fer_ray.data.manifest import DataError, canonical_expression
from fer_ray.data_config import DataConfig

LOOKS = "happiness/photo.jpg or train/happiness/photo.jpg"
NO_EXPRESSION = {"unknown", "uncertain", "none", "non-face", "noface", "other", "others"}


def recognise(root: Path, data: DataConfig) -> str | None:
    """Folders named after expressions, at the root or below folders named after splits."""
    folders = [folder for _, classes in _class_folders(root) for folder in classes]
    try:
        named = {canonical_expression(folder.name, "", data.names) for folder in folders
                 if folder.name.casefold() not in NO_EXPRESSION}
    except DataError:
        return None
    has_images = any(True for folder in folders for _ in itertools.islice(listing.images(folder), 1))
    return f"folders of {', '.join(sorted(named))}" if named and has_images else None


def read(root: Path, data: DataConfig) -> tuple[list[dict], list[dict]]:
    """Every image below the folder of its class. Raises: DataError for a folder whose name is no expression."""
    pattern = listing.compile_pattern(data.folder.subject_pattern, "data.folder.subject_pattern")
    rows, rejected = [], []
    for split, classes in _class_folders(root):
        for folder in classes:
            unlabelled = folder.name.casefold() in NO_EXPRESSION and folder.name not in data.names
            expression = None if unlabelled else canonical_expression(folder.name, str(folder), data.names)
            for path in listing.files(folder):
                row = {"image": path, "expression": expression, "official": split,
                       "subject": listing.subject_in(str(path.relative_to(folder.parent)), pattern)}
                if unlabelled:
                    rejected.append(row | {"reason": f"no expression: {folder.name}"})
                elif not listing.is_image(path):
                    rejected.append(row | {"reason": "not an image by its name"})
                else:
                    rows.append(row)
    if not rows:
        raise DataError(f"{root}: no image in a folder named after its expression, like {LOOKS}")
    return rows, rejected


def _class_folders(root: Path) -> list[tuple[str | None, list[Path]]]:
    """The folders of the classes, by the split that the folder around them is named after (None: by none)."""
    inner = listing.folders(root)
    splits = [listing.OFFICIAL.get(folder.name.casefold()) for folder in inner]
    if inner and all(splits):
        return [(split, listing.folders(folder)) for split, folder in zip(splits, inner, strict=True)]
    return [(None, inner)]
