import dataclasses
import json
from pathlib import Path

import pytest

from fer_ray import storage
from fer_ray.checks import check
from fer_ray.config import Config, ConfigError, TrainConfig, TuneConfig
from fer_ray.report import figures, pages, search_figures
from fer_ray.train import tracking
from fer_ray.tune import outcome, policies, search, space, trial


def config_of(storage="/nowhere", train=None, **tune) -> Config:
    return Config(name="s", storage=str(storage), train=train or TrainConfig(), tune=TuneConfig(**tune))


def test_settings_of_a_point_keep_the_effective_learning_rate():
    found = space.settings({"effective_lr": 0.2, "damping": 0.05, "batch_size": 8})
    assert found == {"lr": pytest.approx(0.01), "momentum": 0.95, "batch_size": 8}
    assert space.settings({"lr": 0.3, "momentum": 0.5}) == {"lr": 0.3, "momentum": 0.5}


def test_the_grid_has_the_ends_of_every_axis_and_all_choices():
    config = config_of(plane="plain", lr=[1e-4, 1e-2], momentum=[0.0, 0.9], backbones=["resnet18", "alexnet"],
                       batch_sizes=[8, 16], label_smoothing=[0.0, 0.2], weight_decay=[1e-5, 1e-3])
    points = space.grid(space.axes(config), 3)
    assert len(points) == 3 * 3 * 2 * 2 * 3 * 3
    assert sorted({p["lr"] for p in points}) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert sorted({p["momentum"] for p in points}) == pytest.approx([0, 0.45, 0.9])
    one = trial.trial_config(config, 7, points[5])
    assert one.name == "007" and one.train.epochs == config.tune.max_epochs
    assert {"lr": one.train.lr, "momentum": one.train.momentum}.items() <= points[5].items()


def test_defaults_of_the_learning_rate_suit_the_backbone():
    effective = space.axes(config_of(train=TrainConfig(backbone="alexnet")))["effective_lr"]
    assert (effective.low, effective.high) == pytest.approx((1e-3, 3e-1))
    wider = space.axes(config_of(plane="plain", backbones=["vgg19", "resnet152"]))["lr"]
    assert (wider.low, wider.high) == pytest.approx((1e-4, 3e-1))


def test_the_first_point_is_the_configured_one_if_it_lies_inside(tmp_path):
    inside = space.Points(config_of(tmp_path, lr=[1e-3, 1.0]))
    assert [space.settings(p) for p in inside.first] == [{"lr": pytest.approx(1e-2), "momentum": 0.9}]
    assert space.Points(config_of(tmp_path, lr=[0.5, 1.0])).first == []


def results_of(asked, trial: str, scores: list[float], finished: bool) -> None:
    said = [{"epochs": n, "score": s, "training_iteration": 1} for n, s in enumerate(scores, 1)]
    for one in said:
        asked.on_trial_result(trial, one)
    asked.on_trial_complete(trial, said[-1] | {"finished": finished})


def test_optuna_knows_an_early_ended_trial_as_such_and_a_diverged_one_as_the_worst(tmp_path):
    from optuna.trial import TrialState

    points = space.Points(config_of(tmp_path, lr=[1e-3, 1.0]))
    asked = policies.searcher(points, TuneConfig(max_epochs=3))
    for name in "abc":
        assert asked.suggest(name)["number"] == "abc".index(name)
    assert asked.suggest("a") == {"number": 0, "point": points.chosen[0]}  # asked again, it is the same
    results_of(asked, "a", [0.2, 0.3, 0.4], finished=True)
    results_of(asked, "b", [0.1], finished=False)
    results_of(asked, "c", [0.0], finished=True)
    full, ended, diverged = asked._ot_study.trials
    assert (full.state, full.value) == (TrialState.COMPLETE, 0.4)
    assert ended.state == TrialState.PRUNED and ended.intermediate_values == {1: 0.1}
    assert (diverged.state, diverged.value) == (TrialState.COMPLETE, 0.0)


@pytest.mark.parametrize("searcher", ["tpe", "gp", "random"])
def test_a_search_that_is_made_again_chooses_its_points_again_and_then_new_ones(tmp_path, searcher):
    config = config_of(tmp_path, searcher=searcher, num_trials=12)

    def suggest(session: str, count: int) -> list[dict]:
        points = space.Points(config)
        asked = policies.searcher(points, config.tune)
        chosen = []
        for i in range(count):
            chosen.append(asked.suggest(f"{session}{i}")["point"])
            results_of(asked, f"{session}{i}", [0.1 + i / 100] * config.tune.max_epochs, finished=True)
        return chosen

    first, again = suggest("first", 6), suggest("again", 9)
    assert again[:6] == first
    assert not any(p in first for p in again[6:] if searcher != "gp")  # which may go back to the best corner
    assert json.loads(Path(tmp_path / "tune/s/points.json").read_text())["points"] == again


def test_epochs_that_are_told_again_are_not_spent_again():
    budget = policies.budget(TuneConfig(budget_epochs=3))
    assert [budget(*told) for told in (("a", {"epochs": 1}), ("a", {"epochs": 1}), ("b", {"epochs": 1}),
                                       ("a", {"epochs": 2}))] == [False, False, False, True]
    assert not policies.budget(TuneConfig()).stop_all()
    assert policies.budget(TuneConfig(budget_minutes=1e-9)).stop_all()


def test_rungs_are_those_that_asha_decides_at():
    u = TuneConfig(max_epochs=20, grace_epochs=2, reduction_factor=3)
    (bracket,) = policies.scheduler(u)._brackets
    assert sorted(milestone for milestone, _ in bracket._rungs) == [2, 6, 18] == policies.rungs(u)
    assert policies.rungs(dataclasses.replace(u, scheduler="median")) == []


