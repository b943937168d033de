from pathlib import Path

import pytest

from fer_ray import checks, config, options

CONFIGS = sorted((Path(__file__).parents[2] / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(file):
    assert options.load(["--config", str(file)]).name == file.stem


def test_overrides_win_over_the_file():
    loaded = options.load(["--config", str(CONFIGS[0]), "--train.lr", "0.5", "--name", "x"])
    assert (loaded.train.lr, loaded.name) == (0.5, "x")


@pytest.mark.parametrize(("argv", "words"), [
    (["--train.epoch", "3"], ["train.epoch", "did you mean 'train.epochs'"]),
    (["--train.backbone", "alexnt"], ["'alexnt'", "alexnet", "resnet152"]),
    (["--train.lr", "fast"], ["train.lr", "fast"]),
    (["--train.momentum", "1", "--train.epochs", "0"], ["train.momentum", "train.epochs"]),
    (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    (["--split.folds", "2", "--split.fold", "5"], ["split.folds", "at least 3", "split.fold: 5"]),
    (["--train.nesterov", "true", "--train.momentum", "0"], ["train.nesterov"]),
    (["--train.min_workers", "3", "--train.clip_norm", "-1"], ["train.min_workers", "train.clip_norm"]),
    (["--faces.detector", "yunet"], ["faces.model"]),
])
def test_one_line_names_all_that_is_wrong(argv, words):
    with pytest.raises(config.ConfigError) as error:
        options.load(argv)
    assert "\n" not in str(error.value)
    assert all(w in str(error.value) for w in words)


def test_unknown_key_in_a_file_suggests_the_nearest(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {momentun: 0.5}\ndata: {sources: [{kin: jaffe}]}\n")
    with pytest.raises(config.ConfigError, match=r"train.momentun.*did you mean 'train.momentum'.*sources\[0\].kin"):
        options.load(["--config", str(tmp_path / "c.yaml")])


def test_a_missing_extra_is_named_before_the_work(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(config.ConfigError, match=r"train.mlflow: .*\.\[mlflow\]"):
        options.load(["--train.mlflow", "http://x"])
