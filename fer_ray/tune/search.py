"""The search over learning rate and momentum (Ray Tune). Trials are the same training; hopeless ones end early.

A trial is a run like any other, in a storage root of its own: `tune/NAME/runs/NUMBER/`. The points are kept in the
order in which they were chosen (`tune/NAME/points.json`). A search that was interrupted is made again from both: the
known points are suggested first, and each of their runs reports the epochs that it has already trained before it goes
on, so that scheduler and searcher know again what they knew. Nothing of Ray Tune's own state, which is pickled, is read
from storage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Generator

from fer_ray import progress, scratch, storage
from fer_ray.config import Config, TrainConfig, to_dict
from fer_ray.train import inputs, resources, training
from fer_ray.train.job import TrainingInput
from fer_ray.tune import outcome, policies, space
from fer_ray.tune.policies import EPOCHS, SCORE
from fer_ray.tune.trial import run_trial

# Options that may differ between two sessions of one search.
RESUMABLE = {"num_trials", "max_concurrent", "budget_epochs", "budget_minutes"}
CORES = 4  # of a trial on CPUs: small networks gain little from more


def search(config: Config, prepared: str, loaded: dict[str, TrainingInput] | None = None) -> list[dict]:
    """Search on the prepared set; all trials, as of `outcome.trials`. The same name goes on where it was.

    `loaded`: of `load_inputs`, for several searches on one set.

    Raises: ConfigError if the search exists with other settings or the cluster is too small;
        start_weights.WeightsError; checkpoints.CheckpointError; storage.DamagedError if a file of the search is
        damaged; storage.StorageError.
    """
    import optuna
    import ray
    from ray import tune

    claim_search(config, prepared)
    config = _settled(config)
    train, single = config.train, config.train.num_workers == 1
    resources.wait_for_workers(train)
    side_by_side = concurrency(ray.cluster_resources(), config)
    threads = threads_per_worker([node["Resources"] for node in ray.nodes() if node["Alive"]], side_by_side, train)
    points, budget = space.Points(config), policies.budget(config.tune)
    loaded = loaded or load_inputs(config, prepared)
    if single:
        takes = {"CPU": threads - resources.CPU_RESERVE, "GPU": int(train.device == "cuda")}
    else:  # the workers of Ray Train take theirs; the function that starts them must take something, since 0 is refused
        takes = {"CPU": resources.CPU_RESERVE / 10}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainable = tune.with_parameters(run_trial, config=config, loaded=loaded, prepared=prepared, threads=threads)
    tune_folder = tempfile.mkdtemp(dir=scratch.folder())  # Tune must write its own state somewhere; nobody reads it
    tuner = tune.Tuner(
        tune.with_resources(trainable, takes),
        tune_config=tune.TuneConfig(
            metric=SCORE, mode="max", search_alg=policies.searcher(points, config.tune),
            scheduler=policies.scheduler(config.tune), num_samples=points.num_trials,
            max_concurrent_trials=side_by_side, reuse_actors=single),
        run_config=tune.RunConfig(
            name="search", storage_path=tune_folder, stop=budget, callbacks=[terminal_log(config, budget)], verbose=0,
            failure_config=tune.FailureConfig(max_failures=train.max_failures)),
    )
    try:
        with _quiet():
            tuner.fit()
    finally:
        shutil.rmtree(tune_folder, ignore_errors=True)
    return outcome.trials(config)


def _settled(config: Config) -> Config:
    """The configuration with the device and number of workers that each trial is to have on this cluster."""
    return dataclasses.replace(config, train=resources.settle(config.train, config.tune.num_trials))


def claim_search(config: Config, prepared: str) -> None:
    """See that a search of this name, if there is one, has the same settings and data, and write them down if not.

    Raises: ConfigError if it has others; storage.DamagedError.
    """
    values = {f"tune.{key}": value for key, value in to_dict(config.tune).items() if key not in RESUMABLE}
    values |= training.run_values(to_dict(config.train), inputs.fingerprint(prepared))
    training.claim(storage.join(space.search_uri(config), "search.json"), values)


def load_inputs(config: Config, prepared: str) -> dict[str, TrainingInput]:
    """What the trials share, by backbone.

    Waits until it is there: trials that start at once would hold the GPUs that computing features needs.
    """
    import ray

    config = _settled(config)
    loaded = {train.backbone: inputs.load_inputs(dataclasses.replace(config, train=train), prepared)
              for train in space.trainings(config)}
    for one in loaded.values():
        ray.get(one.start_loaded)
        references = one.train.references + one.val.references
        if references:
            ray.wait(references, num_returns=len(references), fetch_local=False)
    return loaded


def concurrency(cluster: dict, config: Config) -> int:
    """Trials that the cluster (of `ray.cluster_resources()`) is to run side by side.

    Raises: ConfigError if it cannot hold one.
    """
    train = config.train
    resources.worker_resources(cluster, train)
    if train.device == "cuda":
        fitting = best = int(cluster["GPU"] // train.num_workers)
    elif train.num_workers > 1:
        # the processes that start and watch the workers take a little of their own
        fitting = best = max(1, int((cluster["CPU"] - 0.5) // train.num_workers))
    else:
        fitting, best = max(1, int(cluster["CPU"])), max(1, int(cluster["CPU"] // CORES))
    # more than fit would wait for each other for ever
    return min(config.tune.max_concurrent, fitting) if config.tune.max_concurrent else best


def threads_per_worker(nodes: list[dict[str, float]], side_by_side: int, train: TrainConfig) -> int:
    """CPU threads of each worker of trials side by side: as many as leave each a place on one of the nodes.

    More than a node has would never be given, and the search would wait for ever.

    Args:
        nodes: resources of each node, as `ray.nodes()` gives them.
        side_by_side: trials, of `concurrency`.
        train: number of workers of a trial, and their device.
    """
    def places(threads: int) -> int:
        return sum(int(min(node.get("CPU", 0) // threads, node.get("GPU", 0) if train.device == "cuda" else math.inf))
                   for node in nodes)

    most = int(max((node.get("CPU", 0) for node in nodes), default=1))
    return next((n for n in range(most, 1, -1) if places(n) >= side_by_side * train.num_workers), 1)


def terminal_log(config: Config, budget):
    """Callback of Ray Tune: a line on the terminal for each epoch, and a file beside each trial that is ended early."""
    from ray import tune

    class TerminalLog(tune.Callback):
        def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
            values = ", ".join(f"{key} {_short(value)}"
                               for key, value in space.settings(result["config"]["point"]).items())
            reached = f"val balanced accuracy {result['val_balanced_accuracy']:.3f}"
            progress.say(f"trial {result['config']['number']:03d}  epoch {result[EPOCHS]:3d}/{config.tune.max_epochs}  "
                         f"{'diverged' if result['diverged'] else reached}  ({values})")

        def on_trial_complete(self, iteration, trials, trial, **info) -> None:
            number, result = trial.config["number"], trial.last_result
            run = storage.join(space.search_uri(config), "runs", f"{number:03d}")
            # a trial that a spent budget stops is not hopeless: a session with more of it goes on
            if not (result["finished"] or budget.stop_all()):
                progress.say(f"trial {number:03d}  ended after {result[EPOCHS]} epochs")
                storage.write_json(storage.join(run, "ended.json"), {EPOCHS: result[EPOCHS]})

        def on_trial_error(self, iteration, trials, trial, **info) -> None:
            lines = str(trial.get_error() or "").strip().splitlines() or ["for an unknown reason"]
            progress.say(f"trial {trial.config['number']:03d}  failed: {lines[-1]}")

    return TerminalLog()


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Without what Ray Tune tells its own developers; `terminal_log` speaks to the user."""
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