def test_trials_side_by_side_follow_the_cluster():
    def fitting(cluster, limit=0, num_workers=1, **train):
        train = TrainConfig(num_workers=num_workers, **train)
        return search.concurrency(cluster, config_of(train=train, max_concurrent=limit))

    assert fitting({"CPU": 2}) == 1 and fitting({"CPU": 16}) == 4 and fitting({"CPU": 16}, limit=6) == 6
    assert fitting({"CPU": 2}, limit=8) == 2  # more would wait for ever
    assert fitting({"CPU": 64, "GPU": 8}, device="cuda") == 8
    assert fitting({"CPU": 64, "GPU": 8}, device="cuda", num_workers=4) == 2
    with pytest.raises(ConfigError, match="4 workers need 4 GPUs, the cluster has 2"):
        fitting({"CPU": 8, "GPU": 2}, device="cuda", num_workers=4)


@pytest.mark.parametrize(("nodes", "trials", "device", "threads"), [
    ([(2, 0)], 1, "cpu", 2), ([(16, 0)], 4, "cpu", 4), ([(2, 0)], 3, "cpu", 1),
    ([(2, 0), (1, 0)], 1, "cpu", 2), ([(2, 0), (2, 0), (2, 0)], 1, "cpu", 2),  # no trial lies on two nodes
    ([(0, 0), (16, 0), (1, 0)], 4, "cpu", 4), ([(16, 0), (8, 8)], 8, "cuda", 1), ([(16, 0), (8, 2)], 2, "cuda", 4)])
def test_a_trial_asks_for_no_more_than_a_node_has(nodes, trials, device, threads):
    found = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes]
    assert search.threads_per_worker(found, trials, TrainConfig(device=device, num_workers=1)) == threads


def test_choosing_passes_over_diverged_trials_and_says_why_none_is_left():
    def trial(number, score, state, **more):
        return {"number": number, "score": score, "state": state, "history": [{}], "best_epoch": 0, "run": "r",
                "reason": "the loss is nan", **more}

    with pytest.raises(Exception, match="no trial came to a result \\(000: the loss is nan\\)"):
        outcome.choose(config_of(), [trial(0, 0.9, "diverged")])


def test_what_is_wrong_with_a_search_is_told_at_once(tmp_path):
    wrong = ("tune.momentum\\[1\\]: 1.0 must be .*tune.backbones\\[0\\]: 'lenet' is no known.*"
             "tune.grace_epochs: 9 must not exceed.*tune.lr: .* must be \\[lowest, highest")
    with pytest.raises(ConfigError, match=wrong):
        check(config_of(grace_epochs=9, max_epochs=3, lr=[0.1, 0.01], momentum=[0.5, 1.0], backbones=["lenet"]))
    with pytest.raises(ConfigError, match="train.from_tune: no finished search 'x' .*run jobs/tune.py --name x"):
        space.with_best_settings(config_of(tmp_path, train=TrainConfig(from_tune="x")))


def test_found_values_replace_those_of_the_configuration(tmp_path):
    (tmp_path / "tune/x").mkdir(parents=True)
    (tmp_path / "tune/x/tune.json").write_text(json.dumps(
        {"best": {"settings": {"lr": 0.02, "momentum": 0.8, "backbone": "resnet18", "batch_size": 4}}}))
    t = space.with_best_settings(config_of(tmp_path, train=TrainConfig(from_tune="x", epochs=7))).train
    assert (t.lr, t.momentum, t.backbone, t.batch_size, t.epochs) == (0.02, 0.8, "resnet18", 4, 7)


@pytest.mark.filterwarnings("error")  # would stand on the user's terminal
def test_the_page_of_a_search_is_drawn_from_what_its_trials_left(tmp_path):
    config = config_of(tmp_path, plane="plain", num_trials=3, max_epochs=3)
    points = [{"lr": lr, "momentum": 0.9} for lr in (0.01, 0.01, 1e-3)]
    storage.write_json(f"{space.search_uri(config)}/points.json", {"points": points})
    for number, scores in ((0, [0.2, 0.2, 0.2]), (1, [0.2])):
        run = f"{space.search_uri(config)}/runs/{number:03d}"
        storage.write_json(f"{run}/run.json", {"id": "x"})
        for epoch, score in enumerate(scores):
            tracking.log(run, {"epoch": epoch, "lr": 0.01, "train_loss": 2.0, "val_loss": 2.0, "train_s": 1.0,
                               "val_balanced_accuracy": score, "val_chance": 0.2})
    storage.write_json(f"{space.search_uri(config)}/runs/001/ended.json", {"epochs": 1})
    storage.write_json(f"{space.search_uri(config)}/runs/002/diverged.json", {"epoch": 0, "reason": "the loss is nan"})
    found = outcome.trials(config)
    assert [one["state"] for one in found] == ["finished", "ended", "diverged"]
    test = dict.fromkeys(pages.HEADLINE, 0.5) | {"balanced_accuracy_ci95": [0.4, 0.6]}
    summary = outcome.summarise(config, found, found[0]) | {
        "test": test, "test_report": "report.html", "datasets": ["CK+"], "created": "today",
        "command": "python jobs/tune.py"}
    assert summary["epochs_spent"] == 4
    page = pages.render_tune(summary)
    assert all(f"<td>{state}</td>" in page for state in ("finished", "ended", "diverged"))
    assert figures.png(search_figures.search_figure(summary)).startswith(b"\x89PNG")
