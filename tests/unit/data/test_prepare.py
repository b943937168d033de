"""What `prepare` keeps, refuses and makes again. Crops are made in this process; tests/cluster has them made by Ray."""

import dataclasses
import io
import os
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fer_ray import storage
from fer_ray.config import Config
from fer_ray.data import manifest, prepare, prepared_set, provenance
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import DataConfig, FacesConfig, FolderConfig, SplitConfig


@pytest.fixture(autouse=True)
def cropped(monkeypatch):
    """Numbers of the parts that were cropped, in place of Ray's workers by this process."""
    parts = []

    def crop(missing, uri, config):
        for part in missing:
            parts.append(part["part"])
            prepare.crop_parts({"part": [part["part"]], "images": [part["images"]]}, uri, config)
            yield len(part["images"])

    monkeypatch.setattr(prepare, "_crop_on_workers", crop)
    return parts


@pytest.fixture
def config(tmp_path, monkeypatch):
    """30 small pictures of 15 people in three parts."""
    monkeypatch.setattr(prepare, "PART_ROWS", 12)
    for number in range(30):
        file = tmp_path / "data" / ("happy" if number % 2 else "sad") / f"p{number % 15:02}_{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)).save(file)
    return Config(name="set", storage=str(tmp_path / "out"), faces=FacesConfig(already_cropped=True), data=DataConfig(
        "folder", str(tmp_path / "data"), folder=FolderConfig(subject_pattern=r"(p\d\d)_")))


def prepared(config: Config) -> Path:
    return Path(prepare.prepare(config, read_manifest(config.data, config.split.by)))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pictures_of(config: Config) -> list[Path]:
    return sorted(Path(config.data.root).rglob("*.png"))


def set_with_split(config: Config) -> Path:
    """A prepared set and another split of it."""
    folder = prepared(config)
    prepare.resplit(str(folder), SplitConfig(by="image", seed=3))
    return folder


# --- nothing is deleted without being asked ----------------------------------------------------------------


def test_a_touched_file_costs_no_crop_and_no_split(config, cropped):
    folder = set_with_split(config)
    before = content(folder)
    for file in pictures_of(config)[:15]:
        os.utime(file)
    cropped.clear()
    assert prepared(config) == folder and cropped == []
    after = content(folder)
    records = {name for name in before if before[name] != after[name]}
    assert after.keys() == before.keys() and records == {"images/part-00000.json", "images/part-00001.json"}
    prepared(config)  # and now the new times are known
    assert content(folder) == after


def test_a_moved_root_costs_no_crop(config, cropped):
    folder = set_with_split(config)
    before = content(folder)
    moved = config.data.root + "-elsewhere"
    shutil.move(config.data.root, moved)
    cropped.clear()
    prepared(dataclasses.replace(config, data=dataclasses.replace(config.data, root=moved)))
    assert cropped == []
    after = content(folder)
    assert all(before[name] == after[name] for name in before if "part-" in name and name.endswith(".parquet"))
    assert pq.read_table(folder / "index.parquet")["image"][0].as_py().startswith(moved)


def change(file: Path) -> None:
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(file)


def swap(files: list[Path]) -> None:
    one, other = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(other), files[1].write_bytes(one)


@pytest.mark.parametrize(("act", "said"), [
    (lambda files: change(files[7]), "1 image changed: .*/happy/p.*png"),
    (lambda files: [change(f) for f in files[:5]], r"5 images changed: .*p\d+_\d+.png, .*, .*, \.\.\."),
    (lambda files: files[20].unlink(), "1 image gone: .*png"),
    (lambda files: shutil.copy(files[0], files[0].parent / "p00_0000.png"), "1 image new: .*/p00_0000.png"),
    (lambda files: files[3].rename(files[3].with_name("p99_999.png")),
     "1 image gone: .*png; 1 image new: .*/p99_999.png"),
    (swap, "2 images changed"),
], ids=["changed", "five changed", "gone", "new", "renamed", "swapped"])
def test_other_images_are_refused_by_name_and_nothing_is_touched(config, cropped, act, said):
    folder = set_with_split(config)
    before = content(folder)
    act(pictures_of(config))
    cropped.clear()
    with pytest.raises(manifest.DataError, match=f"prepared/set: holds .*{said}.*--replace"):
        prepared(config)
    assert content(folder) == before and cropped == []
    prepared(dataclasses.replace(config, replace=True))
    assert cropped == [0, 1, 2] and not (folder / "splits").exists()
    cropped.clear()
    prepared(dataclasses.replace(config, replace=True))  # which deletes nothing that is right
    assert cropped == []


