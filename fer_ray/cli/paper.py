"""The paper as one verb: its data, comparison, search and scores, then what they are worth on people never seen."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from fer_ray import storage
from fer_ray.cli import audit, stages, studies, wording
from fer_ray.config import Config
from fer_ray.data import prepare, prepared_set, sample
from fer_ray.data_config import SourceConfig
from fer_ray.evaluate import comparison, labels, paper, protocols, results
from fer_ray.report import pages, paper_page, prepared_page
from fer_ray.train import job, resources
from fer_ray.tune import outcome, search

DRAWN, PEOPLE = "sample_data_paper", 12  # where and how many are drawn for a small study without data
PROBED = {"cpu": 16, "cuda": 64}  # images of the batch by which a network's speed is measured


def run_paper(config: Config) -> str:
    """Reproduce the paper on its own split, train the same on folds of people, and then better; URI of paper.json.

    Each part is a study or run of its own, under the name of this one with an ending, and is not made again.
    """
    asked = config
    config = paper.sized(_with_data(config))
    base, ours = paper.as_in_the_paper(config), paper.with_our_recipe(config)
    comparing, by_image = paper.compared(base), paper.by_image(base)
    prepared = stages.run_prepare(base, [base.train, *(run.train for run in comparing.values())])
    _say_cost(asked, len(prepared_set.read_index(prepared)))
    view = prepare.resplit(prepared, by_image.split)

    compared = _compare(base, comparing, view)
    searched = _search(by_image, view)
    also = stages.prepare_also(base)
    report = studies.train_and_score(base, {paper.PAPERS_SPLIT: (by_image, view)}, also)[paper.PAPERS_SPLIT]
    audited, refused = _audit(base)
    studies.run_crossval(ours)

    summary = {"name": config.name, "paper": paper.RESULTS, "scale": config.paper.scale, **studies.origin(),
               "preselection": {key: prepared_set.read_summary(prepared)["counts"][key] for key in ("read", "before")},
               "compared": compared, "search": searched, "by_image": report,
               "folds": _crossval(base), "audit": audited, "audit_refused": refused, "ours": _crossval(ours),
               "recipe": {"paper": _differing(base, ours), "ours": _differing(ours, base)},
               **_columns(base, by_image, ours, audited)}
    montage = prepared_page.montage(prepared, base.train.seed)
    pictures = paper_page.draw(summary, montage, stages.augmented(montage[0]["crop"], base.train), view,
                               also.get(paper.NEW_FACE, ""))
    folder = storage.join(config.storage, "paper", config.name)
    storage.write_bytes(storage.join(folder, "paper.html"), pages.render_paper(summary, pictures).encode())
    target = storage.join(folder, "paper.json")
    storage.write_json(target, summary)
    wording.say("paper", [*_lines(summary), f"report {folder}/paper.html"])
    return target


def _with_data(config: Config) -> Config:
    """With the new face as one of `evaluate.also`; a small study without data draws its own."""
    data, new_face = config.data, config.paper.new_face
    if config.paper.scale == "small" and not data.root:
        data = replace(data, kind="sample", root=storage.absolute(f"{DRAWN}/people"),
                       sample=replace(data.sample, subjects=PEOPLE))
        if not new_face:
            new_face = storage.absolute(f"{DRAWN}/new_face")
            sample.write_new_face(Path(new_face), data.sample.seed)
    if new_face:
        source = SourceConfig("folder", new_face, paper.NEW_FACE)
        config = replace(config, evaluate=replace(config.evaluate, also=[*config.evaluate.also, source]))
    return replace(config, data=data)


def _say_cost(config: Config, images: int) -> None:
    """Tell how long a full study of so many images takes here, by the speed of each of its networks."""
    config = paper.sized(replace(config, paper=replace(config.paper, scale="full")))
    work = paper.work(config, images)
    speed = _seconds_per_image({name for of_part in work.values() for name in of_part},
                               resources.settle(config.train).device)
    hours = {part: sum(speed[name] * number for name, number in of_part.items()) / 3600
             for part, of_part in work.items()}
    parts = ", ".join(f"{part} {value:.1f}" for part, value in hours.items())
    wording.say("paper", [f"--paper.scale full of these {wording.count(images, 'image')} takes about "
                          f"{sum(hours.values()):.1f} hours on this cluster, at most ({parts})"])


def _seconds_per_image(networks: set[str], device: str) -> dict[str, float]:
    """Seconds that the cluster takes for an image of a training, forward and backward, by network."""
    import ray

    cluster = ray.cluster_resources()
    side_by_side = cluster.get("GPU", 1) if device == "cuda" else 1
    # The process ends with the task, else it would keep its memory of the GPU.
    task = ray.remote(num_gpus=1 if device == "cuda" else 0, max_calls=1)(_measure)
    found = {name: task.remote(name, device) for name in sorted(networks)}
    return {name: ray.get(seconds) / side_by_side for name, seconds in found.items()}


def _measure(backbone: str, device: str) -> float:
    import os

    import torch

    from fer_ray.model import augment, backbones

    torch.set_num_threads(os.cpu_count() or 1)
    model = backbones.build(backbone).to(device).train()
    images = torch.zeros(PROBED[device], 3, augment.CROP, augment.CROP, device=device)
    start = 0.0
    for batch in (images if device == "cuda" else images[:1], images):  # the first one warms up
        start = time.perf_counter()
        model(batch).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(images)


def _compare(config: Config, runs: dict[str, Config], view: str) -> dict:
    """Train and score the networks beside each other; the rows of `comparison.table` and the epochs of each."""
    alone = replace(config, protocol=replace(config.protocol, parallel=1))  # their times are compared
    studies.train_and_score(alone, {name: (run, view) for name, run in runs.items()}, {})
    rows, curves = comparison.table(config.storage, [run.name for run in runs.values()])
    return {"runs": rows, "curves": curves}


def _search(config: Config, view: str) -> dict:
    """`outcome.summarise` of the search over learning rate and momentum, on the validation images of the view."""
    trials = search.search(config, view)
    return outcome.summarise(config, trials, outcome.choose(config, trials))


def _audit(config: Config) -> tuple[dict | None, str]:
    """Train folds by subject, audit the labels by them, and train again without the suspects.

    Returns: labels.json, or None and why no label is doubted; the folds are there in either case.
    """
    try:
        return storage.read_json(audit.run_label_audit(replace(config, labels=True, retrain=True))), ""
    except labels.UntrustworthyError as error:
        wording.say("paper", [f"no clean-up: {error}"])
        return None, str(error)


def _crossval(config: Config) -> dict:
    return storage.read_json(storage.join(config.storage, "crossval", config.name, "crossval.json"))


def _columns(base: Config, by_image: Config, ours: Config, audited: dict | None) -> dict:
    """`paper.beside_each_other` (`together`), and what each column's networks reach on the new face (`on_new_face`)."""
    run, folds, our_folds = job.run_uri(by_image), *([job.run_uri(fold) for fold in protocols.plan(one).values()]
                                                     for one in (base, ours))
    on_new_face = {paper.PAPERS_SPLIT: _mean_on_new_face([run]), "honest folds": _mean_on_new_face(folds),
                   "our recipe": _mean_on_new_face(our_folds)}
    new_face = None
    if on_new_face[paper.PAPERS_SPLIT] is not None:  # folders of expressions do not say that all show one person
        new_face = results.read_predictions(run, paper.NEW_FACE).assign(subject=paper.NEW_FACE)
    sides = {paper.PAPERS_SPLIT: protocols.pooled([run]),
             "honest folds": protocols.pooled(folds),
             paper.NEW_FACE: new_face,
             "after clean-up": protocols.pooled([f"{fold}-without" for fold in folds]) if audited else None,
             "our recipe": protocols.pooled(our_folds)}
    return {"together": paper.beside_each_other(sides), "on_new_face": on_new_face}


def _mean_on_new_face(runs: list[str]) -> float | None:
    """Mean balanced accuracy of these runs on the new face; None where there is none."""
    scores = [other["metrics"]["balanced_accuracy"] for run in runs for other in results.read_report(run)["also"]
              if other["name"] == paper.NEW_FACE and other["metrics"]]
    return float(np.mean(scores)) if scores else None


def _differing(config: Config, other: Config) -> dict:
    """The options of training and of faces in which a configuration differs from another."""
    return {f"{section}.{name}": value for section in ("train", "faces")
            for name, value in vars(getattr(config, section)).items()
            if value != getattr(getattr(other, section), name)}


def _lines(summary: dict) -> list[str]:
    """The last table for a terminal."""
    together = summary["together"]
    lines = [f"balanced accuracy over the {len(together['classes'])} classes and "
             f"{wording.count(together['people'], 'person', 'people')} that all columns test:"]
    for name, column in together["columns"].items():
        scores = column and column["common"]
        lines.append(f"  {name}: " + (f"{scores['balanced_accuracy']:.3f} ({scores['test_images']} images, chance "
                                      f"{scores['chance']:.3f})" if scores else "not made"))
    return lines
