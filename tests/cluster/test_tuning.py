"""A search on a real Ray: hopeless trials end early, diverged ones are the worst, nothing done is lost."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster.conftest import command, environment, nodes_of, ray_on

from fer_ray import storage
from fer_ray.config import Config, DataConfig, TrainConfig, TuneConfig
from fer_ray.data import prepare, sample
from fer_ray.data.sources import read_manifest
from fer_ray.train import tracking
from fer_ray.tune import outcome, search, space

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
    storage.write_json(storage.join(space.search_uri(changed), "points.json"), {"points": points})
    return changed


def searched(config: Config) -> list[dict]:
    return search.search(config, f"{config.storage}/prepared/set")


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
        found = searched(named(tiny, "asha", [GOOD, BAD, DIVERGING], reduction_factor=2))
        good, bad, diverged = found
        assert [t["state"] for t in found] == ["finished", "ended", "diverged"]
        assert epochs_of([good, bad]) == [4, 1] and diverged["score"] == 0 and "too high" in diverged["reason"]
        config = named(tiny, "asha", [GOOD, BAD, DIVERGING], reduction_factor=2)
        best = outcome.choose(config, found)
        named_best = storage.read_json(f"{tiny.storage}/best/asha.json")
        assert best is good and named_best["checkpoint"].startswith(good["run"])
        before = [tracking.read(t["run"]) for t in found]
        assert [tracking.read(t["run"]) for t in searched(config)] == before  # made again, it trains nothing again
        for name, scheduler in (("median", "median"), ("hyperband", "hyperband"), ("full", "none")):
            config = named(tiny, name, [GOOD, BAD, DIVERGING], scheduler=scheduler, max_concurrent=2)
            found = searched(config)
            assert outcome.choose(config, found)["number"] == 0, name
            assert found[2]["state"] == "diverged" and epochs_of(found)[0] == 4, name
        assert epochs_of(found)[:2] == [4, 4]
        found = searched(named(tiny, "patience", [BAD], {"patience": 1}, scheduler="none", num_trials=1))
        assert found[0]["state"] == "finished" and epochs_of(found) == [2]
        found = searched(named(tiny, "budget", [GOOD, GOOD, GOOD], budget_epochs=6))
        assert sum(epochs_of(found)) == 6 and found[-1]["state"] == "unfinished"


def test_trials_of_two_workers_leave_no_worker_behind(tiny):
    config = named(tiny, "group", [GOOD, BAD, DIVERGING], train={"num_workers": 2}, reduction_factor=2, max_epochs=3)
    with ray_on(2):
        found = searched(config)
        assert [t["state"] for t in found] == ["finished", "ended", "diverged"]
        deadline = time.time() + 30
        while processes_of(b"RayTrainWorker") and time.time() < deadline:
            time.sleep(0.2)
        assert not processes_of(b"RayTrainWorker")


def test_a_lost_node_costs_no_trial(tiny):
    points = [GOOD, {"lr": 0.02, "momentum": 0.9}, BAD]
    with ray_on(2):
        undisturbed = searched(named(tiny, "still", points, {"patience": 60}, max_epochs=12, scheduler="none"))
    config = named(tiny, "lost", points, {"patience": 60}, max_epochs=12, scheduler="none", max_concurrent=2)
    # the head computes nothing; a node of two is lost while a trial runs on it, another is there instead
    with nodes_of(0, 1, 1) as (cluster, others), ThreadPoolExecutor(1) as aside:
        def lose_one() -> None:
            run, deadline = f"{space.search_uri(config)}/runs/001", time.time() + 100
            while len(tracking.read(run)) < 2:
                assert time.time() < deadline
                time.sleep(0.02)
            cluster.remove_node(others[0], allow_graceful=False)

        lost = aside.submit(lose_one)
        found = searched(config)
        lost.result()
    assert [t["state"] for t in found] == ["finished"] * 3

    def numbers(trials: list[dict]) -> list:
        return [[(e["train_loss"], e["val_loss"]) for e in t["history"]] for t in trials]

    assert numbers(found) == numbers(undisturbed)


def test_driver_killed_and_interrupted_goes_on_with_what_is_done(killed):
    search, done, again, interrupted, said = killed
    assert again == 130 and interrupted.splitlines()[-1].startswith("error: interrupted"), interrupted
    assert tracking.read(str(search / "runs/000")) == done
    assert len({e["run"] for e in tracking.read(str(search / "runs/001"))}) == 1
    result = json.loads((search / "tune.json").read_text())
    assert epochs_of(result["trials"]) == [30, 30, 1] and result["trials"][2]["state"] == "ended"
    assert result["test"]["test_images"] and said.splitlines()[-1].startswith("result: ")


@pytest.fixture(scope="module")
def killed(tiny):
    """A search whose driver was killed, then interrupted by Ctrl-C, both times in the second trial, then let run.

    Its folder, the first trial's epochs as the killed driver left them, and what the two drivers after it said.
    """
    config = named(tiny, "killed", [GOOD, GOOD, BAD], {"patience": 30}, max_epochs=30, max_concurrent=1)
    folder = Path(space.search_uri(config))
    options = ["--storage", config.storage, "--prepared", "set", "--name", "killed", "--train.backbone",
               config.train.backbone, "--train.layers", "head", "--train.batch_size", "8", "--train.lr", "0.05",
               "--train.patience", "30", "--tune.plane", "plain", "--tune.lr", "[1e-10, 1e38]", "--tune.max_epochs",
               "30", "--tune.num_trials", "3", "--tune.max_concurrent", "1"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command("tune", *options), env=environment(), start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait_for(trial: int, epochs: int, job: subprocess.Popen) -> None:
        deadline = time.time() + 120
        while len(tracking.read(str(folder / f"runs/{trial:03d}"))) < epochs:
            assert time.time() < deadline and job.poll() is None, "it did not get so far"
            time.sleep(0.02)

    first = start()
    wait_for(1, 2, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = tracking.read(str(folder / "runs/000"))
    assert done
    time.sleep(2)
    second = start()
    wait_for(1, len(tracking.read(str(folder / "runs/001"))) + 2, second)
    os.kill(second.pid, signal.SIGINT)
    interrupted = second.communicate(timeout=60)[0]
    third = start()
    said = third.communicate(timeout=200)[0]
    assert third.returncode == 0, said
    return folder, done, second.returncode, interrupted, said


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_the_page_shows_the_search_in_a_browser(killed, tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page, wrong = browser.new_page(viewport={"width": 1280, "height": 900}), []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(f"file://{killed[0]}/tune.html")
        pictures = page.locator("img")
        assert pictures.count() >= 3 and not wrong
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 300)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        rows = page.locator("table tr", has_text="ended")
        assert rows.count() == 1 and "1e-09" in rows.inner_text()
        browser.close()
