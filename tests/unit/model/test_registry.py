import hashlib
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fer_ray import storage
from fer_ray.config import Config, to_dict
from fer_ray.data_config import DataConfig
from fer_ray.model import checkpoints, registry

SCRIPT = Path(__file__).parents[3] / "scripts/pull_checkpoint.py"


@pytest.fixture
def root(tmp_path):
    """A storage with one best checkpoint of about 20 MB and one run that is not finished."""
    folder = tmp_path / "store/runs/one/checkpoint_a"
    folder.mkdir(parents=True)
    config = to_dict(Config(name="one", data=DataConfig("folder", "/d")))
    checkpoints.save(str(folder), "resnet18", torch.nn.Linear(5000, 1000), {"progress": {}},
                     {"config": config, "metrics": {"val_balanced_accuracy": 0.5, "epoch": 2}, "at_end_of_epoch": True,
                      "progress": {"epoch": 3, "step": 0}})
    storage.write_json(str(tmp_path / "store/best/one.json"), {"checkpoint": "runs/one/checkpoint_a", "value": 0.5})
    storage.write_json(str(tmp_path / "store/runs/one/result.json"),
                       {"balanced_accuracy": 0.25, "checkpoint": str(folder)})
    storage.write_json(str(tmp_path / "store/runs/two/run.json"), {"values": {"train.backbone": "alexnet"}})
    return str(tmp_path / "store")


def entries(root: str) -> dict[str, dict]:
    return {entry["name"]: entry for entry in registry.listing(root)}


def test_the_list_has_bests_and_unfinished_runs(root):
    listed = entries(root)
    assert all(entry.pop("date") for entry in listed.values())
    assert listed == {
        "one": {"name": "one", "state": "best", "backbone": "resnet18", "validation": 0.5, "test": 0.25,
                "data": "folder:/d", "problem": ""},
        "two": {"name": "two", "state": "unfinished", "backbone": "alexnet", "validation": None, "test": None,
                "data": "", "problem": ""}}


def test_a_storage_can_be_moved(root):
    listed, moved = entries(root), root + "-elsewhere"
    Path(root).rename(moved)
    assert entries(moved) == listed
    assert registry.find(moved) == f"{moved}/runs/one/checkpoint_a" and checkpoints.describe(registry.find(moved))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"value": 0.5}', '{"checkpoint": 3, "value": 0.5}'])
def test_a_damaged_best_is_listed_and_named_with_what_makes_it_again(root, content):
    file = Path(root, "best/one.json")
    file.write_text(content)
    listed = entries(root)
    assert listed["one"]["state"] == "damaged" and listed["two"]["state"] == "unfinished"
    assert listed["one"]["problem"].startswith(f"{file}: is damaged")
    with pytest.raises(storage.DamagedError, match=f"{file}: is damaged .*run the training or search of that name"):
        registry.find(root)


@pytest.mark.parametrize(("file", "content", "problem"), [
    ("runs/one/checkpoint_a/model.json", None, "one/checkpoint_a: not a checkpoint .*model.json: is missing; jobs"),
    ("runs/one/checkpoint_a/model.json", "{", "model.json: is damaged .truncated or no JSON.; jobs/train.py"),
    ("runs/two/run.json", "{", "two/run.json: is damaged .*; run the training or search of that name again"),
    ("runs/two/run.json", '{"values": 1}', "two/run.json: is damaged .*'values'")])
def test_a_damaged_run_is_listed(root, file, content, problem):
    Path(root, file).unlink() if content is None else Path(root, file).write_text(content)
    entry = entries(root)["one" if "one" in file else "two"]
    assert entry["state"] == "damaged" and re.search(problem, entry["problem"]), entry


def test_an_edited_description_is_listed_as_damaged(root):
    file = Path(root, "runs/one/checkpoint_a/model.json")
    description = json.loads(file.read_text())
    for values, problem in (({"mean": [0, 0, 0]}, "mean is"), ({"config": {}}, "config is not whole"),
                            ({"backbone": "x"}, "unknown backbone 'x'")):
        file.write_text(json.dumps(description | values))
        assert entries(root)["one"]["state"] == "damaged" and problem in entries(root)["one"]["problem"]


