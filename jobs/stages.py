"""The stages as every job calls them: all that can be wrong is found before Ray starts."""

from __future__ import annotations

import dataclasses

import job

from fer_ray import augment, comparison, evaluation, metrics, overview, prepare, report, storage, training
from fer_ray.config import Config
from fer_ray.datasets import read_manifest


def run_prepare(config: Config) -> str:
    """Raw data to prepared set; its URI."""
    data = read_manifest(config.data, config.split.by)
    print(f"prepare: {data.rows.num_rows} images, {data.rejected.num_rows} rejected by their labels", flush=True)
    job.connect()
    uri = prepare.prepare(config, data)
    summary = storage.read_json(storage.join(uri, "prepared.json"))
    kept = {s: sum(sum(by[s].values()) for by in summary["counts"]["after"].values() if s in by)
            for s in ("train", "val", "test")}
    print(f"prepare: {kept} images by {summary['split']}, rejected {summary['rejected']}, leaks {summary['leaks']}",
          flush=True)
    page = storage.join(uri, "prepare.html")
    if not storage.exists(page):
        overview.write(uri, config.name)
    print(f"prepare: report {page}", flush=True)
    for remark in summary["remarks"]:
        print(f"prepare: {remark}", flush=True)
    return uri


def run_audit(config: Config) -> str:
    """Audit the prepared set again; URI of its page."""
    uri = job.prepared_uri(config)
    index = prepare.read_index(uri)
    summary = storage.read_json(storage.join(uri, "prepared.json"))
    summary |= prepare.audit(uri, index)
    storage.write_json(storage.join(uri, "prepared.json"), summary)
    leaks = prepare.read_table(uri, "leaks")
    print(leaks.to_string(index=False) if len(leaks) else "no leak across splits", flush=True)
    print(f"leaks {summary['leaks']}, near-duplicates in the whole set {summary['near_duplicates']}, same picture with "
          f"different expressions {summary['conflicts']}", flush=True)
    return overview.write(uri, config.name)


def run_train(config: Config) -> str:
    """Prepared set to the run folder with its checkpoints; its URI."""
    t = config.train
    prepare.read_index(job.prepared_uri(config))
    training.start_state(t)
    job.connect()
    scaled = f" (scaled to {training.peak_lr(t):g} for batches of {t.batch_size})" if t.lr_per_256 else ""
    print(f"train: {t.backbone} from {t.weights} weights, at most {t.epochs} epochs, lr {t.lr:g}{scaled}, "
          f"momentum {t.momentum:g}", flush=True)
    return training.train(config, job.prepared_uri(config))


def run_evaluate(config: Config) -> str:
    """Best checkpoint to result.json; its URI."""
    prepare.read_index(job.prepared_uri(config))
    job.connect()
    prepared = job.prepared_uri(config)
    result = evaluation.evaluate(config, prepared)
    run = storage.absolute(storage.join(config.storage, "runs", config.name))
    montage = overview.montage(prepared, config.train.seed)
    augmented = [augment.train_transform(montage[0]["crop"], config.train.seed, epoch, 0) for epoch in range(8)]
    target = report.write(run, result, montage, augmented)
    print(f"{metrics.per_class_table(result['metrics'])}\nreport: {run}/report.html", flush=True)
    return target


def run_pipeline(config: Config) -> str:
    """All three; URI of result.json."""
    training.start_state(config.train)
    run_prepare(config)
    run_train(config)
    return run_evaluate(config)


def run_compare(config: Config) -> str:
    """Each backbone of `compare` trained and scored alike; URI of the table."""
    runs = [dataclasses.replace(config, name=f"{config.name}-{b.replace(':', '-')}",
                                prepared=config.prepared or config.name,
                                train=dataclasses.replace(config.train, backbone=b)) for b in config.compare.backbones]
    for run in runs:
        training.start_state(run.train)
    run_prepare(config)
    for run in runs:
        run_train(run)
        run_evaluate(run)
    names = [run.name for run in runs]
    folder = storage.absolute(storage.join(config.storage, "compare", config.name))
    print(comparison.write(folder, config.storage, names), flush=True)
    return storage.join(folder, "compare.json")
