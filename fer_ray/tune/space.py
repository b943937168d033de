"""The points that a search tries: its axes, the grid over them, and those that were chosen so far."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np

from fer_ray import storage
from fer_ray.checks import check
from fer_ray.config import Config, ConfigError, TrainConfig, to_dict
from fer_ray.values import architecture_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# Lowest and highest learning rate at momentum 0.9. Networks without batch normalisation diverge at lower ones. Only the
# last layer learns at the whole rate: `train.body_lr` gives the others 0.3 of it by default.
LR = {"alexnet": (1e-4, 3e-2), "vgg19": (1e-4, 3e-2)}
LR_OF_OTHERS = (1e-3, 3e-1)


def search_uri(config: Config) -> str:
    """The folder of the search that `config` names; also the storage root of its trials."""
    return storage.join(config.storage, "tune", config.name)


def trainings(config: Config) -> list[TrainConfig]:
    """The settings of `train` with each backbone that the search may choose."""
    return [dataclasses.replace(config.train, backbone=b) for b in config.tune.backbones or [config.train.backbone]]


def axes(config: Config) -> dict[str, BaseDistribution]:
    """Optuna's distribution of each axis by name. A point has a value for each of these names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    tune = config.tune
    known = [LR.get(architecture_of(train.backbone), LR_OF_OTHERS) for train in trainings(config)]
    low, high = tune.lr or [min(low for low, _ in known), max(high for _, high in known)]
    found: dict[str, BaseDistribution]
    if tune.plane == "effective":
        if not tune.lr:  # at momentum 0.9, lr / (1 - momentum) is ten times the learning rate
            low, high = 10 * low, 10 * high
        found = {"effective_lr": FloatDistribution(low, high, log=True),
                 "damping": FloatDistribution(1 - tune.momentum[1], 1 - tune.momentum[0], log=True)}
    else:
        found = {"lr": FloatDistribution(low, high, log=True),
                 "momentum": FloatDistribution(tune.momentum[0], tune.momentum[1])}
    if tune.weight_decay:
        found["weight_decay"] = FloatDistribution(tune.weight_decay[0], tune.weight_decay[1], log=True)
    if tune.label_smoothing:
        found["label_smoothing"] = FloatDistribution(tune.label_smoothing[0], tune.label_smoothing[1])
    if tune.backbones:
        found["backbone"] = CategoricalDistribution(tune.backbones)
    if tune.batch_sizes:
        found["batch_size"] = CategoricalDistribution(tune.batch_sizes)
    return found


def settings(point: dict) -> dict:
    """What a point sets in `train`: its own values, with learning rate and momentum from the effective plane."""
    values = dict(point)
    if "effective_lr" in values:
        damping = values.pop("damping")
        values |= {"lr": values.pop("effective_lr") * damping, "momentum": 1 - damping}
    return values


def grid(axes: dict[str, BaseDistribution], points: int) -> list[dict]:
    """All combinations of `points` values of each continuous axis, ends included, and every value of the others."""
    return [dict(zip(axes, chosen, strict=True))
            for chosen in itertools.product(*(_values(axis, points) for axis in axes.values()))]


def _values(axis: BaseDistribution, points: int) -> list:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(axis, CategoricalDistribution):
        return list(axis.choices)
    assert isinstance(axis, FloatDistribution)
    spaced = (np.geomspace if axis.log else np.linspace)(axis.low, axis.high, points)
    return sorted({float(value) for value in spaced.clip(axis.low, axis.high)})  # rounding may leave the range


def configured_point(config: Config, axes: dict[str, BaseDistribution]) -> list[dict]:
    """The configured values as a point; none if they lie outside the axes."""
    train = config.train
    values = to_dict(train) | {"effective_lr": train.lr / (1 - train.momentum), "damping": 1 - train.momentum}
    point = {name: values[name] for name in axes}
    return [point] if all(_lies_on(axis, point[name]) for name, axis in axes.items()) else []


def _lies_on(axis: BaseDistribution, value) -> bool:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(axis, CategoricalDistribution):
        return value in axis.choices
    assert isinstance(axis, FloatDistribution)
    return axis.low <= value <= axis.high


class Points:
    """The points of a search in the order in which they were chosen, kept in `points.json`."""

    def __init__(self, config: Config):
        self.axes = axes(config)
        self.file = storage.join(search_uri(config), "points.json")
        self.chosen = read_points(config)  # in the order of the trials
        self.first = list(self.chosen)  # what the searcher must suggest before it chooses by itself
        self.num_trials = config.tune.num_trials
        if config.tune.searcher == "grid":
            points = grid(self.axes, config.tune.grid_points)
            # Shuffled: in sorted order scores may rise or fall steadily, and ASHA would stop none or all.
            self.first = [points[i] for i in np.random.default_rng(config.tune.seed).permutation(len(points))]
            self.num_trials = len(self.first)
        elif not self.first:
            self.first = configured_point(config, self.axes)

    def record(self, number: int, point: dict) -> None:
        """Keep the point of trial `number` before it begins, unless an earlier session of the search has done so."""
        if number == len(self.chosen):
            self.chosen.append(point)
            storage.write_json(self.file, {"points": self.chosen})


def read_points(config: Config) -> list[dict]:
    """The points that were chosen so far.

    Raises: storage.DamagedError if `points.json` is damaged, or is missing although there are trials.
    """
    folder = search_uri(config)
    file, trials = storage.join(folder, "points.json"), storage.join(folder, "runs")
    if not storage.exists(file) and not storage.exists(trials):
        return []
    return storage.read_own_json(file, {"points": list}, "without it nobody knows what the trials beside it tried: "
                                 f"remove {folder} and run jobs/tune.py again")["points"]


def with_best_settings(config: Config) -> Config:
    """The configuration with the values that the search `train.from_tune` found, if it names one.

    Raises: ConfigError if there is no such search; storage.DamagedError if its result is damaged.
    """
    name = config.train.from_tune
    if not name:
        return config
    file = storage.join(search_uri(dataclasses.replace(config, name=name)), "tune.json")
    if not storage.exists(file):
        raise ConfigError(f"train.from_tune: no finished search {name!r} ({file}); run jobs/tune.py --name {name}")
    remedy = f"run jobs/tune.py --name {name} again with the options of the search"
    found = storage.read_own_json(file, {"best": dict}, remedy)["best"].get("settings")
    if not isinstance(found, dict) or not found.keys() <= to_dict(config.train).keys():
        raise storage.DamagedError(f"{file}: is damaged (no settings of train); {remedy}")
    return check(dataclasses.replace(config, train=dataclasses.replace(config.train, **found)))
