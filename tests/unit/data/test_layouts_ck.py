"""CK+ and CK+48 as they are copied: frames missing or renumbered, other names and nesting, other folders beside."""

import collections

import pytest
from data_sets import put, put_sequence, read, reasons
from hypothesis import given
from hypothesis import strategies as st

from fer_ray.data.layouts import ckplus
from fer_ray.data.layouts.ckplus import Span, span
from fer_ray.data.manifest import DataError
from fer_ray.data_config import CkPlusConfig

PEOPLE = range(5, 9)
UNKNOWN = "place in the sequence unknown: frames renumbered, or the labelled one missing"


def counted(rows):
    return dict(collections.Counter(rows.expression))


@pytest.mark.parametrize(("numbers", "labelled", "expected"), [
    (range(1, 12), 11, Span(1, 11)),  # whole
    ([11], 11, Span(1, 11)), ([9, 10, 11], 11, Span(1, 11)), (range(4, 12), 11, Span(1, 11)),  # the last ones
    ([1, 9, 10, 11], 11, Span(1, 11)), (range(1, 12, 2), 11, Span(1, 11)),  # gaps
    (range(1, 10), 11, Span(1, 11)),  # without the apex
    (range(0, 11), 10, Span(0, 10)), (range(0, 11), 11, Span(0, 11)),  # counted from 0
    (range(1, 72), 71, Span(1, 71)),
    ([1, 2, 3], 3, Span(None, 3)), ([1], 1, Span(None, 1)),  # the last ones renumbered, with their label
    ([1, 2, 3], 11, Span(None, None)), ([1], 11, Span(None, None)),  # and without
    (range(101, 112), 111, Span(101, 111)), (range(101, 112), 11, Span(101, 111)),  # counted from elsewhere
    ([109, 110, 111], 111, Span(None, 111)),
    (range(1, 9), None, Span(1, 8)), ([16, 17, 18], None, Span(1, 18))])  # without label
def test_the_ends_of_a_sequence_follow_from_the_numbers(numbers, labelled, expected):
    assert span(list(numbers), labelled) == expected


@given(st.integers(6, 71), st.data())
def test_frames_that_a_copy_lacks_change_the_place_of_no_other(length, data):
    whole = span(list(range(1, length + 1)), length)
    kept = data.draw(st.sets(st.integers(1, length - 1))) | {length}
    assert all(span(sorted(kept), length).position(n) == whole.position(n) for n in kept)


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 71), st.sampled_from(["percent", "peak"]))
def test_every_frame_is_selected_or_has_a_reason(one, other, count, protocol):
    options = CkPlusConfig(protocol, neutral_below=min(one, other), expression_above=max(one, other))
    for label in ("fear", None):
        ends = span(list(range(1, count + 1)), count if label else None)
        for number in range(1, count + 1):
            expression, reason = ckplus.select(label, number, ends, options)
            assert (expression is None) != (reason is None)
            assert expression in ("fear", "neutral", None)
        assert label is None or expression == "fear"  # the apex


@pytest.mark.parametrize("protocol", ["percent", "peak"])
@pytest.mark.parametrize(("kept", "expected"), [
    (1, {"disgust": 4}), (3, {"disgust": 12}), (None, {"neutral": 4, "disgust": 12})])
def test_copies_of_the_last_frames_have_no_neutral(tmp_path, kept, expected, protocol):
    for person in PEOPLE:
        last = person + 10
        numbers = range(last - kept + 1, last + 1) if kept else [1, last - 2, last - 1, last]
        put_sequence(tmp_path, numbers, last, sequence=f"S{person:03}/001")
    rows, rejected = read(tmp_path, ckplus=CkPlusConfig(protocol))
    assert counted(rows) == expected and rejected.empty
    assert rows.subject.nunique() == 4


def test_frames_whose_place_is_unknown_are_rejected(tmp_path):
    put_sequence(tmp_path, [1, 2, 3], 3)  # renumbered
    put_sequence(tmp_path, [1, 2, 3], 18, sequence="S006/001")  # renumbered, the label is not
    put_sequence(tmp_path, range(101, 111), 110, sequence="S007/001")
    put_sequence(tmp_path, [4, 5], None, sequence="S008/001")
    rows, rejected = read(tmp_path, ckplus=CkPlusConfig(unlabelled="neutral"))
    assert counted(rows[rows.subject == "ckplus:S005"]) == {"disgust": 1} and "ckplus:S006" not in set(rows.subject)
    assert rows[rows.subject == "ckplus:S007"].expression.value_counts()["neutral"] == 2
    assert reasons(rejected) == {UNKNOWN: 6, "sequence without label": 1, "between neutral and expression": 2}


