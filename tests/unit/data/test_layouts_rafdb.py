"""RAF-DB in numbered folders, with multiplied pictures, and beside its compound emotions."""

import collections

import pytest
from data_sets import put, put_numbered_rafdb, read, reasons

from fer_ray.data.layouts import rafdb
from fer_ray.data.manifest import DataError

OWN = list(rafdb.CODES.values())
SOME = [size // 25 for size in rafdb.SIZES]  # a copy of some hundred pictures
# FER2013's order of the same classes
FER = ["anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral"]


def in_order(order):
    return [rafdb.SIZES[OWN.index(expression)] for expression in order]


def numbering(counts, first, names=None):
    found = rafdb.numbering({str(n): count for n, count in enumerate(counts, start=first)}, names or {}, "RAF")
    return [found[str(n)] for n in range(first, first + len(counts))]


def test_numbers_are_told_by_how_many_pictures_each_class_has():
    assert sum(rafdb.SIZES) == 15339
    for counts in (rafdb.SIZES, SOME):
        assert numbering(counts, 0) == numbering(counts, 1) == OWN
    assert numbering([3] * 7, 1) == OWN  # RAF-DB's codes, in a copy too small to tell
    for counts, first in (([3] * 7, 0), (in_order(FER), 0), (in_order(FER), 1), (in_order(sorted(OWN)), 1),
                          ([300] * 7, 0), ([5] * 8, 0), ([5] * 8, 1), ([5] * 6, 1)):
        with pytest.raises(DataError, match='RAF: which expression each .* cannot be told.*data.names, such as {"0"'):
            numbering(counts, first)


def test_names_of_the_user_hold_unless_the_counts_contradict():
    names = {str(n): expression for n, expression in enumerate(FER)}
    assert numbering([3] * 7, 0, names) == FER and numbering(in_order(FER), 0, names) == FER
    with pytest.raises(DataError, match="data.names says other expressions .* pictures .0: 1619.*0 surprise"):
        numbering(rafdb.SIZES, 0, names)
    assert numbering(rafdb.SIZES, 1, names) == OWN  # they are another data set's: folder 7 is not among them


@pytest.mark.parametrize("first", [0, 1])
def test_numbered_folders(tmp_path, first):
    put_numbered_rafdb(tmp_path, SOME, first)
    rows, rejected = read(tmp_path)
    counts = collections.Counter(rows.expression)
    assert [counts[expression] for expression in OWN] == SOME and rejected.empty
    assert set(rows.official) == {"train", "test"} and rows.cropped.all()


def test_a_folder_that_one_split_lacks_is_no_other_numbering(tmp_path):
    put_numbered_rafdb(tmp_path, [2] * 7, 0, more=("test/3/test_00099_aligned.jpg",))
    with pytest.raises(DataError, match="0: 2, 1: 2, 2: 2, 3: 3.*data.names"):
        read(tmp_path)
    rows, _ = read(tmp_path, names={str(n): expression for n, expression in enumerate(OWN)})
    assert collections.Counter(rows.expression) == dict.fromkeys(OWN, 2) | {"happiness": 3}


def test_multiplied_pictures_are_rejected_and_names_in_capitals_read(tmp_path):
    put_numbered_rafdb(tmp_path, [2] * 7, more=(
        "train/1/train_00001_aligned_aug1.jpg", "train/1/train_00001_aligned_aug2.JPG",
        "train/2/TRAIN_00051_aligned.JPG", "train/2/train_00052.jpeg",
        "train/3/train_00060_aligned_flip.png", "train/3/train_00001_aligned.jpg", "train/4/snapshot.jpg"))
    rows, rejected = read(tmp_path)
    assert len(rows) == 14 + 3 - 1
    assert reasons(rejected) == {"made from another picture of the set": 2, "no RAF-DB name": 1,
                                 "conflicting labels: disgust, surprise": 2}


def test_a_list_with_other_names_of_files(tmp_path):
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "EmoLabel/list_patition_label.txt").write_text(
        "train_00001.jpg 5\ntrain_00002_aligned.jpg\t4\ntest_0001.jpg 7\ntest_0002.jpg 7\n")
    for name in ("aligned/train_00001_aligned.JPG", "original/train_00001.jpg", "aligned/train_00002_aligned.png",
                 "aligned/train_00002_aligned_aug1.png", "original/test_0001.jpeg"):
        put(tmp_path / "Image" / name)
    rows, rejected = read(tmp_path)
    assert sorted(zip(rows.expression, rows.official, rows.cropped, strict=True)) == [
        ("happiness", "train", True), ("neutral", "test", False), ("sadness", "train", True)]
    assert reasons(rejected) == {"file not found": 1, "made from another picture of the set": 1}


def test_compound_emotions_are_refused_by_name(tmp_path):
    put(tmp_path / "Image/aligned/train_0001_aligned.jpg")
    (tmp_path / "EmoLabel").mkdir()
    (tmp_path / "EmoLabel/list_patition_label.txt").write_text("train_0001.jpg 1\ntrain_0002.jpg 11\n")
    with pytest.raises(DataError, match="line 2: 'train_0002.jpg 11'.*compound emotions.*folder of the basic ones"):
        read(tmp_path)


@pytest.mark.parametrize("folders", [True, False])
def test_kaggles_tables_of_numbers(tmp_path, folders):
    put_numbered_rafdb(tmp_path, [7] * 7)
    pictures = sorted(tmp_path.rglob("*.jpg"))
    for split in ("train", "test"):
        rows = [f"{file.name},{file.parent.name}" for file in pictures if file.name.startswith(split)]
        (tmp_path / f"{split}_labels.csv").write_text("\n".join(["image,label", *rows]))
    if not folders:
        for file in pictures:
            file.rename(file.parent.parent / file.name)
    rows, rejected = read(tmp_path)
    assert collections.Counter(rows.expression) == dict.fromkeys(OWN, 7) and rejected.empty
    assert collections.Counter(rows.official) == {"train": 42, "test": 7}
    table = tmp_path / "train_labels.csv"
    table.write_text(table.read_text().replace(",1", ",2"))
    if folders:
        with pytest.raises(DataError, match="train_labels.csv: train_.* has the label '2' and lies in .* surprise"):
            read(tmp_path)
    table.write_text(table.read_text().replace(",7", ",0"))
    if not folders:
        (tmp_path / "test_labels.csv").unlink()
        with pytest.raises(DataError, match="train_labels.csv: which expression each number stands for.*data.names"):
            read(tmp_path)
