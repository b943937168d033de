"""Small data sets in the layouts of the real ones, and what `sources` makes of a folder."""

import collections

import cv2
import numpy as np

from fer_ray.data import sources
from fer_ray.data_config import DataConfig

GREY = " ".join(str(i % 256) for i in range(48 * 48))


def put(path, side=40):
    """A small picture at `path`, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((side, side), 99, np.uint8))
    return path


def read(root, kind="auto", by="subject", **options):
    """The rows and the rejected rows of a folder."""
    found = sources.read_manifest(DataConfig(kind, str(root), **options), by)
    return found.rows.to_pandas(), found.rejected.to_pandas()


def reasons(rejected):
    """How many rejected rows have each reason."""
    return dict(collections.Counter(rejected.reason))
