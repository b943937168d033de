"""One file per layout: what lies on disk becomes rows, or rejected rows with a reason, or one error."""

import collections

import numpy as np
import pytest
from data_sets import GREY, put, put_sequence, read, reasons

from fer_ray.data import pixels, sample
from fer_ray.data.manifest import DataError
from fer_ray.data_config import CkPlusConfig, Fer2013Config


@pytest.fixture(scope="module")
def root(sample_of, tmp_path_factory):
    return sample_of(tmp_path_factory.mktemp("sample"), people=6)


# --- CK+ -----------------------------------------------------------------------------------------------


def test_ckplus_selects_by_position_and_loses_nothing(root):
    rows, rejected = read(root / "CK+", ckplus=CkPlusConfig(neutral_below=20, expression_above=50))
    assert len(rows) + len(rejected) == len(list((root / "CK+").rglob("*.png")))
    assert (rows[rows.expression == "neutral"].position <= 0.2 + 1e-6).all()
    assert (rows[rows.expression != "neutral"].position >= 0.5).all()
    assert set(rejected.reason) == {"sequence without label", "between neutral and expression"}
    assert rows.subject.nunique() == 6


def test_ckplus_first_frame_and_peak_frames(root):
    rows, _ = read(root / "CK+", ckplus=CkPlusConfig(protocol="peak", peak_frames=2))
    for _, frames in rows.groupby("sequence"):
        assert list(frames.sort_values("frame").expression == "neutral") == [True, False, False]
        assert frames.position.max() == 1


def test_ckplus_unlabelled_sequences_give_neutral_frames(root):
    skip, neutral = (read(root / "CK+", ckplus=CkPlusConfig(unlabelled=how))[0] for how in ("skip", "neutral"))
    more = neutral[~neutral.image.isin(skip.image)]
    assert len(more) and set(more.expression) == {"neutral"}


def test_ckplus_nested_with_colour_and_junk_and_a_label_without_sequence(tmp_path):
    images = tmp_path / "extended-cohn-kanade-images/cohn-kanade-images"
    for subject, sequence, length in (("S005", "001", 11), ("S999", "002", 6), ("S895", "001", 71)):
        for frame in range(1, length + 1):
            put(images / subject / sequence / f"{subject}_{sequence}_{frame:08}.png")
        (images / subject / sequence / ".DS_Store").touch()
        put(images / subject / sequence / f"._{subject}_{sequence}_00000001.png")
    labels = tmp_path / "Emotion_labels/Emotion"
    for place, text in (("S005/001/S005_001_00000011", "   3.0000000e+00\n"), ("S777/001/S777_001_00000009", " 1.0 ")):
        (labels / place).parent.mkdir(parents=True)
        (labels / f"{place}_emotion.txt").write_text(text)
    (labels / "S999/002").mkdir(parents=True)
    rows, rejected = read(tmp_path)
    assert len(rows) + len(rejected) == 11 + 6 + 71 + 1
    assert set(rows.expression) == {"neutral", "disgust"} and set(rows.sequence) == {"ckplus:S005/001"}
    assert reasons(rejected)["sequence without label"] == 77 and reasons(rejected)["label without its sequence"] == 1


@pytest.mark.parametrize("text", ["   nine\n", "8.0", "", "nan", "1e999", "2.7", "-0.5", "0_3", "3 5", "1e-1", "٣"])
def test_ckplus_damaged_label_names_the_file(tmp_path, text):
    put(tmp_path / "cohn-kanade-images/S005/001/S005_001_00000001.png")
    (tmp_path / "Emotion/S005/001").mkdir(parents=True)
    (tmp_path / "Emotion/S005/001/S005_001_00000001_emotion.txt").write_text(text)
    with pytest.raises(DataError, match=f"emotion.txt: '{text.strip()}' is no emotion code; right is a whole number"):
        read(tmp_path)


