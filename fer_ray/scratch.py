"""A folder for temporary files that is gone when its process is, however that ended."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path

# no shorter: a job that was started in the temporary folder has its results there, in `fer_ray_output`
PREFIX = "fer_ray_scratch_"


@functools.cache
def folder() -> str:
    """This process's own folder in the system's temporary folder; the same one at each call.

    It is removed when the process ends. A process that was killed cannot do that, so the next one of the same user
    that needs such a folder removes those of the dead first. A folder counts as in use as long as its process holds a
    lock on it: the kernel gives the lock back whatever ends a process, and unlike process numbers it means the same in
    all containers that share the disk.
    """
    parent = Path(tempfile.gettempdir())
    for leftover in parent.glob(f"{PREFIX}*"):
        _remove_if_unused(leftover)
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            _lock(path)  # held until the process ends: nothing closes the file descriptor
        except (BlockingIOError, FileNotFoundError):
            continue  # another process takes it for a leftover, since it was not locked yet
        except OSError:
            break  # a file system without locks, where nobody can lock what others use, and so nobody removes it
        if path.is_dir():
            break
    atexit.register(remove)
    return str(path)


def remove() -> None:
    """Remove this process's folder. Called when Python exits; by hand before `os._exit`, which skips that."""
    if folder.cache_info().currsize:
        shutil.rmtree(folder(), ignore_errors=True)


def _lock(path: Path) -> int:
    """Lock a folder; the file descriptor that holds the lock. Raises: OSError if another process holds it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_unused(path: Path) -> None:
    with contextlib.suppress(OSError):  # in use, not a folder, or just removed by another process
        if path.lstat().st_uid == os.getuid():
            descriptor = _lock(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)
