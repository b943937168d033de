"""`Recognizer`: any form of image, every face, the reasons where there is none, and the same numbers as evaluation."""

import io
import json
import shutil
import subprocess
import sys
import warnings

import checkpoints as tiny
import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_ray import Recognizer, storage
from fer_ray.data import crops, pixels, prepared_set
from fer_ray.data.drawn_face import render_face
from fer_ray.data.manifest import EXPRESSIONS, PROBABILITIES
from fer_ray.data_config import FacesConfig
from fer_ray.evaluate import calibration
from fer_ray.model import checkpoints, predictor
from fer_ray.use import networks, photographs, recognizer
from fer_ray.use.recognition import SCHEMA


def face(seed: int, half_width: float = 50) -> np.ndarray:
    return render_face(np.random.default_rng(seed), "happiness", 1.0, np.random.default_rng(0), (180, 180), half_width)


SCENE = np.hstack([face(0), face(1, 40)])
EMPTY = np.full((180, 180), 128, np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("checkpoint") / "c", temperature=1.7)


@pytest.fixture(scope="module")
def recognize(checkpoint):
    return Recognizer.load(checkpoint)


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


def test_the_package_is_light_and_so_is_the_name():
    code = ("import sys, time; begin = time.perf_counter(); from fer_ray import Recognizer;"
            "seconds = time.perf_counter() - begin; print({'ray', 'torch'} & sys.modules.keys(), seconds < 3)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set() True", done.stderr
    code = "import sys, fer_ray; print([name for name in sys.modules if name.startswith('fer_ray.')])"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert light.stdout.strip() == "[]"


def test_faces_of_a_coloured_photograph_are_grey_where_training_made_them_so(tmp_path):
    tinted = (np.stack([SCENE] * 3, 2) if SCENE.ndim == 2 else SCENE) * np.array([1, 0.8, 0.6])
    config = FacesConfig(gray=True)
    found = photographs.Cutter(photographs.Search(config)).crops(tinted.astype(np.uint8))
    assert [crop.pixels.shape for crop in found] == [(256, 256)] * 2
    file = tmp_path / "tinted.png"
    file.write_bytes(png(tinted.astype(np.uint8)[..., ::-1]))
    row, _, _ = crops.crop_image({"image": str(file), "face": None, "cropped": False}, config)
    assert (prepared_set.decode_crop(row["crop"]) == found[0].pixels).all()


def test_every_face_with_box_score_and_probabilities_the_largest_first(recognize):
    result = recognize(SCENE)
    assert result.reason is None and result.image == "#0" and len(result.faces) == 2
    left, right = result.faces
    assert left.box[2] > right.box[2] and left.box[0] < 180 < right.box[0]
    for one in result.faces:
        assert list(one.probabilities) == list(EXPRESSIONS)
        assert sum(one.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert one.probabilities[one.expression] == max(one.probabilities.values())
        assert one.score >= 5 and one.angle == 0 and not one.whole
    table = result.to_pandas()
    assert list(table) == SCHEMA.names and table["face"].tolist() == [0, 1] and table["x"].tolist() == [
        left.box[0], right.box[0]]


def test_any_form_of_an_image_gives_the_same(recognize, tmp_path):
    (tmp_path / "scene.png").write_bytes(png(SCENE))
    forms = [SCENE, np.dstack([SCENE] * 3), Image.fromarray(SCENE), png(SCENE), str(tmp_path / "scene.png"),
             tmp_path / "scene.png", f"file://{tmp_path}/scene.png"]
    many = recognize(forms)
    assert len({rounded(one) for one in many}) == 1
    assert [one.image for one in many] == ["#0", "#1", "#2", "#3", f"{tmp_path}/scene.png", f"{tmp_path}/scene.png",
                                           f"file://{tmp_path}/scene.png"]
    assert len(many.to_pandas()) == 2 * len(forms)


def rounded(result) -> tuple:
    """The faces, but for the rounding that differs from batch to batch."""
    return tuple((one.box, one.score, one.expression, *(round(p, 4) for p in one.probabilities.values()))
                 for one in result.faces)


def test_an_image_without_a_face_or_that_is_none_has_its_reason(recognize, tmp_path):
    huge = io.BytesIO()
    Image.new("1", (10_001, 10_001)).save(huge, "PNG")
    images = [EMPTY, b"", b"GIF89a", str(tmp_path / "gone.png"), png(SCENE)[:300], np.zeros((4, 200), np.uint8),
              Image.new("RGB", (3, 3)), huge.getvalue(), SCENE]
    results = recognize(images)
    assert [one.reason for one in results][:4] == ["no face found", "empty file", "not an image",
                                                   "cannot be read: No such file or directory"]
    assert results[4].reason.startswith("damaged image") and results[5].reason == "too small: 200 x 4 px"
    assert results[6].reason == "too small: 3 x 3 px" and results[7].reason.startswith("too large: ")
    assert len(results[8].faces) == 2
    table = results.to_pandas()
    assert table["reason"].notna().tolist() == [True] * 8 + [False] * 2
    assert table[PROBABILITIES].notna().all(axis=1).tolist() == [False] * 8 + [True] * 2
    assert recognize([]) == () and list(recognize([]).to_pandas()) == SCHEMA.names


@pytest.mark.parametrize(("wrong", "error", "words"), [
    (np.zeros((90, 90, 4), np.uint8), ValueError, r"must be uint8 .* not uint8 \[90, 90, 4\]"),
    (np.zeros((90, 90)), ValueError, r"not float64 \[90, 90\]"), (7, TypeError, "not iterable"),
    ([7], TypeError, "a path, bytes, a PIL image or a uint8 array, and not int")])
def test_what_can_be_no_image_is_an_error_of_the_program(recognize, wrong, error, words):
    with pytest.raises(error, match=words):
        recognize(wrong)


def test_the_largest_alone_a_smallest_side_and_tilted_heads(checkpoint, recognize):
    both = recognize(SCENE).faces
    assert Recognizer.load(checkpoint, faces="largest")(SCENE).faces[0].box == both[0].box
    above = both[1].box[2] + 1
    assert [f.box for f in Recognizer.load(checkpoint, min_face=above)(SCENE).faces] == [both[0].box]
    assert Recognizer.load(checkpoint, min_face=170, faces="largest")(SCENE).reason == "no face found"
    turned = np.asarray(Image.fromarray(face(0)).rotate(45, fillcolor=128))
    assert recognize(turned).reason == "no face found"
    (found,) = Recognizer.load(checkpoint, tilt=True)(turned).faces
    x, y, w, h = found.box
    assert found.angle == -30 and abs(x + w / 2 - 90) < 20 and abs(y + h / 2 - 90) < 20
    assert Recognizer.load(checkpoint, tilt=True)(EMPTY).reason == "no face found"


@pytest.mark.parametrize("config", [FacesConfig(already_cropped=True), FacesConfig(on_no_face="whole")])
def test_a_network_of_whole_pictures_gets_whole_pictures(tmp_path, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = Recognizer.load(tiny.write(tmp_path / "c", config))(EMPTY)
    assert [(one.box, one.score, one.whole) for one in result.faces] == [((0, 0, 180, 180), None, True)]


def test_probabilities_are_those_of_evaluation_at_the_stored_temperature(recognize, checkpoint, tmp_path):
    """Evaluation scores the crops of the prepared set, without the temperature."""
    file = tmp_path / "one.png"
    file.write_bytes(png(face(2)))
    row, *_ = crops.crop_image({"image": str(file), "face": None, "cropped": None}, FacesConfig())
    crop = prepared_set.decode_crop(row["crop"])
    (found,) = recognize(file).faces
    assert list(found.box) == row["box"]
    evaluated = predictor.Predictor.from_checkpoint(checkpoint).probabilities([crop])
    assert recognize.temperature == 1.7
    expected = calibration.at_temperature(evaluated, 1.7)[0]
    assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - evaluated[0]).max() > 0.01


def test_a_checkpoint_that_was_never_evaluated_says_so(tmp_path):
    with pytest.warns(UserWarning, match="its probabilities are not calibrated"):
        assert Recognizer.load(tiny.write(tmp_path / "c")).temperature is None


def test_it_is_found_by_its_folder_or_by_storage_and_name(tmp_path, checkpoint):
    stored = shutil.copytree(checkpoint, tmp_path / "runs/a/c")
    for name in ("a", "b"):
        storage.write_json(str(tmp_path / f"best/{name}.json"), {"checkpoint": "runs/a/c", "value": 0.5})
    assert networks.find(str(tmp_path), "a") == networks.find(str(stored)) == str(stored)
    with pytest.raises(checkpoints.CheckpointError, match="a, b"):
        Recognizer.load(tmp_path)
    (tmp_path / "best/b.json").unlink()
    assert Recognizer.load(tmp_path).temperature == 1.7
    with pytest.raises(checkpoints.CheckpointError, match="no 'c' among a"):
        Recognizer.load(tmp_path, "c")


def test_no_checkpoint_and_one_of_other_classes_are_told(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="not a checkpoint.*model.json: is missing"):
        Recognizer.load(tmp_path / "none")
    folder = tiny.write(tmp_path / "c")
    file = tmp_path / "c/model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"classes": ["happy", "sad"]}))
    with pytest.raises(checkpoints.CheckpointError, match="classes is .'happy', 'sad'."):
        Recognizer.load(folder)


@pytest.mark.parametrize("shares_cpus, at_first", [(False, [0, 1]), (True, [0, 1, 2, 3])])
def test_many_images_are_worked_on_a_few_at_a_time(recognize, monkeypatch, shares_cpus, at_first):
    monkeypatch.setattr(recognizer, "CHUNK", 2)
    monkeypatch.setattr(recognize.network, "shares_cpus", shares_cpus)
    asked = []
    results = recognize.iterate(asked.append(number) or EMPTY for number in range(5))
    assert next(results).image == "#0" and asked == at_first
    assert [one.image for one in results] == ["#1", "#2", "#3", "#4"]


def test_annotating_draws_each_face_on_a_copy(recognize, tmp_path):
    before = SCENE.copy()
    drawn = recognize.annotate(SCENE)
    assert drawn.mode == "RGB" and drawn.size == (360, 180) and (SCENE == before).all()
    changed = (np.asarray(drawn) != SCENE[..., None]).any(axis=2)
    for one in recognize(SCENE).faces:
        x, y, w, h = one.box
        assert changed[y + h // 2, max(0, x - 2) : x + 3].any() and not changed[y + h // 2, x + w // 2]
    assert (np.asarray(recognize.annotate(EMPTY)) == 128).all()
    with pytest.raises(pixels.ImageError, match="empty file"):
        recognize.annotate(b"")


def test_paths_are_named_as_in_every_table(tmp_path):
    assert photographs.name_of("s3://bucket/x#row=1,column=y.png") == "s3://bucket/x#row=1,column=y.png"
    assert photographs.name_of(tmp_path / "x#row=1,column=y.png").startswith("file://")


def test_a_table_of_pandas_survives_a_file(recognize):
    table = recognize([SCENE, EMPTY]).to_pandas()
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert again["reason"].tolist()[2] == "no face found" and again["face"].tolist()[:2] == [0, 1]
