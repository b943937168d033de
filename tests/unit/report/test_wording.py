"""What jobs print is words, not dictionaries."""

import pandas as pd

from fer_ray.cli import wording

SUMMARY = {"shortcuts": {"warning": "colour tells it"}, "faces": ["own: photographs"], "split": "subject",
           "remarks": ["one person alone is angry"],
           "unseen": [],
           "counts": {"after": {"ckplus": {"train": {"happy": 1000, "neutral": 20}, "val": {"happy": 3}},
                                "jaffe": {"train": {"happy": 80}, "test": {"happy": 1}}}},
           "rejected": {"no face found": 2, "its file is empty": 7, "a": 1, "b": 3, "c": 1},
           "leaks": {"subject": 0, "sequence": 0, "identical": 1, "near_duplicate": 2}}


def test_a_prepared_set():
    assert wording.prepared(SUMMARY) == [
        "1,104 images, split by person: train 1,100, val 3, test 1",
        "14 images rejected: its file is empty (7), b (3), no face found (2), other reasons (2)",
        "own: photographs",
        "in more than one split: 1 identical picture, 2 near-duplicates",
        "one person alone is angry", "warning: colour tells it"]


def test_a_clean_set_for_testing():
    clean = {"faces": [], "split": "test", "remarks": [], "unseen": [],
             "counts": {"after": {"own": {"test": {"happy": 1}}}}, "rejected": {},
             "leaks": dict.fromkeys(SUMMARY["leaks"], 0), "shortcuts": {"warning": None}}
    assert wording.prepared(clean) == ["1 image, none for training: test 1", "nothing is in more than one split"]


def test_every_kind_of_split_and_leak_has_words():
    from typing import get_args, get_type_hints

    from fer_ray.data.leaks import LEAK_KINDS
    from fer_ray.data_config import SplitConfig

    assert set(wording.SPLITS) == set(get_args(get_type_hints(SplitConfig)["by"]))
    assert set(wording.LEAKS) == set(LEAK_KINDS)


def test_predictions():
    table = pd.DataFrame({"image": ["a", "b", "c", "a"], "expression": ["happy", "happy", None, "sadness"],
                          "reason": [None, None, "no face found", None]})
    assert wording.predictions(table) == ("3 images, 3 faces: happy 2, sadness 1; 1 without a face: "
                                          "no face found (1)")
    assert wording.predictions(table.iloc[:2]) == "2 images, 2 faces: happy 2"
    assert wording.predictions(table.iloc[2:3]) == "1 image, 0 faces; 1 without a face: no face found (1)"
