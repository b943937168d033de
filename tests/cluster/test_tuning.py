"""A search on a real Ray: hopeless trials end early, diverged ones are the worst, nothing done is lost."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cluster.conftest import command, environment, ray_on

from fer_ray import prepare, storage, tracking, tuning
from fer_ray.config import Config, DataConfig, TrainConfig, TuneConfig
from fer_ray.datasets import read_manifest, sample

GOOD, BAD, DIVERGING = ({"lr": lr, "momentum": 0.9} for lr in (0.05, 1e-9, 1e38))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A prepared set of a few people; trials train the last layer on real ImageNet features."""
    root = tmp_path_factory.mktemp("tiny")
    sample.write_sample(root / "data", subjects=5, seed=3)
    config = Config(name="set", storage=str(root / "out"), prepared="set", data=DataConfig("auto", str(root / "data")),
                    train=TrainConfig(backbone="efficientnet_lite0", layers="head", batch_size=8, lr=0.05),
                    tune=TuneConfig(plane="plain", lr=[1e-10, 1e38], max_epochs=4, num_trials=3))
    with ray_on(2):
        prepare.prepare(config, read_manifest(config.data))
    return config


def named(config: Config, name: str, points: list[dict], train: dict | None = None, **tune) -> Config:
    """The same search under another name, whose first points are known already."""
    changed = dataclasses.replace(config, name=name, tune=dataclasses.replace(config.tune, **tune),
                                  train=dataclasses.replace(config.train, **train or {}))
    storage.write_json(storage.join(tuning.search_uri(changed), "points.json"), {"points": points})
    return changed


def search(config: Config) -> list[dict]:
    return tuning.search(config, f"{config.storage}/prepared/set")


def processes_of(word: bytes) -> int:
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += word in process.joinpath("cmdline").read_bytes()
        except OSError:
            continue
    return found


def epochs_of(trials: list[dict]) -> list[int]:
    return [len(t["history"]) for t in trials]


def test_hopeless_trials_end_early_and_diverged_ones_are_the_worst_under_every_scheduler(tiny):
    with ray_on(2):
        found = search(named(tiny, "asha", [GOOD, BAD, DIVERGING], reduction_factor=2))
        good, bad, diverged = found
        assert [t["state"] for t in found] == ["finished", "ended", "diverged"]
        assert epochs_of([good, bad]) == [4, 1] and diverged["score"] == 0 and "too high" in diverged["reason"]
        config = named(tiny, "asha", [GOOD, BAD, DIVERGING], reduction_factor=2)
        best = tuning.choose(config, found)
        named_best = storage.read_json(f"{tiny.storage}/best/asha.json")
        assert best is good and named_best["checkpoint"].startswith(good["run"])
        before = [tracking.read(t["run"]) for t in found]
        assert [tracking.read(t["run"]) for t in search(config)] == before  # made again, it trains nothing again
        for name, scheduler in (("median", "median"), ("hyperband", "hyperband"), ("full", "none")):
            config = named(tiny, name, [GOOD, BAD, DIVERGING], scheduler=scheduler, max_concurrent=2)
            found = search(config)
            assert tuning.choose(config, found)["number"] == 0, name
            assert found[2]["state"] == "diverged" and epochs_of(found)[0] == 4, name
        assert epochs_of(found)[:2] == [4, 4]
        found = search(named(tiny, "budget", [GOOD, GOOD, GOOD], budget_epochs=6))
        assert sum(epochs_of(found)) == 6 and found[-1]["state"] == "unfinished"


def test_driver_killed_and_interrupted_goes_on_with_what_is_done(tiny):
    config = named(tiny, "killed", [GOOD, GOOD, BAD], max_epochs=30)
    runs = Path(tuning.search_uri(config)) / "runs"
    options = ["--storage", config.storage, "--prepared", "set", "--name", "killed", "--train.backbone",
               config.train.backbone, "--train.layers", "head", "--train.batch_size", "8", "--train.lr", "0.05",
               "--tune.plane", "plain", "--tune.lr", "[1e-10, 1e38]", "--tune.max_epochs", "30", "--tune.num_trials",
               "3"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command("tune", *options), env=environment(), start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait_for(trial: int, epochs: int, job: subprocess.Popen) -> None:
        deadline = time.time() + 120
        while len(tracking.read(str(runs / f"{trial:03d}"))) < epochs:
            assert time.time() < deadline and job.poll() is None, "it did not get so far"
            time.sleep(0.02)

    first = start()
    wait_for(1, 2, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = tracking.read(str(runs / "000"))
    assert done
    time.sleep(2)
    again = start()
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0, said
    assert tracking.read(str(runs / "000")) == done
    assert len({e["run"] for e in tracking.read(str(runs / "001"))}) == 1
    result = json.loads((runs.parent / "tune.json").read_text())
    assert [len(t["history"]) for t in result["trials"]][2] == 1 and result["trials"][2]["state"] == "ended"
    assert result["test"]["test_images"] and (runs.parent / "tune.html").stat().st_size > 50_000


def test_trials_of_two_workers_leave_no_worker_behind(tiny):
    config = named(tiny, "group", [GOOD, BAD, DIVERGING], train={"num_workers": 2}, reduction_factor=2, max_epochs=3)
    with ray_on(2):
        found = search(config)
        assert [t["state"] for t in found] == ["finished", "ended", "diverged"]
        deadline = time.time() + 30
        while processes_of(b"RayTrainWorker") and time.time() < deadline:
            time.sleep(0.2)
        assert not processes_of(b"RayTrainWorker")
