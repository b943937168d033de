"""Every layout through the whole of prepare: labels, people and splits as put in, and the face is where it was put."""

import collections
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from cluster.conftest import ray_on

from fer_ray.config import Config
from fer_ray.data import prepare, prepared_set, sources
from fer_ray.data.drawn_face import render_face
from fer_ray.data.layouts import affectnet, ckextended, fer2013, jaffe, rafdb
from fer_ray.data_config import DataConfig, Fer2013Config, FolderConfig, SplitConfig, TableConfig

WORDS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
HALF_WIDTH = 45  # px, of the drawn faces


@dataclass(frozen=True)
class Shown:
    """One image that was put into a data set, and what must come out."""

    end: str  # of its name in the manifest
    expression: str
    picture: np.ndarray
    subject: str | None = None
    split: str | None = None  # of the data set itself
    box: tuple[int, ...] | None = None  # x, y, w, h; None: the picture is the face
    found: bool = False  # the box is the detector's: near `box` and not equal to it
    groups: str | None = None


@dataclass(frozen=True)
class Made:
    """A data set on disk, the options to read it, and what must come out."""

    data: DataConfig
    split: str
    images: list[Shown]
    rejected: dict[str, int]


def portrait(person: int, expression: str, side: int = 48) -> np.ndarray:
    """A drawn face that fills the picture, uint8 [side, side]."""
    face = render_face(np.random.default_rng(person), expression, 1.0, np.random.default_rng(person + 1000), (128, 128),
                       HALF_WIDTH)
    return cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)


