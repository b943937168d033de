"""What a killed process leaves in the temporary directory goes with the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fer_ray import temporary

MAKE = """
import sys, time
from fer_ray import temporary
print(temporary.make_folder(), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary.sweep.cache_clear()


def other_process(directory: Path) -> tuple[subprocess.Popen, Path]:
    """A process with a folder of its own, made long ago."""
    process = subprocess.Popen([sys.executable, "-c", MAKE], env=os.environ | {"TMPDIR": str(directory)},
                               stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    (folder / "model.safetensors").write_bytes(b"weights")
    os.utime(folder, (0, 0))
    return process, folder


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    (tmp_path / "fer_ray_output").mkdir()
    os.utime(tmp_path / "fer_ray_output", (0, 0))
    living, kept = other_process(tmp_path)
    killed, left = other_process(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        own = temporary.make_folder()
        assert kept.is_dir() and not left.exists() and Path(own).is_dir() and (tmp_path / "fer_ray_output").is_dir()
        temporary.remove_folder(own)
        temporary.remove_folder(own)
        assert not Path(own).exists()
    finally:
        living.kill()
        living.wait()


def test_a_young_folder_without_a_lock_is_left_for_its_process_may_just_lock_it(tmp_path):
    (tmp_path / "fer_ray_temporary_young").mkdir()
    temporary.make_folder()
    assert (tmp_path / "fer_ray_temporary_young").is_dir()
