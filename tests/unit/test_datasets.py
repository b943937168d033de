import collections

import cv2
import numpy as np
import pytest

from fer_ray import datasets
from fer_ray.config import CkPlusConfig, DataConfig, SampleConfig, SourceConfig, TableConfig
from fer_ray.datasets import ckplus, jaffe, sample, table
from fer_ray.faces import FaceFinder
from fer_ray.manifest import DataError, canonical_expression


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    sample.write_sample(folder, subjects=6, seed=0)
    return folder


def write_table(folder, text, names=("a_1.jpg", "b_1.jpg")):
    (folder / "images").mkdir()
    for name in names:
        cv2.imwrite(str(folder / "images" / name), np.zeros((40, 40), np.uint8))
    (folder / "t.csv").write_text(text)
    return folder


def test_ckplus_selects_by_position_and_loses_nothing(root):
    found = ckplus.read(root / "CK+", CkPlusConfig(neutral_below=20, expression_above=50))
    rows, rejected = found.rows.to_pandas(), found.rejected.to_pandas()
    assert len(rows) + len(rejected) == len(list((root / "CK+").rglob("*.png")))
    assert (rows[rows.expression == "neutral"].position <= 0.2 + 1e-6).all()
    assert (rows[rows.expression != "neutral"].position >= 0.5).all()
    assert set(rejected.reason) == {"sequence without label", "between neutral and expression"}
    assert rows.subject.nunique() == 6


def test_ckplus_unlabelled_sequences_give_neutral_frames(root):
    skip, neutral = (ckplus.read(root / "CK+", CkPlusConfig(unlabelled=how)).rows.to_pandas()
                     for how in ("skip", "neutral"))
    more = neutral[~neutral.image.isin(skip.image)]
    assert len(more) and set(more.expression) == {"neutral"}


def test_ckplus_damaged_label_names_the_file(root, tmp_path):
    (tmp_path / "cohn-kanade-images/S005/001").mkdir(parents=True)
    (tmp_path / "cohn-kanade-images/S005/001/S005_001_00000001.png").touch()
    (tmp_path / "Emotion/S005/001").mkdir(parents=True)
    (tmp_path / "Emotion/S005/001/S005_001_00000001_emotion.txt").write_text("   nine\n")
    with pytest.raises(DataError, match="emotion.txt: 'nine'"):
        ckplus.read(tmp_path, CkPlusConfig())


def test_jaffe_reads_names(root):
    rows = jaffe.read(root / "jaffe").rows.to_pandas()
    assert rows.subject.nunique() == 3
    assert collections.Counter(rows.expression) == dict.fromkeys(sample.JAFFE_CODES, 6)


def test_table_keeps_each_image_once_and_rejects_contradictions(tmp_path):
    write_table(tmp_path, "image,expression\na_1.jpg,Happy\na_1.jpg,HAPPINESS\nb_1.jpg,fear\nb_1.jpg,sad\n"
                          "gone.jpg,fear\n../t.csv,fear\n")
    found = table.read(tmp_path, TableConfig(subject_pattern=r"^(\w+)_\d"))
    assert found.rows.to_pylist()[0] | {"image": ""} == {
        "image": "", "expression": "happiness", "subject": "table:a", "sequence": None, "frame": None,
        "position": None, "dataset": "table"}
    assert collections.Counter(found.rejected.column("reason").to_pylist()) == {
        "listed twice": 1, "conflicting labels: fear, sadness": 2, "file not found": 1,
        "path leaves the image folder": 1}


def test_table_errors_name_file_row_and_value(tmp_path):
    write_table(tmp_path, "image,expression\na_1.jpg,happy\nb_1.jpg,hapy\n")
    with pytest.raises(DataError, match=r"t.csv row 3: unknown expression 'hapy'.*known: anger"):
        table.read(tmp_path, TableConfig())
    with pytest.raises(DataError, match="no column 'emotion'; its columns are image, expression"):
        table.read(tmp_path, TableConfig(expression_column="emotion"))


def test_sources_are_joined_and_missing_folders_named(root, tmp_path):
    both = [SourceConfig("ckplus", "CK+"), SourceConfig("jaffe", "jaffe")]
    rows = datasets.read_manifest(DataConfig(root=str(root), sources=both)).rows
    assert set(rows.column("dataset").to_pylist()) == {"ckplus", "jaffe"}
    with pytest.raises(DataError, match="nowhere is not a folder"):
        datasets.read_manifest(DataConfig(kind="jaffe", root=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="is not set"):
        datasets.read_manifest(DataConfig(root="$FER_RAY_NO_SUCH_VARIABLE"))


def test_sample_is_deterministic_and_never_overwrites_other_files(root, tmp_path):
    again = tmp_path / "again"
    assert len(datasets.read_manifest(DataConfig("sample", str(again), sample=SampleConfig(6, 0))).rows)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (again / f).read_bytes() for f in files)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="holds files"):
        sample.write_sample(tmp_path, 6, 0)


def test_haar_finds_exactly_one_face_in_the_sample(root):
    finder, images = FaceFinder(), [*root.rglob("*.tiff"), *sorted(root.rglob("*.png"))[::3]]
    pixels = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in images]
    one = [len(finder.cascade.detectMultiScale(p, 1.1, 5)) == 1 for p in pixels]
    assert np.mean(one) >= 0.95
    assert np.mean([finder.find(p) is not None for p in pixels]) >= 0.99


@pytest.mark.parametrize(("name", "expected"), [(" Happy", "happiness"), ("ANGER", "anger"), ("sad", "sadness")])
def test_spellings(name, expected):
    assert canonical_expression(name, "here") == expected
