"""Shows how far long work has come: a bar with rate and time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

LOG_EVERY_S = 20.0  # between two lines in a log
POLL_S = 0.5  # between two looks at the tasks that still run


class Progress:
    """How many items of one piece of work are done, shown while the context is open.

    ::

        with Progress("crop", total=len(images)) as progress:
            for image in images:
                ...
                progress.advance()

    If standard error is a terminal, a bar is drawn there and wiped when the work ends. Otherwise standard output gets
    a line every `LOG_EVERY_S` seconds, and none for work that ends sooner.

    Args:
        work: what is done, in a word or two, as the line begins.
        total: items of the whole work; None if nobody knows.
        unit: what is counted, in the plural.
        done: items that an earlier run has done already; they do not count for the rate.
    """

    def __init__(self, work: str, total: int | None = None, unit: str = "images", done: int = 0):
        from tqdm import tqdm  # here, so that `--help` does not wait for the import

        self.work, self.total, self.unit, self.done, self.initial = work, total, unit, done, done
        self.begun = self.last_line = time.monotonic()
        self.bar = tqdm(desc=work, total=total, unit=f" {unit}", initial=done, leave=False, dynamic_ncols=True,
                        file=sys.stderr, disable=None)  # None: no bar where this is no terminal

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def advance(self, count: int = 1) -> None:
        """So many more items are done."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.bar.disable and now - self.last_line >= LOG_EVERY_S:
            self.last_line = now
            print(self._line(now - self.begun), flush=True)

    def advance_to(self, done: int) -> None:
        """So many items are done in all."""
        self.advance(done - self.done)

    def _line(self, seconds: float) -> str:
        rate = (self.done - self.initial) / seconds
        per_s = f"{rate:.{0 if rate >= 10 else 1}f} {self.unit}/s"
        if self.total is None:
            return f"{self.work}: {self.done:,} {self.unit}, {per_s}"
        left = f", {self.bar.format_interval((self.total - self.done) / rate)} left" if rate else ""
        return f"{self.work}: {self.done:,} of {self.total:,} {self.unit}, {per_s}{left}"


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, by default on standard output, above the bars that stand on the terminal."""
    from tqdm import tqdm

    file = file or sys.stdout
    tqdm.write(line, file=file)
    file.flush()


def get(tasks: list, work: str, sizes: list[int], unit: str = "images") -> list[Any]:
    """The results of Ray tasks, in their order, like `ray.get(tasks)`, with their progress shown meanwhile.

    Args:
        tasks: object references.
        work: as of `Progress`.
        sizes: how many items each task works on.
        unit: as of `Progress`.
    """
    import ray

    results, size_of = {}, dict(zip(tasks, sizes, strict=True))
    waiting = list(tasks)
    with Progress(work, sum(sizes), unit) as progress:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
            # fetched at once, so that the first task that fails ends the wait
            results.update(zip(done, ray.get(done), strict=True))
            progress.advance(sum(size_of[task] for task in done))
    return [results[task] for task in tasks]
