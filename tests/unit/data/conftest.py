from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparing import in_this_process

from fer_ray.config import Config
from fer_ray.data import crops, prepare, shortcuts
from fer_ray.data_config import DataConfig, FacesConfig, FolderConfig


@pytest.fixture
def cropped(monkeypatch):
    """Names of the files that were cropped, in place of Ray's workers by this process."""
    files = []
    crop = crops.crop_image

    def noted(image, config):
        files.append(Path(image["image"]).name)
        return crop(image, config)

    monkeypatch.setattr(crops, "crop_image", noted)
    monkeypatch.setattr(prepare, "_on_workers", in_this_process)
    return files


@pytest.fixture
def config(tmp_path, cropped, monkeypatch):
    """30 small pictures of 15 people in four parts."""
    monkeypatch.setattr(shortcuts, "MIN_PEOPLE", 16)  # the shortcut audit has tests of its own, and takes long
    for number in range(30):
        file = tmp_path / "data" / ("happy" if number % 2 else "sad") / f"p{number % 15:02}_{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)).save(file)
    return Config(name="set", storage=str(tmp_path / "out"), faces=FacesConfig(already_cropped=True), data=DataConfig(
        "folder", str(tmp_path / "data"), folder=FolderConfig(subject_pattern=r"(p\d\d)_")))
