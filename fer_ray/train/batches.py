"""Prepared set to training batches on each worker: decoded once per node, or streamed when it is too large for that.

The order of samples is a function of (seed, epoch), their pixels of (seed, epoch, row id): neither failures nor the
number of workers change them. A source of batches has `labels`, `train_steps` and `eval_batches`, and `to_input` makes
what those give a tensor on the device.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from fer_ray.data import faces, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import augment
from fer_ray.train import resources

if TYPE_CHECKING:
    import torch

PREFETCHED = 3  # batches that are made while the network works
# rows that take about as long as the start of a process: fewer are not worth a task of their own
MIN_ROWS_TO_DECODE, MIN_ROWS_TO_FORWARD = 4000, 100
WINDOW_PARTS = 8  # parts that a streamed epoch shuffles together


@dataclass
class Crops:
    """One split in memory. `images`: uint8 [256, 256(, 3)] each; `labels`: int64 [N]; `rows`: int64 [N], the row id
    that augmentation is seeded with."""

    images: list[np.ndarray]
    labels: np.ndarray
    rows: np.ndarray


def start_parts(make: Callable, splits: dict[str, pd.DataFrame], tasks: int, **options) -> dict[str, list]:
    """Object references to `make(part, rows, expressions)` for each file of each split, by tasks with these options.

    Shared memory: each node holds one copy, whatever the number of workers on it.
    """
    wanted = {split: rows_by_part(rows) for split, rows in splits.items()}
    items = [part for of_split in wanted.values() for part in of_split]
    made = iter(resources.run_in_tasks(make, items, tasks, **options))
    return {split: [next(made) for _ in of_split] for split, of_split in wanted.items()}


def rows_by_part(index: pd.DataFrame) -> list[tuple[int, np.ndarray, list[str]]]:
    """Part, row numbers (int64 [n]) and expressions of these index rows, an entry per file."""
    return [(int(part), rows["row"].to_numpy(), rows["expression"].tolist()) for part, rows in index.groupby("part")]


def fetch_crops(refs: list) -> Crops:
    """The split behind `refs`; pixels stay in shared memory (zero copy)."""
    import ray

    return concat(ray.get(refs))


def fetch_features(refs: list) -> tuple[np.ndarray, np.ndarray]:
    """Features (float32 [N, D]) and labels (int64 [N]) behind references to one pair of them per file."""
    import ray

    features, labels = zip(*ray.get(refs), strict=True)
    return np.concatenate(features), np.concatenate(labels)


def concat(parts: list[Crops]) -> Crops:
    """Join parts in their order."""
    return Crops([i for p in parts for i in p.images],
                 np.concatenate([p.labels for p in parts] or [np.zeros(0, np.int64)]),
                 np.concatenate([p.rows for p in parts] or [np.zeros(0, np.int64)]))


def load_part(uri: str, part: int, rows: np.ndarray, expressions: list[str]) -> Crops:
    """Read and decode these rows of one file."""
    encoded = prepared_set.read_part(uri, part)
    images = [prepared_set.decode_crop(encoded[int(r)]) for r in rows]
    return Crops(images, np.array([EXPRESSIONS.index(e) for e in expressions]), rows.copy())


def decoded_gb(index: pd.DataFrame) -> float:
    """GiB that the crops of these index rows take when decoded."""
    return float((index["channels"].astype(int) * faces.CROP_SIDE**2).sum() / 2**30)


def device_bytes(crops: Crops) -> int:
    """What `OnDevice` takes of the device's memory."""
    return sum(image.shape[0] * image.shape[1] * 3 for image in crops.images)


def epoch_order(labels: np.ndarray, seed: int, epoch: int, sampling: str = "natural") -> np.ndarray:
    """Positions of all images of an epoch, int64 [N]: a permutation, or N draws with equally frequent classes."""
    rng = np.random.default_rng((seed, epoch))
    if sampling == "natural":
        return rng.permutation(len(labels))
    counts = np.bincount(labels)
    weights = 1.0 / counts[labels]
    return rng.choice(len(labels), len(labels), p=weights / weights.sum())


