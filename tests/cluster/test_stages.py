"""The stages on a real Ray: what a later stage lacks ends the job before the first image is cropped."""

import dataclasses
from pathlib import Path

import pytest
import torch
from cluster.conftest import ray_on

from fer_ray.cli import stages
from fer_ray.config import Config, TrainConfig
from fer_ray.data import prepared_set
from fer_ray.data_config import DataConfig
from fer_ray.model.start_weights import WeightsError


@pytest.fixture
def config(sample_of, tmp_path):
    sample_of(tmp_path / "data", people=3)
    return Config(name="few", storage=str(tmp_path / "out"), data=DataConfig("jaffe", str(tmp_path / "data/jaffe")),
                  train=TrainConfig(backbone="tiny", weights="none"))


def test_weights_of_another_network_are_refused_before_a_crop_and_a_set_that_is_there_is_told_in_words(config, capsys):
    other = Path(config.storage).parent / "other.pth"
    torch.save({"conv1.weight": torch.zeros(16, 3, 5, 5)}, other)
    wrong = dataclasses.replace(config.train, weights=str(other))
    with ray_on(2):
        with pytest.raises(WeightsError, match="other.pth: does not fit tiny"):
            stages.run_prepare(config, [wrong])
        assert not Path(config.storage).exists()
        capsys.readouterr()
        stages.run_prepare(config, [config.train])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("prepare: ") and "{" not in line for line in lines)
    assert lines[1] == "prepare: 43 files = 42 with images + 1 others (without extension 1)"
    assert lines[2].removeprefix("prepare: ").startswith("42 images, split by person: ")
    set_of = Path(config.storage) / "prepared/few"
    assert prepared_set.read_summary(str(set_of))["ledger"]["images"] == 42
    assert "43 files = 42 with images" in (set_of / "prepare.html").read_text()
