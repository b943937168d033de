"""Videos to a table of the faces in their frames, on all machines of a cluster (Ray Data).

A long video is cut into segments of about a minute, each of which is a file of its own: a job that was killed goes on
with those that are missing or damaged. Faces are numbered when all segments are there, over the whole video.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import posixpath
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import progress, scratch, storage
from fer_ray.use import networks, photographs, recognition, tracks, video
from fer_ray.use.footage import Footage, VideoError
from fer_ray.use.inputs import Picture
from fer_ray.use.recognition import FRAMES, Frame

SEGMENT_S = 60.0  # that one worker takes; it begins to decode some seconds earlier, at a frame that stands for itself
CPUS_PER_WORKER = 2  # one for the network, one that decodes and finds faces for it
OPENED = 16  # videos that are opened at once, to see how long they are: storage may be far away
MOST_SEGMENTS = 1440  # a day; what lies behind it belongs to the last one, for a damaged head may declare anything


@dataclass(frozen=True)
class Job:
    """What is to be predicted, and by which network."""

    folder: str
    """URI of the folder that gets the tables."""
    videos: list[Picture]
    """The videos, each once."""
    network: networks.Description
    """The network that scores the faces."""
    search: photographs.Search
    """Which faces, found how."""
    device: Literal["cpu", "cuda"]
    """Where the networks compute; GPUs are shared by them."""
    every: float
    """Seconds between two frames that are looked at."""
    smooth: float
    """Time constant in seconds of the average over each face's probabilities; 0: none."""

    @property
    def grid(self) -> video.Grid:
        """Which frames are looked at, and where videos are cut."""
        return video.Grid(self.every, SEGMENT_S)

    @property
    def table(self) -> str:
        """URI of the table as CSV."""
        return storage.join(self.folder, "frames.csv")


@dataclass(frozen=True)
class Film:
    """A video of a job, and where what is made of it lies."""

    video: str
    """Path or URI."""
    folder: str
    """URI of a folder whose name says the video, its content, the network and the options."""
    segments: int = 0
    """Into how many it is cut."""
    width: int = 0
    """Of its picture, px."""
    height: int = 0
    """Of its picture, px."""
    rotation: int = 0
    """Degrees, counterclockwise, by which its metadata turn it."""
    duration: float | None = None
    """Seconds, as its head says."""
    reason: str | None = None
    """Why it cannot be read."""

    def parts(self) -> list[str]:
        """URI of each segment's table."""
        return [storage.join(self.folder, f"part-{number:06d}.parquet") for number in range(self.segments)]


def predict(job: Job) -> list[Film]:
    """Find, follow and classify the faces of each video.

    Writes into `job.folder`: `frames.csv` and `frames.parquet` with the columns of `recognition.FRAMES`, a row for each
    face in each frame that was looked at, one with its reason for a frame without a face, and one for a video that
    cannot be read; and `videos.csv`, a row for each video. What is there of the same videos is used again.

    Raises: checkpoints.CheckpointError; storage.StorageError.
    """
    films = _open(job)
    mine = {film.folder.rsplit("/", 1)[-1] for film in films}
    for other in set(storage.list_dirs(storage.join(job.folder, "videos"))) - mine:
        storage.delete_dir(storage.join(job.folder, "videos", other))
    missing = [(film, segment) for film in films for segment, part in enumerate(film.parts())
               if recognition.read_table(part, FRAMES) is None]
    if missing:
        _make(job, films, missing)
    _write(job, films)
    return films


def remove(folder: str) -> None:
    """Remove what `predict` has written into a folder."""
    for name in ("frames.csv", "frames.parquet", "videos.csv"):
        storage.delete_file(storage.join(folder, name))
    storage.delete_dir(storage.join(folder, "videos"))


def _open(job: Job) -> list[Film]:
    """Each video with what its head says."""
    network = [job.network.sha256, job.network.temperature]
    made_by = [network, dataclasses.asdict(job.search), dataclasses.astuple(job.grid), FRAMES.names]
    with ThreadPoolExecutor(OPENED) as pool:
        return list(pool.map(lambda picture: _film(job, picture, made_by), job.videos))


def _film(job: Job, picture: Picture, made_by: list) -> Film:
    request = hashlib.sha256(json.dumps([dataclasses.astuple(picture), made_by]).encode()).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", posixpath.splitext(picture.image.rsplit("/", 1)[-1])[0])[:60]
    film = Film(picture.image, storage.join(job.folder, "videos", f"{stem}-{request[:12]}"), reason=picture.reason)
    if film.reason:
        return film
    try:
        with Footage(picture.image) as footage:
            last = job.grid.segment(footage.duration or 0.0)
            return dataclasses.replace(
                film, segments=min(last + 1, MOST_SEGMENTS), width=footage.width, height=footage.height,
                rotation=footage.rotation, duration=footage.duration)
    except VideoError as error:
        return dataclasses.replace(film, reason=str(error))


# --- segments on the cluster -----------------------------------------------------------------------------


def _make(job: Job, films: list[Film], missing: list[tuple[Film, int]]) -> None:
    """Write the tables of these segments."""
    import ray
    import ray.data

    items = [{"video": film.video, "part": film.parts()[segment], "first": segment,
              "end": segment + 1 if segment + 1 < film.segments else -1} for film, segment in missing]
    options = worker_options(ray.cluster_resources(), job)
    done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Worker, batch_size=1, batch_format="pyarrow", **options)
    total = sum(film.segments for film in films)
    with progress.Progress("predict videos", total, "segments", done=total - len(missing)) as shown:
        for _ in done.iter_rows():
            shown.advance()


