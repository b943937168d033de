"""What is recognised, joined and left out, and the drawn sample."""

import os

import pandas as pd
import pytest
from data_sets import put, read
from hypothesis import given
from hypothesis import strategies as st

from fer_ray.data import pixels, sources
from fer_ray.data.manifest import EXPRESSIONS, DataError, canonical_expression
from fer_ray.data_config import DataConfig, SampleConfig, SourceConfig


@pytest.fixture(scope="module")
def root(sample_of, tmp_path_factory):
    return sample_of(tmp_path_factory.mktemp("sample"), people=6)


def test_every_layout_is_recognised_and_said(root, tmp_path, capsys):
    rows, _ = read(root)
    assert set(rows.dataset) == {"CK+ (drawn sample)", "JAFFE (drawn sample)"}
    said = capsys.readouterr().out
    assert f"recognised ckplus in {root}: cohn-kanade-images/ and Emotion/" in said and "recognised jaffe" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no layout that is known; .*data.kind.*cohn-kanade-images"):
        read(tmp_path / "empty")


def test_sources_are_joined_and_missing_folders_named(root, tmp_path):
    both = [SourceConfig("ckplus", "CK+"), SourceConfig("jaffe", "jaffe")]
    rows = sources.read_manifest(DataConfig(root=str(root), sources=both)).rows
    assert set(rows.column("dataset").to_pylist()) == {"CK+ (drawn sample)", "JAFFE (drawn sample)"}
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read(tmp_path / "nowhere", kind="jaffe")
    with pytest.raises(DataError, match="is not set"):
        sources.read_manifest(DataConfig(root="$FER_RAY_NO_SUCH_VARIABLE"))
    with pytest.raises(DataError, match="JAFFE .drawn sample. stands there twice; give each source a name"):
        sources.read_manifest(DataConfig(root=str(root), sources=[both[1], both[1]]))


def test_names_in_any_encoding_are_read(tmp_path):
    (tmp_path / "happy").mkdir()
    content = put(tmp_path / "x.png").read_bytes()
    names = [b"caf\xe9.png", "表情#row=1.png".encode(), b"a b%20?.png", b"line\nbreak.png", b"-rf $(x).png"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path / "happy"), name), "wb") as stream:
            stream.write(content)
    (tmp_path / "x.png").unlink()
    rows, _ = read(tmp_path)
    assert len(rows) == len(names) and all(pixels.load(i).shape == (40, 40) for i in rows.image)


@pytest.mark.parametrize(("name", "expected"), [(" Happy", "happiness"), ("ANGER", "anger"), ("sad", "sadness"),
                                                ("3-Fear", "fear"), ("DI", "disgust"), ("AF", "fear")])
def test_spellings(name, expected):
    assert canonical_expression(name, "here") == expected


@given(st.text(max_size=12))
def test_a_name_is_an_expression_or_an_error(name):
    try:
        assert canonical_expression(name, "here") in EXPRESSIONS
    except DataError as error:
        assert repr(name) in str(error)


@given(st.lists(st.sampled_from(EXPRESSIONS), min_size=1, max_size=20), st.randoms())
def test_the_order_of_rows_never_matters(tmp_path_factory, expressions, random):
    from fer_ray.data.manifest import build

    rows = [{"image": f"{i:03}.png", "expression": e, "subject": str(i % 3)} for i, e in enumerate(expressions)]
    shuffled = random.sample(rows, len(rows))
    assert build(rows, [], "d", "p").rows.equals(build(shuffled, [], "d", "p").rows)
    assert pd.Series(build(rows, [], "d", "p").rows.column("subject").to_pylist()).str.startswith("p:").all()


def test_excluded_images_carry_their_reason_and_unknown_ones_are_refused(tmp_path):
    put(tmp_path / "data/fear/a.png"), put(tmp_path / "data/fear/b.png")
    rows, _ = read(tmp_path / "data")
    out = tmp_path / "out.csv"
    pd.DataFrame({"image": rows.image[:1], "reason": ["looks like anger"]}).to_csv(out)
    marked, _ = read(tmp_path / "data", exclude=str(out))
    assert marked.excluded.fillna("").tolist() == ["excluded by out.csv: looks like anger", ""]
    for text, words in (("image\n/else.png\n", "names 1 images that are not in the data, such as '/else.png'"),
                        ("who\na.png\n", "data.exclude: .*out.csv: no column 'image'"), ("", "out.csv: is empty")):
        out.write_text(text)
        with pytest.raises(DataError, match=words):
            read(tmp_path / "data", exclude=str(out))
    with pytest.raises(DataError, match="data.exclude: .*none.csv: cannot be read"):
        read(tmp_path / "data", exclude=str(tmp_path / "none.csv"))
    out.write_bytes(f"Reason;IMAGE\nblurred;{rows.image[1]}\n".encode("utf-16"))
    marked, _ = read(tmp_path / "data", exclude=str(out))
    assert marked.excluded.fillna("").tolist() == ["", "excluded by out.csv: blurred"]


def test_drawn_faces_are_called_drawn_however_their_folder_is_given(root, tmp_path):
    """Nobody may take a score on them for one on people; subjects and the order of rows stay those of the layouts."""
    for data in (DataConfig("sample", str(root), sample=SampleConfig(6, 0)), DataConfig("auto", str(root)),
                 DataConfig("auto", str(root / "jaffe")), DataConfig("ckplus", str(root / "CK+")),
                 DataConfig(root=str(root), sources=[SourceConfig("ckplus", "CK+", "mine")])):
        rows = sources.read_manifest(data).rows.to_pandas()
        assert set(rows.dataset) <= {"CK+ (drawn sample)", "JAFFE (drawn sample)", "mine (drawn sample)"}
        assert set(rows.subject.str.partition(":")[0]) <= {"ckplus", "jaffe"}
        assert rows.equals(rows.sort_values(["dataset", "image"], ignore_index=True))
    put(tmp_path / "KA.AN1.39.png"), (tmp_path / "sample.json").write_text('{"what": "something else"}')
    assert list(read(tmp_path)[0].dataset) == ["jaffe"]


def test_a_copy_of_ckplus_under_another_name_shows_the_same_people_as_ck48(root, tmp_path):
    frame = sorted((root / "CK+").rglob("*.png"))[0]
    put(tmp_path / "CK+48/anger" / frame.name, 48)
    both = [SourceConfig("ckplus", str(root / "CK+"), "mine"), SourceConfig("ck48", str(tmp_path / "CK+48"))]
    rows = sources.read_manifest(DataConfig(root=str(root), sources=both)).rows.to_pandas()
    of_crop = rows[rows.dataset == "ck48"].subject
    assert len(of_crop) == 1 and set(of_crop) <= set(rows[rows.dataset != "ck48"].subject)