@pytest.mark.parametrize("options", [
    {"images": "CK+/images/{subject}/{sequence}", "labels": "CK+/labels/{subject}/{sequence}"},
    {"images": "frames", "labels": "labels"}, {"images": "all", "labels": "all"},
    {"names": "{subject}_{sequence}_{number:08}.TIFF"}, {"names": "{subject}_{sequence}_{number:08}.jpeg"},
    {"images": "COHN-KANADE-IMAGES/{subject}/{sequence}", "labels": "emotion_labels/{subject}/{sequence}"}])
def test_other_names_and_nesting(tmp_path, options):
    for person in PEOPLE:
        put_sequence(tmp_path, range(1, 7), 6, sequence=f"S{person:03}/001", **options)
    if "TIFF" in options.get("names", ""):  # one name in lower case is the same person
        for path in list((tmp_path / "cohn-kanade-images/S005/001").iterdir()):
            path.rename(path.with_name(path.name.lower()))
    rows, rejected = read(tmp_path)
    assert counted(rows) == {"neutral": 8, "disgust": 12} and reasons(rejected) == {"between neutral and expression": 4}
    assert set(rows.subject) == {f"ckplus:S{person:03}" for person in PEOPLE}


def test_a_frame_that_is_there_twice_counts_once(tmp_path):
    put_sequence(tmp_path, range(1, 7), 6)
    put_sequence(tmp_path, range(1, 7), 6, names="{subject}_{sequence}_{number:08}.tiff")
    rows, rejected = read(tmp_path)
    assert len(rows) == 5 and sum("the same frame as" in reason for reason in rejected.reason) == 6


# --- CK+48 ---------------------------------------------------------------------------------------------


def put_ck48(root, folders=("anger", "happy"), people=PEOPLE, suffix="png"):
    for folder in folders:
        for person in people:
            for frame in (15, 16, 17):
                put(root / folder / f"S{person:03}_004_{frame:08}.{suffix}", 48)


def test_ck48_in_splits(tmp_path):
    put_ck48(tmp_path / "train", people=range(5, 10))
    put_ck48(tmp_path / "test", people=range(10, 12), suffix="JPEG")
    rows, rejected = read(tmp_path)
    assert dict(collections.Counter(zip(rows.official, rows.expression, strict=True))) == {
        ("train", "anger"): 15, ("train", "happiness"): 15, ("test", "anger"): 6, ("test", "happiness"): 6}
    assert rejected.empty and rows.subject.nunique() == 7 and set(rows.dataset) == {"ck48"}


def test_ck48_with_neutral_faces_from_elsewhere(tmp_path):
    put_ck48(tmp_path)
    for number in range(5):
        put(tmp_path / f"neutral/face{number}.png")
    rows, rejected = read(tmp_path)
    assert counted(rows) == {"anger": 12, "happiness": 12, "neutral": 5} and rejected.empty
    of_ck48 = rows[rows.expression != "neutral"]
    assert set(of_ck48.dataset) == {"ck48"} and set(of_ck48.subject) == {f"ckplus:S{person:03}" for person in PEOPLE}
    beside = rows[rows.expression == "neutral"]
    assert beside.subject.isna().all() and set(beside.dataset) == {"folder"}


def test_ck48_beside_class_folders(tmp_path):
    put_ck48(tmp_path / "CK+48")
    for name in ("train/angry/1.jpg", "train/sad/2.jpg", "test/angry/3.jpg"):
        put(tmp_path / "FER2013" / name)
    rows, _ = read(tmp_path)
    assert dict(collections.Counter(rows.dataset)) == {"ck48": 24, "folder": 3}


def test_ck48_names_a_misspelt_class(tmp_path):
    put_ck48(tmp_path, ("anger", "hapy"))
    with pytest.raises(DataError, match="hapy: unknown expression 'hapy' .did you mean 'happy'.*data.names"):
        read(tmp_path)
    rows, _ = read(tmp_path, names={"hapy": "happiness"})
    assert counted(rows) == {"anger": 12, "happiness": 12}


def test_whole_frames_of_ckplus_in_folders_of_classes_are_no_crops(tmp_path):
    put_ck48(tmp_path, ["anger"])
    for file in tmp_path.rglob("*17.png"):
        file.write_bytes(file.read_bytes() + bytes(20_000))  # as large as a frame of 640 x 490 px
    rows, _ = read(tmp_path)
    assert dict(rows.groupby("frame").cropped.all()) == {15: True, 16: True, 17: False}
