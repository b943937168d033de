"""The points that a search tries: its axes, the grid over them, and those that were chosen so far."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from fer_ray import storage
from fer_ray.checks import check
from fer_ray.config import Config, ConfigError, TrainConfig, to_dict

# lowest and highest learning rate at momentum 0.9: networks without batch normalisation diverge earlier
LR = {"alexnet": (1e-4, 1e-2), "vgg19": (1e-4, 1e-2)}
LR_OF_OTHERS = (1e-3, 1e-1)


def search_uri(config: Config) -> str:
    """The folder of the search that `config` names; also the storage root of its trials."""
    return storage.join(config.storage, "tune", config.name)


def trainings(config: Config) -> list[TrainConfig]:
    """The training of each backbone that the search may choose."""
    return [dataclasses.replace(config.train, backbone=b) for b in config.tune.backbones or [config.train.backbone]]


def axes(config: Config) -> dict:
    """Optuna's distribution of each axis by name. Points hold a value for each of these names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    u = config.tune
    known = [LR.get(t.backbone, LR_OF_OTHERS) for t in trainings(config)]
    lr = u.lr or [min(low for low, _ in known), max(high for _, high in known)]
    if u.plane == "effective":
        low, high = lr if u.lr else (10 * end for end in lr)
        found = {"effective_lr": FloatDistribution(low, high, log=True),
                "damping": FloatDistribution(1 - u.momentum[1], 1 - u.momentum[0], log=True)}
    else:
        found = {"lr": FloatDistribution(*lr, log=True), "momentum": FloatDistribution(*u.momentum)}
    if u.weight_decay:
        found["weight_decay"] = FloatDistribution(*u.weight_decay, log=True)
    if u.label_smoothing:
        found["label_smoothing"] = FloatDistribution(*u.label_smoothing)
    if u.backbones:
        found["backbone"] = CategoricalDistribution(u.backbones)
    if u.batch_sizes:
        found["batch_size"] = CategoricalDistribution(u.batch_sizes)
    return found


def settings(point: dict) -> dict:
    """What a point sets in `train`."""
    known = dict(point)
    if "effective_lr" in known:
        damping = known.pop("damping")
        known |= {"lr": known.pop("effective_lr") * damping, "momentum": 1 - damping}
    return known


def grid(axes: dict, points: int) -> list[dict]:
    """All combinations of `points` values of each continuous axis, ends included, and every value of the others."""
    def values(axis) -> list:
        if hasattr(axis, "choices"):
            return list(axis.choices)
        between = np.geomspace if axis.log else np.linspace
        return sorted({float(v) for v in between(axis.low, axis.high, points).clip(axis.low, axis.high)})

    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*map(values, axes.values()))]


def known_good(config: Config, axes: dict) -> list[dict]:
    """The configured values as a point, if they lie within the axes."""
    t = config.train
    point = to_dict(t) | {"effective_lr": t.lr / (1 - t.momentum), "damping": 1 - t.momentum}
    inside = all(point[name] in axis.choices if hasattr(axis, "choices") else axis.low <= point[name] <= axis.high
                 for name, axis in axes.items())
    return [{name: point[name] for name in axes}] if inside else []


class Queue:
    """The points of a search in the order in which they were chosen, kept in storage."""

    def __init__(self, config: Config):
        self.axes = axes(config)
        self.file = storage.join(search_uri(config), "points.json")
        self.chosen = read_points(config)
        self.first = list(self.chosen)
        self.number = config.tune.num_trials
        if config.tune.searcher == "grid":
            points = grid(self.axes, config.tune.grid_points)
            # in their own order each would beat those before it, or none, and schedulers end trials by comparison
            self.first = [points[i] for i in np.random.default_rng(config.tune.seed).permutation(len(points))]
            self.number = len(self.first)
        elif not self.first:
            self.first = known_good(config, self.axes)

    def keep(self, number: int, point: dict) -> None:
        """Remember the point of a trial before the trial begins."""
        if number == len(self.chosen):
            self.chosen.append(point)
            storage.write_json(self.file, {"points": self.chosen})


def read_points(config: Config) -> list[dict]:
    """The points that were chosen so far."""
    file = storage.join(search_uri(config), "points.json")
    return storage.read_json(file)["points"] if storage.exists(file) else []


def with_best_settings(config: Config) -> Config:
    """The configuration with the values that the search `train.from_tune` found, if it names one.

    Raises: ConfigError if there is no such search.
    """
    name = config.train.from_tune
    if not name:
        return config
    file = storage.join(search_uri(dataclasses.replace(config, name=name)), "tune.json")
    if not storage.exists(file):
        raise ConfigError(f"train.from_tune: no finished search {name!r} ({file}); run jobs/tune.py --name {name}")
    found = storage.read_json(file)["best"]["settings"]
    return check(dataclasses.replace(config, train=dataclasses.replace(config.train, **found)))
