"""Figures of videos: the course of a face's expression (matplotlib)."""

from __future__ import annotations

import numpy as np

from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.report.figures import COLOURS

COLUMNS = 600  # points in time that a figure shows; more are averaged


def course_figure(times: np.ndarray, probabilities: np.ndarray, last: float, gap_s: float):
    """The probabilities of a face's expressions, stacked, over the time of a video.

    Args:
        times: seconds, ascending, float64 [N].
        probabilities: float64 [N, 8].
        last: time of the video's last frame, in seconds.
        gap_s: seconds without the face that are shown as a gap.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    axis = figure.subplots()
    times, probabilities = _with_gaps(*_averaged(times, probabilities, last), max(gap_s, 2.5 * last / COLUMNS))
    levels = np.concatenate([np.zeros((len(times), 1)), probabilities.cumsum(1)], 1)
    for n, expression in enumerate(EXPRESSIONS):
        axis.fill_between(times, levels[:, n], levels[:, n + 1], color=COLOURS[expression], lw=0, label=expression)
    axis.set(xlim=(0, max(last, 1e-3)), ylim=(0, 1), ylabel="probability", xlabel="time in the video")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    figure.legend(loc="outside upper center", ncols=len(EXPRESSIONS), frameon=False, fontsize=8)
    return figure


def clock(seconds: float) -> str:
    """A time as players show it: "1:04.5"."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def _averaged(times: np.ndarray, probabilities: np.ndarray, last: float) -> tuple[np.ndarray, np.ndarray]:
    """The means within each of `COLUMNS` equal steps of time, if there are more points than that."""
    if len(times) <= COLUMNS:
        return times, probabilities
    steps = np.minimum(COLUMNS - 1, times / max(last, 1e-9) * COLUMNS).astype(int)
    _, first, sizes = np.unique(steps, return_index=True, return_counts=True)
    return np.add.reduceat(times, first) / sizes, np.add.reduceat(probabilities, first) / sizes[:, None]


def _with_gaps(times: np.ndarray, probabilities: np.ndarray, gap_s: float) -> tuple[np.ndarray, np.ndarray]:
    """With a point without values in each gap, and each stretch drawn to be seen, also if it is a single point."""
    ends = np.flatnonzero(np.diff(times) > gap_s) + 1
    stretches = [(np.append(part, part[-1] + gap_s / 5), np.append(values, values[-1:], 0))
                 for part, values in zip(np.split(times, ends), np.split(probabilities, ends), strict=True)]
    hole = np.full((1, probabilities.shape[1]), np.nan)
    return (np.concatenate([np.append(part, part[-1]) for part, _ in stretches]),
            np.concatenate([np.concatenate([values, hole]) for _, values in stretches]))
