import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparing import in_this_process, prepared

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


def draw_pictures(root: Path) -> Config:
    """30 small pictures of 15 people, which come into four parts."""
    for number in range(30):
        file = root / "data" / ("happy" if number % 2 else "sad") / f"p{number % 15:02}_{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (12, 12), dtype=np.uint8)).save(file)
    return Config(name="set", storage=str(root / "out"), faces=FacesConfig(already_cropped=True), data=DataConfig(
        "folder", str(root / "data"), folder=FolderConfig(subject_pattern=r"(p\d\d)_")))


@pytest.fixture
def no_shortcuts(monkeypatch):
    """No shortcut audit, which has tests of its own, and takes long."""
    monkeypatch.setattr(shortcuts, "MIN_PEOPLE", 16)


@pytest.fixture
def config(tmp_path, cropped, no_shortcuts):
    """`draw_pictures`, not prepared yet."""
    return draw_pictures(tmp_path)


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory):
    """`draw_pictures`, prepared; tests use copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcuts, "MIN_PEOPLE", 16)
        patch.setattr(prepare, "_on_workers", in_this_process)
        config = draw_pictures(tmp_path_factory.mktemp("prepared_once"))
        prepared(config)
    return config


@pytest.fixture
def copied(prepared_once, tmp_path, cropped, no_shortcuts):
    """A prepared set of one's own, of pictures that belong to all; its configuration."""
    shutil.copytree(prepared_once.storage, tmp_path / "out")
    return dataclasses.replace(prepared_once, storage=str(tmp_path / "out"))