def window_order(parts: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
    """Positions of an epoch in windows that each need few parts of the set: shuffled parts, shuffled within a window.

    Args: parts: int [N], the part of each image, in the order of rows.
    """
    rng = np.random.default_rng((seed, epoch))
    shuffled = rng.permutation(np.unique(parts))
    windows = [shuffled[i : i + WINDOW_PARTS] for i in range(0, len(shuffled), WINDOW_PARTS)]
    return [rng.permutation(np.flatnonzero(np.isin(parts, window))) for window in windows]


def train_positions(order: np.ndarray, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """What a rank takes of each global batch, one array a step: every world-th one of it.

    The last incomplete batch is left out (its gradient would weigh its images more); which images that hits changes
    each epoch.
    """
    batch_size = min(batch_size, len(order))
    steps = len(order) // batch_size
    return [order[s * batch_size + rank : (s + 1) * batch_size : world] for s in range(steps)]


def eval_positions(number: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """The positions of a rank's share of so many images, one array a batch: each image once, on one rank."""
    mine = np.arange(rank, number, world)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


def to_device(values: np.ndarray, device) -> torch.Tensor:
    """Without waiting until it is there."""
    import torch

    return torch.from_numpy(values).to(device, non_blocking=True)


class Cached:
    """A split in memory. Batches are made by threads while the network works."""

    to_input = staticmethod(augment.to_tensor)

    def __init__(self, crops: Crops, seed: int, rank: int, world: int, threads: int = 1):
        self.crops, self.labels = crops, crops.labels
        self.seed, self.rank, self.world, self.threads = seed, rank, world, threads

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """(uint8 [n, 224, 224, 3], int64 [n]) of this rank for each step from `first` on, augmented."""
        steps = train_positions(epoch_order(self.labels, self.seed, epoch, sampling), batch_size, self.rank, self.world)
        drawn = augment.draws(self.seed, epoch, self.crops.rows)

        def make(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            crops = [self.crops.images[i] for i in positions]
            return augment.train_transform(crops, drawn[positions]), self.labels[positions]

        return prefetch(make, steps[first:], self.threads)

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """The same for the centre crops of this rank's share: each image once, on one rank."""
        def make(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.stack([augment.eval_transform(self.crops.images[i]) for i in positions]), self.labels[positions]

        return prefetch(make, eval_positions(len(self.labels), batch_size, self.rank, self.world), self.threads)


class OnDevice:
    """A split that lies on the device, which augments it, too: on a GPU, faster than all CPUs beside it could."""

    def __init__(self, crops: Crops, seed: int, rank: int, world: int, device):
        self.pixels = to_device(np.stack([augment.to_rgb(image) for image in crops.images]), device)
        self.rows, self.labels = crops.rows, crops.labels
        self.seed, self.rank, self.world = seed, rank, world

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """((positions int64 [n], what augmentation draws [n, 5]), int64 [n]) for each step from `first` on."""
        order = epoch_order(self.labels, self.seed, epoch, sampling)
        drawn = augment.draws(self.seed, epoch, self.rows)
        for positions in train_positions(order, batch_size, self.rank, self.world)[first:]:
            yield (positions, drawn[positions]), self.labels[positions]

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """This rank's share, each image once; nothing is drawn."""
        for positions in eval_positions(len(self.labels), batch_size, self.rank, self.world):
            yield (positions, None), self.labels[positions]

    def to_input(self, chosen: tuple[np.ndarray, np.ndarray | None], device) -> torch.Tensor:
        """The normalised images of these positions."""
        positions, drawn = chosen
        crops = self.pixels[to_device(positions, device)]
        return augment.eval_tensor(crops) if drawn is None else augment.train_tensor(crops, drawn)


class Streamed:
    """A split that is read and decoded anew in every epoch, by Ray Data tasks wherever CPUs are free."""

    to_input = staticmethod(augment.to_tensor)

    def __init__(self, uri: str, index: pd.DataFrame, seed: int, rank: int, world: int):
        rows = index.sort_values("row")
        self.uri, self.seed, self.rank, self.world = uri, seed, rank, world
        self.rows, self.parts = rows["row"].to_numpy(), rows["part"].to_numpy()
        self.labels = labels_of(rows)

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """As `Cached.train_steps`; the order is that of `window_order`, `sampling` is natural."""
        windows = window_order(self.parts, self.seed, epoch)
        steps = train_positions(np.concatenate(windows), batch_size, self.rank, self.world)
        yield from self._stream(windows, steps[first:], epoch)

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """As `Cached.eval_batches`."""
        windows = np.array_split(np.arange(len(self.labels)), max(1, len(np.unique(self.parts)) // WINDOW_PARTS))
        yield from self._stream(windows, eval_positions(len(self.labels), batch_size, self.rank, self.world), None)

    def _stream(self, windows: list[np.ndarray], steps: list[np.ndarray], epoch: int | None) -> Iterator[tuple]:
        import ray.data

        if not steps:
            return
        wanted = np.zeros(len(self.labels), bool)
        wanted[np.concatenate(steps)] = True
        items = [{"rows": self.rows[chosen], "parts": self.parts[chosen]}
                 for w in windows if len(chosen := w[wanted[w]])]
        data = ray.data.from_items(items, override_num_blocks=len(items))
        data.context.execution_options.preserve_order = True
        made = data.map_batches(_load_window, batch_size=1, **resources.reading_task_options(),
                                fn_kwargs={"uri": self.uri, "seed": self.seed, "epoch": epoch})
        pending: list[np.ndarray] = []
        arriving = (block["picture"] for block in made.iter_batches(batch_size=None, prefetch_batches=2))
        for positions in steps:
            while sum(map(len, pending)) < len(positions):
                pending.append(next(arriving))
            joined = np.concatenate(pending) if len(pending) > 1 else pending[0]
            pending = [joined[len(positions) :]]
            yield joined[: len(positions)], self.labels[positions]


class Features:
    """Features of a frozen network, computed once; batches are rows of them."""

    to_input = staticmethod(to_device)  # they are what the last layer takes

    def __init__(self, features: np.ndarray, labels: np.ndarray, seed: int, rank: int, world: int):
        self.features, self.labels = features, labels
        self.seed, self.rank, self.world = seed, rank, world

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """(float32 [n, D], int64 [n]) of this rank for each step from `first` on."""
        order = epoch_order(self.labels, self.seed, epoch, sampling)
        for positions in train_positions(order, batch_size, self.rank, self.world)[first:]:
            yield self.features[positions], self.labels[positions]

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """This rank's share, each row once."""
        for positions in eval_positions(len(self.labels), batch_size, self.rank, self.world):
            yield self.features[positions], self.labels[positions]


def prefetch(make: Callable, items: list, threads: int) -> Iterator:
    """`make(item)` for each item in order, made by `threads` threads, a few items ahead of their use."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > PREFETCHED + threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def labels_of(index: pd.DataFrame) -> np.ndarray:
    """int64 [N] class numbers of index rows."""
    return index["expression"].map({e: i for i, e in enumerate(EXPRESSIONS)}).to_numpy()


def _load_window(batch: dict, uri: str, seed: int, epoch: int | None) -> dict:
    """Decode and transform the rows of a window, in their order; for training if there is an `epoch`."""
    cv2.setNumThreads(1)  # the tasks are the parallelism
    pictures = []
    for rows, parts in zip(batch["rows"], batch["parts"], strict=True):
        encoded = {}
        for part in np.unique(parts):
            encoded |= prepared_set.read_part(uri, int(part))
        crops = [prepared_set.decode_crop(encoded[int(row)]) for row in rows]
        pictures.append(augment.train_transform(crops, augment.draws(seed, epoch, rows)) if epoch is not None
                        else np.stack([augment.eval_transform(crop) for crop in crops]))
    return {"picture": np.concatenate(pictures)}
