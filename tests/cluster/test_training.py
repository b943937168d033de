"""Training on a real Ray: nothing is lost when processes die, and the result does not depend on it."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest
import ray
import torch
from cluster.conftest import REPO, command, joining, nodes_of, ray_on, wait_for
from safetensors.torch import load_file

from fer_ray.cli import connection, stages
from fer_ray.config import Config, ConfigError, TrainConfig
from fer_ray.model import checkpoints
from fer_ray.train import live, tracking, training
from fer_ray.train.workers import TrainingError

# Equal results with one worker and with several: no BatchNorm or dropout, which see the images of one worker only.
ALIKE = {"backbone": "tiny", "lr": 0.01}
WORKERS = rb"RayTrainWorker|ray::fit_single"  # their command lines


def config_of(config: Config, name: str, **train) -> Config:
    return dataclasses.replace(config, name=name, train=dataclasses.replace(config.train, **train))


def run_of(config: Config, name: str) -> Path:
    return Path(config.storage) / "runs" / name


def final_weights(config: Config, name: str) -> dict[str, torch.Tensor]:
    """Weights after the last epoch; nothing else may be left of the run's checkpoints but the best."""
    run = str(run_of(config, name))
    newest = checkpoints.find_latest(run)
    assert newest and checkpoints.describe(newest)["progress"] == {"epoch": config.train.epochs, "step": 0}
    left = sorted(path.name for path in Path(run).glob("checkpoint_*"))
    assert Path(checkpoints.find_best(run)).name in left and len(left) <= 2, left
    return load_file(Path(newest) / "model.safetensors")


def train(config: Config, name: str, **changes) -> dict[str, torch.Tensor]:
    """Train in the Ray that is running."""
    changed = config_of(config, name, **changes)
    training.train(changed, f"{config.storage}/prepared/set")
    return final_weights(changed, name)


def assert_equal(one: dict, two: dict) -> None:
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def assert_close(one: dict, two: dict) -> None:
    """Rounding alone may differ, which is far less than batches of another size make."""
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-3


def middle_of_epoch(run: Path, epoch: int) -> bool:
    """Whether a checkpoint from within that epoch is there."""
    return any(run.glob(f"checkpoint_{epoch:04d}_*[1-9]/model.json"))


