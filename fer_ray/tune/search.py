"""The search over learning rate and momentum (Ray Tune). Trials are the same training; hopeless ones end early.

A trial is a run like any other, in a storage root of its own: `tune/NAME/runs/NUMBER/`. The points are kept in the
order in which they were chosen (`tune/NAME/points.json`). A search that was interrupted is made again from both: the
known points are chosen first, and their runs tell what they reached before they go on, so that scheduler and searcher
know again what they knew. Nothing of Ray Tune's own state, which is pickled, is read from storage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import tempfile
import time
import warnings

import numpy as np

from fer_ray import scratch, storage
from fer_ray.checks import check
from fer_ray.config import Config, TrainConfig, TuneConfig, to_dict
from fer_ray.model import checkpoints
from fer_ray.train import resources, schedule, tracking, training, workers
from fer_ray.tune import space

EPOCHS, SCORE = "epochs", "score"  # what Tune goes by: epochs done, and the best validation balanced accuracy of them
# what may differ between two sessions of one search
RESUMABLE = {"num_trials", "max_concurrent", "budget_epochs", "budget_minutes"}
CORES = 4  # of a trial on CPUs: small networks gain little from more


def search(config: Config, prepared: str, loaded: dict[str, dict] | None = None) -> list[dict]:
    """Search on the prepared set; all trials as `trials` gives them. The same name goes on where it was.

    `loaded`: what `load` gave, for several searches on one set.

    Raises: ConfigError if the search exists with another configuration or the cluster is too small;
        start_weights.WeightsError; checkpoints.CheckpointError; workers.TrainingError if no trial came to a result.
    """
    import optuna
    import ray
    from ray import tune

    u, folder = config.tune, space.search_uri(config)
    values = {f"tune.{k}": v for k, v in to_dict(u).items() if k not in RESUMABLE}
    training.claim(storage.join(folder, "search.json"), values | training.train_values(config.train, prepared))
    resources.wait_for_workers(config.train)
    side_by_side = concurrency(ray.cluster_resources(), config)
    cpus = max(1, int(ray.cluster_resources()["CPU"] // (side_by_side * config.train.num_workers)))
    loaded = loaded or load_inputs(config, prepared)
    queue = space.Queue(config)
    budget = stopper(u)
    taken = {"CPU": resources.CPU_RESERVE / 10}  # a nested trainer takes its own; 0 is refused
    if config.train.num_workers == 1:
        taken = {"CPU": cpus - resources.CPU_RESERVE, "GPU": int(config.train.use_gpu)}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainable = tune.with_parameters(run_trial, config=config, loaded=loaded, prepared=prepared, cpus=cpus)
    own_files = tempfile.mkdtemp(dir=scratch.folder())  # what Tune keeps for itself
    tuner = tune.Tuner(
        tune.with_resources(trainable, taken),
        tune_config=tune.TuneConfig(
            metric=SCORE, mode="max", search_alg=searcher(queue, u), scheduler=scheduler(u), num_samples=queue.number,
            max_concurrent_trials=side_by_side, reuse_actors=config.train.num_workers == 1),
        run_config=tune.RunConfig(
            name="search", storage_path=own_files, stop=budget, callbacks=[journal(config, budget)], verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures)),
    )
    with _quiet():
        tuner.fit()
    shutil.rmtree(own_files, ignore_errors=True)
    return trials(config)


def load_inputs(config: Config, prepared: str) -> dict[str, dict]:
    """What the trials share, by backbone: see `training.load`. Waits for it, since trials hold the GPUs that
    features need."""
    import ray

    loaded = {t.backbone: training.load_inputs(dataclasses.replace(config, train=t), prepared)
              for t in space.trainings(config)}
    for one in loaded.values():
        ray.get(one["can_start"])
        for kind, content in one["sources"].values():
            if kind != "streamed":
                ray.wait(content, num_returns=len(content), fetch_local=False)
    return loaded


def trial_config(config: Config, number: int, point: dict) -> Config:
    """The configuration of a trial."""
    train = dataclasses.replace(config.train, **space.settings(point), epochs=config.tune.max_epochs, from_tune="")
    return check(dataclasses.replace(config, name=f"{number:03d}", prepared=config.prepared or config.name,
                                     storage=space.search_uri(config), train=train))


# --- what Tune is given ----------------------------------------------------------------------------------


def searcher(queue: space.Queue, u: TuneConfig):
    """Optuna behind Tune's interface: trials in the order of `queue`, and the early ended ones known as such."""
    import optuna
    from optuna.trial import TrialState
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):
        def suggest(self, trial_id: str) -> dict:
            new = trial_id not in self._ot_trials
            point = super().suggest(trial_id)
            if new:
                self.numbers[trial_id] = len(self.numbers)
                queue.keep(self.numbers[trial_id], point)
            return {"number": self.numbers[trial_id], "point": point}

        def on_trial_result(self, trial_id: str, result: dict) -> None:
            self._ot_trials[trial_id].report(result[SCORE], result[EPOCHS])

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            # OptunaSearch would pass the score of an early ended trial off as that of a full one
            if result and not result["finished"]:
                self._ot_study.tell(self._ot_trials[trial_id], state=TrialState.PRUNED)
                self._completed_trials.add(trial_id)
            else:
                super().on_trial_complete(trial_id, result, error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing to save: see the module."""

    # as many trials by chance as there are before a model of two axes means anything, as few as there can be
    begin = max(4, u.num_trials // 4)
    seed = u.seed + len(queue.chosen)  # a resumed search must not draw the same again
    sampler = {"tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True,
                                                         n_startup_trials=begin),
               "gp": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=begin)}.get(
                   u.searcher, lambda: optuna.samplers.RandomSampler(seed=seed))
    search = Search(queue.axes, metric=SCORE, mode="max", sampler=sampler(), points_to_evaluate=queue.first)
    search.numbers = {}
    return search


def scheduler(u: TuneConfig):
    """Time is the number of epochs done, which a restarted trial does not advance by telling an epoch again."""
    from ray.tune import schedulers

    if u.scheduler == "asha":
        return schedulers.ASHAScheduler(EPOCHS, max_t=u.max_epochs, grace_period=u.grace_epochs,
                                        reduction_factor=u.reduction_factor)
    if u.scheduler == "hyperband":
        # trials end by themselves; its own way of ending the last ones forgets one that is just being paused, for ever
        return schedulers.HyperBandScheduler(EPOCHS, max_t=u.max_epochs, reduction_factor=u.reduction_factor,
                                             stop_last_trials=False)
    if u.scheduler == "median":
        return schedulers.MedianStoppingRule(EPOCHS, grace_period=u.grace_epochs, min_samples_required=3)
    return schedulers.FIFOScheduler()


def rungs(u: TuneConfig) -> list[int]:
    """Epochs at which ASHA decides."""
    if u.scheduler != "asha":
        return []
    count = int(math.log(u.max_epochs / u.grace_epochs) / math.log(u.reduction_factor) + 1)
    return [r for k in range(count) if (r := u.grace_epochs * u.reduction_factor**k) < u.max_epochs]


def stopper(u: TuneConfig):
    """Ends the search when its epochs or minutes are spent."""
    from ray import tune

    ends = time.time() + 60 * u.budget_minutes if u.budget_minutes else math.inf

    class Budget(tune.Stopper):
        told: set[tuple[str, int]] = set()  # an epoch that is told again is not spent again

        def __call__(self, trial_id: str, result: dict) -> bool:
            self.told.add((trial_id, result[EPOCHS]))
            return self.stop_all()

        def stop_all(self) -> bool:
            return time.time() >= ends or bool(u.budget_epochs) and len(self.told) >= u.budget_epochs

    return Budget()


def journal(config: Config, budget):
    """A line an epoch on the terminal, and a file beside each trial that was ended early."""
    from ray import tune

    class Journal(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
            values = ", ".join(f"{k} {_short(v)}" for k, v in space.settings(result["config"]["point"]).items())
            said = f"val balanced accuracy {result['val_balanced_accuracy']:.3f}"
            print(f"trial {result['config']['number']:03d}  epoch {result[EPOCHS]:3d}/{config.tune.max_epochs}  "
                  f"{'diverged' if result['diverged'] else said}  ({values})", flush=True)

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            number, result = trial.config["number"], trial.last_result
            run = storage.join(space.search_uri(config), "runs", f"{number:03d}")
            if not (result["finished"] or budget.stop_all()):
                print(f"trial {number:03d}  ended after {result[EPOCHS]} epochs", flush=True)
                storage.write_json(storage.join(run, "ended.json"), {EPOCHS: result[EPOCHS]})

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            print(f"trial {trial.config['number']:03d}  failed: {_last_line(trial)}", flush=True)

    return Journal()


def concurrency(cluster: dict, config: Config) -> int:
    """Trials that the cluster holds at once. Raises: ConfigError if it cannot hold one."""
    t = config.train
    resources.worker_resources(cluster, t)
    if t.use_gpu:
        fitting = most = int(cluster["GPU"] // t.num_workers)
    else:
        # the process around several workers takes a little of its own
        several = int((cluster["CPU"] - 0.5) // t.num_workers)
        fitting = max(1, several if t.num_workers > 1 else int(cluster["CPU"]))
        most = max(1, several if t.num_workers > 1 else int(cluster["CPU"] // CORES))
    return min(config.tune.max_concurrent, fitting) if config.tune.max_concurrent else most


# --- in a trial ----------------------------------------------------------------------------------------------


def run_trial(trial: dict, config: Config, loaded: dict, prepared: str, cpus: int) -> None:
    """What Tune runs: tell what is known of the trial, then train on. One worker is this very process, which serves
    the next trial too; several are a trainer of their own."""
    one = trial_config(config, trial["number"], trial["point"])
    run = workers.run_uri(one)
    finished = training.is_done(one, prepared)
    newest = checkpoints.find_latest(run)
    place = TuneTrialWorker(one, checkpoints.load_train_state(newest)["progress"]["history"] if newest else [])
    diverged, ended = storage.join(run, "diverged.json"), storage.join(run, "ended.json")
    if not (finished or storage.exists(diverged) or storage.exists(ended)):
        if one.train.num_workers == 1:
            from fer_ray.train import loop

            loop.fit(workers.given(one, loaded[one.train.backbone], cpus), place)
        else:
            try:
                workers.run_group(one, loaded[one.train.backbone], callbacks=[place.callback()])
            except workers.TrainingError:
                if not storage.exists(diverged):
                    raise
    if storage.exists(diverged):
        place.tell_worst()


class TuneTrialWorker(workers.SingleWorker):
    """The process of a one-worker trial, and what Tune is told of any trial."""

    def __init__(self, config: Config, history: list[dict]):
        super().__init__(config)
        self.epochs, self.best, self.best_epoch = 0, -1.0, -1
        for numbers in history:
            self.tell(numbers)

    def report(self, numbers: dict, folder: str | None) -> None:
        """Keep the checkpoint and the numbers, then wait for what Tune says."""
        super().report(numbers, folder)
        self.finish()
        if "val_balanced_accuracy" in numbers:
            self.tell(numbers)

    def tell(self, numbers: dict) -> None:
        """Report an epoch to Tune; ends this thread if Tune wants no more of the trial."""
        from ray import tune

        tune.report(self.said(numbers))

    def said(self, numbers: dict) -> dict:
        """What Tune goes by after an epoch."""
        self.epochs, score = numbers["epoch"] + 1, numbers["val_balanced_accuracy"]
        if score > self.best:
            self.best, self.best_epoch = score, numbers["epoch"]
        finished = schedule.is_finished({"epoch": self.epochs, "best_epoch": self.best_epoch}, self.train)
        return {EPOCHS: self.epochs, SCORE: self.best, "val_balanced_accuracy": score, "finished": finished,
                "diverged": False}

    def tell_worst(self) -> None:
        """A loss that is no number: schedulers compare it with none, so they are told the worst score there is."""
        from ray import tune

        tune.report({EPOCHS: self.epochs + 1, SCORE: 0.0, "val_balanced_accuracy": 0.0, "finished": True,
                     "diverged": True})

    def callback(self):
        """The same for a trainer with several workers, whose controller is another process."""
        from ray.tune.integration.ray_train import TuneReportCallback

        place = self

        class Tell(TuneReportCallback):
            def after_report(self, run_context, metrics: list[dict], checkpoint) -> None:
                if "val_balanced_accuracy" in metrics[0]:
                    super().after_report(run_context, [place.said(metrics[0])], None)

        return Tell()


# --- after the search ------------------------------------------------------------------------------------------


def trials(config: Config) -> list[dict]:
    """What became of each trial, from its run: `number`, `settings`, `point`, `state` (finished, ended, diverged or
    unfinished) and its `reason`, `history` (an entry an epoch), `best_epoch` (from 0; None before the first) and
    `score`, its validation balanced accuracy, 0 for a diverged one."""
    return [_trial(config, number, point) for number, point in enumerate(space.read_points(config))]


def _trial(config: Config, number: int, point: dict) -> dict:
    one = trial_config(config, number, point)
    run = workers.run_uri(one)
    history = [{k: e[k] for k in ("epoch", "lr", "train_loss", "val_loss", "val_balanced_accuracy", "train_s")}
               for e in tracking.read(run)]
    state, reason = "unfinished", ""
    if storage.exists(storage.join(run, "diverged.json")):
        state, reason = "diverged", storage.read_json(storage.join(run, "diverged.json"))["reason"]
    elif storage.exists(storage.join(run, "ended.json")):
        state = "ended"
    elif history and is_finished(history, one.train):
        state = "finished"
    scores = [e["val_balanced_accuracy"] for e in history]
    return {"number": number, "run": run, "point": point, "state": state, "reason": reason, "history": history,
            "settings": space.settings(point) | {k: getattr(one.train, k) for k in ("lr", "momentum", "backbone")},
            "best_epoch": int(np.argmax(scores)) if scores else None,
            "score": max(scores) if scores and state != "diverged" else 0.0}


def is_finished(history: list[dict], t: TrainConfig) -> bool:
    """Whether the epochs, or the patience, of a trial have run out."""
    best = int(np.argmax([e["val_balanced_accuracy"] for e in history]))
    return schedule.is_finished({"epoch": len(history), "best_epoch": best}, t)


def choose(config: Config, found: list[dict]) -> dict:
    """The trial with the best validation score, and `best/NAME.json` for it; among equals the one that took fewest
    epochs. Raises: workers.TrainingError if there is none."""
    usable = [t for t in found if t["history"] and t["state"] != "diverged"]
    if not usable:
        reasons = "; ".join(f"{t['number']:03d}: {t['reason'] or t['state']}" for t in found[:3])
        raise workers.TrainingError(f"{space.search_uri(config)}: no trial came to a result ({reasons})")
    best = max(usable, key=lambda t: (t["score"], -t["best_epoch"]))
    training.write_best(config, best["run"], config.name)
    return best


def summarise(config: Config, found: list[dict], best: dict) -> dict:
    """The numbers of tune.html and tune.json."""
    u = config.tune
    spent = sum(len(t["history"]) for t in found)
    return {"name": config.name, "trials": found, "best": best, "rungs": rungs(u), "epochs_spent": spent,
            "seconds": sum(e["train_s"] for t in found for e in t["history"]),
            "grid_epochs": len(space.grid(space.axes(config), u.grid_points)) * u.max_epochs,
            "full_epochs": len(found) * u.max_epochs, "tune": to_dict(u), "train": to_dict(config.train)}


@contextlib.contextmanager
def _quiet():
    """Tune speaks to its developers; the journal speaks to the user."""
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _last_line(trial) -> str:
    lines = str(trial.get_error() or "").strip().splitlines() or ["for an unknown reason"]
    return lines[-1]
