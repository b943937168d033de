"""What `prepare` keeps, refuses and makes again. Crops are made in this process; tests/cluster has them made by Ray."""

import dataclasses
import io
import os
import re
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preparing import content, new_image, pictures_of, prepared, set_with_split

from fer_ray import storage
from fer_ray.config import Config
from fer_ray.data import crops, manifest, pixels, prepare, prepared_set, provenance
from fer_ray.data.drawn_face import render_face
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import DataConfig, FacesConfig, SplitConfig
from fer_ray.report import prepared_page


def parts_of(folder: Path) -> set[str]:
    return {file.name for file in (folder / "images").iterdir()}


# --- what is there stays ------------------------------------------------------------------------------------


def test_a_touched_file_costs_no_crop_and_no_split(config, cropped):
    folder = set_with_split(config)
    before = content(folder)
    for file in pictures_of(config)[:15]:
        os.utime(file)
    cropped.clear()
    assert prepared(config) == folder and cropped == []
    after = content(folder)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} == {"contents.parquet", "prepared.json"}
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    prepared(config)  # and now the new times are known
    assert times == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_a_moved_root_costs_no_crop_and_changes_no_part(config, cropped):
    folder = set_with_split(config)
    before = parts_of(folder)
    moved = config.data.root + "-elsewhere"
    shutil.move(config.data.root, moved)
    cropped.clear()
    prepared(dataclasses.replace(config, data=dataclasses.replace(config.data, root=moved)))
    assert cropped == [] and parts_of(folder) == before
    assert pq.read_table(folder / "index.parquet")["image"][0].as_py().startswith(moved)


def change(file: Path) -> None:
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(file)


def swap(files: list[Path]) -> None:
    one, other = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(other), files[1].write_bytes(one)


def add(files: list[Path]) -> None:
    Image.fromarray(np.random.default_rng(99).integers(0, 256, (12, 12), np.uint8)).save(files[0].parent / "p40_1.png")


@pytest.mark.parametrize(("act", "new", "parts"), [
    (lambda files: change(files[7]), ["p07_007.png"], 1),
    (add, ["p40_1.png"], 1),
    (lambda files: files[20].unlink(), [], 1),
    (lambda files: shutil.copy(files[0], files[0].parent / "p00_0000.png"), [], 1),
    (lambda files: files[3].rename(files[3].with_name("p99_999.png")), [], 2),
    (lambda files: files[3].rename(files[20].parent / files[3].name), [], 2),
    (swap, [], 2),
], ids=["changed", "new", "gone", "copied", "renamed", "relabelled", "swapped"])
def test_another_image_costs_one_crop_or_none_and_the_set_is_as_if_made_anew(config, cropped, act, new, parts):
    folder = set_with_split(config)
    before, crossval = parts_of(folder), folder / "splits/image-seed3"
    act(pictures_of(config))
    cropped.clear()
    prepared(config)
    assert sorted(cropped) == new
    assert 0 < len(before - parts_of(folder)) <= parts  # and no part is left that nobody needs
    anew = prepared(dataclasses.replace(config, prepared="anew"))
    assert all(content(anew)[name] == found for name, found in content(folder).items()
               if not name.startswith("splits/"))
    with pytest.raises(manifest.DataError, match="split of what .* held before .*run jobs/crossval.py again"):
        prepared_set.read_index(str(crossval))
    cropped.clear()
    prepare.resplit(str(folder), SplitConfig(by="image", seed=3))
    index = prepared_set.read_index(str(crossval))
    assert len(prepared_set.read_crops(str(crossval), index)) == len(index) and cropped == []


def test_a_set_that_doubles_keeps_its_crops(config, cropped):
    folder = prepared(config)
    for number in range(60):
        file = Path(config.data.root) / "sad" / f"p{50 + number}_1.png"
        Image.fromarray(np.random.default_rng(number + 100).integers(0, 256, (12, 12), np.uint8)).save(file)
    cropped.clear()
    prepared(config)
    assert len(cropped) == 60 and len(parts_of(folder)) == 8
    index = prepared_set.read_index(str(folder))
    assert len(prepared_set.read_crops(str(folder), index)) == len(index) == 90


