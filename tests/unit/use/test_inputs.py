"""Which photographs a folder, a glob, a table or a name stands for."""

import os
from pathlib import Path

import pandas as pd
import pytest
import s3
import videos

from fer_ray import storage
from fer_ray.data.manifest import OUTSIDE, DataError
from fer_ray.use import inputs

FILES = ["b.jpg", "a.png", "notes.txt", "trip/c.PNG", "trip/deep/d.jpg", "trip/.hidden.jpg"]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 3)
    return root


def names(found: list[inputs.Picture], root: Path) -> list[str]:
    return [os.path.relpath(picture.image, root) for picture in found]


def test_a_folder_is_all_images_below_it_and_an_image_is_itself(folder):
    found = inputs.find(str(folder)).photographs
    assert sorted(names(found, folder)) == ["a.png", "b.jpg", "trip/c.PNG", "trip/deep/d.jpg"]
    assert {(picture.size, picture.reason) for picture in found} == {(3, None)}
    assert found[0].mtime_ns == os.stat(found[0].image).st_mtime_ns
    assert names(inputs.find(str(folder / "trip/c.PNG")).photographs, folder) == ["trip/c.PNG"]
    # who names a file means it
    assert names(inputs.find(str(folder / "notes.txt")).photographs, folder) == ["notes.txt"]


@pytest.mark.parametrize(("glob", "expected"), [
    ("*.jpg", ["b.jpg"]), ("**/*.jpg", ["b.jpg", "trip/deep/d.jpg"]), ("trip/*", ["trip/c.PNG"]),
    ("?.*", ["a.png", "b.jpg"]),
    ("**", ["a.png", "b.jpg", "trip/c.PNG", "trip/deep/d.jpg"]), ("[!b]*.[pj][!x]*", ["a.png"]),
    ("trip/**/?.jpg", ["trip/deep/d.jpg"]), ("*/*/d.jpg", ["trip/deep/d.jpg"])])
def test_a_glob_is_what_a_shell_makes_of_it(folder, glob, expected):
    assert sorted(names(inputs.find(f"{folder}/{glob}").photographs, folder)) == expected


def test_a_folder_whose_name_has_wildcards_is_a_folder(folder):
    folder.rename(folder.parent / "photos [2024]")
    assert len(inputs.find(str(folder.parent / "photos [2024]")).photographs) == 4


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_names_images_beside_it_each_once(folder, suffix):
    (folder / "out.png").symlink_to("/etc/hostname")
    rows = ["trip/c.PNG", "a.png", str(folder / "b.jpg"), "a.png", "gone.png", "../elsewhere.png", "/etc/hostname",
            "out.png"]
    table = pd.DataFrame({"photo": rows})
    table.to_csv(folder / "t.csv", index=False) if suffix == "csv" else table.to_parquet(folder / "t.parquet")
    found = inputs.find(f"{folder}/t.{suffix}", "photo").photographs
    assert [os.path.basename(picture.image) for picture in found] == [
        "c.PNG", "a.png", "b.jpg", "gone.png", "elsewhere.png", "hostname", "out.png"]
    assert [picture.reason for picture in found] == [None] * 3 + ["file not found"] + [OUTSIDE] * 3
    with pytest.raises(DataError, match=r"\(data.table.image_column\): no column 'image'; its columns are photo"):
        inputs.find(f"{folder}/t.{suffix}")


def test_a_bucket_is_listed_and_not_asked_for_each_image(folder, monkeypatch):
    root = "s3://bucket/my/photos"
    with s3.server() as port, s3.in_this_process(port), monkeypatch.context() as patch:
        for name in FILES:
            storage.write_bytes(f"{root}/{name}", b"xyz")
        storage.write_bytes(f"{root}/t.csv", b"image\ntrip/c.PNG\ngone.png\n../x.png\ns3://other/x.png\n./a.png\n")
        one = storage.stat(f"{root}/a.png")
        single = inputs.find(f"{root}/a.png").photographs
        patch.setattr(storage, "stat", lambda uri: pytest.fail(f"a request for {uri}"))
        found = inputs.find(root).photographs
        assert [picture.image.removeprefix(root + "/") for picture in found] == [
            "a.png", "b.jpg", "trip/c.PNG", "trip/deep/d.jpg"]
        assert single == found[:1] and (found[0].size, found[0].mtime_ns) == one
        assert [picture.image for picture in inputs.find(f"{root}/**/*.jpg").photographs] == [
            f"{root}/b.jpg", f"{root}/trip/deep/d.jpg"]
        table = inputs.find(f"{root}/t.csv").photographs
        assert [picture.reason for picture in table] == [None, "file not found", OUTSIDE, "file not found", None]
        assert table[-1].image == f"{root}/a.png"
        with pytest.raises(DataError, match="nothing lies below it"):
            inputs.find("s3://bucket/nothing")


def test_a_folder_may_be_a_uri(folder):
    assert inputs.find(f"file://{folder}").photographs == inputs.find(str(folder)).photographs


def test_what_is_not_there_is_told_with_what_would_be(folder):
    (folder / "bad.parquet").write_bytes(b"PAR1")
    (folder / "empty").mkdir()
    for path, words in (("", "predict.images: '' is not set"), ("$PHOTOS", "is not set"),
                        ("/nowhere", "no such folder"), ("/nowhere/*.jpg", "no such folder as /nowhere"),
                        (f"{folder}/*.gif", "no image file and no video there"),
                        (f"{folder}/empty", "no image file and no video there; known extensions: .*bmp"),
                        (f"{folder}/bad.parquet", "not a readable Parquet file")):
        with pytest.raises(DataError, match=words):
            inputs.find(path)


def test_videos_and_other_files_are_told_apart(folder):
    for name in ("film.MP4", "trip/film.mkv"):
        (folder / name).write_bytes(b"x")
    found = inputs.find(str(folder))
    assert [sorted(names(each, folder)) for each in (found.photographs, found.videos)] == [
        ["a.png", "b.jpg", "trip/c.PNG", "trip/deep/d.jpg"], ["film.MP4", "trip/film.mkv"]]
    assert found.others == {".txt": 1}
    assert names(inputs.find(f"{folder}/**/*.mkv").videos, folder) == ["trip/film.mkv"]
    film = videos.write(folder / "film.mp4", videos.walk(0.2))
    os.rename(film, folder / "film")  # whoever names a file means it
    assert names(inputs.find(str(folder / "film")).videos, folder) == ["film"]
    pd.DataFrame({"image": ["film.MP4", "a.png", "gone.mov"]}).to_csv(folder / "t.csv", index=False)
    found = inputs.find(f"{folder}/t.csv")
    assert names(found.photographs, folder) == ["a.png"] and not found.others
    assert [video.reason for video in found.videos] == [None, "file not found"]
