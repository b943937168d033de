"""One URI (a path, `file://`, `s3://bucket/prefix`) to one place. Nothing else knows about S3.

Endpoint, region and credentials of S3 come from the AWS environment and profiles. Whole files go through boto3, which
is several times faster and never leaves half an object; the rest, and Ray, through pyarrow. Both try ten times with
growing pauses, where their three attempts by default lose a job to a busy server.

Every function raises StorageError if S3 does not answer or refuses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
import urllib.parse
import uuid
from io import BytesIO
from typing import NoReturn

from pyarrow import fs

from fer_ray.errors import UserError

ATTEMPTS = 10


class StorageError(UserError, OSError):
    """Storage cannot be reached or refuses; the message names the URI and what the server said."""


class DamagedError(UserError):
    """A file that another step wrote is missing, cut short or was edited; the message says what makes it again."""


class S3(fs.S3FileSystem):
    """A bucket's filesystem. Ray sends it to its processes; pyarrow's own would come out without its retries."""

    def __init__(self, bucket: str):
        meta = _client().meta
        endpoint = urllib.parse.urlsplit(meta.endpoint_url)
        if endpoint.hostname.endswith(("amazonaws.com", "amazonaws.com.cn")):
            where = {"region": fs.resolve_s3_region(bucket)}
        else:
            where = {"region": meta.region_name or "us-east-1", "scheme": endpoint.scheme,
                     "endpoint_override": endpoint.netloc}
        super().__init__(retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS), connect_timeout=5,
                         request_timeout=30, **where)
        self.bucket = bucket

    def __reduce__(self):
        return _s3, (self.bucket,)


@functools.cache
def _s3(bucket: str) -> S3:
    return S3(bucket)


@functools.cache
def _client():
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                                            connect_timeout=5, read_timeout=30, max_pool_connections=16))


@functools.cache
def _transfer():
    """Parts of 8 MiB, ten at a time, each tried again when its body ends early."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(num_download_attempts=ATTEMPTS)


@contextlib.contextmanager
def _telling(uri: str):
    """Turn what pyarrow and boto3 raise into FileNotFoundError or StorageError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
            raise FileNotFoundError(uri) from None
        _raise(uri, error)
    except (OSError, Boto3Error, BotoCoreError) as error:
        _raise(uri, error)


def _raise(uri: str, error: Exception) -> NoReturn:
    raise StorageError(f"{uri}: {str(error).strip().splitlines()[0]}") from error


def join(uri: str, *parts: str) -> str:
    """`join("s3://b/x", "y")` -> `"s3://b/x/y"`."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem and the path in it."""
    if bucket_key := _object(uri):
        with _telling(uri):
            return _s3(bucket_key[0]), "/".join(bucket_key).rstrip("/")
    return fs.FileSystem.from_uri(absolute(uri))


def absolute(uri: str) -> str:
    """A local path becomes absolute, so that workers with another working directory mean the same place."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def is_absolute(uri: str) -> bool:
    """Whether every process understands the same place, whatever its working directory and user."""
    return "://" in uri or os.path.isabs(uri)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(uri)
    with _telling(uri):
        return filesystem.get_file_info(path).type != fs.FileType.NotFound


def read_bytes(uri: str) -> bytes:
    """The whole file. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        with open(path, "rb") as stream:
            return stream.read()
    if bucket_key := _object(uri):
        sink = BytesIO()
        with _telling(uri):
            _client().download_fileobj(*bucket_key, sink, Config=_transfer())
        return sink.getvalue()
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path) as stream:
        return stream.read()


def sha256(uri: str) -> str:
    """Of the whole file, which is not held in memory. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    if bucket_key := _object(uri):
        sink = _Digest()
        with _telling(uri):
            _client().download_fileobj(*bucket_key, sink, Config=_transfer())
        return sink.digest.hexdigest()
    return hashlib.sha256(read_bytes(uri)).hexdigest()


class _Digest:
    """What is written to it, in order."""

    def __init__(self):
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return len(content)


def read_range(uri: str, first: int, length: int) -> bytes:
    """`length` bytes from byte `first` on. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        with open(path, "rb") as stream:
            stream.seek(first)
            return stream.read(length)
    if bucket_key := _object(uri):
        with _telling(uri):
            return _read_object(*bucket_key, f"bytes={first}-{first + length - 1}")
    filesystem, path = resolve(uri)
    with filesystem.open_input_file(path) as stream:
        return stream.read_at(length, first)


