"""Which pictures are near-duplicates: perceptual hashes and thumbnails of faces and of whole pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from fer_ray.progress import Progress

HASHES = ["face_hash", "face_hash_flipped", "picture_hash", "picture_hash_flipped"]
THUMBNAILS = ["face_thumbnail", "picture_thumbnail"]
LOOKS = [*HASHES, *THUMBNAILS]
THUMBNAIL_SIDE = 32  # px

# Two images are near-duplicates if their faces, or their whole pictures, are: the hash differs in few of 64 bits and
# the thumbnails correlate. Whole pictures count because in a copy the face may be found some pixels beside; but only
# of people who are no strangers, since a studio's background makes nobody the same. Each of the three bars is needed:
# scripts/measure_duplicates.py measures what they find and their false alarms, docs/data.md has the figures.
NEAR_BITS = 4
NEAR_CORRELATION = 0.99
STRANGER_BITS = 20


def clusters(rows: pd.DataFrame) -> np.ndarray:
    """Cluster number of every row, int [N]: linked by near-duplicate pictures, mirrored ones included.

    Every hash is held against every other, in blocks of some 64 MiB: n^2 machine instructions are seconds for 50,000
    images, and no near-duplicate is missed.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # exact copies are looked at once, so that thousands of them do not make millions of pairs
    node_of = rows.groupby(LOOKS, sort=False).ngroup().to_numpy()
    nodes = rows.iloc[np.unique(node_of, return_index=True)[1]]
    hashes = nodes[HASHES].to_numpy(np.uint64)
    thumbnails = [np.frombuffer(b"".join(nodes[t]), np.uint8).reshape(len(nodes), THUMBNAIL_SIDE, THUMBNAIL_SIDE)
                  for t in THUMBNAILS]
    block = max(1, 2**23 // max(1, len(hashes)))
    edges = [np.zeros((0, 2), int)]
    with Progress("prepare: near-duplicates", len(hashes)) as progress:
        for start in range(0, len(hashes), block):
            for flip in (False, True):
                edges += _near(hashes, thumbnails, slice(start, start + block), flip)
            progress.advance_to(min(start + block, len(hashes)))
    first, second = np.concatenate(edges).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1][node_of]


def alike(rows: pd.DataFrame) -> np.ndarray:
    """Which pairs of a few rows are near-duplicates by their `HASHES`, mirrored ones included; bool [N, N].

    Within a cluster this tells the pairs that are alike themselves from those that others link.
    """
    hashes = rows[HASHES].to_numpy(np.uint64)
    found = np.zeros((len(rows), len(rows)), bool)
    for flip in (0, 1):
        face, picture = (np.bitwise_count(hashes[:, None, k] ^ hashes[None, :, k + flip]) for k in (0, 2))
        found |= (face <= NEAR_BITS) | ((picture <= NEAR_BITS) & (face <= STRANGER_BITS))
    return found


def contradictions(rows: pd.DataFrame) -> np.ndarray:
    """Which pairs of a cluster's rows are alike but have different expressions; bool [N, N].

    Not two frames of one video: they look alike while the expression changes.
    """
    expression, video = (rows[c].to_numpy(object)[:, None] for c in ("expression", "sequence"))
    one_video = (video == video.T) & rows["sequence"].notna().to_numpy()
    return alike(rows) & (expression != expression.T) & ~one_video


def looks_of(crop: np.ndarray, picture: np.ndarray) -> dict[str, int | bytes]:
    """The columns `LOOKS` of one image: its crop and its whole picture, uint8 H x W or H x W x 3 RGB."""
    values = [perceptual_hash(i) for p in (crop, picture) for i in (p, p[:, ::-1])]
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    values += [cv2.resize(_gray(p), side, interpolation=cv2.INTER_AREA).tobytes() for p in (crop, picture)]
    return dict(zip(LOOKS, values, strict=True))


def perceptual_hash(crop: np.ndarray) -> int:
    """64-bit pHash of a crop, uint8 H x W or H x W x 3 RGB.

    The signs, against their median, of the 8 x 8 lowest frequencies without the constant row and column, so
    neither brightness, contrast nor size count. Source: Zauner, "Implementation and Benchmarking of
    Perceptual Image Hash Functions", 2010.
    """
    small = cv2.resize(_gray(crop), (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[1:9, 1:9]
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _near(hashes: np.ndarray, thumbnails: list[np.ndarray], rows: slice, flip: bool) -> list[np.ndarray]:
    """Pairs of near-duplicates (i, j), i in `rows` and j after its start, int [P, 2]: by the face, by the picture.

    `hashes`: uint64 [N, 4]. `thumbnails`: uint8 [N, 32, 32] of faces and of pictures. `flip`: j is mirrored.
    """
    bits = [np.bitwise_count(hashes[rows, None, k] ^ hashes[None, rows.start :, k + flip]) for k in (0, 2)]
    candidates = bits[0] <= NEAR_BITS, (bits[1] <= NEAR_BITS) & (bits[0] <= STRANGER_BITS)
    found = []
    for candidate, thumbs in zip(candidates, thumbnails, strict=True):
        pairs = np.argwhere(candidate) + rows.start
        for chunk in np.array_split(pairs, max(1, len(pairs) // 10_000)):
            mirrored = thumbs[chunk[:, 1], :, ::-1] if flip else thumbs[chunk[:, 1]]
            found.append(chunk[_correlation(thumbs[chunk[:, 0]], mirrored) >= NEAR_CORRELATION])
    return found


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each pair of pictures, uint8 [P, S, S] -> float32 [P]; two even ones are alike."""
    a, b = (p.reshape(-1, THUMBNAIL_SIDE**2).astype(np.float32) for p in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    even = (np.abs(a).max(1, initial=0) < 1) & (np.abs(b).max(1, initial=0) < 1)
    return np.where(even, 1.0, (a * b).sum(1) / np.maximum(norm, 1e-6))


def _gray(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else np.ascontiguousarray(picture)
