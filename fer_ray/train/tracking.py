"""The numbers of every epoch: JSON lines and TensorBoard, beside the run's checkpoints."""

from __future__ import annotations

import json

from fer_ray import storage


def read(run: str) -> list[dict]:
    """The lines of `metrics.jsonl` of a run, an epoch each; empty before the first."""
    file = storage.join(run, "metrics.jsonl")
    if not storage.exists(file):
        return []
    return [json.loads(line) for line in storage.read_bytes(file).decode().splitlines()]


def epoch_log(run: str, mlflow_uri: str = ""):
    """A callback that Ray Train calls in its controller, once a report, whatever the number of workers."""
    from ray.train import UserCallback  # not at the top: a job sets what Ray reads when it is imported

    class EpochLog(UserCallback):
        def after_report(self, run_context, metrics: list[dict], checkpoint) -> None:
            log(run, metrics[0], mlflow_uri)

    return EpochLog()


def log(run: str, reported: dict, mlflow_uri: str = "") -> None:
    """Keep what a worker reported, if it is the numbers of an epoch; within one there are none."""
    if "train_loss" in reported:
        epoch = {k: v for k, v in reported.items() if k != "score"}
        write(run, epoch)
        if mlflow_uri:
            to_mlflow(run, epoch, mlflow_uri)


def catch_up(run: str, history: list[dict], mlflow_uri: str = "") -> None:
    """Keep the epochs of a checkpoint's history that are missing: its writer died before their numbers were kept."""
    for epoch in history[len(read(run)) :]:
        log(run, epoch, mlflow_uri)


def write(run: str, epoch: dict) -> None:
    """Add the numbers of an epoch, in place of what is known of it and later ones: an epoch that is trained again
    after a failure replaces its line. TensorBoard's files carry the run's id, so that a resumed run goes on in the
    same curve.
    """
    from tensorboardX import SummaryWriter

    run_id = _id(run)
    lines = [*(line for line in read(run) if line["epoch"] < epoch["epoch"]), {"run": run_id, **epoch}]
    storage.write_bytes(storage.join(run, "metrics.jsonl"),
                        "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())
    with SummaryWriter(logdir=storage.join(run, "tensorboard", run_id), purge_step=epoch["epoch"],
                       filename_suffix=f".{epoch['epoch']:05d}") as writer:
        for name, value in epoch.items():
            if isinstance(value, int | float) and name != "epoch":
                writer.add_scalar(name.replace("train_", "train/", 1).replace("val_", "val/", 1), value,
                                  epoch["epoch"])


def to_mlflow(run: str, epoch: dict, uri: str) -> None:
    """Log an epoch to an MLflow server (extra `mlflow`); a resumed run goes on in the same MLflow run."""
    from mlflow import MlflowClient

    client, file = MlflowClient(uri), storage.join(run, "mlflow.json")
    if not storage.exists(file):
        experiment = client.get_experiment_by_name("fer_ray")
        number = experiment.experiment_id if experiment else client.create_experiment("fer_ray")
        created = client.create_run(number, run_name=run.rpartition("/")[2], tags={"fer_ray.run": _id(run)})
        storage.write_json(file, {"run_id": created.info.run_id})
    target = storage.read_json(file)["run_id"]
    for name, value in epoch.items():
        if isinstance(value, int | float) and name != "epoch":
            client.log_metric(target, name, value, step=epoch["epoch"])


def _id(run: str) -> str:
    return storage.read_json(storage.join(run, "run.json"))["id"]
