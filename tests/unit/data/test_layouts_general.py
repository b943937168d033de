"""Folders of classes and tables of labels."""

import os

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import GREY, put, read, reasons

from fer_ray.data import pixels
from fer_ray.data.manifest import DataError
from fer_ray.data_config import FolderConfig, TableConfig
from fer_ray.evaluate import evaluation


def test_folder_of_classes_in_any_spelling(tmp_path):
    for name in ("Happy/ann_1.jpg", "0_Angry/bob_2.PNG", "SU/ann_3.jpeg", "neutral/sub/cat_1.webp", "uncertain/d.jpg"):
        put(tmp_path / name)
    (tmp_path / "Happy/Thumbs.db").touch()
    (tmp_path / "Happy/list.txt").touch()
    (tmp_path / "__MACOSX/Happy").mkdir(parents=True)
    rows, rejected = read(tmp_path, folder=FolderConfig(subject_pattern=r"([a-z]+)_\d"))
    assert sorted(rows.expression) == ["anger", "happiness", "neutral", "surprise"]
    assert set(rows.subject) == {"folder:ann", "folder:bob", "folder:cat"}
    assert reasons(rejected) == {"not an image by its name": 1, "no expression: uncertain": 1}


def test_folder_with_official_splits_and_own_names(tmp_path):
    for name in ("train/freude/a.jpg", "Validation/wut/b.jpg", "test/freude/c.jpg"):
        put(tmp_path / name)
    rows, _ = read(tmp_path, kind="folder", names={"freude": "happiness", "wut": "anger"})
    assert sorted(zip(rows.official, rows.expression, strict=True)) == [
        ("test", "happiness"), ("train", "happiness"), ("val", "anger")]
    with pytest.raises(DataError, match="Validation/wut: unknown expression 'wut'"):
        read(tmp_path, kind="folder")
    put(tmp_path / "numbers/3/a.jpg")
    with pytest.raises(DataError, match="number means another expression in every data set.*data.names"):
        read(tmp_path / "numbers", kind="folder")


def write_table(folder, text, names=("a_1.jpg", "b_1.jpg")):
    for name in names:
        put(folder / "images" / name)
    (folder / "t.csv").write_text(text)
    return folder


def test_table_keeps_each_image_once_and_rejects_contradictions(tmp_path):
    write_table(tmp_path / "set", "image,expression\na_1.jpg,Happy\na_1.jpg,HAPPINESS\nb_1.jpg,fear\nb_1.jpg,sad\n"
                                  "gone.jpg,fear\n../../secret.png,fear\n/etc/hostname,fear\nlink.jpg,fear\n")
    put(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "set/images/link.jpg")
    rows, rejected = read(tmp_path / "set", table=TableConfig(subject_pattern=r"^(\w+)_\d"))
    assert len(rows) == 1
    assert (rows.expression[0], rows.subject[0], rows.dataset[0]) == ("happiness", "table:a", "table")
    assert reasons(rejected) == {"listed twice": 1, "conflicting labels: fear, sadness": 2, "file not found": 1,
                                 "path leaves the data set's folder": 3}


def test_table_errors_name_file_row_and_value(tmp_path):
    write_table(tmp_path, "image,expression\na_1.jpg,happy\nb_1.jpg,hapy\n")
    with pytest.raises(DataError, match=r"t.csv row 3: unknown expression 'hapy'.*known: anger"):
        read(tmp_path, kind="table")
    with pytest.raises(DataError, match="no column 'emotion'; its columns are image, expression"):
        read(tmp_path, kind="table", table=TableConfig(expression_column="emotion"))
    with pytest.raises(DataError, match="needs exactly one group, it has 0"):
        read(tmp_path, kind="table", table=TableConfig(subject_pattern="x"))
    (tmp_path / "t.csv").write_text("image,expression\na_1.jpg\n")
    with pytest.raises(DataError, match="row 2: 1 values, the header has 2"):
        read(tmp_path, kind="table")


def test_table_with_quotes_codes_splits_and_commas_in_names(tmp_path):
    text = '"image","e","who","part"\n"a,1.jpg","0","Ann","train"\n"b\n1.jpg","1","BOB","test"\n'
    write_table(tmp_path, text, ("a,1.jpg", "b\n1.jpg"))
    options = TableConfig(expression_column="e", subject_column="who", split_column="part")
    rows, _ = read(tmp_path, kind="table", table=options, names={"0": "fear", "1": "anger"})
    assert sorted(zip(rows.expression, rows.subject, rows.official, strict=True)) == [
        ("anger", "table:bob", "test"), ("fear", "table:ann", "train")]


def test_table_with_pixels_in_its_rows(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/t.csv").write_text(f'expression,"p"\nfear,"{GREY}"\nanger,{GREY}\n')
    rows, _ = read(tmp_path / "csv", table=TableConfig(pixels_column="p"))
    assert all(pixels.load(i).shape == (48, 48) for i in rows.image) and list(rows.expression) == ["fear", "anger"]
    (tmp_path / "pq").mkdir()
    encoded = [cv2.imencode(".png", np.full((20, 20), v, np.uint8))[1].tobytes() for v in range(5)]
    for column in (encoded, [{"bytes": e, "path": None} for e in encoded]):
        table = pa.table({"image": column, "expression": ["sad"] * 5})
        pq.write_table(table, tmp_path / "pq/t.parquet", row_group_size=2)
        pixels._row_group.cache_clear()
        rows, _ = read(tmp_path / "pq", kind="table", table=TableConfig(pixels_column="image"))
        assert [int(pixels.load(i)[0, 0]) for i in rows.image] == [0, 1, 2, 3, 4]


def test_own_columns_of_a_table_become_groups(tmp_path):
    write_table(tmp_path, "image,expression,age\na_1.jpg,fear,30\nb_1.jpg,happy,60\n")
    rows, _ = read(tmp_path, "table", table=TableConfig(group_columns=["age"]))
    assert evaluation.column_of(rows, "age") == ["30", "60"]
    assert evaluation.column_of(rows, "subject") == [None, None]
    with pytest.raises(DataError, match="no column 'sex'"):
        read(tmp_path, "table", table=TableConfig(group_columns=["sex"]))
