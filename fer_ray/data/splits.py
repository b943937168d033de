"""Who goes to train, val and test.

Everything here is a pure function of the rows and a seed: the order of the rows never matters.
scikit-learn and SciPy are imported where they are used: they are slow to load and `--help` needs neither.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fer_ray.data.manifest import DataError

SPLITS = ("train", "val", "test")

FOLDS_VERSION = 2  # another way to make splits of folds makes another number
VAL_SHARE = 0.1  # of all rows, in cross-validation
MIN_GROUPS = 3  # what so many groups hold can be in all three splits
ARRANGEMENTS = 200  # of folds to splits that are tried
# A group of a source that val or test lacks is moved there unless that makes the split larger than so many times its
# share: two small sources of three people each would take half of the images away from training otherwise.
ROOM = 1.5


def assign(
    rows: pd.DataFrame,
    by: str = "subject",
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> np.ndarray:
    """One of `SPLITS` for every row, stratified by expression and source as far as the groups allow.

    A source with at least three groups has one in train, val and test, unless that made val or test too large.

    Args:
        rows: has the columns `image` (unique), `expression`, `dataset` (the source), and what `by` needs.
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
    groups = _grouped(rows, by, len(SPLITS))
    fold = _folds(groups, min(_num_folds(fractions), len(groups.sizes)), seed)
    split = _with_what_is_missing(_folds_to_splits(fold, groups, fractions, seed), groups, fractions)
    return np.array(SPLITS)[split][groups.of_row]


def folds(rows: pd.DataFrame, by: str, num_folds: int, seed: int = 0) -> np.ndarray:
    """Fold of every row for cross-validation, int [N] from 0; stratified and in groups as in `assign`.

    Raises: DataError if there are fewer groups than folds.
    """
    groups = _grouped(rows, by, num_folds)
    return _folds(groups, num_folds, seed)[groups.of_row]


def of_fold(rows: pd.DataFrame, by: str, fold: np.ndarray, test: int, seed: int = 0) -> np.ndarray:
    """The split of every row when fold `test` is the test split, str [N].

    Val is about a tenth of all rows, as without folds, and lies in the next fold: the rest of that fold trains with
    the others.

    `fold`: of `folds` with the same `by` and `seed`.
    """
    num_folds = int(fold.max()) + 1
    following = np.flatnonzero(fold == (test + 1) % num_folds)
    groups = _grouped(rows.iloc[following], by, 1)
    parts = min(round(1 / (VAL_SHARE * num_folds)), len(groups.sizes))
    part = _folds(groups, parts, seed)[groups.of_row] if parts > 1 else np.zeros(len(following), int)
    split = np.where(fold == test, "test", "train")
    split[following[part == 0]] = "val"
    return split


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


def unseen(rows: pd.DataFrame) -> list[str]:
    """Which sources a split has no image of, in sentences; none where every image is a test image."""
    sources = rows.groupby("dataset")["split"].agg(set)
    absent = {part: [str(name) for name, parts in sources.items() if part not in parts] for part in SPLITS}
    return [f"No image in {part} is of {', '.join(names)}." for part, names in absent.items()
            if names and len(names) < len(sources)]


# --- groups to splits ---------------------------------------------------------------------------------------


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    if len(fractions) != len(SPLITS) or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"fractions {tuple(fractions)}: three positive shares that add up to 1 are expected")


def _num_folds(fractions: tuple[float, float, float]) -> int:
    """Ten folds, or twenty for shares like 0.15 that tenths cannot express."""
    return 10 if np.allclose(np.multiply(fractions, 10) % 1, 0) else 20


@dataclass(frozen=True)
class _Groups:
    """What stays together: G groups of the N rows."""

    of_row: np.ndarray
    """Group of each row, int [N]. Groups are numbered in the order of their images."""
    sizes: np.ndarray
    """Rows of each group, int [G]."""
    strata: np.ndarray
    """Stratum of each row, int [N]: its expression and its source."""
    expressions: np.ndarray
    """Which classes each group has, bool [G, E]."""
    sources: np.ndarray
    """Which sources each group has, bool [G, S]."""


def _grouped(rows: pd.DataFrame, by: str, needed: int) -> _Groups:
    """Raises: DataError if there are fewer groups than `needed`."""
    order = np.argsort(rows["image"].to_numpy(dtype=str), kind="stable")
    ordered = rows.iloc[order]
    in_order, names = pd.factorize(_group_names(ordered, by))
    if len(names) < needed:
        raise DataError(f"split by {by}: the data has {len(names)} {by}(s), at least {needed} are needed, "
                        "one for each part of the split")
    groups, codes = np.empty(len(rows), int), {}
    groups[order] = in_order
    for column in ("expression", "dataset"):  # sorted, so that numbers do not depend on the order of rows
        codes[column] = pd.factorize(rows[column].to_numpy(dtype=str), sort=True)[0]
    strata = codes["dataset"] * (codes["expression"].max() + 1) + codes["expression"]
    return _Groups(groups, np.bincount(groups), pd.factorize(strata, sort=True)[0],
                   *(_held(groups, codes[column]) for column in ("expression", "dataset")))