def test_other_options_are_refused_by_their_keys(config, cropped):
    folder = set_with_split(config)
    before = content(folder)
    other = dataclasses.replace(config, faces=dataclasses.replace(config.faces, enlarge=0.4, min_neighbors=3))
    with pytest.raises(manifest.DataError, match="enlarge was 0.2 and is 0.4; faces.min_neighbors was 5 and is 3"):
        prepared(other)
    assert content(folder) == before
    prepared(dataclasses.replace(other, prepared="beside"))
    assert content(folder) == before


def test_another_split_or_label_needs_no_crop(config, cropped):
    folder = prepared(config)
    before = content(folder)
    cropped.clear()
    prepared(dataclasses.replace(config, split=SplitConfig(seed=4)))
    after = content(folder)
    assert cropped == [] and before["index.parquet"] != after["index.parquet"]
    with pytest.raises(manifest.DataError):  # a split that cannot be leaves the one that is there
        prepared(dataclasses.replace(config, split=SplitConfig(folds=40)))
    assert content(folder) == after


def test_a_set_of_an_older_version_is_refused_and_left(config, cropped):
    folder = prepared(config)
    summary = storage.read_json(str(folder / "prepared.json"))
    storage.write_json(str(folder / "prepared.json"), summary | {"schema_version": 4})
    before = content(folder)
    with pytest.raises(manifest.DataError, match="another version.*--replace"):
        prepared(config)
    with pytest.raises(manifest.DataError, match="format 4, this one reads 5.*--replace"):
        prepared_set.read_index(str(folder))
    assert content(folder) == before
    (folder / "prepared.json").rename(folder / "crops.json")  # an interrupted one
    with pytest.raises(manifest.DataError, match="another version.*--replace"):
        prepared(config)
    prepared(dataclasses.replace(config, replace=True))
    assert len(prepared_set.read_index(str(folder))) == 30 and not (folder / "crops.json").exists()


def test_an_interrupted_prepare_goes_on_although_later_files_have_changed(config, cropped, monkeypatch):
    crop_parts = prepare.crop_parts

    def dies(batch, uri, config):
        if batch["part"] == [2]:
            raise KeyboardInterrupt
        return crop_parts(batch, uri, config)

    monkeypatch.setattr(prepare, "crop_parts", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(config)
    monkeypatch.setattr(prepare, "crop_parts", crop_parts)
    change(pictures_of(config)[29])
    cropped.clear()
    prepared(config)
    assert cropped == [2]


# --- damage is seen and mended -----------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


PART = "images/part-00001.parquet"


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
@pytest.mark.parametrize(("name", "again"), [(PART, [1]), ("images/part-00001.json", [1]), *(
    (name, []) for name in ("index.parquet", "rejected.parquet", "leaks.parquet", "conflicts.parquet"))])
def test_prepare_makes_again_exactly_what_is_damaged(config, cropped, name, again, damage):
    folder = prepared(config)
    before = content(folder)
    damage(folder / name)
    cropped.clear()
    prepared(config)
    assert cropped == again and content(folder) == before


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_damaged_summary_is_made_again(config, cropped, damage):
    folder = prepared(config)
    before = content(folder)
    damage(folder / "prepared.json")
    cropped.clear()
    prepared(config)
    assert cropped == [] and content(folder) == before


READERS = {
    "index.parquet": prepared_set.read_index,
    "leaks.parquet": lambda uri: prepared_set.read_table(uri, "leaks"),
    "conflicts.parquet": lambda uri: prepared_set.read_table(uri, "conflicts"),
    "rejected.parquet": lambda uri: prepared_set.read_table(uri, "rejected"),
    PART: lambda uri: prepared_set.read_crops(uri, prepared_set.read_index(uri)),
    "prepared.json": prepared_set.read_summary,
}


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip])
@pytest.mark.parametrize("name", READERS)
def test_readers_name_the_file_and_the_command(config, name, damage):
    folder = prepared(config)
    if name == "prepared.json" and damage is flip:
        damage = cut
    damage(folder / name)
    with pytest.raises((storage.DamagedError, manifest.DataError), match=f"{name}.*run jobs/prepare.py"):
        READERS[name](str(folder))


