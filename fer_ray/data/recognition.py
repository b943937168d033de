"""Which data sets lie in a folder. All that do are read: what one layout leaves is looked through again."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass

from fer_ray.data import ledger, tables
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DataError, printable
from fer_ray.data_config import DataConfig
from fer_ray.values import Kind

# Layouts that only one data set has, and layouts that any data set may have.
PARTICULAR: tuple[Kind, ...] = ("ckplus", "ck48", "ckextended", "jaffe", "fer2013", "rafdb", "affectnet")
GENERAL: tuple[Kind, ...] = ("table", "folder")
DEPTH = 3  # how many folders down data sets of their own are looked for


@dataclass(frozen=True)
class Found:
    """A data set of a known layout, and what its layout made of its files."""

    kind: Kind
    files: Listing
    reading: Reading
    name: str = ""  # in reports; empty: none was given


def adapter(kind: str):
    """The module of a layout."""
    return importlib.import_module(f"fer_ray.data.layouts.{kind}")


def read(kind: Kind, files: Listing, data: DataConfig, split_by: str) -> Found:
    """Read the files by a layout. Raises: DataError if they are not of it, or cannot be split by `split_by`."""
    why = getattr(adapter(kind), "NO_SUBJECTS", "")
    if why and split_by == "subject":
        raise DataError(f"{files.root}: {why}")
    return Found(kind, files, adapter(kind).read(files, data))


def find(files: Listing, data: DataConfig, split_by: str) -> list[Found]:
    """Every data set in a folder, each read.

    Raises: DataError if there is none, or one is not what its layout promises.
    """
    found: list[Found] = []
    rest = files
    while seen := _seen(rest, data, rest_of=found):
        new = []
        for place, kind, what in seen:
            print(printable(f"recognised {kind} in {place.root}: {what}"), flush=True)
            new.append(read(kind, place, data, split_by))
        found += new
        left = ledger.unclaimed(rest, [source.reading for source in new])
        if len(left.files) == len(rest.files):
            break  # a layout that claims nothing would be found for ever
        rest = left
    if not found:
        known = "; ".join(f"{kind}: {adapter(kind).LOOKS}" for kind in (*PARTICULAR, *GENERAL))
        pictures = ledger.folders_of(files.images(), data.names)
        there = f"; pictures lie in {pictures}: say by data.names what each folder shows" if pictures else ""
        raise DataError(f"data.root: {files.root} holds no layout that is known{there}{tables.described(files)}; or "
                        f"name the layout by data.kind ({known})")
    kinds = [source.kind for source in found]
    return [dataclasses.replace(source, name=source.files.name) if kinds.count(source.kind) > 1 else source
            for source in found]


def _seen(files: Listing, data: DataConfig, rest_of: list[Found], depth: int = 0) -> list[tuple[Listing, Kind, str]]:
    """The layouts that the files have, or else those that each folder in them has, with what was seen.

    A folder of classes or a table counts only where no layout of a particular data set is, and of the two the first.
    In what other data sets left (`rest_of`) it counts where pictures are; a table beside these sets may be theirs.
    """
    general = ("folder",) if rest_of and not depth else GENERAL
    here = [(files, kind, what) for kind in PARTICULAR if (what := adapter(kind).recognise(files, data))]
    if not here and (not rest_of or files.images()):
        here = [(files, kind, what) for kind in general if (what := adapter(kind).recognise(files, data))][:1]
    if here or depth == DEPTH:
        return here
    return [seen for folder in files.folders() for seen in _seen(files.below(folder), data, rest_of, depth + 1)]
