"""Which hashes of 64 bits differ in few bits, found by sorting instead of comparing each hash with every other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

PAIRS_AT_ONCE = 2**21  # that are held in memory: some 100 MiB with all that is computed from them


def near_pairs(one: np.ndarray, other: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of hashes that differ in at most `bits` bits, each exactly once.

    The 64 bits are cut into `bits` + 2 bands. Differing bits can spoil at most `bits` of them, so at least two bands
    are equal (the pigeonhole principle), and it is enough to look at hashes that are equal in two bands. Two bands
    rather than one: faces look alike, so that many hashes share any single band, and looking at those is slow.

    Args:
        one: uint64 [N].
        other: uint64 [M]. Equal hashes are best given once, since each of them makes pairs of its own.
        bits: 2 to 62.

    Yields: positions in `one` and in `other`, int64 [P] each, of up to `PAIRS_AT_ONCE` pairs.
    """
    cuts = [64 * band // (bits + 2) for band in range(bits + 3)]
    bands = list(itertools.pairwise(cuts))
    for a, b in itertools.combinations(range(len(bands)), 2):
        for i, j in _equal_pairs(_key(one, bands[a], bands[b]), _key(other, bands[a], bands[b])):
            differing = one[i] ^ other[j]
            found = np.flatnonzero(np.bitwise_count(differing) <= bits)
            for band in (*bands[:a], *bands[a + 1 : b]):  # if one is equal, an earlier pair of bands has found them
                found = found[_bits(differing[found], band) != 0]
            yield i[found], j[found]


def expand(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers first[k], first[k] + 1, …, of which there are count[k], for all k below each other.

    Returns: of each number its k; the numbers. int64 both.
    """
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + np.repeat(first - (np.cumsum(count) - count), count)


def expanded(first: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `expand`, about `PAIRS_AT_ONCE` at once."""
    ends = np.cumsum(count)
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, np.searchsorted(ends, done + PAIRS_AT_ONCE, "right"))
        owner, numbers = expand(first[start:stop], count[start:stop])
        yield owner + start, numbers
        start = stop


def _bits(hashes: np.ndarray, band: tuple[int, int]) -> np.ndarray:
    """The bits from band[0] up to band[1] of each hash, as a number."""
    low, high = band
    return hashes >> np.uint64(low) & np.uint64((1 << high - low) - 1)


def _key(hashes: np.ndarray, one: tuple[int, int], other: tuple[int, int]) -> np.ndarray:
    """Two bands of each hash as one number of up to 32 bits."""
    return _bits(hashes, one) << np.uint64(other[1] - other[0]) | _bits(hashes, other)


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys of up to 32 bits in order, and their positions. NumPy sorts plain numbers faster than positions."""
    packed = np.sort(keys << np.uint64(32) | np.arange(len(keys), dtype=np.uint64))
    return packed >> np.uint64(32), (packed & np.uint64(2**32 - 1)).astype(np.int64)


def _equal_pairs(one: np.ndarray, other: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of equal keys of up to 32 bits, uint64 [N] and [M], as `near_pairs` yields them."""
    (wanted, of_one), (there, of_other) = _sorted(one), _sorted(other)
    first, last = (np.searchsorted(there, wanted, side) for side in ("left", "right"))
    for owner, place in expanded(first, last - first):
        yield of_one[owner], of_other[place]
