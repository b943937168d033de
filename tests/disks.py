"""Disks that are full."""

import contextlib
import resource
from collections.abc import Generator


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Generator[None]:
    """The kernel refuses to let a file of this process grow beyond so many bytes; root is no exception.

    Only around what is tested: pytest's own output may be a file that is longer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
