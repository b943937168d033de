"""From a prepared set to the batches of each worker.

The order of samples is a pure function of (seed, epoch), and what augmentation draws for one is a pure function of
(seed, epoch, row id). So neither failures nor the number of workers change what a network is trained on.

Four sources of batches share one interface (`Source`):

- `Cached`: decoded crops in Ray's object store, augmented by threads of the worker;
- `OnDevice`: the same crops in the GPU's memory, augmented there;
- `Features`: inputs of the last layer, where nothing else is trained;
- `Streamed`: read, decoded and augmented anew in each epoch by Ray Data, for sets that do not fit into memory.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
import pandas as pd

from fer_ray.data import faces, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.model import augment
from fer_ray.train import resources

if TYPE_CHECKING:
    import torch

PREFETCHED = 3  # batches that are made while the network works on the one before
# Rows whose decoding, or forward pass, takes about as long as the start of a process: fewer are not worth a task.
MIN_ROWS_TO_DECODE, MIN_ROWS_TO_FORWARD = 4000, 100
WINDOW_ROWS = 1024  # about so many are shuffled together in a streamed epoch: decoded, they take some 150 MiB


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


def fetch_features(references: list) -> tuple[np.ndarray, np.ndarray]:
    """Features (float32 [N, D]) and classes (int64 [N]) behind references to one pair of them per part."""
    import ray

    features, labels = zip(*ray.get(references), strict=True)
    return np.concatenate(features), np.concatenate(labels)


def concatenate(parts: list[Crops]) -> Crops:
    """One `Crops` of several, in their order."""
    return Crops([image for part in parts for image in part.images],
                 np.concatenate([part.labels for part in parts] or [np.zeros(0, np.int64)]),
                 np.concatenate([part.rows for part in parts] or [np.zeros(0, np.int64)]))


def load_part(uri: str, part: str, positions: np.ndarray, rows: np.ndarray, expressions: list[str]) -> Crops:
    """Read one part of the prepared set `uri` and decode some of its crops; arguments as of `rows_by_part`."""
    images = prepared_set.read_crops_of_part(uri, part, positions)
    return Crops(images, np.array([EXPRESSIONS.index(e) for e in expressions]), rows.copy())  # no view of the index


def decoded_gb(index: pd.DataFrame) -> float:
    """GiB of memory that the crops of these index rows take when they are decoded."""
    return float((index["channels"].astype(int) * faces.CROP_SIDE**2).sum() / 2**30)


def device_bytes(crops: Crops) -> int:
    """Bytes of the device's memory that `OnDevice` takes for these crops: all of them in colour."""
    return sum(image.shape[0] * image.shape[1] * 3 for image in crops.images)


def epoch_order(labels: np.ndarray, seed: int, epoch: int, sampling: str = "natural") -> np.ndarray:
    """The images of an epoch in their order, as positions in `labels`, int64 [N].

    With `sampling` natural, a permutation: each image once. With balanced, N draws with replacement in which all
    classes are equally frequent.
    """
    rng = np.random.default_rng((seed, epoch))
    if sampling == "natural":
        return rng.permutation(len(labels))
    weights = 1.0 / np.bincount(labels)[labels]
    return rng.choice(len(labels), len(labels), p=weights / weights.sum())


