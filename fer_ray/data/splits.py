"""Who goes to train, val and test, and what leaks between them.

Everything here is a pure function of the rows and a seed: the order of the rows never matters.
scikit-learn and SciPy are imported where they are used: they are slow to load and `--help` needs neither.
"""

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from fer_ray.data import duplicates
from fer_ray.data.duplicates import HASHES
from fer_ray.data.manifest import DataError

SPLITS = ("train", "val", "test")
LEAK_KINDS = ("subject", "sequence", "identical", "near_duplicate")
LEAK_COLUMNS = ["kind", "key", "splits", "images", "example_a", "example_b"]
CONFLICT_COLUMNS = ["key", "expressions", "images", "example_a", "example_b"]

# A class that so many groups have can be in all three splits, so one of them must be in train.
MIN_GROUPS_FOR_TRAIN = 3

# Of each side, when the two most alike images are looked for: a subject with thousands of images would have millions of
# pairs, and the first few hundred show as well how alike they are.
EXAMPLES_SEARCHED = 500


def assign(
    rows: pd.DataFrame,
    by: str = "subject",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> np.ndarray:
    """One of `SPLITS` for every row, stratified by expression as far as the groups allow.

    Args:
        rows: has the columns `image` (unique), `expression`, and what `by` needs.
        by: what stays together. `subject`: all images of a person, and the near-duplicates of them whatever their
            name (columns `subject` and `cluster`); an image of nobody in particular stays with its
            near-duplicates. `sequence`: a video; a still is one of its own. `image`: nothing. `official`: the data
            set's own split (column `official`); val is cut from train, and val serves as test, where one lacks.
            `test`: every image is a test image.
        fractions: parts of all rows that train, val and test should have.
        seed: of the random choice of groups.

    Returns: str [N] in the order of `rows`.

    Raises:
        DataError: rows without an official split, or fewer than three groups.
        ValueError: an unknown `by`, or fractions that are not positive or do not add up to 1.
    """
    _check_fractions(fractions)
    if by == "test":
        return np.full(len(rows), "test")
    if by == "official":
        return _official(rows, fractions, seed)
    ordered, labels, groups, order = _prepared(rows, by, len(SPLITS))
    num_groups = groups.max() + 1
    fold_of = _folds(labels, groups, num_folds=min(_num_folds(fractions), num_groups), seed=seed)
    split = _train_sees_every_class(_folds_to_splits(fold_of, labels, fractions), labels, groups)
    result = np.empty(len(rows), dtype="<U5")
    result[order] = np.array(SPLITS)[split]
    return result


def folds(rows: pd.DataFrame, by: str, num_folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every row for cross-validation, int [N] from 0; stratified, groups as in `assign` stay whole.

    Raises: DataError if there are fewer groups than folds.
    """
    ordered, labels, groups, order = _prepared(rows, by, num_folds)
    result = np.empty(len(rows), dtype=int)
    result[order] = _folds(labels, groups, num_folds, seed)
    return result


def of_fold(fold: np.ndarray, test: int) -> np.ndarray:
    """The split of every row when fold `test` is the test split: the next fold is val, the others train. str [N]."""
    num_folds = int(fold.max()) + 1
    return np.where(fold == test, "test", np.where(fold == (test + 1) % num_folds, "val", "train"))


def remarks(rows: pd.DataFrame, by: str) -> list[str]:
    """What a reader of results should know about this split, in sentences."""
    found = []
    unknown = int(rows["subject"].isna().sum())
    if by == "subject" and unknown:
        found.append(f"{unknown} of {len(rows)} images do not say who they show. They are grouped by near-duplicate "
                     "pictures only, so one person may stand in several splits.")
    if by == "official":
        official = set(rows["official"].dropna())
        if "test" not in official:
            found.append("The data set has no official test split: its validation split is the test split, and val is "
                         "a part of train.")
        elif "val" not in official:
            found.append("The data set has no official validation split: val is a part of train.")
    return found


def audit(rows: pd.DataFrame) -> pd.DataFrame:
    """What is in more than one split: one line a leak, none when the split is clean.

    `rows` has the columns `image`, `subject`, `sequence`, `digest` (of the crop's pixels), `HASHES`,
    `cluster` (of `duplicates.clusters`) and `split`. Returns the columns of `LEAK_COLUMNS`: `key` names
    the subject, the sequence or the hash (hex), `splits` is a comma list, `images` counts all images concerned, and
    the two examples lie in different splits. An identical picture is no near-duplicate as well.
    """
    rows = rows.sort_values("image", kind="stable").reset_index(drop=True)
    leaks = []
    for kind, column in (("subject", "subject"), ("sequence", "sequence"), ("identical", "digest")):
        leaks += [(kind, str(key), _in_order(group["split"]), len(group), *_examples(group, "split"))
                  for key, group in _mixed(rows, column, "split")]
    identical = {example for leak in leaks if leak[0] == "identical" for example in leak[4:]}
    for _, group in _mixed(rows, "cluster", "split"):
        a, b = _examples(group, "split")
        if not {a, b} <= identical:
            key = f"{group.loc[group['image'] == a, 'face_hash'].iloc[0]:016x}"
            leaks.append(("near_duplicate", key, _in_order(group["split"]), len(group), a, b))
    return pd.DataFrame(leaks, columns=LEAK_COLUMNS)


def conflicts(rows: pd.DataFrame, read_crops: Callable[[pd.DataFrame], dict[str, np.ndarray]]) -> pd.DataFrame:
    """The same picture with different expressions: one line each, the columns of `CONFLICT_COLUMNS`.

    Arguments as of `duplicates.contradictions`, which says what counts as the same picture.
    """
    rows = rows.sort_values("image", kind="stable").reset_index(drop=True)
    pairs = pd.DataFrame(duplicates.contradictions(rows, read_crops), columns=["first", "second"])
    found = []
    for _, group in pairs.groupby(rows["cluster"].to_numpy()[pairs["first"]]):
        members = rows.loc[np.unique(group)]
        examples = rows["image"].loc[group.iloc[0]]  # the pair that is most alike
        key = f"{members['face_hash'].iloc[0]:016x}"
        found.append((key, ",".join(sorted(set(members["expression"]))), len(members), *examples))
    return pd.DataFrame(found, columns=CONFLICT_COLUMNS)


def summarize(leaks: pd.DataFrame) -> dict[str, int]:
    """Number of leaks of each kind; kinds without any are there with 0."""
    counts = leaks["kind"].value_counts()
    return {kind: int(counts.get(kind, 0)) for kind in LEAK_KINDS}


# --- groups to splits ---------------------------------------------------------------------------------------


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {tuple(fractions)}: three positive shares that add up to 1 are expected")


def _num_folds(fractions: tuple[float, float, float]) -> int:
    """Ten folds, or twenty for shares like 0.15 that tenths cannot express."""
    return 10 if np.allclose(np.multiply(fractions, 10) % 1, 0) else 20


def _prepared(rows: pd.DataFrame, by: str, needed: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    """Rows in the order of their images, their label and group numbers, and that order. Raises: DataError."""
    order = np.argsort(rows["image"].to_numpy(dtype=str), kind="stable")
    ordered = rows.iloc[order]
    groups = pd.factorize(_group_names(ordered, by))[0]
    num_groups = len(np.unique(groups))
    if num_groups < needed:
        raise DataError(f"split by {by}: the data has {num_groups} {by}(s), at least {needed} are needed, "
                        "one for each part of the split")
    # sorted codes, so that a class that appears first in another order gets the same number
    return ordered, pd.factorize(ordered["expression"].to_numpy(dtype=str), sort=True)[0], groups, order


def _official(rows: pd.DataFrame, fractions: tuple[float, float, float], seed: int) -> np.ndarray:
    """The data set's own split, completed."""
    split = rows["official"].to_numpy(dtype=object, copy=True)
    lacking = rows["official"].isna().to_numpy()
    if lacking.any():
        raise DataError(f"split by official: {lacking.sum()} of {len(rows)} images come without a split of their data "
                        f"set (first: {rows['image'].iloc[lacking.argmax()]}); use split.by subject")
    if not (split == "test").any():
        split[split == "val"] = "test"
    if not (split == "val").any():
        train = split == "train"
        num_folds = max(2, round((fractions[0] + fractions[1]) / fractions[1]))
        split[train] = np.where(folds(rows[train], "subject", num_folds, seed) == 0, "val", "train")
    missing = [name for name in SPLITS if not (split == name).any()]
    if missing:
        raise DataError(f"split by official: the data set's own split has no {', '.join(missing)}")
    return split.astype("<U5")


def _group_names(rows: pd.DataFrame, by: str) -> np.ndarray:
    """What must stay together, one name a row."""
    if by == "image":
        return rows["image"].to_numpy(dtype=object)
    if by == "sequence":
        # a prefix keeps the image name of a still apart from the name of a sequence
        named = "sequence " + rows["sequence"].astype("string")
        return named.fillna("image " + rows["image"].astype("string")).to_numpy(dtype=object)
    if by != "subject":
        raise ValueError(f"by={by!r}: one of subject, image, sequence, official, test is expected")
    return _people(rows)


def _people(rows: pd.DataFrame) -> np.ndarray:
    """Group number of every row, int [N]: the same subject, or linked by near-duplicate pictures."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    cluster = rows["cluster"].to_numpy()
    people = pd.factorize(rows["subject"])[0]  # -1: unknown
    known = people >= 0
    size = people.max() + 1 + cluster.max() + 1
    links = (people[known], people.max() + 1 + cluster[known])
    component = connected_components(coo_array((np.ones(known.sum()), links), shape=(size, size)), directed=False)[1]
    return component[people.max() + 1 + cluster]


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
    fold_of = np.empty(len(labels), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class rarer than the number of folds is expected
        for fold, (_, members) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[members] = fold
    return fold_of


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


def _folds_to_splits(folds: np.ndarray, labels: np.ndarray, fractions: tuple[float, float, float]) -> np.ndarray:
    """Index into `SPLITS` for every row: neighbouring folds make test and val, the others train.

    Of all rotations of the folds, the one is taken that leaves the fewest classes out of a split (train
    counts first, then test), and among equals the one nearest to `fractions`.
    """
    num_folds, num_classes = folds.max() + 1, labels.max() + 1
    num_test = int(np.clip(round(fractions[2] * num_folds), 1, num_folds - 2))
    num_val = int(np.clip(round(fractions[1] * num_folds), 1, num_folds - 1 - num_test))
    split_of_fold = np.zeros(num_folds, dtype=int)
    split_of_fold[:num_test], split_of_fold[num_test : num_test + num_val] = 2, 1

    counts = np.zeros((num_folds, num_classes), dtype=int)
    np.add.at(counts, (folds, labels), 1)

    def cost(rotation: int) -> tuple[int, int, int, float]:
        rotated = np.roll(split_of_fold, rotation)
        table = np.stack([counts[rotated == split].sum(axis=0) for split in range(len(SPLITS))])
        train, val, test = (table == 0).sum(axis=1)
        return train, test, val, np.abs(table.sum(axis=1) / len(folds) - fractions).sum()

    return np.roll(split_of_fold, min(range(num_folds), key=cost))[folds]


def _train_sees_every_class(split: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Move the smallest fitting group to train for every class that train lacks but could have."""
    split = split.copy()
    sizes = np.bincount(groups)
    for label in np.unique(labels):
        holders = np.unique(groups[labels == label])
        if len(holders) < MIN_GROUPS_FOR_TRAIN or (split[labels == label] == 0).any():
            continue
        split_of = {group: split[groups == group][0] for group in holders}
        # The split it leaves must keep a group with the class. Of three holders outside train, two are in one split.
        num_holders = np.bincount(list(split_of.values()), minlength=len(SPLITS))
        movable = [group for group in holders if num_holders[split_of[group]] > 1]
        split[groups == min(movable, key=lambda group: sizes[group])] = 0
    return split


# --- leaks ---------------------------------------------------------------------------------------------


def _in_order(splits: pd.Series) -> str:
    return ",".join(split for split in SPLITS if split in set(splits))


def _mixed(rows: pd.DataFrame, column: str, differ: str) -> Iterator[tuple]:
    """Groups of rows with the same value in `column` but different values in `differ`, as (value, rows)."""
    known = rows.dropna(subset=[column])
    kinds = known.groupby(column)[differ].transform("nunique")
    yield from known[kinds > 1].groupby(column, sort=True)


def _examples(group: pd.DataFrame, differ: str) -> tuple[str, str]:
    """The two images most alike of those that differ in `differ`."""
    first = group[group[differ] == group[differ].iloc[0]].head(EXAMPLES_SEARCHED)
    other = group[group[differ] != group[differ].iloc[0]].head(EXAMPLES_SEARCHED)
    a, b = first[HASHES].to_numpy(np.uint64)[:, None], other[HASHES].to_numpy(np.uint64)[None]
    as_is, mirrored = (np.bitwise_count(a[..., 0] ^ b[..., k]).astype(int)
                       + np.bitwise_count(a[..., 2] ^ b[..., 2 + k]) for k in (0, 1))
    bits = np.minimum(as_is, mirrored)
    i, j = np.unravel_index(bits.argmin(), bits.shape)
    return first["image"].iloc[i], other["image"].iloc[j]
