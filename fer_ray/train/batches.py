"""From a prepared set to the batches of each worker.

The order of samples is a pure function of (seed, epoch) (`order`), and what augmentation draws for one is a pure
function of (seed, epoch, row id). So neither failures nor the number of workers change what a network is trained on.

Four sources of batches share one interface (`Source`):

- `Cached`: decoded crops in Ray's object store, augmented by threads of the worker;
- `OnDevice`: the same crops in the GPU's memory, augmented there;
- `Features`: inputs of the last layer, where nothing else is trained;
- `stream.Streamed`: read, decoded and augmented anew in each epoch by Ray Data, on all CPUs of the cluster.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from fer_ray.data import faces, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import augment
from fer_ray.train import resources
from fer_ray.train.order import Order, number_shards

if TYPE_CHECKING:
    import torch

PREFETCHED = 3  # batches that are made while the network works on the one before
# Rows whose decoding, or forward pass, takes about as long as the start of a process: fewer are not worth a task.
MIN_ROWS_TO_DECODE, MIN_ROWS_TO_FORWARD = 4000, 100


class Source(Protocol):
    """Batches of one split for one of `world` workers, the one with number `rank`."""

    labels: np.ndarray
    """int64 [N], the class of every image of the split, whichever worker gets it."""

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple[Any, np.ndarray]]:
        """This worker's part of each global batch, from step `first` of the epoch on.

        Args:
            epoch: from 0; with the seed it fixes the order and the augmentation.
            batch_size: images of a batch over all workers.
            first: the step to begin with, for an epoch that was interrupted.
            sampling: `train.sampling` of the configuration.

        Yields: images in the source's own form, for `to_input`, and their classes, int64 [n].
        """

    def eval_batches(self, batch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
        """This worker's part of the split, without augmentation: each image once, on one worker."""

    def to_input(self, images: Any, device: torch.device) -> torch.Tensor:
        """What the iterators yield, as the network's input on `device`."""


@dataclass
class Crops:
    """Decoded crops of one split, or of a part of it."""

    images: list[np.ndarray]
    """uint8, [256, 256] or [256, 256, 3] each."""
    labels: np.ndarray
    """int64 [N] class numbers."""
    rows: np.ndarray
    """int64 [N] row ids in the prepared set, which seed the augmentation."""
    shards: np.ndarray
    """int64 [N], the shard of its part that each crop lies in; of several parts, numbered from 0 without gaps."""


def start_parts(make: Callable, splits: dict[str, pd.DataFrame], tasks: int, **options) -> dict[str, list]:
    """Start `make(part, rows, expressions)` for each part of each split; object references to its results.

    Results lie in Ray's object store: each node holds one copy in shared memory, however many workers it runs.

    Args:
        make: a function of what `rows_by_part` gives for one part.
        splits: index rows of the prepared set, by name of the split.
        tasks: number of Ray tasks that share the parts.
        **options: of those tasks, as for `ray.remote`.

    Returns: by split, a reference for each of its parts, in the order of `rows_by_part`.
    """
    parts = {split: rows_by_part(rows) for split, rows in splits.items()}
    every_part = [part for of_split in parts.values() for part in of_split]
    references = iter(resources.run_in_tasks(make, every_part, tasks, **options))
    return {split: [next(references) for _ in of_split] for split, of_split in parts.items()}


def rows_by_part(index: pd.DataFrame) -> list[tuple[str, np.ndarray, np.ndarray, list[str]]]:
    """For each part with index rows: its name, their positions in it and row ids (int64 [n]), their expressions."""
    return [(str(part), rows["part_row"].to_numpy(), rows["row"].to_numpy(), rows["expression"].tolist())
            for part, rows in index.groupby("part")]


def fetch_crops(references: list) -> Crops:
    """The crops behind references to `load_part`; pixels stay in shared memory, without a copy."""
    import ray

    return concatenate(ray.get(references))


