"""Who goes to train, val and test, and what leaks between them.

Everything here is a pure function of the rows and a seed: the order of the rows never matters.
scikit-learn and SciPy are imported where they are used: they are slow to load and `--help` needs neither.
"""

import warnings
from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd

from fer_ray.manifest import DataError

SPLITS = ("train", "val", "test")
LEAK_KINDS = ("subject", "sequence", "near_duplicate")
LEAK_COLUMNS = ["kind", "key", "splits", "images", "example_a", "example_b"]

# Measured on 1,500 photographs of faces: JPEG at quality 50, another size or 25 grey levels more move 0 to 4
# of the 64 bits (1 of 300 brightened ones 6, as it saturated), and no two of the 1.1 million pairs of
# photographs come as near as 4; from 8 on they do, though they only look alike.
NEAR_DUPLICATE_BITS = 4

# A class that this many groups show can be in all three splits, so training must see it.
MIN_GROUPS_FOR_TRAIN = 3


def assign(
    rows: pd.DataFrame,
    by: str = "subject",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> np.ndarray:
    """One of `SPLITS` for every row, stratified by expression as far as the groups allow.

    `rows` has the columns `image` (unique), `expression`, and the one that `by` names. All rows of a subject
    (or of a sequence; a still is a sequence of its own) stay together. `fractions` are the shares of
    train, val and test. Returns str[N] in the order of `rows`.

    Raises:
        DataError: a row without subject, or fewer than three groups to share out.
        ValueError: an unknown `by`, or fractions that are not positive or do not add up to 1.
    """
    _check_fractions(fractions)
    order = np.argsort(rows["image"].to_numpy(dtype=str), kind="stable")
    ordered = rows.iloc[order]
    groups = pd.factorize(_group_names(ordered, by))[0]
    num_groups = len(np.unique(groups))
    if num_groups < len(SPLITS):
        raise DataError(
            f"split by {by}: the data has {num_groups} {by}(s), at least {len(SPLITS)} are needed, "
            "one for each of train, val and test"
        )
    # Sorted codes, so that a class that appears first in another order gets the same number.
    labels = pd.factorize(ordered["expression"].to_numpy(dtype=str), sort=True)[0]
    folds = _folds(labels, groups, num_folds=min(_num_folds(fractions), num_groups), seed=seed)
    split = _train_sees_every_class(_share_out(folds, labels, fractions), labels, groups)
    result = np.empty(len(rows), dtype="<U5")
    result[order] = np.array(SPLITS)[split]
    return result


def audit(rows: pd.DataFrame) -> pd.DataFrame:
    """What is in more than one split: one line a leak, none when the split is clean.

    `rows` has the columns `image`, `subject`, `sequence`, `phash` (64-bit int from `perceptual_hash`, or
    null) and `split`. Returns the columns of `LEAK_COLUMNS`: `key` names the subject, the sequence or the
    hash (hex), `splits` is a comma list, `images` counts all images concerned, and the two examples lie in
    different splits.

    Raises:
        TypeError: `phash` holds floats, which have lost their low bits; keep it as object or "UInt64".
    """
    rows = rows.sort_values("image", kind="stable").reset_index(drop=True)
    leaks = [*_shared(rows, "subject"), *_shared(rows, "sequence"), *_near_duplicates(rows)]
    return pd.DataFrame(leaks, columns=LEAK_COLUMNS)


def summarize(leaks: pd.DataFrame) -> dict[str, int]:
    """Number of leaks of each kind; kinds without any are there with 0."""
    counts = leaks["kind"].value_counts()
    return {kind: int(counts.get(kind, 0)) for kind in LEAK_KINDS}


def perceptual_hash(crop: np.ndarray) -> int:
    """64-bit pHash of a crop, uint8 H x W or H x W x 3 RGB.

    The signs, against their median, of the 8 x 8 lowest frequencies without the constant row and column, so
    neither brightness, contrast nor size count. Source: Zauner, "Implementation and Benchmarking of
    Perceptual Image Hash Functions", 2010.
    """
    gray = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) if crop.ndim == 3 else crop
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[1:9, 1:9]
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


