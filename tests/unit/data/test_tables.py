"""Tables as spreadsheets and other systems write them give the same rows, or an error names the cause."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_sets import GREY, put, read, reasons

from fer_ray import options
from fer_ray.data import pixels
from fer_ray.data.manifest import DataError
from fer_ray.data_config import TableConfig

PLAIN = "image,expression\na.jpg,angry\nb.jpg,happy\nc.jpg,sad\n"
LABELS = {"a": "anger", "b": "happiness", "c": "sadness"}
NAMES = {"0": "anger", "3": "happiness", "4": "sadness"}
PNG = cv2.imencode(".png", np.full((20, 20), 99, np.uint8))[1].tobytes()


def labels_of(root, **given):
    """Expression by the stem of each image's name."""
    rows, rejected = read(root, **given)
    assert rejected.empty
    return {image.rpartition("/")[2].partition(".")[0].casefold(): e
            for image, e in zip(rows.image, rows.expression, strict=True)}


@pytest.mark.parametrize(("text", "encoding"), [
    (PLAIN, "utf-8-sig"), (PLAIN, "utf-16"), (PLAIN.replace("\n", "\r\n"), "utf-8-sig"),
    (PLAIN.replace(",", ";"), "utf-8"), ("sep=;\n" + PLAIN.replace(",", ";"), "utf-8"),
    (PLAIN.replace(",", "\t"), "utf-16"), (PLAIN.replace(",", " , "), "utf-8"), (PLAIN + "\n ,\n,,\n", "utf-8"),
    (PLAIN.replace("image,expression", '"Image","EXPRESSION"'), "utf-8-sig"),
    (PLAIN.replace("image,", ",image,").replace("\n", "\n0,", 3), "utf-8"),
    (PLAIN.replace(".jpg", ""), "utf-8"), (PLAIN.replace(".jpg", ".JPG"), "utf-8"),
    (PLAIN.replace("a.jpg", "images/a.jpg").replace("b.jpg", "images\\b.jpg"), "utf-8"),
    ("image,expression\na.jpg,0.0\nb.jpg,3\nc.jpg,4.00\n", "utf-8"),
    ("image;expression\na.jpg;0,0\nb.jpg;3,0\nc.jpg;4\n", "utf-8")],
    ids=["BOM", "UTF-16", "CRLF", "semicolon", "Excel's sep=", "tabs in UTF-16", "blanks", "empty rows",
         "quoted header", "index", "no extension", "other case", "path", "float codes", "decimal commas"])
def test_the_same_table_in_many_spellings(tmp_path, text, encoding):
    for name in ("a", "b", "c"):
        put(tmp_path / f"images/{name}.jpg")
    (tmp_path / "LABELS.CSV").write_bytes(text.encode(encoding))
    assert labels_of(tmp_path, names=NAMES) == LABELS


@pytest.mark.parametrize(("content", "words"), [
    (PLAIN.replace("a.jpg", "ä.jpg").encode("latin-1"), "labels.csv line 2: is no UTF-8 text .byte 0xe4"),
    (PLAIN.encode("utf-16-le"), "labels.csv: has zero bytes in its first line"),
    (PLAIN.encode("utf-16")[:-1], "labels.csv: is damaged UTF-16 text"),
    (PLAIN.partition("\n")[2].encode(), "labels.csv: no column 'image'; its first line names no columns"),
    (b"image,expression;age|sex\n", "labels.csv: no column 'image'|as many ',' as ';'"),
    (b"a,b;c\n", "labels.csv: its first line has as many ',' as ';'"),
    (b"image,Expression,EXPRESSION\n", "has columns Expression and EXPRESSION; nobody knows which is 'expression'"),
    (PLAIN.replace("angry", "").encode(), "labels.csv row 2: unknown expression ''"),
    (b"image,expression\nx.jpg,sad\ny.jpg,sad\n", "none of its 2 images is in .*images: its first names are 'x.jpg', "
                                                 "'y.jpg', the folder has 'a.jpg', 'b.jpg'"),
    (b"image,expression\nTWO,sad\n", "'TWO' may be .*images/two.jpg or .*images/two.png")],
    ids=["Latin-1", "UTF-16 unmarked", "UTF-16 cut", "no header", "two marks", "no mark", "two columns", "no label",
         "other images", "two images"])
