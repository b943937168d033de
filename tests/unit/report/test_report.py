"""Pages say what their scores can carry: chance, people, leaks, drawn faces."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from reports import NO_PICTURES, NO_SHORTCUTS, one_hot, page_of, result_for

from fer_ray.cli import wording
from fer_ray.data.manifest import DRAWN, EXPRESSIONS
from fer_ray.evaluate import comparison
from fer_ray.model import metrics
from fer_ray.report import pages, prepared_page

PEOPLE = [f"p{i}" for i in range(16)]


@pytest.mark.parametrize(("labels", "predicted"), [([3], [3]), ([3], [1]), ([0, 1, 2], [5, 5, 5])])
def test_report_of_tiny_and_one_sided_results(labels, predicted):
    page = page_of(result_for(metrics.evaluate(one_hot(predicted), np.array(labels), ["p"] * len(labels))))
    assert "no test images" in page and "class=\"leak\"" not in page
    assert "<b>x</b>" not in page and "http://" not in page and "https://" not in page


def test_report_warns_of_a_split_that_leaks():
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    assert "does not say how well" in page_of(result_for(scores, split="image"))
    assert "2 people are in more than one split" in page_of(result_for(scores, leaks={"subject": 2}))


def test_report_and_result_tell_whom_of_another_data_set_training_has_seen(tmp_path):
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    groups = {"colour": metrics.by_group(one_hot([0, 1]), np.array([0, 1]), ["p", "q"], ["grey", "coloured"])}
    other = {"name": "web", "prepared": "u", "drawn": False, "classes": ["anger"], "metrics": scores, "groups": groups,
             "left_out": {"of people whom training has seen": 4}, "people_seen": ["ann"], "codes_shared": ["s1"]}
    result = result_for(scores) | {"also": [other], "groups": {"dataset": [], **groups}}
    page = page_of(result)
    assert "4 images left out: of people whom training has seen" in page and "Seen in training: ann." in page
    assert "1 person has codes" in page and page.count("By colour of the picture") == 2
    written = json.loads(Path(pages.write(str(tmp_path), result, NO_PICTURES)).read_text())
    assert written["also"][0]["balanced_accuracy"] == 1 and written["also"][0]["people_seen"] == ["ann"]
    assert {row["value"] for row in written["groups"]["colour"]} == {"grey", "coloured"}
    lines = wording.scored_elsewhere(other)
    assert lines[0].startswith("on web: balanced accuracy 1.000 (chance 0.500)") and "seen in training: ann" in lines[2]


def test_report_warns_of_what_tells_the_class_without_the_face():
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    told = {"name": "colour", "balanced_accuracy": 0.9, "what": "coloured pictures", "share": True,
            "by_class": {"anger": 0.93, "fear": 0.0}}
    found = NO_SHORTCUTS | {"reason": None, "balanced_accuracy": 0.9, "chance": 0.5, "bar": 0.6, "features": [told],
                            "warning": "colour tells it"}
    page = page_of(result_for(scores) | {"shortcuts": found})
    assert page.count("</strong> colour tells it") == 2 and "93 %" in page and "above 0.600" in page
    assert "Warning" not in page_of(result_for(scores)) and "Not known: few people" in page_of(result_for(scores))


def test_a_checkpoint_from_within_the_first_epoch_gets_a_report_without_curves(tmp_path):
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    result = json.loads(Path(pages.write(str(tmp_path), result_for(scores), NO_PICTURES)).read_text())
    assert result["no_interval"].startswith("no 95 % interval: the images show 2 people") and result["chance"] == 0.5
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "report.html").is_file()


def test_report_holds_its_pictures():
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    epochs = [{"epoch": 0, "train_loss": 2.0, "val_loss": 2.0, "val_balanced_accuracy": 0.1}]
    montage = [{"crop": np.zeros((256, 256), np.uint8), "expression": "fear", "split": "test"}]
    shown = NO_PICTURES | {"montage": montage, "augmented": [np.zeros((224, 224, 3), np.uint8)]}
    assert page_of(result_for(scores) | {"history": epochs}, shown).count("data:image") == 5


@pytest.mark.parametrize(("labels", "predicted", "people", "words"), [
    ([0, 1], [0, 1], ["a", "b"], "No test image shows"), ([0, 1, 2], [5, 5, 5], "abc", "taken for neutral"),
    ([3], [3], ["a"], "one person"), ([3], [3], ["a"], "far too few")])
def test_report_says_what_keeps_a_score_from_being_quoted(labels, predicted, people, words):
    assert words in page_of(result_for(metrics.evaluate(one_hot(predicted), np.array(labels), list(people))))


def test_report_of_four_classes_shows_their_chance():
    scores = metrics.evaluate(one_hot([5] * 16), np.tile([0, 1, 2, 5], 4), PEOPLE)
    page = page_of(result_for(scores))
    assert "Chance is 25.0 %" in page and "over the 4 classes that have test images" in page and "12.5" not in page


def test_report_of_four_people_says_why_there_is_no_interval():
    scores = metrics.evaluate(one_hot([0, 1, 2, 5] * 4), np.tile([0, 1, 2, 5], 4), ["a", "b", "c", "d"] * 4)
    page = page_of(result_for(scores))
    assert "no 95 % interval: the images show 4 people" in page and "none: 1 person" in page
    assert " to 100.0 %" not in page
    assert "95 % interval over people" in page_of(result_for(metrics.evaluate(
        one_hot(np.tile([0, 1], 8)), np.tile([0, 1], 8), PEOPLE)))


def test_pages_of_drawn_faces_say_so():
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    words = "These faces are drawn, not photographed"
    assert words in page_of(result_for(scores, dataset=f"CK+{DRAWN}")) and words not in page_of(result_for(scores))
    summary = labels_summary() | {"datasets": [f"CK+{DRAWN}"]}
    assert words in pages.render_labels(summary, {}) and words not in pages.render_labels(labels_summary(), {})


def labels_summary():
    return {"name": "x", "created": "now", "command": "c", "retrained": None, "images": 9, "suspects": 2, "folds": 5,
            "contradicted": 0, "by_class": dict.fromkeys(EXPRESSIONS, 0), "datasets": ["CK+"],
            "network": {"balanced_accuracy": 0.5, "chance": 0.125, "required": 0.2125}}


def test_page_of_the_label_audit_shows_the_score_of_its_judge_first():
    page = pages.render_labels(labels_summary(), {})
    assert page.index("50.0 %") < page.index("2 of 9 labels are doubtful") and "chance is 12.5 %" in page


def test_matrix_of_data_sets_counts_the_classes_both_have():
    own = metrics.evaluate(one_hot([0, 1, 2]), np.array([0, 1, 2]), list("abc"))
    other = metrics.evaluate(one_hot([0, 0]), np.array([0, 1]), list("de"))
    reports = {"A": {"metrics": own, "also": [{"name": "B", "metrics": other, "left_out": {"copies": 3}}]},
               "B": {"metrics": other, "also": [{"name": "A", "metrics": None, "left_out": {}}]}}
    found = comparison.matrix(reports)
    assert [(p["balanced_accuracy"], p["classes"], p["chance"]) for p in found["pairs"]] == [
        (1.0, 3, 1 / 3), (0.5, 2, 0.5), (None, 0, None), (0.5, 2, 0.5)]
    page = pages.render_matrix({"name": "x", "created": "now", "command": "c", "datasets": ["A", "B"]} | found)
    assert "3 copies" in page and page.count("<tr>") == 5 and "0.333" in page and "none: 2 people" in page


def compared(points, withheld, folds=5):
    sides = [{"label": label, "runs": runs, "all_classes": n, "images": 80, "people": people, "train_images": train,
              "balanced_accuracy": 0.5, "balanced_accuracy_ci95": None, "no_interval": "few", "chance": 0.25}
             for label, runs, n, people, train in (("by image", 1, 8, 9, 80), ("by subject", folds, 4, people_of(folds),
                                                                             60))]
    return {"classes": list(EXPRESSIONS[:4]), "sides": sides, "points": points, "withheld": withheld}


def people_of(folds):
    return 12 if folds > 1 else 1


def protocol_summary(comparison):
    scores = metrics.evaluate(one_hot([0, 1]), np.array([0, 1]), ["p", "q"])
    row = {"label": "by image", "name": "x-image", "split": "image", "leaks": {"subject": 3}, "remarks": [], "also": {},
           **{k: scores[k] for k in ("balanced_accuracy", "balanced_accuracy_ci95", "no_interval", "chance", "accuracy",
                                     "macro_f1", "test_images", "test_people")}}
    spread = {s: {"mean": 0.5, "sd": 0.1} for s in ("balanced_accuracy", "accuracy", "macro_f1")}
    return {"name": "x", "kind": "paper_vs_honest", "runs": [row, row | {"label": "by subject", "split": "subject"}],
            "spread": spread, "pooled": None, "floor": None, "comparison": comparison, "created": "now",
            "command": "c", "config": {}, "versions": {}, "train": {"backbone": "n"},
            "counts": {"read": {f"CK+{DRAWN}": {}}}}


def test_page_of_both_splits_shows_people_and_classes_of_each_side():
    page = pages.render_protocol(protocol_summary(compared(31.2, None)))
    assert "+31.2 points" in page and "compared over 4 classes" in page and "5 folds test everybody" in page
    assert "train on fewer images" in page and "These faces are drawn" in page


def test_page_of_both_splits_withholds_what_one_person_cannot_carry():
    page = pages.render_protocol(protocol_summary(compared(None, "the split by subject tests 1 people", folds=1)))
    assert "points" not in page and "is not said</strong>, for the split by subject tests 1 people" in page


def test_examples_of_rejected_images_survive_what_cannot_be_read(tmp_path):
    import cv2

    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    cv2.imwrite(str(tmp_path / "strip.png"), np.zeros((48, 9000), np.uint8))
    rejected = pd.DataFrame({"image": [str(tmp_path / n) for n in ("broken.png", "gone.png", "strip.png")],
                             "reason": ["no face found"] * 3})
    (shown,) = prepared_page._rejected_examples(rejected).values()
    assert [picture.shape for picture in shown] == [(1, 96)]


def test_page_of_a_search_shows_chance_of_both_scores_and_few_people():
    scores = metrics.evaluate(one_hot([0, 1, 2]), np.array([0, 1, 2]), ["p", "q", "r"])
    epochs = [{"epoch": 0, "val_balanced_accuracy": 0.5, "val_chance": 0.2}]
    trial = {"number": 0, "settings": {"lr": 0.1, "momentum": 0.9, "backbone": "n"}, "score": 0.5, "history": epochs,
             "state": "finished", "reason": "", "best_epoch": 0}
    other = trial | {"number": 1, "settings": {"lr": 0.01, "momentum": 0.5, "backbone": "n"}, "state": "ended"}
    summary = {"name": "x", "created": "now", "command": "c", "trials": [trial, other], "best": trial, "rungs": [1],
               "tune": {"max_epochs": 1, "grid_points": 4}, "train": {}, "epochs_spent": 1, "full_epochs": 1,
               "grid_epochs": 16, "seconds": 60, "datasets": ["CK+"],
               "test": {key: scores[key] for key in pages.HEADLINE}}
    page = pages.render_tune(summary)
    assert "50.0 % (chance 20.0 %)" in page and "chance 33.3 %, 3 images; no 95 % interval: the images show 3 p" in page
