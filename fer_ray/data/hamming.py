"""Which hashes of 64 bits differ in few bits, found by sorting instead of comparing each hash with every other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

PAIRS_AT_ONCE = 2**21  # that are held in memory: some 100 MiB with all that is computed from them
COMPARED_AT_ONCE = 2**17  # hashes held against each other: 1 MiB an array, which stays in a processor's cache


def near_pairs(one: np.ndarray, other: np.ndarray, bits: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of hashes that differ in at most `bits` bits, each exactly once.

    The 64 bits are cut into `bits` + 2 bands. Differing bits can spoil at most `bits` of them, so at least two bands
    are equal (the pigeonhole principle), and it is enough to look at hashes that are equal in two bands. Two bands
    rather than one: faces look alike, so that many hashes share any single band, and looking at those is slow.

    Args:
        one: uint64 [N].
        other: uint64 [M]. Equal hashes are best given once, since each of them makes pairs of its own.
        bits: 2 to 62.

    Yields: positions in `one` and in `other`, int64 [P] each, of about `PAIRS_AT_ONCE` pairs or fewer.
    """
    cuts = [64 * band // (bits + 2) for band in range(bits + 3)]
    bands = list(itertools.pairwise(cuts))
    for a, b in itertools.combinations(range(len(bands)), 2):
        found, waiting = [], 0
        for i, j, differing in _close_in(one, other, bands[a], bands[b], bits):
            first = np.ones(len(i), bool)
            for band in (*bands[:a], *bands[a + 1 : b]):  # if one is equal, an earlier pair of bands has found them
                first &= _bits(differing, band) != 0
            found.append((i[first], j[first]))
            waiting += len(found[-1][0])
            if waiting > PAIRS_AT_ONCE:
                yield _joined(found)
                found, waiting = [], 0
        if waiting:
            yield _joined(found)


def _joined(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([i for i, _ in pairs]), np.concatenate([j for _, j in pairs])


def expand(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers first[k], first[k] + 1, …, of which there are count[k], for all k below each other.

    Returns: of each number its k; the numbers. int64 both.
    """
    owner = np.repeat(np.arange(len(count)), count)
    return owner, _ranges(first, count)


def expanded(first: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `expand`, about `PAIRS_AT_ONCE` at once."""
    for part in _parts(count, PAIRS_AT_ONCE):
        owner, numbers = expand(first[part], count[part])
        yield owner + part.start, numbers


def _ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """As the second that `expand` returns."""
    ends = np.cumsum(count)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - count), count)


def _parts(count: np.ndarray, at_once: int) -> Iterator[slice]:
    """Cut `count` into parts with a sum of about `at_once`."""
    ends = np.cumsum(count)
    start = 0
    while start < len(ends):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + at_once, "right")))
        yield slice(start, stop)
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


def _close_in(one: np.ndarray, other: np.ndarray, a: tuple[int, int], b: tuple[int, int], bits: int
              ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs that are equal in the bands `a` and `b` and differ in at most `bits` bits, and their differing bits.

    Hashes are put into the order of their bands first, so that those held against each other lie side by side: far
    more pairs are looked at than are found, and fetching them from all over the memory would take most of the time.
    """
    (wanted, of_one), (there, of_other) = _sorted(_key(one, a, b)), _sorted(_key(other, a, b))
    first = np.searchsorted(there, wanted)
    count = np.searchsorted(there, wanted, "right") - first
    ordered, others = one[of_one], other[of_other]
    for part in _parts(count, COMPARED_AT_ONCE):
        place = _ranges(first[part], count[part])
        differing = np.repeat(ordered[part], count[part]) ^ others[place]
        found = np.flatnonzero(np.bitwise_count(differing) <= bits)
        owner = np.searchsorted(np.cumsum(count[part]), found, "right") + part.start
        yield of_one[owner], of_other[place[found]], differing[found]
