"""A verb that a signal ends says so in one line and leaves with the exit code that a shell expects."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"),
                                                      (signal.SIGTERM, 143, "terminated")])
def test_a_signal_ends_a_job_in_one_line(number, code, word, tmp_path):
    drawn = tmp_path / "faces"  # drawing them takes half a minute, before Ray starts
    job = subprocess.Popen([sys.executable, REPO / "jobs/prepare.py", "--data.kind", "sample", "--data.root", drawn,
                            "--storage", tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.rglob("*.png")) and time.monotonic() < end:
        time.sleep(0.05)
    job.send_signal(number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == code
    assert errors.splitlines()[-1] == f"{word}; the same command goes on where it was"
    assert "Traceback" not in errors


def test_a_signal_while_ray_starts_counts_too():
    code = ("import sys; from fer_ray.cli import main; main._run = lambda *_: sys.exit(15)\n"  # as Ray's handler does
            "main.run('train', [])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 143 and done.stderr.startswith("terminated; ")


def test_sigterm_is_told_from_ctrl_c_although_ray_raises_an_exception_of_its_own():
    code = ("import os, signal\n"
            "from fer_ray.cli import main\n"
            "def wait(*_):\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "    except BaseException:\n"
            "        raise KeyboardInterrupt\n"  # as `ray.get` does
            "main._run = wait\n"
            "main.run('train', [])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 143 and done.stderr.startswith("terminated; ")
