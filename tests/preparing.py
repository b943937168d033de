"""Prepared sets that are made in the test's own process."""

from pathlib import Path

import numpy as np
import pandas as pd

from fer_ray.config import Config
from fer_ray.data import duplicates, prepare
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import SplitConfig


def in_this_process(function, items):
    """As Ray Data, which hands a batch of one item over."""
    for item in items:
        yield function({name: [value] for name, value in item.items()})


def clusters_of(rows: pd.DataFrame) -> np.ndarray:
    """Near-duplicates among rows with the columns `duplicates.LOOKS`."""
    return duplicates.clusters(rows, [duplicates.stacked(rows[name]) for name in duplicates.THUMBNAILS])


def prepared(config: Config) -> Path:
    return Path(prepare.prepare(config, read_manifest(config.data, config.split.by)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pictures_of(config: Config) -> list[Path]:
    return sorted(Path(config.data.root).rglob("*.png"))


def set_with_split(config: Config) -> Path:
    """A prepared set and another split of it."""
    folder = prepared(config)
    prepare.resplit(str(folder), SplitConfig(by="image", seed=3))
    return folder


def new_image(path: Path, face=None, cropped=None) -> dict:
    """An image as `provenance.plan` lists one that is to be cropped."""
    return {"image": str(path), "face": face, "cropped": cropped, "kept_in": "", "part_row": -1}
