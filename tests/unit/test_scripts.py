"""The parts of the benchmarks that work on fer_ray's files; their figures are measured by hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
from documented import REPO

from fer_ray.config import Config
from fer_ray.data import prepare, prepared_set
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import DataConfig, FacesConfig


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import bench_prepare
    import bench_train

    yield bench_prepare, bench_train
    for name in ("bench_prepare", "bench_train"):
        sys.modules.pop(name)


@pytest.fixture
def root(sample_of, tmp_path):
    return sample_of(tmp_path / "data", people=3) / "jaffe"


def test_the_loop_and_fer_ray_crop_the_same_faces(scripts, root, tmp_path):
    bench, _ = scripts
    images = bench.find_images(root, 8, side=256)
    data = bench.manifest_of(images)
    (tmp_path / "loop").mkdir()
    boxes = bench.crop_by_loop(images, tmp_path / "loop")
    assert bench.prepare_on_one_core(data, str(tmp_path)) > 0
    assert len(images) == 8 and bench.box_agreement(boxes, data, str(tmp_path / "alone")) >= 0.8
    assert bench.iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert bench.manifest_of(images, repeat=3).rows.num_rows == 24


def test_a_benchmark_trains_on_part_of_a_set_that_reads_as_a_whole_one(scripts, root, tmp_path, monkeypatch):
    _, bench = scripts
    monkeypatch.setattr(prepare, "_on_workers", lambda function, items: [
        function({name: [value] for name, value in item.items()}) for item in items])
    config = Config(name="set", storage=str(tmp_path), faces=FacesConfig(already_cropped=True),
                    data=DataConfig("jaffe", str(root)))
    whole = prepare.prepare(config, read_manifest(config.data))
    before = Path(whole, "prepared.json").read_bytes()
    index = prepared_set.read_index(bench.write_subset(whole, str(tmp_path / "part"), 20))
    assert (index["split"] == "train").sum() == 20 and len(prepared_set.read_crops(str(tmp_path / "part"), index)) > 1
    assert np.all(np.diff(index["row"]) >= 0)
    assert Path(whole, "prepared.json").read_bytes() == before
    assert len(prepared_set.read_index(whole)) == 42
