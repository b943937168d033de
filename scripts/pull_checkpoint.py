"""Fetch the best checkpoint of a run from storage, or list what is there.

    python scripts/pull_checkpoint.py --storage s3://bucket/prefix --list
    python scripts/pull_checkpoint.py --storage s3://bucket/prefix --name NAME --to FOLDER

Interrupted, the same command goes on where it ended. Endpoint, region and credentials of S3 come from the AWS
environment and profiles.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fer_ray.errors import UserError  # noqa: E402
from fer_ray.model import checkpoints, registry  # noqa: E402

COLUMNS = {"name": "name", "state": "state", "backbone": "backbone", "validation": "val. bal. accuracy",
           "test": "test bal. accuracy", "data": "data", "date": "date (UTC)"}


def main() -> None:
    """Exit with code 1 and one line on what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", required=True, help="folder or URI that the jobs were given as --storage")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--name", default="", help="name of the run (may be left out if there is only one)")
    what.add_argument("--list", action="store_true", help="show all runs and bests instead")
    parser.add_argument("--to", default="", help="folder to write to (default: the name of the run)")
    options = parser.parse_args()
    try:
        if options.list:
            print_table(registry.listing(options.storage))
        else:
            pull(options.storage, options.name, options.to)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def print_table(entries: list[dict]) -> None:
    """A line for each entry, in columns, and below the table a line for each file that is damaged."""
    if not entries:
        return print("no runs here")
    cells = [list(COLUMNS.values())] + [[_cell(entry[key]) for key in COLUMNS] for entry in entries]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for entry in entries:
        if entry["problem"]:
            print(f"{entry['name']}: {entry['problem']}")
    return None


def pull(root: str, name: str, to: str) -> None:
    """Fetch a checkpoint with a progress bar, then print how to use it."""
    from tqdm import tqdm

    checkpoint = registry.find(root, name)
    folder = to or name or checkpoint.rstrip("/").split("/")[-2]
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=folder, disable=None) as bar:
        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()
        registry.fetch(checkpoint, folder, show)
    description = checkpoints.describe(folder)
    score, run = description["metrics"]["val_balanced_accuracy"], description["config"]["name"]
    print(f"{folder}: {description['backbone']}, validation balanced accuracy {score:.3f} after epoch "
          f"{description['progress']['epoch']}, sha256 verified")
    print(f"use it: fer_ray.Recognizer.load({folder!r}) in Python, or python jobs/predict.py --predict.checkpoint "
          f"{shlex.quote(folder)} --predict.images PHOTOGRAPHS")
    print(f"score it: python jobs/evaluate.py --storage {shlex.quote(root)} --name {shlex.quote(run)} "
          f"--evaluate.checkpoint {shlex.quote(folder)}")


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