def _read_object(bucket: str, key: str, span: str) -> bytes:
    """boto3 asks again where no answer comes, but not where one ends early."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
            return _client().get_object(Bucket=bucket, Key=key, Range=span)["Body"].read()
    return _client().get_object(Bucket=bucket, Key=key, Range=span)["Body"].read()


def stat(uri: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns. Raises: FileNotFoundError."""
    if (path := _local(uri)) is not None:
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    filesystem, path = resolve(uri)
    with _telling(uri):
        info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(uri)
    return info.size, info.mtime_ns


def _local(uri: str) -> str | bytes | None:
    """The path of a local file. As bytes where the URI is percent-encoded: names need not be UTF-8."""
    if uri.startswith("file://"):
        return urllib.parse.unquote_to_bytes(uri.removeprefix("file://"))
    return None if "://" in uri else os.path.expanduser(uri)


def _object(uri: str) -> tuple[str, str] | None:
    """Bucket and key of an S3 URI."""
    if not uri.startswith("s3://"):
        return None
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file, whole or not at all."""
    if bucket_key := _object(uri):
        with _telling(uri):
            _client().upload_fileobj(BytesIO(content), *bucket_key, Config=_transfer())
        return
    part = _write_beside(uri, content)
    os.replace(part, _path(uri))


def create(uri: str, content: bytes) -> bool:
    """Write a file that is not there yet, whole or not at all; False, and nothing written, if another was first.

    An answer that was lost on its way and asked for again says False too: read the file to know whose it is.
    """
    if bucket_key := _object(uri):
        return _create_object(uri, *bucket_key, content)
    part = _write_beside(uri, content)
    try:
        os.link(part, _path(uri))  # unlike a rename, it fails where a file is
    except FileExistsError:
        return False
    finally:
        os.remove(part)
    return True


def _create_object(uri: str, bucket: str, key: str, content: bytes) -> bool:
    from botocore.exceptions import ClientError

    for attempt in range(ATTEMPTS):
        with _telling(uri):
            try:
                _client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
            except ClientError as error:
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
                if status == 412:
                    return False
                if status != 409 or attempt == ATTEMPTS - 1:  # 409: another writer is at it just now
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return True
    raise AssertionError


def move(path: str, uri: str) -> None:
    """Give a local file to storage, whole or not at all; to S3 a large one in parts side by side. Raises:
    FileNotFoundError.

    On one disk nothing is copied, for a training goes on beside it: the file at `path` may be gone then.
    """
    if bucket_key := _object(uri):
        with _telling(uri):
            _client().upload_file(path, *bucket_key, Config=_transfer())
        return
    part = _part_of(uri)
    shutil.move(path, part)
    os.replace(part, _path(uri))


def _path(uri: str) -> str | bytes:
    path = _local(uri)
    if path is None:
        raise StorageError(f"{uri}: unknown kind of storage; use a path, file:// or s3://bucket/prefix")
    return path


def _write_beside(uri: str, content: bytes) -> str | bytes:
    """A new file with this content in the folder of `uri`; its path."""
    part = _part_of(uri)
    with open(part, "wb") as stream:
        stream.write(content)
    return part


def _part_of(uri: str) -> str | bytes:
    """A name for what is to become the file `uri`, in its folder, which is there then."""
    path = _path(uri)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    ending = f".{uuid.uuid4().hex}.part"
    return path + (ending.encode() if isinstance(path, bytes) else ending)


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
    """Readable JSON, atomically. Raises: ValueError if a number is none."""
    write_bytes(uri, _json(content))


def create_json(uri: str, content: dict) -> bool:
    """As `create`."""
    return create(uri, _json(content))


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode()


def delete_file(uri: str) -> None:
    """Remove a file, if it is there."""
    filesystem, path = resolve(uri)
    with _telling(uri):
        if filesystem.get_file_info(path).type == fs.FileType.File:
            filesystem.delete_file(path)


def delete_dir(uri: str) -> None:
    """Remove a folder and all in it, if it is there."""
    filesystem, path = resolve(uri)
    with _telling(uri):
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)


def list_dirs(uri: str) -> list[str]:
    """Names of the folders directly in `uri`, sorted; empty if it is not there."""
    return _list(uri, fs.FileType.Directory)


def list_files(uri: str) -> list[str]:
    """Names of the files directly in `uri`, sorted; empty if it is not there."""
    return _list(uri, fs.FileType.File)


def _list(uri: str, kind: fs.FileType) -> list[str]:
    filesystem, path = resolve(uri)
    with _telling(uri):
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(i.base_name for i in infos if i.type == kind)
