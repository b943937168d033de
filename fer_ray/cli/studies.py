"""Studies of several runs: search, folds and seeds, label audit, across data sets, backbones beside each other."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import sys

from fer_ray import storage
from fer_ray.cli import connection, stages
from fer_ray.config import Config, ConfigError
from fer_ray.data import prepare, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import comparison, labels, protocols, results
from fer_ray.report import figures, pages, prepared_page, score_figures, search_figures
from fer_ray.train import batches, job
from fer_ray.tune import outcome, search, space, trial


def run_crossval(config: Config) -> str:
    """The runs of `protocol`, trained side by side, scored and told on one page; URI of crossval.json."""
    protocols.plan(config)  # what cannot be planned is said before the data is prepared
    shared = stages.run_prepare(config, [config.train])
    runs = protocols.plan(config, prepared_set.read_index(shared))
    also = stages.prepare_also(config)
    views = {label: (run, prepare.resplit(shared, run.split)) for label, run in runs.items()}
    summary = protocols.summarise(config, runs, train_and_score(config, views, also))
    folder = storage.join(config.storage, "crossval", config.name)
    storage.write_bytes(storage.join(folder, "crossval.html"), pages.render_protocol(summary).encode())
    target = storage.join(folder, "crossval.json")
    storage.write_json(target, summary)
    print(f"{protocols.table(summary)}\nreport: {folder}/crossval.html", flush=True)
    return target


def train_and_score(config: Config, views: dict[str, tuple[Config, str]], also: dict[str, str]) -> dict[str, dict]:
    """Train the runs (label -> configuration and prepared set) side by side and report on each; their reports."""
    protocols.train_all(views, config.protocol.parallel)
    reports = {}
    for label, (run, view) in views.items():
        stages.score(run, view, also)
        reports[label] = results.read_report(job.run_uri(run))
    return reports


def run_audit(config: Config) -> str:
    """Audit the split and, if wished, the labels of a prepared set; URI of what was found."""
    return run_label_audit(config) if config.labels else stages.run_split_audit(config)


def run_label_audit(config: Config) -> str:
    """Folds, out-of-fold predictions, doubtful labels; URI of labels.json, beside suspects.csv and labels.html."""
    folds = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, kind="folds"))
    runs = protocols.plan(folds)
    run_crossval(folds)
    prepared = prepared_set.uri_of(config)
    index = prepared_set.read_index(prepared).set_index("image")
    predictions = protocols.pooled([job.run_uri(run) for run in runs.values()])
    network = labels.check_network(batches.labels_of(predictions), protocols.probabilities_of(predictions).argmax(1))
    print(f"the network that judges the labels: balanced accuracy {network['balanced_accuracy']:.3f} on images it has "
          f"not seen (chance {network['chance']:.3f})", flush=True)
    ranked = labels.rank(predictions["expression"].tolist(), protocols.probabilities_of(predictions),
                         index.loc[predictions["image"]])
    ranked = predictions[["image", "dataset", "subject", "expression"]].iloc[ranked["position"]].reset_index(
        drop=True).join(ranked.drop(columns="position"))
    suspects = ranked[ranked["reason"] != ""]
    folder = storage.join(config.storage, "labels", config.prepared or config.name)
    storage.write_bytes(storage.join(folder, "labels.csv"), ranked.to_csv(index=False).encode())
    storage.write_bytes(storage.join(folder, "suspects.csv"), suspects.to_csv(index=False).encode())
    summary = {"name": config.name, "network": network, "datasets": sorted(set(predictions["dataset"])),
               "retrained": None, "images": len(ranked), "suspects": len(suspects),
               "folds": len(runs), "contradicted": int((suspects["twins"] != "").sum()),
               "by_class": {e: int((suspects["expression"] == e).sum()) for e in EXPRESSIONS}, **said()}
    if config.retrain:
        summary["retrained"] = retrain_without(folds, prepared, set(suspects["image"]), predictions)
        print("balanced accuracy {original[all]:.3f} with the suspects in training, {without[all]:.3f} without".format(
            **summary["retrained"]), flush=True)
    sheets = prepared_page.contact_sheets(prepared, suspects)
    storage.write_bytes(storage.join(folder, "labels.html"),
                        pages.render_labels(summary, sheets).encode())
    target = storage.join(folder, "labels.json")
    storage.write_json(target, summary)
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
    after = protocols.pooled([job.run_uri(run) for run, _ in views.values()])
    return {key: {"all": protocols.scores_of(table, 0)["balanced_accuracy"],
                  "clean": protocols.scores_of(table[~table["image"].isin(suspects)], 0)["balanced_accuracy"]}
            for key, table in (("original", before), ("without", after))}


def run_crossdata(config: Config) -> str:
    """A network for each source, tested on all others; URI of the matrix."""
    sources = {s.name or s.kind: dataclasses.replace(s, name=s.name or s.kind) for s in config.data.sources}
    if len(sources) < max(2, len(config.data.sources)):
        raise ConfigError("data.sources: two or more data sets are needed, each with a name or kind of its own: "
                          "--data.sources '[{kind: ckplus, root: CK+}, {kind: jaffe, root: jaffe}]'")
    runs = {name: dataclasses.replace(config, name=f"{config.name}-{name}", prepared="",
                                      data=dataclasses.replace(config.data, sources=[source]))
            for name, source in sources.items()}
    prepared = {name: stages.run_prepare(run, [run.train]) for name, run in runs.items()}
    reports = {}
    for name, run in runs.items():
        stages.run_train(run)
        stages.score(run, prepared[name], {other: uri for other, uri in prepared.items() if other != name})
        reports[name] = results.read_report(job.run_uri(run))
    datasets = [dataset for report in reports.values() for dataset in report["counts"]["read"]]
    summary = {"name": config.name, "datasets": datasets, **comparison.matrix(reports), **said()}
    folder = storage.join(config.storage, "crossdata", config.name)
    storage.write_bytes(storage.join(folder, "crossdata.html"), pages.render_matrix(summary).encode())
    target = storage.join(folder, "crossdata.json")
    storage.write_json(target, summary)
    return target


def said() -> dict:
    """When and by which command."""
    return {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv])}


def run_tune(config: Config) -> str:
    """Search, score the chosen trial on the test split, tell it on one page; URI of tune.json.

    Without `data.root` the prepared set must be there.
    """
    prepared = prepared_set.uri_of(config)
    if config.data.root:
        stages.run_prepare(config, space.trainings(config))
    prepared_set.read_index(prepared)
    connection.connect()
    found = search.search(config, prepared)
    best = outcome.choose(config, found)
    chosen = trial.trial_config(config, best["number"], best["point"])
    result = storage.read_json(stages.score(chosen, prepared, {}))
    folder = space.search_uri(config)
    summary = outcome.summarise(config, found, best) | said() | {
        "test": {key: result[key] for key in pages.HEADLINE}, "test_report": result["report"],
        "datasets": list(result["counts"]["read"])}
    storage.write_bytes(storage.join(folder, "tune.html"), pages.render_tune(summary).encode())
    storage.write_bytes(storage.join(folder, "tune.png"), figures.png(search_figures.search_figure(summary)))
    target = storage.join(folder, "tune.json")
    storage.write_json(target, summary)
    values = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in best["settings"].items())
    print(f"best: trial {best['number']:03d}, val balanced accuracy {best['score']:.3f} "
          f"(chance {best['history'][best['best_epoch']]['val_chance']:.3f}), {values}\n"
          f"{len(found)} trials, {summary['epochs_spent']} epochs (a grid takes {summary['grid_epochs']})\n"
          f"train with it: python jobs/train.py --train.from_tune {config.name} ...\n"
          f"report: {folder}/tune.html", flush=True)
    return target


def run_compare(config: Config) -> str:
    """Each backbone of `compare` trained and scored alike; URI of the table."""
    runs = [dataclasses.replace(config, name=f"{config.name}-{b.replace(':', '-')}",
                                prepared=config.prepared or config.name,
                                train=dataclasses.replace(config.train, backbone=b)) for b in config.compare.backbones]
    stages.run_prepare(config, [run.train for run in runs])
    for run in runs:
        stages.run_train(run)
        stages.run_evaluate(run)
    names = [run.name for run in runs]
    folder = storage.join(config.storage, "compare", config.name)
    rows, curves = comparison.table(config.storage, names)
    storage.write_bytes(storage.join(folder, "compare.png"), figures.png(score_figures.comparison_figure(curves)))
    target = storage.join(folder, "compare.json")
    storage.write_json(target, {"runs": rows})
    print(comparison.as_text(rows), flush=True)
    return target
