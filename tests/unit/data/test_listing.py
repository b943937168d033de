"""Folders and label files that cannot be read are named, whatever layout they belong to; nothing vanishes."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_sets import GREY, put, read, reasons

from fer_ray.data import listing, sources
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig, SourceConfig, TableConfig


@pytest.fixture
def shared():
    """A folder that every user may read, and a function that closes a path in it to this process.

    Root may enter everything, so the process becomes the user nobody.
    """
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    root = os.geteuid() == 0
    made = folder / "set"
    made.mkdir()

    def closed(path: Path) -> Path:
        path.chmod(0)
        if root:
            os.seteuid(65534)
        return path

    yield made, closed
    if root:
        os.seteuid(0)
    shutil.rmtree(folder, ignore_errors=True)


LAYOUTS = {  # an image and the label file
    "ckplus": ("cohn-kanade-images/S005/001/S005_001_00000001.png", "Emotion/S005/001/S005_001_00000001_emotion.txt"),
    "ck48": ("CK+48/anger/S010_004_00000017.png", None),
    "jaffe": ("jaffe/KA.AN1.39.png", None),
    "rafdb": ("Image/aligned/train_00001_aligned.jpg", "list_patition_label.txt"),
    "affectnet": ("train_set/images/0.png", "train_set/annotations/0_exp.npy"),
    "folder": ("train/happy/a.png", None),
    "table": ("images/a.png", "t.csv"),
    "fer2013": ("a.png", "fer2013.csv"),
}
TEXTS = {"ckplus": "3.0", "rafdb": "train_00001.jpg 5\n", "table": "image,expression\na.png,fear\n",
         "fer2013": f"emotion,pixels,Usage\n0,{GREY},Training\n"}


def fill(root: Path, kind: str) -> tuple[Path, Path]:
    """The image and the label file (or the root) of the smallest data set of a layout."""
    image, label = LAYOUTS[kind]
    if kind != "fer2013":
        put(root / image)
    if not label:
        return root / image, root
    (root / label).parent.mkdir(parents=True, exist_ok=True)
    if kind == "affectnet":
        np.save(root / label, np.array("6"))
    else:
        (root / label).write_text(TEXTS[kind])
    return root / image, root / label


@pytest.mark.parametrize("kind", ["ckplus", "ck48", "jaffe", "affectnet", "folder"])
@pytest.mark.parametrize("asked", ["auto", "named"])
def test_a_folder_that_cannot_be_entered_is_named_and_its_pictures_do_not_vanish(shared, kind, asked):
    root, closed = shared
    image, _ = fill(root, kind)
    assert len(read(root, kind, by="image")[0]) == 1
    second = {"ckplus": image.parent.parent / "002", "jaffe": root / "other"}.get(kind, image.parent / "more")
    second.mkdir()
    closed(second)
    with pytest.raises(DataError, match=f"{re.escape(str(second))}: this folder cannot be read .Permission denied."):
        read(root, kind if asked == "named" else "auto", by="image")


@pytest.mark.parametrize("kind", TEXTS)
def test_a_label_file_that_cannot_be_read_is_named(shared, kind):
    root, closed = shared
    label = closed(fill(root, kind)[1])
    with pytest.raises(DataError, match=f"{label}: .*Permission denied"):
        read(root, kind, by="image")


def test_folders_of_labels_that_cannot_be_entered_are_no_absent_labels(shared):
    root, closed = shared
    folder = closed(fill(root, "ckplus")[1].parent)
    with pytest.raises(DataError, match=f"{folder}: this folder cannot be read"):
        read(root)


def test_images_whose_folder_may_be_listed_but_not_entered_have_that_reason(shared):
    root, closed = shared
    fill(root, "folder")
    put(root / "train/sad/b.png")
    closed(root / "train/happy")
    with pytest.raises(DataError, match="this folder cannot be read"):
        read(root)
    os.seteuid(os.getuid())
    (root / "train/happy").chmod(0o444)
    closed(put(root / "train/sad/c.png"))
    assert reasons(read(root)[1]) == {"cannot be read: Permission denied": 1}


def test_lost_and_found_of_a_disk_is_no_part_of_a_data_set(shared):
    root, closed = shared
    fill(root, "folder")
    (root / "train/lost+found").mkdir()
    closed(root / "train/lost+found")
    assert len(read(root)[0]) == 1


WRONG = {"UTF-16": "imäge\n".encode("utf-16"), "Latin-1": b"train_00001.jpg 5\nj\xe4 3\n", "binary": bytes(range(256)),
         "zero bytes": b"e\0m\0o\0t\0i\0o\0n\0\n\0", "empty": b"", "blank": b"\n\n"}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("kind", [*TEXTS, "affectnet"])
def test_label_files_that_are_no_text_or_empty_are_one_line_that_names_them(tmp_path, kind, content):
    _, label = fill(tmp_path, kind)
    label.write_bytes(content)
    with pytest.raises(DataError) as error:
        read(tmp_path, kind, by="image", table=TableConfig(file="t.csv") if kind == "table" else TableConfig())
    assert "\n" not in str(error.value)
    assert label.name in str(error.value) or str(tmp_path) in str(error.value) and not content.strip()


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_table_of_votes_or_of_exclusions_that_is_no_text_names_the_file(tmp_path, content):
    fill(tmp_path, "fer2013")
    (tmp_path / "fer2013new.csv").write_bytes(content)
    with pytest.raises(DataError, match="fer2013new.csv") as error:
        read(tmp_path, "fer2013", by="image")
    (tmp_path / "out.csv").write_bytes(content)
    (tmp_path / "fer2013new.csv").unlink()
    with pytest.raises(DataError, match="data.exclude: .*out.csv") as other:
        read(tmp_path, "fer2013", by="image", exclude=str(tmp_path / "out.csv"))
    assert "\n" not in str(error.value) + str(other.value)


def test_a_row_that_is_no_utf_8_is_named_by_its_line(tmp_path):
    put(tmp_path / "images/a.png")
    (tmp_path / "t.csv").write_bytes(b"image,expression\na.png,fear\na.png,f\xe9ar\n")
    with pytest.raises(DataError, match=r"t.csv line 3: is no UTF-8 text \(byte 0xe9 at 7\); save it as UTF-8"):
        read(tmp_path, "table")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    for kind in TEXTS:
        _, label = fill(tmp_path / kind, kind)
        label.write_bytes(b"\xef\xbb\xbf" + label.read_bytes())
        assert len(read(tmp_path / kind, kind, by="image")[0]) == 1


@pytest.mark.parametrize(("text", "wrong"), [
    ("image,expression\na.png\n", "row 2: 1 values, the header has 2"),
    ("image,expression\na.png,fear,sad\n", "row 2: 3 values, the header has 2"),
    ("image,expression,image\na.png,fear,b.png\n", "two columns named image")])
def test_tables_whose_rows_do_not_fit_their_header_are_refused(tmp_path, text, wrong):
    put(tmp_path / "images/a.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=f"t.csv.*{wrong}"):
        read(tmp_path, "table")
    (tmp_path / "t.csv").write_text("image,expression\na.png,fear,,\n")  # as spreadsheets leave it
    assert len(read(tmp_path, "table")[0]) == 1


def test_damaged_parquet_tables_are_one_line_that_names_them(tmp_path):
    put(tmp_path / "images/a.png")
    file = tmp_path / "t.parquet"
    pd.DataFrame({"image": ["a.png"] * 2000, "expression": ["fear"] * 2000}).to_parquet(file)
    whole = file.read_bytes()
    pages = bytearray(whole)
    pages[4:40] = bytes(36)
    for content in (b"", whole[:100], whole[:-1], bytes(pages)):
        file.write_bytes(content)
        with pytest.raises(DataError, match="t.parquet: not a readable Parquet file") as error:
            read(tmp_path, "table")
        assert "\n" not in str(error.value)


def test_people_and_groups_that_a_parquet_table_does_not_name_are_nobody(tmp_path):
    put(tmp_path / "images/a.png"), put(tmp_path / "images/b.png")
    pd.DataFrame({"image": ["a.png", "b.png"], "expression": ["fear", "sad"], "who": [None, "Ann"],
                  "age": [np.nan, 31.0]}).to_parquet(tmp_path / "t.parquet")
    rows, _ = read(tmp_path, "table", table=TableConfig(subject_column="who", group_columns=["age"]))
    assert rows.subject.isna()[0] and rows.subject[1] == "table:ann"
    assert list(rows.groups) == ['{"age": ""}', '{"age": "31.0"}']


@pytest.mark.parametrize(("text", "number"), [
    ("0", 0), ("12", 12), *((text, None) for text in ("1_0", "-1", "2.7", "", "٣", " 7", "9" * 5000))])
def test_whole_numbers_are_spelled_as_people_do(text, number):
    assert listing.whole_number(text) == number


def test_one_image_in_two_sources_is_refused(tmp_path):
    fill(tmp_path, "folder")
    twice = [SourceConfig("folder", ".", "one"), SourceConfig("folder", ".", "two")]
    with pytest.raises(DataError, match="a.png is in one and in two"):
        sources.read_manifest(DataConfig(root=str(tmp_path), sources=twice))
