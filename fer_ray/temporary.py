"""Folders in the temporary directory that do not outlive the process that made them, even if that is killed.

Each folder is locked by the process that made it. The kernel frees the lock however the process ends, so that a folder
without a lock belongs to nobody: the next process that asks for one removes it. Unlike a process id in the name, this
holds across containers that share a temporary directory.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "fer_ray_temporary_"  # nobody's results are named so: the default storage is `fer_ray_output`
MIN_AGE_S = 60  # a younger folder may be one that its process has not locked yet

_locks: dict[str, int] = {}  # folder -> file descriptor that holds its lock


def make_folder() -> str:
    """A new empty folder, this process's until `remove_folder` or its end."""
    sweep()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    _locks[folder] = _lock(folder)
    return folder


def remove_folder(folder: str) -> None:
    """Remove a folder of `make_folder`, if it is still there."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder in _locks:
        os.close(_locks.pop(folder))


@functools.cache  # once a process
def sweep() -> None:
    """Remove the folders of processes that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime > MIN_AGE_S:
                lock = _lock(str(folder))
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
        except OSError:  # locked by a living process, another user's, or removed meanwhile
            continue


def _lock(folder: str) -> int:
    """Lock a folder; the file descriptor that holds the lock. Raises: BlockingIOError if another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
