"""What the label audit finds of labels that were flipped on purpose.

`python scripts/measure_labels.py --config FILE --root DATA --storage DIR [--rates 0.05 0.1 0.2] [-- further options]`

The set is scored by folds; its confident part (images whose label a network that never saw them gives at least
`CONFIDENT`) becomes a set of its own, in which a share of the labels is flipped to another class at random. That set is
audited from the start, training included, and the suspects are held against what was flipped. The configuration's data
must be a table with the columns and folders of jobs/configs/facial_expressions.yaml. The same command resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CONFIDENT = 0.6
FOLDS = 5
WAYS = ("low_self_confidence", "low_normalized_margin", "both", "prune_by_noise_rate", "prune_by_class",
        "confident_learning", "predicted_neq_given")


def job(verb: str, *options: str) -> None:
    subprocess.run([sys.executable, str(REPO / "jobs" / f"{verb}.py"), *options], check=True)


def confident_part(storage: Path, name: str) -> list[dict]:
    """Image and expression of the rows whose label is confidently predicted out of fold."""
    rows = [row for k in range(FOLDS) for row in csv.DictReader(open(storage / f"runs/{name}-fold{k}/predictions.csv"))]
    return [{"image": Path(r["image"]).name, "emotion": r["expression"]} for r in rows
            if float(r[f"p_{r['expression']}"]) >= CONFIDENT]


def plant(rows: list[dict], rate: float, folder: Path, images: Path) -> set[str]:
    """Write the set with flipped labels; the names of the images that were flipped."""
    rng = random.Random(0)
    classes = sorted({r["emotion"] for r in rows})
    flipped = set(rng.sample(sorted(r["image"] for r in rows), round(rate * len(rows))))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(images)
    with open(folder / "data/legend.csv", "w", newline="") as stream:
        table = csv.DictWriter(stream, ["image", "emotion"])
        table.writeheader()
        for row in sorted(rows, key=lambda r: r["image"]):
            wrong = rng.choice([c for c in classes if c != row["emotion"]])
            table.writerow(row | {"emotion": wrong} if row["image"] in flipped else row)
    return flipped


def held_against(found: set[str], flipped: set[str]) -> dict:
    """How many of the flipped labels are among those found, and the other way round."""
    both = len(found & flipped)
    return {"suspects": len(found), "recall": both / len(flipped), "precision": both / max(1, len(found))}


def cleanlab_ways(storage: Path, name: str) -> dict[str, set[str]]:
    """The suspects by each of cleanlab's ways to choose them from the same predictions."""
    import numpy as np
    from cleanlab.filter import find_label_issues

    rows = [row for k in range(FOLDS) for row in csv.DictReader(open(storage / f"runs/{name}-fold{k}/predictions.csv"))]
    classes = sorted({r["expression"] for r in rows})
    labels = np.array([classes.index(r["expression"]) for r in rows])
    probabilities = np.array([[float(r[f"p_{c}"]) for c in classes] for r in rows])
    probabilities /= probabilities.sum(1, keepdims=True)
    images = np.array([Path(r["image"]).name for r in rows])
    return {way: set(images[find_label_issues(labels, probabilities, filter_by=way, n_jobs=1)]) for way in WAYS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--name", default="facial_expressions")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("options", nargs="*", help="options of the jobs, after --")
    a = parser.parse_args()
    shared = ["--config", a.config, "--storage", str(a.storage), "--protocol.repeats", str(FOLDS), *a.options]
    if not (a.storage / "crossval" / a.name / "crossval.json").exists():
        job("crossval", *shared, "--name", a.name, "--data.root", str(a.root))
    rows = confident_part(a.storage, a.name)
    print(f"{len(rows)} images in the confident part", flush=True)
    results = {}
    for rate in a.rates:
        name = f"planted-{rate:g}"
        folder = a.storage / name
        flipped = plant(rows, rate, folder, (a.root / "images").resolve())
        if not (a.storage / f"labels/{name}/labels.json").exists():
            job("audit", "--labels", *shared, "--name", name, "--data.root", str(folder), "--evaluate.floor", "false")
        found = {Path(r["image"]).name for r in csv.DictReader(open(a.storage / f"labels/{name}/suspects.csv"))}
        results[f"{rate:g}"] = {"images": len(rows), "flipped": len(flipped), **held_against(found, flipped)}
        print(f"{rate:g}: {results[f'{rate:g}']}", flush=True)
        for way, others in cleanlab_ways(a.storage, name).items():
            print(f"    {way}: {held_against(others, flipped)}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
