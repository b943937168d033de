import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_ray.data import faces
from fer_ray.data.drawn_face import render_face
from fer_ray.data_config import FacesConfig


@given(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(20, 200), st.integers(20, 200)),
       st.floats(0, 1))
def test_grown_box_is_a_square_about_the_face(box, enlarge):
    x, y, side = faces.grow_box(box, enlarge)
    assert side == pytest.approx(max(box[2:]) * (1 + enlarge), abs=1)
    assert abs((x + side / 2) - (box[0] + box[2] / 2)) <= 1 and abs((y + side / 2) - (box[1] + box[3] / 2)) <= 1


@given(st.integers(10, 300), st.integers(10, 300), st.floats(0, 1), st.data())
def test_square_contains_the_face_and_stays_inside_where_it_fits(width, height, enlarge, data):
    w, h = data.draw(st.integers(4, width)), data.draw(st.integers(4, height))
    face = (data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h)), w, h)
    x, y, side = faces.shift_inside(faces.grow_box(face, enlarge), width, height)
    for start, face_start, face_side, length in ((x, face[0], w, width), (y, face[1], h, height)):
        assert start <= face_start + 1 and start + side >= face_start + face_side - 1
        assert (start >= 0 and start + side <= length) or side > length
    image = np.zeros((height, width, 3), np.uint8)
    assert faces.cut(image, face, enlarge, size=64).shape == (64, 64, 3)


def test_a_whole_image_is_padded_to_a_square_and_not_cut():
    image = np.zeros((100, 60), np.uint8)
    image[0], image[-1], image[:, 0], image[:, -1] = 10, 20, 30, 40
    crop = faces.cut(image, (0, 0, 60, 100), 0.0, size=100)
    assert crop[50, 20] == 30 and crop[50, 79] == 40 and (crop[50, :20] == 30).all() and (crop[50, 80:] == 40).all()


def test_a_box_cut_in_its_ratio_ends_at_the_border_and_keeps_its_middle():
    image = np.zeros((100, 200), np.uint8)
    image[:, 80:120] = 200
    crop = faces.cut_in_ratio(image, (0, 0, 200, 100), 0.2, size=50)  # the middle 100 px of 200
    assert crop.shape == (50, 50) and (crop[:, 16:34] == 200).all()
    assert not crop[:, :14].any() and not crop[:, 36:].any()
    # 20 % about the centre of a box of 20 px is 24 px from 18 on; at the corner its half beyond the border is missing
    image[:], image[18:42, 18:42] = 0, 100
    assert (faces.cut_in_ratio(image, (20, 20, 20, 20), 0.2, size=24) == 100).all()
    image[:], image[:16, :16] = 0, 50
    assert (faces.cut_in_ratio(image, (-10, -10, 24, 24), 0.2, size=16) == 50).all()


@given(st.integers(10, 300), st.integers(10, 300), st.floats(0, 1), st.data())
def test_a_box_that_shows_any_of_the_image_can_be_cut_in_its_ratio(width, height, enlarge, data):
    w, h = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400))
    box = (data.draw(st.integers(1 - w, width - 1)), data.draw(st.integers(1 - h, height - 1)), w, h)
    assert faces.crop_for(np.zeros((height, width, 3), np.uint8), box, FacesConfig(shape="ratio", enlarge=enlarge)
                          ).shape == (256, 256)


def test_coarse_to_fine_finds_what_the_full_search_finds():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        face = render_face(rng, "neutral", 0, np.random.default_rng(2), (640, 490), 118 + 8 * seed)
        finder = faces.finder(FacesConfig())
        found = finder.find(face)
        full = max(finder.cascade.detectMultiScale(faces.to_gray(face), 1.1, 5).tolist(), key=lambda b: b[2])
        assert np.allclose(found, full, atol=0.05 * full[2])
        reduced = faces.finder(FacesConfig(detect_side=320)).find(face)
        assert np.allclose(found, reduced, atol=0.1 * full[2])
    assert finder.find(np.full((200, 200), 128, np.uint8)) is None


def test_a_face_too_small_for_the_coarse_copy_is_found():
    scene = np.full((600, 600), 90, np.uint8)
    face = render_face(np.random.default_rng(1), "neutral", 0, np.random.default_rng(2), (300, 300), 100)
    scene[400:520, 40:160] = cv2.resize(faces.to_gray(face), (120, 120), interpolation=cv2.INTER_AREA)
    x, y, w, h = faces.finder(FacesConfig()).find(scene)
    assert 30 <= x and x + w <= 170 and 390 <= y and y + h <= 530


def test_another_face_is_told_if_it_is_not_much_smaller():
    finder = faces.finder(FacesConfig())
    one, other = (render_face(np.random.default_rng(n), "neutral", 0, np.random.default_rng(n), (300, 300), 100)
                  for n in (1, 2))
    one, other = faces.to_gray(one), faces.to_gray(other)
    for side, is_rival in ((300, True), (240, True), (90, False)):
        both = np.full((300, 600), 90, np.uint8)
        both[:, :300], both[:side, 300 : 300 + side] = one, cv2.resize(other, (side, side))
        assert finder.has_rival(both, finder.find(one)) == is_rival
        assert len(finder.find_all(both)) == 2
    assert not finder.has_rival(one, finder.find(one))


def crop_of(person: int) -> np.ndarray:
    """A drawn face that is cut so tightly that Haar finds it in few of them, uint8 [48, 48]."""
    face = render_face(np.random.default_rng(person), "happiness", 1.0, np.random.default_rng(person), (128, 128), 45)
    return cv2.resize(face[23:113, 20:110], (48, 48), interpolation=cv2.INTER_AREA)


def landscape(seed: int) -> np.ndarray:
    """Sky above land with a few round things, uint8 [200, 300]."""
    rng = np.random.default_rng(seed)
    picture = np.repeat(np.linspace(230, 90, 200), 300).reshape(200, 300).astype(np.uint8)
    picture[120:] = rng.integers(40, 110)
    for _ in range(6):
        centre = int(rng.integers(0, 300)), int(rng.integers(0, 200))
        cv2.circle(picture, centre, int(rng.integers(10, 60)), int(rng.integers(0, 255)), -1)
    return cv2.GaussianBlur(picture, (0, 0), 2)


def test_a_face_that_fills_its_picture_is_found_with_a_border_and_a_landscape_is_none():
    finder = faces.finder(FacesConfig())
    missed = [picture for picture in map(crop_of, range(20)) if finder.find(picture) is None]
    assert len(missed) >= 10 and np.mean([faces.fills(finder, picture) for picture in missed]) >= 0.8
    assert not any(faces.fills(finder, landscape(seed)) for seed in range(20))
    assert not faces.fills(finder, np.full((200, 200, 3), 128, np.uint8))


@pytest.mark.parametrize(("found", "filling", "none", "are_crops"), [
    (35, 176, 133, True), (1861, 251, 144, True), (0, 13, 47, True), (50, 40, 10, True),  # half are found
    (1826, 75, 11, True),  # most are found
    (99, 0, 1, False), (97, 1, 2, False), (98, 2, 0, False), (80, 1, 19, False), (40, 2, 58, False), (0, 0, 60, False)])
def test_pictures_are_crops_where_faces_fill_those_in_which_none_is_found(found, filling, none, are_crops):
    assert faces.are_crops(found, filling, none) == are_crops


def test_yunet_without_its_model_names_the_file():
    with pytest.raises(faces.DetectorError, match="nowhere.onnx.*opencv_zoo"):
        faces.finder(FacesConfig(detector="yunet", model="nowhere.onnx"))
