"""Which runs a protocol plans, and what their summary says."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
from reports import result_for

from fer_ray import config, storage
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import protocols, results
from fer_ray.report import pages


def test_plans_share_a_prepared_set_and_differ_in_one_thing():
    base = config.Config(name="x")

    def plan(kind, repeats=4):
        return protocols.plan(dataclasses.replace(base, protocol=config.ProtocolConfig(kind, repeats)))

    folds = plan("folds").values()
    assert [r.split.fold for r in folds] == [0, 1, 2, 3] and {r.split.folds for r in folds} == {4}
    assert [r.train.seed for r in plan("seeds").values()] == [0, 1, 2, 3]
    assert [r.split.by for r in plan("paper_vs_honest").values()] == ["image", "subject"]
    assert list(plan("holdout").values()) == [dataclasses.replace(base, prepared="x",
                                                                  protocol=config.ProtocolConfig("holdout", 4))]
    runs = [r for kind in ("folds", "seeds", "paper_vs_honest") for r in plan(kind).values()]
    assert {r.prepared for r in runs} == {"x"} and len({r.name for r in runs}) == len(runs)
    with pytest.raises(config.ConfigError, match="official"):
        protocols.plan(dataclasses.replace(base, split=config.SplitConfig(by="official")))


def test_a_machine_holds_as_many_runs_as_it_has_cores_or_gpus():
    assert protocols.num_parallel_runs({"CPU": 8, "GPU": 2}, config.TrainConfig(num_workers=2)) == 4
    assert protocols.num_parallel_runs({"CPU": 8, "GPU": 2}, config.TrainConfig(num_workers=2, device="cuda")) == 1
    assert protocols.num_parallel_runs({"CPU": 1}, config.TrainConfig(num_workers=2)) == 1


def people(number, images=4):
    """An index of so many people, each with a picture of the first `images` classes; nobody looks like another."""
    rows = [{"image": f"{p}/{e}.png", "subject": f"P{p:03}", "sequence": None, "expression": e, "official": None,
             "dataset": "faces"}
            for p in range(number) for e in EXPRESSIONS[:images]]
    return pd.DataFrame(rows).assign(cluster=range(len(rows)))


@pytest.mark.parametrize(("number", "honest"), [(9, 1), (40, 5), (120, 1)])
def test_the_honest_side_is_cut_into_folds_where_one_split_would_test_few_people(number, honest):
    """Folds test everybody; they cannot help where there are fewer than ten people in all."""
    base = config.Config(name="x", protocol=config.ProtocolConfig("paper_vs_honest"))
    runs = protocols.plan(base, people(number))
    assert len(runs) == 1 + honest and next(iter(runs.values())).split.by == "image"
    by_subject = list(runs.values())[1:]
    assert {run.split.by for run in by_subject} == {"subject"} and len({run.name for run in runs.values()}) == len(runs)
    if honest > 1:
        assert [run.split.fold for run in by_subject] == list(range(honest))


def predictions(expressions, names, right, run="r"):
    """A table as of `protocols.pooled`: each image recognised if `right` says so, else taken for surprise."""
    predicted = [e if good else "surprise" for e, good in zip(expressions, right, strict=True)]
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(len(names))], "dataset": "d", "subject": names,
                          "expression": expressions, "run": run})
    return table.join(pd.DataFrame(np.eye(8)[[EXPRESSIONS.index(e) for e in predicted]],
                                   columns=results.PROBABILITIES))


def side(number, classes, right=1.0):
    """Predictions on so many people, each with every one of these classes, the first part of them right."""
    names = [f"P{p}" for p in range(number) for _ in classes]
    return predictions(list(classes) * number, names, np.arange(len(names)) < right * len(names))


def test_the_leak_is_worth_the_difference_over_the_classes_that_both_test():
    """By image all eight classes are tested, by subject four: the other four must not count for either side."""
    by_image = side(12, EXPRESSIONS[:7])
    by_subject = side(12, EXPRESSIONS[:4], right=0.5)
    found = protocols.compare_sides(by_image, by_subject)
    assert found["classes"] == list(EXPRESSIONS[:4]) and found["withheld"] is None
    assert found["points"] == pytest.approx(50) and {s["chance"] for s in found["sides"]} == {0.25}
    assert [(s["images"], s["people"], s["all_classes"]) for s in found["sides"]] == [(48, 12, 7), (48, 12, 4)]


@pytest.mark.parametrize(("by_subject", "words"), [
    (side(1, EXPRESSIONS[:4]), "tests one person"), (side(9, EXPRESSIONS[:4]), "fewer than 10"),
    (side(20, EXPRESSIONS[:1]), r"1 class\(es\) in common"), (side(20, EXPRESSIONS[7:]), r"0 class\(es\) in common")])
def test_a_comparison_that_cannot_carry_it_gives_no_number(by_subject, words):
    found = protocols.compare_sides(side(12, EXPRESSIONS[:7]), by_subject)
    assert found["points"] is None
    assert re.search(words, found["withheld"])


def study(tmp_path, people_by_subject, leaks=None):
    """A finished study of the paper's split beside an honest one: its summary, from what the runs left on disk."""
    base = config.Config(name="x", storage=str(tmp_path), protocol=config.ProtocolConfig("paper_vs_honest"))
    runs = protocols.plan(base, people(40))
    reports = {}
    for number, (label, run) in enumerate(runs.items()):
        table = side(12, EXPRESSIONS[:7]) if number == 0 else side(people_by_subject, EXPRESSIONS[:4], right=0.5)
        table["subject"] += f" of {label}"  # each fold tests others
        folder = str(tmp_path / "runs" / run.name)
        table = table.assign(chroma=0.0, face_found=True, several=False)
        results.write_predictions(folder, "predictions.csv", table, protocols.probabilities_of(table))
        reports[label] = result_for(protocols.scores_of(table), run.split.by, leaks if number else {"subject": 12})
        reports[label]["counts"]["after"] = {"d": {"train": {"fear": 80 if number == 0 else 60}}}
        storage.write_json(f"{folder}/report.json", reports[label])
    return protocols.summarise(base, runs, reports)


def test_a_study_of_both_splits_pools_its_folds_and_says_what_the_leak_is_worth(tmp_path):
    summary = study(tmp_path, people_by_subject=2)
    by_image, by_subject = summary["comparison"]["sides"]
    assert (by_image["runs"], by_subject["runs"]) == (1, 5) and (by_image["people"], by_subject["people"]) == (12, 10)
    assert (by_image["train_images"], by_subject["train_images"]) == (80, 60)
    assert summary["comparison"]["points"] == pytest.approx(50)
    assert "+50.0 points" in protocols.table(summary) and "none: 2 people" in protocols.table(summary)
    page = pages.render_protocol(summary)
    assert "+50.0 points" in page and "train on fewer images" in page


@pytest.mark.parametrize(("tested", "leaks", "words"), [(1, None, "tests 5 people"),
                                                        (2, {"near_duplicate": 3}, "does not keep all people apart")])
def test_a_study_that_cannot_carry_it_says_why(tmp_path, tested, leaks, words):
    summary = study(tmp_path, tested, leaks)
    assert summary["comparison"]["points"] is None
    assert words in protocols.table(summary) and words in pages.render_protocol(summary)
