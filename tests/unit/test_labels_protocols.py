import dataclasses

import numpy as np
import pandas as pd
import pytest

from fer_ray import config, options
from fer_ray.data.duplicates import HASHES
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import evaluation, explanation, labels, protocols


def noisy(n=400, flipped=40, seed=0):
    """Labels of which some are wrong, and the probabilities of a network that knows better."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 8, n)
    given = truth.copy()
    bad = rng.choice(n, flipped, replace=False)
    given[bad] = (truth[bad] + rng.integers(1, 8, flipped)) % 8
    logits = rng.normal(0, 1, (n, 8)) + 5 * np.eye(8)[truth]
    return [EXPRESSIONS[i] for i in given], np.exp(logits) / np.exp(logits).sum(1, keepdims=True), set(bad)


def index_of(n):
    """Index rows of pictures that are no duplicates of each other."""
    hashes = np.random.default_rng(0).integers(0, 2**63, (n, len(HASHES))).astype(np.uint64)
    return pd.DataFrame(hashes, columns=HASHES).assign(cluster=range(n), sequence=None)


def test_planted_label_noise_is_found():
    given, probabilities, bad = noisy()
    ranked = labels.rank(given, probabilities, index_of(len(given)))
    found = set(ranked["position"][ranked["reason"] != ""])
    assert len(found & bad) >= 0.8 * len(bad) and len(found & bad) >= 0.6 * len(found)
    assert sorted(ranked["position"]) == list(range(len(given)))


def test_duplicates_that_disagree_come_first_but_not_the_frames_of_one_video():
    given, probabilities, _ = noisy(flipped=0)
    rows = index_of(len(given))
    for first, second in ((0, 10), (20, 21)):  # copies
        rows.loc[second, [*HASHES, "cluster"]] = rows.loc[first, [*HASHES, "cluster"]]
    rows.loc[[20, 21], "sequence"] = "v"
    rows.loc[30, "cluster"] = 0  # linked by a third picture, not alike itself
    given[0], given[10], given[20], given[21], given[30] = "fear", "anger", "neutral", "surprise", "disgust"
    ranked = labels.rank(given, probabilities, rows)
    assert set(ranked["position"][:2]) == {0, 10}
    assert ranked["reason"][:2].str.startswith("duplicates say").all() and (ranked["twins"] != "").sum() == 2


def test_labels_of_one_class_alone_are_not_doubted():
    ranked = labels.rank(["fear"] * 5, np.full((5, 8), 1 / 8), index_of(5))
    assert (ranked["reason"] == "").all()


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
    assert protocols.side_by_side({"CPU": 8, "GPU": 2}, config.TrainConfig(num_workers=2)) == 4
    assert protocols.side_by_side({"CPU": 8, "GPU": 2}, config.TrainConfig(num_workers=2, use_gpu=True)) == 1
    assert protocols.side_by_side({"CPU": 1}, config.TrainConfig(num_workers=2)) == 1


def test_harmonised_probabilities_know_the_shared_classes_only():
    kept = evaluation.harmonise(np.full((3, 8), 1 / 8), ["anger", "fear"])
    assert kept[:, [0, 3]].tolist() == [[0.5, 0.5]] * 3 and kept.sum() == 3


def test_what_is_explained_are_the_surest_mistakes_one_a_person():
    rows = pd.DataFrame({"image": list("abcd"), "expression": ["fear", "fear", "anger", "anger"],
                         "subject": ["p", "p", None, "q"]})
    sure = np.array([0.5, 0.9, 0.6, 0.7])
    probabilities = np.zeros((4, 8))
    probabilities[:3, 7], probabilities[3, 0] = sure[:3], sure[3]
    chosen = explanation.choose(rows, probabilities)
    assert chosen["mistakes"]["image"].tolist() == ["b", "c"] and chosen["typical"]["image"].tolist() == ["d"]
    assert chosen["mistakes"]["guess"].tolist() == ["surprise", "surprise"]
    assert set(chosen["confused"]["image"]) == {"a", "b", "c"}


@pytest.mark.parametrize("backbone", ["alexnet", "resnet18", "efficientnet_lite0"])
def test_heat_maps_lie_between_0_and_1_and_leave_the_network_as_it_was(backbone):
    from fer_ray.model import backbones

    model = backbones.build(backbone).eval()
    crop = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    maps = explanation.heat_maps(model, [crop, crop], [0, 3])
    assert len(maps) == 2 and maps[0].shape == (224, 224) and 0 <= maps[0].min() and maps[0].max() <= 1
    assert not any(layer._forward_hooks for layer in model.modules())


def test_switches_need_no_value():
    assert options.load(["--labels", "--train.use_gpu", "--name", "x"]).labels
    assert not options.load(["--labels", "false"]).labels
    with pytest.raises(config.ConfigError, match="retrain"):
        options.load(["--retrain"])
