"""What each part of our recipe is worth: `python scripts/measure_recipe.py --config FILE --data.root FOLDER OPTIONS`.

Cross-validates (`jobs/crossval.py`, folds of people) the training with all parts switched off, with each of them alone,
with all but one, and with all. The options are those of that job and hold for every row. Finished rows are not trained
again. Prints a row for each; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from fer_ray import storage

CROSSVAL = Path(__file__).resolve().parent.parent / "jobs/crossval.py"
# Of each part, its options switched off and on.
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "strong augmentation": (["--train.augmentation", "paper"], ["--train.augmentation", "strong"]),
    "slower body": (["--train.body_lr", "1.0"], ["--train.body_lr", "0.3"]),
    "cosine and warm-up": (["--train.schedule", "constant", "--train.warmup_epochs", "0"],
                           ["--train.schedule", "cosine", "--train.warmup_epochs", "1"]),
    "weight decay": (["--train.weight_decay", "0"], ["--train.weight_decay", "0.0005"]),
    "label smoothing": (["--train.label_smoothing", "0"], ["--train.label_smoothing", "0.1"]),
    "averaged weights": (["--train.average", "0"], ["--train.average", "0.99"]),
    "mirror images": (["--train.flip_average", "false"], ["--train.flip_average", "true"]),
    "class weights": (["--train.class_weights", "none"], ["--train.class_weights", "sqrt"]),
    "grey crops": (["--faces.gray", "false"], ["--faces.gray", "true"]),
}
NONE, ALL = "none of them", "all"
ROWS = {NONE: set(), **{part: {part} for part in PARTS}, **{f"all but {part}": {*PARTS} - {part} for part in PARTS},
        ALL: {*PARTS}}
"""The parts that are on in each row."""


def options_of(row: str) -> list[str]:
    """Switch each part on or off; crops in colour and in grey are two prepared sets."""
    on = ROWS[row]
    words = [word for part, sides in PARTS.items() for word in sides[part in on]]
    crops = "grey" if "grey crops" in on else "colour"
    return [*words, "--prepared", f"recipe-{crops}", "--name", f"recipe-{re.sub('[^a-z]+', '-', row)}"]


def main() -> None:
    """Print a row for each part, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", default=[NONE, *PARTS, ALL],
                        help=f"by default none, each alone, and all; of: {', '.join(ROWS)}")
    given, crossval = parser.parse_known_args()
    found = {}
    for row in given.rows:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(CROSSVAL), *crossval, *options_of(row)], text=True,
                              stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(f"{row}: the cross-validation failed\n{done.stdout}")
        summary = storage.read_json(done.stdout.splitlines()[-1].removeprefix("result: "))
        spread, pooled = summary["spread"]["balanced_accuracy"], summary["pooled"]
        found[row] = {"balanced_accuracy": pooled["balanced_accuracy"], "mean": spread["mean"], "sd": spread["sd"],
                      "accuracy": pooled["accuracy"], "macro_f1": pooled["macro_f1"],
                      "minutes": (time.perf_counter() - start) / 60}
        print(f"{row:28} balanced accuracy {pooled['balanced_accuracy']:.3f}, folds {spread['mean']:.3f} ± "
              f"{spread['sd']:.3f}, accuracy {pooled['accuracy']:.3f}, macro-F1 {pooled['macro_f1']:.3f}, "
              f"{found[row]['minutes']:.1f} min", flush=True)
    print(json.dumps(found | {"command": sys.argv[1:], "date": date.today().isoformat()}))


if __name__ == "__main__":
    main()
