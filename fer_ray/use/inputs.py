"""Which photographs and videos are to be predicted: those of a folder or bucket, a glob, a table, or a single one."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fer_ray import storage
from fer_ray.data import listing, tables
from fer_ray.data.listing import File, Listing
from fer_ray.data.manifest import DataError
from fer_ray.use import footage, photographs

KEY = "predict.images"


@dataclass(frozen=True)
class Picture:
    """A photograph or video that was found."""

    image: str
    """Its path or URI, as `pixels.load` and `footage.Footage` take it."""
    size: int
    """Bytes of its file."""
    mtime_ns: int
    """When its file was changed last."""
    reason: str | None
    """Why it must not be opened, such as a link that leads out of the folder; None if it may be."""


@dataclass(frozen=True)
class Found:
    """What lies at the place that the user named."""

    photographs: list[Picture]
    """Each once, sorted by path or in the order of the table."""
    videos: list[Picture]
    """Likewise."""
    others: dict[str, int]
    """Files of a folder or glob that are neither, and are not read: their number by extension."""


def find(path: str, column: str = "image") -> Found:
    """The photographs and videos at `path`, told apart by their extensions; a single file also by its content.

    Args:
        path: a folder, an image or video, a glob (`*`, `**`, `?`, `[...]`) or a table (CSV or Parquet), local or in a
            bucket.
        column: of the table, which holds paths that start in the table's folder.

    Raises: DataError if nothing is there, or the table is none; storage.StorageError.
    """
    if not path or "$" in path:  # a variable that is still there is not set
        raise DataError(f"{KEY}: {path!r} is not set; give a folder of images, an image, a glob or a table")
    if path.startswith("file://"):
        _, path = storage.resolve(path)
    if path.lower().endswith(tables.ALL) and storage.exists(path):
        named = _of_table(path, column)  # whatever their extensions are
        found = Found([one for one in named if not is_video(one.image)], [one for one in named if is_video(one.image)],
                      {})
    elif os.path.isfile(path) or "://" in path and (listing.is_image(path) or is_video(path)) and storage.exists(path):
        one = [Picture(photographs.name_of(path), *storage.stat(path), None)]
        found = Found([], one, {}) if is_video(path) or _opens_as_video(path) else Found(one, [], {})
    elif re.search(r"[*?\[]", path) and not storage.exists(path):
        found = _sorted(_of_glob(path))
    else:
        if "://" not in path and not os.path.isdir(path):
            raise DataError(f"{KEY}: {path}: no such folder, image, video or table")
        found = _sorted(picture for _, picture in _files(path))
    if not found.photographs and not found.videos:
        raise DataError(f"{KEY}: {path}: no image file and no video there; known extensions: "
                        f"{' '.join(sorted(listing.IMAGE_SUFFIXES | footage.SUFFIXES))}")
    return found


def is_video(path: str) -> bool:
    """Whether the extension is that of a video."""
    return posixpath.splitext(path)[1].lower() in footage.SUFFIXES


def _opens_as_video(path: str) -> bool:
    """Whether a file whose extension says nothing holds frames."""
    if listing.is_image(path):
        return False
    try:
        with footage.Footage(photographs.name_of(path)):
            return True
    except footage.VideoError:
        return False


def _sorted(pictures: Iterable[Picture]) -> Found:
    """What is of a known extension, and a count of the rest."""
    found = Found([], [], {})
    others: Counter[str] = Counter()
    for picture in pictures:
        if is_video(picture.image):
            found.videos.append(picture)
        elif listing.is_image(picture.image):
            found.photographs.append(picture)
        else:
            others[posixpath.splitext(picture.image)[1].lower() or "without extension"] += 1
    return Found(found.photographs, found.videos, dict(others))


def _of_glob(path: str) -> list[Picture]:
    """The files below the last folder that is named without wildcards, as far as their paths match."""
    steps = path.split("/")
    first = next(number for number, step in enumerate(steps) if re.search(r"[*?\[]", step))
    root = "/".join(steps[:first]) or ("/" if path.startswith("/") else ".")
    if "://" not in root and not os.path.isdir(root):
        raise DataError(f"{KEY}: {path}: no such folder as {root}")
    pattern = _pattern("/".join(steps[first:]))
    return [picture for path, picture in _files(root) if pattern.fullmatch(path)]


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


def _files(folder: str) -> list[tuple[str, Picture]]:
    """The files below a folder, with their paths below it."""
    files = listing.of(folder)
    return [(file.path, _picture(files, file)) for file in files.files]


def _picture(files: Listing, file: File) -> Picture:
    return Picture(files.uri(file.path), file.size, file.mtime_ns, file.refusal)
