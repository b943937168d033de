"""What the label audit finds of labels that were flipped on purpose.

`python scripts/measure_labels.py --config FILE --root DATA --storage DIR [--rates 0.05 0.1 0.2] [-- further options]`

First the set is scored by folds of people. Its confident part, the images to whose label a network that never saw them
gives a probability of at least `CONFIDENT`, becomes a set of its own, in which some labels are changed to another class
at random. That set is audited from the start, training included, and the suspects are compared with what was changed.
The configuration's data must be a table with the columns and folders of jobs/configs/facial_expressions.yaml. The same
command resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
from pathlib import Path

JOBS = Path(__file__).resolve().parent.parent / "jobs"
CONFIDENT = 0.6
FOLDS = 5
# cleanlab's `filter_by`: its ways to choose suspects from the same probabilities.
WAYS = ("low_self_confidence", "low_normalized_margin", "both", "prune_by_noise_rate", "prune_by_class",
        "confident_learning", "predicted_neq_given")


def run_job(verb: str, *options: str) -> None:
    """Run a job; its output goes to the terminal. Raises: subprocess.CalledProcessError."""
    subprocess.run([sys.executable, str(JOBS / f"{verb}.py"), *options], check=True)


def read_predictions(storage: Path, name: str) -> list[dict[str, str]]:
    """The rows of all folds' predictions: each image once, by a network that did not see its person."""
    return [row for fold in range(FOLDS)
            for row in csv.DictReader(open(storage / f"runs/{name}-fold{fold}/predictions.csv"))]


def confident_part(storage: Path, name: str) -> list[dict[str, str]]:
    """File name and label of the images whose label is predicted with confidence."""
    return [{"image": Path(row["image"]).name, "emotion": row["expression"]} for row in read_predictions(storage, name)
            if float(row[f"p_{row['expression']}"]) >= CONFIDENT]


def write_flipped(rows: list[dict[str, str]], rate: float, folder: Path, images: Path) -> set[str]:
    """Write the set with flipped labels. Returns the names of the images whose label was flipped."""
    rng = random.Random(0)
    classes = sorted({row["emotion"] for row in rows})
    flipped = set(rng.sample(sorted(row["image"] for row in rows), round(rate * len(rows))))
    (folder / "data").mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(images)
    with open(folder / "data/legend.csv", "w", newline="") as stream:
        table = csv.DictWriter(stream, ["image", "emotion"])
        table.writeheader()
        for row in sorted(rows, key=lambda row: row["image"]):
            wrong = rng.choice([name for name in classes if name != row["emotion"]])
            table.writerow(row | {"emotion": wrong} if row["image"] in flipped else row)
    return flipped


def compare(suspects: set[str], flipped: set[str]) -> dict[str, float]:
    """How many of the flipped labels are suspects (recall), and how many suspects were flipped (precision)."""
    both = len(suspects & flipped)
    return {"suspects": len(suspects), "recall": both / len(flipped), "precision": both / max(1, len(suspects))}


def suspects_by_way(storage: Path, name: str) -> dict[str, set[str]]:
    """The suspects that each of cleanlab's ways chooses from the same predictions."""
    import numpy as np
    from cleanlab.filter import find_label_issues

    rows = read_predictions(storage, name)
    classes = sorted({row["expression"] for row in rows})
    labels = np.array([classes.index(row["expression"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{expression}"]) for expression in classes] for row in rows])
    probabilities /= probabilities.sum(1, keepdims=True)
    images = np.array([Path(row["image"]).name for row in rows])
    return {way: set(images[find_label_issues(labels, probabilities, filter_by=way, n_jobs=1)]) for way in WAYS}


def main() -> None:
    """Print a line for each rate and way, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration whose data are a table")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--storage", type=Path, required=True, help="folder for all that the jobs make")
    parser.add_argument("--name", default="facial_expressions", help="name of the run that scores the set by folds")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="shares of labels to flip")
    parser.add_argument("options", nargs="*", help="options of the jobs, after --")
    given = parser.parse_args()
    storage: Path = given.storage
    shared = ["--config", given.config, "--storage", str(storage), "--protocol.repeats", str(FOLDS), *given.options]
    if not (storage / "crossval" / given.name / "crossval.json").exists():
        run_job("crossval", *shared, "--name", given.name, "--data.root", str(given.root))
    rows = confident_part(storage, given.name)
    print(f"{len(rows)} images in the confident part", flush=True)
    results = {}
    for rate in given.rates:
        name = f"planted-{rate:g}"
        flipped = write_flipped(rows, rate, storage / name, (given.root / "images").resolve())
        if not (storage / f"labels/{name}/labels.json").exists():
            run_job("audit", "--labels", *shared, "--name", name, "--data.root", str(storage / name),
                    "--evaluate.floor", "false")
        suspects = {Path(row["image"]).name for row in csv.DictReader(open(storage / f"labels/{name}/suspects.csv"))}
        results[f"{rate:g}"] = {"images": len(rows), "flipped": len(flipped), **compare(suspects, flipped)}
        print(f"{rate:g}: {results[f'{rate:g}']}", flush=True)
        for way, others in suspects_by_way(storage, name).items():
            print(f"    {way}: {compare(others, flipped)}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
