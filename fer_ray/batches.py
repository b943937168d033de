"""Prepared set to training batches: decoded once into Ray's object store, drawn by one global permutation.

The order of samples is a function of (seed, epoch) alone, so neither failures nor the number of workers change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fer_ray import augment, prepare
from fer_ray.manifest import EXPRESSIONS


@dataclass
class Crops:
    """One split in memory. `images`: uint8 [256, 256(, 3)] each; `labels`: int64 [N]; `rows`: int64 [N], the row id
    that augmentation is seeded with."""

    images: list[np.ndarray]
    labels: np.ndarray
    rows: np.ndarray


def load_refs(uri: str, split: str) -> list:
    """Decode the crops of one split on the workers; object references to one `Crops` per file.

    Shared memory: each node holds one copy, whatever the number of workers on it.
    """
    import ray

    index = prepare.read_index(uri)
    index = index[index["split"] == split]
    load = ray.remote(_load_part)
    return [load.remote(uri, int(part), rows["row"].to_numpy(), rows["expression"].tolist())
            for part, rows in index.groupby("part")]


def get(refs: list) -> Crops:
    """The split behind `refs`; pixels stay in shared memory (zero copy)."""
    import ray

    return concat(ray.get(refs))


def concat(parts: list[Crops]) -> Crops:
    """Join parts in their order."""
    return Crops([i for p in parts for i in p.images],
                 np.concatenate([p.labels for p in parts] or [np.zeros(0, np.int64)]),
                 np.concatenate([p.rows for p in parts] or [np.zeros(0, np.int64)]))


def _load_part(uri: str, part: int, rows: np.ndarray, expressions: list[str]) -> Crops:
    table = prepare.read_part(uri, part).select(["row", "crop"]).to_pydict()
    encoded = dict(zip(table["row"], table["crop"], strict=True))
    images = [prepare.decode_crop(encoded[int(r)]) for r in rows]
    return Crops(images, np.array([EXPRESSIONS.index(e) for e in expressions]), rows.copy())


def epoch_steps(num_images: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> list[np.ndarray]:
    """Positions this rank trains on, one array a step.

    One permutation of all images is cut into global batches; rank r takes every world-th position of each. The last
    incomplete batch is left out (its gradient would weigh its images more); which images that hits changes each epoch.
    """
    order = np.random.default_rng((seed, epoch)).permutation(num_images)
    batch_size = min(batch_size, num_images)
    steps = num_images // batch_size
    return [order[s * batch_size + rank : (s + 1) * batch_size : world] for s in range(steps)]


def train_batch(crops: Crops, positions: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
    """Augmented uint8 [224, 224, 3] images of one step."""
    return [augment.train_transform(crops.images[i], seed, epoch, int(crops.rows[i])) for i in positions]
