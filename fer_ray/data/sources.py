"""Sources of the configuration to one manifest: recognise each data set's layout, read it, join them."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from fer_ray import storage
from fer_ray.data import listing, pixels, tables
from fer_ray.data.ledger import Reading
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DRAWN, NOT_THERE, OUTSIDE, DataError, Manifest, build, merge, printable
from fer_ray.data_config import DataConfig, SourceConfig
from fer_ray.values import Kind

# Layouts that only one data set has, and layouts that any data set may have.
PARTICULAR: tuple[Kind, ...] = ("ckplus", "ck48", "ckextended", "jaffe", "fer2013", "rafdb", "affectnet")
GENERAL: tuple[Kind, ...] = ("table", "folder")
TITLES = {"ckplus": "CK+", "jaffe": "JAFFE"}  # of the data sets whose layouts the drawn sample has


def read_manifest(data: DataConfig, split_by: str = "subject") -> Manifest:
    """The manifest of `data.sources` below `data.root`, or of `data.root` itself.

    Raises:
        DataError: a folder is missing or cannot be read, its content is not what the kind promises, or a data set
            cannot be split by `split_by`.
    """
    root = root_of(data)
    sources = [concrete for source in data.sources or [SourceConfig(data.kind, ".")]
               for concrete in _concrete(source, root, data)]
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"data.sources: {', '.join(twice)} stands there twice; give each source a name")
    for source in sources:
        why = getattr(_adapter(source.kind), "NO_SUBJECTS", "")
        if why and split_by == "subject":
            raise DataError(f"{source.files.root}: {why}")
    found = merge([_read(source) for source in sources])
    if not found.rows.num_rows:
        reasons = sorted(set(found.rejected.column("reason").to_pylist()))
        raise DataError(f"{root}: no usable image ({'; '.join(reasons) or 'nothing of this layout'})")
    _check_no_image_twice(found)
    return exclude(found, data.exclude) if data.exclude else found


def root_of(data: DataConfig) -> str:
    """The folder or URI that all sources lie in. Raises: DataError if none is given."""
    return _place_of("data.root", data.root, "give the data set's folder by --data.root")


def _place_of(key: str, place: str, hint: str) -> str:
    """The path or URI at configuration key `key`. Raises: DataError with the hint."""
    if not place or "$" in place:  # a variable that is still there is not set
        raise DataError(f"{key}: {place!r} is not set; {hint}")
    return storage.local_path(place) if place.startswith("file://") else place


def _check_no_image_twice(found: Manifest) -> None:
    """An image of two data sets would count twice, and by image could be in two splits. Raises: DataError."""
    images, datasets = (found.rows.column(name).to_pylist() for name in ("image", "dataset"))
    first_of: dict[str, str] = {}
    for image, dataset in zip(images, datasets, strict=True):
        if first_of.setdefault(image, dataset) != dataset:
            raise DataError(f"data.sources: {image} is in {first_of[image]} and in {dataset}; remove one of these "
                            "sources, or give them folders that do not overlap")


def exclude(found: Manifest, file: str) -> Manifest:
    """`found` with the reason in `excluded` of each image that the CSV `file` names.

    Raises: DataError if the file is no table with the column `image`, or names an image that the data does not have.
    """
    try:
        listed = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.exclude: {file} is not a readable CSV file ({' '.join(str(error).split())})") from None
    if "image" not in listed:
        raise DataError(f"data.exclude: {file} has no column 'image'; its columns are {', '.join(listed.columns)}")
    why = dict(zip(listed["image"], listed["reason"] if "reason" in listed else [""] * len(listed), strict=True))
    images = found.rows.column("image").to_pylist()
    if unknown := sorted(set(why) - set(images) - set(found.rejected.column("image").to_pylist())):
        raise DataError(f"data.exclude: {file} names {len(unknown)} images that are not in the data, such as "
                        f"{unknown[0]!r}; right is the image as index.parquet spells it, such as {images[0]!r}")
    reasons = [f"excluded by {os.path.basename(file)}" + (f": {why[i]}" if why[i] else "") if i in why else None
               for i in images]
    place = found.rows.schema.get_field_index("excluded")
    return Manifest(found.rows.set_column(place, "excluded", pa.array(reasons, pa.string())), found.rejected)


@dataclasses.dataclass
class _Source:
    """A data set of a known layout."""

    kind: Kind
    files: Listing
    data: DataConfig
    name: str = ""  # in reports
    what: str = ""  # was recognised

    @functools.cached_property
    def reading(self) -> Reading:
        """What its layout makes of its files. Raises: DataError."""
        return _adapter(self.kind).read(self.files, self.data)


def recognise(files: Listing, data: DataConfig) -> list[_Source]:
    """Every data set that the files hold, one or several side by side, each with what was seen of it.

    Raises: DataError if one of them cannot be read, or holds what its layout does not know.
    """
    return _at(files, data) or [found for name in files.folders() for found in _at(files.below(name), data)]


def _at(files: Listing, data: DataConfig, general: tuple[Kind, ...] = GENERAL) -> list[_Source]:
    """The data sets whose layouts begin at the root of the files; of the `general` layouts the first one counts.

    What particular layouts leave is looked through again, so that a second data set beside one of them is none the less
    read. A table does not count there: it may be that of the first.
    """
    def seen(kinds: tuple[Kind, ...]) -> list[_Source]:
        return [_Source(kind, files, data, what=what) for kind in kinds
                if (what := _adapter(kind).recognise(files, data))]

    particular = seen(PARTICULAR)
    if not particular:
        return seen(general)[:1]
    left = _left(files, particular)
    if not left.images() or len(left.files) == len(files.files):
        return particular
    return particular + (_at(left, data, ("folder",)) or recognise(left, data))


def _left(files: Listing, sources: list[_Source]) -> Listing:
    """The files that none of the data sets has used, rejected or left out by name."""
    named = {pixels.file_of(row["image"]) for source in sources
             for row in (*source.reading.rows, *source.reading.rejected)}
    named.update(*(source.reading.read for source in sources), *(source.reading.unused for source in sources))
    return dataclasses.replace(files, files=tuple(file for file in files.files if files.uri(file.path) not in named))


def _concrete(source: SourceConfig, root: str, data: DataConfig) -> list[_Source]:
    """The data sets of a source, which may be `auto` or `sample`, with their names; drawn ones say so by name."""
    found = _recognised(source, root, data)
    kinds = [one.kind for one in found]
    for one in found:
        drawn = _is_drawn(one.files)
        kind = TITLES.get(one.kind, one.kind) if drawn else one.kind
        one.name = (source.name or (one.files.name if kinds.count(one.kind) > 1 else kind)) + (DRAWN if drawn else "")
    return found


def _is_drawn(files: Listing) -> bool:
    """Whether the folder, or the one around it, is what `sample.write_sample` drew."""
    return any(listing.is_drawn_sample(place) for place in (files.root, posixpath.dirname(files.root)))


def _recognised(source: SourceConfig, root: str, data: DataConfig) -> list[_Source]:
    """The source itself if it names its layout, else every data set that is found in its folder."""
    folder = listing.joined(root, source.root)
    if source.kind == "sample":
        from fer_ray.data import sample

        sample.write_sample(Path(folder), data.sample.subjects, data.sample.seed)
        files = listing.of(folder)
        return [_Source("ckplus", files.below("CK+"), data), _Source("jaffe", files.below("jaffe"), data)]
    if "://" not in folder and not os.path.isdir(folder):
        raise DataError(f"data.root: {folder} is not a folder; give the folder of the {source.kind} data set")
    files = listing.of(folder)
    if source.kind != "auto":
        return [_Source(source.kind, files, data)]
    found = recognise(files, data)
    if not found:
        known = "; ".join(f"{kind}: {_adapter(kind).LOOKS}" for kind in (*PARTICULAR, *GENERAL))
        raise DataError(f"data.root: {folder} holds no layout that is known ({known}); name it by data.kind"
                        f"{tables.described(files)}")
    for one in found:
        print(printable(f"recognised {one.kind} in {one.files.root}: {one.what}"), flush=True)
    return found


def _read(source: _Source) -> Manifest:
    """The rows of a data set, each with size and time of its file; refused and repeated images are rejected."""
    reading = source.reading
    places = (source.files, *reading.beside)
    listed = {place.uri(file.path): file for place in places for file in place.files}
    kept = reading.rows + reading.rejected
    for row in kept:
        name = pixels.file_of(row["image"])
        file = listed.get(name)
        if why := file.refusal if file else _refusal_of_missing(name, places):
            row["reason"] = why  # before any other reason: the report shows what other reasons left out
        elif file:
            row |= {"file_size": file.size, "file_mtime_ns": file.mtime_ns}
    _reject_repeated(kept)
    return build([r for r in kept if "reason" not in r], [r for r in kept if "reason" in r], source.name,
                 getattr(_adapter(source.kind), "PEOPLE", source.name))


def _refusal_of_missing(name: str, places: Iterable[Listing]) -> str:
    """Why an image that is in no listing cannot be used."""
    for place in places:
        if name.startswith(place.root.rstrip("/") + "/"):
            return place.refusal(name[len(place.root.rstrip("/")) + 1:]) or NOT_THERE
    return NOT_THERE if name.startswith("file://") else OUTSIDE


def _reject_repeated(rows: list[dict]) -> None:
    """Of images that a data set lists several times keep the first row; none if the rows contradict each other."""
    by_image: dict[str, list[dict]] = {}
    for row in rows:
        if "reason" not in row:
            by_image.setdefault(row["image"], []).append(row)
    for found in by_image.values():
        if len(found) > 1:
            reasons = [f"conflicting {title}: {', '.join(sorted(values))}"
                       for title, column in (("labels", "expression"), ("people", "subject"), ("splits", "official"))
                       if len(values := {str(row.get(column)) for row in found}) > 1]
            for row in found if reasons else found[1:]:
                row["reason"] = reasons[0] if reasons else "listed twice"


def _adapter(kind: str):
    return importlib.import_module(f"fer_ray.data.layouts.{kind}")