def test_a_best_that_is_not_there_yet_or_any_more_is_named(root):
    Path(root, "runs/one/run.json").write_text('{"values": {}}')
    Path(root, "best/one.json").unlink()
    for name in ("one", "two"):
        with pytest.raises(checkpoints.CheckpointError, match=f"best/{name}.json: is missing, .*; run the training or"):
            registry.find(root, name)
    with pytest.raises(checkpoints.CheckpointError, match="no best checkpoint yet"):
        registry.find(root)


def test_a_damaged_result_leaves_the_best_and_is_told(root):
    Path(root, "runs/one/result.json").write_text("{")
    entry = entries(root)["one"]
    assert entry["state"] == "best" and entry["test"] is None and "jobs/evaluate.py" in entry["problem"]
    assert registry.find(root)


def test_an_interrupted_fetch_goes_on_where_it_ended(root, tmp_path, monkeypatch):
    source, target, read = registry.find(root), str(tmp_path / "to"), storage.read_range
    asked = []

    def breaks(uri, first, length):
        asked.append(first)
        if first == 0:
            raise OSError("the line is dead")
        return read(uri, first, length)

    monkeypatch.setattr(storage, "read_range", breaks)
    monkeypatch.setattr(registry, "CONNECTIONS", 1)
    monkeypatch.setattr(registry, "as_completed", lambda parts: sorted(parts, key=lambda p: -parts[p]))
    with pytest.raises(OSError, match="dead"):
        registry.fetch(source, target)
    assert not (tmp_path / "to/model.json").exists() and len(asked) == 3
    asked.clear()
    monkeypatch.setattr(storage, "read_range", lambda *a: asked.append(a[1]) or read(*a))
    registry.fetch(source, target)
    assert asked == [0] and sorted(p.name for p in (tmp_path / "to").iterdir()) == ["model.json", "model.safetensors"]
    assert Path(target, "model.safetensors").read_bytes() == Path(source, "model.safetensors").read_bytes()
    assert len({stat.S_IMODE(file.stat().st_mode) for file in Path(target).iterdir()}) == 1


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


def test_the_temperature_comes_along_also_if_it_was_fitted_later(root, tmp_path):
    source, target = registry.find(root), str(tmp_path / "to")
    registry.fetch(source, target)
    assert checkpoints.read_temperature(target) is None
    checkpoints.write_calibration(source, 1.5, None)
    registry.fetch(source, target)
    assert checkpoints.read_temperature(target) == 1.5


def pull(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *options], cwd=folder, capture_output=True, text=True)


def test_the_script_fetches_and_says_how_to_go_on(root, tmp_path):
    done = pull(tmp_path, "--storage", root)
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("score it: python jobs/evaluate.py"), done
    assert "use it: fer_ray.Recognizer.load('one') in Python, or python jobs/predict.py" in done.stdout
    assert (tmp_path / "one/model.json").exists()


def test_the_script_lists_what_is_there_and_what_is_damaged(root, tmp_path):
    table = pull(tmp_path, "--storage", root, "--list").stdout
    assert "val. bal. accuracy" in table and "0.500" in table and "unfinished" in table and "damaged" not in table
    Path(root, "best/one.json").write_text("{")
    listed = pull(tmp_path, "--storage", root, "--list")
    assert listed.returncode == 0 and re.search("one +damaged", listed.stdout) and "unfinished" in listed.stdout
    assert listed.stdout.splitlines()[-1].startswith(f"one: {root}/best/one.json: is damaged"), listed.stdout


@pytest.mark.parametrize(("options", "words"), [
    (["--name", "three"], "no 'three' among one"), (["--storage", "nowhere"], "no best"),
    (["--storage", "gs://bucket/x"], "unknown kind of storage"), (["--to", "file"], "file")])
def test_the_script_says_in_one_line_what_is_wrong(root, tmp_path, options, words):
    (tmp_path / "file").write_text("")
    failed = pull(tmp_path, "--storage", root, *options)
    assert failed.returncode == 1 and words in failed.stderr and len(failed.stderr.splitlines()) == 1, failed.stderr
