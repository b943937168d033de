"""A copy of each video with its faces drawn on it, and a page with the course of their expressions."""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from fer_ray import progress, scratch, storage
from fer_ray.data.faces import Box
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.report import pages, video_figures
from fer_ray.use import drawing, videos
from fer_ray.use.footage import Footage
from fer_ray.use.recognition import Face, Frame

SIDE = 1280  # px of the longer side of a copy at most
CLOCK = Fraction(1, 90_000)  # of a copy: frames keep their times, also where the rate varies
PAGE, COPY, MARKER = "timeline.html", "annotated.mp4", "annotated.json"
KEY_FRAMES, THUMBNAIL = 8, 360  # pictures on the page, and px of the longer side of each
FACES_SHOWN = 6  # on the page, those that are seen longest
CPUS = 2  # of a task: one draws, one encodes


@dataclass
class Course:
    """What is seen of one face."""

    times: list[float] = field(default_factory=list)
    """Seconds."""
    probabilities: list[list[float]] = field(default_factory=list)
    """Of the eight expressions at each of these times."""


def write(job: videos.Job, films: list[videos.Film]) -> list[str]:
    """Draw the copies and pages that are not there yet; the URI of the page of each video that could be read.

    Raises: storage.StorageError.
    """
    import ray

    readable = [film for film in films if film.segments]
    missing = [film for film in readable if not _is_there(film, job.smooth)]
    task: Any = ray.remote(_write_one).options(num_cpus=min(CPUS, ray.cluster_resources()["CPU"]),
                                               scheduling_strategy="SPREAD")
    progress.get([task.remote(film, job) for film in missing], "draw videos",
                 [max(1, round(film.duration or 0)) for film in missing], "seconds of video")
    return [storage.join(film.folder, PAGE) for film in readable]


def _is_there(film: videos.Film, smooth: float) -> bool:
    """Whether both are there, and were made of the averages over so many seconds."""
    try:
        made = storage.read_own_json(storage.join(film.folder, MARKER), {"smooth": float}, "")
    except storage.DamagedError:
        return False
    return made["smooth"] == smooth and {PAGE, COPY} <= set(storage.list_files(film.folder))


def _write_one(film: videos.Film, job: videos.Job) -> None:
    last = videos.seen_of(film).last
    courses, key_times = _look(videos.frames_of(film, job.every, job.smooth), last)
    local = os.path.join(scratch.folder(), f"{os.urandom(8).hex()}.mp4")
    thumbnails: dict[float, str] = {}
    with Footage(film.video) as footage, Encoder(local, footage) as encoder:
        for time, shown, picture in draw(footage, videos.frames_of(film, job.every, job.smooth), job.every):
            encoder.add(time, picture)
            if shown is not None and shown.time in key_times and shown.time not in thumbnails:
                thumbnails[shown.time] = _thumbnail(picture)
    storage.move(local, storage.join(film.folder, COPY))
    longest = sorted(courses, key=lambda number: -len(courses[number].times))[:FACES_SHOWN]
    gap_s = 2.5 * max(job.every, 0.4)
    content = {
        "video": film.video, "checkpoint": job.network.uri,
        "calibrated": job.network.temperature is not None, "copy": COPY, "seconds": last,
        "every": job.every, "smooth": job.smooth, "faces": len(courses), "notes": videos.notes(film),
        "shown": [{"number": number, "found": _shares(courses[number]),
                   "figure": pages.picture(lambda course: video_figures.course_figure(
                       np.array(course.times), np.array(course.probabilities), last, gap_s), courses[number])}
                  for number in sorted(longest)],
        "key_frames": [{"time": video_figures.clock(time), "file": thumbnails[time], "faces": key_times[time]}
                       for time in sorted(thumbnails)]}
    storage.write_bytes(storage.join(film.folder, PAGE), pages.render_timeline(content).encode())
    storage.write_json(storage.join(film.folder, MARKER), {"smooth": job.smooth})


