"""The numbers of every epoch: a JSON line and TensorBoard, beside the run's checkpoints, and MLflow if wished."""

from __future__ import annotations

import json

from fer_ray import storage


def read(run: str) -> list[dict]:
    """The epochs in `metrics.jsonl` of a run, from the first on; empty before that has ended.

    A line that is cut short or is not the next epoch's ends the list: training tells it, and what came after it, again
    from the history in its checkpoint (`catch_up`).
    """
    try:
        content = storage.read_bytes(storage.join(run, "metrics.jsonl"))
    except FileNotFoundError:
        return []
    epochs: list[dict] = []
    for line in content.splitlines():
        try:
            numbers = json.loads(line)
        except ValueError:  # no JSON, or no text
            break
        if not isinstance(numbers, dict) or numbers.get("epoch") != len(epochs):
            break
        epochs.append(numbers)
    return epochs


def read_whole(run: str, num_epochs: int) -> list[dict]:
    """The epochs of a run that has trained at least so many.

    Raises: storage.DamagedError if `metrics.jsonl` holds fewer.
    """
    epochs, file = read(run), storage.join(run, "metrics.jsonl")
    if len(epochs) < num_epochs:
        raise storage.DamagedError(f"{file}: is damaged ({len(epochs)} of {num_epochs} epochs can be read); run "
                                   "jobs/train.py again with the same options: it writes the file anew from the "
                                   "checkpoints, without training again")
    return epochs


def log(run: str, numbers: dict, mlflow_uri: str = "") -> None:
    """Keep the numbers of an epoch, here and on an MLflow server if there is one."""
    write(run, numbers)
    if mlflow_uri:
        log_to_mlflow(run, numbers, mlflow_uri)


def catch_up(run: str, history: list[dict], mlflow_uri: str = "") -> None:
    """Keep the epochs of a checkpoint's history that `metrics.jsonl` lacks.

    A checkpoint is kept before the numbers of its epoch, so a worker that dies between the two leaves such a gap.
    """
    for numbers in history[len(read(run)) :]:
        log(run, numbers, mlflow_uri)


def write(run: str, numbers: dict) -> None:
    """Add the numbers of an epoch, in place of what is there for it and later ones.

    An epoch that is trained again after a failure so replaces its line. TensorBoard's files lie in a folder with the
    run's id, so that a resumed run goes on in the same curve.
    """
    from tensorboardX import SummaryWriter

    run_id, epoch = _id(run), numbers["epoch"]
    lines = [*read(run)[:epoch], {"run": run_id, **numbers}]
    storage.write_bytes(storage.join(run, "metrics.jsonl"),
                        "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())
    # purge_step makes TensorBoard drop its points from this epoch on, which a dead worker may have written
    with SummaryWriter(logdir=storage.join(run, "tensorboard", run_id), purge_step=epoch,
                       filename_suffix=f".{epoch:05d}") as writer:
        for name, value in _scalars(numbers).items():
            tag = name.replace("train_", "train/", 1).replace("val_", "val/", 1)
            writer.add_scalar(tag, value, epoch)


def log_to_mlflow(run: str, numbers: dict, uri: str) -> None:
    """Log an epoch to an MLflow server (extra `mlflow`); a resumed run goes on in the same MLflow run."""
    from mlflow import MlflowClient

    client, file = MlflowClient(uri), storage.join(run, "mlflow.json")
    if not storage.exists(file):
        experiment = client.get_experiment_by_name("fer_ray")
        experiment_id = experiment.experiment_id if experiment else client.create_experiment("fer_ray")
        created = client.create_run(experiment_id, run_name=run.rpartition("/")[2], tags={"fer_ray.run": _id(run)})
        storage.write_json(file, {"run_id": created.info.run_id})
    mlflow_run = storage.read_own_json(file, {"run_id": str}, "remove it: training then goes on in a new MLflow run")
    for name, value in _scalars(numbers).items():
        client.log_metric(mlflow_run["run_id"], name, value, step=numbers["epoch"])


def _scalars(numbers: dict) -> dict[str, float]:
    """Those numbers of an epoch that make a curve."""
    return {name: value for name, value in numbers.items() if isinstance(value, int | float) and name != "epoch"}


def _id(run: str) -> str:
    return storage.read_own_json(storage.join(run, "run.json"), {"id": str},
                                 "run jobs/train.py again with the same options")["id"]