def test_ckplus_label_files_that_contradict_each_other_are_refused(tmp_path):
    put_sequence(tmp_path, [1, 11], 11)
    labels = tmp_path / "Emotion/S005/001"
    (labels / "S005_001_00000001_emotion.txt").write_text(" 3.0 ")
    assert list(read(tmp_path)[0].expression) == ["neutral", "disgust"]
    (labels / "S005_001_00000011_emotion.txt").write_text("5")
    with pytest.raises(DataError, match="contradict each other .*001_emotion.txt says disgust, .*011.* says happiness"):
        read(tmp_path)
    (labels / "S005_001_00000011_emotion.txt").rename(labels / "S006_001_00000011_emotion.txt")
    with pytest.raises(DataError, match="S006_001_00000011_emotion.txt: is named after S006/001 but .*S005/001"):
        read(tmp_path)


def test_ckplus_images_that_are_no_frames_of_their_folder_have_a_reason(tmp_path):
    folder = tmp_path / "cohn-kanade-images/S005/001"
    put_sequence(tmp_path, [1, 9], 9)
    for name in ("S006_001_00000003.png", "snapshot.png"):
        put(folder / name)
    rows, rejected = read(tmp_path)
    assert list(rows.expression) == ["neutral", "disgust"]
    assert reasons(rejected) == {"frame of S006/001 in another's folder": 1, "no CK+ frame name": 1}


def test_ck48_keeps_subject_and_sequence_and_shares_people_with_ckplus(tmp_path):
    put(tmp_path / "CK+48/anger/S010_004_00000017.png", 48)
    put(tmp_path / "CK+48/happy/S010_006_00000014.png", 48)
    (tmp_path / "CK+48/happy/notes.txt").touch()
    rows, rejected = read(tmp_path)
    assert list(rows.subject) == ["ckplus:S010"] * 2 and rows.sequence[0] == "ckplus:S010/004" and rows.cropped.all()
    assert set(rows.expression) == {"anger", "happiness"} and list(rows.frame) == [17, 14]
    assert reasons(rejected) == {"no CK+ frame name": 1}


def test_ckextended_cannot_be_split_by_subject(tmp_path):
    (tmp_path / "ckextended.csv").write_text(f"emotion,pixels,Usage\n7,{GREY},Training\n6,{GREY},PrivateTest\n")
    with pytest.raises(DataError, match="cannot be split by subject.*CK"):
        read(tmp_path)
    rows, _ = read(tmp_path, by="official")
    assert set(rows.expression) == {"contempt", "neutral"} and set(rows.official) == {"train", "test"}


# --- JAFFE ---------------------------------------------------------------------------------------------


def test_jaffe_reads_names(root):
    rows, _ = read(root / "jaffe")
    assert rows.subject.nunique() == 3
    assert collections.Counter(rows.expression) == dict.fromkeys(sample.JAFFE_CODES, 6)


def test_jaffe_nested_with_double_extensions_and_text_beside(tmp_path):
    place = tmp_path / "jaffedbase/jaffe"
    for name in ("KA.AN1.39.tiff", "KM.SU3.16.jpg", "ka.ne2.27.png", "._KA.AN1.39.tiff"):
        put(place / name)
    (place / "UY.HA2.138.tiff.bmp").write_bytes(put(tmp_path.parent / "x.bmp").read_bytes())
    put(tmp_path / "copy/KA.AN1.39.png")
    (place / "README_FIRST.txt").touch()
    rows, rejected = read(tmp_path)
    assert sorted(rows.subject) == ["jaffe:KA", "jaffe:KA", "jaffe:KM", "jaffe:UY"]
    assert reasons(rejected) == {"the same image as KA.AN1.39.png": 1}


# --- FER2013, FER+, RAF-DB, AffectNet ------------------------------------------------------------------


