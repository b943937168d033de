"""The stages as every job calls them: all that can be wrong is found before Ray starts."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import sys

import job

from fer_ray import (
    augment,
    comparison,
    evaluation,
    labels,
    metrics,
    overview,
    prepare,
    protocols,
    report,
    storage,
    training,
)
from fer_ray.config import Config
from fer_ray.datasets import read_manifest
from fer_ray.manifest import EXPRESSIONS


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
    """Audit the prepared set again and, if wished, its labels; URI of the page."""
    if config.labels:
        return audit_labels(config)
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
    also = prepare_also(config)
    job.connect()
    return score(config, job.prepared_uri(config), also)


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
    run = training.run_uri(config)
    montage = overview.montage(prepared, config.train.seed)
    augmented = [augment.train_transform(montage[0]["crop"], config.train.seed, epoch, 0) for epoch in range(8)]
    target = report.write(run, result, {"montage": montage, "augmented": augmented, "explained": explained})
    print(f"{config.name}\n{metrics.per_class_table(result['metrics'])}\nreport: {run}/report.html", flush=True)
    return target


def run_pipeline(config: Config) -> str:
    """All three; URI of result.json."""
    training.start_state(config.train)
    run_prepare(config)
    run_train(config)
    return run_evaluate(config)


def run_crossval(config: Config) -> str:
    """The runs of `protocol`, trained side by side, scored and told on one page; URI of crossval.json."""
    runs = protocols.plan(config)
    training.start_state(config.train)
    shared = run_prepare(config)
    also = prepare_also(config)
    views = {label: (run, prepare.resplit(shared, run.split)) for label, run in runs.items()}
    summary = protocols.summarise(config, train_and_score(config, views, also))
    folder = storage.absolute(storage.join(config.storage, "crossval", config.name))
    storage.write_bytes(storage.join(folder, "crossval.html"), report.render_protocol(summary).encode())
    target = storage.join(folder, "crossval.json")
    storage.write_json(target, summary)
    print(f"{protocols.table(summary)}\nreport: {folder}/crossval.html", flush=True)
    return target


def train_and_score(config: Config, views: dict[str, tuple[Config, str]], also: dict[str, str]) -> dict[str, dict]:
    """Train the runs (label -> configuration and prepared set) side by side and report on each; their reports."""
    protocols.train_all(views, config.protocol.parallel)
    reports = {}
    for label, (run, view) in views.items():
        score(run, view, also)
        reports[label] = storage.read_json(storage.join(training.run_uri(run), "report.json"))
    return reports


def audit_labels(config: Config) -> str:
    """Folds, out-of-fold predictions, doubtful labels; URI of labels.json, beside suspects.csv and labels.html."""
    folds = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, kind="folds"))
    runs = protocols.plan(folds)
    run_crossval(folds)
    prepared = job.prepared_uri(config)
    index = prepare.read_index(prepared).set_index("image")
    predictions = protocols.pooled([training.run_uri(run) for run in runs.values()])
    rows = index.loc[predictions["image"]]
    ranked = labels.rank(predictions["expression"].tolist(), protocols.probabilities_of(predictions),
                         rows["cluster"].to_numpy(), evaluation.column_of(rows, "sequence"))
    ranked = predictions[["image", "dataset", "subject", "expression"]].iloc[ranked["position"]].reset_index(
        drop=True).join(ranked.drop(columns="position"))
    suspects = ranked[ranked["reason"] != ""]
    folder = storage.absolute(storage.join(config.storage, "labels", config.prepared or config.name))
    storage.write_bytes(storage.join(folder, "labels.csv"), ranked.to_csv(index=False).encode())
    storage.write_bytes(storage.join(folder, "suspects.csv"), suspects.to_csv(index=False).encode())
    summary = {"name": config.name, "images": len(ranked), "suspects": len(suspects), "folds": len(runs),
               "contradicted": int((suspects["twins"] != "").sum()),
               "by_class": {e: int((suspects["expression"] == e).sum()) for e in EXPRESSIONS}, **said()}
    if config.retrain:
        summary["retrained"] = retrain_without(folds, prepared, set(suspects["image"]), predictions)
        print("balanced accuracy {original[all]:.3f} with the suspects in training, {without[all]:.3f} without".format(
            **summary["retrained"]), flush=True)
    sheets = overview.contact_sheets(prepared, suspects)
    storage.write_bytes(storage.join(folder, "labels.html"),
                        report.render_labels({"retrained": None} | summary, sheets).encode())
    target = storage.join(folder, "labels.json")
    storage.write_json(target, {"retrained": None} | summary)
    print(f"{len(suspects)} of {len(ranked)} labels are doubtful: {folder}/suspects.csv\nreport: {folder}/labels.html",
          flush=True)
    return target


def retrain_without(config: Config, prepared: str, suspects: set[str], before) -> dict:
    """Balanced accuracy over the folds, on all images and on those that are no suspects: as before, and trained
    without the suspects."""
    views = {}
    for label, run in protocols.plan(config).items():
        clean = dataclasses.replace(run, name=f"{run.name}-without")
        views[label] = clean, prepare.resplit(prepared, run.split, suspects)
    train_and_score(config, views, {})
    after = protocols.pooled([training.run_uri(run) for run, _ in views.values()])
    return {key: {"all": protocols.scores_of(table, 0)["balanced_accuracy"],
                  "clean": protocols.scores_of(table[~table["image"].isin(suspects)], 0)["balanced_accuracy"]}
            for key, table in (("original", before), ("without", after))}


def run_crossdata(config: Config) -> str:
    """A network for each source, tested on all others; URI of the matrix."""
    sources = {s.name or s.kind: dataclasses.replace(s, name=s.name or s.kind) for s in config.data.sources}
    reports = {}
    for name, source in sources.items():
        others = [s for other, s in sources.items() if other != name]
        one = dataclasses.replace(config, name=f"{config.name}-{name}", prepared="",
                                  data=dataclasses.replace(config.data, sources=[source]),
                                  evaluate=dataclasses.replace(config.evaluate, also=others))
        run_pipeline(one)
        reports[name] = storage.read_json(storage.join(training.run_uri(one), "report.json"))
    summary = {"name": config.name, **comparison.matrix(reports), **said()}
    folder = storage.absolute(storage.join(config.storage, "crossdata", config.name))
    storage.write_bytes(storage.join(folder, "crossdata.html"), report.render_matrix(summary).encode())
    target = storage.join(folder, "crossdata.json")
    storage.write_json(target, summary)
    return target


def said() -> dict:
    """When and by which command."""
    return {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv])}


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