def test_a_damaged_split_beside_the_first_is_made_again(config):
    folder = set_with_split(config)
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
    prepare.crop_parts({"part": [0], "images": [[{"image": str(picture), "face": None, "cropped": True}]]},
                       str(folder), FacesConfig())
    part = folder / "images/part-00000.parquet"
    whole = bytearray(part.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    part.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    for read in (lambda: prepared_set.read_crops_of_part(str(folder), 0, np.array([0])),
                 lambda: prepared_set.read_metadata(str(folder), 1)):
        try:
            read()
        except (storage.DamagedError, manifest.DataError) as error:
            assert "part-00000.parquet" in str(error) and "jobs/prepare.py" in str(error)


# --- storage that fails --------------------------------------------------------------------------------------


def test_parts_of_killed_writers_are_swept(config):
    folder = prepared(config)
    for left in (folder / f"index.parquet.{'0' * 32}.part", folder / f"{PART}.{'a' * 32}.part"):
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
    prepared(config)
    assert not list(folder.rglob("*.part"))


def test_a_storage_that_takes_no_files_is_one_line(config):
    """The kernel's own folder lets nobody make files, not even root."""
    with pytest.raises(storage.StorageError, match=r"^/sys/fer_ray/prepared/set/images/part-00000.parquet: \w[^\n]*$"):
        prepared(dataclasses.replace(config, storage="/sys/fer_ray"))


def test_a_disk_that_is_full_is_one_line_and_leaves_no_part(config):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(storage.StorageError, match=r"part-00000.parquet: File too large$"):
            prepared(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(Path(config.storage).rglob("*.part"))
    prepared(config)


def test_a_storage_that_is_a_file_is_one_line(config):
    Path(config.storage).write_bytes(b"")
    with pytest.raises(storage.StorageError, match=f"{config.storage}.*: Not a directory"):
        prepared(config)


# --- one picture never stops the job -------------------------------------------------------------------------


def jpeg_whose_orientation_has_a_wrong_type() -> bytes:
    """A JPEG that any viewer shows; its EXIF says that Orientation, a SHORT by the standard, is text."""
    tag = struct.pack("<HHI4s", 0x0112, 2, 4, b"six\0")  # Orientation, ASCII
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + tag + struct.pack("<I", 0)
    sink = memoryview(encoded_jpeg()).tobytes()
    return sink[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + sink[2:]


def encoded_jpeg() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def crop(path: Path, face=None, cropped=True, **options):
    return prepare.crop_images([{"image": str(path), "face": face, "cropped": cropped}], 0, FacesConfig(**options))[:2]


def test_exif_of_a_wrong_type_hides_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_whose_orientation_has_a_wrong_type())
    rows, reasons = crop(tmp_path / "a.jpg")
    assert len(rows) == 1 and not reasons


@given(st.data())
def test_whatever_a_decoder_raises_is_the_reason_of_that_picture(tmp_path_factory, data):
    whole = bytearray(jpeg_whose_orientation_has_a_wrong_type())
    for _ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("pictures") / "a.jpg"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    rows, reasons = crop(path)
    assert len(rows) + len(reasons) == 1 and all(reasons.values())


def test_a_box_that_comes_as_an_array_is_cut_out(tmp_path):
    """Ray Data hands lists to its workers as arrays."""
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:40, 30:50] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    uri = str(tmp_path / "set")
    images = [{"image": str(tmp_path / "a.png"), "face": np.array([x, 20, 20, 20], np.int32), "cropped": None}
              for x in (30, 80)]
    prepare.crop_parts({"part": [0], "images": [images]}, uri, FacesConfig(enlarge=0.0))
    crops = prepared_set.read_part(uri, 0)
    assert list(crops) == [0] and prepared_set.decode_crop(crops[0]).min() == 255
    assert prepared_set.read_metadata(uri, 1)["box"].tolist()[0].tolist() == [30, 20, 20, 20]
    assert provenance.read_records(uri, [0])[0]["rejected"] == {
        "1": "the box [80, 20, 20, 20] given for the face lies outside the 80 x 60 px"}


def test_storage_out_of_reach_stops_the_job_and_rejects_nothing(tmp_path, monkeypatch):
    with pytest.raises(storage.StorageError, match="a.png: is not to be found on .*same path on every node"):
        crop(tmp_path / "a.png")

    def outage(uri):
        raise storage.StorageError(f"{uri}: no answer")

    monkeypatch.setattr(storage, "read_bytes", outage)
    with pytest.raises(storage.StorageError, match="no answer"):
        crop(tmp_path / "a.png")
