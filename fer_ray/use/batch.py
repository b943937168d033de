"""Photographs of a folder, bucket or table to a table of faces, on all machines of a cluster (Ray Data).

All CPUs find and cut faces, a pool of workers with the network scores them. Ray Data starts a task only when what the
ones before it made has been taken, so memory stays the same however many photographs there are. Each part of the table
is a file of its own: a job that was killed goes on with those that are missing or damaged.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray import progress, storage
from fer_ray.data import pixels
from fer_ray.use import networks, photographs, recognition
from fer_ray.use.inputs import Picture
from fer_ray.use.recognition import SCHEMA, Face, Recognition

PART_IMAGES = 64  # their crops, at 200 kB a face, are what lies between two steps of the pipeline
CPUS_PER_WORKER = 2  # of which a worker with the network takes one, on a cluster without GPUs
# Of a task that cuts faces. Two on each CPU that the workers leave: whoever is slower, network or detector, then finds
# all cores, since the others wait for it.
CPUS_PER_TASK = 0.5
READERS = 16  # parts that are read at once: storage may be far away
# between the two steps: the crops of a part's photographs, as the bytes of their pixels
_CROPPED = pa.schema([("uri", pa.string()), ("images", pa.list_(pa.struct([
    ("image", pa.string()), ("reason", pa.string()), ("crops", pa.list_(pa.struct([
        ("pixels", pa.binary()), ("channels", pa.int8()), ("box", pa.list_(pa.int32())), ("score", pa.float64()),
        ("angle", pa.float64()), ("whole", pa.bool_())])))])))])


@dataclass(frozen=True)
class Job:
    """What is to be predicted, and by which network."""

    folder: str
    """URI of the folder that gets the tables."""
    pictures: list[Picture]
    """The photographs, each once."""
    network: networks.Description
    """The network that scores the faces."""
    search: photographs.Search
    """Which faces, found how."""
    device: Literal["cpu", "cuda"]
    """Where the network computes; on GPUs, one a worker."""

    @property
    def table(self) -> str:
        """URI of the table as CSV."""
        return storage.join(self.folder, "predictions.csv")

    def parts(self) -> dict[str, list[Picture]]:
        """URI of each part of the table, and its photographs."""
        return {storage.join(self.folder, f"part-{first:09d}.parquet"): self.pictures[first : first + PART_IMAGES]
                for first in range(0, len(self.pictures), PART_IMAGES)}


def predict(job: Job) -> str:
    """Find, cut and classify the faces of each photograph.

    The same photographs, options and checkpoint cost nothing again. With others the tables are made anew.

    Returns: URI of `predictions.csv`, which has the columns of `recognition.SCHEMA`, with a row for each face, or one
        with its reason for a photograph without a face, in the order of the photographs. `predictions.parquet` beside
        it holds the same.

    Raises: checkpoints.CheckpointError; storage.StorageError.
    """
    request, marker = _request(job), storage.join(job.folder, "request.json")
    if not _is_of(request, marker):
        remove(job.folder)
        storage.write_json(marker, {"request": request})
    if _has_all(job):
        return job.table
    parts = job.parts()
    found = _read_parts(job)
    if missing := {uri: pictures for uri, pictures in parts.items() if found[uri] is None}:
        _make_parts(job, missing)
    whole = pa.concat_tables(read_parts(job))
    sink = io.BytesIO()
    pq.write_table(whole, sink)
    storage.write_bytes(storage.join(job.folder, "predictions.parquet"), sink.getvalue())
    storage.write_bytes(job.table, recognition.to_pandas(whole).to_csv(index=False).encode())
    return job.table


def remove(folder: str) -> None:
    """Remove what `predict` and `gallery.write` have written into a folder, and leave what was made of videos."""
    for name in storage.list_files(folder):
        if name.startswith(("part-", "predictions.", "request.", "gallery.")):
            storage.delete_file(storage.join(folder, name))
    storage.delete_dir(storage.join(folder, "annotated"))


def read_parts(job: Job) -> list[pa.Table]:
    """The parts of a table that `predict` has made. Raises: storage.DamagedError."""
    found = _read_parts(job)
    if damaged := [uri for uri, part in found.items() if part is None]:
        raise storage.DamagedError(f"{damaged[0]}: is missing or damaged; run the same command again")
    return [part for part in found.values() if part is not None]


def _read_parts(job: Job) -> dict[str, pa.Table | None]:
    there = set(storage.list_files(job.folder))
    uris = list(job.parts())
    with ThreadPoolExecutor(READERS) as pool:
        parts = pool.map(lambda uri: recognition.read_table(uri, SCHEMA) if uri.rsplit("/", 1)[-1] in there else None,
                         uris)
        return dict(zip(uris, parts, strict=True))


def _request(job: Job) -> str:
    """Of all that the table depends on."""
    content = [[dataclasses.astuple(picture) for picture in job.pictures], job.network.sha256, job.network.temperature,
               dataclasses.asdict(job.search), SCHEMA.names]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _is_of(request: str, marker: str) -> bool:
    """Whether the file `marker` says that what lies beside it was made for this request."""
    try:
        return storage.read_own_json(marker, {"request": str}, "")["request"] == request
    except storage.DamagedError:
        return False


def _has_all(job: Job) -> bool:
    """Whether both tables are there and whole, with rows for each photograph."""
    try:
        content = storage.read_bytes(job.table)
        named = pd.read_csv(io.BytesIO(content), usecols=["image"], dtype=str, keep_default_na=False)["image"]
    except (FileNotFoundError, ValueError):
        return False
    table = recognition.read_table(storage.join(job.folder, "predictions.parquet"), SCHEMA)
    return (content.endswith(b"\n") and table is not None and table["image"].to_pylist() == named.tolist()
            and named.drop_duplicates().tolist() == [picture.image for picture in job.pictures])


def _make_parts(job: Job, parts: dict[str, list[Picture]]) -> None:
    """Write these parts of the table."""
    import ray
    import ray.data

    pool = worker_options(ray.cluster_resources(), job)
    items = [{"uri": uri, "images": [dataclasses.asdict(picture) for picture in of_part]}
             for uri, of_part in parts.items()]
    cut: Any = functools.partial(cut_part, search=job.search)  # Ray's types leave out that batches may be Arrow tables
    done = (ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(cut, batch_size=1, batch_format="pyarrow", num_cpus=CPUS_PER_TASK)
            .map_batches(Scorer, batch_size=1, batch_format="pyarrow", **pool))
    with progress.Progress("predict", len(job.pictures), done=len(job.pictures) - sum(map(len, parts.values()))
                           ) as shown:
        for written in done.iter_rows():
            shown.advance(len(parts[written["uri"]]))


def worker_options(cluster: dict, job: Job) -> dict[str, Any]:
    """Options of `map_batches` for the pool of `Scorer`.

    There are as many workers as GPUs, or one for every `CPUS_PER_WORKER` CPUs. They never take all CPUs, or they and
    the tasks that cut faces for them would wait for each other for ever.

    Args:
        cluster: as `ray.cluster_resources()` gives it.
        job: names the network and the device.
    """
    import ray.data

    number, cpus = workers(cluster, job.device)
    return {"num_cpus": cpus, "num_gpus": int(job.device == "cuda"), "scheduling_strategy": "SPREAD",
            "compute": ray.data.ActorPoolStrategy(size=number),
            # no restarts: Ray would warn of each on the terminal; the same command goes on with what is missing
            "max_restarts": 0, "fn_constructor_kwargs": {"network": job.network.uri, "device": job.device}}


def workers(cluster: dict, device: str) -> tuple[int, float]:
    """Number of processes with the network, and the CPUs of each, which leave some to those that find faces for them.

    `cluster`: as `ray.cluster_resources()` gives it. `device`: cpu or cuda.
    """
    cpus = cluster.get("CPU", 1)
    # where an autoscaler has not started the first GPU yet, one worker asks for it
    number = max(1, int(cluster.get("GPU", 0) if device == "cuda" else cpus // CPUS_PER_WORKER))
    return number, 1 if cpus >= CPUS_PER_WORKER else cpus - CPUS_PER_TASK


@functools.cache  # once per process: reading the cascade takes 11-30 ms
def _cutter(search: photographs.Search) -> photographs.Cutter:
    cv2.setNumThreads(1)  # the tasks are the parallelism
    return photographs.Cutter(search)


def cut_part(batch: pa.Table, search: photographs.Search) -> pa.Table:
    """Find and cut the faces of parts of the photographs; a table of `_CROPPED`."""
    return pa.Table.from_pylist([{"uri": part["uri"], "images": [_cut(image, search) for image in part["images"]]}
                                 for part in batch.to_pylist()], schema=_CROPPED)


def _cut(picture: dict, search: photographs.Search) -> dict:
    image, reason, crops = picture["image"], picture["reason"], []
    if reason is None:
        try:
            crops = _cutter(search).crops(pixels.load(image))
        except pixels.ImageError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # it was there when it was listed
                raise storage.StorageError(f"{image}: is not to be found on {socket.gethostname()}; photographs must "
                                           "lie under the same path on every node, and stay there") from None
            reason = str(error)
    return {"image": image, "reason": reason, "crops": [
        {"pixels": crop.pixels.tobytes(), "channels": 1 if crop.pixels.ndim == 2 else 3, "box": crop.box,
         "score": crop.score, "angle": crop.angle, "whole": crop.whole} for crop in crops]}


class Scorer:
    """A worker that scores the faces of one part at a time, and writes the part, so that a killed job goes on."""

    def __init__(self, network: str, device: str):
        self.network = networks.load(network, device, threads=CPUS_PER_WORKER)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Parts of `_CROPPED` -> the URIs to which they were written."""
        for part in batch.to_pylist():
            crops = [_pixels(crop) for image in part["images"] for crop in image["crops"]]
            scores = iter(self.network.probabilities(crops))
            rows = [row for image in part["images"] for row in Recognition(image["image"], tuple(
                Face.of(tuple(crop["box"]), crop["score"], crop["angle"], crop["whole"], next(scores))
                for crop in image["crops"]), image["reason"]).rows()]
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
            storage.write_bytes(part["uri"], sink.getvalue())
        return batch.select(["uri"])


def _pixels(crop: dict) -> np.ndarray:
    """uint8 [256, 256] or [256, 256, 3]."""
    values = np.frombuffer(crop["pixels"], np.uint8)
    side = round((len(values) / crop["channels"]) ** 0.5)
    return values.reshape((side, side) if crop["channels"] == 1 else (side, side, 3))
