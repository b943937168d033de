"""Sources of the configuration to one manifest: recognise each data set's layout, read it, join them."""

from __future__ import annotations

import dataclasses
import importlib
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from fer_ray import storage
from fer_ray.data import listing, pixels
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
    found = merge([_read(source, data) for source in sources])
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


def recognise(files: Listing, data: DataConfig) -> list[tuple[Kind, str]]:
    """Every layout that the files have, as (kind, what was seen).

    A folder of classes or a table counts only where no layout of a particular data set is.
    """
    seen = [(kind, what) for kind in PARTICULAR if (what := _adapter(kind).recognise(files, data))]
    if not seen:
        seen = [(kind, what) for kind in GENERAL if (what := _adapter(kind).recognise(files, data))][:1]
    return seen


@dataclasses.dataclass(frozen=True)
class _Source:
    """A data set of a known layout, by its name in reports."""

    kind: Kind
    name: str
    files: Listing


def _concrete(source: SourceConfig, root: str, data: DataConfig) -> list[_Source]:
    """The data sets of a source, which may be `auto` or `sample`; drawn ones say so by name."""
    found = [(kind, files, name or TITLES.get(kind, kind) if _is_drawn(files) else name or kind)
             for kind, files, name in _recognised(source, root, data)]
    return [_Source(kind, f"{name}{DRAWN}" if _is_drawn(files) else name, files) for kind, files, name in found]


def _is_drawn(files: Listing) -> bool:
    """Whether the folder, or the one around it, is what `sample.write_sample` drew."""
    return any(listing.is_drawn_sample(place) for place in (files.root, posixpath.dirname(files.root)))


def _recognised(source: SourceConfig, root: str, data: DataConfig) -> list[tuple[Kind, Listing, str]]:
    """Kind, files and given name of each data set: the source itself if it names its layout, else what is found."""
    folder = listing.joined(root, source.root)
    if source.kind == "sample":
        from fer_ray.data import sample

        sample.write_sample(Path(folder), data.sample.subjects, data.sample.seed)
        files = listing.of(folder)
        return [("ckplus", files.below("CK+"), ""), ("jaffe", files.below("jaffe"), "")]
    if "://" not in folder and not os.path.isdir(folder):
        raise DataError(f"data.root: {folder} is not a folder; give the folder of the {source.kind} data set")
    files = listing.of(folder)
    if source.kind != "auto":
        return [(source.kind, files, source.name)]
    seen = [(files, kind, what) for kind, what in recognise(files, data)]
    if not seen:  # several data sets side by side
        seen = [(inner, kind, what) for inner in map(files.below, files.folders())
                for kind, what in recognise(inner, data)]
    if not seen:
        known = "; ".join(f"{kind}: {_adapter(kind).LOOKS}" for kind in (*PARTICULAR, *GENERAL))
        raise DataError(f"data.root: {folder} holds no layout that is known ({known}); name it by data.kind")
    for place, kind, what in seen:
        print(printable(f"recognised {kind} in {place.root}: {what}"), flush=True)
    kinds = [kind for _, kind, _ in seen]
    return [(kind, place, source.name or (place.name if kinds.count(kind) > 1 else "")) for place, kind, _ in seen]


def _read(source: _Source, data: DataConfig) -> Manifest:
    """The rows of a data set, each with size and time of its file; refused and repeated images are rejected."""
    adapter = _adapter(source.kind)
    reading = adapter.read(source.files, data)
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
                 getattr(adapter, "PEOPLE", source.name))


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