def _look(frames: Iterable[Frame], last: float) -> tuple[dict[int, Course], dict[float, list[str]]]:
    """The course of each face, and times of key frames, with what is seen there. `last`: time of the last frame.

    A key frame is the surest one of each stretch of the frames that were looked at, all stretches being equally long.
    """
    courses: dict[int, Course] = {}
    surest: list[tuple[float, float, list[str]]] = []
    for frame in frames:
        for number, face in frame.faces.items():
            course = courses.setdefault(number, Course())
            course.times.append(frame.time)
            course.probabilities.append(list(face.probabilities.values()))
        if frame.faces:
            surest.append((max(max(face.probabilities.values()) for face in frame.faces.values()), frame.time,
                           [f"{number}: {face.expression} {face.probabilities[face.expression]:.0%}"
                            for number, face in frame.faces.items()]))
    stretch = max(last, 1e-9) / KEY_FRAMES
    chosen = [max(group, key=lambda one: one[0]) for _, group in itertools.groupby(
        surest, key=lambda one: min(KEY_FRAMES - 1, int(one[1] / stretch)))]
    return courses, {time: words for _, time, words in chosen}


def _shares(course: Course) -> dict[str, float]:
    """Of the time in which a face is seen: the part in which each expression is the most probable one."""
    best = Counter(EXPRESSIONS[n] for n in np.array(course.probabilities).argmax(1))
    return {expression: number / best.total() for expression, number in best.most_common()}


def _thumbnail(picture: Image.Image) -> str:
    """A small JPEG inside the page."""
    small, sink = picture.copy(), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(sink, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


# --- the copy --------------------------------------------------------------------------------------------


def draw(footage: Footage, frames: Iterator[Frame], every: float) -> Iterator[tuple[float, Frame | None, Image.Image]]:
    """Every frame of a video with its faces: time, the frame that was looked at last, and the picture.

    Between two frames that were looked at, a box goes straight from one place to the next.
    """
    before, after = None, next(frames, None)
    for still in footage.frames():
        while after is not None and after.time <= still.time:
            before, after = after, next(frames, None)
        shown = between(before, after, still.time, max(every, 0.5)) if before else {}
        yield still.time, before, drawing.annotate(still.pixels(), shown, numbered=True)


def between(before: Frame, after: Frame | None, time: float, hold: float) -> dict[int, Face]:
    """The faces at a time between two frames that were looked at.

    What is seen in the first alone stays for `hold` seconds.
    """
    faces = {}
    for number, face in before.faces.items():
        if after is not None and number in after.faces:
            part = (time - before.time) / (after.time - before.time)
            faces[number] = _at(face, _mixed(face.box, after.faces[number].box, part))
        elif time - before.time <= hold:
            faces[number] = face
    return faces


def _at(face: Face, box: Box) -> Face:
    return Face(box, face.score, face.angle, face.whole, face.expression, face.probabilities)


def _mixed(box: Box, other: Box, part: float) -> Box:
    x, y, width, height = (round(a + part * (b - a)) for a, b in zip(box, other, strict=True))
    return x, y, width, height


class Encoder:
    """Writes a video as MP4 (H.264), without sound, which a browser plays."""

    def __init__(self, path: str, footage: Footage):
        """`footage`: says the size of the picture and the rate."""
        import av

        scale = min(1.0, SIDE / max(footage.width, footage.height))
        self.width, self.height = (max(2, 2 * round(side * scale / 2)) for side in (footage.width, footage.height))
        self.out = av.open(path, "w", options={"movflags": "faststart"})
        self.stream: Any = self.out.add_stream("libx264", rate=Fraction(footage.rate).limit_denominator(1001),
                                               options={"preset": "veryfast", "crf": "23"})
        self.stream.width, self.stream.height, self.stream.pix_fmt = self.width, self.height, "yuv420p"
        self.stream.codec_context.time_base = CLOCK
        self.stream.codec_context.thread_count = CPUS
        self.last = -1

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, kind, *error) -> None:
        if kind is None:
            self.out.mux(self.stream.encode(None))
        self.out.close()

    def add(self, time: float, picture: Image.Image) -> None:
        """Append a frame. One that is not later than the one before it is left out, as players do."""
        import av

        ticks = round(time / CLOCK)
        if ticks > self.last:
            frame = av.VideoFrame.from_image(picture).reformat(self.width, self.height, "yuv420p")
            frame.pts, frame.time_base, self.last = ticks, CLOCK, ticks
            self.out.mux(self.stream.encode(frame))
