"""What the parts of a prepared set were cropped from, and which crops can stay.

A crop is known by its key: the sha256 of the bytes that the image is decoded from, and what the data set says of the
face in it. So an image that was touched, renamed, moved or given another label needs no new crop. `contents.parquet`
keeps the sha256 of each image with the size and time of its file: while those are as they were, nothing is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fer_ray import storage
from fer_ray.data import manifest, pixels, prepared_set
from fer_ray.data.prepared_set import KEY, PART_SCHEMA, THREADS
from fer_ray.progress import Progress

# Columns of `contents.parquet`. Size and time say whether a file is still the one whose sha256 `content` is.
FILE_KEY = ["image", *manifest.FILE_COLUMNS]
CONTENTS = pa.schema([("image", pa.string()), *((name, pa.int64()) for name in manifest.FILE_COLUMNS),
                      ("content", pa.string())])

Item = TypeVar("Item")
Result = TypeVar("Result")


def num_parts(rows: int) -> int:
    """How many parts a set of so many images is dealt to.

    About the root, so that a set has neither many files nor large ones (4,500: 64, a million: 1,024). A power of two,
    so that few sets that grow are dealt anew.
    """
    return 2 ** round(math.log2(max(1, rows)) / 2)


def deal(rows: pa.Table) -> pd.DataFrame:
    """Deal images to parts.

    Which part, and where in it, follows from a hash of the image's path below the folder of its data set. So each part
    is a fair sample, a data set may move, and one image more changes one part.

    Args:
        rows: of the manifest.

    Returns: a row an image, ordered by part and position: `FILE_KEY`, `face` (list of int or None), `cropped` (bool),
        `row` (its number in the manifest), `number` (of its part) and `part_row`.
    """
    wanted = rows.select(["image", "dataset", "cropped"]).to_pandas()
    for column in manifest.FILE_COLUMNS:
        wanted[column] = pc.fill_null(rows[column], -1).to_numpy()
    wanted["face"] = pd.Series(rows["face"].to_pylist(), dtype=object)
    wanted["cropped"] = wanted["cropped"].fillna(False).astype(bool)
    hashed = np.zeros(len(wanted), np.uint64)
    for _, images in wanted.groupby("dataset")["image"]:
        folder = os.path.commonprefix([images.min(), images.max()]).rpartition("/")[0]
        hashed[images.index] = [_hash(image[len(folder):]) for image in images]
    bits = num_parts(len(wanted)).bit_length() - 1
    number = (hashed >> np.uint64(63 - bits)) >> np.uint64(1)  # in two steps: a shift by all 64 bits is undefined
    wanted = wanted.assign(row=np.arange(len(wanted)), number=number.astype(int), hashed=hashed)
    wanted = wanted.sort_values(["hashed", "image"], ignore_index=True)
    wanted["part_row"] = wanted.groupby("number").cumcount()
    return wanted.drop(columns=["dataset", "hashed"])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest())


def content_of(image: str) -> str:
    """The sha256 of the bytes that an image is decoded from, or the reason why they cannot be read.

    Raises: storage.StorageError.
    """
    try:
        return digest(pixels.read(image))
    except pixels.ImageError as error:
        return str(error)


def digest(content: bytes) -> str:
    """Of the bytes that an image is decoded from."""
    return hashlib.sha256(content).hexdigest()


def keys(images: pa.Table) -> pd.Series:
    """What the crops of images are known by, str [N]; None where the content is not known.

    `images` has the columns `content`, `face` and `cropped` of `prepared_set.KEY`.
    """
    boxes = pc.call_function("binary_join", [images["face"].cast(pa.list_(pa.string())), ","])
    cropped = pc.fill_null(images["cropped"], False).cast(pa.string())
    return pc.call_function("binary_join_element_wise",
                            [images["content"], pc.fill_null(boxes, "none"), cropped, " "]).to_pandas()


class Stored:
    """The whole parts that lie in a prepared set, complete or not."""

    def __init__(self, uri: str):
        """Read their keys. Parts that are damaged or of another format are left out."""
        self.names = [match[0].removesuffix(".parquet") for name in storage.list_files(storage.join(uri, "images"))
                      if (match := re.fullmatch(r"part-\d{5}-[0-9a-f]{16}\.parquet", name))]
        """Of all parts, the damaged ones too."""
        self.images = pd.DataFrame({"part": "", "part_row": 0, "number": 0, "key": ""}, index=[])
        """Of the whole parts, a row an image: its part, where in it its crop lies, the part's number, and `keys`."""
        self.made_with: list[dict] = []
        """The different `metadata` of these parts."""
        found = []
        with Progress("prepare: check", len(self.names), "parts") as progress:
            tables = side_by_side(lambda name: _read_keys(uri, name), self.names)
            for name, table in zip(self.names, tables, strict=True):
                progress.advance()
                if table is None:
                    continue
                found.append(pd.DataFrame({"part": name, "part_row": np.arange(len(table)),
                                           "number": prepared_set.number_of(name), "key": keys(table)}))
                if (made_with := json.loads(table.schema.metadata[b"fer_ray"])) not in self.made_with:
                    self.made_with.append(made_with)
        if found:
            self.images = pd.concat(found, ignore_index=True)


