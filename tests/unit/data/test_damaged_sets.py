"""Damage to a prepared set, and storage that fails: seen, told in one line, and mended by preparing again."""


import dataclasses
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preparing import content, new_image, prepared, set_with_split

from fer_ray import storage
from fer_ray.data import crops, manifest, prepare, prepared_set, provenance
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import FacesConfig, SplitConfig

# --- damage is seen and mended -----------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def file_of(folder: Path, name: str) -> Path:
    return sorted(folder.glob("images/part-00001-*"))[0] if name == "part" else folder / name


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
@pytest.mark.parametrize("name", ["part", "index.parquet", "rejected.parquet", "leaks.parquet", "conflicts.parquet",
                                  "contents.parquet"])
def test_prepare_makes_again_exactly_what_is_damaged(copied, cropped, name, damage):
    folder = Path(prepared_set.uri_of(copied))
    before = content(folder)
    damage(file_of(folder, name))
    prepared(copied)
    rows = provenance.deal(read_manifest(copied.data, copied.split.by).rows)
    of_part = [Path(image).name for image in rows["image"][rows["number"] == 1]] if name == "part" else []
    assert cropped == of_part and content(folder) == before


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_damaged_summary_is_made_again(copied, cropped, damage):
    folder = Path(prepared_set.uri_of(copied))
    before = content(folder)
    damage(folder / "prepared.json")
    prepared(copied)
    assert cropped == [] and content(folder) == before


READERS = {
    "index.parquet": prepared_set.read_index,
    "leaks.parquet": lambda uri: prepared_set.read_table(uri, "leaks"),
    "conflicts.parquet": lambda uri: prepared_set.read_table(uri, "conflicts"),
    "rejected.parquet": lambda uri: prepared_set.read_table(uri, "rejected"),
    "part": lambda uri: prepared_set.read_crops(uri, prepared_set.read_index(uri)),
    "prepared.json": prepared_set.read_summary,
}


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
@pytest.mark.parametrize("name", READERS)
def test_readers_name_the_file_and_the_command(copied, name, damage):
    folder = Path(prepared_set.uri_of(copied))
    if name == "prepared.json" and damage is flip:
        damage = cut
    damage(file_of(folder, name))
    with pytest.raises((storage.DamagedError, manifest.DataError), match=f"{name}.*run jobs/prepare.py"):
        READERS[name](str(folder))


def test_a_damaged_split_beside_the_first_is_made_again(copied):
    folder = set_with_split(copied)
    other, = (folder / "splits").iterdir()
    before = content(folder)
    for name in ("index.parquet", "prepared.json"):
        cut(other / name)
        with pytest.raises(storage.DamagedError, match=f"splits/.*/{name}.*run jobs/crossval.py"):
            prepared_set.read_index(str(other))
        prepare.resplit(str(folder), SplitConfig(by="image", seed=3))
        assert content(folder) == before


@given(st.data())
def test_whatever_bit_of_a_part_flips_no_reader_fails_otherwise(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("set")
    picture = folder / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)).save(picture)
    images = [new_image(picture, cropped=True)]
    name, = crops.crop_parts({"part": [0], "images": [images]}, str(folder), FacesConfig())["name"]
    part = folder / f"images/{name}.parquet"
    whole = bytearray(part.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    part.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    for read in (lambda: prepared_set.read_crops_of_part(str(folder), name, np.array([0])),
                 lambda: prepared_set.read_metadata(str(folder), [name])):
        try:
            read()
        except (storage.DamagedError, manifest.DataError) as error:
            assert f"{name}.parquet" in str(error) and "jobs/prepare.py" in str(error)


# --- storage that fails --------------------------------------------------------------------------------------


def test_parts_of_killed_writers_are_swept(copied):
    folder = Path(prepared_set.uri_of(copied))
    for left in (folder / f"index.parquet.{'0' * 32}.part", folder / f"images/part-00001.parquet.{'a' * 32}.part"):
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
    prepared(copied)
    assert not list(folder.rglob("*.part"))


def test_a_storage_that_takes_no_files_is_one_line(config):
    """The kernel's own folder lets nobody make files, not even root."""
    with pytest.raises(storage.StorageError, match=r"^/sys/fer_ray/.*/part-00000-\w+.parquet: \w[^\n]*$"):
        prepared(dataclasses.replace(config, storage="/sys/fer_ray"))


def test_a_disk_that_is_full_is_one_line_and_leaves_no_part(config):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(storage.StorageError, match=r"part-00000-\w+.parquet: File too large$"):
            prepared(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(Path(config.storage).rglob("*.part"))
    prepared(config)


def test_a_storage_that_is_a_file_is_one_line(config):
    Path(config.storage).write_bytes(b"")
    with pytest.raises(storage.StorageError, match=f"{config.storage}.*: Not a directory"):
        prepared(config)
