"""One walk of a local folder, which follows links only where they stay in it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator

from fer_ray.data.manifest import NOT_THERE, OUTSIDE, UNREADABLE, DataError

LOOP = "link to a folder that it lies in"
Entry = tuple[str, int, int, str | None]  # the fields of `listing.File`


class Walk:
    """The files below a root, and in `junk` the paths of what was passed over.

    Args:
        root: a local folder, which may be a link itself, since the user named it.
        is_junk: whether a name is that of a file or folder to pass over.
    """

    def __init__(self, root: str, is_junk: Callable[[str], bool]):
        self.is_junk = is_junk
        self.junk: set[str] = set()
        real = os.path.realpath(root)
        # Hugging Face's cache: the files of snapshots/REVISION are links to blobs beside it
        cache = re.match(r"(.*)/snapshots/[^/]+(/|$)", real, re.DOTALL)
        self.inside = (real, f"{cache[1]}/blobs") if cache else (real,)

    def files(self, folder: str, prefix: str, around: tuple[str, ...] = ()) -> Iterator[Entry]:
        """All files below `folder`, whose path below the root is `prefix`. `around`: real paths of folders about it.

        Raises: DataError if a folder cannot be read.
        """
        around = (*around, os.path.realpath(folder))
        for entry in _entries(folder):
            path = prefix + entry.name
            if self.is_junk(entry.name):
                self.junk.add(path)
            elif entry.is_symlink():
                yield from self._linked(entry.path, path, around)
            elif entry.is_dir(follow_symlinks=False):
                yield from self.files(entry.path, path + "/", around)
            else:
                yield _file(entry, path)

    def _linked(self, link: str, path: str, around: tuple[str, ...]) -> Iterator[Entry]:
        real = os.path.realpath(link)
        if not any(_is_below(real, folder) for folder in self.inside):
            yield path, 0, 0, OUTSIDE
        elif not os.path.isdir(real):
            yield _file(link, path)
        elif real in around:
            yield path, 0, 0, LOOP
        else:
            yield from self.files(link, path + "/", around)


def _file(file: os.DirEntry | str, path: str) -> Entry:
    try:
        found = os.stat(file)
    except PermissionError:
        return path, 0, 0, UNREADABLE
    except OSError:
        return path, 0, 0, NOT_THERE
    # reading a pipe or a device may never end
    return path, found.st_size, found.st_mtime_ns, None if stat.S_ISREG(found.st_mode) else NOT_THERE


def _entries(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read ({error.strerror}), so nobody knows what is in it; "
                        "make it readable, or move it out of the data set") from None


def _is_below(path: str, folder: str) -> bool:
    return (path + "/").startswith(folder.rstrip("/") + "/")
