import numpy as np
import pytest

from fer_ray import augment, batches

CROP = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)


def test_same_seed_epoch_and_row_give_the_same_pixels_and_others_do_not():
    first = augment.train_transform(CROP, 1, 2, 3)
    assert first.shape == (224, 224, 3) and first.dtype == np.uint8
    assert (first == augment.train_transform(CROP, 1, 2, 3)).all()
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert (first != augment.train_transform(CROP, *other)).any()


def test_flip_and_grayscale_happen_as_often_as_the_paper_says():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 256, 0)[..., None] * np.array([1, 0, 0], np.uint8)
    made = [augment.train_transform(ramp, 0, 0, row) for row in range(800)]
    gray = [m[..., 0].mean() == m[..., 2].mean() for m in made]
    flipped = [m[112, 0].max() > m[112, -1].max() for m in made]
    assert np.mean(gray) == pytest.approx(0.1, abs=0.04)
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.06)


def test_grey_crops_become_three_channels_and_evaluation_takes_the_centre():
    out = augment.eval_transform(CROP[..., 0])
    assert out.shape == (224, 224, 3) and (out[..., 1] == CROP[16:240, 16:240, 0]).all()


def test_tensor_is_normalised_as_imagenet():
    tensor = augment.to_tensor([np.full((224, 224, 3), 255, np.uint8)])
    assert tensor.shape == (1, 3, 224, 224)
    assert tensor[0, :, 0, 0].numpy() == pytest.approx((1 - augment.MEAN) / augment.STD, abs=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_share_one_permutation_without_overlap(world):
    shares = [batches.epoch_steps(103, 10, seed=1, epoch=4, rank=r, world=world) for r in range(world)]
    alone = batches.epoch_steps(103, 10, seed=1, epoch=4, rank=0, world=1)
    for step, whole in enumerate(alone):
        assert sorted(np.concatenate([s[step] for s in shares])) == sorted(whole)
    assert len(np.unique(np.concatenate(alone))) == 100
    assert (alone[0] != batches.epoch_steps(103, 10, seed=1, epoch=5, rank=0, world=1)[0]).any()
