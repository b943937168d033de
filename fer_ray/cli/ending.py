"""How a command ends early: by a signal, or because a process of Ray died. One line each, and an exit code."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 128 + signal.SIGINT  # 130 and 143: what a shell reports of a command that such a signal ended
TERMINATED = 128 + signal.SIGTERM


_signals: list[int] = []  # those that have arrived and for which Python would do nothing by itself


def listen() -> None:
    """Let SIGTERM do what Ctrl-C does in the main thread, so that `finally` blocks run and Ray is shut down.

    To be called again after `ray.init`, which replaces the handler twice: by one that leaves with exit code 15 and by
    a native one that prints the stack of every thread.
    """
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    # `ray.get` raises a KeyboardInterrupt of its own, whatever a handler raises: what arrived is kept beside it
    _signals.append(number)
    raise KeyboardInterrupt


def by_signal(error: BaseException) -> int | None:
    """The exit code if `error` is what a signal raised; None for any other."""
    if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
        return TERMINATED  # by Ray's own handler, while `ray.init` is at work
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if signal.SIGTERM in _signals else INTERRUPTED
    return None


def tell(code: int) -> None:
    """Say on stderr that a signal ended the command. A second signal ends the process at once.

    Shutting Ray down takes seconds. Ray's processes end with this one even if nobody shuts them down.
    """
    word = "terminated" if code == TERMINATED else "interrupted"
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(code))
    print(f"{word}; the same command goes on where it was", file=sys.stderr, flush=True)


def explain(error: Exception) -> str | None:
    """One line if a process or machine of Ray is to blame: what happened, and what to do. None for any other error.

    An error that was raised in a task or on a worker counts as what caused it there: a fault of the code is not Ray's.
    """
    if "ray" not in sys.modules:
        return None
    from ray.exceptions import RayError, RayTaskError, UserCodeException

    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if not isinstance(error, RayError) or isinstance(error, RayTaskError | UserCodeException):
        return None
    return f"Ray: {summary(error)}; the same command goes on where it was"


def summary(error: Exception) -> str:
    """The first line of an error's message, which of Ray's errors says what happened, and the process if it is named.

    The rest of the message is advice for developers and the last lines of some log.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    process = next((line.removeprefix("class_name: ") for line in lines if line.startswith("class_name: ")), "")
    return lines[0].rstrip(".")[:300] + (f" ({process})" if process else "")
