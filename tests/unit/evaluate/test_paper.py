"""What the study of the paper trains, and what it puts beside each other."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import yaml
from documented import REPO

from fer_ray.config import Config, PaperConfig
from fer_ray.data.manifest import EXPRESSIONS, PROBABILITIES
from fer_ray.evaluate import paper


def table(right: dict[tuple[str, str], bool]) -> pd.DataFrame:
    """Predictions of an image for each pair of person and expression, right or wrong."""
    rows = []
    for (person, expression), is_right in right.items():
        answer = EXPRESSIONS.index(expression) if is_right else (EXPRESSIONS.index(expression) + 1) % 8
        rows.append({"image": f"{person}/{expression}", "subject": person, "expression": expression, "run": "one",
                     **dict(zip(PROBABILITIES, np.eye(8)[answer], strict=True))})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("file", ["paper", "paper_vs_honest"])
def test_the_study_trains_as_the_papers_configuration(file):
    written = yaml.safe_load((REPO / f"jobs/configs/{file}.yaml").read_text())
    scale = paper.SCALES["full"]
    assert written["train"] == paper.TRAINING | {"backbone": "alexnet", "epochs": scale.epochs, "lr": scale.lr}
    assert written["faces"] == paper.FACES


def test_the_papers_training_and_ours_share_network_epochs_and_folds():
    config = paper.sized(Config(name="s"))
    base, ours = paper.as_in_the_paper(config), paper.with_our_recipe(config)
    assert (base.train.backbone, base.train.epochs) == (ours.train.backbone, ours.train.epochs) == ("alexnet", 50)
    assert base.protocol == ours.protocol and base.protocol.repeats == 10
    assert base.prepared != ours.prepared and base.train.augmentation == "paper" != ours.train.augmentation
    runs = paper.compared(base)
    assert list(runs) == ["alexnet", "vgg19", "resnet152"] and len({run.name for run in runs.values()}) == 3
    assert all(run.train.epochs == run.train.patience == 30 and run.split.by == "image" for run in runs.values())


def test_a_small_study_needs_no_download():
    config = paper.sized(Config(paper=PaperConfig("small")))
    runs = paper.compared(paper.as_in_the_paper(config))
    assert all(run.train.weights == "none" for run in runs.values()) and "efficientnet_lite0" in config.train.backbone
    assert config.tune.num_trials < 5


def test_the_cost_is_what_is_trained():
    config = paper.sized(dataclasses.replace(Config(), tune=dataclasses.replace(Config().tune, num_trials=2,
                                                                               max_epochs=5)))
    work = paper.work(config, 1000)
    assert work["comparison"] == {"alexnet": 24_000, "vgg19": 24_000, "resnet152": 24_000}
    assert work["search"] == {"alexnet": 8_000} and work[paper.PAPERS_SPLIT] == {"alexnet": 40_000}
    assert work["honest folds"] == {"alexnet": 400_000}  # ten folds of 50 epochs of 800 images


def test_columns_are_compared_over_the_classes_and_people_of_all():
    everybody = table({(person, e): True for person in "abc" for e in EXPRESSIONS})
    leaky = table({("a", "anger"): True, ("b", "fear"): False, ("b", "sadness"): True})
    face = table({("new", "anger"): False, ("new", "fear"): True, ("new", "surprise"): True})
    face["subject"] = None
    found = paper.beside_each_other({paper.PAPERS_SPLIT: leaky, "honest folds": everybody, paper.NEW_FACE: face,
                                     "after clean-up": None, "our recipe": everybody})
    assert found["classes"] == ["anger", "fear"] and found["people"] == 2
    columns = found["columns"]
    assert tuple(columns) == paper.COLUMNS and columns["after clean-up"] is None
    assert [columns[name]["common"]["test_images"] for name in columns if columns[name]] == [2, 4, 2, 4]
    assert columns[paper.PAPERS_SPLIT]["common"]["balanced_accuracy"] == pytest.approx(0.5)
    assert columns["honest folds"]["all"]["test_images"] == 24
