"""What searches find and cost: `python scripts/bench_tune.py --prepared FOLDER`.

Searches on a prepared set by the full grid, at random, and by successive halving (ASHA) with random points and with
Optuna's, in both planes (`tune.plane`). Each has as many trials as the grid has points, and the same limit of epochs a
trial. Every search is repeated with several seeds, of the points and of training. The last line is JSON: the best
validation balanced accuracy and the epochs spent, also as shares of the grid's, means over the seeds.

`--layers head` (default) trains the last layer on the frozen features of all images, which takes seconds a trial on a
CPU; `--layers all --images 64` fine-tunes the whole network on so many training images.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

# Name -> tune.searcher, tune.scheduler, tune.plane.
METHODS: dict[str, tuple[Any, Any, Any]] = {
    "grid": ("grid", "none", "plain"),
    "asha_grid": ("grid", "asha", "plain"),
    "random": ("random", "none", "plain"),
    "asha_random_plain": ("random", "asha", "plain"),
    "asha_random_effective": ("random", "asha", "effective"),
    "asha_tpe_plain": ("tpe", "asha", "plain"),
    "asha_tpe_effective": ("tpe", "asha", "effective"),
}


def main() -> None:
    """Run all methods for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", required=True, help="folder of a prepared set")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--layers", default="head", choices=["head", "all"])
    parser.add_argument("--images", type=int, default=0, help="training images, 0: all")
    parser.add_argument("--least", type=int, default=0, help="leave out classes with fewer validation images")
    parser.add_argument("--seeds", type=int, default=3, help="how often each search is repeated")
    parser.add_argument("--points", type=int, default=4, help="grid points of learning rate, and of momentum")
    parser.add_argument("--max_epochs", type=int, default=9, help="epochs of a trial that is not stopped")
    parser.add_argument("--lr", type=float, nargs=2, default=[1e-3, 1.0], help="lowest and highest, plane `plain`")
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()

    from bench_train import write_subset, write_with_index

    from fer_ray.cli import connection
    from fer_ray.data import prepared_set
    from fer_ray.tune import search, space

    begun = time.time()
    folder = tempfile.mkdtemp(prefix="bench_tune_")
    prepared = str(Path(options.prepared).resolve())
    if options.images:
        prepared = write_subset(prepared, f"{folder}/set", options.images)
    if options.least:
        index = prepared_set.read_index(prepared)
        counts = index[index["split"] == "val"]["expression"].value_counts()
        kept = index[index["expression"].isin(counts[counts >= options.least].index)]
        print(f"validation images {counts.to_dict()}, {len(kept)} of {len(index)} images kept", flush=True)
        prepared = write_with_index(prepared, f"{folder}/kept", kept)
    connection.connect()
    loaded = search.load_inputs(config_of("grid", 0, folder, options), prepared)
    table = {}
    for seed in range(options.seeds):
        for method in METHODS:
            config = config_of(method, seed, folder, options)
            start = time.time()
            found = search.search(config, prepared, loaded)
            best = max(found, key=lambda trial: trial["score"])
            table[method, seed] = {"score": best["score"], "epochs": sum(len(trial["history"]) for trial in found),
                                   "trials": len(found), "seconds": time.time() - start, **best["settings"]}
            print(method, seed, table[method, seed], flush=True)
            shutil.rmtree(space.search_uri(config))
    shutil.rmtree(folder)
    print(json.dumps({"device": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                      "date": date.today().isoformat(), "minutes": (time.time() - begun) / 60, **vars(options),
                      "methods": {method: summarise(table, method, options.seeds) for method in METHODS}}))


def config_of(method: str, seed: int, storage: str, options):
    """The configuration of a search by `method`; `options` are those of the command line."""
    from fer_ray.checks import check
    from fer_ray.config import Config, TrainConfig, TuneConfig

    searcher, scheduler, plane = METHODS[method]
    low, high = options.lr
    return check(Config(name=f"{method}-{seed}", storage=storage, train=TrainConfig(
        backbone=options.backbone, layers=options.layers, batch_size=options.batch_size, schedule="cosine", lr=0.01,
        patience=options.max_epochs, seed=seed), tune=TuneConfig(
        searcher=searcher, scheduler=scheduler, plane=plane, num_trials=options.points**2,
        max_epochs=options.max_epochs, grid_points=options.points, seed=seed,
        lr=[low, high] if plane == "plain" else [10 * low, 10 * high])))


def summarise(table: dict, method: str, seeds: int) -> dict:
    """Means over the seeds; `score_vs_grid` and `epochs_vs_grid` are means of the ratios of each seed."""
    def mean(key: str) -> float:
        return statistics.mean(table[method, seed][key] for seed in range(seeds))

    def ratio(key: str) -> list[float]:
        return [table[method, seed][key] / table["grid", seed][key] for seed in range(seeds)]

    return {"score_vs_grid": statistics.mean(ratio("score")), "score_vs_grid_each": ratio("score"),
            "epochs_vs_grid": statistics.mean(ratio("epochs")), "score": mean("score"), "epochs": mean("epochs"),
            "trials": mean("trials"), "seconds": mean("seconds")}


if __name__ == "__main__":
    main()
