"""A data set's files, listed once: from one walk of a local folder, or from the pages of a bucket's listing.

Layouts recognise and read a data set from its `Listing`; of the files they open only the small ones, tables and labels.

Names in a data set are data. A name or link that leads out of the data set's folder leads nowhere: a table or a label
is taken as absent, an image is rejected with that reason, and neither is opened.

A folder or file that is there but cannot be read is an error that names it: its images would be missing without a word.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import json
import os
import posixpath
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO

from fer_ray import storage
from fer_ray.data import pixels, walk
from fer_ray.data.manifest import NOT_THERE, OUTSIDE, UNREADABLE, DataError

# HEIC and JPEG XL are pictures that are not read: listed, so that each is rejected with its reason.
IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .jpe .jfif .jp2 .j2k .avif .heic .heif .jxl .bmp .gif .tif .tiff .webp "
                           ".pbm .pgm .ppm .pnm".split())
# How data sets call their splits, and how we do.
OFFICIAL = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
            "publictest": "val", "test": "test", "testing": "test", "privatetest": "test"}
DRAWN_MARKER = "sample.json"  # says from which arguments a folder of drawn faces was made; written last
# What operating systems leave in folders; only root may enter lost+found.
_JUNK = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "@eadir", "#recycle", "@recycle",
         "system volume information", "$recycle.bin", "recycler", "recycled", "found.000", "icon\r", "#snapshot",
         "@tmp", "@recently-snapshot", "network trash folder", "temporary items"}
# Folders of a storage of this program (`config.storage`), and how one is known: by a prepared set or predictions.
_OUTPUT = ("prepared", "runs", "best", "tune", "crossval", "crossdata", "compare", "paper", "labels", "exports",
           "predictions")
_OWN = re.compile(r"((?:.*/)?)(?:prepared/[^/]+/(?:prepared\.json|images/part-[^/]+\.parquet)|"
                  r"predictions/[^/]+/predictions\.csv)", re.DOTALL)
# Words that stand beside that of a split in the name of its folder: Train_Aligned_Faces, fer_train, test-set.
_BESIDE_SPLIT = set("set sets data dataset images image imgs img faces face aligned cropped crops split original fer "
                    "raf db affectnet sfew expw".split())
THREADS = 16  # they wait for storage


def is_junk(name: str) -> bool:
    """Whether an operating system put it there: `.DS_Store`, `._photo.jpg`, `__MACOSX`, `@eaDir`, `$RECYCLE.BIN`."""
    return name.startswith(".") or name.casefold() in _JUNK


def split_named(name: str) -> str | None:
    """train, val or test, if a folder or a label is named so: `Train`, `Public_Test`, `val_set`, `test-images`."""
    words = re.findall("[a-z]+", name.casefold())
    if found := OFFICIAL.get("".join(words)):
        return found
    said = [word for word in words if word not in _BESIDE_SPLIT]
    return OFFICIAL.get(said[0]) if len(said) == 1 else None


def official_split(folder: str) -> str | None:
    """The split that a folder, or the highest one around it, is named after; None if none is."""
    return next((split for part in folder.split("/") if (split := split_named(part))), None)


def is_image(path: str) -> bool:
    """Whether the extension is that of an image."""
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES


@dataclass(frozen=True, slots=True)
class File:
    """A file of a data set. `path`: below the listing's root, with `/`."""

    path: str
    size: int  # bytes
    mtime_ns: int
    refusal: str | None = None  # why it must not be opened; a link to a folder elsewhere counts as such a file

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)