def worker_options(cluster: dict, job: Job) -> dict[str, Any]:
    """Options of `map_batches` for the pool of `Worker`: one for every `CPUS_PER_WORKER` CPUs, and GPUs are shared.

    Args:
        cluster: as `ray.cluster_resources()` gives it.
        job: names the network and the device.
    """
    import ray.data

    workers = max(1, int(cluster.get("CPU", 1) // CPUS_PER_WORKER))
    # where an autoscaler has not started the first GPU yet, the workers ask for it
    share = 1 / math.ceil(workers / max(1, cluster.get("GPU", 0)))
    return {"num_cpus": 1, "num_gpus": share if job.device == "cuda" else 0,
            "scheduling_strategy": "SPREAD", "compute": ray.data.ActorPoolStrategy(size=workers), "max_restarts": 0,
            "fn_constructor_kwargs": {"network": job.network.uri, "device": job.device, "search": job.search,
                                      "grid": job.grid}}


class Worker:
    """Decodes one segment at a time, finds and scores its faces, and writes its table."""

    def __init__(self, network: str, device: str, search: photographs.Search, grid: video.Grid):
        import cv2

        cv2.setNumThreads(1)  # the workers are the parallelism
        self.network = networks.load(network, device, threads=CPUS_PER_WORKER)
        self.cutter, self.grid = photographs.Cutter(search), grid

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Segments, as `_make` describes them -> the URIs to which their tables were written."""
        for one in batch.to_pylist():
            seen = video.Seen()
            with _opened(one["video"]) as footage:
                segment = (one["first"], one["end"] if one["end"] >= 0 else None)
                rows = [row for frame in video.score(footage, self.cutter, self.network, self.grid, seen, segment)
                        for row in frame.rows()]
            table = pa.Table.from_pylist(rows, schema=FRAMES.with_metadata({"seen": json.dumps(vars(seen))}))
            sink = io.BytesIO()
            pq.write_table(table, sink)
            storage.write_bytes(one["part"], sink.getvalue())
        return batch.select(["part"])


def _opened(name: str) -> Footage:
    """The video, which could be read when the job began."""
    try:
        return Footage(name)
    except VideoError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise storage.StorageError(f"{name}: is not to be found on {socket.gethostname()}; videos must lie under "
                                       "the same path on every node, and stay there") from None
        raise storage.StorageError(f"{name}: cannot be read any more ({error})") from None


# --- tables ----------------------------------------------------------------------------------------------


def frames_of(film: Film, every: float, smooth: float) -> Iterator[Frame]:
    """The frames of a video that were looked at, with one number for each face. Raises: storage.DamagedError."""
    return tracks.follow((frame for table, _ in _tables(film) for frame in _frames(table)), every, smooth)


def _tables(film: Film) -> Iterator[tuple[pa.Table, video.Seen]]:
    for part in film.parts():
        table = recognition.read_table(part, FRAMES)
        if table is None:
            raise storage.DamagedError(f"{part}: is missing or damaged; run the same command again")
        yield table, video.Seen(**json.loads((table.schema.metadata or {})[b"seen"]))


def _frames(table: pa.Table) -> Iterator[Frame]:
    for _, rows in itertools.groupby(table.to_pylist(), key=lambda row: row["time"]):
        yield Frame.from_rows(list(rows))


def _write(job: Job, films: list[Film]) -> None:
    """Both forms of the table, and the table of videos. What is in memory is one video's rows at most."""
    csv, parquet = (os.path.join(scratch.folder(), name) for name in ("frames.csv", "frames.parquet"))
    told = []
    with pq.ParquetWriter(parquet, FRAMES) as writer, open(csv, "w", encoding="utf-8", newline="") as text:
        for film in films:
            rows = [row for frame in frames_of(film, job.every, job.smooth) for row in frame.rows()]
            if not film.segments:
                rows = [dict.fromkeys(FRAMES.names) | {"video": film.video, "reason": film.reason}]
            table = pa.Table.from_pylist(rows, schema=FRAMES)
            writer.write_table(table)
            text.write(recognition.to_pandas(table).to_csv(index=False, header=not told))
            told.append(_summary(film, table))
    storage.move(parquet, storage.join(job.folder, "frames.parquet"))
    storage.move(csv, job.table)
    storage.write_bytes(storage.join(job.folder, "videos.csv"), pd.DataFrame(told).to_csv(index=False).encode())


def _summary(film: Film, table: pa.Table) -> dict[str, Any]:
    """A row of the table of videos."""
    seen = seen_of(film)
    times, faces = table["time"].drop_null(), table["face"].drop_null()
    return {"video": film.video, "width": film.width, "height": film.height, "rotation": film.rotation,
            "seconds": round(seen.last, 3), "frames": seen.frames, "looked_at": len(times.unique()),
            "faces": len(faces.unique()), "damaged": seen.damaged, "note": "; ".join(notes(film)),
            "reason": film.reason, "folder": film.folder}


def seen_of(film: Film) -> video.Seen:
    """What was decoded of a video. Raises: storage.DamagedError if a part of its table is gone."""
    return video.Seen.of([each for _, each in _tables(film)])


def notes(film: Film) -> list[str]:
    """What is unusual about a video and was dealt with. Raises: as `seen_of`."""
    seen = seen_of(film)
    told = [f"turned by {film.rotation} degrees, as its metadata say"] if film.rotation else []
    if seen.longest > 1.5 * seen.shortest + 0.002 and not seen.damaged:
        told.append(f"variable frame rate, {1000 * seen.shortest:.0f} to {1000 * seen.longest:.0f} ms between frames")
    if film.duration and seen.frames and seen.last + seen.longest + 0.5 < film.duration:
        told.append(f"ends after {seen.last:.1f} s of the {film.duration:.1f} s that its head declares")
    if seen.damaged:
        told.append(f"{seen.damaged} damaged frames left out")
    return told
