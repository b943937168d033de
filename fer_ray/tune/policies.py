"""What Ray Tune is told to go by: which points to try, which trials to end early, and when the search is over."""

from __future__ import annotations

import math
import time
from typing import Any

from fer_ray.config import TuneConfig
from fer_ray.tune import space

EPOCHS = "epochs"  # what schedulers take for time: epochs done, which a trial that starts again does not advance
SCORE = "score"  # what is maximised: the best validation balanced accuracy of those epochs


def searcher(points: space.Points, config: TuneConfig):
    """Optuna behind Ray Tune's interface. It suggests `points.first`, then chooses; early ended trials are marked so.

    A suggestion has the `number` of the trial, from 0, and its `point`.
    """
    import optuna
    from optuna.trial import TrialState
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.numbers: dict[str, int] = {}  # Tune's id of a trial -> ours

        def suggest(self, trial_id: str) -> dict:
            is_new = trial_id not in self._ot_trials
            point: Any = super().suggest(trial_id)
            if is_new:
                self.numbers[trial_id] = len(self.numbers)
                points.record(self.numbers[trial_id], point)
            return {"number": self.numbers[trial_id], "point": point}

        def on_trial_result(self, trial_id: str, result: dict) -> None:
            self._ot_trials[trial_id].report(result[SCORE], result[EPOCHS])

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            if result and not result["finished"]:
                # OptunaSearch would pass the score of an early ended trial off as that of a whole one
                study: Any = self._ot_study
                study.tell(self._ot_trials[trial_id], state=TrialState.PRUNED)
                self._completed_trials.add(trial_id)
            else:
                super().on_trial_complete(trial_id, result, error)

        def save(self, checkpoint_path: str) -> None:
            """Nothing to save: a resumed search learns everything from its trials' own files."""

    # Both models need trials at random points first. A quarter of all, but at least four: fewer say nothing of a plane.
    random_trials = max(4, config.num_trials // 4)
    seed = config.seed + len(points.chosen)  # a resumed search must not draw the same points again
    if config.searcher == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True,
                                             n_startup_trials=random_trials)
    elif config.searcher == "gp":
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=random_trials)
    else:
        sampler = optuna.samplers.RandomSampler(seed=seed)
    return Search(points.axes, metric=SCORE, mode="max", sampler=sampler, points_to_evaluate=points.first)


def scheduler(config: TuneConfig):
    """What ends hopeless trials."""
    from ray.tune import schedulers

    if config.scheduler == "asha":
        return schedulers.ASHAScheduler(EPOCHS, max_t=config.max_epochs, grace_period=config.grace_epochs,
                                        reduction_factor=config.reduction_factor)
    if config.scheduler == "hyperband":
        # Our trials end by themselves. Ray's own way of ending the last ones can lose a trial that is just being
        # paused, and the search then waits for it for ever.
        return schedulers.HyperBandScheduler(EPOCHS, max_t=config.max_epochs, stop_last_trials=False,
                                             reduction_factor=config.reduction_factor)
    if config.scheduler == "median":
        return schedulers.MedianStoppingRule(EPOCHS, grace_period=config.grace_epochs, min_samples_required=3)
    return schedulers.FIFOScheduler()


def rungs(config: TuneConfig) -> list[int]:
    """Epochs after which ASHA decides which trials go on: `grace_epochs` times the powers of `reduction_factor`."""
    if config.scheduler != "asha":
        return []
    count = int(math.log(config.max_epochs / config.grace_epochs) / math.log(config.reduction_factor) + 1)
    found = [config.grace_epochs * config.reduction_factor**power for power in range(count)]
    return [rung for rung in found if rung < config.max_epochs]


def budget(config: TuneConfig):
    """Ends the search when its epochs or minutes are spent."""
    from ray import tune

    deadline = time.time() + 60 * config.budget_minutes if config.budget_minutes else math.inf

    class Budget(tune.Stopper):
        def __init__(self):
            self.spent: set[tuple[str, int]] = set()  # trial and epoch; one that is reported again is not spent again

        def __call__(self, trial_id: str, result: dict) -> bool:
            self.spent.add((trial_id, result[EPOCHS]))
            return self.stop_all()

        def stop_all(self) -> bool:
            no_epochs_left = bool(config.budget_epochs) and len(self.spent) >= config.budget_epochs
            return no_epochs_left or time.time() >= deadline

    return Budget()
