"""Files of a storage named by one URI: a local path, `file://` or `s3://bucket/prefix`.

Writers are atomic: a reader sees the whole new file, the whole old one or none. Locally a file is first written beside
its name as `NAME.<32 hex digits>.part`, with the mode that the user's umask gives, and then renamed. What concerns S3
alone is in `s3`.

Every function raises StorageError, whose one line names the URI and the reason, if storage cannot be reached, is full
or refuses. That a file is not there is no such error: readers raise FileNotFoundError, `exists` says False.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import urllib.parse
import uuid
from collections.abc import Generator, Iterator
from typing import BinaryIO

from pyarrow import fs

from fer_ray import s3
from fer_ray.errors import StorageError, UserError

ATTEMPTS = s3.ATTEMPTS  # of each request to S3, Ray's own requests too
# A killed writer leaves its `.part` file. One that nobody has written to for so long is no longer being written.
ABANDONED_S = 600.0
BLOCK = 2**20  # bytes that a file in S3 is read by
_PART = re.compile(r"\.[0-9a-f]{32}\.part$")


class DamagedError(UserError):
    """A file that another step wrote is missing, cut short or was edited; the message says what makes it again."""


@contextlib.contextmanager
def _reporting(uri: str, writing: bool = False) -> Generator[None]:
    """Turn what the operating system refuses into StorageError; FileNotFoundError passes, unless `writing`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        if not writing:
            raise
        raise StorageError(f"{uri}: the folder was removed while it was written to") from None
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror or ' '.join(str(error).split())}") from error


def join(uri: str, *parts: str) -> str:
    """`join("s3://b/x", "y")` -> `"s3://b/x/y"`."""
    return "/".join([uri.rstrip("/"), *parts])


def below(root: str, uri: str) -> str:
    """What `join` was given besides `root` to make `uri`."""
    return uri.removeprefix(root.rstrip("/") + "/")


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path in it, for Ray and for Parquet."""
    if _is_s3(uri):
        bucket, key = s3.split(uri)
        return s3.filesystem(bucket), f"{bucket}/{key}".rstrip("/")
    return fs.FileSystem.from_uri(absolute(uri))


def absolute(uri: str) -> str:
    """A local path becomes absolute, so that workers with another working directory mean the same place."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def is_absolute(uri: str) -> bool:
    """Whether every process understands the same place, whatever its working directory and user."""
    return "://" in uri or os.path.isabs(uri)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    if _is_s3(uri):
        return s3.exists(uri)
    with _reporting(uri):
        try:
            os.stat(local_path(uri))
        except (FileNotFoundError, NotADirectoryError):  # the second: something above it is a file
            return False
        return True


