"""What the layouts share: walking folders that people have copied, zipped and opened on other systems.

Names in a data set are data. A name or link that leads out of the data set's folder leads nowhere: a table or a label
is taken as absent, an image is rejected with that reason, and neither is opened.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fer_ray.data.manifest import NOT_THERE, OUTSIDE, DataError

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .bmp .gif .tif .tiff .webp .pgm .ppm".split())
OFFICIAL = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
            "publictest": "val", "test": "test", "testing": "test", "privatetest": "test"}
DRAWN_MARKER = "sample.json"  # says from which arguments a folder of drawn faces was made; written last
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}


def is_junk(name: str) -> bool:
    """Whether a system put it there: `.DS_Store`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name in _JUNK


def folders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted, without junk."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not is_junk(p.name))


def files(root: Path) -> Iterator[Path]:
    """All files below `root`, sorted, without junk."""
    for folder, names, found in os.walk(root):
        names[:] = sorted(n for n in names if not is_junk(n))
        yield from (Path(folder, n) for n in sorted(found) if not is_junk(n))


def images(root: Path) -> Iterator[Path]:
    """Image files below `root`, by their extension."""
    return (p for p in files(root) if p.suffix.lower() in IMAGE_SUFFIXES)


def gate(*roots: Path) -> Callable[[Path], str | None]:
    """A function that says why a path is not to be opened: it leaves the `roots`, or no file is there. None: it may.

    The roots are the user's and may be links themselves.
    """
    inside = [os.path.realpath(root) for root in roots]
    real_folder = functools.cache(os.path.realpath)  # thousands of images share one

    def refused(path: Path) -> str | None:
        folder, name = os.path.split(path)
        try:
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(folder), name)
        except ValueError:  # a name with a zero byte is none
            return NOT_THERE
        if not any(_is_below(real, root) for root in inside):
            return OUTSIDE
        return None if os.path.isfile(path) else NOT_THERE  # reading a pipe or a device may never end

    return refused


def stays_inside(path: Path, root: Path) -> bool:
    """Whether a file or folder is there, and below the root once links are followed."""
    return (os.path.isfile(path) or os.path.isdir(path)) and _is_below(os.path.realpath(path), os.path.realpath(root))


def _is_below(path: str, folder: str) -> bool:
    return (path + "/").startswith(folder.rstrip("/") + "/")


def tables(root: Path, *suffixes: str) -> list[Path]:
    """Tables in the root or one folder down, sorted, without junk."""
    return sorted(p for pattern in ("*", "*/*") for p in root.glob(pattern)
                  if p.suffix in suffixes and not is_junk(p.name) and os.path.isfile(p) and stays_inside(p, root))


def find(root: Path, *names: str, depth: int = 2) -> Path | None:
    """The first folder or file of one of the names, at most `depth` folders below the root; the highest wins."""
    level = [root]
    for _ in range(depth + 1):
        for folder in level:
            for name in names:
                if stays_inside(folder / name, root):
                    return folder / name
        level = [f for folder in level for f in folders(folder)]
    return None


def is_drawn_sample(folder: Path) -> bool:
    """Whether `sample.write_sample` has filled the folder."""
    try:
        found = json.loads((folder / DRAWN_MARKER).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() == {"version", "subjects", "seed"}


def compile_pattern(pattern: str, key: str) -> re.Pattern | None:
    """The regular expression at configuration key `key`; None if empty. Raises: DataError."""
    if not pattern:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{key}: {pattern!r} is no regular expression ({error})") from None
    if compiled.groups != 1:
        raise DataError(f"{key}: {pattern!r} needs exactly one group, it has {compiled.groups}")
    return compiled


def subject_in(name: str, pattern: re.Pattern | None) -> str | None:
    """What the pattern finds in a name; spelled in one case, since file names mix cases."""
    match = pattern.search(name) if pattern else None
    return match[1].casefold() if match and match[1] else None
