"""The service on Ray Serve: processes that take requests, find faces and score them.

`Service` decodes images and finds faces in threads, and asks `Network` about each face, which scores the faces of
several requests in common batches. On CPUs each service has a network of its own, so that no crops travel between
processes. On GPUs the networks have processes of their own, one a GPU, and take the faces of all services.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from fer_ray import progress
from fer_ray.config import ConfigError, ServeConfig
from fer_ray.data import pixels
from fer_ray.data.faces import CROP_SIDE
from fer_ray.errors import UserError
from fer_ray.train import resources
from fer_ray.use import batch, networks, web
from fer_ray.use.photographs import Crop, Cutter, Search
from fer_ray.use.recognition import Face, Recognition

NAME = "fer_ray"  # of the application in Serve
# Requests that one process works on at once: more than it has threads, so that the network's batches fill up.
ONGOING = 32
POLL_S, PATIENCE_S = 0.2, 60.0
FACES_ONGOING = 256  # faces that wait in one process with the network
QUIET = {"log_level": "ERROR", "enable_access_log": False}  # Ray's files would hold a line a request


class ServiceError(UserError):
    """The service cannot start; the message says why."""


class Network:
    """The network, which scores the faces that wait for it in one batch."""

    def __init__(self, network: str, device: str):
        # one thread a batch: two batches at once wait less than two threads that share one
        self.network = networks.load(network, device, threads=1)
        # a method that the decorator adds
        self.score.set_max_batch_size(self.network.batch_size)  # ty: ignore[missing-attribute]
        # the first forward pass takes longest, and nobody should wait for it
        self.network.probabilities([np.zeros((CROP_SIDE, CROP_SIDE, 3), np.uint8)] * 2)

    @serve.batch(max_concurrent_batches=batch.CPUS_PER_WORKER)
    async def score(self, crops: list[np.ndarray]) -> list[np.ndarray]:
        """Probabilities, float32 [8], of each crop, uint8 [256, 256] or [256, 256, 3]. Callers give one crop each."""
        # in a thread, so that the next faces arrive meanwhile
        return list(await asyncio.to_thread(self.network.probabilities, crops))


NetworkProcess = serve.deployment(max_ongoing_requests=FACES_ONGOING, graceful_shutdown_wait_loop_s=0.2,
                                  logging_config=QUIET)(Network)


@serve.deployment(max_ongoing_requests=ONGOING, graceful_shutdown_wait_loop_s=0.2, logging_config=QUIET)
@serve.ingress()
class Service:
    """A process that takes requests, and finds and cuts the faces of their images."""

    def __init__(self, network: str | DeploymentHandle, search: Search, max_pixels: int, settings: web.Settings):
        """`network`: the URI of the one that this process is to load, or the processes that have it."""
        cv2.setNumThreads(1)  # the pool's threads are the parallelism
        self.score = Network(network, "cpu").score if isinstance(network, str) else network.score.remote
        self.max_pixels, self.settings = max_pixels, settings
        self.cutter = Cutter(search)
        self.pool = ThreadPoolExecutor(batch.CPUS_PER_WORKER)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """For Serve: what answers HTTP."""
        return web.app(self.recognize, self.settings)

    async def recognize(self, uploads: list[web.Upload]) -> list[Recognition]:
        """The faces of each image, as `Recognizer` finds them. Raises: web.Unavailable."""
        loop = asyncio.get_running_loop()
        cut = await asyncio.gather(*(loop.run_in_executor(self.pool, self._cut, one.content) for one in uploads))
        try:
            scores = iter(await asyncio.gather(*(self.score(crop.pixels)
                                                 for crops, _ in cut for crop in crops)))
        except (RayError, RayServeException) as error:
            raise web.Unavailable(f"the network does not answer ({type(error).__name__}); try again") from error
        return [Recognition(one.name, tuple(Face.of(crop.box, crop.score, crop.angle, crop.whole, next(scores))
                                            for crop in crops), reason)
                for one, (crops, reason) in zip(uploads, cut, strict=True)]

    def _cut(self, content: bytes) -> tuple[list[Crop], str | None]:
        try:
            return self.cutter.crops(pixels.decode(content, self.max_pixels)), None
        except pixels.ImageError as error:
            return [], str(error)


@dataclass(frozen=True)
class Job:
    """What is to be served."""

    network: str
    """URI of the network: a checkpoint, or an ONNX file."""
    search: Search
    """Which faces, found how."""
    device: Literal["cpu", "cuda"]
    """Where the network computes; on GPUs, one a process."""
    config: ServeConfig
    """Address and limits."""
    settings: web.Settings
    """Of the endpoints."""
    joined: bool
    """Whether the Ray that it runs on goes on after the command."""


@dataclass(frozen=True)
class Processes:
    """How many processes there are of each kind, and the CPUs that each asks of Ray."""

    services: int
    """That take requests and find faces."""
    cpus: float
    """Of a service."""
    networks: int = 0
    """With the network; 0: each service has one."""
    network_cpus: float = 0
    """Of one with the network."""


def processes(cluster: dict, replicas: int, device: str, grows: bool) -> Processes:
    """As many as a cluster has room for.

    Args:
        cluster: as `ray.cluster_resources()` gives it.
        replicas: of the network; 0: one for each GPU, or for every two CPUs.
        device: cpu, where each service has a network, or cuda.
        grows: whether an autoscaler starts nodes for what is asked for.

    Raises: ConfigError if the cluster has not so many GPUs.
    """
    networks, network_cpus = batch.workers(cluster, device)
    if device == "cuda" and replicas > networks and not grows:
        raise ConfigError(f"serve.replicas: {replicas} processes need {replicas} GPUs, the cluster has {networks}")
    networks, cpus = replicas or networks, cluster.get("CPU", 1)

    def limited(wanted: float, room: float) -> float:
        """CPUs of each of `networks` processes: where no node comes, they would wait for more for ever."""
        return wanted if grows else min(wanted, math.floor(1000 * room / networks) / 1000)

    if device == "cpu":
        return Processes(networks, limited(network_cpus + batch.CPUS_PER_TASK, cpus))
    services = max(1, int(cpus // batch.CPUS_PER_WORKER))
    return Processes(services, batch.CPUS_PER_TASK, networks,
                     limited(network_cpus, cpus - services * batch.CPUS_PER_TASK))


@contextlib.contextmanager
def running(job: Job) -> Generator[Processes]:
    """The service on the Ray that is running, from the moment that it answers to the end of the block.

    A service of an earlier command is replaced.

    Raises: ServiceError if Ray Serve serves something else there, or a process cannot start; ConfigError if the cluster
        has too few GPUs.
    """
    import ray

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # what it logs is raised too
    wanted = processes(ray.cluster_resources(), job.config.replicas, job.device,
                       resources.has_autoscaler(ray.nodes()))
    _end_earlier()
    try:
        _start(job, wanted)
        yield wanted
    finally:
        if job.joined:
            serve.shutdown()
        else:  # all of Ray ends with the command
            serve.delete(NAME)


def _start(job: Job, wanted: Processes) -> None:
    """Start it and wait until all processes answer. Raises: ServiceError."""
    try:
        serve.start(http_options={"host": job.config.host, "port": job.config.port,
                                  "request_timeout_s": job.config.timeout_s}, logging_config=QUIET)
        serve.run_many([serve.RunTarget(application(job, wanted), name=NAME, logging_config=QUIET)],
                       wait_for_applications_running=False)
    except (RuntimeError, RayError) as error:
        raise ServiceError(f"the service cannot start: {_reason(error)}") from error
    begin, told = time.monotonic(), False
    while (state := serve.status().applications[NAME]).status != "RUNNING":
        if state.status == "DEPLOY_FAILED":
            raise ServiceError(f"the service cannot start: {_reason(state.message)}")
        if not told and time.monotonic() - begin > PATIENCE_S:
            told = True
            progress.say("serve: not all processes have started yet; a cluster that is busy has no CPUs for them until "
                         "other jobs end")
        time.sleep(POLL_S)


def application(job: Job, wanted: Processes) -> serve.Application:
    """What Ray Serve is to run."""
    network: str | serve.Application = job.network
    if wanted.networks:
        network = NetworkProcess.options(
            num_replicas=wanted.networks, ray_actor_options={"num_cpus": wanted.network_cpus,
                                                             "num_gpus": int(job.device == "cuda")}
        ).bind(job.network, job.device)
    service = Service.options(num_replicas=wanted.services, ray_actor_options={"num_cpus": wanted.cpus},
                              max_queued_requests=job.config.max_queued,
                              backpressure_config={"status_code": 503, "retry_after_s": 1})
    return service.bind(network, job.search, int(job.config.max_megapixels * 1e6), job.settings)


def _end_earlier() -> None:
    """End the service that an earlier command left. Its address could not be changed. Raises: ServiceError."""
    applications = set(serve.status().applications)
    if others := sorted(applications - {NAME}):
        raise ServiceError(f"Ray Serve already serves {', '.join(others)} in this cluster, on an address of its own; "
                           "end that with `serve shutdown`, or use another cluster")
    serve.shutdown()


def trouble() -> str:
    """What is wrong with the service that runs; "" if nothing is."""
    state = serve.status().applications.get(NAME)
    if state is None:
        return "somebody else has ended it"
    return "" if state.status == "RUNNING" else f"{state.status.lower()}: {_reason(state.message)}"


def _reason(error: object) -> str:
    """The last line of a message, where Serve's hold what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
