"""What a run left for other steps is read whole, or refused in one line that says what makes it again."""

import json

import numpy as np
import pandas as pd
import pytest
from reports import one_hot, result_for

from fer_ray import storage
from fer_ray.config import Config
from fer_ray.evaluate import comparison, evaluation, protocols, results
from fer_ray.model import metrics


@pytest.fixture
def run(tmp_path):
    """A run's folder with its report and predictions; one of its people is called NA, one is unknown."""
    rows = pd.DataFrame({"image": ["a", "b", "c"], "dataset": "d", "subject": ["NA", "q", None],
                         "expression": ["anger", "fear", "fear"], "chroma": [0.0, 9.0, 9.0],
                         "face_found": [True, False, True], "several": [False, False, True]})
    scores = metrics.evaluate(one_hot([0, 3, 3]), np.array([0, 3, 3]), ["NA", "q", None])
    storage.write_json(str(tmp_path / "report.json"), result_for(scores))
    results.write_predictions(str(tmp_path), "predictions.csv", rows, one_hot([0, 3, 3]))
    return tmp_path


def test_predictions_come_back_as_they_were_written(run):
    table = protocols.pooled([str(run)])
    assert table["subject"].tolist()[:2] == ["NA", "q"] and table["subject"].isna().tolist() == [False, False, True]
    assert table["colour"].tolist() == ["grey", "coloured", "coloured"]
    assert table["face"].tolist() == ["found", "not found", "one of several"]
    groups = protocols.groups_of(table)
    assert list(groups) == ["dataset", "colour", "face"]
    assert [g["value"] for g in groups["face"]] == ["found", "not found", "one of several"]
    assert protocols.scores_of(table)["balanced_accuracy"] == 1 and protocols.scores_of(table)["test_people"] == 3


@pytest.mark.parametrize("damage", [lambda c: None, lambda c: b"", lambda c: c[:150], lambda c: b"\xff\xfe" + c,
                                    lambda c: c[: c.rindex(b"\nc,") + 1], lambda c: c.replace(b"fear", b"fever"),
                                    lambda c: c.replace(b"0.93", b"much"), lambda c: c.replace(b"image", b"picture")])
def test_damaged_predictions_are_told_with_what_makes_them_again(run, damage):
    file = run / "predictions.csv"
    content = damage(file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(storage.DamagedError, match=r"predictions\.csv: is .*makes it again") as error:
        protocols.pooled([str(run)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "", '{"metrics": {', "[]", '{"metrics": 3}'])
@pytest.mark.parametrize("name", ["result.json", "report.json"])
def test_damaged_reports_are_told_with_what_makes_them_again(run, name, content):
    (run / name).unlink(missing_ok=True)
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(storage.DamagedError, match=rf"{name}: is .*makes it again"):
        (results.read_result if name == "result.json" else results.read_report)(str(run))


@pytest.mark.parametrize("content", ["", '{"suspects": 3}', None])
def test_a_damaged_label_audit_keeps_no_run_from_its_scores(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "labels/x").mkdir(parents=True)
        (tmp_path / "labels/x/labels.json").write_text(content)
    assert evaluation.read_labels(Config(name="x", storage=str(tmp_path))) is None
    assert ("jobs/audit.py --labels" in capsys.readouterr().out) == (content is not None)


def test_the_table_of_backbones_says_chance_and_few_people(tmp_path):
    run = tmp_path / "runs/x"
    run.mkdir(parents=True)
    epoch = {"epoch": 0, "train_s": 1.0, "images_per_s": 3.0, "train_loss": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    scores = metrics.evaluate(one_hot([0, 3]), np.array([0, 3]), ["p", "q"])
    storage.write_json(str(run / "result.json"), result_for(scores) | {"parameters": 1, **{
        key: scores[key] for key in ("balanced_accuracy", "balanced_accuracy_ci95", "no_interval", "chance",
                                     "accuracy", "test_people")}})
    rows, _ = comparison.table(str(tmp_path), ["x"])
    text = comparison.as_text(rows)
    assert rows[0]["test_chance"] == 0.5 and "none: 2 people" in text and "fewer than 5" in text
