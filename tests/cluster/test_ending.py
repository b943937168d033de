"""Whatever ends a job from outside, it ends in one line, leaves no litter, and the same command goes on."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from cluster.conftest import command, environment, ray_on

from fer_ray.config import Config, DataConfig
from fer_ray.data import prepare
from fer_ray.data.sources import read_manifest
from fer_ray.train import tracking

GOES_ON = "; the same command goes on where it was"
# what is killed, or the signal to the job; exit code; how the last line begins
ENDINGS = {
    "gcs": ("gcs_server", 1, "error: Ray has died: its control store (GCS)"),
    "raylet": ("raylet/raylet", 1, "error: Ray has died: its scheduler on this machine (raylet)"),
    "controller": ("ray::TrainController", 1, "error: Ray: The actor died"),
    "Ctrl-C": (signal.SIGINT, 130, "interrupted"),
    "SIGTERM": (signal.SIGTERM, 143, "terminated"),
}


@pytest.fixture(scope="module")
def storage(sample_of, tmp_path_factory):
    """Holds a prepared set of a few people."""
    root = tmp_path_factory.mktemp("ending")
    sample_of(root / "data", people=3)
    config = Config(name="set", storage=str(root / "out"), data=DataConfig("auto", str(root / "data")))
    with ray_on(2):
        prepare.prepare(config, read_manifest(config.data))
    return root / "out"


@pytest.fixture
def temporary():
    """An empty temporary folder; its path is short, since sockets lie in it."""
    folder = tempfile.mkdtemp(dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


def start(storage: Path, temporary: Path) -> subprocess.Popen:
    """A training with two workers that would last for hours."""
    options = ["--storage", str(storage), "--prepared", "set", "--name", "long", "--train.backbone", "timm:test_resnet",
               "--train.weights", "none", "--train.num_workers", "2", "--train.batch_size", "8", "--train.epochs",
               "9999", "--train.patience", "9999"]
    return subprocess.Popen(command("train", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment() | {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"})


def descendants(pid: int) -> list[int]:
    """Process ids of the children of a process, and of theirs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    except OSError:
        return ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_last_line_says_what_ended_the_job(ending, storage, temporary):
    target, code, words = ENDINGS[ending]
    run = str(storage / "runs/long")
    before = len(tracking.read(run))
    job = start(storage, temporary)
    deadline = time.time() + 100
    while len(tracking.read(run)) <= before:
        assert time.time() < deadline and job.poll() is None, job.communicate()[1]
        time.sleep(0.05)
    if isinstance(target, signal.Signals):
        job.send_signal(target)
    else:
        (pid,) = [pid for pid in descendants(job.pid) if target in name_of(pid)]
        os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    output, errors = job.communicate(timeout=60)
    assert job.returncode == code and time.time() - killed_at < 20, errors
    assert errors.startswith(words) and errors.endswith(f"{GOES_ON}\n") and len(errors.splitlines()) == 1, errors
    if before:
        assert f"resuming after epoch {before}" in output
    assert not list(temporary.iterdir())
