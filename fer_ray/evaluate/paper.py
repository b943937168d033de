"""The paper's training and results, how large a study of it is, and our scores in the order of the paper.

Orozco, Lee, Arabadzhi, Gupta, "Transfer learning for Facial Expression Recognition".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from fer_ray.config import CompareConfig, Config
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import protocols

RESULTS = {"frames_read": 5900, "frames_kept": 4500, "jaffe": 210, "accuracy": 0.90, "new_face": 0.347,
           "best_class": "contempt", "worst_class": "neutral"}
# How the paper trains and crops; jobs/configs/paper.yaml says the same.
TRAINING = {"batch_size": 32, "lr": 0.001, "body_lr": 1.0, "momentum": 0.9, "weight_decay": 0.0,
            "schedule": "constant", "warmup_epochs": 0, "label_smoothing": 0.0, "average": 0.0, "flip_average": False,
            "class_weights": "none", "augmentation": "paper"}
FACES = {"gray": False, "shape": "ratio"}
PAPERS_SPLIT, NEW_FACE = "paper's split", "new_face"  # the latter also names its data set
COLUMNS = (PAPERS_SPLIT, "honest folds", NEW_FACE, "after clean-up", "our recipe")
# Networks that need no download; the comparison trains from random weights.
SMALL_NETWORK, SMALL_COMPARED = "efficientnet_lite0@64", ["timm:test_resnet", "timm:test_vit", "timm:test_convnext"]


@dataclass(frozen=True)
class Scale:
    """How large a study is."""

    epochs: int
    """Largest number of epochs of the network that the study is about (the paper's Fig 13 to 17)."""
    compared_epochs: int
    """Epochs of each network in the comparison, whatever validation says (Fig 12)."""
    folds: int
    """Folds by subject; ten train on 80 % of the images, as a single split does."""
    lr: float
    """Learning rate of the paper's training."""
    trials: int = 0
    """Trials of the search, of two epochs each; 0: those of `tune`."""


SCALES = {"full": Scale(epochs=50, compared_epochs=30, folds=10, lr=0.001),
          "small": Scale(epochs=10, compared_epochs=3, folds=5, lr=0.01, trials=3)}


def sized(config: Config) -> Config:
    """The configuration of a study of the size that `paper.scale` asks for."""
    scale = SCALES[config.paper.scale]
    if config.paper.scale == "small":
        config = replace(config, train=replace(config.train, backbone=SMALL_NETWORK),
                         compare=CompareConfig(SMALL_COMPARED))
    if scale.trials:
        config = replace(config, tune=replace(config.tune, num_trials=scale.trials, max_epochs=2))
    return replace(config, prepared=config.name, split=replace(config.split, by="subject", folds=0),
                   train=replace(config.train, epochs=scale.epochs),
                   protocol=replace(config.protocol, kind="folds", repeats=scale.folds))


def as_in_the_paper(config: Config) -> Config:
    """A `sized` configuration with the paper's crops and training; where and how fast it computes stays."""
    return replace(config, train=replace(config.train, **TRAINING | {"lr": SCALES[config.paper.scale].lr}),
                   faces=replace(config.faces, **FACES))


def with_our_recipe(config: Config) -> Config:
    """A `sized` configuration as it is, under a name and with crops of its own."""
    return replace(config, name=f"{config.name}-ours", prepared=f"{config.name}-ours")


def by_image(config: Config) -> Config:
    """The run of a `sized` configuration on the paper's split, in which people are on both sides."""
    return replace(config, name=f"{config.name}-image", split=replace(config.split, by="image"))


def compared(config: Config) -> dict[str, Config]:
    """A run for each network of `compare.backbones` on the paper's split, all over the same epochs."""
    scale = SCALES[config.paper.scale]
    weights = "none" if config.paper.scale == "small" else config.train.weights
    split = replace(config.split, by="image")
    return {backbone: replace(config, name=f"{config.name}-{backbone.replace(':', '-').replace('@', '-')}-compared",
                              split=split,
                              train=replace(config.train, backbone=backbone, weights=weights,
                                            epochs=scale.compared_epochs, patience=scale.compared_epochs))
            for backbone in config.compare.backbones}


def work(config: Config, images: int) -> dict[str, dict[str, float]]:
    """How many images each part of a `sized` study trains on: part -> network -> images times epochs."""
    scale = SCALES[config.paper.scale]
    network = config.train.backbone
    once, fold = 0.8 * images, images * (1 - 2 / scale.folds)  # without val and test
    folds = {network: fold * scale.folds * scale.epochs}
    return {"comparison": {name: once * scale.compared_epochs for name in config.compare.backbones},
            "search": {network: once * config.tune.num_trials * config.tune.max_epochs},
            PAPERS_SPLIT: {network: once * scale.epochs},
            "honest folds": folds, "after clean-up": folds, "our recipe": folds}


def beside_each_other(sides: dict[str, pd.DataFrame | None]) -> dict:
    """The scores of the study's columns, and those over what they have in common.

    Args:
        sides: test predictions by `COLUMNS`; None for what was not made.

    Returns: `classes`, which all columns test; `people`, whom all columns but the new face's test; `columns`: of each
        None, or the `metrics.evaluate` of all that it tests (`all`) and of those classes and people (`common`; None
        where there are none). The new face stands for itself.
    """
    made = {name: table for name, table in sides.items() if table is not None}
    tested = [set(table["expression"]) for table in made.values()]
    classes = [e for e in EXPRESSIONS if all(e in those for those in tested)]
    people = set.intersection(*(set(table["subject"].dropna()) for name, table in made.items() if name != NEW_FACE))
    columns: dict[str, dict | None] = dict.fromkeys(COLUMNS)
    for name, table in made.items():
        common = table[table["expression"].isin(classes)]
        if name != NEW_FACE:
            common = common[common["subject"].isin(people)]
        columns[name] = {"all": protocols.scores_of(table),
                         "common": protocols.scores_of(common) if len(common) else None}
    return {"classes": classes, "people": len(people), "columns": columns}