def test_parts_are_a_fair_sample_and_their_number_follows_from_the_images():
    assert [provenance.num_parts(n) for n in (1, 30, 4500, 10**6)] == [1, 4, 64, 1024]
    names = [f"/data/{'happy' if n < 500 else 'sad'}/{n:05}.png" for n in range(1000)]
    dealt = provenance.deal(manifest.build([{"image": name} for name in names], [], "folder", "folder").rows)
    happy = dealt["image"].str.contains("happy").groupby(dealt["number"]).mean()
    assert len(happy) == 32 and happy.between(0.2, 0.8).all() and dealt.groupby("number").size().between(10, 60).all()


def test_until_the_new_set_is_complete_the_old_one_is_there(config, monkeypatch):
    folder = prepared(config)
    before = content(folder)
    add(pictures_of(config))

    def dies(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "_write_index", dies)
        prepared(config)
    assert content(folder).items() >= before.items()


def test_files_whose_size_and_time_stayed_are_not_read(copied, monkeypatch):
    prepared(copied)
    data = read_manifest(copied.data, copied.split.by)
    monkeypatch.setattr(storage, "stat", lambda uri: pytest.fail(f"a request for {uri}"))
    monkeypatch.setattr(pixels, "read", lambda image: pytest.fail(f"{image} was read"))
    monkeypatch.setattr(prepared_set, "verifies", lambda *_: True)
    prepare.prepare(copied, data)


def test_a_set_on_s3_has_the_parts_of_a_local_one_and_keeps_them(config, cropped, monkeypatch):
    local = prepared(config)
    with s3.server() as port, s3.in_this_process(port):
        remote = dataclasses.replace(config, storage="s3://bucket/work")
        uri = prepare.prepare(remote, read_manifest(config.data))
        assert set(storage.list_files(f"{uri}/images")) == parts_of(local)
        assert prepared_set.read_summary(uri)["fingerprint"] == prepared_set.read_summary(str(local))["fingerprint"]
        add(pictures_of(config))
        cropped.clear()
        prepare.prepare(remote, read_manifest(config.data))
        assert cropped == ["p40_1.png"] and len(storage.list_files(f"{uri}/images")) == 4
        index = prepared_set.read_index(uri)
        assert len(prepared_set.read_crops(uri, index)) == len(index) == 31


# --- nothing is deleted without being asked ----------------------------------------------------------------


def test_other_options_are_refused_by_their_keys(copied, cropped):
    folder = set_with_split(copied)
    before = content(folder)
    other = dataclasses.replace(copied, faces=dataclasses.replace(copied.faces, enlarge=0.4, min_neighbors=3))
    with pytest.raises(manifest.DataError, match="enlarge was 0.2 and is 0.4; faces.min_neighbors was 5 and is 3"):
        prepared(other)
    with pytest.raises(manifest.DataError, match="faces.gray was True and is False"):
        prepared(dataclasses.replace(copied, faces=dataclasses.replace(copied.faces, gray=False)))
    assert content(folder) == before
    prepared(dataclasses.replace(other, prepared="beside"))
    assert content(folder) == before


def test_another_split_or_label_needs_no_crop(copied, cropped):
    folder = prepared(copied)
    before = content(folder)
    cropped.clear()
    prepared(dataclasses.replace(copied, split=SplitConfig(seed=4)))
    after = content(folder)
    assert cropped == [] and before["index.parquet"] != after["index.parquet"]
    with pytest.raises(manifest.DataError):  # a split that cannot be leaves the one that is there
        prepared(dataclasses.replace(copied, split=SplitConfig(folds=40)))
    assert content(folder) == after


def test_a_set_of_an_older_version_is_refused_and_left(copied, cropped):
    folder = prepared(copied)
    summary = storage.read_json(str(folder / "prepared.json"))
    storage.write_json(str(folder / "prepared.json"), summary | {"schema_version": 5})
    before = content(folder)
    with pytest.raises(manifest.DataError, match="another version.*--replace"):
        prepared(copied)
    with pytest.raises(manifest.DataError, match="format 5, this one reads 9.*--replace"):
        prepared_set.read_index(str(folder))
    assert content(folder) == before
    prepared(dataclasses.replace(copied, replace=True))
    assert len(prepared_set.read_index(str(folder))) == 30


def test_an_interrupted_prepare_goes_on_although_later_files_have_changed(config, cropped, monkeypatch):
    write = prepared_set.write_part

    def dies(uri, number, table):
        if number == 2:
            raise KeyboardInterrupt
        return write(uri, number, table)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepared_set, "write_part", dies)
        prepared(config)
    rows = provenance.deal(read_manifest(config.data, config.split.by).rows)
    left = sorted(Path(image).name for image in rows["image"][rows["number"] > 1])
    change(Path(rows["image"].iloc[-1]))
    cropped.clear()
    folder = prepared(config)
    assert sorted(cropped) == left and len(prepared_set.read_index(str(folder))) == 30


