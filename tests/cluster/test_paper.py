"""The study of the paper as one command, smaller than small: each part is there, in the paper's order."""

import json
import re
from pathlib import Path

import pytest
from cluster.conftest import run_job

from fer_ray.cli import paper as study
from fer_ray.evaluate import paper

SECTIONS = ("Table I and Fig 4", "Fig 5 and 6", "Fig 12", "The search", "Fig 13 to 15", "Fig 16 and 17", "Why the two",
            "folds of people", "clean-up", "Our recipe", "All together")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    options = ["--paper.scale", "small", "--train.backbone", "tiny", "--train.weights", "none",
               "--compare.backbones", "[timm:test_vit]", "--train.batch_size", "16", "--evaluate.batch_size", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paper.SCALES, "small", paper.Scale(epochs=1, compared_epochs=1, folds=3, lr=0.01, trials=1))
        patch.setattr(paper, "SMALL_NETWORK", "tiny")
        patch.setattr(paper, "SMALL_COMPARED", ["timm:test_vit"])
        patch.setattr(study, "PEOPLE", 3)
        done = run_job("paper", *options, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.timeout(600)  # ten small trainings, each with its report
def test_the_page_has_all_parts_in_the_papers_order(ran):
    folder, output = ran
    result = Path(re.findall(r"^result: (.+)$", output, re.M)[0])
    assert result == folder / "fer_ray_output/paper/default/paper.json"
    page = result.with_name("paper.html").read_text()
    headings = re.findall(r"<h2>(.+?)</h2>", page)
    places = [next(i for i, heading in enumerate(headings) if words in heading) for words in SECTIONS]
    assert places == sorted(places) and "These faces are drawn" in page
    for figure in ("Fig 4", "Fig 5", "Fig 6", "Fig 12", "Fig 13", "Fig 14", "Fig 16", "Fig 17"):
        assert f"<figcaption>{figure}: " in page, figure


def test_the_numbers_are_those_of_the_runs(ran):
    folder, output = ran
    out = folder / "fer_ray_output"
    found = json.loads((out / "paper/default/paper.json").read_text())
    by_image, folds, ours = (json.loads((out / file).read_text()) for file in (
        "runs/default-image/result.json", "crossval/default/crossval.json", "crossval/default-ours/crossval.json"))
    columns = found["together"]["columns"]
    assert columns["paper's split"]["all"]["balanced_accuracy"] == by_image["balanced_accuracy"]
    assert by_image["split"] == "image" and by_image["leaks"]["subject"] > 0
    for name, summary in (("honest folds", folds), ("our recipe", ours)):
        assert columns[name]["all"]["balanced_accuracy"] == summary["pooled"]["balanced_accuracy"]
        assert all(run["leaks"]["subject"] == 0 for run in summary["runs"])
    (new_face,) = by_image["also"]
    assert columns["new_face"]["all"]["test_people"] == 1 and columns["new_face"]["all"]["no_interval"]
    assert columns["new_face"]["all"]["balanced_accuracy"] == new_face["balanced_accuracy"]
    # networks of one epoch doubt nobody's labels, and the page says why
    assert columns["after clean-up"] is None is found["audit"] and "its doubts mean nothing" in found["audit_refused"]
    assert re.search(r"paper: --paper.scale full of these \d+ images takes about \d+\.\d hours", output)
    assert {"train.augmentation", "faces.gray", "faces.shape"} <= found["recipe"]["paper"].keys()
