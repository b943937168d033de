"""The numbers of an epoch reach every place that shows them, once, whatever was interrupted."""

from fer_ray import tracking

EPOCH = {"epoch": 0, "train_loss": 2.0, "val_balanced_accuracy": 0.5, "score": 0.5}


def test_mlflow_has_one_run_with_every_epoch(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server of its own needs the whole of MLflow
    uri, run = (tmp_path / "mlflow").as_uri(), str(tmp_path / "runs" / "one")
    tracking.log(run, "id1", EPOCH, uri)
    tracking.log(run, "id1", {"score": -1.0}, uri)  # a checkpoint within the epoch
    tracking.log(run, "id1", EPOCH | {"epoch": 1, "train_loss": 1.0}, uri)
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("fer_ray").experiment_id])
    assert [(r.info.run_name, r.data.tags["fer_ray.run"]) for r in found] == [("one", "id1")]
    told = client.get_metric_history(found[0].info.run_id, "train_loss")
    assert [(m.step, m.value) for m in told] == [(0, 2.0), (1, 1.0)]


def test_an_epoch_that_is_told_again_replaces_its_line_and_later_ones(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = str(tmp_path)
    for epoch, loss in ((0, 2.0), (1, 1.5), (1, 1.0)):
        tracking.log(run, "id1", EPOCH | {"epoch": epoch, "train_loss": loss})
    assert [(e["epoch"], e["train_loss"], e["run"]) for e in tracking.read(run)] == [(0, 2.0, "id1"), (1, 1.0, "id1")]
    curve = EventAccumulator(f"{run}/tensorboard/id1").Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in curve] == [(0, 2.0), (1, 1.0)]
