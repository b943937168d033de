"""One trial of a search: a training like any other, whose every epoch is reported to Ray Tune."""

from __future__ import annotations

import dataclasses

from fer_ray import storage
from fer_ray.checks import check
from fer_ray.config import Config, TrainConfig
from fer_ray.train import schedule, training, workers
from fer_ray.train.job import TrainingInput, TrainJob, run_uri
from fer_ray.tune import space
from fer_ray.tune.policies import EPOCHS, SCORE


def trial_config(config: Config, number: int, point: dict) -> Config:
    """The configuration of a trial: that of a training named by its number, in the folder of the search."""
    train = dataclasses.replace(config.train, **space.settings(point), epochs=config.tune.max_epochs, from_tune="")
    return check(dataclasses.replace(config, name=f"{number:03d}", prepared=config.prepared or config.name,
                                     storage=space.search_uri(config), train=train))


def run_trial(suggestion: dict, config: Config, loaded: dict[str, TrainingInput], prepared: str, threads: int) -> None:
    """What Ray Tune runs: report the epochs that an earlier session has trained, then train on and report each.

    A single worker is this very process, which Tune reuses for the next trial; several are a group of Ray Train, of
    which this process is the driver.

    Args:
        suggestion: of `policies.searcher`.
        config: of the search.
        loaded: inputs of the training by backbone.
        prepared: URI of the prepared set.
        threads: of a single worker.
    """
    one = trial_config(config, suggestion["number"], suggestion["point"])
    run = run_uri(one)
    diverged, ended = storage.join(run, "diverged.json"), storage.join(run, "ended.json")
    progress = training.open_run(one, prepared)
    score = Score(one.train)
    for numbers in progress["history"] if progress else []:
        report_to_tune(score.after(numbers))  # so the scheduler knows again what it knew
    is_over = storage.exists(diverged) or storage.exists(ended)
    if not (is_over or progress and training.is_done(progress, one)):
        inputs = loaded[one.train.backbone]
        if one.train.num_workers == 1:
            from fer_ray.train import loop

            job = TrainJob(one, inputs, threads)
            loop.fit(job, TuneTrialWorker(job, score))
        else:
            try:
                workers.run_group(training.make_job(one, inputs), callbacks=[tune_callback(score)])
            except workers.TrainingError:
                if not storage.exists(diverged):
                    raise
    if storage.exists(diverged):
        report_to_tune(score.of_divergence())


class Score:
    """What Ray Tune goes by after each epoch of a trial."""

    def __init__(self, settings: TrainConfig):
        self.settings = settings
        self.epochs, self.best, self.best_epoch = 0, -1.0, -1

    def after(self, numbers: dict) -> dict:
        """The result for Tune after an epoch with these numbers."""
        self.epochs, accuracy = numbers["epoch"] + 1, numbers["val_balanced_accuracy"]
        if accuracy > self.best:
            self.best, self.best_epoch = accuracy, numbers["epoch"]
        return {EPOCHS: self.epochs, SCORE: self.best, "val_balanced_accuracy": accuracy, "diverged": False,
                "finished": schedule.is_finished(self.epochs, self.best_epoch, self.settings)}

    def of_divergence(self) -> dict:
        """The result of a trial whose loss is not finite: the worst there is.

        Not NaN: every comparison with NaN is false, so that schedulers would let the trial go on.
        """
        return {EPOCHS: self.epochs + 1, SCORE: 0.0, "val_balanced_accuracy": 0.0, "diverged": True, "finished": True}


def report_to_tune(result: dict) -> None:
    """Report a result; if Tune wants no more of the trial, this ends the thread that runs it."""
    from ray import tune

    tune.report(result)


class TuneTrialWorker(workers.SingleWorker):
    """The only worker of a trial."""

    def __init__(self, job: TrainJob, score: Score):
        super().__init__(job)
        self.score = score

    def report(self, numbers: dict | None, checkpoint: str | None) -> None:
        """Keep both, and only then report the epoch: Tune may end the trial on hearing it."""
        super().report(numbers, checkpoint)
        self.finish()
        if numbers:
            report_to_tune(self.score.after(numbers))


def tune_callback(score: Score):
    """A callback of Ray Train, whose controller is a process of its own, that reports each epoch to Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class ReportScore(TuneReportCallback):
        def after_report(self, run_context, metrics: list[dict], checkpoint) -> None:
            super().after_report(run_context, [score.after(metrics[0])], None)

    return ReportScore()
