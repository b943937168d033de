"""What the user sees while workers train: a line an epoch, and how far the current epoch is.

What workers print themselves drowns in Ray's own log. So the process that the user started follows the run's
`metrics.jsonl` for the epochs that have ended. Within an epoch rank 0 puts its step into the key-value store of Ray's
head (GCS) about once a second. That takes it a millisecond, wherever in the cluster it runs, and no further process.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Generator

from fer_ray import progress
from fer_ray.config import TrainConfig
from fer_ray.train import tracking
from fer_ray.train.job import TrainingInput

TICK_S = 1.0  # between two looks at the run, and between two ticks of a worker
NAMESPACE = "fer_ray"  # of the keys in Ray's store


class Ticker:
    """Tells the user's process how far the epoch is."""

    def __init__(self, run: str, rank: int):
        """`run`: URI of its folder. Only rank 0 tells: the workers go through an epoch step by step together."""
        self.run, self.key, self.next_at = run, f"live:{run}", time.monotonic() if rank == 0 else float("inf")

    def tick(self, epoch: int, done: int, total: int) -> None:
        """So many images of the epoch (from 0) are done, over all workers."""
        if time.monotonic() < self.next_at:
            return
        self.next_at = time.monotonic() + TICK_S
        from ray.experimental import internal_kv

        if internal_kv._internal_kv_initialized():  # not where a test runs the loop without Ray
            internal_kv._internal_kv_put(self.key, json.dumps([epoch, done, total]), namespace=NAMESPACE)


    def plan(self, steps: int, seconds: float) -> None:
        """Before the first step: so many steps has an epoch, and so long may the training take."""
        from ray.experimental import internal_kv

        if math.isfinite(self.next_at) and internal_kv._internal_kv_initialized():
            internal_kv._internal_kv_put(f"plan:{self.run}", json.dumps([steps, seconds]), namespace=NAMESPACE)


def describe_feed(loaded: TrainingInput) -> str:
    """Where the images of a training come from, and why, in words."""
    words = {"cached": "images from memory", "features": "features", "streamed": "images streamed by Ray Data"}
    return f"{words[loaded.train.kind]} ({loaded.train.why})"


def read_plan(run: str) -> tuple[int, float] | None:
    """Steps of an epoch, and an estimate of the seconds that all epochs take; None if the worker has told nothing."""
    from ray.experimental import internal_kv

    content = internal_kv._internal_kv_get(f"plan:{run}", namespace=NAMESPACE)
    return tuple(json.loads(content)) if content else None


def read_tick(run: str) -> tuple[int, int, int] | None:
    """What the run's worker told last: epoch (from 0), images done, images in all; None if nothing yet."""
    from ray.experimental import internal_kv

    content = internal_kv._internal_kv_get(f"live:{run}", namespace=NAMESPACE)
    return tuple(json.loads(content)) if content else None


def forget_tick(run: str) -> None:
    """Remove what an earlier training of this run told."""
    from ray.experimental import internal_kv

    for key in ("live", "plan"):
        internal_kv._internal_kv_del(f"{key}:{run}", namespace=NAMESPACE)


def epoch_line(numbers: dict, settings: TrainConfig) -> str:
    """The numbers of an epoch in words."""
    return (f"epoch {numbers['epoch'] + 1:3d}/{settings.epochs}  loss {numbers['train_loss']:.3f}  val loss "
            f"{numbers['val_loss']:.3f}  val balanced accuracy {numbers['val_balanced_accuracy']:.3f} (chance "
            f"{numbers['val_chance']:.3f})  {numbers['images_per_s']:.0f} images/s")


@contextlib.contextmanager
def show(runs: dict[str, str], settings: TrainConfig) -> Generator[None]:
    """Show what becomes of these runs (label -> URI of the folder) while the context is open.

    Within an epoch only a single run is shown: several side by side end an epoch often enough.
    """
    display, stop = _Display(runs, settings), threading.Event()

    def follow() -> None:
        with contextlib.closing(display):
            while not stop.wait(TICK_S):
                display.update()
            display.update()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Display:
    """The lines of the epochs that have ended, and the bar of the one that has not."""

    def __init__(self, runs: dict[str, str], settings: TrainConfig):
        self.runs, self.settings = runs, settings
        self.bar: progress.Progress | None = None
        self.planned = False
        self.shown = {label: len(tracking.read(run)) for label, run in runs.items()}
        for label, epochs in self.shown.items():
            if 0 < epochs < settings.epochs:
                print(f"{label + ': ' if label else ''}resuming after epoch {epochs}", flush=True)
        for run in runs.values():
            forget_tick(run)

    def update(self) -> None:
        """Look what the workers have done."""
        # Storage or Ray may not answer. Nothing is shown then; the training that needs them says what is wrong.
        with contextlib.suppress(Exception):
            for label, run in self.runs.items():
                for numbers in tracking.read(run)[self.shown[label] :]:
                    self.close()
                    progress.say(f"{label + '  ' if label else ''}{epoch_line(numbers, self.settings)}")
                    self.shown[label] += 1
            if len(self.runs) == 1:
                self._show_plan(*self.runs.values())
                self._update_bar(*self.runs.items())

    def _show_plan(self, run: str) -> None:
        if not self.planned and (plan := read_plan(run)):
            self.planned = True
            progress.say(f"{plan[0]} steps an epoch; with at most {self.settings.epochs} epochs about "
                         f"{max(1, round(plan[1] / 60))} min, by the time of a validation batch")

    def _update_bar(self, only: tuple[str, str]) -> None:
        label, run = only
        tick = read_tick(run)
        if tick is None or tick[0] < self.shown[label]:  # that epoch has ended, and its line stands already
            return
        epoch, done, total = tick
        work = f"epoch {epoch + 1}/{self.settings.epochs}"
        if self.bar is None or self.bar.work != work:
            self.close()
            self.bar = progress.Progress(work, total, done=done)
        self.bar.advance_to(done)

    def close(self) -> None:
        """Wipe the bar."""
        if self.bar:
            self.bar.__exit__()
            self.bar = None
