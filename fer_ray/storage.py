"""One URI (a path, `file://`, `s3://bucket/prefix`) to one pyarrow filesystem. Nothing else knows about S3."""

from __future__ import annotations

import json
import os
import urllib.parse
import uuid

from pyarrow import fs


def join(uri: str, *parts: str) -> str:
    """`join("s3://b/x", "y")` -> `"s3://b/x/y"`."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path in it. `from_uri` honours AWS_ENDPOINT_URL, a bare S3FileSystem does not."""
    return fs.FileSystem.from_uri(absolute(uri))


def absolute(uri: str) -> str:
    """A local path becomes absolute, so that workers with another working directory mean the same place."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(uri)
    return filesystem.get_file_info(path).type != fs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        with open(path, "rb") as stream:
            return stream.read()
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def read_range(uri: str, first: int, length: int) -> bytes:
    """`length` bytes from byte `first` on. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        with open(path, "rb") as stream:
            stream.seek(first)
            return stream.read(length)
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return stream.read_at(length, first)


def stat(uri: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(uri)
    return info.size, info.mtime_ns


def _local(uri: str) -> str | bytes | None:
    """The path of a local file. As bytes where the URI is percent-encoded: names need not be UTF-8."""
    if uri.startswith("file://"):
        return urllib.parse.unquote_to_bytes(uri.removeprefix("file://"))
    return None if "://" in uri else os.path.expanduser(uri)


def write_bytes(uri: str, content: bytes) -> None:
    """Write atomically: locally by rename; an S3 object appears whole or not at all by itself."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, fs.S3FileSystem):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    with filesystem.open_output_stream(part) as stream:
        stream.write(content)
    filesystem.move(part, path)


def read_json(uri: str) -> dict:
    """Raises: FileNotFoundError, json.JSONDecodeError."""
    return json.loads(read_bytes(uri))


def write_json(uri: str, content: dict) -> None:
    """Readable JSON, atomically."""
    write_bytes(uri, json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode())


def delete_file(uri: str) -> None:
    """Remove a file, if it is there."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.File:
        filesystem.delete_file(path)


def delete_dir(uri: str) -> None:
    """Remove a folder and all in it, if it is there."""
    filesystem, path = resolve(uri)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def list_dirs(uri: str) -> list[str]:
    """Names of the folders directly in `uri`, sorted; empty if it is not there."""
    filesystem, path = resolve(uri)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(i.base_name for i in infos if i.type == fs.FileType.Directory)
