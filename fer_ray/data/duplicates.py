"""Which pictures are near-duplicates: perceptual hashes and thumbnails of faces and of whole pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import cv2
import numpy as np
import pandas as pd

from fer_ray.data import hamming
from fer_ray.progress import Progress

HASHES = ["face_hash", "face_hash_flipped", "picture_hash", "picture_hash_flipped"]
THUMBNAILS = ["face_thumbnail", "picture_thumbnail"]
LOOKS = [*HASHES, *THUMBNAILS]
THUMBNAIL_SIDE = 32  # px

# Two images are near-duplicates if the hashes of their faces differ in at most NEAR_BITS of 64 bits and the thumbnails
# of the faces correlate by at least NEAR_CORRELATION, or if the same holds for the whole pictures. Whole pictures are
# compared because the detector may find the face of a copy some pixels beside. They count only if the hashes of the
# faces differ in at most STRANGER_BITS: one studio background makes different people look alike. Each of the three
# limits is needed: scripts/measure_duplicates.py measures what they find and their false alarms, docs/data.md has the
# figures.
NEAR_BITS = 4
NEAR_CORRELATION = 0.99
STRANGER_BITS = 20

# Near-duplicates are one and the same picture if their faces, as thumbnails of equal brightness and contrast, differ
# nowhere by more than this many standard deviations. Two moments of one person differ somewhere, at the mouth or the
# eyes, while the faces as a whole correlate. docs/data.md has the figures.
SAME_PICTURE_DIFFERENCE = 0.6
PAIRS_COMPARED = 10_000  # at once, as 32-bit thumbnails some 80 MiB


def clusters(rows: pd.DataFrame, thumbnails: list[np.ndarray]) -> np.ndarray:
    """Cluster number of every row, int [N]: linked by near-duplicate pictures, mirrored ones included.

    Candidates are found by `hamming.near_pairs`, which misses none, and only those between two clusters are looked at:
    a thousand frames of one video have half a million near-duplicate pairs, of which a thousand link them.

    Args:
        rows: have the columns `HASHES`.
        thumbnails: of the rows' faces and of their whole pictures, uint8 [N, 32, 32] each: of a million images 2 GB,
            which tables would need several times over.
    """
    looks = _Looks(rows, thumbnails)
    cluster = np.arange(len(looks.hashes))
    with Progress("prepare: near-duplicates", 4, "searches") as progress:
        for of_picture in (False, True):
            for mirrored in (False, True):
                cluster = _link_near(looks, cluster, of_picture, mirrored)
                progress.advance()
    return np.unique(cluster, return_inverse=True)[1][looks.number]


class _Looks:
    """Hashes and thumbnails of rows; exact copies, of which there may be thousands, are there once."""

    def __init__(self, rows: pd.DataFrame, thumbnails: list[np.ndarray]):
        hashes = rows[HASHES].to_numpy(np.uint64)
        number = rows.groupby(HASHES, sort=False).ngroup().to_numpy(copy=True)
        shared = np.flatnonzero(pd.Series(number).duplicated(keep=False))
        contents = [hashlib.blake2b(b"".join(t[row] for t in thumbnails), digest_size=16).digest() for row in shared]
        number[shared] = len(rows) + pd.MultiIndex.from_arrays([number[shared], contents]).factorize()[0]
        _, self.rows, self.number = np.unique(number, return_index=True, return_inverse=True)
        """The first row with each look, and the number of the look of each row."""
        self.hashes = hashes[self.rows]
        """uint64 [looks, 4], the columns `HASHES`."""
        self._thumbnails = thumbnails

    def are_alike(self, pairs: np.ndarray, of_picture: bool, mirrored: bool) -> np.ndarray:
        """Whether the thumbnails of looks, int [P, 2], correlate, bool [P]. `mirrored`: those of the second looks."""
        thumbnails, found = self._thumbnails[of_picture], []
        for chunk in np.array_split(self.rows[pairs], len(pairs) // PAIRS_COMPARED + 1):
            second = thumbnails[chunk[:, 1]]
            found.append(_correlation(thumbnails[chunk[:, 0]], second[..., ::-1] if mirrored else second)
                         >= NEAR_CORRELATION)
        return np.concatenate(found)


def stacked(thumbnails: Iterable[bytes]) -> np.ndarray:
    """uint8 [N, 32, 32] of what `looks_of` gives of N images."""
    return np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def _link_near(looks: _Looks, cluster: np.ndarray, of_picture: bool, mirrored: bool) -> np.ndarray:
    """`cluster` of each look after linking the near-duplicates by faces or by whole pictures, mirrored or not."""
    face, mirrored_face = looks.hashes[:, 0], looks.hashes[:, int(mirrored)]
    searched = looks.hashes[:, 2 if of_picture else 0]
    values, value_of = np.unique(looks.hashes[:, (2 if of_picture else 0) + mirrored], return_inverse=True)
    size, members = np.bincount(value_of), np.argsort(value_of, kind="stable")
    first = np.cumsum(size) - size
    for one, value in hamming.near_pairs(searched, values, NEAR_BITS):
        while len(one):
            # where all looks with a value are in the cluster of the look beside it, nothing is left to link
            lowest, highest = (extreme.reduceat(cluster[members], first)[value] for extreme in (np.minimum, np.maximum))
            is_open = (lowest != cluster[one]) | (highest != cluster[one])
            one, value = one[is_open], value[is_open]
            taken = max(1, np.searchsorted(np.cumsum(size[value]), hamming.PAIRS_AT_ONCE, "right"))
            owner, place = hamming.expand(first[value[:taken]], size[value[:taken]])
            pairs = np.stack([one[:taken][owner], members[place]], 1)
            if of_picture:
                pairs = pairs[np.bitwise_count(face[pairs[:, 0]] ^ mirrored_face[pairs[:, 1]]) <= STRANGER_BITS]
            cluster = _link(looks, cluster, pairs, of_picture, mirrored)
            one, value = one[taken:], value[taken:]
    return cluster


def _link(looks: _Looks, cluster: np.ndarray, pairs: np.ndarray, of_picture: bool, mirrored: bool) -> np.ndarray:
    """`cluster` after linking those of `pairs`, int [P, 2], whose thumbnails correlate.

    Every cluster tries a pair, then four, then sixteen: the first links make most of the others needless.
    """
    tries = 1
    while True:
        ends = cluster[pairs]
        apart = ends[:, 0] != ends[:, 1]
        pairs, ends = pairs[apart], ends[apart, 0]
        if not len(pairs):
            return cluster
        tried = (pd.Series(ends).groupby(ends).cumcount() < tries).to_numpy()
        alike = looks.are_alike(pairs[tried], of_picture, mirrored)
        if alike.any():
            cluster = _merged(cluster, cluster[pairs[tried][alike]])
        pairs, tries = pairs[~tried], 4 * tries


def _merged(cluster: np.ndarray, links: np.ndarray) -> np.ndarray:
    """`cluster` with those that `links`, int [L, 2], connect as one; each keeps the lowest of its numbers."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    linked, ends = np.unique(links, return_inverse=True)
    graph = coo_array((np.ones(len(links)), ends.reshape(-1, 2).T), shape=(len(linked), len(linked)))
    component = connected_components(graph, directed=False)[1]
    lowest = np.unique(component, return_index=True)[1]
    renamed = np.arange(len(cluster))
    renamed[linked] = linked[lowest[component]]
    return renamed[cluster]