def fetch_features(references: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (float32 [N, D]), classes and shards (int64 [N]) behind references to three such arrays per part."""
    import ray

    features, labels, shards = zip(*ray.get(references), strict=True)
    return np.concatenate(features), np.concatenate(labels), _join_shards(shards)


def concatenate(parts: list[Crops]) -> Crops:
    """One `Crops` of several, in their order."""
    return Crops([image for part in parts for image in part.images],
                 np.concatenate([part.labels for part in parts] or [np.zeros(0, np.int64)]),
                 np.concatenate([part.rows for part in parts] or [np.zeros(0, np.int64)]),
                 _join_shards([part.shards for part in parts]))


def _join_shards(parts: Sequence[np.ndarray]) -> np.ndarray:
    number = np.repeat(np.arange(len(parts)), [len(shards) for shards in parts])
    return number_shards(number, np.concatenate([*parts, np.zeros(0, np.int64)]))


def load_part(uri: str, part: str, positions: np.ndarray, rows: np.ndarray, expressions: list[str]) -> Crops:
    """Read one part of the prepared set `uri` and decode some of its crops; arguments as of `rows_by_part`."""
    images = prepared_set.read_crops_of_part(uri, part, positions)
    return Crops(images, np.array([EXPRESSIONS.index(e) for e in expressions]), rows.copy(),  # no view of the index
                 positions // prepared_set.SHARD_ROWS)


def decoded_gb(index: pd.DataFrame) -> float:
    """GiB of memory that the crops of these index rows take when they are decoded."""
    return float((index["channels"].astype(int) * faces.CROP_SIDE**2).sum() / 2**30)


def device_bytes(crops: Crops) -> int:
    """Bytes of the device's memory that `OnDevice` takes for these crops: all of them in colour."""
    return sum(image.shape[0] * image.shape[1] * 3 for image in crops.images)


def to_device(values: np.ndarray, device) -> torch.Tensor:
    """A tensor of `values` on `device`; the copy may still be under way, and the device waits for it by itself."""
    import torch

    return torch.from_numpy(values).to(device, non_blocking=True)


class Cached:
    """Decoded crops in memory. Threads augment the next batches while the network works."""

    to_input = staticmethod(augment.to_tensor)

    def __init__(self, crops: Crops, augmentation: str, seed: int, rank: int, world: int, threads: int = 1):
        self.crops, self.labels, self.augmentation = crops, crops.labels, augment.NAMED[augmentation]
        self.order, self.threads = Order(crops.labels, crops.shards, seed, rank, world), threads

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """See `Source`; augmented images are uint8 [n, 224, 224, 3]."""
        drawn = augment.draws(self.order.seed, epoch, self.crops.rows)

        def make(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            crops = [self.crops.images[i] for i in positions]
            return augment.train_transform(crops, drawn[positions], self.augmentation), self.labels[positions]

        return prefetch(make, self.order.train_steps(epoch, batch_size, first, sampling), self.threads)

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """See `Source`; the centre of each crop, uint8 [n, 224, 224, 3]."""
        def make(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.stack([augment.eval_transform(self.crops.images[i]) for i in positions]), self.labels[positions]

        return prefetch(make, self.order.eval_steps(batch_size), self.threads)


class OnDevice:
    """Decoded crops in the device's memory. A GPU augments them faster than all CPUs beside it could."""

    def __init__(self, crops: Crops, augmentation: str, seed: int, rank: int, world: int, device):
        self.pixels = to_device(np.stack([augment.to_rgb(image) for image in crops.images]), device)
        self.rows, self.labels, self.augmentation = crops.rows, crops.labels, augment.NAMED[augmentation]
        self.order = Order(crops.labels, crops.shards, seed, rank, world)

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """See `Source`; an image is its position, int64 [n], with the numbers drawn to augment it, float64 [n, 15]."""
        drawn = augment.draws(self.order.seed, epoch, self.rows)
        for positions in self.order.train_steps(epoch, batch_size, first, sampling):
            yield (positions, drawn[positions]), self.labels[positions]

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """See `Source`; an image is its position, int64 [n], and nothing is drawn."""
        for positions in self.order.eval_steps(batch_size):
            yield (positions, None), self.labels[positions]

    def to_input(self, images: tuple[np.ndarray, np.ndarray | None], device) -> torch.Tensor:
        """The normalised images at these positions, float32 [n, 3, 224, 224]; augmented if numbers were drawn."""
        positions, drawn = images
        crops = self.pixels[to_device(positions, device)]
        return augment.eval_tensor(crops) if drawn is None else augment.train_tensor(crops, drawn, self.augmentation)


class Features:
    """Inputs of the last layer, computed once by the frozen layers before it; nothing is augmented."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, shards: np.ndarray, seed: int, rank: int, world: int):
        self.features, self.labels = features, labels
        self.order = Order(labels, shards, seed, rank, world)

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """See `Source`; float32 [n, D]."""
        for positions in self.order.train_steps(epoch, batch_size, first, sampling):
            yield self.features[positions], self.labels[positions]

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """See `Source`; float32 [n, D]."""
        for positions in self.order.eval_steps(batch_size):
            yield self.features[positions], self.labels[positions]

    def to_input(self, images: np.ndarray, device) -> torch.Tensor:
        """See `Source`; the features as they are."""
        return to_device(images, device)


def prefetch(make: Callable, items: list, threads: int) -> Iterator:
    """`make(item)` for each item in order, made by `threads` threads a few items before they are asked for."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > PREFETCHED + threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def labels_of(index: pd.DataFrame) -> np.ndarray:
    """The class numbers of index rows, int64 [N]."""
    return index["expression"].map({e: i for i, e in enumerate(EXPRESSIONS)}).to_numpy()
