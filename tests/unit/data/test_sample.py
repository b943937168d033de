"""The drawn sample: the same bytes whenever it is drawn, and faces that the detector finds."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fer_ray import progress
from fer_ray.data import drawn_face, faces, sample, sources
from fer_ray.data.manifest import DataError
from fer_ray.data_config import DataConfig, FacesConfig, SampleConfig


@pytest.fixture(scope="module")
def root(sample_of, tmp_path_factory):
    return sample_of(tmp_path_factory.mktemp("sample"), people=6)


def test_sample_is_deterministic_and_never_overwrites_other_files(sample_of, tmp_path):
    first, again = sample_of(tmp_path / "first", people=1), tmp_path / "again"
    assert len(sources.read_manifest(DataConfig("sample", str(again), sample=SampleConfig(1, 0))).rows)
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert all((first / f).read_bytes() == (again / f).read_bytes() for f in files)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="holds files"):
        sample.write_sample(tmp_path, 6, 0)


@pytest.mark.timeout(60)
def test_it_is_drawn_in_a_process_that_has_used_threads_of_opencv(tmp_path):
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
    sample.write_sample(tmp_path, 1, 0)
    assert cv2.getNumThreads() == 2


def test_haar_finds_exactly_one_face_in_the_sample(root):
    finder, images = faces.finder(FacesConfig()), sorted([*root.rglob("*.tiff"), *root.rglob("*.png")])[::6]
    pictures = [cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in images]
    one = [len(finder.cascade.detectMultiScale(p, 1.1, 5)) == 1 for p in pictures]
    assert np.mean(one) >= 0.95
    assert np.mean([finder.find(p) is not None for p in pictures]) >= 0.99


@given(st.sampled_from([(640, 490, 118), (256, 256, 66)]), st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)),
       st.tuples(st.floats(0.03, 0.8), st.floats(0.03, 0.8)), st.floats(0.03, 0.11))
def test_a_soft_shape_is_that_of_the_whole_blurred_picture_to_the_last_bit(size, centre, radii, softness):
    width, height, half_width = size
    turn, sigma = np.linspace(0, 2 * np.pi, 40), softness * half_width
    oval = np.stack([centre[0] * width + radii[0] * half_width * np.cos(turn),
                     centre[1] * height + radii[1] * half_width * np.sin(turn)], 1)
    points = np.round(oval * 16).astype(np.int32)
    found = np.full((height, width), 100, np.float32)
    mask, expected = np.zeros_like(found), found.copy()
    drawn_face.add_soft_shape(found, points, -30.5, sigma)
    cv2.fillPoly(mask, [points], 1.0, cv2.LINE_AA, 4)
    expected += cv2.GaussianBlur(mask, (0, 0), sigma) * -30.5
    assert (found == expected).all()


def test_drawing_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.0)
    sample.write_sample(tmp_path, subjects=1, seed=0)
    assert "draw the sample: 4 of 4 people" in capsys.readouterr().out