# --- sharing out ---------------------------------------------------------------------------------------


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {tuple(fractions)}: three positive shares that add up to 1 are expected")


def _num_folds(fractions: tuple[float, float, float]) -> int:
    """Ten folds, or twenty for shares like 0.15 that tenths cannot express."""
    return 10 if np.allclose(np.multiply(fractions, 10) % 1, 0) else 20


def _group_names(rows: pd.DataFrame, by: str) -> np.ndarray:
    """What must stay together, one name a row."""
    if by == "image":
        return rows["image"].to_numpy(dtype=object)
    if by == "sequence":
        # A prefix keeps the image name of a still apart from the name of a sequence.
        named = "sequence " + rows["sequence"].astype("string")
        return named.fillna("image " + rows["image"].astype("string")).to_numpy(dtype=object)
    if by != "subject":
        raise ValueError(f"by={by!r}: one of subject, image, sequence is expected")
    unknown = rows["subject"].isna().to_numpy()
    if unknown.any():
        raise DataError(
            f"split by subject: {unknown.sum()} of {len(rows)} images have no subject "
            f"(first: {rows['image'].iloc[unknown.argmax()]}); use by=image, which may leak people between splits"
        )
    return rows["subject"].to_numpy(dtype=object)


def _folds(labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Fold number of every row, int[N]; groups stay whole and no fold is empty."""
    alone = groups.max() + 1 == len(groups)
    if not alone and np.bincount(labels).max() >= num_folds and groups.max() >= num_folds:
        folds = _stratified_group_folds(labels, groups, num_folds, seed)
        if len(np.unique(folds)) == num_folds:
            return folds
    return _dealt_folds(labels, groups, num_folds, seed)


def _stratified_group_folds(labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    folds = np.empty(len(labels), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the number of folds is expected
        for fold, (_, members) in enumerate(splitter.split(labels, labels, groups)):
            folds[members] = fold
    return folds


def _dealt_folds(labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """Shuffled groups, ordered by their first label, dealt out one by one like cards.

    For single images this is exactly stratified; for a handful of groups it gives every fold at least one.
    """
    first = np.unique(groups, return_index=True)[1]
    shuffled = np.random.default_rng(seed).permutation(len(first))
    dealt = shuffled[np.argsort(labels[first][shuffled], kind="stable")]
    fold_of_group = np.empty(len(first), dtype=int)
    fold_of_group[dealt] = np.arange(len(first)) % num_folds
    return fold_of_group[groups]


def _share_out(folds: np.ndarray, labels: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    """Index into `SPLITS` for every row: neighbouring folds make test and val, the others train.

    Of all rotations of the folds, the one is taken that leaves the fewest classes out of a split (train
    counts first, then test), and among equals the one nearest to `fractions`.
    """
    num_folds, num_classes = folds.max() + 1, labels.max() + 1
    num_test = int(np.clip(round(fractions[2] * num_folds), 1, num_folds - 2))
    num_val = int(np.clip(round(fractions[1] * num_folds), 1, num_folds - 1 - num_test))
    place = np.zeros(num_folds, dtype=int)
    place[:num_test], place[num_test : num_test + num_val] = 2, 1

    counts = np.zeros((num_folds, num_classes), dtype=int)
    np.add.at(counts, (folds, labels), 1)

    def cost(rotation: int) -> tuple[int, int, int, float]:
        rotated = np.roll(place, rotation)
        table = np.stack([counts[rotated == split].sum(axis=0) for split in range(len(SPLITS))])
        train, val, test = (table == 0).sum(axis=1)
        return train, test, val, np.abs(table.sum(axis=1) / len(folds) - fractions).sum()

    return np.roll(place, min(range(num_folds), key=cost))[folds]


def _train_sees_every_class(split: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Move the smallest fitting group to train for every class that train lacks but could have."""
    split = split.copy()
    sizes = np.bincount(groups)
    for label in np.unique(labels):
        holders = np.unique(groups[labels == label])
        if len(holders) < MIN_GROUPS_FOR_TRAIN or (split[labels == label] == 0).any():
            continue
        split_of = {group: split[groups == group][0] for group in holders}
        # The split it leaves must keep a group that shows the class; of three holders two share a split.
        shares = np.bincount(list(split_of.values()), minlength=len(SPLITS))
        movable = [group for group in holders if shares[split_of[group]] > 1]
        split[groups == min(movable, key=lambda group: sizes[group])] = 0
    return split


# --- leaks ---------------------------------------------------------------------------------------------


def _in_order(splits: np.ndarray) -> str:
    return ",".join(split for split in SPLITS if split in set(splits))


def _shared(rows: pd.DataFrame, kind: str) -> Iterator[tuple]:
    """Leaks of the people or videos that `kind` names, which are in more than one split."""
    for key, group in rows.dropna(subset=[kind]).groupby(kind, sort=True):
        splits = group["split"].to_numpy()
        if (splits != splits[0]).any():
            images = group["image"].to_numpy()
            yield kind, str(key), _in_order(splits), len(group), images[0], images[(splits != splits[0]).argmax()]


def _near_duplicates(rows: pd.DataFrame) -> Iterator[tuple]:
    """Leaks of pictures that another split holds too, one for each connected set of them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if pd.api.types.is_float_dtype(rows["phash"]) and rows["phash"].notna().any():
        raise TypeError('phash holds floats, which cannot carry 64 bits; keep it as object or "UInt64"')
    rows = rows.dropna(subset=["phash"])
    if rows.empty:
        return
    images, splits = rows["image"].to_numpy(), rows["split"].to_numpy()
    # Equal hashes are looked at once, so that thousands of copies do not make millions of pairs.
    hashes, hash_of = np.unique(np.array([int(h) for h in rows["phash"]], np.uint64), return_inverse=True)
    held_by = np.zeros(len(hashes), dtype=np.uint8)  # bit set of the splits that hold this hash
    np.bitwise_or.at(held_by, hash_of, 1 << pd.Categorical(splits, categories=SPLITS).codes.astype(np.uint8))
    first, second, bits = _close_pairs(hashes, held_by)
    if len(first) == 0:
        return

    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(hashes), len(hashes)))
    component = connected_components(graph, directed=False)[1]
    order = np.lexsort((second, first, bits, component[first]))  # the closest pair of every component first
    closest = order[np.unique(component[first][order], return_index=True)[1]]
    members = pd.Series(np.arange(len(rows))).groupby(component[hash_of]).indices
    for pair in closest:
        group = members[component[first[pair]]]
        a, b = _example(np.flatnonzero(hash_of == first[pair]), np.flatnonzero(hash_of == second[pair]), splits)
        key = f"{hashes[first[pair]]:016x}"
        yield "near_duplicate", key, _in_order(splits[group]), len(group), images[a], images[b]


def _close_pairs(hashes: np.ndarray, held_by: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs i <= j (i = j too) within `NEAR_DUPLICATE_BITS` that two splits hold: i, j, distance, int[P].

    Every hash is held against every other, in blocks of some 64 MiB: n^2 / 2 machine instructions are
    seconds for 50,000 images, and no near duplicate is missed.
    """
    block = max(1, 2**23 // len(hashes))
    found = []
    for start in range(0, len(hashes), block):
        distance = np.bitwise_count(hashes[start : start + block, None] ^ hashes[None, start:])
        i, j = np.nonzero(distance <= NEAR_DUPLICATE_BITS)
        bits, i, j = distance[i, j], i + start, j + start
        both = held_by[i] | held_by[j]
        keep = (i <= j) & (np.bitwise_count(both) > 1)
        found.append((i[keep], j[keep], bits[keep].astype(int)))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def _example(first: np.ndarray, second: np.ndarray, splits: np.ndarray) -> tuple[int, int]:
    """One row of each of two sets, in different splits; the caller knows that there are such."""
    for a in first:
        elsewhere = second[splits[second] != splits[a]]
        if len(elsewhere):
            return a, elsewhere[0]
    raise AssertionError("a pair that two splits hold has rows in both")
