"""Which images of a split a worker sees, and when: a pure function of (seed, epoch, rank, world).

A global batch has the same images for any number of workers, and whether crops are streamed or lie in memory. So runs
may go on with other workers and from another feed, in the middle of an epoch.

The order is made for streams: crops are read by shards, some rows of a file that lie together, which are a fair sample
of the set, since `prepare` deals images to files by a hash. The shuffled shards are cut into columns, and a batch takes
its images from all columns in turn. As many workers as divide the columns and the batch have columns of their own: each
shard is read once, by one worker. (mosaicml-streaming shuffles alike, within "canonical nodes".)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLUMNS = 64  # at most; a power of two, as numbers of workers mostly are
WINDOW_ROWS = 1024  # shuffled together, over all columns; a set of no more rows is shuffled as a whole


@dataclass(frozen=True, eq=False)
class Order:
    """The images of one split for one of `world` workers, the one with number `rank`."""

    labels: np.ndarray
    """int64 [N], the class of every image of the split, whichever worker gets it."""
    shards: np.ndarray
    """int64 [N], the shard of each image, numbered from 0 without gaps."""
    seed: int
    rank: int
    world: int

    def train_steps(self, epoch: int, batch_size: int, first: int, sampling: str) -> list[np.ndarray]:
        """This worker's part of each global batch, from step `first` of the epoch on; int64 positions, an array a step.

        The last, incomplete batch is left out, since in a step of its own each of its images would weigh more than
        others. Which images that hits changes with each epoch. Arguments: as of `batches.Source.train_steps`.
        """
        order = self.epoch(epoch, sampling)
        batch_size = min(batch_size, len(order))
        return [order[start + self.rank : start + batch_size : self.world]
                for start in range(first * batch_size, len(order) - batch_size + 1, batch_size)]

    def eval_steps(self, batch_size: int) -> list[np.ndarray]:
        """The positions that this worker evaluates, int64, an array a batch: each image once, on one worker."""
        mine = np.array_split(np.arange(len(self.labels)), self.world)[self.rank]
        return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]

    def epoch(self, epoch: int, sampling: str = "natural") -> np.ndarray:
        """The images of an epoch in their order over all workers, int64 [N] positions.

        With `sampling` natural, a permutation: each image once. With balanced, N draws with replacement in which all
        classes are equally frequent.
        """
        if sampling == "natural":
            return shuffle(self.shards, self.seed, epoch)
        weights = 1.0 / np.bincount(self.labels)[self.labels]
        rng = np.random.default_rng((self.seed, epoch))
        return rng.choice(len(weights), len(weights), p=weights / weights.sum())


def shuffle(shards: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """A permutation of N images, int64 [N], that goes through few of their shards (int64 [N]) at a time."""
    number, rng = len(shards), np.random.default_rng((seed, epoch))
    if number <= WINDOW_ROWS:
        return rng.permutation(number)
    columns = min(COLUMNS, 2 ** int(np.log2(number / WINDOW_ROWS)))
    by_shard = np.argsort(rng.permutation(shards.max() + 1)[shards], kind="stable")
    column = np.arange(number) * columns // number
    row = np.arange(number) - np.searchsorted(column, np.arange(columns))[column]
    within = np.lexsort((rng.random(number), row // (WINDOW_ROWS // columns), column))
    return by_shard[within][np.lexsort((column, row))]


def number_shards(parts: np.ndarray, in_part: np.ndarray) -> np.ndarray:
    """Numbers of shards from 0 without gaps, int64 [N], of images in shard `in_part` of the part number `parts`."""
    return np.unique(parts * (int(in_part.max(initial=0)) + 1) + in_part, return_inverse=True)[1]
