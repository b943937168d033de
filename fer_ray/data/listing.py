"""What the layouts share: reading folders and label files that people have copied, zipped and opened elsewhere.

Names in a data set are data. A name or link that leads out of the data set's folder leads nowhere: a table or a label
is taken as absent, an image is rejected with that reason, and neither is opened.

A folder or file that is there but cannot be read is an error that names it: its images would be missing without a word.
"""

from __future__ import annotations

import functools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fer_ray.data.manifest import NOT_THERE, OUTSIDE, UNREADABLE, DataError

# HEIC and JPEG XL are pictures that are not read: listed, so that each is rejected with its reason.
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .jpe .jfif .jp2 .j2k .avif .heic .heif .jxl .bmp .gif .tif .tiff .webp "
                           ".pbm .pgm .ppm .pnm".split())
# How data sets call their splits, and how we do.
OFFICIAL = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
            "publictest": "val", "test": "test", "testing": "test", "privatetest": "test"}
DRAWN_MARKER = "sample.json"  # says from which arguments a folder of drawn faces was made; written last
# What operating systems leave in folders; only root may enter lost+found.
_JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini", "lost+found"}


def is_junk(name: str) -> bool:
    """Whether an operating system put it there: `.DS_Store`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name in _JUNK


# --- folders -------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[os.DirEntry]:
    """What lies directly in a folder, sorted by name, without junk. Raises: DataError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not is_junk(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read ({error.strerror}), so nobody knows what is in it; "
                        "make it readable, or move it out of the data set") from None


def folders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted, without junk; links to folders too."""
    return [Path(entry.path) for entry in entries(root) if _is_folder(entry)]


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one; not `entry.is_dir()`, which raises for a link to itself."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def names(folder: Path) -> list[str]:
    """Names of what lies directly in a folder, sorted, without junk; none if there is no such folder."""
    return [entry.name for entry in entries(folder)] if os.path.isdir(folder) else []


def files(root: Path) -> Iterator[Path]:
    """All files below `root`, in the order of their names, without junk. Links to folders are not followed."""
    inside = []
    for entry in entries(root):
        if entry.is_dir(follow_symlinks=False):
            inside.append(Path(entry.path))
        elif not _is_folder(entry):
            yield Path(entry.path)
    for folder in inside:
        yield from files(folder)


def images(root: Path) -> Iterator[Path]:
    """Image files below `root`, by their extension."""
    return (path for path in files(root) if is_image(path))


def is_image(path: Path) -> bool:
    """Whether the extension is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def tables(root: Path, *suffixes: str) -> list[Path]:
    """Files with these extensions in the root or one folder down, sorted; none that a link takes out of the root."""
    places = [root, *folders(root)]
    found = [place / name for place in places for name in names(place) if os.path.splitext(name)[1] in suffixes]
    return sorted(path for path in found if os.path.isfile(path) and stays_inside(path, root))


def find(root: Path, *wanted: str, depth: int = 2) -> Path | None:
    """The first folder or file with one of the names, at most `depth` folders below the root; the highest wins."""
    level = [root]
    for _ in range(depth + 1):
        for folder in level:
            for name in wanted:
                if stays_inside(folder / name, root):
                    return folder / name
        level = [inner for folder in level for inner in folders(folder)]
    return None


def is_drawn_sample(folder: Path) -> bool:
    """Whether `sample.write_sample` has filled the folder."""
    try:
        found = json.loads((folder / DRAWN_MARKER).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.keys() == {"version", "subjects", "seed"}


# --- links ---------------------------------------------------------------------------------------------


def gate(*roots: Path) -> Callable[[Path], str | None]:
    """A function that tells why a path must not be opened, as a reason for the manifest; None if it may be.

    It must not if it leads out of all `roots`, which may be links themselves, since the user named them, or if no
    regular file is there.
    """
    inside = [os.path.realpath(root) for root in roots]
    real_folder = functools.cache(os.path.realpath)  # thousands of images lie in one folder

    def refusal(path: Path) -> str | None:
        folder, name = os.path.split(path)
        try:
            real = os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(folder), name)
            if not any(_is_below(real, root) for root in inside):
                return OUTSIDE
            # reading a pipe or a device may never end
            return None if stat.S_ISREG(os.stat(path).st_mode) else NOT_THERE
        except PermissionError:
            return UNREADABLE
        except (OSError, ValueError):  # ValueError: a name with a zero byte is none
            return NOT_THERE

    return refusal


def stays_inside(path: Path, root: Path) -> bool:
    """Whether a file or folder is there, and below the root once links are followed."""
    return (os.path.isfile(path) or os.path.isdir(path)) and _is_below(os.path.realpath(path), os.path.realpath(root))


def _is_below(path: str, folder: str) -> bool:
    return (path + "/").startswith(folder.rstrip("/") + "/")


# --- label files ---------------------------------------------------------------------------------------


def read_text(file: Path) -> str:
    """A small text file, without a byte order mark. Raises: DataError if it cannot be read or is no UTF-8."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    return decode(content, str(file))


def decode(content: bytes, where: str) -> str:
    """UTF-8 bytes as text, without a byte order mark. `where` names the file. Raises: DataError for anything else."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{where}: is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: is no UTF-8 text (byte 0x{content[error.start]:02x} at {error.start}); save it as "
                        "UTF-8") from None


def whole_number(text: str) -> int | None:
    """The number that `0`, `12`, or `3.0` of a spreadsheet spells; None for all else that `int` takes: `1_0`, `-3`."""
    return int(match[1]) if (match := re.fullmatch(r"([0-9]{1,9})(?:[.,]0+)?", text)) else None


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
    """The subject that the pattern finds in a name, or None; in lower case, since file names mix cases."""
    match = pattern.search(name) if pattern else None
    return match[1].casefold() if match and match[1] else None