# --- the listing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """All files below a root, without what operating systems leave there.

    `root` is an absolute local folder or `s3://bucket/prefix`. `files` are sorted by path. `junk` holds the paths of
    what was passed over; a folder counts once.
    """

    root: str
    files: tuple[File, ...]
    junk: frozenset[str] = frozenset()

    @functools.cached_property
    def _paths(self) -> list[str]:
        return [file.path for file in self.files]

    @property
    def name(self) -> str:
        """The last part of the root."""
        return posixpath.basename(self.root.rstrip("/"))

    def uri(self, path: str = "") -> str:
        """The manifest's name of a file; messages name files and folders by it too."""
        joined = storage.join(self.root, path) if path not in ("", ".") else self.root
        return joined if "://" in self.root else pixels.name_of(os.path.join(self.root, path) if path else self.root)

    # --- what is where

    @functools.cached_property
    def _inside(self) -> tuple[list[File], list[str]]:
        """Files and names of folders directly in the root."""
        files, folders, place = [], [], 0
        while place < len(self.files):
            folder, slash, _ = self._paths[place].partition("/")
            if slash:
                folders.append(folder)
                place = self._end_of(folder)
            else:
                files.append(self.files[place])
                place += 1
        return files, sorted(folders)

    def _end_of(self, folder: str) -> int:
        """The place in `files` after all that lie in a folder."""
        return bisect.bisect_left(self._paths, folder + chr(ord("/") + 1))

    def folders(self) -> list[str]:
        """Names of the folders directly in the root that hold files, sorted."""
        return self._inside[1]

    def direct(self) -> list[File]:
        """Files directly in the root, sorted; folders' links to elsewhere are among them."""
        return self._inside[0]

    def below(self, folder: str) -> Listing:
        """The listing of a folder in it; without files if there is no such folder. Its paths begin there."""
        if folder in ("", "."):
            return self
        start, end, cut = bisect.bisect_left(self._paths, folder + "/"), self._end_of(folder), len(folder) + 1
        inner = tuple(dataclasses.replace(file, path=file.path[cut:]) for file in self.files[start:end])
        return Listing(self.root.rstrip("/") + "/" + folder, inner,
                       frozenset(path[cut:] for path in self.junk if path.startswith(folder + "/")))

    def at(self, folder: str) -> Listing:
        """The listing of a folder that the configuration names: one in it, or one elsewhere, which is then listed."""
        if "://" in folder and not folder.startswith(self._roots):
            return of(folder)
        path = self.path_of(folder)
        if path.startswith("/"):
            return of(path)
        return of(joined(self.root, path)) if path == ".." or path.startswith("../") else self.below(path)

    def only(self, files: Iterable[File]) -> Listing:
        """The listing of some of its files."""
        return dataclasses.replace(self, files=tuple(files))

    def images(self) -> list[File]:
        """Files whose extension is that of an image."""
        return [file for file in self.files if is_image(file.path)]

    def file(self, path: str) -> File | None:
        """The file at a path, also one that must not be opened."""
        place = bisect.bisect_left(self._paths, path)
        return self.files[place] if place < len(self.files) and self._paths[place] == path else None

    def has_file(self, path: str) -> bool:
        """Whether a file is there, which no link takes out of the root."""
        found = self.file(path)
        return found is not None and found.refusal in (None, UNREADABLE)

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there that holds files."""
        place = bisect.bisect_left(self._paths, path + "/")
        return path == "." or place < len(self.files) and self._paths[place].startswith(path + "/")

    def tables(self, *suffixes: str) -> list[str]:
        """Paths of the files with these extensions in the root or one folder down, sorted."""
        return [file.path for file in self.files if file.path.count("/") <= 1
                and posixpath.splitext(file.path)[1].lower() in suffixes and file.refusal in (None, UNREADABLE)]

    def find(self, *wanted: str, depth: int = 2) -> str | None:
        """Path of the first folder or file with one of the names, at most `depth` folders down; the highest wins."""
        level = [("", self)]
        for _ in range(depth + 1):
            for prefix, place in level:
                for name in wanted:
                    if place.has_file(name) or place.has_folder(name):
                        return prefix + name
            level = [(f"{prefix}{name}/", place.below(name)) for prefix, place in level for name in place.folders()]
        return None

    def path_of(self, name: str, folder: str = "") -> str:
        """The path of the file that a table calls `name`; a relative name starts from `folder`.

        A path that leaves the root begins with `../` or is absolute.
        """
        if name.startswith("/") or "://" in name:
            for root in self._roots:
                if name.startswith(root):
                    return posixpath.normpath(name[len(root):])
        return posixpath.normpath(posixpath.join(folder, name)) if name or folder else "."

    @functools.cached_property
    def _roots(self) -> tuple[str, ...]:
        """What absolute names of its files begin with."""
        real = self.root if "://" in self.root else os.path.realpath(self.root)
        return self.root.rstrip("/") + "/", real.rstrip("/") + "/"

    def refusal(self, path: str) -> str | None:
        """Why the image at a path of `path_of` must not be opened, as a reason for the manifest; None if it may be."""
        if found := self.file(path):
            return found.refusal
        if path.startswith(("/", "../")) or path == "..":
            return OUTSIDE
        above = path
        while above := posixpath.dirname(above):
            if found := self.file(above):  # a link that leads to a folder elsewhere
                return found.refusal or NOT_THERE
        return NOT_THERE

    # --- what is inside of files

    def open(self, path: str) -> BinaryIO:
        """A file to read from, wherever it lies, with `seek`. Raises: DataError if it cannot be read."""
        self._check(path)
        try:
            return storage.open_file(self.uri(path))
        except (storage.StorageError, FileNotFoundError) as error:
            raise self._unreadable(path, error) from None

    def read(self, path: str) -> bytes:
        """The whole of a small file. Raises: DataError if it cannot be read."""
        self._check(path)
        try:
            return storage.read_bytes(self.uri(path))
        except (storage.StorageError, FileNotFoundError) as error:
            raise self._unreadable(path, error) from None

    def read_many(self, paths: Iterable[str]) -> list[bytes]:
        """The whole of many small files, read side by side. Raises: DataError if one cannot be read."""
        pool = ThreadPoolExecutor(THREADS)
        try:
            return list(pool.map(self.read, paths))
        finally:
            pool.shutdown(cancel_futures=True)

    def read_text(self, path: str) -> str:
        """A small text file, without a byte order mark. Raises: DataError if it cannot be read or is no UTF-8."""
        return decode(self.read(path), self.uri(path))

    def _check(self, path: str) -> None:
        if (why := self.refusal(path)) not in (None, UNREADABLE):
            raise DataError(f"{self.uri(path)}: {why}")

    def _unreadable(self, path: str, error: Exception) -> DataError:
        why = getattr(error.__cause__, "strerror", None) or str(error)
        return DataError(f"{self.uri(path)}: cannot be read ({why})")


def of(root: str | os.PathLike) -> Listing:
    """List a folder of this machine or of a bucket.

    Raises: DataError if there is no such folder, or a folder in it cannot be read; storage.StorageError.
    """
    root = storage.absolute(os.fspath(root))
    if root.startswith("s3://"):
        return _listed(root)
    root = os.path.normpath(storage.local_path(root))
    if not os.path.isdir(root):
        raise DataError(f"{root} is not a folder")
    walked = walk.Walk(root, is_junk)
    return _sorted(root, [File(*found) for found in walked.files(root, "")], walked.junk)


def of_file(place: str) -> tuple[Listing, str]:
    """A listing of a single file that the configuration names, and the file's path in it."""
    place = storage.local_path(place) if place.startswith("file://") else place
    folder, name = posixpath.split(storage.absolute(place))
    return Listing(folder, (File(name, 0, 0),)), name