def test_what_cannot_be_read_rightly_is_an_error_that_names_file_and_cause(tmp_path, content, words):
    for name in ("a.jpg", "b.jpg", "two.jpg", "two.png"):
        put(tmp_path / f"images/{name}")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path, kind="table")


def test_images_that_no_row_names_are_rejected_and_other_spellings_are_said(tmp_path, capsys):
    for name in ("Two.jpg", "two.jpg", "more.jpg", "same.1.jpg"):
        put(tmp_path / f"images/{name}")
    (tmp_path / "t.csv").write_text("image,expression\ntwo.jpg,sad\nSAME.1,fear\n")
    rows, rejected = read(tmp_path)
    assert sorted(rows.expression) == ["fear", "sadness"] and reasons(rejected) == {"no row of the table names it": 2}
    assert "1 names are spelled otherwise than their files, such as 'SAME.1'" in capsys.readouterr().out


def test_strangers_are_no_person(tmp_path):
    missing = ["", "None", "nan", "NULL", "N/A", " "]
    for n in range(9):
        put(tmp_path / f"csv/images/{n}.jpg")
    subjects = [*missing, "7.0", "7", "Ann"]
    (tmp_path / "csv/t.csv").write_text(
        "image,expression,who\n" + "".join(f"{n}.jpg,sad,{who}\n" for n, who in enumerate(subjects)))
    rows, _ = read(tmp_path / "csv", table=TableConfig(subject_column="who"))
    assert rows.subject.isna().sum() == len(missing) and set(rows.subject.dropna()) == {"table:7", "table:ann"}
    (tmp_path / "csv/t.csv").write_text("image,expression,who\n1.jpg,sad,NA\n")
    with pytest.raises(DataError, match="t.csv row 2: subject 'NA' may be a missing value or a person"):
        read(tmp_path / "csv", table=TableConfig(subject_column="who"))
    for kind, who in (("float", [1.0, None, 1.0]), ("text", ["1", None, "1"])):
        (tmp_path / kind).mkdir()
        table = pa.table({"image": [{"bytes": PNG, "path": None}] * 3, "expression": ["sad"] * 3, "who": who})
        pq.write_table(table, tmp_path / kind / "t.PARQUET")
        rows, _ = read(tmp_path / kind, table=TableConfig(subject_column="who"))
        assert list(rows.subject.fillna("nobody")) == ["table:1", "nobody", "table:1"]


def write_shard(file, labels):
    file.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": [{"bytes": PNG, "path": f"{n}.png"} for n in labels], "label": labels}), file)


def test_shards_and_splits_are_one_data_set(tmp_path):
    for name, labels in (("train-00000-of-00002", [0, 3]), ("train-00001-of-00002", [4]), ("test-00000-of-00001", [0])):
        write_shard(tmp_path / f"data/{name}.parquet", labels)
    label = TableConfig(expression_column="label")
    rows, _ = read(tmp_path, names=NAMES, table=label)
    assert sorted(zip(rows.official, rows.expression, strict=True)) == [
        ("test", "anger"), ("train", "anger"), ("train", "happiness"), ("train", "sadness")]
    assert pixels.load(rows.image[0]).shape == (20, 20)
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="data/train: 1 of 2 shards are there, such as train-00000-of-00002.parquet"):
        read(tmp_path, names=NAMES, table=label)
    write_shard(tmp_path / "data/train-00001-of-00002.parquet", [4])
    write_shard(tmp_path / "data/more.parquet", [0])
    with pytest.raises(DataError, match="4 tables fit: data/more.parquet, .*; name the right one by data.table.file"):
        read(tmp_path, names=NAMES, table=label)
    rows, _ = read(tmp_path, names=NAMES, table=TableConfig(expression_column="label", file="data/more.parquet"))
    assert len(rows) == 1


