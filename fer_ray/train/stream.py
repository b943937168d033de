"""Batches of a set that is read, decoded and augmented anew in each epoch by Ray Data, on all CPUs of the cluster."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd

from fer_ray.data import prepared_set
from fer_ray.model import augment
from fer_ray.train import batches, resources
from fer_ray.train.order import WINDOW_ROWS, Order, number_shards

TASK_ROWS = 128  # about so many crops a task makes: decoded, they take some 20 MB


@dataclass(frozen=True)
class Pixels:
    """Where the crops of a split lie, and how they are augmented."""

    uri: str
    """Of the prepared set."""
    names: np.ndarray
    """Of its parts."""
    parts: np.ndarray
    """int64 [N], the part of each crop, as a position in `names`."""
    positions: np.ndarray
    """int64 [N], its row in that part."""
    rows: np.ndarray
    """int64 [N] row ids, which seed the augmentation."""
    augmentation: str
    seed: int


class Streamed:
    """A split that Ray Data reads and decodes anew in each epoch (`batches.Source`)."""

    to_input = staticmethod(augment.to_tensor)

    def __init__(self, uri: str, index: pd.DataFrame, augmentation: str, seed: int, rank: int, world: int,
                 num_epochs: int = 0):
        """`num_epochs`: of the training; while one is validated, the first batches of the next are made."""
        rows = index.sort_values(["part", "row"])  # as `batches.fetch_crops` joins the parts
        parts, names = pd.factorize(rows["part"])
        positions = rows["part_row"].to_numpy()
        self.labels = batches.labels_of(rows)
        self.pixels = Pixels(uri, np.asarray(names, dtype=object), parts, positions, rows["row"].to_numpy(),
                             augmentation, seed)
        self.order = Order(self.labels, number_shards(parts, positions // prepared_set.SHARD_ROWS), seed, rank, world)
        self.num_epochs = num_epochs
        self.begun: dict[tuple[int, int], Iterator[dict]] = {}  # streams that run already, by epoch and first step

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> Iterator[tuple]:
        """As `batches.Cached.train_steps`; `sampling` is natural."""
        steps = self.order.train_steps(epoch, batch_size, first, sampling)
        blocks = self.begun.pop((epoch, first), None) or self._start(steps, epoch)
        yield from self._batches(steps, blocks)
        if epoch + 1 < self.num_epochs:
            following = self.order.train_steps(epoch + 1, batch_size, 0, sampling)
            self.begun = {(epoch + 1, 0): self._start(following, epoch + 1)}

    def eval_batches(self, batch_size: int) -> Iterator[tuple]:
        """As `batches.Cached.eval_batches`."""
        steps = self.order.eval_steps(batch_size)
        return self._batches(steps, self._start(steps, None))

    def _batches(self, steps: list[np.ndarray], blocks: Iterator[dict]) -> Iterator[tuple]:
        """The batches at these positions, from blocks of crops that come about in this order."""
        held: dict[int, np.ndarray] = {}
        for positions in steps:
            while not held.keys() >= set(positions.tolist()):
                block = next(blocks)
                held |= zip(block["position"].tolist(), block["picture"], strict=True)
            yield np.stack([held.pop(position) for position in positions.tolist()]), self.labels[positions]

    def _start(self, steps: list[np.ndarray], epoch: int | None) -> Iterator[dict]:
        """Start making the crops of these steps, augmented if there is an `epoch`; blocks of them, as they are made."""
        import ray.data

        tasks = by_shard(self.order.shards, np.concatenate(steps)) if steps else []
        if not tasks:
            return iter(())
        data = ray.data.from_items([{"chosen": chosen} for chosen in tasks], override_num_blocks=len(tasks))
        # Ray Data hands on whatever block is ready first, and a worker would have to hold those that come too early
        data.context.execution_options.preserve_order = True
        load: Any = functools.partial(_load, pixels=ray.put(self.pixels), epoch=epoch)
        made = data.map_batches(load, batch_size=1, **resources.reading_task_options())
        blocks: Any = iter(made.iter_batches(batch_size=None, prefetch_batches=2))
        starter = ThreadPoolExecutor(1)  # Ray Data starts when it is asked for the first block
        first = starter.submit(next, blocks)
        starter.shutdown(wait=False)
        return _following(first, blocks)


def _following(first, blocks: Iterator[dict]) -> Iterator[dict]:
    yield first.result()
    yield from blocks


def by_shard(shards: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """Positions `wanted` of a worker, in the order in which it needs them, dealt to tasks that read whole shards.

    Args:
        shards: int64 [N], of all images.
        wanted: int64 [n] positions, each once.

    Returns: the same positions, an array a task. Shards stand in the order in which they are first needed.
    """
    first, shard = np.unique(shards[wanted], return_index=True, return_inverse=True)[1:]
    # The shard at the border of two columns is needed twice, far apart: read twice, rather than held for the epoch.
    late = np.arange(len(wanted)) - first[shard] > 2 * WINDOW_ROWS
    needed, first, shard = np.unique(2 * shard + late, return_index=True, return_inverse=True)
    turn = np.empty(len(needed), int)
    turn[np.argsort(first)] = np.arange(len(needed))
    ends = np.cumsum(np.bincount(turn[shard]))
    cuts = ends[np.flatnonzero(np.diff((ends - 1) // TASK_ROWS))]
    return np.split(wanted[np.argsort(turn[shard], kind="stable")], cuts)


def _load(batch: dict, pixels: Any, epoch: int | None) -> dict:
    """Decode and transform crops at the positions `chosen`; augmented if there is an `epoch`."""
    import ray

    cv2.setNumThreads(1)  # several such tasks run side by side; OpenCV's threads would only compete with each other
    source: Pixels = ray.get(pixels)
    chosen = np.concatenate(batch["chosen"]).astype(int)
    crops: dict[int, np.ndarray] = {}
    for part in np.unique(source.parts[chosen]):
        of_part = chosen[source.parts[chosen] == part]
        crops |= zip(of_part.tolist(), prepared_set.read_shards_of_part(
            source.uri, source.names[part], source.positions[of_part]), strict=True)
    in_order = [crops[position] for position in chosen.tolist()]
    if epoch is None:
        pictures = np.stack([augment.eval_transform(crop) for crop in in_order])
    else:
        drawn = augment.draws(source.seed, epoch, source.rows[chosen])
        pictures = augment.train_transform(in_order, drawn, augment.NAMED[source.augmentation])
    return {"picture": pictures, "position": chosen}