def contradictions(rows: pd.DataFrame, read_thumbnails: Callable[[pd.DataFrame], dict[str, np.ndarray]]) -> np.ndarray:
    """Pairs of rows that show the same picture but have different expressions; positions, int [P, 2], the likest first.

    Two frames of one video are none: they look alike while the expression changes. Of rows with the same crop, picture,
    expression and video the first one stands for all: each of the others is in pairs with the first ones only.

    Args:
        rows: have the columns `image`, `expression`, `sequence`, `digest` (of the crop's pixels), `HASHES` and
            `cluster` (of `clusters`).
        read_thumbnails: returns the `thumbnail` of the crops of some of the rows by image. It is asked once, for
            near-duplicates that are not identical.
    """
    rows = rows.reset_index(drop=True)
    relevant = rows[rows.groupby("cluster")["expression"].transform("nunique") > 1]
    kind = relevant.groupby(["cluster", "digest", *HASHES, "expression", "sequence"], dropna=False).ngroup()
    shown = relevant[~kind.duplicated()].sort_values("cluster", kind="stable")
    found = shown.index.to_numpy()[_contradicting(shown)]
    difference = np.zeros(len(found))
    unequal = (rows["digest"].to_numpy(object)[found] != rows["digest"].to_numpy(object)[found[:, ::-1]]).any(1)
    thumbnails = read_thumbnails(rows.loc[np.unique(found[unequal])])
    difference[unequal] = [_difference(thumbnails[one], thumbnails[other])
                           for one, other in rows["image"].to_numpy(object)[found[unequal]]]
    order = np.argsort(difference, kind="stable")
    found = found[order][difference[order] <= SAME_PICTURE_DIFFERENCE]
    copies = {number: members.to_numpy() for number, members in relevant.index.groupby(kind).items()}
    return np.array([pair for i, j in found for pair in (
        (i, j), *((copy, j) for copy in copies[kind[i]][1:]), *((i, copy) for copy in copies[kind[j]][1:]))],
        int).reshape(-1, 2)


