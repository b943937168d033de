"""Temporary folders are gone after their process, also after one that was killed; those in use stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "from fer_ray import scratch; print(scratch.folder(), flush=True); input()"


@pytest.fixture
def start(tmp_path):
    """Starts a process that makes its folder and waits for a line; the process and the folder."""
    started = []

    def run() -> tuple[subprocess.Popen, Path]:
        process = subprocess.Popen([sys.executable, "-c", CODE], env=os.environ | {"TMPDIR": str(tmp_path)},
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        folder = Path(process.stdout.readline().strip())
        assert folder.parent == tmp_path and folder.is_dir()
        return process, folder

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_goes_with_its_process_and_the_next_removes_that_of_a_killed_one(start, tmp_path):
    killed, left = start()
    (left / "inner").mkdir()
    (left / "inner" / "file").write_text("some")
    running, used = start()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.is_dir()
    ended, _ = start()
    assert not left.exists() and used.is_dir()  # the lock of the one that runs protects its folder
    ended.communicate("\n")
    running.communicate("\n")
    assert not list(tmp_path.iterdir())


def test_files_and_links_of_that_name_are_left_alone(start, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / "fer_ray_scratch_file").write_text("some")
    (tmp_path / "fer_ray_scratch_link").symlink_to(kept)
    results = tmp_path / "fer_ray_output"  # of a job that was started here, with the default storage
    results.mkdir()
    start()
    assert results.is_dir()
    assert kept.is_dir() and (tmp_path / "fer_ray_scratch_file").is_file()
    assert (tmp_path / "fer_ray_scratch_link").is_symlink()

