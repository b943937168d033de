"""What became of each file of a data set.

A file is named as in the manifest (`Listing.uri`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fer_ray.data.listing import Listing


@dataclass(frozen=True)
class Reading:
    """What a layout made of the files of a data set.

    Files are named by `Listing.uri`. A row is a dict with some of the keys of `manifest.SCHEMA`; a rejected one has a
    `reason` too. Refused files (`File.refusal`) may be among `rows`: `sources` rejects them.
    """

    rows: list[dict]
    rejected: list[dict]
    read: frozenset[str] = frozenset()  # tables and files of labels that were read
    unused: Mapping[str, str] = field(default_factory=dict)  # files that are left out, and why
    beside: tuple[Listing, ...] = ()  # folders elsewhere that the configuration names and rows lie in
