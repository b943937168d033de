"""Small videos with drawn faces, and jobs on them, for tests of what reads videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import checkpoints as tiny
import numpy as np
import pyarrow as pa

from fer_ray.data.drawn_face import render_face
from fer_ray.data_config import FacesConfig
from fer_ray.use import videos as of_videos
from fer_ray.use.inputs import Picture
from fer_ray.use.photographs import Search
from fer_ray.use.recognition import Face, Frame

CLOCK = Fraction(1, 1000)


def face(expression: str = "happiness", person: int = 0, size: int = 110, half_width: float = 30) -> np.ndarray:
    """A drawn face, uint8 [size, size]."""
    return render_face(np.random.default_rng(person), expression, 1.0, np.random.default_rng(0), (size, size),
                       half_width)


def scene(faces: Sequence[tuple[np.ndarray, int, int]], width: int = 240, height: int = 160) -> np.ndarray:
    """Faces at places x, y of a grey picture, uint8 [height, width, 3]."""
    picture = np.full((height, width, 3), 110, np.uint8)
    for one, x, y in faces:
        picture[y : y + one.shape[0], x : x + one.shape[1]] = one[..., None]
    return picture


def write(path: Path | str, frames: Iterable[tuple[float, np.ndarray]], codec: str = "libx264", rotation: int = 0,
          gop: int = 10, shape: Fraction | None = None, **options: str) -> str:
    """Write a video; its path.

    Args:
        path: whose extension says the container.
        frames: seconds and pixels of each.
        codec: of FFmpeg.
        rotation: degrees, counterclockwise, by which players are to turn it.
        gop: frames from one that stands for itself to the next.
        shape: width of a pixel in its heights.
        options: of the container.
    """
    stream = None
    with av.open(str(path), "w", options=options) as out:
        for time, picture in frames:
            if stream is None:
                stream = out.add_stream(codec, rate=10)
                assert isinstance(stream, av.VideoStream)
                stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
                stream.codec_context.gop_size = gop
                if codec != "mpeg4":  # whose clock must not be finer than its rate
                    stream.codec_context.time_base = CLOCK
                if rotation:
                    stream.set_display_rotation(rotation)
                if shape:
                    stream.codec_context.sample_aspect_ratio = shape
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / CLOCK), CLOCK
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return str(path)


def walk(seconds: float, rate: int = 10, speed: float = 30.0) -> Iterable[tuple[float, np.ndarray]]:
    """A face that goes to the right, at so many px a second, and back."""
    one = face()
    for number in range(round(seconds * rate)):
        time = number / rate
        x = round(speed * time) % 240
        yield time, scene([(one, min(x, 239 - x), 20)])


def frame(time: float, boxes: list[tuple[int, int]], anger: float = 0.5) -> Frame:
    """Faces of 100 px at these places."""
    probabilities = np.array([anger, 1 - anger, 0, 0, 0, 0, 0, 0])
    return Frame("v", time, {n: Face.of((x, y, 100, 100), 1.0, 0.0, False, probabilities)
                             for n, (x, y) in enumerate(boxes)}, None)


def job(folder, names, checkpoint="c", every=0.2, smooth=0.0, device="cpu", reason=None) -> of_videos.Job:
    """What is to be predicted of these videos."""
    return of_videos.Job(str(folder), [Picture(str(name), 1, 2, reason) for name in names], tiny.described(checkpoint),
                         Search(FacesConfig()), device, every, smooth)


def make_parts(work: of_videos.Job) -> list[of_videos.Film]:
    """What the cluster does of a job."""
    films = of_videos._open(work)
    worker = of_videos.Worker(work.network.uri, work.device, work.search, work.grid)
    for film in films:
        for number, part in enumerate(film.parts()):
            end = number + 1 if number + 1 < film.segments else -1
            worker(pa.Table.from_pylist([{"video": film.video, "part": part, "first": number, "end": end}]))
    return films