@contextlib.contextmanager
def open_folder(folder: Path):
    """A path of this folder that leads nowhere in other processes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@pytest.fixture(scope="session")
def whole(prepared):
    """Weights that a single worker ends with, whom nothing disturbs."""
    with ray_on(2):
        return train(prepared, "whole", **ALIKE)


def test_a_finished_run_says_so_and_trains_nothing(prepared, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in run_of(prepared, "whole").rglob("*")}
    with ray_on(2):
        again = train(prepared, "whole", **ALIKE)
    assert "whole: already trained, 3 epochs; nothing to do" in capsys.readouterr().out
    assert_equal(again, whole)
    assert before == {path: path.stat().st_mtime_ns for path in run_of(prepared, "whole").rglob("*")}


def test_epochs_are_told_as_they_end_and_how_far_the_worker_is_within_one(prepared, capsys, monkeypatch):
    monkeypatch.setattr(live, "TICK_S", 0.05)
    with ray_on(2):
        train(prepared, "told", epochs=3, **ALIKE)
        tick = live.read_tick(str(run_of(prepared, "told")))
    output = capsys.readouterr().out
    assert "told: one worker on CPUs (a Ray task); images from memory (0.0 GiB fit into train.cache_gb 8" in output
    assert re.search(r"\n\d+ steps an epoch; with at most 3 epochs about 1 min", output), output
    lines = re.findall(r"epoch +(\d)/3  loss [\d.]+  val loss [\d.]+  val balanced accuracy [\d.]+ \(chance [\d.]+\)",
                       output)
    assert lines == ["1", "2", "3"]
    assert tick and 0 <= tick[0] < 3 and 0 < tick[1] <= tick[2]


def test_the_last_layer_alone_compiled_or_not(prepared, whole):
    with ray_on(2):
        head = train(prepared, "head", layers="head", **ALIKE)
        compiled = train(prepared, "compiled", layers="head", compile=True, **ALIKE)
    assert head.keys() == whole.keys()
    assert sum(not torch.equal(head[name], whole[name]) for name in head) > 2
    assert all(torch.allclose(compiled[name], head[name], atol=1e-5) for name in head)  # rounding


def test_a_loss_that_is_not_finite_ends_at_once(prepared):
    with ray_on(2), pytest.raises(TrainingError, match="the loss is nan.*train.lr 1e\\+30 is too high"):
        train(prepared, "diverged", lr=1e30)


def test_two_workers_one_of_them_killed_end_as_one(prepared, whole):
    with ray_on(2), ThreadPoolExecutor(1) as aside:
        two = train(prepared, "two", num_workers=2, **ALIKE)
        assert_close(two, whole)

        def kill_one() -> int:
            wait_for(lambda: middle_of_epoch(run_of(prepared, "killed"), 1))
            return processes.kill(WORKERS, 1)

        killed = aside.submit(kill_one)
        # Streamed, by tasks that find no CPU which no worker holds. A set of a single window has one order, so that
        # making the pixels in those tasks changes nothing at all.
        streamed = train(prepared, "killed", num_workers=2, feed="stream", checkpoint_every_steps=3, **ALIKE)
        assert killed.result() == 1
    assert_equal(streamed, two)


@pytest.mark.nodes
def test_a_node_is_lost_and_training_goes_on_with_the_workers_that_are_left(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")  # then it tries fewer; a minute by itself
    monkeypatch.chdir(tmp_path)  # on one machine, workers also find what lies in the driver's working directory
    with nodes_of(0, 1, 1) as (cluster, others), ThreadPoolExecutor(1) as aside:
        def lose_one() -> None:
            wait_for(lambda: middle_of_epoch(run_of(prepared, "elastic"), 1))
            cluster.remove_node(others[0], allow_graceful=False)

        code = ray.get(ray.remote(lambda: importlib.import_module("fer_ray").__file__).remote())
        assert "py_modules" in code and not code.startswith(str(REPO)), code  # a node needs no copy of the project
        # a folder that each process sees as one of its own
        (tmp_path / "disk").mkdir()
        with open_folder(tmp_path / "disk") as mine, pytest.raises(ConfigError, match="2 of 3 nodes do not see it"):
            connection.require_shared(mine)
        assert not list((tmp_path / "disk").iterdir())
        connection.require_shared(str(tmp_path))
        lost = aside.submit(lose_one)
        # so many epochs that a fast machine has not trained them all before the loss is seen, a second after it; with
        # the usual learning rate rounding would grow too far over them
        longer = ALIKE | {"epochs": 10, "lr": 0.002}
        elastic = train(prepared, "elastic", num_workers=2, min_workers=1, checkpoint_every_steps=3, **longer)
        lost.result()
        alone = train(prepared, "alone", **longer)
    lines = tracking.read(str(run_of(prepared, "elastic")))
    assert [line["epoch"] for line in lines] == list(range(10))
    assert [lines[0]["workers"], lines[-1]["workers"]] == [2, 1]
    assert_close(elastic, alone)


def test_worker_killed_and_driver_killed_end_with_the_same_weights(prepared):
    with ray_on(2):
        undisturbed = train(prepared, "undisturbed", checkpoint_every_steps=3)
    run = run_of(prepared, "disturbed")
    values = {k: v for k, v in vars(prepared.train).items() if v != getattr(TrainConfig(), k)}
    options = ["--storage", prepared.storage, "--prepared", "set", "--name", "disturbed",
               *(part for k, v in values.items() for part in (f"--train.{k}", str(v))),
               "--train.checkpoint_every_steps", "3"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command("train", *options), env=joining(), start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    with ray_on(2):
        first = start()
        wait_for(lambda: middle_of_epoch(run, 0))
        assert processes.kill(WORKERS) >= 1  # Ray starts another one
        wait_for(lambda: middle_of_epoch(run, 1))
        assert first.poll() is None
        os.killpg(first.pid, signal.SIGKILL)  # the driver; the same command goes on
        first.communicate()
        time.sleep(2)
        again = start()
        output = again.communicate(timeout=200)[0]
    assert again.returncode == 0 and "resuming after epoch 1" in output, output
    assert_equal(final_weights(prepared, "disturbed"), undisturbed)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2] and len({line["run"] for line in lines}) == 1
    assert list((run / "tensorboard" / lines[0]["run"]).iterdir())


def test_a_cluster_that_is_too_small_is_told_before_the_work(prepared, tmp_path):
    config = config_of(prepared, "large", num_workers=640, batch_size=640)
    config = dataclasses.replace(config, storage=str(tmp_path / "out"))
    with ray_on(2), pytest.raises(ConfigError, match="640 workers need at least half a CPU each"):
        stages.run_pipeline(config)
    assert not (tmp_path / "out").exists()
