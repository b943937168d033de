import cv2
import numpy as np
import pytest
import torch

from fer_ray.model import augment
from fer_ray.train import batches


def crops(num: int) -> batches.Crops:
    rng = np.random.default_rng(0)
    return batches.Crops([rng.integers(0, 256, (256, 256), dtype=np.uint8) for _ in range(num)],
                         np.arange(num) % 8, np.arange(num) + 1000, np.zeros(num, int))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_image_is_counted_twice_or_dropped_in_evaluation(world):
    found = [batches.Cached(crops(29), "paper", 0, rank, world).eval_batches(4) for rank in range(world)]
    labels = np.concatenate([labels for share in found for _, labels in share])
    assert (np.bincount(labels) == np.bincount(np.arange(29) % 8)).all()


def test_threads_and_a_later_start_change_no_pixel():
    whole = list(batches.Cached(crops(23), "strong", 5, 0, 1, threads=1).train_steps(2, 4, 0, "natural"))
    tail = list(batches.Cached(crops(23), "strong", 5, 0, 1, threads=3).train_steps(2, 4, 2, "natural"))
    assert len(whole) == 5 and len(tail) == 3
    for (one, labels), (two, others) in zip(whole[2:], tail, strict=True):
        assert (one == two).all() and (labels == others).all()
    halves = [list(batches.Cached(crops(23), "strong", 5, rank, 2).train_steps(2, 4, 0, "natural")) for rank in (0, 1)]
    for step, (pictures, labels) in enumerate(whole):
        assert (halves[0][step][0] == pictures[::2]).all() and (halves[1][step][1] == labels[1::2]).all()


@pytest.mark.parametrize("augmentation", ["paper", "strong"])
def test_a_split_on_the_device_gives_what_one_in_memory_gives(augmentation, device):
    rng = np.random.default_rng(1)
    faces = [cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), (0, 0), 3) for _ in range(40)]
    faces = batches.Crops([cv2.normalize(f, None, 0, 255, cv2.NORM_MINMAX) for f in faces], np.arange(40) % 8,
                          np.arange(40) * 3, np.zeros(40, int))
    faces.images[7] = faces.images[7][..., 0]
    memory = batches.Cached(faces, augmentation, 5, 1, 2)
    on_device = batches.OnDevice(faces, augmentation, 5, 1, 2, device)
    for one, two in ((memory.train_steps(2, 16, 1, "natural"), on_device.train_steps(2, 16, 1, "natural")),
                     (memory.eval_batches(16), on_device.eval_batches(16))):
        for (images, labels), (chosen, others) in zip(one, two, strict=True):
            a, b = memory.to_input(images, "cpu"), on_device.to_input(chosen, device).cpu()
            assert (labels == others).all() and a.shape == b.shape and a.stride() == b.stride()
            levels = (a - b).abs() * 255 * torch.tensor(augment.STD).view(3, 1, 1)
            assert levels.max() < 3 and levels.mean() < 0.35  # of 255
