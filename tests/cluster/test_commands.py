"""The commands of README.md and docs/ as they are written there, in a fresh copy of the repository.

Sizes are made small by FER_RAY_OPTIONS; paths, names and the storage are those of the documents and the defaults. Later
commands find what earlier ones made. The quickstart and a search run in processes of their own on the Ray of the tests;
the other jobs' files are run in the process of the tests (see `run_job`). tests/unit/test_documents.py checks the
commands that need a cloud.
"""

import contextlib
import csv
import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import documented
import numpy as np
import pytest
from cluster.conftest import joining, ray_on, run_job
from cluster_files import VALUES

from fer_ray import options
from fer_ray.data import drawn_face
from fer_ray.data.manifest import EXPRESSIONS

# Options that make every command small.
SMALL = ("--train.backbone tiny --train.weights none --train.epochs 1 --train.batch_size 16 "
         "--train.lr 0.01 --train.schedule constant --protocol.repeats 3 "
         "--compare.backbones [tiny,timm:test_vit] --tune.num_trials 2 --tune.max_epochs 1 "
         "--data.sample.subjects 3 --evaluate.floor false")
# The same job in other words. Each start of a job costs the tests several seconds.
SAME = {"bash scripts/quickstart.sh": "python jobs/pipeline.py --config jobs/configs/quickstart.yaml",
        "RAY_ADDRESS=auto python jobs/pipeline.py --config jobs/configs/quickstart.yaml":
            "python jobs/pipeline.py --config jobs/configs/quickstart.yaml"}
OWN_PROCESS = ("jobs/tune.py", "quickstart.sh")
COMMANDS = [c for c in documented.commands() if documented.treatment(c.text)[0] in ("run", "help")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory, sample_of):
    """A folder with what git knows of this repository, set up, and with the data that the placeholders name."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=documented.REPO,
                            check=True, capture_output=True, text=True).stdout.splitlines()
    for name in listed:
        if (documented.REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((documented.REPO / name).read_bytes())
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".fer_ray_setup":
            (folder / ".venv" / part.name).symlink_to(part)
    pins = [(folder / name).read_bytes() for name in ("pyproject.toml", "constraints.txt", "constraints-dev.txt")]
    (folder / ".venv/.fer_ray_setup").write_text(hashlib.sha256(b"".join(pins)).hexdigest())
    sample_of(folder / "faces", people=3)
    sample_of(folder / "faces_of_six", people=6)
    draw_photographs(folder / "photographs")
    shell = VALUES | {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "FER_DATA": "faces"}
    return SimpleNamespace(folder=folder, shell=shell, done={})


def draw_photographs(folder: Path) -> None:
    """A table and photographs with the columns and names of the set that facial_expressions.yaml is for."""
    (folder / "data").mkdir(parents=True)
    (folder / "images").mkdir()
    noise = np.random.default_rng(0)
    with open(folder / "data/legend.csv", "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["user.id", "image", "emotion"])
        for person in range(6):
            for number, expression in enumerate(EXPRESSIONS):
                name = f"Ann{'ABCDEF'[person]}_Lee_{number:04}.jpg"
                face = drawn_face.render_face(np.random.default_rng(person), expression, 1.0, noise, (320, 320), 110)
                cv2.imwrite(str(folder / "images" / name), face)
                table.writerow(["628", name, expression.upper()])


@pytest.mark.parametrize("command", [pytest.param(c, id=f"{c.file}: {c.text[:90]}") for c in COMMANDS])
def test_it_runs_as_it_is_written(command, clone):
    text = documented.fill_in(command.text)
    kind, _ = documented.treatment(command.text)
    same = clone.done.setdefault(resolved(text), command.text)
    if same != command.text:
        pytest.skip(f"with these sizes it is the same as: {same}")
    if kind == "help":
        text += " --help"
    words = shlex.split(text)
    if words[0] == "python" and words[1].startswith("jobs/") and words[1] not in OWN_PROCESS and "--help" not in words:
        done = run_job(Path(words[1]).stem, *words[2:], cwd=clone.folder, FER_DATA="faces",
                       FER_RAY_OPTIONS=SMALL)
    else:
        done = run(text, clone)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    result = re.findall(r"^result: (.+)$", done.stdout, re.M)
    assert "jobs/" not in text or "--help" in text or len(result) == 1, done.stdout
    assert all((clone.folder / path).exists() for path in result), result


def resolved(text: str) -> object:
    """The job and its whole configuration; another command as it is."""
    words = shlex.split(SAME.get(text, text))
    if words[:1] != ["python"] or not words[1].startswith("jobs/") or "--help" in words or len(words) == 2:
        return text
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(documented.REPO)
        return words[1], repr(options.absolute(options.load([*words[2:], *shlex.split(SMALL)])))


def run(text: str, clone: SimpleNamespace) -> subprocess.CompletedProcess[str]:
    """Run it by a shell in the copy."""
    with contextlib.ExitStack() as stack:
        shell = dict(os.environ)
        if any(job in text for job in OWN_PROCESS):
            stack.enter_context(ray_on(2))
            shell = joining()
        return subprocess.run(["bash", "-c", text], cwd=clone.folder, capture_output=True, text=True, timeout=400,
                              env=shell | clone.shell | {"FER_RAY_OPTIONS": SMALL})


def test_nothing_was_written_elsewhere(clone):
    made = {path.name for path in clone.folder.iterdir()} - {name.split("/")[0] for name in os.listdir(documented.REPO)}
    assert made <= {"faces", "faces_of_six", "photographs", "drawn", "models", "fer_ray_output", "sample_data",
                    "sample_data_small", ".pytest_cache"}, made
