"""Sources of the configuration to one manifest: recognise each data set's layout, read it, join them."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from fer_ray import storage
from fer_ray.data import ledger, listing, pixels, recognition, tables
from fer_ray.data.listing import Listing
from fer_ray.data.manifest import DRAWN, NOT_THERE, OUTSIDE, DataError, Manifest, build, merge
from fer_ray.data.recognition import Found
from fer_ray.data_config import DataConfig, SourceConfig

TITLES = {"ckplus": "CK+", "jaffe": "JAFFE"}  # of the data sets whose layouts the drawn sample has


def read_manifest(data: DataConfig, split_by: str = "subject") -> Manifest:
    """The manifest of `data.sources` below `data.root`, or of `data.root` itself.

    Raises:
        DataError: a folder is missing or cannot be read, its content is not what the kind promises, or a data set
            cannot be split by `split_by`.
    """
    root = root_of(data)
    listings, sources = [], []
    for source in data.sources or [SourceConfig(data.kind, ".")]:
        files, found = _sources(source, root, data, split_by)
        listings.append(files)
        sources += found
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"data.sources: {', '.join(twice)} stands there twice; give each source a name")
    for source in sources:
        _complete(source)
    accounted = _account(listings, sources, data)
    found = dataclasses.replace(merge([_manifest(source) for source in sources]), ledger=accounted)
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
        folder, name = listing.of_file(file)
        asked = ["image", "reason"] if tables.has_columns(folder, name, "reason") else ["image"]
        column = tables.spelled(tables.header(folder, name), asked, file)
        why = {row[column["image"]]: row.get(column.get("reason", ""), "") for _, _, row in tables.rows(folder, name)}
    except (DataError, storage.StorageError) as error:
        raise DataError(f"data.exclude: {error}") from None
    images = found.rows.column("image").to_pylist()
    if unknown := sorted(set(why) - set(images) - set(found.rejected.column("image").to_pylist())):
        raise DataError(f"data.exclude: {file} names {len(unknown)} images that are not in the data, such as "
                        f"{unknown[0]!r}; right is the image as index.parquet spells it, such as {images[0]!r}")
    reasons = [f"excluded by {os.path.basename(file)}" + (f": {why[i]}" if why[i] else "") if i in why else None
               for i in images]
    place = found.rows.schema.get_field_index("excluded")
    rows = found.rows.set_column(place, "excluded", pa.array(reasons, pa.string()))
    return dataclasses.replace(found, rows=rows)


def _sources(source: SourceConfig, root: str, data: DataConfig, split_by: str) -> tuple[Listing, list[Found]]:
    """All files of a source, and its data sets: itself if it names its layout, else what is found there."""
    folder = listing.joined(root, source.root)
    if source.kind == "sample":
        from fer_ray.data import sample

        if "://" in folder:
            raise DataError(f"data.root: {folder}: the sample is drawn into a folder of this machine")
        sample.write_sample(Path(folder), data.sample.subjects, data.sample.seed)
    elif "://" not in folder and not os.path.isdir(folder):
        raise DataError(f"data.root: {folder} is not a folder; give the folder of the {source.kind} data set")
    files = listing.of(folder)
    if source.kind == "sample":
        found = [recognition.read("ckplus", files.below("CK+"), data, split_by),
                 recognition.read("jaffe", files.below("jaffe"), data, split_by)]
    elif source.kind == "auto":
        found = recognition.find(files, data, split_by)
    else:
        found = [recognition.read(source.kind, files, data, split_by)]
    names = [f"{source.name}-{one.name or one.kind}" if source.name and len(found) > 1 else source.name
             for one in found]
    return files, [_named(one, name) for one, name in zip(found, names, strict=True)]


def _named(found: Found, name: str) -> Found:
    """With its name in reports, which says so if the faces are drawn."""
    name = name or found.name
    if any(listing.is_drawn_sample(place) for place in (found.files.root, posixpath.dirname(found.files.root))):
        return dataclasses.replace(found, name=f"{name or TITLES.get(found.kind, found.kind)}{DRAWN}")
    return dataclasses.replace(found, name=name or found.kind)


def _complete(source: Found) -> None:
    """Give each row the size and time of its file; reject refused and repeated images."""
    places = (source.files, *source.reading.beside)
    listed = {place.uri(file.path): file for place in places for file in place.files}
    rows = source.reading.rows + source.reading.rejected
    for row in rows:
        name = pixels.file_of(row["image"])
        file = listed.get(name)
        if why := file.refusal if file else _refusal_of_missing(name, places):
            row["reason"] = why  # before any other reason: the report shows what other reasons left out
        elif file:
            row |= {"file_size": file.size, "file_mtime_ns": file.mtime_ns}
    _reject_repeated(rows)


def _manifest(source: Found) -> Manifest:
    rows = source.reading.rows + source.reading.rejected
    return build([row for row in rows if "reason" not in row], [row for row in rows if "reason" in row], source.name,
                 getattr(recognition.adapter(source.kind), "PEOPLE", source.name))


def _account(listings: list[Listing], sources: list[Found], data: DataConfig) -> dict:
    """The ledger of all files. Links that lead elsewhere and were not claimed are rejected on the way.

    Raises: DataError for pictures that belong to no data set, unless `data.unclaimed` is report.
    """
    readings = [source.reading for source in sources]
    for files in listings:
        rest = ledger.unclaimed(files, readings)
        refused = [file for file in rest.files if file.refusal and (
            listing.is_image(file.path) or not posixpath.splitext(file.name)[1])]
        sources[0].reading.rejected.extend({"image": files.uri(file.path), "reason": file.refusal} for file in refused)
        if data.unclaimed == "error":
            ledger.check_pictures(rest.only(file for file in rest.files if not file.refusal), data.names)
    beside = [place for reading in readings for place in reading.beside]
    return ledger.balance([*listings, *beside], readings)


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