@pytest.mark.parametrize("header", ["emotion,pixels,Usage", "emotion, Usage, pixels"])
def test_fer2013_names_file_and_row_and_its_pixels_are_read(tmp_path, header):
    swap = header.endswith("pixels")
    lines = [(0, GREY, "Training"), (3, GREY, "PublicTest"), (6, GREY, "PrivateTest"), (2, "1 2 x", "Training"),
             (2, " ".join(["300"] * 2304), "Training"), (2, "1 2 3", "Training")]
    text = "\r\n".join([header, *(f"{e},{u},{p}" if swap else f"{e},{p},{u}" for e, p, u in lines)])
    (tmp_path / "icml_face_data.csv").write_text(text)
    rows, _ = read(tmp_path)
    assert list(rows.expression) == ["anger", "happiness", "neutral", "fear", "fear", "fear"]
    assert list(rows.official)[:3] == ["train", "val", "test"] and rows.cropped.all() and rows.subject.isna().all()
    assert "icml_face_data.csv#row=000000002,bytes=" in rows.image[0]
    assert (pixels.load(rows.image[1]).ravel() == np.arange(48 * 48) % 256).all()
    for number, why in ((3, "not whole numbers"), (4, "right is 0 to 255"), (5, "no square image")):
        with pytest.raises(ValueError, match=why):
            pixels.load(rows.image[number])


def test_fer2013_wrong_code_names_the_row(tmp_path):
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,Usage\n0,{GREY},Training\n9,{GREY},Training\n")
    with pytest.raises(DataError, match="fer2013.csv row 3: emotion '9'; right is 0 to 6"):
        read(tmp_path)


@pytest.mark.parametrize("votes", ["-3", "1_0", "2.5", "", "many"])
def test_votes_that_are_no_whole_numbers_name_the_row(tmp_path, votes):
    (tmp_path / "fer2013.csv").write_text(f"emotion,pixels,USAGE\n0,{GREY},Training\n")
    (tmp_path / "fer2013new.csv").write_text(
        "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
        f"Training,a.png,8,{votes},0,0,0,0,0,0,0,0\n")
    with pytest.raises(DataError, match=f"fer2013new.csv row 2: votes for happiness: '{votes}'; right is a whole"):
        read(tmp_path)


def test_ferplus_votes(tmp_path):
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n" + f"0,{GREY},Training\n" * 6)
    votes = ["fer1.png,8,0,0,1,1,0,0,0,0,0", ",0,0,0,0,0,0,0,0,0,10", "fer3.png,5,0,0,5,0,0,0,0,0,0",
             "fer4.png,0,0,0,0,0,0,0,0,9,1", "fer5.png,0,0,0,3,2,2,0,2,1,0", "fer6.png,0,0,0,0,0,0,0,10,0,0"]
    head = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
    file = tmp_path / "fer2013new.csv"
    file.write_text(head + "".join(f"Training,{v}\n" for v in votes))
    rows, rejected = read(tmp_path)
    assert list(rows.expression) == ["neutral", "contempt"]
    assert set(reasons(rejected)) == {"FER+ removed the image", "FER+: tie between neutral and sadness",
                                      "FER+: the annotators do not know", "FER+: less than 50% of the votes agree"}
    rows, _ = read(tmp_path, fer2013=Fer2013Config(min_agreement=0))
    assert list(rows.expression) == ["neutral", "sadness", "contempt"]
    rows, _ = read(tmp_path, fer2013=Fer2013Config(labels="fer2013"))
    assert list(rows.expression) == ["anger"] * 6
    file.write_text(head + f"Training,{votes[0]}\n")
    with pytest.raises(DataError, match="1 rows, but .* has 6"):
        read(tmp_path)


def test_rafdb_list_and_numbered_folders(tmp_path):
    label = tmp_path / "a/EmoLabel/list_patition_label.txt"
    label.parent.mkdir(parents=True)
    label.write_text("train_00001.jpg 5\ntest_0002.jpg 7\ntrain_00003.jpg 1\n")
    put(tmp_path / "a/Image/aligned/train_00001_aligned.jpg")
    put(tmp_path / "a/Image/original/test_0002.jpg")
    rows, rejected = read(tmp_path / "a")
    assert sorted(zip(rows.expression, rows.official, rows.cropped, strict=True)) == [
        ("neutral", "test", False), ("sadness", "train", True)]
    assert reasons(rejected) == {"file not found": 1}
    put(tmp_path / "b/DATASET/train/4/train_00002_aligned.jpg")
    put(tmp_path / "b/DATASET/test/7/test_0001_aligned.jpg")
    rows, _ = read(tmp_path / "b")
    assert sorted(zip(rows.expression, rows.official, strict=True)) == [("happiness", "train"), ("neutral", "test")]
    label.write_text("train_00001.jpg 5\ntest_0002.jpg 7\ntest_0002.jpg 7\ntrain_00001.jpg 3\n")
    rows, rejected = read(tmp_path / "a")
    assert list(rows.expression) == ["neutral"]
    assert reasons(rejected) == {"listed twice": 1, "conflicting labels: disgust, sadness": 2}
    label.write_text("train_00001.jpg 9\n")
    with pytest.raises(DataError, match="line 1: 'train_00001.jpg 9'.*1 to 7"):
        read(tmp_path / "a")