def scene(person: int, expression: str) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A drawn face somewhere in a larger picture, uint8 [260, 330], and the square about it as x, y, w, h."""
    rng = np.random.default_rng([person, 7])
    left, top = int(rng.integers(0, 330 - 160)), int(rng.integers(0, 260 - 160))
    picture = np.full((260, 330), 110, np.uint8)
    picture[top : top + 160, left : left + 160] = render_face(
        np.random.default_rng(person), expression, 1.0, rng, (160, 160), HALF_WIDTH)
    return picture, (left + 80 - HALF_WIDTH, top + 83 - HALF_WIDTH, 2 * HALF_WIDTH, 2 * HALF_WIDTH)


def marked(person: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """No face but a bright spot, in colour, uint8 [300, 400, 3] (BGR), and a box that has the spot at its centre."""
    rng = np.random.default_rng([person, 8])
    picture = cv2.GaussianBlur(rng.integers(0, 200, (300, 400, 3), np.uint8), (0, 0), 5)
    x, y, w, h = (int(rng.integers(20, 250)), int(rng.integers(20, 150)), 100, 121)
    cv2.circle(picture, (x + w // 2, y + h // 2), 6, (255, 255, 255), -1)
    return picture, (x, y, w, h)


def save(path: Path, picture: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return path


def values(picture: np.ndarray) -> str:
    """The grey values as the text of a table."""
    return " ".join(map(str, picture.ravel()))


# --- data sets -----------------------------------------------------------------------------------------


def make_ckplus(root: Path) -> Made:
    shown = []
    for person in range(4):
        subject, expression = f"S{person + 5:03}", WORDS[person]
        labels = root / f"Emotion/{subject}/001"
        labels.mkdir(parents=True)
        code = {"anger": 1, "disgust": 3, "fear": 4, "happiness": 5}[expression]
        (labels / f"{subject}_001_00000006_emotion.txt").write_text(f"   {code:.7e}\n")
        for frame in range(6):  # at 0, 20, 40, 60, 80 and 100 %
            picture, box = scene(person, expression)
            end = f"{subject}_001_{frame + 1:08}.png"
            save(root / f"cohn-kanade-images/{subject}/001/{end}", picture)
            if frame != 2:
                shown.append(Shown(end, "neutral" if frame < 2 else expression, picture, f"ckplus:{subject}", None, box,
                                   found=True))
    return Made(DataConfig(root=str(root)), "subject", shown, {"between neutral and expression": 4})


def make_ck48(root: Path) -> Made:
    shown = []
    for person in range(4):
        for number, expression in enumerate(WORDS[:3]):
            picture = portrait(person, expression)
            end = f"S{person + 10:03}_{number:03}_00000017.png"
            save(root / f"CK+48/{expression}/{end}", picture)
            shown.append(Shown(end, expression, picture, f"ckplus:S{person + 10:03}"))
    (root / "CK+48/fear/notes.txt").touch()
    return Made(DataConfig(root=str(root)), "subject", shown, {"no CK+ frame name": 1})


def pixel_rows(root: Path, name: str, codes: tuple[str, ...]) -> list[Shown]:
    """Write a table in the columns of FER2013: nine training images, two public and one private test image."""
    usages, lines, shown = ["Training"] * 9 + ["PublicTest"] * 2 + ["PrivateTest"], ["emotion,pixels,Usage"], []
    for person, usage in enumerate(usages):
        expression = codes[person % len(codes)]
        picture = portrait(person, expression)
        lines.append(f"{codes.index(expression)},{values(picture)},{usage}")
        split = {"Training": "train", "PublicTest": "val", "PrivateTest": "test"}[usage]
        shown.append(Shown(f"#row={person + 2:09}", expression, picture, None, split))
    (root / name).write_text("\n".join(lines))
    return shown


def make_ckextended(root: Path) -> Made:
    return Made(DataConfig(root=str(root)), "official", pixel_rows(root, "ckextended.csv", ckextended.CODES), {})


def make_fer2013(root: Path) -> Made:
    shown = pixel_rows(root, "fer2013.csv", fer2013.CODES)
    return Made(DataConfig(root=str(root)), "official", shown, {})


def make_ferplus(root: Path) -> Made:
    shown, votes = pixel_rows(root, "fer2013.csv", fer2013.CODES), []
    for number, image in enumerate(shown):
        voted = ["disgust", "contempt"][number % 2]
        counts = dict.fromkeys((*fer2013.VOTED, *fer2013.OTHER), 0) | {voted: 8, "neutral": 2}
        if number == 3:
            counts |= {"NF": 10, voted: 0, "neutral": 0}
        votes.append(f"Training,fer{number}.png," + ",".join(map(str, counts.values())))
        shown[number] = replace(image, expression=voted)
    header = ",".join(["Usage", "Image name", *fer2013.VOTED, *fer2013.OTHER])
    (root / fer2013.VOTES).write_text("\n".join([header, *votes]))
    data = DataConfig(root=str(root), fer2013=Fer2013Config(labels="ferplus"))
    return Made(data, "official", shown[:3] + shown[4:], {"FER+: not a face": 1})


def make_jaffe(root: Path) -> Made:
    shown, codes = [], {expression: code for code, expression in jaffe.CODES.items()}
    for person, name in enumerate(("KA", "KL", "KM", "KR")):
        for number, expression in enumerate(WORDS[:3]):
            picture, box = scene(10 * person + number, expression)
            end = f"{name}.{codes[expression]}1.{10 * person + number}.tiff"
            save(root / "jaffe" / end, picture)
            shown.append(Shown(end, expression, picture, f"jaffe:{name}", None, box, found=True))
    return Made(DataConfig(root=str(root)), "subject", shown, {})


def make_rafdb(root: Path) -> Made:
    shown, lines, codes = [], ["train_09999.jpg 4"], {expression: code for code, expression in rafdb.CODES.items()}
    for person in range(13):
        expression, split = WORDS[person % 7], "test" if person > 10 else "train"
        lines.append(f"{split}_{person:05}.png {codes[expression]}")
        if person == 4:  # not aligned: the face is searched in the photograph
            picture, box = scene(person, expression)
            end = f"original/{split}_{person:05}.png"
        else:
            picture, box = portrait(person, expression, 100), None
            end = f"aligned/{split}_{person:05}_aligned.png"
        save(root / "Image" / end, picture)
        shown.append(Shown(end, expression, picture, None, split, box, found=box is not None))
    (root / "list_patition_label.txt").write_text("\n".join(lines))
    return Made(DataConfig(root=str(root)), "official", shown, {"file not found": 1})


def make_affectnet(root: Path) -> Made:
    """Lists with boxes; one row has none, and its face is searched."""
    shown, lines = [], {"training": [], "validation": []}
    for person in range(14):
        name, expression = "validation" if person > 11 else "training", affectnet.CODES[person % 8]
        picture, box = scene(person, expression) if person == 5 else marked(person)
        end = f"{person}/face.png"
        save(root / "Manually_Annotated_Images" / end, picture)
        lines[name].append(f"{end},{',,,' if person == 5 else ','.join(map(str, box))},{person % 8}")
        shown.append(Shown(end, expression, picture, None, "val" if person > 11 else "train", box, found=person == 5))
    lines["training"] += [f"0/other.png,1,1,50,50,{code}" for code in (8, 9)]
    for name, found in lines.items():
        (root / f"{name}.csv").write_text("\n".join([",".join([affectnet.PATH, *affectnet.BOX, "expression"]), *found]))
    save(root / "Manually_Annotated_Images/0/other.png", marked(0)[0])
    return Made(DataConfig(root=str(root)), "official", shown,
                {"none of the eight expressions": 1, "annotator uncertain": 1})


def make_affectnet_annotations(root: Path) -> Made:
    shown = []
    for person in range(14):
        folder, expression = "val_set" if person > 11 else "train_set", affectnet.CODES[person % 8]
        picture, box = scene(person, expression)
        end = f"{folder}/images/{person}.png"
        save(root / end, picture)
        (root / folder / "annotations").mkdir(exist_ok=True)
        np.save(root / folder / f"annotations/{person}_exp.npy", np.array(str(person % 8)))
        shown.append(Shown(end, expression, picture, None, affectnet.SPLITS[folder], box, found=True))
    return Made(DataConfig(root=str(root)), "official", shown, {})


def make_folder(root: Path) -> Made:
    shown = []
    for person in range(12):
        split = "train" if person < 8 else "val" if person < 10 else "test"
        expression = ("happiness", "sadness")[person % 2]
        picture, box = scene(person, expression)
        end = f"{split}/{expression}/p{person:02}_1.png"
        save(root / end, picture)
        shown.append(Shown(end, expression, picture, f"folder:p{person:02}", split, box, found=True))
    (root / "test/sadness/broken.png").write_bytes(b"no picture")
    data = DataConfig(root=str(root), folder=FolderConfig(subject_pattern=r"(p\d+)_"))
    return Made(data, "official", shown, {"not an image": 1})


def table_rows(root: Path) -> tuple[list[dict], list[Shown]]:
    """Rows of a table with all kinds of columns, and what must come of them."""
    lines, shown = [], []
    for person in range(12):
        split = ("train", "val", "test")[max(0, person // 2 - 3)]
        picture, box = scene(person, WORDS[person % 7])
        save(root / "images" / f"{person:02}.png", picture)
        lines.append({"image": f"{person:02}.png", "expression": WORDS[person % 7][:3], "who": f"P{person // 2}",
                      "part": split, "age": 20 + person})
        shown.append(Shown(f"{person:02}.png", WORDS[person % 7], picture, f"table:p{person // 2}", split, box,
                           found=True, groups=f'{{"age": "{20 + person}"}}'))
    return lines, shown


COLUMNS = TableConfig(subject_column="who", split_column="part", group_columns=["age"])


def make_table(root: Path) -> Made:
    lines, shown = table_rows(root)
    lines += [lines[0], lines[1] | {"image": "gone.png"}]
    pd.DataFrame(lines).to_csv(root / "labels.csv", index=False)
    return Made(DataConfig(root=str(root), table=COLUMNS), "official", shown, {"listed twice": 1, "file not found": 1})


def make_table_with_text_pixels(root: Path) -> Made:
    """Grey values in a CSV are faces and nothing else."""
    lines, shown = table_rows(root)
    pictures = [portrait(person, image.expression, 64) for person, image in enumerate(shown)]
    shutil.rmtree(root / "images")
    pd.DataFrame(lines).assign(grey=[values(picture) for picture in pictures]).to_csv(root / "labels.csv", index=False)
    data = DataConfig(root=str(root), table=replace(COLUMNS, pixels_column="grey"))
    return Made(data, "official", [replace(image, end=f"#row={row + 2:09}", picture=picture, box=None, found=False)
                                   for row, (image, picture) in enumerate(zip(shown, pictures, strict=True))], {})


def make_table_with_image_bytes(root: Path) -> Made:
    """Encoded images in a Parquet file are photographs in which the face is searched."""
    lines, shown = table_rows(root)
    content = [(root / "images" / line.pop("image")).read_bytes() for line in lines]
    shutil.rmtree(root / "images")
    pd.DataFrame(lines).assign(photo=content).to_parquet(root / "labels.parquet", row_group_size=5)
    data = DataConfig(root=str(root), table=replace(COLUMNS, pixels_column="photo"))
    return Made(data, "official", [replace(image, end=f"#row={row:09}") for row, image in enumerate(shown)], {})


LAYOUTS = (make_ckplus, make_ck48, make_ckextended, make_fer2013, make_ferplus, make_jaffe, make_rafdb, make_affectnet,
           make_affectnet_annotations, make_folder, make_table, make_table_with_text_pixels,
           make_table_with_image_bytes)


# --- what comes out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_a_layout_through_the_whole_of_prepare(make, tmp_path):
    made = make(tmp_path)
    config = Config(name="set", storage=str(tmp_path / "out"), data=made.data, split=SplitConfig(by=made.split))
    with ray_on(2):
        uri = prepare.prepare(config, sources.read_manifest(config.data, config.split.by))
    index = prepared_set.read_index(uri)
    rejected = prepared_set.read_table(uri, "rejected")
    assert dict(collections.Counter(rejected.reason)) == made.rejected
    assert len(index) == len(made.images)
    crops = prepared_set.read_crops(uri, index)
    for shown in made.images:
        row = index[index.image.str.contains(shown.end if "#" in shown.end else f"/{shown.end}", regex=False)]
        assert len(row) == 1, shown.end
        check_row(row.iloc[0], shown)
        check_crop(crops[row.image.iloc[0]], row.iloc[0], shown)
    check_splits(index, made)


def check_row(row: pd.Series, shown: Shown) -> None:
    assert row.expression == shown.expression and (row.subject == shown.subject or pd.isna(row.subject))
    assert pd.isna(row.subject) == (shown.subject is None)
    assert (row.width, row.height) == shown.picture.shape[1::-1]
    assert (None if pd.isna(row.groups) else row.groups) == shown.groups


def check_crop(crop: np.ndarray, row: pd.Series, shown: Shown) -> None:
    """The crop, uint8 [256, 256(, 3)], shows what was put in: a white disc marks a face that the data set names."""
    assert bool(row.face_found) == (shown.box is not None)
    if shown.box is None:
        assert tuple(row.box) == (0, 0, *shown.picture.shape[1::-1])
        assert cv2.absdiff(crop, cv2.resize(shown.picture, (256, 256))).mean() < 1
    elif shown.found:
        x, y, w, h = row.box
        centre = np.array([shown.box[0], shown.box[1]]) + HALF_WIDTH
        assert np.abs(np.array([x + w / 2, y + h / 2]) - centre).max() < HALF_WIDTH / 2, "the face is elsewhere"
        assert HALF_WIDTH < w < 3.5 * HALF_WIDTH
    else:
        assert tuple(row.box) == shown.box
        bright = np.argwhere(np.atleast_3d(crop).min(axis=-1) > 180)
        assert np.abs(bright.mean(0) - 128).max() < 3, "the box's centre is not the crop's"
        diameter = 13 * 256 / (1.2 * max(shown.box[2:]))  # the box's longer side grows by 20 % and becomes 256 px
        assert len(bright) == pytest.approx(np.pi / 4 * diameter**2, rel=0.25)


def check_splits(index: pd.DataFrame, made: Made) -> None:
    """Nobody is in two splits; the data set's own split is kept, and val is cut from train where it has none."""
    assert set(index.split) == {"train", "val", "test"}
    if made.split == "subject":
        assert index.groupby("subject")["split"].nunique().max() == 1
        return
    put = collections.Counter(shown.split for shown in made.images)
    test = put["test"] or put["val"]
    found = collections.Counter(index.split)
    assert found["test"] == test and found.total() == put.total()
    if put["test"] and put["val"]:
        assert found == put