def stat(uri: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns. Raises: FileNotFoundError."""
    if _is_s3(uri):
        return s3.stat(uri)
    with _reporting(uri):
        found = os.stat(local_path(uri))
    return found.st_size, found.st_mtime_ns


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises: FileNotFoundError."""
    if _is_s3(uri):
        return s3.read(uri)
    with _reporting(uri), open(local_path(uri), "rb") as stream:
        return stream.read()


def open_file(uri: str) -> BinaryIO:
    """A file to read from, with `seek`; of one in S3 only what is read is fetched. Raises: FileNotFoundError."""
    if _is_s3(uri):
        filesystem, path = resolve(uri)
        with _reporting(uri):
            return io.BufferedReader(filesystem.open_input_file(path), BLOCK)
    with _reporting(uri):
        return open(local_path(uri), "rb")


def sha256(uri: str) -> str:
    """Of the whole file, which is not held in memory. Raises: FileNotFoundError."""
    if _is_s3(uri):
        return s3.sha256(uri)
    with _reporting(uri), open(local_path(uri), "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_range(uri: str, first: int, length: int) -> bytes:
    """`length` bytes from byte `first` on. Raises: FileNotFoundError."""
    if _is_s3(uri):
        return s3.read_range(uri, first, length)
    with _reporting(uri), open(local_path(uri), "rb") as stream:
        stream.seek(first)
        return stream.read(length)


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file, whole or not at all."""
    if _is_s3(uri):
        return s3.write(uri, content)
    with _reporting(uri, writing=True), _part_of(uri) as part:
        with open(part, "wb") as stream:
            stream.write(content)
        os.replace(part, local_path(uri))


def create(uri: str, content: bytes) -> bool:
    """Write a file that is not there yet, whole or not at all; False, and nothing written, if another was first.

    An answer that was lost on its way and asked for again says False too: read the file to know whose it is.
    """
    if _is_s3(uri):
        return s3.create(uri, content)
    with _reporting(uri, writing=True), _part_of(uri) as part:
        with open(part, "wb") as stream:
            stream.write(content)
        try:
            os.link(part, local_path(uri))  # unlike a rename, it fails where a file is
        except FileExistsError:
            return False
    return True


def move(path: str, uri: str) -> None:
    """Hand a local file over to storage, whole or not at all; to S3 a large one in parts side by side.

    Within one disk nothing is copied, since a training goes on beside it: the file at `path` may be gone afterwards.

    Raises: FileNotFoundError if there is no file at `path`.
    """
    if _is_s3(uri):
        return s3.upload(path, uri)
    os.stat(path)
    with _reporting(uri, writing=True), _part_of(uri) as part:
        with open(part, "wb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
        shutil.move(path, part)
        os.chmod(part, mode & 0o777)  # temporary files are 0600, and a colleague could not read the result
        os.replace(part, local_path(uri))


@contextlib.contextmanager
def _part_of(uri: str) -> Generator[str]:
    """A new name beside `uri`, in its folder, which is made if needed. What is left under that name is removed."""
    path = local_path(uri)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        yield part
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def remove_abandoned(uri: str) -> None:
    """Remove the `.part` files of killed writers directly in the local folder `uri`. S3 keeps no half objects."""
    if _is_s3(uri):
        return
    with _reporting(uri), contextlib.suppress(FileNotFoundError), os.scandir(local_path(uri)) as entries:
        for entry in entries:
            if _PART.search(entry.name) and time.time() - entry.stat().st_mtime > ABANDONED_S:
                os.remove(entry.path)


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def local_path(uri: str) -> str:
    """The path of a local file, as `os` functions take it: names need not be UTF-8."""
    if uri.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(uri.removeprefix("file://")))
    if "://" in uri:
        raise StorageError(f"{uri}: unknown kind of storage; use a path, file:// or s3://bucket/prefix")
    return os.path.expanduser(uri)


def read_json(uri: str) -> dict:
    """Raises: FileNotFoundError, json.JSONDecodeError."""
    return json.loads(read_bytes(uri))


def read_own_json(uri: str, expected: dict[str, type], remedy: str) -> dict:
    """JSON that another step of ours wrote, with at least the keys of `expected`, whose values are of these types.

    Raises: DamagedError if the file is missing, truncated or holds something else. Its message names the file and ends
        with `remedy`, such as "run jobs/prepare.py again". StorageError if storage does not answer: an outage says
        nothing of the file.
    """
    try:
        content = read_json(uri)
    except FileNotFoundError:
        raise DamagedError(f"{uri}: is missing; {remedy}") from None
    except ValueError:  # JSONDecodeError, or UnicodeDecodeError where bytes were flipped
        raise DamagedError(f"{uri}: is damaged (truncated or no JSON); {remedy}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{uri}: is damaged (no JSON object); {remedy}")
    for key, kind in expected.items():
        if not isinstance(content.get(key), kind):
            raise DamagedError(f"{uri}: is damaged (key {key!r} is missing or of a wrong type); {remedy}")
    return content


def write_json(uri: str, content: dict) -> None:
    """Readable JSON, atomically. Raises: ValueError if a number is not finite."""
    write_bytes(uri, _json(content))


def create_json(uri: str, content: dict) -> bool:
    """As `create`."""
    return create(uri, _json(content))


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode()


def delete_file(uri: str) -> None:
    """Remove a file, if it is there."""
    if _is_s3(uri):
        return s3.delete_file(uri)
    with _reporting(uri), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.remove(local_path(uri))


def delete_dir(uri: str) -> None:
    """Remove a folder and all in it, if it is there."""
    if _is_s3(uri):
        return s3.delete_dir(uri)
    with _reporting(uri), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        shutil.rmtree(local_path(uri))


def list_tree(uri: str) -> Iterator[tuple[str, int, int]]:
    """Path below `uri`, size in bytes and time of the last change in ns of each object below a URI of S3.

    A request answers for a thousand objects, and what it says of one equals what `stat` does.
    """
    return s3.tree(uri)


def list_dirs(uri: str) -> list[str]:
    """Names of the folders directly in `uri`, sorted; empty if it is not there."""
    return _names(uri)[1]


def list_files(uri: str) -> list[str]:
    """Names of the files directly in `uri`, sorted; empty if it is not there."""
    return _names(uri)[0]


def _names(uri: str) -> tuple[list[str], list[str]]:
    """Sorted names of the files and of the folders directly in `uri`."""
    files: list[str] = []
    folders: list[str] = []
    if _is_s3(uri):
        files, folders = s3.names(uri)
    else:
        with _reporting(uri), contextlib.suppress(FileNotFoundError), os.scandir(local_path(uri)) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(files), sorted(folders)
