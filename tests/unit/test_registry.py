import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fer_ray import storage
from fer_ray.model import checkpoints, registry

SCRIPT = Path(__file__).parents[2] / "scripts/pull_checkpoint.py"


@pytest.fixture
def root(tmp_path):
    """A storage with one best checkpoint of about 20 MB and one run that is not finished."""
    folder = tmp_path / "store/runs/one/checkpoint_a"
    folder.mkdir(parents=True)
    config = {"name": "one", "train": {"backbone": "resnet18"}, "data": {"kind": "folder", "root": "/d", "sources": []}}
    checkpoints.save(str(folder), "resnet18", torch.nn.Linear(5000, 1000), {"progress": {}},
                     {"config": config, "metrics": {"val_balanced_accuracy": 0.5, "epoch": 2}, "at_end_of_epoch": True,
                      "progress": {"epoch": 3, "step": 0}})
    storage.write_json(str(tmp_path / "store/best/one.json"), {"checkpoint": str(folder), "value": 0.5})
    storage.write_json(str(tmp_path / "store/runs/one/result.json"),
                       {"balanced_accuracy": 0.25, "checkpoint": str(folder)})
    storage.write_json(str(tmp_path / "store/runs/two/run.json"), {"values": {"train.backbone": "alexnet"}})
    return str(tmp_path / "store")


def test_the_list_has_bests_and_unfinished_runs(root):
    assert [{k: e[k] for k in ("name", "state", "backbone", "validation", "test", "data")}
            for e in sorted(registry.listing(root), key=lambda e: e["name"])] == [
        {"name": "one", "state": "best", "backbone": "resnet18", "validation": 0.5, "test": 0.25, "data": "folder:/d"},
        {"name": "two", "state": "unfinished", "backbone": "alexnet", "validation": None, "test": None, "data": ""}]


def test_an_interrupted_fetch_goes_on_where_it_ended(root, tmp_path, monkeypatch):
    source, target, read = registry.find(root), str(tmp_path / "to"), storage.read_range
    asked = []

    def breaks(uri, first, length):
        asked.append(first)
        if first == 0:
            raise OSError("the line is dead")
        return read(uri, first, length)

    monkeypatch.setattr(storage, "read_range", breaks)
    monkeypatch.setattr(registry, "SIDE_BY_SIDE", 1)
    monkeypatch.setattr(registry, "as_completed", lambda parts: sorted(parts, key=lambda p: -parts[p]))
    with pytest.raises(OSError, match="dead"):
        registry.fetch(source, target)
    assert not (tmp_path / "to/model.json").exists() and len(asked) == 3
    asked.clear()
    monkeypatch.setattr(storage, "read_range", lambda *a: asked.append(a[1]) or read(*a))
    registry.fetch(source, target)
    assert asked == [0] and sorted(p.name for p in (tmp_path / "to").iterdir()) == ["model.json", "model.safetensors"]
    assert Path(target, "model.safetensors").read_bytes() == Path(source, "model.safetensors").read_bytes()


def test_what_does_not_verify_is_refused_and_removed(root, tmp_path):
    weights = Path(registry.find(root), "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(checkpoints.CheckpointError, match="sha256 differs"):
        registry.fetch(registry.find(root), str(tmp_path / "to"))
    assert list((tmp_path / "to").iterdir()) == []


def test_another_checkpoint_is_not_overwritten(root, tmp_path):
    registry.fetch(registry.find(root), str(tmp_path / "to"))
    registry.fetch(registry.find(root), str(tmp_path / "to"))  # there already
    told = json.loads((tmp_path / "to/model.json").read_text())
    (tmp_path / "to/model.json").write_text(json.dumps(told | {"sha256": hashlib.sha256(b"").hexdigest()}))
    with pytest.raises(checkpoints.CheckpointError, match="holds another"):
        registry.fetch(registry.find(root), str(tmp_path / "to"))


def test_the_script_says_how_to_use_it_and_what_is_wrong(root, tmp_path):
    def pull(*options):
        return subprocess.run([sys.executable, str(SCRIPT), *options], cwd=tmp_path, capture_output=True, text=True)

    done = pull("--storage", root)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("use it: python jobs/evaluate.py"), done
    assert (tmp_path / "one/model.json").exists()
    table = pull("--storage", root, "--list").stdout
    assert "val. bal. accuracy" in table and "0.500" in table and "unfinished" in table
    for options, words in ((["--name", "three"], "no 'three' among one"),
                           (["--storage", str(tmp_path / "x")], "no best")):
        failed = pull("--storage", root, *options)
        assert failed.returncode == 1 and words in failed.stderr and len(failed.stderr.splitlines()) == 1
