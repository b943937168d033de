"""The parts of the benchmarks that work on fer_ray's files; their figures are measured by hand."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from documented import REPO

from fer_ray import options
from fer_ray.config import Config
from fer_ray.data import prepare, prepared_set
from fer_ray.data.sources import read_manifest
from fer_ray.data_config import DataConfig, FacesConfig


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    import bench_prepare
    import bench_train
    import measure_recipe

    yield SimpleNamespace(prepare=bench_prepare, train=bench_train, recipe=measure_recipe)
    for name in ("bench_prepare", "bench_train", "measure_recipe"):
        sys.modules.pop(name)


@pytest.fixture
def root(sample_of, tmp_path):
    return sample_of(tmp_path / "data", people=3) / "jaffe"


def test_the_loop_and_fer_ray_crop_the_same_faces(scripts, root, tmp_path):
    bench = scripts.prepare
    images = bench.find_images(root, 8, side=256)
    data = bench.manifest_of(images)
    (tmp_path / "loop").mkdir()
    boxes = bench.crop_by_loop(images, tmp_path / "loop")
    assert bench.prepare_on_one_core(data, str(tmp_path)) > 0
    assert len(images) == 8 and bench.box_agreement(boxes, data, str(tmp_path / "alone")) >= 0.8
    assert bench.iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert bench.manifest_of(images, repeat=3).rows.num_rows == 24


def test_a_benchmark_trains_on_part_of_a_set_that_reads_as_a_whole_one(scripts, root, tmp_path, monkeypatch):
    bench = scripts.train
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


def test_a_part_of_the_recipe_is_the_default_and_off_in_the_paper(scripts):
    recipe = scripts.recipe
    rows = {row: options.load(recipe.options_of(row)) for row in recipe.ROWS}
    all_on = rows[recipe.ALL]
    assert all_on == options.load(["--prepared", all_on.prepared, "--name", all_on.name])
    paper = options.load(["--config", str(REPO / "jobs/configs/paper.yaml")])
    for part, (off, on) in recipe.PARTS.items():
        for name in (word.removeprefix("--") for word in off[::2]):
            assert value(rows[recipe.NONE], name) == value(paper, name) != value(all_on, name), name
            assert value(rows[part], name) == value(all_on, name), name
            assert value(rows[f"all but {part}"], name) == value(paper, name), name
        assert len(off) == len(on)
    assert len({(config.prepared, config.name) for config in rows.values()}) == len(rows)


def value(config: Config, name: str) -> object:
    """Of an option, as `train.lr`."""
    section, option = name.split(".")
    return getattr(getattr(config, section), option)
