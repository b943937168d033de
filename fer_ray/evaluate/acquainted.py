"""Which pictures and people of another data set has training seen? They would flatter its score."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fer_ray.data import duplicates, prepared_set

NAME_LETTERS = 4  # that a name of a person has at least; shorter ones, and those with digits, are codes


@dataclass(frozen=True)
class Acquainted:
    """What of N rows of a prepared set training has seen."""

    copied: np.ndarray
    """Near-duplicates of training pictures, bool [N]."""
    known: np.ndarray
    """Pictures of people that training has seen, bool [N]."""
    people: list[str]
    """Names of those people, sorted."""
    codes: list[str]
    """Codes such as S001 that people of training have too, but in another data set: they count as other people."""


def find(prepared: str, trained: pd.DataFrame, other: str, rows: pd.DataFrame) -> Acquainted:
    """Hold another prepared set against what was trained on.

    A person is known who has the same name in a data set of any name, or of whom a picture is a near-duplicate of a
    training picture. Codes are known only where the data sets share their people, as CK+ and CK+48 do.

    Args:
        prepared: URI of the prepared set that was trained on.
        trained: the rows of its index that were trained on.
        other: URI of the other prepared set.
        rows: N rows of its index.
    """
    copied = copies_of(prepared, trained, other, rows)
    people = set(trained["subject"].dropna())
    names = {_name(person) for person in people}
    subjects = rows["subject"].astype(object)
    by_picture = set(subjects[copied].dropna())
    same = {person for person in set(subjects.dropna()) if _name(person) in names}
    known = {person for person in same if person in people or not _is_code(_name(person))} | by_picture
    return Acquainted(copied, subjects.isin(known).to_numpy(), sorted(person.partition(":")[2] for person in known),
                      sorted(person.partition(":")[2] for person in same - known))


def _name(person: str) -> str:
    """A person's name without the data set's, and however it is written: "Ann_Lee" is "ann lee"."""
    return " ".join(re.split(r"[\W_]+", person.partition(":")[2].casefold())).strip()


def _is_code(name: str) -> bool:
    return sum(c.isalpha() for c in name) < NAME_LETTERS or any(c.isdigit() for c in name)


def copies_of(prepared: str, trained: pd.DataFrame, other: str, rows: pd.DataFrame) -> np.ndarray:
    """Which rows of another prepared set are near-duplicates of training pictures, bool [N]. Arguments as of `find`."""
    thumbnails = zip(*(prepared_set.read_thumbnails(uri, index) for uri, index in ((prepared, trained), (other, rows))),
                     strict=True)
    cluster = duplicates.clusters(pd.concat([trained[duplicates.HASHES], rows[duplicates.HASHES]], ignore_index=True),
                                  [np.concatenate(both) for both in thumbnails])
    return np.isin(cluster[len(trained) :], cluster[: len(trained)])
