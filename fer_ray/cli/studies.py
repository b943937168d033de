"""Studies of several runs as verbs: search, folds and seeds, across data sets, backbones beside each other."""

from __future__ import annotations

import dataclasses
import datetime
import re
import shlex
import sys

from fer_ray import storage
from fer_ray.cli import connection, stages, wording
from fer_ray.config import Config, ConfigError
from fer_ray.data import prepare, prepared_set
from fer_ray.evaluate import comparison, protocols, results
from fer_ray.model import metrics
from fer_ray.report import figures, pages, score_figures, search_figures
from fer_ray.train import job
from fer_ray.tune import outcome, search, space, trial


def run_crossval(config: Config) -> str:
    """Train the runs of `protocol` side by side, score each, and report on all in one page; URI of crossval.json."""
    protocols.plan(config)  # a protocol that cannot be planned ends the job before the data is prepared
    prepared = stages.run_prepare(config, [config.train])
    runs = protocols.plan(config, prepared_set.read_index(prepared))
    if config.protocol.kind == "paper_vs_honest" and len(runs) > 2:
        wording.say("crossval", [f"one split by subject would test fewer than {metrics.MIN_PEOPLE} people, so "
                                 f"{len(runs) - 1} folds test everybody"])
    also = stages.prepare_also(config)
    views = {label: (run, prepare.resplit(prepared, run.split)) for label, run in runs.items()}
    summary = protocols.summarise(config, runs, train_and_score(config, views, also))
    folder = storage.join(config.storage, "crossval", config.name)
    storage.write_bytes(storage.join(folder, "crossval.html"), pages.render_protocol(summary).encode())
    target = storage.join(folder, "crossval.json")
    storage.write_json(target, summary)
    print(protocols.table(summary), flush=True)
    wording.say("crossval", [f"report {folder}/crossval.html"])
    return target


def train_and_score(config: Config, views: dict[str, tuple[Config, str]], also: dict[str, str]) -> dict[str, dict]:
    """Train several runs side by side and report on each; the content of each run's report.json, by label.

    Args:
        config: says how many run side by side.
        views: label of each run -> its configuration and the URI of its prepared set.
        also: name -> URI of further prepared sets to score each run on.
    """
    protocols.train_all(views, config.protocol.parallel)
    reports = {}
    for label, (run, prepared) in views.items():
        stages.score(run, prepared, also)
        reports[label] = results.read_report(job.run_uri(run))
    return reports


def run_crossdata(config: Config) -> str:
    """Train a network on each source of `data.sources` and test it on all others; URI of crossdata.json."""
    sources = [dataclasses.replace(source, name=source.name or source.kind) for source in config.data.sources]
    if len({source.name for source in sources}) < max(2, len(sources)):
        raise ConfigError("data.sources: two or more data sets are needed, each with a name or kind of its own: "
                          "--data.sources '[{kind: ckplus, root: CK+}, {kind: jaffe, root: jaffe}]'")
    runs = {source.name: dataclasses.replace(config, name=f"{config.name}-{source.name}", prepared="",
                                             data=dataclasses.replace(config.data, sources=[source]))
            for source in sources}
    prepared = {name: stages.run_prepare(run, [run.train]) for name, run in runs.items()}
    reports = {}
    for name, run in runs.items():
        stages.run_train(run)
        stages.score(run, prepared[name], {other: uri for other, uri in prepared.items() if other != name})
        reports[name] = results.read_report(job.run_uri(run))
    datasets = [dataset for report in reports.values() for dataset in report["counts"]["read"]]
    summary = {"name": config.name, "datasets": datasets, **comparison.matrix(reports), **origin()}
    folder = storage.join(config.storage, "crossdata", config.name)
    storage.write_bytes(storage.join(folder, "crossdata.html"), pages.render_matrix(summary).encode())
    target = storage.join(folder, "crossdata.json")
    storage.write_json(target, summary)
    return target


def run_tune(config: Config) -> str:
    """Search, score the best trial on the test split, and report in one page; URI of tune.json.

    Prepares the data first if `data.root` names any; otherwise the prepared set must be there.
    """
    prepared = prepared_set.uri_of(config)
    if config.data.root:
        stages.run_prepare(config, space.trainings(config))
    prepared_set.read_index(prepared)
    connection.connect(config.storage)
    trials = search.search(config, prepared)
    best = outcome.choose(config, trials)
    result = storage.read_json(stages.score(trial.trial_config(config, best["number"], best["point"]), prepared, {}))
    summary = outcome.summarise(config, trials, best) | origin() | {
        "test": {key: result[key] for key in pages.HEADLINE}, "test_report": result["report"],
        "datasets": list(result["counts"]["read"])}
    folder = space.search_uri(config)
    storage.write_bytes(storage.join(folder, "tune.html"), pages.render_tune(summary).encode())
    storage.write_bytes(storage.join(folder, "tune.png"), figures.png(search_figures.search_figure(summary)))
    target = storage.join(folder, "tune.json")
    storage.write_json(target, summary)
    wording.say("tune", [
        f"best trial {best['number']:03d}: val balanced accuracy {best['score']:.3f} "
        f"(chance {best['history'][best['best_epoch']]['val_chance']:.3f}), {wording.settings(best['settings'])}",
        f"{wording.count(len(trials), 'trial')}, {summary['epochs_spent']} epochs "
        f"(a grid takes {summary['grid_epochs']})",
        f"train with these settings: python jobs/train.py --train.from_tune {config.name} ...",
        f"report {folder}/tune.html"])
    return target


def run_compare(config: Config) -> str:
    """Train and score each backbone of `compare` alike, on the same split; URI of compare.json."""
    runs = [dataclasses.replace(config, name=f"{config.name}-{re.sub('[:@]', '-', backbone)}",
                                prepared=config.prepared or config.name,
                                train=dataclasses.replace(config.train, backbone=backbone))
            for backbone in config.compare.backbones]
    stages.run_prepare(config, [run.train for run in runs])
    for run in runs:
        stages.run_train(run)
        stages.run_evaluate(run)
    folder = storage.join(config.storage, "compare", config.name)
    rows, curves = comparison.table(config.storage, [run.name for run in runs])
    storage.write_bytes(storage.join(folder, "compare.png"), figures.png(score_figures.comparison_figure(curves)))
    target = storage.join(folder, "compare.json")
    storage.write_json(target, {"runs": rows})
    print(comparison.as_text(rows), flush=True)
    return target


def origin() -> dict[str, str]:
    """When a result was made (UTC, ISO 8601) and by which command."""
    return {"created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.argv])}
