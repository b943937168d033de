"""Folds, another data set and the label audit as a user runs them, and the pages in a real browser."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import processes
import pytest
from cluster.conftest import run_job, wait_for

OPTIONS = ["--data.sources", '[{"kind": "ckplus", "root": "CK+"}]', "--evaluate.also",
           '[{"kind": "jaffe", "root": "jaffe", "name": "jaffe"}]', "--train.backbone", "efficientnet_lite0@64",
           "--train.layers", "head", "--train.lr", "0.01", "--train.epochs", "15", "--train.batch_size", "16",
           "--protocol.repeats", "3", "--name", "tiny"]
PAGES = ["runs/tiny-fold0/report.html", "crossval/tiny/crossval.html", "labels/tiny/labels.html",
         "prepared/tiny/prepare.html"]


@pytest.fixture(scope="module")
def audited(tmp_path_factory, sample_of):
    """Labels of six people, audited by a network that knows enough to be asked."""
    root = tmp_path_factory.mktemp("audited")
    sample_of(root / "data", 6)
    def kill_what_watches_a_fold() -> int:
        wait_for(lambda: (root / "out/runs/tiny-fold0/run.json").exists(), 250)
        return processes.kill(rb"ray::train$", 1)

    with ThreadPoolExecutor(1) as aside:
        killed = aside.submit(kill_what_watches_a_fold)
        done = run_job("audit", "--labels", "--data.root", str(root / "data"), "--storage", str(root / "out"), *OPTIONS,
                       cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed.result() == 1
    (result,) = re.findall(r"^result: (.+)$", done.stdout, re.M)
    assert Path(result).is_file()
    return root / "out"


@pytest.mark.timeout(600)
def test_each_image_is_tested_once_by_a_network_that_did_not_see_it(audited):
    summary = json.loads((audited / "crossval/tiny/crossval.json").read_text())
    index = pd.read_parquet(audited / "prepared/tiny/index.parquet")
    folds = [pd.read_csv(audited / f"runs/tiny-fold{k}/predictions.csv") for k in range(3)]
    assert sorted(pd.concat(folds)["image"]) == sorted(index["image"])
    assert summary["pooled"]["test_images"] == len(index)
    assert set(summary["groups"]) == {"dataset", "colour", "face"} and {f["face"].iat[0] for f in folds} == {"found"}
    result = json.loads((audited / "runs/tiny-fold0/result.json").read_text())
    assert result["also"][0]["name"] == "jaffe" and result["groups"]["face"][0]["images"] == len(folds[0])
    people = [set(f["subject"]) for f in folds]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    for k, run in enumerate(summary["runs"]):
        assert run["leaks"] == {"subject": 0, "sequence": 0, "identical": 0, "near_duplicate": 0}
        assert run["also"]["jaffe"] is not None
        report = json.loads((audited / f"runs/tiny-fold{k}/report.json").read_text())
        jaffe = report["also"][0]
        assert "contempt" not in jaffe["classes"] and jaffe["metrics"]["test_images"] == 6 * len(jaffe["classes"])
        assert report["calibration"]["temperature"] == 1 and "a fit needs" in report["calibration"]["reason"]
        assert jaffe["people_seen"] == [] and [g["value"] for g in jaffe["groups"]["colour"]] == ["grey"]
        assert report["drawn"] and jaffe["drawn"] and report["groups"]["dataset"][0]["value"] == "CK+ (drawn sample)"


def test_label_audit_ranks_all_and_its_list_is_one_that_prepare_accepts(audited, tmp_path):
    summary = json.loads((audited / "labels/tiny/labels.json").read_text())
    ranked = pd.read_csv(audited / "labels/tiny/labels.csv", keep_default_na=False)
    suspects = pd.read_csv(audited / "labels/tiny/suspects.csv")
    assert len(ranked) == summary["images"] and len(suspects) == summary["suspects"] > 0
    assert summary["network"]["balanced_accuracy"] >= summary["network"]["required"] > summary["network"]["chance"]
    assert set(ranked["image"][: len(suspects)]) == set(suspects["image"])
    wrong = suspects.head(5)  # what a person did not strike from the list
    wrong.to_csv(tmp_path / "wrong.csv")
    done = run_job("prepare", "--data.root", str(audited.parent / "data"), "--storage", str(audited), *OPTIONS,
                   "--data.exclude", str(tmp_path / "wrong.csv"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    index = pd.read_parquet(audited / "prepared/tiny/index.parquet")
    rejected = pd.read_parquet(audited / "prepared/tiny/rejected.parquet")
    assert not set(index["image"]) & set(wrong["image"]) and len(index) == len(ranked) - 5
    assert rejected["reason"].str.startswith("excluded by wrong.csv").sum() == 5


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("page", PAGES)
def test_pages_are_whole_in_a_browser(audited, browser, page, width):
    file = audited / page
    assert file.stat().st_size < 10e6
    tab = browser.new_page(viewport={"width": width, "height": 900})
    messages, requests = [], []
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    assert messages == [] and [url for url in requests if not url.startswith(("data:", file.as_uri()))] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    tab.close()
