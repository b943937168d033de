"""The audit of a prepared set as a verb: who and what stands in more than one split, and which labels are doubtful."""

from __future__ import annotations

import dataclasses
import functools

import pandas as pd

from fer_ray import storage
from fer_ray.cli import studies, wording
from fer_ray.config import Config
from fer_ray.data import duplicates, prepare, prepared_set
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import labels, protocols
from fer_ray.report import pages, prepared_page
from fer_ray.train import batches, job


def run_audit(config: Config) -> str:
    """Audit the split of a prepared set or, with `labels`, its labels; URI of the result."""
    return run_label_audit(config) if config.labels else run_split_audit(config)


def run_split_audit(config: Config) -> str:
    """Audit the split of a prepared set again; URI of its page."""
    uri = prepared_set.uri_of(config)
    summary = prepare.audit_again(uri)
    if any(summary["leaks"].values()):
        print(prepared_set.read_table(uri, "leaks").to_string(index=False), flush=True)
    wording.say("audit", [
        wording.leaks(summary["leaks"]),
        f"{wording.count(summary['near_duplicates'], 'near-duplicate')} in the whole set",
        f"{wording.count(summary['conflicts'], 'picture')} with different expressions in different places"])
    return prepared_page.write(uri, config.name)


def run_label_audit(config: Config) -> str:
    """Train on folds, predict each image by the network that did not see it, and rank the labels by doubt.

    Returns: URI of labels.json, beside labels.csv (all images), suspects.csv and labels.html.
    """
    folds = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, kind="folds"))
    studies.run_crossval(folds)
    runs = protocols.plan(folds)
    prepared = prepared_set.uri_of(config)
    predictions = protocols.pooled([job.run_uri(run) for run in runs.values()])
    network = labels.check_network(batches.labels_of(predictions), protocols.probabilities_of(predictions).argmax(1))
    wording.say("audit", ["the network that judges the labels: balanced accuracy "
                          f"{network['balanced_accuracy']:.3f} on images it has not seen "
                          f"(chance {network['chance']:.3f})"])
    ranked = _rank(predictions, prepared)
    suspects = ranked[ranked["reason"] != ""]
    summary = {"name": config.name, "network": network, "datasets": sorted(set(predictions["dataset"])),
               "retrained": None, "images": len(ranked), "suspects": len(suspects),
               "folds": len(runs), "contradicted": int((suspects["twins"] != "").sum()),
               "by_class": {e: int((suspects["expression"] == e).sum()) for e in EXPRESSIONS}, **studies.origin()}
    if config.retrain:
        summary["retrained"] = _retrain_without(folds, prepared, set(suspects["image"]), predictions)
    return _write(config, prepared, ranked, suspects, summary)


def _rank(predictions: pd.DataFrame, prepared: str) -> pd.DataFrame:
    """`labels.rank` of all images, with what is known of each; a row an image, the most doubtful first."""
    index = prepared_set.read_index(prepared).set_index("image").loc[predictions["image"]].reset_index()
    ranked = labels.rank(predictions["expression"].tolist(), protocols.probabilities_of(predictions), index,
                         functools.partial(prepared_set.read_crops, prepared, make=duplicates.thumbnail))
    known = predictions[["image", "dataset", "subject", "expression"]].iloc[ranked["position"]]
    return known.reset_index(drop=True).join(ranked.drop(columns="position"))


def _retrain_without(config: Config, prepared: str, suspects: set[str], before: pd.DataFrame) -> dict:
    """Balanced accuracy over the folds, as trained before (`original`) and without the suspects (`without`).

    Either on all images (`all`) and on those that are no suspects (`clean`).
    """
    views = {}
    for label, run in protocols.plan(config).items():
        clean = dataclasses.replace(run, name=f"{run.name}-without")
        views[label] = clean, prepare.resplit(prepared, run.split, suspects)
    studies.train_and_score(config, views, {})
    after = protocols.pooled([job.run_uri(run) for run, _ in views.values()])
    return {key: {"all": protocols.scores_of(table)["balanced_accuracy"],
                  "clean": protocols.scores_of(table[~table["image"].isin(suspects)])["balanced_accuracy"]}
            for key, table in (("original", before), ("without", after))}


def _write(config: Config, prepared: str, ranked: pd.DataFrame, suspects: pd.DataFrame, summary: dict) -> str:
    """Write the tables, the page and, last, the numbers of an audit, and print where they are; URI of the numbers."""
    folder = storage.join(config.storage, "labels", config.prepared or config.name)
    for name, table in (("labels", ranked), ("suspects", suspects)):
        storage.write_bytes(storage.join(folder, f"{name}.csv"), table.to_csv(index=False).encode())
    page = pages.render_labels(summary, prepared_page.contact_sheets(prepared, suspects))
    storage.write_bytes(storage.join(folder, "labels.html"), page.encode())
    target = storage.join(folder, "labels.json")
    storage.write_json(target, summary)
    lines = [f"{len(suspects):,} of {wording.count(len(ranked), 'label')} are doubtful: {folder}/suspects.csv",
             f"report {folder}/labels.html"]
    if scores := summary["retrained"]:
        lines.insert(0, f"balanced accuracy {scores['original']['all']:.3f} with the suspects in training, "
                        f"{scores['without']['all']:.3f} without")
    wording.say("audit", lines)
    return target
