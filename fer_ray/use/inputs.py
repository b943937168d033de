"""Which photographs are to be predicted: those of a folder or bucket, a glob, a table, or a single one."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass

from fer_ray import storage
from fer_ray.data import listing, tables
from fer_ray.data.listing import File, Listing
from fer_ray.data.manifest import DataError
from fer_ray.use import photographs

KEY = "predict.images"


@dataclass(frozen=True)
class Picture:
    """A photograph that was found."""

    image: str
    """As `pixels.load` takes it."""
    size: int
    """Bytes of its file."""
    mtime_ns: int
    """When its file was changed last."""
    reason: str | None
    """Why it must not be opened, such as a link that leads out of the folder; None if it may be."""


def find(path: str, column: str = "image") -> list[Picture]:
    """The photographs at `path`, each once, sorted by path or in the order of the table.

    Args:
        path: a folder, an image, a glob (`*`, `**`, `?`, `[...]`) or a table (CSV or Parquet), local or in a bucket.
        column: of the table, which holds paths that start in the table's folder.

    Raises: DataError if nothing is there, or the table is none; storage.StorageError.
    """
    if not path or "$" in path:  # a variable that is still there is not set
        raise DataError(f"{KEY}: {path!r} is not set; give a folder of images, an image, a glob or a table")
    if path.startswith("file://"):
        _, path = storage.resolve(path)
    if path.lower().endswith(tables.ALL) and storage.exists(path):
        found = _of_table(path, column)
    elif os.path.isfile(path) or "://" in path and listing.is_image(path) and storage.exists(path):
        found = [Picture(photographs.name_of(path), *storage.stat(path), None)]
    elif re.search(r"[*?\[]", path) and not storage.exists(path):
        found = _of_glob(path)
    else:
        if "://" not in path and not os.path.isdir(path):
            raise DataError(f"{KEY}: {path}: no such folder, image or table")
        found = [picture for _, picture in _images(path)]
    if not found:
        raise DataError(f"{KEY}: {path}: no image file there; known extensions: "
                        f"{' '.join(sorted(listing.IMAGE_SUFFIXES))}")
    return found


def _of_glob(path: str) -> list[Picture]:
    """The images below the last folder that is named without wildcards, as far as their paths match."""
    steps = path.split("/")
    first = next(number for number, step in enumerate(steps) if re.search(r"[*?\[]", step))
    root = "/".join(steps[:first]) or ("/" if path.startswith("/") else ".")
    if "://" not in root and not os.path.isdir(root):
        raise DataError(f"{KEY}: {path}: no such folder as {root}")
    pattern = _pattern("/".join(steps[first:]))
    return [picture for path, picture in _images(root) if pattern.fullmatch(path)]


def _pattern(glob: str) -> re.Pattern:
    """`**/` is any number of folders, `*` and `?` stay within one name, as in a shell."""
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def regex(part: str) -> str:
        if part.startswith("[") and part.endswith("]"):
            return part.replace("[!", "[^", 1)
        return meaning.get(part) or re.escape(part)

    return re.compile("".join(map(regex, re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", glob))), re.DOTALL)


def _of_table(file: str, column: str) -> list[Picture]:
    """The images that a table names, each once. What leads out of the table's folder has that as its reason."""
    files, table = listing.of(posixpath.dirname(file) or "."), posixpath.basename(file)
    spelled = tables.spelled(tables.header(files, table), [column], f"{KEY}: {file} (data.table.image_column)")[column]
    rows = (tables.parquet_rows(files, table, [spelled]) if tables.is_parquet(table)
            else ((number, row) for _, number, row in tables.rows(files, table)))
    names = dict.fromkeys(row[spelled] for _, row in rows)
    paths = [files.path_of(name) for name in names if name]
    return [_picture(files, files.file(path) or File(path, 0, 0, files.refusal(path))) for path in paths]


def _images(folder: str) -> list[tuple[str, Picture]]:
    """The images below a folder, with their paths below it."""
    files = listing.of(folder)
    return [(image.path, _picture(files, image)) for image in files.images()]


def _picture(files: Listing, file: File) -> Picture:
    return Picture(files.uri(file.path), file.size, file.mtime_ns, file.refusal)
