"""The faces of a video: which of its frames are looked at, and what the network says of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fer_ray.data import pixels
from fer_ray.use.footage import Footage
from fer_ray.use.photographs import Crop, Cutter
from fer_ray.use.recognition import Face, Frame, Network

SEARCH_S = 1.0  # between two searches of whole frames; in between each face is looked for where it was
FRAMES = 8  # that go through the network together; their crops are all that is in memory


@dataclass(frozen=True)
class Grid:
    """Which frames are scored, which are searched whole, and where a video is cut: all by their times alone.

    A frame is scored if it is the first in its slot of `every` seconds. Searches and segments begin with a slot, and a
    search looks at nothing that came before, so a video gives the same faces in one piece and in many.
    """

    every: float
    """Seconds; 0: every frame is scored, and slots of `SEARCH_S` are for searches."""
    segment_s: float = math.inf
    """Seconds of a segment, at most unless `every` is longer; by default a video is one."""

    def slot(self, time: float) -> int:
        """Number of the slot that a time lies in."""
        return math.floor(time / (self.every or SEARCH_S) + 1e-6)

    def search(self, time: float) -> int:
        """Number of the search that a time lies behind."""
        return self.slot(time) // self._slots_of(SEARCH_S)

    def segment(self, time: float) -> int:
        """Number of the segment that a time lies in."""
        return 0 if self.segment_s == math.inf else self.search(time) // self._searches

    def begin(self, segment: int) -> float:
        """When a segment begins, in seconds."""
        if not segment:
            return 0.0
        return segment * self._searches * self._slots_of(SEARCH_S) * (self.every or SEARCH_S)

    @property
    def _searches(self) -> int:
        """Searches in a segment."""
        return max(1, self._slots_of(self.segment_s) // self._slots_of(SEARCH_S))

    def _slots_of(self, seconds: float) -> int:
        return max(1, int(seconds / (self.every or SEARCH_S) + 1e-6))


@dataclass
class Seen:
    """What was decoded of a video or a segment of it."""

    frames: int = 0
    """Frames that were decoded."""
    last: float = 0.0
    """Time of the last one, in seconds."""
    damaged: int = 0
    """Frames and packets that could not be used."""
    shortest: float = math.inf
    """Least seconds between two frames."""
    longest: float = 0.0
    """Most seconds between two frames."""

    @classmethod
    def of(cls, parts: Sequence[Seen]) -> Seen:
        """Of a whole video. Damage near the border of two segments counts in both."""
        return cls(sum(part.frames for part in parts), max((part.last for part in parts), default=0.0),
                   sum(part.damaged for part in parts), min((part.shortest for part in parts), default=math.inf),
                   max((part.longest for part in parts), default=0.0))

    def add(self, time: float, before: float | None) -> None:
        """Count a frame; `before`: the time of the one before it."""
        self.frames, self.last = self.frames + 1, time
        if before is not None:
            self.shortest, self.longest = min(self.shortest, time - before), max(self.longest, time - before)


def score(footage: Footage, cutter: Cutter, network: Network, grid: Grid, seen: Seen,
          segment: tuple[int, int | None] = (0, None)) -> Iterator[Frame]:
    """What the network says of the frames of a video, in their order. Faces are numbered in each frame by themselves.

    Args:
        footage: the video.
        cutter: finds and cuts the faces.
        network: scores them.
        grid: which frames are scored.
        seen: is filled while frames are decoded.
        segment: numbers of the first segment and of the first that is not taken; None: to the end.

    Raises: storage.StorageError.
    """
    for chunk in _ahead(_chunks(_cut(footage, cutter, grid, seen, segment))):
        scores = iter(network.probabilities([crop.pixels for _, crops, _ in chunk for crop in crops]))
        for time, crops, reason in chunk:
            faces = [Face.of(crop.box, crop.score, crop.angle, crop.whole, next(scores)) for crop in crops]
            yield Frame(footage.uri, time, dict(enumerate(faces)), reason)


def _cut(footage: Footage, cutter: Cutter, grid: Grid, seen: Seen,
         segment: tuple[int, int | None]) -> Iterator[tuple[float, list[Crop], str | None]]:
    """Time of each frame that is scored, its faces, and the reason why there is none."""
    first, end = segment
    before: list[Crop] = []
    last = searched = shape = None
    for still in footage.frames(grid.begin(first)):
        if grid.segment(still.time) < first:
            continue
        if end is not None and grid.segment(still.time) >= end:
            break
        is_new = last is None or not grid.every or grid.slot(still.time) != grid.slot(last)
        seen.add(still.time, last)
        last = still.time
        if is_new:
            picture = still.pixels()
            if searched != (search := grid.search(still.time)) or shape != picture.shape:
                before, searched, shape = [], search, picture.shape
            try:
                before, reason = cutter.crops(picture, before), None
            except pixels.ImageError as error:
                before, reason = [], str(error)
            yield still.time, before, reason
    seen.damaged = footage.damaged


def _chunks(cut: Iterable[Any]) -> Iterator[list[Any]]:
    """So many at a time as go through the network together."""
    chunk = []
    for one in cut:
        chunk.append(one)
        if len(chunk) == FRAMES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _ahead(chunks: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """The same, each made by another thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(lambda: next(chunks, None))
        while (chunk := coming.result()) is not None:
            coming = pool.submit(lambda: next(chunks, None))
            yield chunk
