"""Whatever ends a job from outside, it ends in one line, leaves no litter, and the same command goes on."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import processes
import pytest
from cluster.conftest import command, environment

from fer_ray.train import tracking

GOES_ON = "; the same command goes on where it was"
WAITING = """
from fer_ray.cli import connection
connection.connect(num_cpus=1)
import ray, time
task = ray.remote(lambda: time.sleep(100)).remote()
print("ready", flush=True)
ray.get(task)
"""


@pytest.fixture
def temporary():
    """An empty temporary folder; its path is short, since sockets lie in it."""
    folder = tempfile.mkdtemp(dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def start(arguments: list[str], temporary: Path) -> subprocess.Popen:
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment() | {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"})


def long_training(storage: str) -> list[str]:
    """The command of a training with two workers that would last for hours."""
    options = ["--storage", storage, "--prepared", "set", "--name", "long", "--train.backbone", "tiny",
               "--train.weights", "none", "--train.num_workers", "2", "--train.batch_size", "8", "--train.epochs",
               "9999", "--train.patience", "9999"]
    return command("train", *options)


def assert_ends(job: subprocess.Popen, code: int, words: str) -> str:
    """The job ends soon, with this exit code and one line that begins and ends as it should; its output."""
    output, errors = job.communicate(timeout=25)
    assert job.returncode == code, errors
    assert errors.startswith(words) and errors.endswith(f"{GOES_ON}\n") and len(errors.splitlines()) == 1, errors
    return output


@pytest.mark.parametrize(("process", "words"), [(rb"^[^\0]*gcs_server", "its control store (GCS)"),
                                                (rb"^[^\0]*raylet/raylet", "its scheduler on this machine (raylet)")])
def test_a_ray_that_died_ends_the_job(process, words, temporary):
    job = start([sys.executable, "-c", WAITING], temporary)
    assert job.stdout and job.stdout.readline() == "ready\n"
    assert processes.kill(process, of=job.pid) == 1
    assert_ends(job, 1, f"error: Ray has died: {words}")
    assert not list(temporary.iterdir())


# SIGTERM goes the way of SIGINT, as tests/unit/cli/test_ending.py shows; Ray Train has a handler of SIGINT alone.
@pytest.mark.parametrize(("ending", "code", "words"), [(b"^ray::TrainController", 1, "error: Ray: The actor died"),
                                                       (signal.SIGINT, 130, "interrupted")])
def test_a_training_with_two_workers_that_is_ended_says_by_what_and_goes_on(ending, code, words, prepared, temporary):
    run = f"{prepared.storage}/runs/long"
    before = len(tracking.read(run))
    job = start(long_training(prepared.storage), temporary)
    deadline = time.time() + 150
    while len(tracking.read(run)) <= before:
        assert time.time() < deadline and job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    if isinstance(ending, signal.Signals):
        job.send_signal(ending)
    else:
        assert processes.kill(ending, of=job.pid) == 1
    output = assert_ends(job, code, words)
    assert not before or f"resuming after epoch {before}" in output
    assert not list(temporary.iterdir())
