"""Folders of classes with people, splits and other data sets around them; JAFFE's converted names."""

import collections

import pytest
from data_sets import put, read, reasons

from fer_ray.data.manifest import DataError
from fer_ray.data_config import FolderConfig


def put_classes(root, around, classes=("angry", "happy", "sad"), each=2):
    for place in around:
        for name in classes:
            for number in range(each):
                put(root / place / name / f"{number}.jpg")


@pytest.mark.parametrize("around", [
    ("ann", "bob", "carl", "dora"), ("faces/ann", "faces/bob", "faces/carl", "faces/dora"),
    ("train/ann", "train/bob", "test/carl", "test/dora"), ("ann", "bob", "su", "di")])  # su, di: codes of expressions
def test_people_are_the_folders_around_the_classes(tmp_path, around):
    put_classes(tmp_path, around)
    rows, rejected = read(tmp_path)
    assert set(rows.subject) == {f"folder:{place.rpartition('/')[2]}" for place in around} and rejected.empty
    assert collections.Counter(rows.expression) == {"anger": 8, "happiness": 8, "sadness": 8}
    assert set(rows.official.dropna()) == ({"train", "test"} if "train/ann" in around else set())


def test_data_sets_side_by_side_are_no_people(tmp_path):
    put_classes(tmp_path, ("setA", "setB", "fer2013/train", "fer2013/test"))
    rows, _ = read(tmp_path)
    assert collections.Counter(rows.dataset) == {"setA": 6, "setB": 6, "fer2013": 12} and rows.subject.isna().all()
    put(tmp_path / "setB/suprise/1.jpg")
    with pytest.raises(DataError, match="setB/suprise: unknown .* 'suprise' .did you mean 'surprise'.*data.names"):
        read(tmp_path)


def test_folders_that_may_be_the_people_on_two_levels_are_asked_for(tmp_path):
    put_classes(tmp_path, ("lab/ann", "lab/bob", "home/carl"))
    with pytest.raises(DataError, match="which of the folders around the classes are the people.*subject_pattern"):
        read(tmp_path)
    rows, _ = read(tmp_path, folder=FolderConfig(subject_pattern="^[a-z]+/([a-z]+)/"))
    assert set(rows.subject) == {"folder:ann", "folder:bob", "folder:carl"}


def test_the_pattern_sees_the_path_below_the_root(tmp_path):
    put_classes(tmp_path, ("ann", "bob", "carl"))
    rows, _ = read(tmp_path, folder=FolderConfig(subject_pattern=r"^(\w+)/"))
    assert set(rows.subject) == {"folder:ann", "folder:bob", "folder:carl"}
    put_classes(tmp_path / "inside", ("train", "test"), ("angry/p1", "sad/p2"))
    rows, _ = read(tmp_path / "inside", folder=FolderConfig(subject_pattern=r"^\w+/\w+/(\w+)/"))
    assert set(rows.subject) == {"folder:p1", "folder:p2"} and set(rows.official) == {"train", "test"}


@pytest.mark.parametrize(("name", "words"), [
    ("Ahegao", "dataset/Ahegao: unknown expression 'Ahegao'; say what it is by data.names"),
    ("Hapiness", "unknown expression 'Hapiness' .did you mean 'happiness'")])
def test_an_unknown_class_is_named(tmp_path, name, words):
    put_classes(tmp_path, ["dataset"], ("Angry", "Happy", "Sad", name))
    with pytest.raises(DataError, match=words):
        read(tmp_path)
    rows, rejected = read(tmp_path, names={name: "other"})
    assert len(rows) == 6 and reasons(rejected) == {f"no expression: {name}": 2}


def test_numbered_classes_ask_what_they_mean(tmp_path):
    put_classes(tmp_path, ("train", "test"), list("0123456"))
    with pytest.raises(DataError, match="unknown expression '0'; a number means another.*data.names"):
        read(tmp_path)
    order = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    rows, _ = read(tmp_path, names={str(n): expression for n, expression in enumerate(order)})
    assert collections.Counter(rows.expression) == dict.fromkeys(order, 4)


def test_pictures_of_a_split_without_labels_are_rejected(tmp_path):
    put_classes(tmp_path, ("Train", "Val"))
    for number in range(4):
        put(tmp_path / f"Test/{number}.png")
    rows, rejected = read(tmp_path)
    assert collections.Counter(rows.official) == {"train": 6, "val": 6}
    assert reasons(rejected) == {"not in the folder of a class": 4}


def test_jaffe_under_converted_names(tmp_path):
    for name in ("KA.AN1.39.tiff", "KA-AN2.40.tiff", "KL_HA1_41.png", "KL.HA2.42.jpeg", "uy.su1.jpg",
                 "YM.NE1.50.tiff.bmp"):
        put(tmp_path / "jaffe" / name)
    rows, rejected = read(tmp_path)
    assert collections.Counter(rows.expression) == {"anger": 2, "happiness": 2, "surprise": 1, "neutral": 1}
    assert set(rows.subject) == {"jaffe:KA", "jaffe:KL", "jaffe:UY", "jaffe:YM"} and rejected.empty


@pytest.mark.parametrize(("inside", "people"), [
    (("ann", "bob", "carl"), {"folder:ann", "folder:bob", "folder:carl"}),
    (("part1", "part2", "part3"), set()), (("001", "002", "003"), set()), (("ann", "bob"), set())])
def test_folders_in_those_of_the_classes_are_people_where_that_is_evident(tmp_path, inside, people):
    for split in ("Training_Set", "test_images"):
        put_classes(tmp_path / split, ("angry", "happy"), inside)
    rows, _ = read(tmp_path)
    assert set(rows.subject.dropna()) == people and rows.subject.isna().all() == (not people)
    assert collections.Counter(rows.official) == {"train": 4 * len(inside), "test": 4 * len(inside)}


def test_pictures_that_were_made_from_others_are_rejected(tmp_path):
    for name in ("a.jpg", "a_aug1.jpg", "a_flip.JPG", "b-rot15.png", "b-rot30.png", "a_rotterdam.jpg", "crop.jpg"):
        put(tmp_path / "happy" / name)
    put(tmp_path / "sad/KA.SA1.9.tiff"), put(tmp_path / "sad/KA.SA1.9_flip.png")
    rows, rejected = read(tmp_path)
    assert {image.rpartition("/")[2] for image in rows.image} == {
        "a.jpg", "b-rot15.png", "a_rotterdam.jpg", "crop.jpg", "KA.SA1.9.tiff"}
    assert reasons(rejected) == {"made from another picture of the set": 4}


def test_names_in_another_language_hold_in_any_case_and_are_asked_for(tmp_path):
    put_classes(tmp_path, ("train", "test"), ("Freude", "Wut", "TRAUER"), each=1)
    with pytest.raises(DataError, match="no layout that is known; pictures lie in test/Freude .1, such.*names"):
        read(tmp_path)
    rows, _ = read(tmp_path, names={"freude": "happiness", "Wut": "anger", "Trauer": "sadness"})
    assert collections.Counter(rows.expression) == {"happiness": 2, "anger": 2, "sadness": 2}
