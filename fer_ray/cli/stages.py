"""The stages as verbs: prepare, train, evaluate, predict. Faults of the input are found before any work is done."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.cli import connection, wording
from fer_ray.config import Config, TrainConfig
from fer_ray.data import ledger, prepare, prepared_set, sources
from fer_ray.data_config import FacesConfig
from fer_ray.evaluate import evaluation
from fer_ray.model import augment, checkpoints, metrics, start_weights
from fer_ray.report import pages, prepared_page
from fer_ray.train import inputs, job, resources, schedule, training
from fer_ray.use import batch, export, gallery, networks, onnx_model, timeline, videos
from fer_ray.use import inputs as photographs
from fer_ray.use.photographs import Cutter, Search


def run_prepare(config: Config, trainings: Iterable[TrainConfig] = ()) -> str:
    """Make the prepared set of a raw data set; its URI.

    Args:
        config: names the data and the prepared set.
        trainings: that are to use the set. What one of them lacks ends the job before the first image is cropped.
    """
    trainings = list(trainings)
    sources.root_of(config.data)  # a command without it lacks more than weights
    for training_config in trainings:
        start_weights.check(training_config)
        if config.evaluate.floor:  # scored when all is trained, by a network with ImageNet weights
            start_weights.check(dataclasses.replace(training_config, weights="imagenet"))
    data = sources.read_manifest(config.data, config.split.by)
    wording.say("prepare", [f"{wording.count(data.rows.num_rows, 'image')} found, "
                            f"{data.rejected.num_rows:,} more rejected by their labels",
                        ledger.line(data.ledger)])
    connection.connect(config.storage)
    _require(config, trainings)
    uri = prepare.prepare(config, data)
    page = storage.join(uri, "prepare.html")
    if not storage.exists(page):
        prepared_page.write(uri, config.name)
    wording.say("prepare", [*wording.prepared(prepared_set.read_summary(uri)), f"report {page}"])
    return uri


def _require(config: Config, trainings: list[TrainConfig]) -> None:
    """Raise what would keep one of these trainings from starting: too small a cluster, or weights that do not fit."""
    import ray

    trainings = [resources.settle(training_config) for training_config in trainings]
    for training_config in trainings:
        resources.are_available(training_config)
    if trainings:  # they are scored afterwards
        resources.device_for(config.evaluate.device, "evaluate.device")
    ray.get([inputs.load_start_state(training_config)[1] for training_config in trainings])


def run_train(config: Config) -> str:
    """Train on a prepared set; URI of the run's folder with its checkpoints."""
    train = config.train
    start_weights.check(train)
    prepared_set.read_index(prepared_set.uri_of(config))  # what is wrong with it ends the job before Ray starts
    connection.connect(config.storage)
    scaled = f" (scaled to {schedule.peak_lr(train):g} for batches of {train.batch_size})" if train.lr_per_256 else ""
    wording.say("train", [f"{train.backbone} from {train.weights} weights, at most {train.epochs} epochs, "
                          f"lr {train.lr:g}{scaled}, momentum {train.momentum:g}"])
    return training.train(config, prepared_set.uri_of(config))


def run_evaluate(config: Config) -> str:
    """Score the best checkpoint of a run on the test split and write the report; URI of result.json."""
    prepared_set.read_index(prepared_set.uri_of(config))
    also = prepare_also(config)
    connection.connect(config.storage)
    return score(config, prepared_set.uri_of(config), also)


def prepare_also(config: Config) -> dict[str, str]:
    """Prepare the data sets of `evaluate.also`, all of each for testing; their URIs by name."""
    data = {source.name: dataclasses.replace(config.data, sources=[source], exclude="")
            for source in config.evaluate.also}
    for data_config in data.values():  # what is wrong with any of them ends the job before the first is prepared
        sources.read_manifest(data_config, "test")
    split = dataclasses.replace(config.split, by="test", folds=0, fold=0)
    prepared = config.prepared or config.name
    return {name: run_prepare(dataclasses.replace(config, prepared=f"{prepared}-{name}", data=data_config, split=split))
            for name, data_config in data.items()}


def score(config: Config, prepared: str, also: dict[str, str]) -> str:
    """Evaluate a run and write its report; URI of result.json."""
    device = resources.device_for(config.evaluate.device, "evaluate.device")
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, device=device))
    wording.say("evaluate", [f"scoring on {resources.DEVICES[device]}"])
    result, explained = evaluation.evaluate(config, prepared, also)
    run = job.run_uri(config)
    montage = prepared_page.montage(prepared, config.train.seed)
    target = pages.write(run, result, {"montage": montage, "augmented": augmented(montage[0]["crop"], config.train),
                                       "explained": explained})
    lines = [config.name, metrics.per_class_table(result["metrics"]), *metrics.group_lines(result["groups"])]
    for other in result["also"]:
        lines += wording.scored_elsewhere(other)
    print("\n".join([*lines, *wording.warnings(result["shortcuts"]), f"report: {run}/report.html"]), flush=True)
    return target


