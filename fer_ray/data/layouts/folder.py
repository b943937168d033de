"""A folder for each class: `class/image`, or `split/class/image`."""

from __future__ import annotations

from fer_ray.data import listing
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, canonical_expression
from fer_ray.data_config import DataConfig

LOOKS = "happiness/photo.jpg or train/happiness/photo.jpg"
NO_EXPRESSION = {"unknown", "uncertain", "none", "non-face", "noface", "other", "others"}


def recognise(files: Listing, data: DataConfig) -> str | None:
    """Folders named after expressions, at the root or below folders named after splits."""
    folders = [folder for _, classes in _class_folders(files) for folder in classes]
    try:
        named = {canonical_expression(folder.name, "", data.names) for folder in folders
                 if folder.name.casefold() not in NO_EXPRESSION}
    except DataError:
        return None
    has_images = any(folder.images() for folder in folders)
    return f"folders of {', '.join(sorted(named))}" if named and has_images else None


def read(files: Listing, data: DataConfig) -> Reading:
    """Every image below the folder of its class. Raises: DataError for a folder whose name is no expression."""
    pattern = listing.compile_pattern(data.folder.subject_pattern, "data.folder.subject_pattern")
    rows, rejected = [], []
    for split, classes in _class_folders(files):
        for folder in classes:
            unlabelled = folder.name.casefold() in NO_EXPRESSION and folder.name not in data.names
            expression = None if unlabelled else canonical_expression(folder.name, folder.uri(), data.names)
            for file in folder.files:
                row = {"image": folder.uri(file.path), "expression": expression, "official": split,
                       "subject": listing.subject_in(f"{folder.name}/{file.path}", pattern)}
                if unlabelled:
                    rejected.append(row | {"reason": f"no expression: {folder.name}"})
                elif not listing.is_image(file.path):
                    rejected.append(row | {"reason": "not an image by its name"})
                else:
                    rows.append(row)
    if not rows:
        raise DataError(f"{files.root}: no image in a folder named after its expression, like {LOOKS}")
    return Reading(rows, rejected)


def _class_folders(files: Listing) -> list[tuple[str | None, list[Listing]]]:
    """The folders of the classes, by the split that the folder around them is named after (None: by none)."""
    inner = [files.below(name) for name in files.folders()]
    splits = [listing.OFFICIAL.get(folder.name.casefold()) for folder in inner]
    if inner and all(splits):
        return [(split, [folder.below(name) for name in folder.folders()])
                for split, folder in zip(splits, inner, strict=True)]
    return [(None, inner)]