def _contradicting(rows: pd.DataFrame) -> np.ndarray:
    """Near-duplicates of different expressions that are not of one video, as positions, int [P, 2].

    `rows` are sorted by cluster. Rows of one cluster may be linked by other rows alone, so hashes are looked at again.
    """
    cluster, hashes = rows["cluster"].to_numpy(), rows[HASHES].to_numpy(np.uint64)
    expression, video = (pd.factorize(rows[column])[0] for column in ("expression", "sequence"))
    after = np.arange(len(rows)) + 1
    found = [np.zeros((0, 2), int)]
    for i, j in hamming.expanded(after, np.searchsorted(cluster, cluster, "right") - after):
        differ = (expression[i] != expression[j]) & ((video[i] != video[j]) | (video[i] < 0))
        i, j = i[differ], j[differ]
        alike = np.zeros(len(i), bool)
        for one, other in ((i, j), (j, i)):
            for mirrored in (0, 1):
                face, picture = (np.bitwise_count(hashes[one, k] ^ hashes[other, k + mirrored]) for k in (0, 2))
                alike |= (face <= NEAR_BITS) | ((picture <= NEAR_BITS) & (face <= STRANGER_BITS))
        found.append(np.stack([i, j], 1)[alike])
    return np.concatenate(found)


def is_same_picture(crop: np.ndarray, other: np.ndarray) -> bool:
    """Whether two crops, uint8 H x W or H x W x 3 RGB, show one picture, maybe mirrored, saved again or brighter."""
    return _difference(thumbnail(crop), thumbnail(other)) <= SAME_PICTURE_DIFFERENCE


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of two thumbnails, uint8 [32, 32], in standard deviations of the first.

    Before, the brightness and contrast of the second are fitted to the first. The smaller of as it is and mirrored.
    """
    target = one.ravel().astype(float)
    found = []
    for source in (other, other[:, ::-1]):
        terms = np.stack([source.ravel().astype(float), np.ones(source.size)], 1)
        fitted = terms @ np.linalg.lstsq(terms, target, rcond=None)[0]
        found.append(np.abs(fitted - target).max())
    return float(min(found) / max(target.std(), 1.0))  # 1 grey level: an even picture has no deviation


def looks_of(crop: np.ndarray, picture: np.ndarray) -> dict[str, int | bytes]:
    """The columns `LOOKS` of one image: its crop and its whole picture, uint8 H x W or H x W x 3 RGB."""
    hashes = [perceptual_hash(i) for p in (crop, picture) for i in (p, p[:, ::-1])]
    thumbnails = [thumbnail(p).tobytes() for p in (crop, picture)]
    return dict(zip(LOOKS, [*hashes, *thumbnails], strict=True))


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """What pictures are compared by, uint8 [32, 32] of uint8 H x W or H x W x 3 RGB."""
    return cv2.resize(_gray(picture), (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA)


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


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of each pair of pictures, uint8 [P, S, S] -> float32 [P]; two even ones are alike."""
    a, b = (p.reshape(-1, THUMBNAIL_SIDE**2).astype(np.float32) for p in (one, other))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    even = (np.abs(a).max(1, initial=0) < 1) & (np.abs(b).max(1, initial=0) < 1)
    return np.where(even, 1.0, (a * b).sum(1) / np.maximum(norm, 1e-6))


def _gray(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else np.ascontiguousarray(picture)