def _read_keys(uri: str, name: str) -> pa.Table | None:
    """The key of each image of a part; None if the part is not whole. What S3 holds is what it was given: S3 checks."""
    file = prepared_set.part_uri(uri, name)
    source: str | io.BytesIO
    if file.startswith("s3://"):
        filesystem, source = storage.resolve(file)
    else:
        content = storage.read_bytes(file)
        if not prepared_set.is_whole(name, content):
            return None
        filesystem, source = None, io.BytesIO(content)
    table = manifest.read_parquet(source, ["content", "face", "cropped"], filesystem)
    return table if b"fer_ray" in (table.schema.metadata or {}) else None


def schema(made_with: dict) -> pa.Schema:
    """Of the parts, with what their crops were made with."""
    return PART_SCHEMA.with_metadata({"fer_ray": json.dumps(made_with, sort_keys=True)})


def read_contents(uri: str) -> pa.Table | None:
    """`contents.parquet`: `CONTENTS` of every image that the set was last made of; None if that is not known."""
    try:
        return _as_contents(prepared_set.read_table(uri, "contents"))
    except (manifest.DataError, storage.DamagedError):
        return None


def contents_of(wanted: pd.DataFrame) -> pa.Table:
    """`contents.parquet` of images of `deal` that have a known `content`."""
    return _as_contents(wanted.sort_values("row"))


def _as_contents(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows, CONTENTS, preserve_index=False).replace_schema_metadata()


def recall(wanted: pd.DataFrame, contents: pa.Table | None, stored: Stored) -> tuple[pd.DataFrame, np.ndarray]:
    """Add the `content` of the images whose files are as they were.

    Args:
        wanted: of `deal`.
        contents: of `read_contents`.
        stored: the parts that are there.

    Returns: `wanted` with `content`, None where it is unknown; bool [N], which of those have to be read to know
        whether their crops are there. After an interrupted first run these are images of the parts that it has written.
    """
    if contents is None:
        return wanted.assign(content=None), wanted["number"].isin(stored.images["number"]).to_numpy()
    wanted = wanted.merge(contents.to_pandas(), how="left", on=FILE_KEY)
    unknown = (wanted["content"].isna() | (wanted["file_size"] < 0)).to_numpy()
    known = wanted["content"].astype(object).where(~unknown, None)
    return wanted.assign(content=known), unknown & bool(len(stored.images))


def plan(wanted: pd.DataFrame, stored: Stored) -> tuple[dict[int, str], list[dict]]:
    """Which parts are there as they are wanted, and of what the others are to be made.

    Args:
        wanted: of `recall`.
        stored: the parts that are there.

    Returns: names of the parts that stay, by number; for each other one its number `part` and its `images`: dicts of
        `image`, `face`, `cropped`, and of `kept_in` and `part_row`, where its crop lies now, "" and -1 if nowhere.
    """
    schema = pa.schema(KEY)
    wanted = wanted.assign(key=keys(pa.Table.from_pandas(wanted[schema.names], schema, preserve_index=False)))
    stay = _parts_that_stay(wanted, stored.images)
    left = wanted[~wanted["number"].isin(list(stay))]
    places = stored.images.drop_duplicates("key", keep="last").set_index("key")
    place = places.index.get_indexer(left["key"])  # -1: nowhere
    left = left.assign(kept_in=np.append(places["part"].to_numpy(object), "")[place],
                       part_row=np.append(places["part_row"].to_numpy(), -1)[place])
    columns = ["image", "face", "cropped", "kept_in", "part_row"]
    return stay, [{"part": int(number), "images": images[columns].to_dict("records")}
                  for number, images in left.groupby("number")]


def _parts_that_stay(wanted: pd.DataFrame, there: pd.DataFrame) -> dict[int, str]:
    """Names, by number, of the parts that hold just the images that are wanted, in their order.

    Args:
        wanted: with `number`, `part_row` and `key`.
        there: `Stored.images`.
    """
    same = there.merge(wanted, on=["number", "part_row", "key"])["part"].value_counts()
    parts = there.groupby("part", sort=False)["number"].agg(["first", "size"])
    is_whole = (parts["size"] == same.reindex(parts.index)) & (
        parts["size"].to_numpy() == wanted["number"].value_counts().reindex(parts["first"]).to_numpy())
    return {int(number): str(name) for name, number in parts.loc[is_whole, "first"][::-1].items()}


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """As `map`, by threads."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
