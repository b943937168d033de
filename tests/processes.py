"""Processes that the tests have started, by what they are called: several processes of pytest run side by side."""

import os
import re
import signal
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Process ids of the children of a process, and of theirs."""
    children: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children += map(int, listed.read_text().split())
        except OSError:  # that thread has ended
            continue
    return [found for child in children for found in (child, *descendants(child))]


def command_line(pid: int) -> bytes:
    """As the process was started, or the title that it has given itself; words end with a zero."""
    try:
        # a title leaves the rest of the command line filled with spaces and zeros
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b" \0")
    except OSError:  # it has ended
        return b""


def find(title: bytes, of: int | None = None) -> list[int]:
    """Descendants of a process, by default of this one, whose command line matches a pattern."""
    return [pid for pid in descendants(of or os.getpid()) if re.search(title, command_line(pid))]


def kill(title: bytes, count: int | None = None, of: int | None = None) -> int:
    """SIGKILL what `find` finds, all or so many of them; their number."""
    found = find(title, of)[:count]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)