# --- pictures that are cropped to the face -------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces_and_landscape(tmp_path_factory):
    """Folders of drawn faces, of which Haar finds few where they are cut tightly, each with a landscape."""
    root = tmp_path_factory.mktemp("pictures")
    for person in range(24):
        rng = np.random.default_rng(person)
        face = render_face(np.random.default_rng(person), "happiness", 1.0, rng, (128, 128), 45)
        for kind, picture in (("tight", face[23:113, 20:110]), ("photographs", np.pad(face, 60, "edge"))):
            if person == 23:
                picture = np.repeat(np.linspace(230, 90, 200), 300).reshape(200, 300).astype(np.uint8)
            file = root / kind / ("happy" if person % 2 else "sad") / f"{person:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    return root


@pytest.mark.parametrize(("kind", "options", "kept", "said"), [
    ("tight", {}, 24, "taken for pictures cropped to the face.* used whole, the [0-9]+ too in which none is seen"),
    ("photographs", {}, 23, "taken for photographs.* the 1 without any are rejected"),
    ("photographs", {"on_no_face": "whole"}, 24, "taken for photographs.* used whole, the 1 too in which none is seen"),
    ("tight", {"already_cropped": True}, 24, "^$"),
], ids=["tight", "photographs", "whole", "told"])
@pytest.mark.usefixtures("cropped")
def test_what_pictures_are_is_seen_from_their_faces_and_said(faces_and_landscape, tmp_path, kind, options, kept, said):
    config = Config(name="set", storage=str(tmp_path), faces=FacesConfig(**options), split=SplitConfig(by="image"),
                    data=DataConfig("folder", str(faces_and_landscape / kind)))
    folder = str(prepared(config))
    summary = prepared_set.read_summary(folder)
    assert len(prepared_set.read_index(folder)) == kept and re.search(said, " ".join(summary["faces"]))
    assert summary["rejected"] == ({"no face found": 24 - kept} if kept < 24 else {})
    prepared_page.write(folder, "set")
    assert all(sentence in Path(folder, "prepare.html").read_text() for sentence in summary["faces"])


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


def crop(path: Path):
    """What `crops.crop_image` makes of a file that is a face and nothing else: a row or None, and the reason."""
    return crops.crop_image({"image": str(path), "face": None, "cropped": True}, FacesConfig())[:2]


def test_exif_of_a_wrong_type_hides_no_picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg_whose_orientation_has_a_wrong_type())
    row, reason = crop(tmp_path / "a.jpg")
    assert row and not reason


@given(st.data())
def test_whatever_a_decoder_raises_is_the_reason_of_that_picture(tmp_path_factory, data):
    whole = bytearray(jpeg_whose_orientation_has_a_wrong_type())
    for _ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("pictures") / "a.jpg"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    row, reason = crop(path)
    assert bool(row) != bool(reason)


def test_a_box_that_comes_as_an_array_is_cut_out(tmp_path):
    """Ray Data hands lists to its workers as arrays."""
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[20:40, 30:50] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    uri = str(tmp_path / "set")
    images = [new_image(tmp_path / "a.png", np.array([x, 20, 20, 20], np.int32)) for x in (30, 80)]
    name, = crops.crop_parts({"part": [0], "images": [images]}, uri, FacesConfig(enlarge=0.0))["name"]
    found = prepared_set.read_part(uri, name)
    assert prepared_set.decode_crop(found[0]).min() == 255 and found[1] is None
    assert prepared_set.read_metadata(uri, [name])["box"].tolist()[0].tolist() == [30, 20, 20, 20]
    assert prepared_set.read_columns(uri, [name], ["reason"])["reason"].to_pylist() == [
        None, "the box [80, 20, 20, 20] given for the face lies outside the 80 x 60 px"]


def test_storage_out_of_reach_stops_the_job_and_rejects_nothing(tmp_path, monkeypatch):
    with pytest.raises(storage.StorageError, match="a.png: is not to be found on .*same path on every node"):
        crop(tmp_path / "a.png")

    def outage(uri):
        raise storage.StorageError(f"{uri}: no answer")

    monkeypatch.setattr(storage, "read_bytes", outage)
    with pytest.raises(storage.StorageError, match="no answer"):
        crop(tmp_path / "a.png")