def _held(groups: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Which of the codes each group has, bool [G, codes]."""
    held = np.zeros((groups.max() + 1, codes.max() + 1), bool)
    held[groups, codes] = True
    return held


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
    return people(rows)


def people(rows: pd.DataFrame) -> np.ndarray:
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


def _folds(groups: _Groups, num_folds: int, seed: int) -> np.ndarray:
    """Fold number of every group, int [G]; no fold is empty."""
    alone = groups.sizes.max() == 1
    if not alone and np.bincount(groups.strata).max() >= num_folds < len(groups.sizes):
        folds = _stratified_group_folds(groups, num_folds, seed)
        if len(np.unique(folds)) == num_folds:
            return folds
    return _dealt_folds(groups, num_folds, seed)


def _stratified_group_folds(groups: _Groups, num_folds: int, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    order = np.argsort(groups.of_row, kind="stable")  # scikit-learn breaks ties by the order of rows
    labels, of_row = groups.strata[order], groups.of_row[order]
    fold_of = np.empty(len(groups.sizes), dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a stratum rarer than the number of folds is expected
        for fold, (_, members) in enumerate(splitter.split(labels, labels, of_row)):
            fold_of[of_row[members]] = fold
    return fold_of


def _dealt_folds(groups: _Groups, num_folds: int, seed: int) -> np.ndarray:
    """Shuffled groups, ordered by a stratum of theirs, dealt out one by one like cards.

    For single images this is exactly stratified; for a handful of groups it gives every fold at least one.
    """
    stratum = np.full(len(groups.sizes), groups.strata.max())
    np.minimum.at(stratum, groups.of_row, groups.strata)
    shuffled = np.random.default_rng(seed).permutation(len(stratum))
    fold = np.empty(len(stratum), dtype=int)
    fold[shuffled[np.argsort(stratum[shuffled], kind="stable")]] = np.arange(len(stratum)) % num_folds
    return fold


def _demands(groups: _Groups) -> Iterator[tuple[np.ndarray, int]]:
    """What a split should have, as (which groups hold it, bool [G]; number of the split), the weightiest first.

    Train every class, and each split every source, if enough groups hold them.
    """
    for held, wanted in ((groups.expressions, (0,)), (groups.sources, (0, 2, 1))):
        for holders in held.T:
            if holders.sum() >= MIN_GROUPS:
                yield from ((holders, part) for part in wanted)


def _folds_to_splits(fold: np.ndarray, groups: _Groups, fractions: tuple[float, float, float],
                     seed: int) -> np.ndarray:
    """Index into `SPLITS` for every group: some folds make test and some val, the others train.

    Of many arrangements the one is taken that leaves the fewest `_demands` open, and then the fewest classes out of
    test and val, and among equals the one nearest to `fractions`.
    """
    num_folds = fold.max() + 1
    num_test = int(np.clip(round(fractions[2] * num_folds), 1, num_folds - 2))
    num_val = int(np.clip(round(fractions[1] * num_folds), 1, num_folds - 1 - num_test))
    split_of_fold = np.repeat([2, 1, 0], [num_test, num_val, num_folds - num_test - num_val])
    # of the folds, since there may be a million groups
    demands = [(np.bincount(fold[holders], minlength=num_folds) > 0, part) for holders, part in _demands(groups)]
    classes = [np.bincount(fold[holders], minlength=num_folds) > 0 for holders in groups.expressions.T]
    sizes = np.bincount(fold, groups.sizes)

    rng = np.random.default_rng(seed)
    arrangements = np.stack([rng.permutation(split_of_fold) for _ in range(ARRANGEMENTS)])
    absent_in_val, absent_in_test = (_num_open([(folds, part) for folds in classes], arrangements) for part in (1, 2))
    deviations = np.array([_deviation(split, sizes, fractions) for split in arrangements])
    # The last key counts first, and of equals the first arrangement comes first.
    best = np.lexsort((deviations, absent_in_val, absent_in_test, _num_open(demands, arrangements)))[0]
    return arrangements[best][fold]


def _num_open(demands: list[tuple[np.ndarray, int]], splits: np.ndarray) -> np.ndarray:
    """How many demands a split leaves open; of splits [..., G], an array [...]."""
    return sum((~(splits[..., holders] == part).any(-1) for holders, part in demands),
               start=np.zeros(splits.shape[:-1], int))


def _shares(split: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Parts of all rows that train, val and test have."""
    return np.bincount(split, sizes, minlength=len(SPLITS)) / sizes.sum()


def _deviation(split: np.ndarray, sizes: np.ndarray, fractions: tuple[float, float, float]) -> float:
    """How far the shares are from `fractions`, in total."""
    return float(np.abs(_shares(split, sizes) - fractions).sum())


def _with_what_is_missing(split: np.ndarray, groups: _Groups, fractions: tuple[float, float, float]) -> np.ndarray:
    """Move a group to each split that lacks what it should have (`_demands`).

    Of the groups that would do, the one is moved that leaves the fewest other demands open, and then shares that are
    nearest to `fractions`. The split that it leaves keeps a group that holds the same.
    """
    demands = list(_demands(groups))
    for holders, part in demands:
        if (split[holders] == part).any():
            continue
        left = np.bincount(split[holders], minlength=len(SPLITS))
        moved = [np.where(np.arange(len(split)) == group, part, split)
                 for group in np.flatnonzero(holders) if left[split[group]] > 1]
        if part:
            moved = [one for one in moved if _shares(one, groups.sizes)[part] <= ROOM * fractions[part]]
        if moved:
            split = min(moved, key=lambda one: (_num_open(demands, one), _deviation(one, groups.sizes, fractions)))
    return split
