"""Copies of predicted photographs with their faces drawn on them, and the page that shows them."""

from __future__ import annotations

import functools
import io
import os
import re
import urllib.parse
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from fer_ray import progress, storage
from fer_ray.data import manifest, pixels
from fer_ray.report import pages
from fer_ray.use import batch, drawing
from fer_ray.use.recognition import Recognition

SIDE = 1600  # px of the longer side of a copy at most
SHOWN = 500  # photographs on the page


def write(job: batch.Job, name: str) -> str:
    """Draw the copies that are not there yet, into `annotated/`, and write `gallery.html`; its URI.

    Raises: storage.DamagedError if the table is not whole; storage.StorageError.
    """
    parts = dict(zip(job.parts(), batch.read_parts(job), strict=True))
    there = set(storage.list_files(storage.join(job.folder, "annotated")))
    copies = {uri: copies_of(table, number * batch.PART_IMAGES)
              for number, (uri, table) in enumerate(parts.items())}
    missing = [uri for uri, files in copies.items() if not set(files.values()) <= there]
    _draw(job, {uri: copies[uri] for uri in missing}, sum(map(len, copies.values())))
    page = storage.join(job.folder, "gallery.html")
    files = {image: file for of_part in copies.values() for image, file in of_part.items()}
    table = pa.concat_tables(parts.values()).to_pandas()
    faces = table[table["face"].notna()]
    shown = [{"image": image, "file": "annotated/" + urllib.parse.quote(files[image]),
              "faces": [f"{face.expression} {face.probabilities[face.expression]:.0%}" for face in one.faces]}
             for image, one in recognitions(parts.values(), SHOWN).items()]
    storage.write_bytes(page, pages.render_gallery({
        "name": name, "checkpoint": job.network.uri, "images": len(job.pictures),
        "calibrated": job.network.temperature is not None, "faces": len(faces),
        "found": faces["expression"].value_counts().to_dict(), "with_faces": faces["image"].nunique(),
        "reasons": table["reason"].value_counts().to_dict(), "shown": shown}).encode())
    return page


def copies_of(table: pa.Table, first: int) -> dict[str, str]:
    """The photographs of a part that have faces, and the file of each one's copy: unique, plain, and in their order.

    `first`: the place of the part's first photograph among all.
    """
    rows = zip(table["image"].to_pylist(), table["face"].to_pylist(), strict=True)
    faces = {image: face is not None for image, face in rows}
    return {image: f"{number:07d}-{_plain(image)}.jpg" for number, (image, has) in enumerate(faces.items(), first)
            if has}


def _plain(image: str) -> str:
    stem = os.path.splitext(image.rsplit("/", 1)[-1])[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem)[:80]


def recognitions(tables: Iterable[pa.Table], most: int) -> dict[str, Recognition]:
    """The first photographs with faces of these parts, at most so many, by their names."""
    found: dict[str, Recognition] = {}
    for table in tables:
        rows: dict[str, list[dict]] = {}
        for row in table.to_pylist():
            if row["face"] is not None:
                rows.setdefault(row["image"], []).append(row)
        for image, of_image in rows.items():
            if len(found) == most:
                return found
            found[image] = Recognition.from_rows(of_image)
    return found


def _draw(job: batch.Job, copies: dict[str, dict[str, str]], total: int) -> None:
    """Draw all copies of these parts, of `total` copies in all."""
    import ray.data

    number = sum(map(len, copies.values()))
    if not number:
        return
    items = [{"part": part, "images": list(files), "files": list(files.values())} for part, files in copies.items()]
    draw: Any = functools.partial(draw_part, folder=storage.join(job.folder, "annotated"))  # Ray's types want a class
    drawn = ray.data.from_items(items, override_num_blocks=len(items)).map(
        draw, num_cpus=batch.CPUS_PER_TASK)
    with progress.Progress("annotate", total, done=total - number) as shown:
        for done in drawn.iter_rows():
            shown.advance(done["drawn"])


def draw_part(item: dict, folder: str) -> dict:
    """Draw the copies of a part's photographs; their number. `item`: `part` (URI), `images`, `files`."""
    with io.BytesIO(storage.read_bytes(item["part"])) as content:
        found = recognitions([manifest.read_parquet(content)], len(item["images"]))
    for image, file in zip(item["images"], item["files"], strict=True):
        try:
            picture = pixels.load(image)
        except pixels.ImageError as error:
            raise storage.StorageError(f"{image}: cannot be read any more ({error})") from None
        copy, sink = drawing.annotate(picture, dict(enumerate(found[image].faces))), io.BytesIO()
        copy.thumbnail((SIDE, SIDE))
        copy.save(sink, "JPEG", quality=88)
        storage.write_bytes(storage.join(folder, file), sink.getvalue())
    return {"drawn": len(item["files"])}