def test_numbers_that_hugging_face_named_need_no_names(tmp_path):
    features = {"label": {"names": ["sad", "angry"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [{"bytes": PNG, "path": None}] * 2, "label": [1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
                   tmp_path / "t.parquet")
    label = TableConfig(expression_column="label")
    assert list(read(tmp_path, table=label)[0].expression) == ["anger", "sadness"]
    assert list(read(tmp_path, table=label, names={"1": "fear"})[0].expression) == ["fear", "sadness"]


def test_a_table_of_another_split_that_does_not_fit_is_named(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / f"images/{name}.jpg")
    (tmp_path / "train.csv").write_text("image,expression\na.jpg,sad\n")
    (tmp_path / "test.csv").write_text("image,expression\nb.jpg,fear\n")
    rows, rejected = read(tmp_path)
    assert sorted(zip(rows.official, rows.expression, strict=True)) == [("test", "fear"), ("train", "sadness")]
    assert rejected.empty
    (tmp_path / "test.csv").write_text("b.jpg,fear\n")
    with pytest.raises(DataError, match="test.csv: no column 'image'; its first line names no columns, .* b.jpg"):
        read(tmp_path)


def fer(rows="0,Training 3,PublicTest 6,PrivateTest", header="emotion,pixels,Usage"):
    found = [row.split(",") for row in rows.split()]
    return header + "\n" + "".join(f"{emotion},{GREY},{usage}\n" for emotion, usage in found)


def without_usage(text):
    return "".join(f"{line.rpartition(',')[0]}\n" for line in text.splitlines())


@pytest.mark.parametrize(("text", "encoding"), [
    (fer(), "utf-8-sig"), (fer().replace("\n", "\r\n"), "utf-8-sig"), (fer().replace(",", ";"), "utf-8"),
    (fer().replace(",", "\t"), "utf-8"), (fer(header='"Emotion","PIXELS","usage"'), "utf-8-sig"),
    (fer(header="emotion, pixels, Usage").replace(GREY, f'"{GREY}"'), "utf-8"),
    (fer("0.0,training 3.0,public_test 6.0,PRIVATETEST"), "utf-8"),
    (",".join(["", *fer().splitlines(True)[:1]]) + "".join(f"{n},{line}" for n, line in enumerate(
        fer().splitlines(True)[1:])) + ",,,\n", "utf-8")],
    ids=["BOM", "CRLF", "semicolon", "tab", "quoted, upper case", "blanks and quotes", "float codes", "index"])
def test_fer2013_in_many_spellings(tmp_path, text, encoding):
    (tmp_path / "FER2013.CSV").write_bytes(text.encode(encoding))
    rows, _ = read(tmp_path)
    assert list(zip(rows.expression, rows.official, strict=True)) == [
        ("anger", "train"), ("happiness", "val"), ("neutral", "test")]
    assert all(np.array_equal(pixels.load(image).ravel(), np.array(GREY.split(), int)) for image in rows.image)


def test_fer2013_in_utf16_is_refused_since_single_images_could_not_be_found_in_it(tmp_path):
    (tmp_path / "fer2013.csv").write_bytes(fer().encode("utf-16"))
    with pytest.raises(DataError, match="fer2013.csv: is UTF-16 text, .*; save it as UTF-8"):
        read(tmp_path)


def test_kaggles_parts_of_fer2013(tmp_path, capsys):
    (tmp_path / "train.csv").write_text(without_usage(fer()))
    (tmp_path / "test.csv").write_text(f"pixels\n{GREY}\n")
    rows, _ = read(tmp_path)
    assert list(rows.official) == ["train"] * 3 and "no official test images of FER2013" in capsys.readouterr().out
    (tmp_path / "icml_face_data.csv").write_text(fer())
    (tmp_path / "fer2013").mkdir()
    (tmp_path / "fer2013/fer2013.csv").write_text(fer())
    assert list(read(tmp_path)[0].official) == ["train", "val", "test"]  # the others are copies and parts of it
    (tmp_path / "icml_face_data.csv").write_text(fer("0,Training"))
    with pytest.raises(DataError, match="fer2013.csv and .*icml_face_data.csv are different tables of FER2013"):
        read(tmp_path)
    (tmp_path / "icml_face_data.csv").unlink()
    (tmp_path / "train.csv").write_text(without_usage(fer("0,x 0,x")))
    with pytest.raises(DataError, match="train.csv: has more images of an expression than .*fer2013.csv"):
        read(tmp_path)


def test_affectnets_validation_list_has_no_header(tmp_path, capsys):
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    for number in range(4):
        put(tmp_path / f"images/{number % 2}/{number}.jpg")
    (tmp_path / "training.csv").write_text(header + "0/0.jpg,1,2,30,31,1.5;2.5;3;4;5;6;7;8;9,0,0.1,0.1\n"
                                                    "1\\1.JPG,1,2,30,31,1;2,1.0,0.1,0.1\n")
    (tmp_path / "validation.csv").write_text("0/2.jpg,1,2,30,31,1.5;2.5;3;4;5;6;7;8;9;10;11,2,0.1,0.1\n"
                                             "1/3.jpg,1,2,30,31,1;2,3,0.1,0.1\n")
    rows, rejected = read(tmp_path)
    assert dict(zip(rows.expression, rows.official, strict=True)) == {
        "neutral": "train", "happiness": "train", "sadness": "val", "surprise": "val"}
    assert rejected.empty and all(list(face) == [1, 2, 30, 31] for face in rows.face)
    assert "validation.csv: has no header" in capsys.readouterr().out


@pytest.mark.parametrize("names", ["{0: anger, 3: happiness, 4: sadness}", '{"0": anger, "3": happiness, 4: sadness}'])
def test_names_of_numbers_need_no_quotes(tmp_path, names):
    for number in (0, 3, 4):
        put(tmp_path / f"set/{number}/{number}.jpg")
    (tmp_path / "job.yaml").write_text(f"name: n\ndata:\n  root: {tmp_path}/set\n  names: {names}\n")
    config = options.load(["--config", str(tmp_path / "job.yaml")])
    assert labels_of(config.data.root, kind="folder", names=config.data.names) == NAMES


def test_a_table_of_no_layout_shows_its_columns(tmp_path):
    (tmp_path / "faces.csv").write_text("file;emotion\na.jpg;sad\n")
    with pytest.raises(DataError, match="no layout that is known; faces.csv: its columns are file, emotion; or name"):
        read(tmp_path)


def test_tables_in_several_folders_are_several_data_sets(tmp_path):
    for name in ("one", "two"):
        put(tmp_path / name / "images/a.jpg")
        (tmp_path / name / "labels.csv").write_text("image,expression\na.jpg,sad\n")
    assert sorted(read(tmp_path)[0].dataset) == ["one", "two"]


@pytest.mark.parametrize(("file", "text", "folder"), [
    ("labels.tsv", "image\texpression\na.jpg\tsad\nb.jpg\tfear\n", "images"),
    ("labels.csv", "filename|emotion_label\na.jpg|sad\nb.jpg|fear\n", "images"),
    ("faces/metadata.csv", "file_name;Label\na.jpg;sad\nb.jpg;fear\n", "faces"),
    ("labels.csv", "path,emotion\npics/a.jpg,sad\npics/b.jpg,fear\n", "pics")])
def test_tables_of_other_columns_beside_their_images(tmp_path, file, text, folder, capsys):
    for name in ("a", "b", "more"):
        put(tmp_path / folder / f"{name}.jpg")
    (tmp_path / file).write_text(text)
    rows, rejected = read(tmp_path)
    assert sorted(rows.expression) == ["fear", "sadness"] and list(rejected.reason) == ["no row of the table names it"]
    assert ("is taken for 'expression'" in capsys.readouterr().out) == ("expression" not in text.partition("\n")[0])


def test_a_table_of_paths_and_labels_takes_no_image_from_the_folder_of_a_class(tmp_path):
    for name in ("happy/a.jpg", "sad/b.jpg"):
        put(tmp_path / name)
    (tmp_path / "list.csv").write_text("path,label\nhappy/a.jpg,0\nsad/b.jpg,1\n")
    rows, _ = read(tmp_path)
    assert sorted(rows.expression) == ["happiness", "sadness"] and set(rows.dataset) == {"folder"}


def test_shards_with_hashes_and_in_folders_of_splits(tmp_path):
    for name in ("train-00000-of-00002-a09b74b3", "train-00001-of-00002-b19b74b3", "test-00000-of-00001-c29b74b3"):
        write_shard(tmp_path / f"hub/{name}.parquet", [0])
    for name in ("train/0000", "train/0001", "validation/0000"):
        (tmp_path / "converted").mkdir(exist_ok=True)
        write_shard(tmp_path / f"converted/{name}.parquet", [3])
    for folder, other in (("hub", "test"), ("converted", "val")):
        rows, _ = read(tmp_path / folder, names=NAMES)
        assert sorted(rows.official) == sorted(["train", "train", other])


def test_a_table_with_the_line_ends_of_old_macintoshes_says_so(tmp_path):
    put(tmp_path / "images/a.jpg")
    (tmp_path / "t.csv").write_text("image,expression\ra.jpg,sad\r")
    with pytest.raises(DataError, match="t.csv: its lines end as on old Macintoshes"):
        read(tmp_path)
