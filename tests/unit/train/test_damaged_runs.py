"""Files of a run or a search that were cut short, edited or lost: made again where possible, else told in one line."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fer_ray import storage
from fer_ray.config import Config, ConfigError, TrainConfig, TuneConfig
from fer_ray.data.prepared_set import SCHEMA_VERSION
from fer_ray.errors import StorageError, UserError
from fer_ray.model import checkpoints
from fer_ray.train import tracking, training
from fer_ray.tune import outcome, search, space

HISTORY = [{"epoch": epoch, "lr": 0.1, "train_loss": 2.0 - epoch, "val_loss": 1.0, "val_balanced_accuracy": 0.5,
            "val_chance": 0.125,
            "train_s": 1.0} for epoch in range(3)]


@pytest.fixture
def config(tmp_path) -> Config:
    """A storage with a prepared set."""
    storage.write_json(str(tmp_path / "prepared/one/prepared.json"), {
        "schema_version": SCHEMA_VERSION, "request": "", "fingerprint": "print", "files": {}, "counts": {},
        "config": {}})
    return Config(name="one", storage=str(tmp_path), train=TrainConfig(epochs=3, lr=0.005),
                  tune=TuneConfig(max_epochs=3, num_trials=2))


def opened(config: Config) -> dict | None:
    return training.open_run(config, f"{config.storage}/prepared/one")


def write_checkpoint(config: Config) -> None:
    """What three epochs of training leave."""
    folder = Path(config.storage) / "runs/one/checkpoint_0003_000000"
    folder.mkdir(parents=True)
    progress = {"epoch": 3, "step": 0, "best_epoch": 0, "best": 0.5, "total": [0.0, 0.0], "history": HISTORY}
    checkpoints.save(str(folder), "alexnet", torch.nn.Linear(2, 2), {"optimizer": {}, "progress": progress}, {
        "progress": {"epoch": 3, "step": 0}, "at_end_of_epoch": True, "metrics": HISTORY[-1], "history": HISTORY,
        "config": dataclasses.asdict(config), "data_fingerprint": "print"})


def cut(content: bytes) -> list[bytes]:
    """The content truncated at several places, emptied, and with a byte that is no text."""
    ends = sorted({0, 1, 2, len(content) // 3, len(content) // 2, len(content) - 2, len(content) - 1})
    return [content[:end] for end in ends] + [b"\xff" + content[1:], b"null", b"[1]", b'{"a": 1}']


def test_what_a_run_must_keep_is_known_from_its_checkpoint_when_run_json_is_lost_or_damaged(config):
    assert opened(config) is None
    file = Path(config.storage) / "runs/one/run.json"
    whole = file.read_bytes()
    write_checkpoint(config)
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.5))
    for content in [*cut(whole)[:-4], b"\xff", b"null", None]:
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ConfigError, match="train.lr \\(was 0.005, now 0.5\\)"):
            opened(other)
        file.unlink() if content is None else file.write_bytes(content)
        progress = opened(config)
        assert progress and progress["epoch"] == 3
        assert json.loads(file.read_text())["values"] == json.loads(whole)["values"]


def test_a_damaged_run_json_without_a_checkpoint_costs_nothing(config):
    opened(config)
    file = Path(config.storage) / "runs/one/run.json"
    for content in cut(file.read_bytes()):
        file.write_bytes(content)
        assert opened(config) is None and json.loads(file.read_text())["values"]["train.lr"] == 0.005


@pytest.mark.parametrize("end", [1, 10, 50, 100])
def test_a_line_of_metrics_that_is_cut_short_is_told_again_from_the_checkpoint(config, end):
    opened(config)
    write_checkpoint(config)
    run = f"{config.storage}/runs/one"
    tracking.catch_up(run, HISTORY)
    whole = tracking.read_whole(run, 3)
    file = Path(run, "metrics.jsonl")
    content = file.read_bytes()
    for damaged in (content[:-end], content[: len(content) // 2], b"\xff" + content[1:], b"", b"null\n"):
        file.write_bytes(damaged)
        known = tracking.read(run)
        assert known == whole[: len(known)] and len(known) < 3 or end == 1
        progress = opened(config)
        assert progress
        if len(known) < 3:
            assert not training.is_done(progress, config)  # there is something to write down
            with pytest.raises(storage.DamagedError, match="metrics.jsonl: is damaged .* of 3 .*run jobs/train.py"):
                tracking.read_whole(run, 3)
        tracking.catch_up(run, progress["history"])
        assert tracking.read(run) == whole and training.is_done(progress, config)
    file.unlink()
    assert tracking.read(run) == []


def searched(config: Config) -> list[Path]:
    """The files of a search with a diverged trial."""
    search.claim_search(config, f"{config.storage}/prepared/one")
    points = space.Points(config)
    points.record(0, points.first[0])
    folder = Path(space.search_uri(config))
    storage.write_json(str(folder / "runs/000/diverged.json"), {"epoch": 0, "reason": "the loss is nan"})
    storage.write_json(str(folder / "tune.json"), {"best": {"settings": {"lr": 0.02}}})
    return [folder / name for name in ("search.json", "points.json", "runs/000/diverged.json", "tune.json")]


def read_all(config: Config) -> list[dict]:
    search.claim_search(config, f"{config.storage}/prepared/one")
    found = outcome.trials(config)
    space.with_best_settings(dataclasses.replace(config, train=dataclasses.replace(config.train, from_tune="one")))
    return found


@pytest.mark.parametrize(("number", "remedy"), [
    (0, "remove it and run the same command again"), (1, "remove .*/tune/one and run jobs/tune.py again"),
    (2, "remove it and run jobs/tune.py again"), (3, "run jobs/tune.py --name one again")])
def test_a_damaged_file_of_a_search_is_told_with_what_makes_it_again(config, number, remedy):
    file = searched(config)[number]
    assert read_all(config)[0]["reason"] == "the loss is nan"
    for content in cut(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(storage.DamagedError, match=f"{file.name}: is damaged .*; .*{remedy}") as told:
            read_all(config)
        assert len(str(told.value).splitlines()) == 1


def test_trials_whose_points_are_lost_are_not_mixed_with_others(config):
    points = searched(config)[1]
    points.unlink()
    with pytest.raises(storage.DamagedError, match="points.json: is missing; .*remove .*/tune/one"):
        space.Points(config)


def test_settings_that_no_training_has_are_a_damaged_result(config):
    file = searched(config)[3]
    for best in ({}, {"settings": 3}, {"settings": {"learning_rate": 1}}):
        file.write_text(json.dumps({"best": best}))
        with pytest.raises(storage.DamagedError, match="tune.json: is damaged"):
            read_all(config)


def test_a_storage_that_is_a_file_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("text")
    values = {"a": 1}
    for folder in ("file", "file/runs/one"):
        with pytest.raises(StorageError, match="file") as told:
            training.claim(str(tmp_path / folder / "run.json"), values, values)
        assert len(str(told.value).splitlines()) == 1


def test_a_prepared_set_without_fingerprint_is_told(config):
    file = Path(config.storage) / "prepared/one/prepared.json"
    for content in cut(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(UserError, match="prepared.json: is damaged .*run jobs/prepare.py"):
            opened(config)
