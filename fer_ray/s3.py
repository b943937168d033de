"""The S3 side of `storage`, which alone imports it: whole objects by boto3, and a filesystem for Ray and Parquet.

Endpoint, region and credentials come from the AWS environment and profiles. boto3 is several times faster than pyarrow
for whole objects, never leaves half an object, and says which of "not there", "refused" and "out of reach" it met,
where pyarrow takes the first two for one. Both try ten times with growing pauses: with their usual three attempts a
busy server ends a job.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
import urllib.parse
from collections.abc import Generator, Iterator
from io import BytesIO

from pyarrow import fs

from fer_ray.errors import StorageError, UserError

ATTEMPTS = 10
DELETE_AT_ONCE = 1000  # objects in one request: S3's own limit


class Filesystem(fs.S3FileSystem):
    """A bucket's filesystem. Ray pickles it for its processes; pyarrow's own loses its retry strategy on that way."""

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
        return filesystem, (self.bucket,)


@functools.cache
def filesystem(bucket: str) -> Filesystem:
    """The bucket's filesystem, one a process. Raises: StorageError."""
    with _reporting(f"s3://{bucket}"):
        return Filesystem(bucket)


@functools.cache
def _client():
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                                            connect_timeout=5, read_timeout=30, max_pool_connections=16))


@functools.cache
def _transfer(**options):
    """Parts of 8 MiB, ten at a time, each tried again when its body ends early."""
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(num_download_attempts=ATTEMPTS, **options)


@contextlib.contextmanager
def _reporting(uri: str) -> Generator[None]:
    """Turn what boto3 and pyarrow raise into FileNotFoundError (there is no such object) or StorageError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except UserError:
        raise
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in ("404", "NoSuchKey"):
            raise _in_one_line(uri, error) from error
        _check_bucket(split(uri)[0])
        raise FileNotFoundError(uri) from None
    # ValueError: boto3's for an endpoint that is no URL
    except (OSError, Boto3Error, BotoCoreError, ValueError) as error:
        raise _in_one_line(uri, error) from error


def _in_one_line(uri: str, error: Exception) -> StorageError:
    from botocore.exceptions import NoCredentialsError

    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, NoCredentialsError):
        reason = ("no credentials for S3; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on "
                  "a machine whose role may reach the bucket")
    elif reason.startswith("Invalid endpoint"):
        reason = f"AWS_ENDPOINT_URL is no URL ({reason}); right is such as https://minio.example.org:9000"
    return StorageError(f"{uri}: {reason}")


@functools.cache  # only an answer is kept: what raises is asked again
def _check_bucket(bucket: str) -> None:
    """An answer to HEAD has no body, so a missing bucket looks like a missing object. Raises: StorageError."""
    from botocore.exceptions import ClientError

    try:
        _client().head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("404", "NoSuchBucket"):
            raise StorageError(f"s3://{bucket}: there is no such bucket (NoSuchBucket)") from None
        # 403: objects may be read where buckets may not


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def exists(uri: str) -> bool:
    """Whether an object, or any object below it as a folder, is there."""
    try:
        stat(uri)
        return True
    except FileNotFoundError:
        bucket, key = split(uri)
        with _reporting(uri):
            below = _client().list_objects_v2(Bucket=bucket, Prefix=_folder(key), MaxKeys=1)
        return bool(below.get("KeyCount"))


def stat(uri: str) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns."""
    bucket, key = split(uri)
    if not key:  # a bucket itself
        raise FileNotFoundError(uri)
    with _reporting(uri):
        head = _client().head_object(Bucket=bucket, Key=key)
    return head["ContentLength"], int(head["LastModified"].timestamp()) * 10**9


def read(uri: str) -> bytes:
    """The whole object."""
    sink = BytesIO()
    with _reporting(uri):
        _client().download_fileobj(*split(uri), sink, Config=_transfer())
    return sink.getvalue()