def _sorted(root: str, files: list[File], junk: set[str]) -> Listing:
    """A listing without what this program wrote: an earlier prepared set is no data set, nor are its predictions."""
    storages = {match[1] for file in files if (match := _OWN.fullmatch(file.path))}
    written = tuple(f"{place}{folder}/" for place in storages for folder in _OUTPUT)
    own = {next(folder for folder in written if file.path.startswith(folder)).rstrip("/")
           for file in files if file.path.startswith(written)}
    kept = [file for file in files if not file.path.startswith(written)]
    return Listing(root, tuple(sorted(kept, key=lambda file: file.path)), frozenset(junk | own))


def joined(root: str, place: str) -> str:
    """A place that the configuration names, which may be relative to `root`: a local path or a URI, without `..`."""
    if "://" in place or place.startswith("/"):
        return place
    scheme, mark, rest = root.rpartition("://")
    return scheme + mark + posixpath.normpath(posixpath.join(rest, place))


def _listed(root: str) -> Listing:
    root = root.rstrip("/")
    files, junk = [], set()
    for path, size, mtime_ns in storage.list_tree(root):
        parts = path.split("/")
        odd = next((n for n, part in enumerate(parts) if is_junk(part)), None)
        if odd is None:
            files.append(File(path, size, mtime_ns))
        else:
            junk.add("/".join(parts[: odd + 1]))
    if not files and not junk:
        raise DataError(f"{root} is not a folder: nothing lies below it")
    return _sorted(root, files, junk)


def is_drawn_sample(folder: str | os.PathLike) -> bool:
    """Whether `sample.write_sample` has filled the folder."""
    try:
        found = json.loads(storage.read_bytes(storage.join(os.fspath(folder), DRAWN_MARKER)))
    except (OSError, ValueError, storage.StorageError):
        return False
    return isinstance(found, dict) and found.keys() == {"version", "subjects", "seed"}


# --- label files ---------------------------------------------------------------------------------------


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
