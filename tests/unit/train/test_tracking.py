"""The numbers of an epoch reach every place that shows them, once, whatever was interrupted."""

import pytest

from fer_ray import storage
from fer_ray.train import tracking

EPOCH = {"epoch": 0, "train_loss": 2.0, "val_balanced_accuracy": 0.5}


@pytest.fixture
def run(tmp_path):
    """A run that has begun."""
    storage.write_json(str(tmp_path / "runs/one/run.json"), {"id": "id1"})
    return str(tmp_path / "runs/one")


def test_mlflow_has_one_run_with_every_epoch(run, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server of its own needs the whole of MLflow
    uri = (tmp_path / "mlflow").as_uri()
    tracking.log(run, EPOCH, uri)
    tracking.log(run, EPOCH | {"epoch": 1, "train_loss": 1.0}, uri)
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("fer_ray").experiment_id])
    assert [(r.info.run_name, r.data.tags["fer_ray.run"]) for r in found] == [("one", "id1")]
    told = client.get_metric_history(found[0].info.run_id, "train_loss")
    assert [(m.step, m.value) for m in told] == [(0, 2.0), (1, 1.0)]


def test_an_epoch_that_is_told_again_replaces_its_line_and_later_ones(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for epoch, loss in ((0, 2.0), (1, 1.5), (1, 1.0)):
        tracking.log(run, EPOCH | {"epoch": epoch, "train_loss": loss})
    assert [(e["epoch"], e["train_loss"], e["run"]) for e in tracking.read(run)] == [(0, 2.0, "id1"), (1, 1.0, "id1")]
    curve = EventAccumulator(f"{run}/tensorboard/id1").Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in curve] == [(0, 2.0), (1, 1.0)]


def test_epochs_whose_writer_died_are_kept_from_the_checkpoint(run):
    history = [EPOCH | {"epoch": epoch, "train_loss": 2.0 - epoch} for epoch in range(3)]
    tracking.log(run, history[0])
    tracking.catch_up(run, history)
    assert [e["train_loss"] for e in tracking.read(run)] == [2.0, 1.0, 0.0]
    tracking.log(run, EPOCH | {"epoch": 3, "train_loss": 9.0})
    tracking.catch_up(run, history)  # an older checkpoint, since the newest is damaged, takes nothing back
    assert [e["train_loss"] for e in tracking.read(run)] == [2.0, 1.0, 0.0, 9.0]
