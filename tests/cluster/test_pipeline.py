"""The main job as a user runs it: real files, real Ray, real subprocesses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from cluster.conftest import run_job

from fer_ray.config import TrainConfig

TRAIN = ["--train.backbone", "tiny", "--train.weights", "none", "--train.batch_size", "8"]
SOURCES = ["--data.sources", '[{"kind": "ckplus", "root": "CK+"}, {"kind": "jaffe", "root": "jaffe"}]']


@pytest.fixture(scope="module")
def ran(sample_of, tmp_path_factory):
    """The whole pipeline on a tiny sample with one corrupt image among good ones."""
    root = tmp_path_factory.mktemp("tiny")
    sample_of(root / "data", people=3)
    victim = sorted((root / "data" / "jaffe").glob("*.tiff"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    options = ["--data.root", str(root / "data"), *SOURCES, "--storage", str(root / "out"), "--name", "tiny", *TRAIN]
    done = run_job("pipeline", *options, "--train.epochs", "1", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, options, victim, done.stdout


def test_last_line_names_a_result_that_is_whole(ran):
    root, _, _, stdout = ran
    last = stdout.strip().splitlines()[-1]
    assert last == f"result: {root}/out/runs/tiny/result.json"
    result = json.loads(Path(last.removeprefix("result: ")).read_text())
    assert 0 <= result["balanced_accuracy"] <= 1 and 0 <= result["accuracy"] <= 1 and 0 <= result["macro_f1"] <= 1
    assert result["split"] == "subject" and result["leaks"]["subject"] == 0 and result["leaks"]["sequence"] == 0
    assert Path(result["report"]).read_text().startswith("<!doctype html>")
    assert (root / "out/runs/tiny/summary.png").read_bytes().startswith(b"\x89PNG")
    assert (Path(result["checkpoint"]) / "model.safetensors").is_file()
    stored, report = (json.loads(file.read_text()) for file in (Path(result["checkpoint"]) / "calibration.json",
                                                                root / "out/runs/tiny/report.json"))
    assert stored["temperature"] == report["calibration"]["temperature"] == 1 and "a fit needs" in stored["reason"]
    predictions = pd.read_csv(root / "out/runs/tiny/predictions.csv")
    assert len(predictions) == result["test_images"] == sum(map(sum, result["metrics"]["confusion"]))
    best = json.loads((root / "out/best/tiny.json").read_text())["checkpoint"]
    assert str(root / "out" / best) == result["checkpoint"]


def test_every_image_is_in_the_set_or_rejected_with_a_reason(ran):
    root, _, victim, _ = ran
    prepared = root / "out/prepared/tiny"
    rejected = pq.read_table(prepared / "rejected.parquet").to_pandas().set_index("image").reason
    index = pq.read_table(prepared / "index.parquet").to_pandas()
    images = {str(p) for p in (root / "data").rglob("*") if p.suffix in (".png", ".tiff")}
    assert set(index.image) | set(rejected.index) == images and not set(index.image) & set(rejected.index)
    assert "image" in rejected[str(victim)]
    assert index.groupby("subject").split.nunique().max() == 1
    crops = [crop for part in (prepared / "images").glob("part-*.parquet")
             for crop in pq.read_table(part)["crop"].to_pylist() if crop]
    assert len(crops) == len(index)
    assert cv2.imdecode(np.frombuffer(crops[0], np.uint8), cv2.IMREAD_UNCHANGED).shape[:2] == (256, 256)


def test_the_same_command_goes_on_where_it_ended(ran):
    root, options, _, _ = ran
    before = {p: p.read_bytes() for p in (root / "out/prepared").rglob("*") if p.is_file()}
    again = run_job("train", *options, "--train.epochs", "2", cwd=root)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after epoch 1" in again.stdout and "epoch   2/2" in again.stdout
    assert "epoch   1/2" not in again.stdout
    assert before == {p: p.read_bytes() for p in (root / "out/prepared").rglob("*") if p.is_file()}
    other = run_job("train", *options, "--train.lr", "0.5", cwd=root)
    assert other.returncode == 1 and f"train.lr (was {TrainConfig().lr}, now 0.5)" in other.stderr


def test_bad_input_is_one_line_before_ray_starts(tmp_path):
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images/a.png"), np.zeros((64, 64), np.uint8))
    (tmp_path / "t.csv").write_text("image,label\na.png,hapy\n")
    table = ["--data.kind", "table", "--data.root", str(tmp_path), "--data.table.expression_column", "label"]
    for options, words in ((["--data.root", "/nowhere"], "/nowhere is not a folder"),
                           (table, "t.csv row 2: unknown expression 'hapy'")):
        failed = run_job("pipeline", *options, *TRAIN, "--storage", str(tmp_path / "out"), cwd=tmp_path)
        assert failed.returncode == 1 and words in failed.stderr, failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