def augmented(crop: np.ndarray, settings: TrainConfig) -> list[np.ndarray]:
    """What a training makes of uint8 [256, 256(, 3)] in its first eight epochs; uint8 [224, 224, 3] each."""
    drawn = np.stack([augment.draws(settings.seed, epoch, np.zeros(1, int))[0] for epoch in range(8)])
    return list(augment.train_transform([crop] * len(drawn), drawn, augment.NAMED[settings.augmentation]))


def run_predict(config: Config) -> str:
    """Predict the expressions of the faces in photographs and videos.

    Returns: URI of predictions.csv, or of frames.csv if there are videos alone.
    """
    found = photographs.find(config.predict.images, config.data.table.image_column)
    wording.say("predict", [wording.found(len(found.photographs), len(found.videos), found.others)])
    network, search = network_and_search(config, "predict")
    connection.connect(config.storage)
    device = device_of(config, network.uri)
    wording.say("predict", [f"the network computes on {resources.DEVICES[device]}"])
    folder = storage.join(config.storage, "predictions", config.name)
    made = []
    if found.photographs:
        job = batch.Job(folder, found.photographs, network, search, device)
        made.append(batch.predict(job))
        wording.say("predict", [wording.predictions(pd.read_csv(io.BytesIO(storage.read_bytes(job.table))))])
        if config.predict.annotate:
            wording.say("predict", [f"gallery {gallery.write(job, config.name)}"])
    else:
        batch.remove(folder)
    if found.videos:
        made.append(_predict_videos(config, videos.Job(folder, found.videos, network, search, device,
                                                       config.predict.every, config.predict.smooth)))
    else:
        videos.remove(folder)
    return made[0]


def _predict_videos(config: Config, job: videos.Job) -> str:
    """Predict the faces of videos, and tell it; URI of frames.csv."""
    films = videos.predict(job)
    told = pd.read_csv(io.BytesIO(storage.read_bytes(storage.join(job.folder, "videos.csv"))))
    wording.say("predict", wording.videos(told))
    if config.predict.annotate:
        drawn = [f"timeline {page}" for page in timeline.write(job, films)]
        wording.say("predict", wording.shortened(drawn, "timelines"))
    return job.table


def network_and_search(config: Config, stage: str) -> tuple[networks.Description, Search]:
    """The network that `predict` names, and which faces it is to see.

    `stage`: that says on the terminal what the user should know of them. Raises: checkpoints.CheckpointError;
    onnx_model.OnnxError, also for an ONNX file on a GPU; faces.DetectorError; storage.StorageError.
    """
    uri = networks.find(config.predict.checkpoint or config.storage,
                        "" if config.predict.checkpoint else config.name)
    if networks.is_exported(uri):
        onnx_model.check_device(uri, config.predict.device)
    network = networks.describe(uri)
    search = Search(_faces_options(config, network.faces, stage), config.predict.faces, config.predict.tilt,
                    config.predict.min_face)
    Cutter(search)  # a detector that cannot be loaded ends the job before Ray starts
    if network.temperature is None:
        wording.say(stage, [f"{uri}: {networks.NOT_CALIBRATED}"])
    return network, search


def device_of(config: Config, network: str) -> Literal["cpu", "cuda"]:
    """Where the network of this URI, which `predict` names, computes. Raises: ConfigError if the cluster lacks that."""
    return "cpu" if networks.is_exported(network) else resources.device_for(config.predict.device, "predict.device")


def _faces_options(config: Config, trained: FacesConfig, stage: str) -> FacesConfig:
    """The options `trained` that the network's images were cropped by. Others that the user gave are told, not used."""
    for field in dataclasses.fields(FacesConfig):
        given = getattr(config.faces, field.name)
        if field.name != "model" and given not in (field.default, used := getattr(trained, field.name)):
            wording.say(stage, [f"faces.{field.name} is {used}, as the network was trained, and not {given}"])
    # a file of this machine, which lay elsewhere where the network was trained
    return dataclasses.replace(trained, model=config.faces.model or trained.model)


def run_export(config: Config) -> str:
    """Write a checkpoint in formats that run without fer_ray; URI of export.json."""
    prepared = prepared_set.uri_of(config)
    checkpoint = config.export.checkpoint or networks.find(config.storage, config.name)
    export.check(config, prepared, checkpoint)
    if checkpoints.read_temperature(checkpoint) is None:
        wording.say("export", ["no temperature is stored with the checkpoint, so its probabilities stay as they are; "
                               "jobs/evaluate.py fits one on the validation images"])
    connection.connect(config.storage)
    return export.export(config, prepared, checkpoint)


def run_pipeline(config: Config) -> str:
    """Prepare, train and evaluate; URI of result.json."""
    run_prepare(config, [config.train])
    run_train(config)
    return run_evaluate(config)
