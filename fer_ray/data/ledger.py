"""What became of each file of a data set: nothing that lies there vanishes without a word.

A file is named as in the manifest (`Listing.uri`).
"""

from __future__ import annotations

import collections
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fer_ray.data import pixels
from fer_ray.data.listing import File, Listing, is_image
from fer_ray.data.manifest import DataError, nearest

FOLDERS = 5  # how many folders of unclaimed pictures a message names


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

    def claimed(self) -> set[str]:
        """All files that the layout accounts for."""
        return {pixels.file_of(row["image"]) for row in (*self.rows, *self.rejected)} | self.read | self.unused.keys()


def unclaimed(files: Listing, readings: Iterable[Reading]) -> Listing:
    """The files that no reading accounts for."""
    claimed = set().union(*(reading.claimed() for reading in readings))
    return files.only(file for file in files.files if files.uri(file.path) not in claimed)


def balance(listings: Iterable[Listing], readings: list[Reading]) -> dict:
    """Count what became of each file; a file of several rows counts once.

    Returns: `files`; of these `images` (a row), `rejected` (rejected rows only), `read`, `unused` (by reason),
        `pictures` and `other` (by extension) that nobody claimed. Beside these `absent`, images that are named and not
        there, and `junk`, what systems and this program left there.

    Raises: AssertionError if a layout claims a file that is not there: its rows would be invented.
    """
    listings = list(listings)
    files = {place.uri(file.path): file for place in listings for file in place.files}
    rows = [row for reading in readings for row in (*reading.rejected, *reading.rows)]
    fate = {name: "unused" for reading in readings for name in reading.unused}  # the later of these lines wins
    fate |= {pixels.file_of(row["image"]): "rejected" for row in rows if "reason" in row}
    fate |= {pixels.file_of(row["image"]): "images" for row in rows if "reason" not in row}
    fate |= {name: "read" for reading in readings for name in reading.read}
    absent = fate.keys() - files.keys()
    if invented := sorted(name for name in absent if fate[name] != "rejected"):
        raise AssertionError(f"{invented[0]} was claimed and is not there")
    reasons = {name: why for reading in readings for name, why in reading.unused.items() if fate[name] == "unused"}
    left = [file for name, file in files.items() if name not in fate]
    counts = collections.Counter(what for name, what in fate.items() if name in files)
    found = {
        "files": len(files), "images": counts["images"], "rejected": counts["rejected"], "read": counts["read"],
        "unused": dict(sorted(collections.Counter(reasons.values()).items())),
        "pictures": sum(is_image(file.path) for file in left),
        "other": dict(sorted(collections.Counter(_kind(file) for file in left if not is_image(file.path)).items())),
        "absent": len(absent), "junk": len({place.uri(path) for place in listings for path in place.junk})}
    assert found["files"] == sum((found["images"], found["rejected"], found["read"], *found["unused"].values(),
                                  found["pictures"], *found["other"].values())), found
    return found


def _kind(file: File) -> str:
    return posixpath.splitext(file.name)[1].lower() or "without extension"


def line(found: dict) -> str:
    """A ledger in one line, as the terminal and the page of a prepared set show it."""
    def listed(counts: Mapping[str, int]) -> str:
        return f" ({', '.join(f'{what} {number:,}' for what, number in counts.items())})" if counts else ""

    parts = [(found["images"], "with images"), (found["rejected"], "rejected"),
             (found["read"], "read as tables or labels"),
             (sum(found["unused"].values()), f"not used{listed(found['unused'])}"),
             (found["pictures"], "pictures that belong to no data set"),
             (sum(found["other"].values()), f"others{listed(found['other'])}")]
    text = f"{_count(found['files'], 'file')} = " + " + ".join(f"{number:,} {what}" for number, what in parts if number)
    beside = [(found["absent"], "image", "named and not there"),
              (found["junk"], "entry", "of systems or of this program, passed over")]
    return "; ".join([text, *(f"{_count(number, noun)} {what}" for number, noun, what in beside if number)])


def _count(number: int, noun: str) -> str:
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def check_pictures(rest: Listing, names: Mapping[str, str]) -> None:
    """Raise a DataError that names the folders of the pictures in `rest`, which nobody claimed; return if none are.

    Args:
        rest: of `unclaimed`.
        names: `data.names`.
    """
    if not (pictures := rest.images()):
        return
    raise DataError(
        f"{rest.root}: {len(pictures):,} picture files belong to no data set that is read here: "
        f"{folders_of(pictures, names)}. To include them, name their data set by data.sources, or the expressions of "
        "their folders by data.names; else move them out, or leave them out by data.unclaimed report")


def folders_of(pictures: Iterable[File], names: Mapping[str, str]) -> str:
    """The first folders of these pictures: how many each holds, one of them, what expression its name is near to."""
    folders: dict[str, list[File]] = {}
    for file in pictures:
        folders.setdefault(posixpath.dirname(file.path), []).append(file)
    shown = []
    for folder, files in list(folders.items())[:FOLDERS]:
        near = nearest(posixpath.basename(folder), dict(names))
        hint = f"; {posixpath.basename(folder)} -> {near}?" if near else ""
        shown.append(f"{folder or '.'} ({len(files):,}, such as {files[0].name}{hint})")
    more = f", and {len(folders) - FOLDERS:,} more folders" if len(folders) > FOLDERS else ""
    return ", ".join(shown) + more
