"""The stages as every job calls them: what can be wrong is found before the work, most of it before Ray starts."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.cli import connection
from fer_ray.config import Config, TrainConfig
from fer_ray.data import prepare, prepared_set
from fer_ray.data.sources import find_images, read_manifest
from fer_ray.evaluate import evaluation, inference
from fer_ray.model import augment, checkpoints, metrics, registry
from fer_ray.report import pages, prepared_page
from fer_ray.train import inputs, job, resources, schedule, training


def run_prepare(config: Config, trainings: Iterable[TrainConfig] = ()) -> str:
    """Raw data to prepared set; its URI. What any of the `trainings` to come lacks is told before the work."""
    data = read_manifest(config.data, config.split.by)
    print(f"prepare: {data.rows.num_rows} images, {data.rejected.num_rows} rejected by their labels", flush=True)
    connection.connect()
    import ray

    for t in trainings:
        resources.are_available(t)
        ray.get(inputs.load_start_state(t)[1])
    uri = prepare.prepare(config, data)
    summary = storage.read_json(storage.join(uri, "prepared.json"))
    kept = {s: sum(sum(by[s].values()) for by in summary["counts"]["after"].values() if s in by)
            for s in ("train", "val", "test")}
    print(f"prepare: {kept} images by {summary['split']}, rejected {summary['rejected']}, leaks {summary['leaks']}",
          flush=True)
    page = storage.join(uri, "prepare.html")
    if not storage.exists(page):
        prepared_page.write(uri, config.name)
    print(f"prepare: report {page}", flush=True)
    for remark in summary["remarks"]:
        print(f"prepare: {remark}", flush=True)
    return uri


def run_split_audit(config: Config) -> str:
    """Audit the prepared set again; URI of its page."""
    uri = prepared_set.uri_of(config)
    index = prepared_set.read_index(uri)
    summary = storage.read_json(storage.join(uri, "prepared.json"))
    summary |= prepare.audit(uri, index)
    storage.write_json(storage.join(uri, "prepared.json"), summary)
    leaks = prepared_set.read_table(uri, "leaks")
    print(leaks.to_string(index=False) if len(leaks) else "no leak across splits", flush=True)
    print(f"leaks {summary['leaks']}, near-duplicates in the whole set {summary['near_duplicates']}, same picture with "
          f"different expressions {summary['conflicts']}", flush=True)
    return prepared_page.write(uri, config.name)


def run_train(config: Config) -> str:
    """Prepared set to the run folder with its checkpoints; its URI."""
    t = config.train
    prepared_set.read_index(prepared_set.uri_of(config))
    connection.connect()
    scaled = f" (scaled to {schedule.peak_lr(t):g} for batches of {t.batch_size})" if t.lr_per_256 else ""
    print(f"train: {t.backbone} from {t.weights} weights, at most {t.epochs} epochs, lr {t.lr:g}{scaled}, "
          f"momentum {t.momentum:g}", flush=True)
    return training.train(config, prepared_set.uri_of(config))


def run_evaluate(config: Config) -> str:
    """Best checkpoint to result.json; its URI."""
    prepared_set.read_index(prepared_set.uri_of(config))
    also = prepare_also(config)
    connection.connect()
    return score(config, prepared_set.uri_of(config), also)


def prepare_also(config: Config) -> dict[str, str]:
    """The data sets of `evaluate.also`, prepared whole for testing (name -> URI)."""
    data = {s.name: dataclasses.replace(config.data, sources=[s], exclude="") for s in config.evaluate.also}
    for one in data.values():  # what is wrong with any of them is told before the first is prepared
        read_manifest(one, "test")
    shared = config.prepared or config.name
    sets = {name: dataclasses.replace(config, prepared=f"{shared}-{name}", data=one,
                                      split=dataclasses.replace(config.split, by="test", folds=0, fold=0))
            for name, one in data.items()}
    return {name: run_prepare(one) for name, one in sets.items()}


def score(config: Config, prepared: str, also: dict[str, str]) -> str:
    """Evaluate a run and write its report; URI of result.json."""
    result, explained = evaluation.evaluate(config, prepared, also)
    run = job.run_uri(config)
    montage = prepared_page.montage(prepared, config.train.seed)
    drawn = np.stack([augment.draws(config.train.seed, epoch, np.zeros(1, int))[0] for epoch in range(8)])
    augmented = list(augment.train_transform([montage[0]["crop"]] * len(drawn), drawn))
    target = pages.write(run, result, {"montage": montage, "augmented": augmented, "explained": explained})
    print(f"{config.name}\n{metrics.per_class_table(result['metrics'])}\nreport: {run}/report.html", flush=True)
    return target


def run_predict(config: Config) -> str:
    """Photographs to predictions.csv; its URI."""
    images = find_images(config.predict.images)
    checkpoint = config.predict.checkpoint or registry.find(config.storage, config.name)
    trained = checkpoints.describe(checkpoint)["config"]["faces"]
    for key in ("detector", "enlarge"):
        if trained[key] != (given := getattr(config.faces, key)):
            print(f"predict: the network was trained with faces.{key} {trained[key]}, not {given}", flush=True)
    connection.connect()
    table = inference.predict_images(config, checkpoint, images)
    found = pd.read_csv(io.BytesIO(storage.read_bytes(table)))
    print(f"predict: {len(found)} images, {found['reason'].notna().sum()} without a prediction; "
          f"{found['expression'].value_counts().to_dict()}", flush=True)
    return table


def run_pipeline(config: Config) -> str:
    """All three; URI of result.json."""
    run_prepare(config, [config.train])
    run_train(config)
    return run_evaluate(config)
