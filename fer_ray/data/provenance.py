"""What the parts of a prepared set were cropped from, and whether that is still what is asked for.

The record of a part (`images/part-NNNNN.json`) holds, for each of its images: name, face box, whether the data set says
that it is cropped, size and time of its file, and the sha256 of the bytes it was decoded from. An image whose name,
size and time are as they were counts as the same one, and its bytes are not read. Otherwise the bytes decide: a file
that was only touched or moved needs no new crop.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import TypeVar

from fer_ray import storage
from fer_ray.data import pixels, prepared_set
from fer_ray.progress import Progress

KEYS: dict[str, type] = {"faces": dict, "images": list, "rejected": dict, "size": int, "sha256": str,
                         "record_sha256": str}
EXAMPLES = 3  # how many files a message names
THREADS = 16  # they wait for storage, or hash without Python's lock

Item = TypeVar("Item")
Result = TypeVar("Result")


def record_uri(uri: str, part: int) -> str:
    """The record of a part."""
    return storage.join(uri, "images", f"part-{part:05d}.json")


def image_entry(image: dict, content: str) -> list:
    """What a record says of an image. `image`: its `image`, `face` and `cropped`; `content`: of `digest`."""
    size, mtime_ns = storage.stat(pixels.file_of(image["image"]))
    return [image["image"], image["face"], image["cropped"], size, mtime_ns, content]


def digest(content: bytes) -> str:
    """Of the bytes that an image is decoded from."""
    return hashlib.sha256(content).hexdigest()


def write_record(uri: str, part: int, record: dict) -> None:
    """Write the record of a part, with a sha256 of itself: without one, a flipped bit would be another image."""
    storage.write_json(record_uri(uri, part), record | {"record_sha256": _checksum(record)})


def _checksum(record: dict) -> str:
    return digest(json.dumps(record, sort_keys=True).encode())


def read_records(uri: str, parts: Iterable[int]) -> dict[int, dict]:
    """The records of these parts, but for those that are missing or damaged."""
    def read(part: int) -> dict | None:
        try:
            record = storage.read_own_json(record_uri(uri, part), KEYS, "")
        except storage.DamagedError:
            return None
        return record if record.pop("record_sha256") == _checksum(record) else None

    parts = list(parts)
    return {part: record for part, record in zip(parts, _side_by_side(read, parts), strict=True) if record}


def recorded_parts(uri: str) -> list[int]:
    """Numbers of the parts that have a record, readable or not."""
    names = storage.list_files(storage.join(uri, "images"))
    return [int(match[1]) for name in names if (match := re.fullmatch(r"part-(\d+)\.json", name))]


def whole_parts(uri: str, records: dict[int, dict]) -> set[int]:
    """Numbers of the parts whose files are as their records say."""
    with Progress("prepare: check", len(records), "parts") as progress:
        def check(part: int) -> bool:
            return prepared_set.verifies(prepared_set.part_uri(uri, part), records[part])

        found = set()
        for part, is_whole in zip(records, _side_by_side(check, records), strict=True):
            progress.advance()
            if is_whole:
                found.add(part)
    return found


def compare(records: dict[int, dict], wanted: list[list[dict]], faces: dict) -> tuple[list[str], set[int]]:
    """Hold what the recorded parts were made from against what is wanted.

    Args:
        records: by part. The entries of images that are the same, but touched or under another name, are brought up to
            date.
        wanted: for each part its images, dicts of `image`, `face` and `cropped`.
        faces: the options, as a dict.

    Returns: what differs, in words, none if nothing does; the parts whose records were brought up to date.
    """
    stat = functools.cache(lambda file: storage.stat(file))  # one table may hold thousands of images
    differing: dict[str, str] = {}
    unsure = []
    for part, record in records.items():
        differing |= {f"faces.{key}": f"was {value!r} and is {faces.get(key)!r}"
                      for key, value in record["faces"].items() if faces.get(key) != value}
        images = wanted[part] if part < len(wanted) else []
        unsure += [(part, place, old, new) for place, (old, new) in enumerate(zip_longest(record["images"], images))
                   if not (old and new and old[:5] == [*new.values(), *stat(pixels.file_of(new["image"]))])]

    recorded = {entry[0]: entry for record in records.values() for entry in record["images"]}
    found = _side_by_side(lambda pair: _updated(pair[2], pair[3], stat), unsure)
    others, stale = [], set()
    for (part, place, old, new), entry in zip(unsure, found, strict=True):
        if entry:
            records[part]["images"][place] = entry
            stale.add(part)
        else:
            others.append((old, new))
    asked = {image["image"] for images in wanted for image in images}
    gone = {old[0] for old, _ in others if old} - asked
    added = {new["image"] for _, new in others if new} - recorded.keys()
    changed = {new["image"] for _, new in others if new and (old := recorded.get(new["image"]))
               and not _updated(old, new, stat)}
    if others and not (gone or added or changed):
        # all that differ are shifted, by a copy of a picture or by other names of data sets
        added = {new["image"] for _, _, _, new in unsure if new} - recorded.keys()
        differing |= {} if added else {"images": "come in another order"}
    words = [f"{key} {how}" for key, how in differing.items()]
    return words + [_listed(how, names) for how, names in
                    (("changed", changed), ("gone", gone), ("new", added)) if names], stale


def _listed(how: str, names: set[str]) -> str:
    some = ", ".join(sorted(names)[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
    return f"{len(names)} image{'s' if len(names) > 1 else ''} {how}: {some}"


def _updated(old: list | None, new: dict | None, stat: Callable[[str], tuple[int, int]]) -> list | None:
    """The entry of a recorded image as it is now, or None if another one is wanted."""
    if not old or not new or old[1:3] != [new["face"], new["cropped"]]:
        return None
    file = pixels.file_of(new["image"])
    now = [*new.values(), *stat(file)]
    if old[:5] == now:
        return old
    if file == new["image"] and old[3] != now[3]:  # a table, though, may have grown around a row that is the same
        return None
    try:
        content = digest(pixels.read(new["image"]))
    except pixels.ImageError:
        content = ""
    return [*now, content] if content == old[5] else None


def _side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
