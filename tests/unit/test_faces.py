import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fer_ray import faces
from fer_ray.datasets.sample import render_face


def encode(image: Image.Image, form="PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


@given(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(20, 200), st.integers(20, 200)),
       st.floats(0, 1))
def test_grown_box_is_a_square_about_the_face(box, enlarge):
    x, y, side = faces.grow_box(box, enlarge)
    assert side == pytest.approx(max(box[2:]) * (1 + enlarge), abs=1)
    assert abs((x + side / 2) - (box[0] + box[2] / 2)) <= 1 and abs((y + side / 2) - (box[1] + box[3] / 2)) <= 1


@given(st.integers(10, 90), st.integers(10, 90), st.integers(0, 80), st.integers(0, 80), st.integers(5, 90))
def test_crop_is_always_square(height, width, x, y, side):
    image = np.zeros((height, width, 3), np.uint8)
    assert faces.FaceFinder(size=64).crop(image, (x, y, side, side)).shape == (64, 64, 3)


def test_found_box_is_mapped_back_from_the_reduced_copy():
    face = render_face(np.random.default_rng(1), "neutral", 0, np.random.default_rng(2), (640, 490), 118)
    full, reduced = faces.FaceFinder(detect_side=640).find(face), faces.FaceFinder(detect_side=320).find(face)
    assert np.allclose(full, reduced, atol=20)
    assert faces.FaceFinder().find(np.full((200, 200), 128, np.uint8)) is None


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"just text", "not an image"),
    (encode(Image.new("L", (200, 200)), "JPEG")[:300], "damaged|not an image"),
    (encode(Image.new("L", (1, 1))), "too small"), (encode(Image.new("1", (20000, 20000))), "too large")])
def test_unusable_bytes_say_why(content, reason):
    with pytest.raises(ValueError, match=reason):
        faces.decode(content)


@pytest.mark.parametrize(("mode", "form", "shape"), [
    ("L", "PNG", (30, 40)), ("RGB", "JPEG", (30, 40, 3)), ("CMYK", "JPEG", (30, 40, 3)), ("P", "GIF", (30, 40, 3)),
    ("RGBA", "PNG", (30, 40, 3)), ("I;16", "PNG", (30, 40)), ("1", "PNG", (30, 40)), ("LA", "PNG", (30, 40))])
def test_every_mode_becomes_grey_or_rgb(mode, form, shape):
    pixels = faces.decode(encode(Image.new(mode, (40, 30)), form))
    assert pixels.shape == shape and pixels.dtype == np.uint8


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert faces.decode(encode(Image.new("RGB", (40, 30)), "JPEG", exif=exif)).shape == (40, 30, 3)