def test_affectnet_lists_with_boxes(tmp_path):
    put(tmp_path / "Manually_Annotated_Images/103/a.jpg", 300)
    lists = tmp_path / "Manually_Annotated_file_lists"
    lists.mkdir()
    head = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"
    (lists / "training.csv").write_text(head + '103/a.jpg,10,20,100,101,"1;2",7,0,0\n103/b.jpg,0,0,9,9,1,9,-2,-2\n')
    (lists / "validation.csv").write_text(head + "103/c.jpg,0,0,9,9,1,1,0,0\n")
    rows, rejected = read(tmp_path)
    assert rows.expression[0] == "contempt" and list(rows.face[0]) == [10, 20, 100, 101] and rows.official[0] == "train"
    assert reasons(rejected) == {"file not found": 2} and set(rejected.image.str[-5:]) == {"b.jpg", "c.jpg"}


@pytest.mark.parametrize(("box", "found"), [
    ("10,20,100,101", [10, 20, 100, 101]), ("10.4,20,1e2,101", [10, 20, 100, 101]), (",,,", None),
    ("NULL,NULL,NULL,NULL", None),
    ("ten,20,100,101", "no face box: ten 20 100 101"), ("1_0,20,100,101", "no face box: 1_0 20 100 101"),
    ("10,20,0,101", "no face box: 10 20 0 101"), ("10,20,nan,101", "no face box: 10 20 nan 101"),
    ("10,20,1e99,101", "no face box: 10 20 1e99 101"), ("10,20,,", "no face box: 10 20 (empty) (empty)")])
def test_affectnet_boxes_that_are_none_have_a_reason(tmp_path, box, found):
    put(tmp_path / "a.jpg", 300), put(tmp_path / "b.jpg", 300)
    (tmp_path / "training.csv").write_text("subDirectory_filePath,face_x,face_y,face_width,face_height,expression\n"
                                           f"a.jpg,{box},7\nb.jpg,1,1,9,9,2\n")
    rows, rejected = read(tmp_path)
    if isinstance(found, str):
        assert reasons(rejected) == {found: 1} and len(rows) == 1
    else:
        assert rejected.empty and (rows.face[0] is None if found is None else list(rows.face[0]) == found)


@pytest.mark.parametrize("code", [2.7, -1, np.nan, "1_0", [1, 2], True, 11])
def test_affectnet_annotations_that_are_no_code_name_the_file(tmp_path, code):
    put(tmp_path / "train_set/images/0.jpg")
    (tmp_path / "train_set/annotations").mkdir()
    np.save(tmp_path / "train_set/annotations/0_exp.npy", np.array(code))
    with pytest.raises(DataError, match="0_exp.npy: "):
        read(tmp_path)


def test_affectnet_annotations(tmp_path):
    for folder, name, code in (("train_set", "0", "6"), ("train_set", "1", "8"), ("val_set", "5", "0")):
        put(tmp_path / folder / "images" / f"{name}.jpg")
        (tmp_path / folder / "annotations").mkdir(exist_ok=True)
        np.save(tmp_path / folder / "annotations" / f"{name}_exp.npy", np.array(code))
    put(tmp_path / "val_set/images/77.jpg")
    rows, rejected = read(tmp_path)
    assert sorted(zip(rows.expression, rows.official, strict=True)) == [("anger", "train"), ("neutral", "val")]
    assert reasons(rejected) == {"none of the eight expressions": 1, "image without annotation": 1}