def sha256(uri: str) -> str:
    """Of the whole object, which is not held in memory."""
    sink = _Digest()
    with _reporting(uri):
        # A small object as a part, too: of one that comes whole, and whose body ends early, boto3 would write the
        # beginning twice into a file without `seek`.
        _client().download_fileobj(*split(uri), sink, Config=_transfer(multipart_threshold=1))
    return sink.digest.hexdigest()


class _Digest:
    """A file that only hashes what is written to it; boto3 writes the parts of an object in order."""

    def __init__(self):
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return len(content)


def read_range(uri: str, first: int, length: int) -> bytes:
    """`length` bytes from byte `first` on."""
    from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

    bucket, key = split(uri)
    span = f"bytes={first}-{first + length - 1}"
    with _reporting(uri):
        for _ in range(ATTEMPTS - 1):
            # boto3 asks again if no answer comes, but not if the body of one ends early
            with contextlib.suppress(IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                return _client().get_object(Bucket=bucket, Key=key, Range=span)["Body"].read()
        return _client().get_object(Bucket=bucket, Key=key, Range=span)["Body"].read()


def write(uri: str, content: bytes) -> None:
    """Put an object, whole or not at all."""
    with _reporting(uri):
        _client().upload_fileobj(BytesIO(content), *split(uri), Config=_transfer())


def upload(path: str, uri: str) -> None:
    """Put a local file; a large one in parts side by side."""
    with _reporting(uri):
        _client().upload_file(path, *split(uri), Config=_transfer())


def create(uri: str, content: bytes) -> bool:
    """Put an object that is not there yet; False, and nothing written, if another was first."""
    from botocore.exceptions import ClientError

    bucket, key = split(uri)
    for attempt in range(ATTEMPTS):
        with _reporting(uri):
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


def delete_file(uri: str) -> None:
    """Remove an object, if it is there."""
    bucket, key = split(uri)
    with _reporting(uri), contextlib.suppress(FileNotFoundError):
        _client().delete_object(Bucket=bucket, Key=key)


def delete_dir(uri: str) -> None:
    """Remove all objects below `uri`."""
    bucket, key = split(uri)
    with _reporting(uri):
        for page in _pages(bucket, Prefix=_folder(key)):
            keys = [{"Key": found["Key"]} for found in page.get("Contents", [])]
            for start in range(0, len(keys), DELETE_AT_ONCE):
                done = _client().delete_objects(Bucket=bucket, Delete={"Objects": keys[start : start + DELETE_AT_ONCE],
                                                                       "Quiet": True})
                if failed := done.get("Errors"):
                    raise StorageError(f"s3://{bucket}/{failed[0]['Key']}: {failed[0].get('Message', 'not deleted')}")


def names(uri: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders directly in `uri`."""
    bucket, key = split(uri)
    prefix = _folder(key)
    files: list[str] = []
    folders: list[str] = []
    with _reporting(uri):
        for page in _pages(bucket, Prefix=prefix, Delimiter="/"):
            files += [found["Key"].removeprefix(prefix) for found in page.get("Contents", [])]
            folders += [found["Prefix"].removeprefix(prefix).rstrip("/") for found in page.get("CommonPrefixes", [])]
    return [name for name in files if name], folders  # consoles and pyarrow put an empty object for a folder itself


def tree(uri: str) -> Iterator[tuple[str, int, int]]:
    """Path below `uri`, size in bytes and time of the last change in ns of each object below it, in order of keys."""
    bucket, key = split(uri)
    prefix = _folder(key)
    with _reporting(uri):
        for page in _pages(bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                if not found["Key"].endswith("/"):  # an empty object that stands for a folder
                    yield (found["Key"].removeprefix(prefix), found["Size"],
                           int(found["LastModified"].timestamp()) * 10**9)


def _pages(bucket: str, **options) -> Iterator[dict]:
    return _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, **options)


def _folder(key: str) -> str:
    """The prefix of everything below a key."""
    return key.rstrip("/") + "/" if key else ""
