"""Which faces of a video's frames are the same person's: boxes that overlap from one frame to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from fer_ray.data.faces import Box
from fer_ray.use.recognition import Face, Frame

LEAST_IOU = 0.25  # of a face's boxes in two frames; a head turns by half its width between two looks
LOST_S = 1.0  # a face that was away for so long is a new one


def overlap(boxes: list[Box], others: list[Box]) -> np.ndarray:
    """Intersection over union of each box with each other one, float64 [N, M]."""
    a, b = (np.array(each, float).reshape(-1, 4) for each in (boxes, others))
    a, b = a[:, None], b[None]
    shared = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    area = shared.clip(0).prod(-1)
    return area / np.maximum(1, a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - area)


class Tracks:
    """Numbers faces, from 0 in the order in which they appear."""

    def __init__(self, lost_s: float):
        self.lost_s = lost_s
        self.last: dict[int, tuple[Box, float]] = {}  # where and when each face was seen that may still be there
        self.next = 0

    def number(self, time: float, boxes: list[Box]) -> list[int]:
        """The number of each box of the frame at `time` (seconds), so that the boxes of a face overlap most."""
        from scipy.optimize import linear_sum_assignment

        self.last = {face: (box, seen) for face, (box, seen) in self.last.items() if time - seen <= self.lost_s}
        known = list(self.last)
        common = overlap(boxes, [self.last[face][0] for face in known])
        numbers = {int(row): known[column] for row, column in zip(*linear_sum_assignment(-common), strict=True)
                   if common[row, column] >= LEAST_IOU}
        for row, box in enumerate(boxes):
            if row not in numbers:
                numbers[row], self.next = self.next, self.next + 1
            self.last[numbers[row]] = (box, time)
        return [numbers[row] for row in range(len(boxes))]


def follow(frames: Iterable[Frame], every: float, smooth: float) -> Iterator[Frame]:
    """The frames of a video with their faces numbered, so that one face has one number.

    Args:
        frames: in the order of their times, with faces numbered in any way.
        every: seconds between two of them.
        smooth: time constant in seconds of an exponential moving average over each face's probabilities; 0: none.
    """
    tracks = Tracks(max(LOST_S, 2.5 * every))
    means: dict[int, tuple[float, np.ndarray]] = {}  # of each face: when it was seen last, and its average then
    for frame in frames:
        numbers = tracks.number(frame.time, [face.box for face in frame.faces.values()])
        faces = dict(zip(numbers, frame.faces.values(), strict=True))
        if smooth:
            means = {number: mean for number, mean in means.items() if number in tracks.last}
            means |= {number: _mean(frame.time, face, means.get(number), smooth) for number, face in faces.items()}
            faces = {number: Face.of(face.box, face.score, face.angle, face.whole, means[number][1])
                     for number, face in faces.items()}
        yield Frame(frame.video, frame.time, faces, frame.reason)


def _mean(time: float, face: Face, before: tuple[float, np.ndarray] | None,
          smooth: float) -> tuple[float, np.ndarray]:
    """The face's average at this time. The weight of what is older falls to 1/e in `smooth` seconds."""
    now = np.array(list(face.probabilities.values()))
    if before is None:
        return time, now
    kept = math.exp(-(time - before[0]) / smooth)
    return time, kept * before[1] + (1 - kept) * now
