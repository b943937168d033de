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

import processes
import pytest
from cluster.conftest import command, joining, ray_on, wait_for

from fer_ray import storage
from fer_ray.config import Config, TuneConfig
from fer_ray.train import tracking
from fer_ray.train.job import TrainingInput
from fer_ray.tune import outcome, search, space

GOOD, BAD, DIVERGING = ({"lr": lr, "momentum": 0.9} for lr in (0.05, 1e-9, 1e38))
# the last layer on real features: on those of a network with random weights, no trial would be better than another
TRAIN = {"backbone": "efficientnet_lite0", "weights": "imagenet", "layers": "head", "lr": 0.05}
TUNE = {"plane": "plain", "lr": [1e-10, 1e38], "max_epochs": 4, "num_trials": 3}


def named(prepared: Config, name: str, points: list[dict], train: dict | None = None, **tune) -> Config:
    """A search on the last layer under this name, whose first points are known already."""
    config = dataclasses.replace(prepared, name=name, tune=TuneConfig(**TUNE | tune),
                                 train=dataclasses.replace(prepared.train, **TRAIN | (train or {})))
    storage.write_json(storage.join(space.search_uri(config), "points.json"), {"points": points})
    return config


@pytest.fixture(scope="module")
def search_on(prepared):
    """Runs a search; all share what they train on, as long as the same Ray runs."""
    loaded: dict[str, TrainingInput] = {}

    def run(config: Config) -> list[dict]:
        uri = f"{config.storage}/prepared/set"
        if not loaded:
            loaded.update(search.load_inputs(config, uri))
        return search.search(config, uri, loaded)

    with ray_on(2):
        yield run


def epochs_of(trials: list[dict]) -> list[int]:
    return [len(trial["history"]) for trial in trials]


def test_asha_ends_the_hopeless_trial_and_the_diverged_one_is_the_worst(prepared, search_on):
    config = named(prepared, "asha", [GOOD, BAD, DIVERGING], reduction_factor=2)
    found = search_on(config)
    good, bad, diverged = found
    assert [trial["state"] for trial in found] == ["finished", "ended", "diverged"]
    assert epochs_of([good]) == [4] > epochs_of([bad])
    assert diverged["score"] == 0 and "too high" in diverged["reason"]
    assert outcome.choose(config, found) is good
    best = storage.read_json(f"{config.storage}/best/asha.json")["checkpoint"]
    assert f"{config.storage}/{best}".startswith(f"{good['run']}/")
    before = [tracking.read(trial["run"]) for trial in found]
    # made again, it trains nothing again
    assert [tracking.read(trial["run"]) for trial in search_on(config)] == before


@pytest.mark.parametrize("scheduler", ["median", "hyperband", "none"])
def test_other_schedulers_find_the_same_best_trial(prepared, search_on, scheduler):
    config = named(prepared, scheduler, [GOOD, BAD, DIVERGING], scheduler=scheduler, max_concurrent=2)
    found = search_on(config)
    assert outcome.choose(config, found)["number"] == 0
    assert found[2]["state"] == "diverged" and epochs_of(found)[0] == 4
    assert scheduler != "none" or epochs_of(found)[:2] == [4, 4]


def test_patience_finishes_a_trial_and_a_spent_budget_leaves_it_unfinished(prepared, search_on):
    found = search_on(named(prepared, "patience", [BAD], {"patience": 1}, scheduler="none", num_trials=1))
    assert found[0]["state"] == "finished" and epochs_of(found) == [2]
    found = search_on(named(prepared, "budget", [GOOD, GOOD], num_trials=2, budget_epochs=5))
    assert sum(epochs_of(found)) == 5 and found[-1]["state"] == "unfinished"


def test_a_killed_trial_goes_on_and_ends_as_one_that_nothing_disturbed(prepared, search_on):
    still = search_on(named(prepared, "still", [GOOD], {"patience": 60}, max_epochs=12, scheduler="none", num_trials=1))
    config = named(prepared, "lost", [GOOD], {"patience": 60}, max_epochs=12, scheduler="none", num_trials=1)

    def kill_trial() -> int:
        wait_for(lambda: len(tracking.read(f"{space.search_uri(config)}/runs/000")) >= 2)
        return processes.kill(b"ImplicitFunc")

    with ThreadPoolExecutor(1) as aside:
        killed = aside.submit(kill_trial)
        found = search_on(config)
        assert killed.result()
    numbers = [[(epoch["train_loss"], epoch["val_loss"]) for epoch in one["history"]] for one in (found[0], still[0])]
    assert found[0]["state"] == "finished" and numbers[0] == numbers[1]


def test_trials_of_two_workers_leave_no_worker_behind(prepared, search_on):
    config = named(prepared, "group", [GOOD, BAD], {"num_workers": 2}, reduction_factor=2, max_epochs=9, num_trials=2)
    found = search_on(config)
    assert [trial["state"] for trial in found] == ["finished", "ended"]
    good, bad = epochs_of(found)
    assert good == 9 and bad < 9  # the workers may be some epochs further when Tune's decision reaches them
    wait_for(lambda: not processes.find(b"RayTrainWorker"))


# Features of a network that is small: these trials need not differ.
KILLED = {"backbone": "tiny", "weights": "none", "patience": 20}


@pytest.fixture(scope="module")
def killed(prepared):
    """A search whose driver was killed in the second trial.

    Its folder, the first trial's epochs as the killed driver left them, and what the driver after it said.
    """
    config = named(prepared, "killed", [GOOD, GOOD, DIVERGING], KILLED, max_epochs=20, max_concurrent=1)
    folder = Path(space.search_uri(config))
    options = ["--storage", config.storage, "--prepared", "set", "--name", "killed", "--train.backbone",
               config.train.backbone, "--train.weights", "none", "--train.layers", "head", "--train.batch_size", "8",
               "--train.lr", "0.05", "--train.epochs", str(config.train.epochs), "--train.patience", "20",
               "--tune.plane", "plain", "--tune.lr", "[1e-10, 1e38]", "--tune.max_epochs", "20", "--tune.num_trials",
               "3", "--tune.max_concurrent", "1"]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command("tune", *options), env=joining(), start_new_session=True, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    with ray_on(2):
        first = start()
        wait_for(lambda: len(tracking.read(str(folder / "runs/001"))) >= 2 or first.poll() is not None)
        assert first.poll() is None, first.communicate()
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
        done = tracking.read(str(folder / "runs/000"))
        time.sleep(2)
        again = start()
        output = again.communicate(timeout=200)[0]
    assert again.returncode == 0, output
    return folder, done, output


def test_a_search_whose_driver_was_killed_goes_on_with_what_is_done(killed):
    folder, done, output = killed
    assert done and tracking.read(str(folder / "runs/000")) == done
    assert len({epoch["run"] for epoch in tracking.read(str(folder / "runs/001"))}) == 1
    result = json.loads((folder / "tune.json").read_text())
    assert epochs_of(result["trials"]) == [20, 20, 0] and result["trials"][2]["state"] == "diverged"
    assert result["test"]["test_images"] and output.splitlines()[-1].startswith("result: ")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_the_page_shows_the_search_in_a_browser(killed):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page, wrong = browser.new_page(viewport={"width": 1280, "height": 900}), []
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.goto(f"file://{killed[0]}/tune.html")
        assert page.locator("img").count() >= 3 and not wrong
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 300)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        rows = page.locator("table tr", has_text="diverged")
        assert rows.count() == 1 and "1e+38" in rows.inner_text()
        browser.close()