def window_order(parts: np.ndarray, seed: int, epoch: int) -> list[np.ndarray]:
    """The images of an epoch in their order, cut into windows that each need few parts of the prepared set.

    A full permutation would read every part for each batch. So the parts are shuffled, and then the rows within each
    few of them; since `prepare` deals rows to parts at random, a window is a fair sample of the set. A set of a single
    window has the order of `epoch_order`.

    Args:
        parts: int [N], the part that holds each image.
        seed: of the training.
        epoch: from 0.

    Returns: positions in `parts`, int64 [n], one array a window.
    """
    found, part_of = np.unique(parts, return_inverse=True)
    num_parts = max(1, WINDOW_ROWS * len(found) // len(parts))  # of a window
    window_of = np.empty(len(found), int)
    window_of[np.random.default_rng((seed, epoch, 2)).permutation(len(found))] = np.arange(len(found)) // num_parts
    of_image = window_of[part_of]
    ends = np.cumsum(np.bincount(of_image))[:-1]
    rng = np.random.default_rng((seed, epoch))
    return [rng.permutation(window) for window in np.split(np.argsort(of_image, kind="stable"), ends)]


def train_positions(order: np.ndarray, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """The positions that one worker takes of each global batch, one array a step: every world-th one of it.

    The last, incomplete batch is left out, since in a step of its own each of its images would weigh more than others.
    Which images that hits changes with each epoch.
    """
    batch_size = min(batch_size, len(order))
    return [order[first + rank : first + batch_size : world]
            for first in range(0, len(order) - batch_size + 1, batch_size)]


def eval_positions(number: int, batch_size: int, rank: int, world: int) -> list[np.ndarray]:
    """The positions that one worker evaluates of `number` images, one array a batch: each once, on one worker."""
    mine = np.arange(rank, number, world)
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]


def to_device(values: np.ndarray, device) -> torch.Tensor:
    """A tensor of `values` on `device`; the copy may still be under way, and the device waits for it by itself."""
    import torch

    return torch.from_numpy(values).to(device, non_blocking=True)


class Cached:
    """Decoded crops in memory. Threads augment the next batches while the network works."""

    to_input = staticmethod(augment.to_tensor)

    def __init__(self, crops: Crops, augmentation: str, seed: int, rank: int, world: int, threads: int = 1):
        self.crops, self.labels, self.augmentation = crops, crops.labels, augment.NAMED[augmentation]
        self.seed, self.rank, self.world, self.threads = seed, rank, world, threads

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """See `Source`; augmented images are uint8 [n, 224, 224, 3]."""
        steps = train_positions(epoch_order(self.labels, self.seed, epoch, sampling), batch_size, self.rank, self.world)
        drawn = augment.draws(self.seed, epoch, self.crops.rows)

        def make(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            crops = [self.crops.images[i] for i in positions]
            return augment.train_transform(crops, drawn[positions], self.augmentation), self.labels[positions]

        return prefetch(make, steps[first:], self.threads)

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """See `Source`; the centre of each crop, uint8 [n, 224, 224, 3]."""
        def make(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.stack([augment.eval_transform(self.crops.images[i]) for i in positions]), self.labels[positions]

        return prefetch(make, eval_positions(len(self.labels), batch_size, self.rank, self.world), self.threads)


class OnDevice:
    """Decoded crops in the device's memory. A GPU augments them faster than all CPUs beside it could."""

    def __init__(self, crops: Crops, augmentation: str, seed: int, rank: int, world: int, device):
        self.pixels = to_device(np.stack([augment.to_rgb(image) for image in crops.images]), device)
        self.rows, self.labels, self.augmentation = crops.rows, crops.labels, augment.NAMED[augmentation]
        self.seed, self.rank, self.world = seed, rank, world

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """See `Source`; an image is its position, int64 [n], with the numbers drawn to augment it, float64 [n, 15]."""
        order = epoch_order(self.labels, self.seed, epoch, sampling)
        drawn = augment.draws(self.seed, epoch, self.rows)
        for positions in train_positions(order, batch_size, self.rank, self.world)[first:]:
            yield (positions, drawn[positions]), self.labels[positions]

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """See `Source`; an image is its position, int64 [n], and nothing is drawn."""
        for positions in eval_positions(len(self.labels), batch_size, self.rank, self.world):
            yield (positions, None), self.labels[positions]

    def to_input(self, images: tuple[np.ndarray, np.ndarray | None], device) -> torch.Tensor:
        """The normalised images at these positions, float32 [n, 3, 224, 224]; augmented if numbers were drawn."""
        positions, drawn = images
        crops = self.pixels[to_device(positions, device)]
        return augment.eval_tensor(crops) if drawn is None else augment.train_tensor(crops, drawn, self.augmentation)


class Streamed:
    """A split that does not fit into memory: Ray Data reads and decodes it anew in each epoch, where CPUs are free."""

    to_input = staticmethod(augment.to_tensor)

    def __init__(self, uri: str, index: pd.DataFrame, augmentation: str, seed: int, rank: int, world: int):
        rows = index.sort_values(["part", "row"])  # so that few parts hold what is evaluated together
        self.uri, self.augmentation = uri, augmentation
        self.seed, self.rank, self.world = seed, rank, world
        self.rows, self.positions = rows["row"].to_numpy(), rows["part_row"].to_numpy()
        self.parts, names = pd.factorize(rows["part"])
        self.names = np.asarray(names, dtype=object)
        self.labels = labels_of(rows)

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """As `Cached.train_steps`, in the order of `window_order`; `sampling` is natural."""
        windows = window_order(self.parts, self.seed, epoch)
        steps = train_positions(np.concatenate(windows), batch_size, self.rank, self.world)
        yield from self._stream(windows, steps[first:], epoch)

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """As `Cached.eval_batches`."""
        windows = np.array_split(np.arange(len(self.labels)), max(1, len(self.labels) // WINDOW_ROWS))
        yield from self._stream(windows, eval_positions(len(self.labels), batch_size, self.rank, self.world), None)

    def _stream(self, windows: list[np.ndarray], steps: list[np.ndarray], epoch: int | None) -> Iterator[tuple]:
        """Batches of these positions, `steps`, made window by window; augmented if there is an `epoch`."""
        import ray.data

        if not steps:
            return
        needed = np.zeros(len(self.labels), bool)  # of this worker, and not before the first step
        needed[np.concatenate(steps)] = True
        items = [{"rows": self.rows[chosen], "parts": self.parts[chosen], "positions": self.positions[chosen]}
                 for window in windows if len(chosen := window[needed[window]])]
        data = ray.data.from_items(items, override_num_blocks=len(items))
        # Ray Data hands on whatever block is ready first; the order of samples must not depend on that
        data.context.execution_options.preserve_order = True
        load: Any = functools.partial(_load_window, uri=self.uri, names=self.names, augmentation=self.augmentation,
                                      seed=self.seed, epoch=epoch)
        made = data.map_batches(load, batch_size=1, **resources.reading_task_options())
        blocks = (block["picture"] for block in made.iter_batches(batch_size=None, prefetch_batches=2))
        pending: list[np.ndarray] = []
        for positions in steps:
            while sum(map(len, pending)) < len(positions):
                pending.append(next(blocks))
            joined = np.concatenate(pending) if len(pending) > 1 else pending[0]
            pending = [joined[len(positions) :]]
            yield joined[: len(positions)], self.labels[positions]


class Features:
    """Inputs of the last layer, computed once by the frozen layers before it; nothing is augmented."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, seed: int, rank: int, world: int):
        self.features, self.labels = features, labels
        self.seed, self.rank, self.world = seed, rank, world

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """See `Source`; float32 [n, D]."""
        order = epoch_order(self.labels, self.seed, epoch, sampling)
        for positions in train_positions(order, batch_size, self.rank, self.world)[first:]:
            yield self.features[positions], self.labels[positions]

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """See `Source`; float32 [n, D]."""
        for positions in eval_positions(len(self.labels), batch_size, self.rank, self.world):
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


def _load_window(batch: dict, uri: str, names: np.ndarray, augmentation: str, seed: int, epoch: int | None) -> dict:
    """Decode and transform the rows of windows, in their order; augmented if there is an `epoch`.

    Args:
        batch: of each window `rows` (ids), `parts` (positions in `names`) and `positions` in these parts.
        uri: of the prepared set.
        names: of its parts.
        augmentation: `train.augmentation`.
        seed: of the training.
        epoch: from 0.
    """
    cv2.setNumThreads(1)  # several such tasks run side by side; OpenCV's threads would only compete with each other
    pictures = []
    for rows, parts, positions in zip(batch["rows"], batch["parts"], batch["positions"], strict=True):
        crop_of_row = {}
        for part in np.unique(parts):
            of_part = parts == part
            read = prepared_set.read_crops_of_part(uri, names[part], positions[of_part])
            crop_of_row |= zip(rows[of_part], read, strict=True)
        crops = [crop_of_row[row] for row in rows]
        if epoch is None:
            pictures.append(np.stack([augment.eval_transform(crop) for crop in crops]))
        else:
            drawn = augment.draws(seed, epoch, rows)
            pictures.append(augment.train_transform(crops, drawn, augment.NAMED[augmentation]))
    return {"picture": np.concatenate(pictures)}
