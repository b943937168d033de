"""Figures of a search over learning rate and momentum (matplotlib)."""

from __future__ import annotations

from fer_ray.report.figures import BLUE, GREY, ORANGE, integer_axis

STATES = {"finished": "o", "ended": "x", "diverged": "v", "unfinished": "s"}  # of trials, and their marks
MOMENTA = (0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)  # ticks, where they fit


def search_figure(summary: dict):
    """`plane_figure` and `rungs_figure` side by side, for a README. `summary`: of `outcome.summarise`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [trial for trial in summary["trials"] if trial["history"]]
    _plane(left, shown, figure)
    _rungs(right, shown, summary["rungs"])
    return figure


def plane_figure(trials: list[dict]):
    """Learning rate by momentum, a mark for each trial, coloured by its best validation score.

    `trials`: of `search.trials`, those with at least one epoch. The shape of a mark is the trial's state (`STATES`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    _plane(figure.subplots(), trials, figure)
    return figure


def rungs_figure(trials: list[dict], rungs: list[int]):
    """Validation score by epoch, a line for each trial. `rungs`: the epochs at which trials may be ended early."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    _rungs(figure.subplots(), trials, rungs)
    return figure


def cost_figure(summary: dict):
    """Epochs that the search took, that its trials would have taken in full, and that a grid takes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.9), layout="constrained")
    axis = figure.subplots()
    bars = [("this search", summary["epochs_spent"]), ("its trials in full", summary["full_epochs"]),
            ("the grid", summary["grid_epochs"])]
    axis.barh([name for name, _ in bars], [n for _, n in bars], color=[BLUE, GREY, GREY])
    for i, (_, n) in enumerate(bars):
        axis.text(n, i, f" {n}", va="center")
    axis.invert_yaxis()
    axis.set(xlabel="epochs", xlim=(0, 1.1 * max(n for _, n in bars)))
    return figure


def _plane(axis, trials: list[dict], figure) -> None:
    """Draw `plane_figure` on an axis of a figure."""
    from matplotlib.ticker import NullLocator

    top = max(trial["score"] for trial in trials)
    best = max(trials, key=lambda trial: trial["score"])
    for state, marker in STATES.items():
        some = [trial for trial in trials if trial["state"] == state]
        if some:
            drawn = axis.scatter([trial["settings"]["lr"] for trial in some],
                                 [1 - trial["settings"]["momentum"] for trial in some],
                                 c=[trial["score"] for trial in some], vmin=0, vmax=top, cmap="viridis_r",
                                 marker=marker, s=70, label=state)
    axis.scatter(best["settings"]["lr"], 1 - best["settings"]["momentum"], s=220, facecolors="none",
                 edgecolors=ORANGE, linewidths=2, label="best")
    rates = [trial["settings"]["lr"] for trial in trials]
    damping = [1 - trial["settings"]["momentum"] for trial in trials]  # what a logarithmic axis can show
    # limits before scales: Matplotlib warns on the terminal when it has to choose limits for trials of one momentum
    axis.set(ylim=(max(damping) * 1.3, min(damping) / 1.3), xlim=(min(rates) / 1.5, max(rates) * 1.5),
             xscale="log", yscale="log", xlabel="learning rate", ylabel="momentum")
    ticks = [m for m in MOMENTA if min(damping) / 1.3 <= 1 - m <= max(damping) * 1.3]
    axis.set_yticks([1 - m for m in ticks], [f"{m:g}" for m in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=5)
    figure.colorbar(drawn, ax=axis, label="validation balanced accuracy")


def _rungs(axis, trials: list[dict], rungs: list[int]) -> None:
    """Draw `rungs_figure` on an axis."""
    best = max(trials, key=lambda trial: trial["score"])
    for trial in trials:
        numbers = [epoch["epoch"] + 1 for epoch in trial["history"]]
        scores = [epoch["val_balanced_accuracy"] for epoch in trial["history"]]
        is_best = trial is best
        colour = ORANGE if is_best else BLUE
        axis.plot(numbers, scores, color=colour, alpha=1 if is_best else 0.5, lw=2 if is_best else 1,
                  zorder=3 if is_best else 2)
        axis.plot(numbers[-1], scores[-1], STATES[trial["state"]], color=colour, ms=5)
    for rung in rungs:
        axis.axvline(rung, color=GREY, lw=0.8, ls=":")
    integer_axis(axis)
    axis.set(xlabel="epoch (dotted: rungs)", ylabel="validation balanced accuracy")
