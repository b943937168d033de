"""What stands in more than one split, and what the same picture says twice."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fer_ray.data import duplicates, hamming
from fer_ray.data.duplicates import HASHES
from fer_ray.data.splits import SPLITS

# Kind of leak -> the column of which a value is in several splits.
LEAK_KINDS = {"subject": "subject", "sequence": "sequence", "identical": "digest", "near_duplicate": "cluster"}
LEAK_COLUMNS = ["kind", "key", "splits", "images", "example_a", "example_b"]
CONFLICT_COLUMNS = ["key", "expressions", "images", "example_a", "example_b"]

# Of each side, when the two most alike images are looked for: a subject with thousands of images would have millions of
# pairs, and the first few hundred show as well how alike they are.
EXAMPLES_SEARCHED = 500


def audit(rows: pd.DataFrame) -> pd.DataFrame:
    """What is in more than one split: one line a leak, none when the split is clean.

    `rows` has the columns `image`, `subject`, `sequence`, `digest` (of the crop's pixels), `HASHES`,
    `cluster` (of `duplicates.clusters`) and `split`. Returns the columns of `LEAK_COLUMNS`: `key` names
    the subject, the sequence or the hash (hex), `splits` is a comma list, `images` counts all images concerned, and
    the two examples lie in different splits. An identical picture is no near-duplicate as well.
    """
    rows = rows.sort_values("image", kind="stable").reset_index(drop=True)
    found = {kind: _in_several(rows, column).assign(kind=kind) for kind, column in LEAK_KINDS.items()}
    identical = found["identical"][["first", "second"]].to_numpy()
    near = found["near_duplicate"]
    found["near_duplicate"] = near[~near[["first", "second"]].isin(identical.ravel()).all(axis=1)].assign(
        key=lambda leaks: [f"{rows['face_hash'][first]:016x}" for first in leaks["first"]])
    leaks = pd.concat(found.values(), ignore_index=True)
    examples = {f"example_{name}": rows["image"].to_numpy(object)[leaks[column]]
                for name, column in (("a", "first"), ("b", "second"))}
    return leaks.assign(**examples)[LEAK_COLUMNS]


def conflicts(rows: pd.DataFrame, read_thumbnails: Callable[[pd.DataFrame], dict[str, np.ndarray]]) -> pd.DataFrame:
    """The same picture with different expressions: one line each, the columns of `CONFLICT_COLUMNS`.

    Arguments as of `duplicates.contradictions`, which says what counts as the same picture.
    """
    rows = rows.sort_values("image", kind="stable").reset_index(drop=True)
    pairs = duplicates.contradictions(rows, read_thumbnails)
    members = rows.loc[np.unique(pairs), ["cluster", "expression", "face_hash"]]
    expressions = members[["cluster", "expression"]].drop_duplicates().sort_values("expression")
    cluster = rows["cluster"].to_numpy()[pairs[:, 0]]
    likest = pairs[np.unique(cluster, return_index=True)[1]]  # the first pair of each cluster is the one most alike
    examples = rows["image"].to_numpy(object)[likest]
    return pd.DataFrame({
        "key": [f"{hashed:016x}" for hashed in members.groupby("cluster")["face_hash"].first()],
        "expressions": expressions.groupby("cluster")["expression"].agg(",".join).to_list(),
        "images": members.groupby("cluster").size().to_list(),
        "example_a": examples[:, 0], "example_b": examples[:, 1]}, columns=CONFLICT_COLUMNS)


def summarize(leaks: pd.DataFrame) -> dict[str, int]:
    """Number of leaks of each kind; kinds without any are there with 0."""
    counts = leaks["kind"].value_counts()
    return {kind: int(counts.get(kind, 0)) for kind in LEAK_KINDS}


def _in_several(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """What values of a column are in several splits, in their order.

    Returns: `key` (the value), `splits` (a comma list), `images` (their number), and `first` and `second`, the
        positions of the two images most alike of different splits. Of each side `EXAMPLES_SEARCHED` are looked at.
    """
    codes, values = pd.factorize(rows[column], sort=True)
    split = pd.Categorical(rows["split"], SPLITS).codes
    held = np.zeros((len(values), len(SPLITS)), bool)
    held[codes[codes >= 0], split[codes >= 0]] = True
    mixed = np.flatnonzero(held.sum(1) > 1)
    members = np.flatnonzero(np.isin(codes, mixed))
    members = members[np.argsort(codes[members], kind="stable")]
    group = np.searchsorted(mixed, codes[members])
    start = np.searchsorted(group, np.arange(len(mixed)))
    is_other = split[members] != split[members[start]][group]
    searched = (pd.DataFrame({"group": group, "is_other": is_other}).groupby(["group", "is_other"]).cumcount()
                < EXAMPLES_SEARCHED).to_numpy()
    sides = [(members[chosen], group[chosen]) for chosen in (~is_other & searched, is_other & searched)]
    first, second = _most_alike(rows[HASHES].to_numpy(np.uint64), *sides[0], *sides[1])
    return pd.DataFrame({
        "key": [str(value) for value in values[mixed]],
        "splits": [",".join(np.array(SPLITS)[parts]) for parts in held[mixed]],
        "images": np.bincount(group, minlength=len(mixed)), "first": first, "second": second})


def _most_alike(hashes: np.ndarray, ones: np.ndarray, group: np.ndarray, others: np.ndarray, group_of_other: np.ndarray
                ) -> tuple[np.ndarray, np.ndarray]:
    """The pair whose hashes differ least, of each group, as they are or mirrored; of equals the first.

    Args:
        hashes: of all rows, uint64 [N, 4], the columns `HASHES`.
        ones: rows, in the order of their groups, int [P].
        group: of each of them, from 0, int [P].
        others: rows to pair them with, int [Q], likewise.
        group_of_other: int [Q].

    Returns: rows of `ones` and of `others`, int [groups] both.
    """
    begin, end = (np.searchsorted(group_of_other, group, side) for side in ("left", "right"))
    best = np.full((3, group.max(initial=-1) + 1), 4 * 64)  # number of bits that differ, and the two rows
    for one, other in hamming.expanded(begin, end - begin):
        a, b = hashes[ones[one]], hashes[others[other]]
        bits = np.minimum(*(np.bitwise_count(a[:, 0] ^ b[:, k]).astype(int) + np.bitwise_count(a[:, 2] ^ b[:, 2 + k])
                            for k in (0, 1)))
        order = np.lexsort((bits, group[one]))
        least = order[np.flatnonzero(np.diff(group[one][order], prepend=-1))]
        better = least[bits[least] < best[0, group[one[least]]]]
        best[:, group[one[better]]] = bits[better], ones[one[better]], others[other[better]]
    return best[1], best[2]
