"""Can the expression be guessed without the face? Shortcuts that are there are found, and no others."""

import cv2
import numpy as np
import pandas as pd
import pytest

from fer_ray.data import crops, shortcuts
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.data_config import FacesConfig

PEOPLE, IMAGES = 40, 6


def index(seed: int) -> pd.DataFrame:
    """Rows of people of two sources, in which size, light and format tell the person and nothing the expression."""
    rng = np.random.default_rng(seed)
    rows = []
    for person in range(PEOPLE):
        own = {"subject": f"S{person}", "dataset": rng.choice(["CK+", "JAFFE"]), "width": int(rng.integers(100, 900)),
               "format": rng.choice(["PNG", "JPEG"]), "face_found": rng.random() < 0.8, "several": False}
        light, chroma = rng.uniform(60, 190), rng.choice([0.0, 40.0])
        for _ in range(IMAGES):
            rows.append(own | {"expression": rng.choice(EXPRESSIONS), "height": own["width"], "chroma": chroma,
                               "brightness": light + rng.normal(0, 9), "contrast": 50 + rng.normal(0, 9)})
    table = pd.DataFrame(rows)
    side = np.where(table.face_found, table.width // 2, table.width)
    return table.assign(image=[f"{n:04}.png" for n in range(len(table))], cluster=range(len(table)),
                        box=[[0, 0, int(n), int(n)] for n in side])


def test_a_set_without_a_shortcut_raises_no_warning():
    for seed in range(20):
        found = shortcuts.audit(index(seed), seed)
        assert found["reason"] is None and found["warning"] is None, (seed, found)


@pytest.mark.parametrize(("name", "column", "value", "what"), [
    ("colour", "chroma", 60.0, "coloured pictures"), ("file format", "format", "TIFF", "TIFF files"),
    ("contrast", "contrast", 9.0, "median contrast (grey levels)"), ("source", "dataset", "web", "from web")])
def test_what_tells_a_class_is_found_and_named(name, column, value, what):
    rows = index(0).assign(chroma=0.0)
    rows.loc[rows.expression == "disgust", column] = value
    found = shortcuts.audit(rows)
    worst = found["features"][0]
    assert (worst["name"], worst["what"]) == (name, what) and f"{name} alone reaches" in found["warning"]
    others = [v for e, v in worst["by_class"].items() if e != "disgust"]
    assert worst["by_class"]["disgust"] > max(others) or worst["by_class"]["disgust"] < min(others)
    assert list(worst["by_class"]) == list(EXPRESSIONS)


def test_a_coloured_border_on_the_pictures_of_a_class_is_found(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for person in range(16):
        for expression in EXPRESSIONS[:4]:
            picture = np.repeat(rng.integers(40, 200, (48, 48, 1), np.uint8), 3, axis=2)  # grey, in a file of colour
            if expression == EXPRESSIONS[1]:
                picture = cv2.copyMakeBorder(picture[4:-4, 4:-4], 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(0, 0, 255))
            file = tmp_path / f"{person}_{expression}.png"
            cv2.imwrite(str(file), picture)
            image = {"image": str(file), "face": None, "cropped": True}
            row, _, _ = crops.crop_image(image, FacesConfig())
            assert row is not None and row["format"] == "PNG"
            rows.append(row | image | {"expression": expression, "subject": f"S{person}", "dataset": "web"})
    table = pd.DataFrame(rows).assign(cluster=range(len(rows)))
    assert (shortcuts.colour_or_grey(table["chroma"]) == "coloured").equals(table["expression"] == EXPRESSIONS[1])
    found = shortcuts.audit(table)
    assert found["features"][0]["name"] in found["warning"] and found["features"][0]["balanced_accuracy"] >= 0.4
    assert {"name": "colour", "what": "coloured pictures"}.items() <= next(
        f for f in found["features"] if f["name"] == "colour").items()
    assert "colour" not in [f["name"] for f in shortcuts.audit(table, gray=True)["features"]]
    grey = table.assign(chroma=0.0, brightness=100.0, contrast=30.0)
    assert shortcuts.audit(grey)["balanced_accuracy"] == 0.25  # nothing differs, so all are guessed alike


def test_few_people_tell_nothing():
    rows = index(0)
    assert "at least 2 of 10" in shortcuts.audit(rows[rows.subject.isin(["S1", "S2"])])["reason"]


def test_a_large_set_is_looked_at_in_part():
    rows = pd.concat([index(0)] * 60, ignore_index=True)
    rows = rows.assign(image=[f"{n:06}" for n in range(len(rows))], cluster=range(len(rows)))
    assert shortcuts._some_of_each_class(rows, 0)["expression"].value_counts().max() == shortcuts.MAX_OF_CLASS
