"""Near-duplicates are found without comparing each picture with every other, and none is missed."""

import numpy as np
import pandas as pd
import pytest
from preparing import clusters_of
from scipy.sparse.csgraph import connected_components

from fer_ray.data import duplicates, hamming

SIDE = duplicates.THUMBNAIL_SIDE


def flipped_bits(rng, hashes: np.ndarray, most: int) -> np.ndarray:
    """Hashes with up to `most` bits changed in each."""
    bits = np.uint64(1) << rng.integers(0, 64, (most, *hashes.shape), dtype=np.uint64)
    used = np.arange(most).reshape(-1, *[1] * hashes.ndim) < rng.integers(0, most + 1, hashes.shape)
    return hashes ^ np.bitwise_xor.reduce(np.where(used, bits, np.uint64(0)), axis=0)


def drawn_looks(seed: int, scenes: int, copies: int) -> pd.DataFrame:
    """Scenes and copies of them: near and not so near, mirrored, exact, with one background, and plain ones."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(scenes), copies)
    hashes = rng.integers(0, 2**64, (scenes, 4), dtype=np.uint64)
    hashes[: scenes // 4] = flipped_bits(rng, hashes[:1].repeat(scenes // 4, 0), 8)  # which look alike from afar
    hashes[scenes // 2 :, 2:] = hashes[scenes // 2, 2:]  # in one studio
    hashes = flipped_bits(rng, hashes[scene], 5)
    mirrored = rng.random(len(scene)) < 0.2
    hashes[mirrored] = hashes[mirrored][:, [1, 0, 3, 2]]
    grain = rng.choice([1.0, 6.0], len(scene))[:, None, None]
    pictures = []
    for _ in duplicates.THUMBNAILS:
        drawn = rng.normal(128, 40, (scenes, SIDE, SIDE))[scene] + grain * rng.normal(size=(len(scene), SIDE, SIDE))
        drawn[mirrored] = drawn[mirrored][..., ::-1]
        pictures.append(np.clip(drawn, 0, 255).astype(np.uint8))
    plain = np.flatnonzero(rng.random(len(scene)) < 0.1)
    hashes[plain] = 0
    for picture in pictures:
        picture[plain] = rng.integers(0, 4, len(plain))[:, None, None]
    rows = pd.DataFrame(hashes, columns=duplicates.HASHES)
    for name, picture in zip(duplicates.THUMBNAILS, pictures, strict=True):
        rows[name] = [p.tobytes() for p in picture]
    return pd.concat([rows, rows.sample(frac=0.2, random_state=seed)], ignore_index=True)


def clusters_of_all_pairs(rows: pd.DataFrame) -> np.ndarray:
    """As `duplicates.clusters`, by looking at each pair."""
    hashes = rows[duplicates.HASHES].to_numpy()
    near = np.zeros((len(rows), len(rows)), bool)
    for mirrored in (0, 1):
        face, picture = (np.bitwise_count(hashes[:, None, k] ^ hashes[None, :, k + mirrored]) for k in (0, 2))
        by_picture = (picture <= duplicates.NEAR_BITS) & (face <= duplicates.STRANGER_BITS)
        candidates = face <= duplicates.NEAR_BITS, by_picture
        for candidate, name in zip(candidates, duplicates.THUMBNAILS, strict=True):
            thumbs = np.frombuffer(b"".join(rows[name]), np.uint8).reshape(-1, SIDE, SIDE)
            i, j = np.nonzero(candidate)
            one, other = (t.reshape(len(i), -1).astype(float) for t in (
                thumbs[i], thumbs[j][..., ::-1] if mirrored else thumbs[j]))
            one, other = (t - t.mean(1, keepdims=True) for t in (one, other))
            size = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            alike = (one * other).sum(1) >= duplicates.NEAR_CORRELATION * size
            near[i, j] |= alike & ((size > 0) | (np.ptp(one, 1) + np.ptp(other, 1) == 0))
    return connected_components(near, directed=False)[1]


@pytest.mark.parametrize("pairs_at_once", [hamming.PAIRS_AT_ONCE, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_of_all_pairs(seed, pairs_at_once, monkeypatch):
    monkeypatch.setattr(hamming, "PAIRS_AT_ONCE", pairs_at_once)
    monkeypatch.setattr(hamming, "COMPARED_AT_ONCE", pairs_at_once)
    rows = drawn_looks(seed, 24, 3 if pairs_at_once < 10 else 10)
    found, expected = clusters_of(rows), clusters_of_all_pairs(rows)
    assert 10 < expected.max() < len(rows) - 15
    assert ((found[:, None] == found[None]) == (expected[:, None] == expected[None])).all()
    shuffled = rows.sample(frac=1, random_state=seed)
    again = clusters_of(shuffled)[np.argsort(shuffled.index)]
    assert ((again[:, None] == again[None]) == (expected[:, None] == expected[None])).all()


@pytest.mark.parametrize("bits", [2, 4, 9])
def test_each_pair_of_near_hashes_is_found_once(bits):
    rng = np.random.default_rng(bits)
    one = flipped_bits(rng, rng.integers(0, 2**64, 20, dtype=np.uint64).repeat(20), bits + 3)
    other = flipped_bits(rng, one[::2], bits + 3)
    found = [pair for i, j in hamming.near_pairs(one, other, bits) for pair in zip(i, j, strict=True)]
    expected = np.argwhere(np.bitwise_count(one[:, None] ^ other[None]) <= bits)
    assert sorted(found) == [tuple(pair) for pair in expected] and len(found) > 10
