"""The transforms of images: what they do and how often, the same for the same seed, epoch and row."""

import numpy as np
import pytest

from fer_ray.model import augment

CROP = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)


def transformed(crop: np.ndarray, seed: int, epoch: int, rows, augmentation: str = "paper") -> np.ndarray:
    rows = np.array(rows)
    return augment.train_transform([crop] * len(rows), augment.draws(seed, epoch, rows), augment.NAMED[augmentation])


@pytest.mark.parametrize("augmentation", ["paper", "strong"])
def test_same_seed_epoch_and_row_give_the_same_pixels_and_others_do_not(augmentation):
    first = transformed(CROP, 1, 2, [3], augmentation)
    assert first.shape == (1, 224, 224, 3) and first.dtype == np.uint8
    assert (first == transformed(CROP, 1, 2, [70, 3, 5], augmentation)[1]).all()
    for seed, epoch, row in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert (first != transformed(CROP, seed, epoch, [row], augmentation)).any()


def test_strong_hides_a_part_and_changes_the_light_of_some_images():
    made = transformed(np.full((256, 256), 100, np.uint8), 0, 0, range(400), "strong")[..., 0]
    light = np.array([np.bincount(image.ravel()).argmax() for image in made])
    hidden = (made != light[:, None, None]).mean((1, 2))
    assert np.mean(hidden > 0) == pytest.approx(0.25, abs=0.05)
    assert 0.02 <= hidden[hidden > 0].min() and hidden.max() <= 0.21
    assert 20 < light.min() < 60 and 140 < light.max() < 220 and np.median(light) == pytest.approx(100, abs=12)


def test_flip_and_grayscale_happen_as_often_as_the_paper_says():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, 0)[..., None] * np.array([1, 0, 0], np.uint8)
    made = transformed(ramp, 0, 0, range(800))
    gray = [m[..., 0].mean() == m[..., 2].mean() for m in made]
    flipped = [m[112, 0].max() > m[112, -1].max() for m in made]
    assert np.mean(gray) == pytest.approx(0.1, abs=0.04)
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.06)


def test_crop_and_rotation_are_as_far_as_the_paper_says():
    columns = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, 0)
    made = transformed(columns, 0, 0, range(400))[..., 0].astype(int)
    where = np.minimum(made[:, 112, 112], 255 - made[:, 112, 112])  # 112 + left, or mirrored
    tilt = np.rad2deg(np.arctan((made[:, 212, 112] - made[:, 12, 112]) / 200))
    assert where.min() >= 111 and where.max() <= 144 and len(np.unique(made[:, 112, 112])) > 25
    assert np.abs(tilt).max() <= 1.3 and np.abs(tilt).max() > 0.7 and abs(tilt.mean()) < 0.15


def test_grey_crops_become_three_channels_and_evaluation_takes_the_centre():
    out = augment.eval_transform(CROP[..., 0])
    assert out.shape == (224, 224, 3) and (out[..., 1] == CROP[16:240, 16:240, 0]).all()


def test_tensor_is_normalised_as_imagenet():
    tensor = augment.to_tensor(np.full((1, 224, 224, 3), 255, np.uint8))
    assert tensor.shape == (1, 3, 224, 224)
    assert tensor[0, :, 0, 0].numpy() == pytest.approx((1 - augment.MEAN) / augment.STD, abs=1e-5)


@pytest.mark.parametrize("rows", [[], [0], [5, 5, 199_999, 0], range(300), [7 * n for n in range(200)], [150, 40_000]])
def test_numbers_of_few_rows_are_those_drawn_for_all(rows):
    rows = np.array(rows, int)
    every = np.hstack([np.random.default_rng((4, 9, stream)).random((200_000, columns))
                       for stream, columns in ((1, 5), (3, 10))])
    assert (augment.draws(4, 9, rows) == every[rows]).all()
