"""What an evaluated run leaves in its folder for other steps: `result.json`, `report.json` and `predictions.csv`.

Readers say in one line which file is damaged and what makes it again.
"""

from __future__ import annotations

import io

import numpy as np
import pandas as pd

from fer_ray import storage
from fer_ray.data import shortcuts
from fer_ray.data.manifest import EXPRESSIONS, PROBABILITIES

CONDITIONS = ("dataset", "colour", "face")  # by which every report has scores: a network may have learned them
REMEDY = "the same command that made it (jobs/evaluate.py, or the study that the run belongs to) makes it again"


def read_result(run: str) -> dict:
    """The headline of a run: `result.json` of its folder. Raises: storage.DamagedError."""
    expected = {"metrics": dict, "train": dict, "validation": dict, "balanced_accuracy": float, "chance": float}
    return storage.read_own_json(storage.join(run, "result.json"), expected, REMEDY)


def read_report(run: str) -> dict:
    """All numbers of a run's page: `report.json` of its folder. Raises: storage.DamagedError."""
    expected = {"metrics": dict, "train": dict, "validation": dict, "counts": dict, "also": list}
    return storage.read_own_json(storage.join(run, "report.json"), expected, REMEDY)


def conditions(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows of an index, `CONDITIONS`: the data set, "coloured" or "grey", and whether one face was found."""
    return rows[["dataset"]].assign(colour=shortcuts.colour_or_grey(rows["chroma"]), face=shortcuts.faces_found(rows))


def write_predictions(run: str, name: str, rows: pd.DataFrame, probabilities: np.ndarray) -> None:
    """Write the CSV file `name` into a run's folder: image, subject, expression, `CONDITIONS` and `PROBABILITIES`.

    Args:
        run: URI of the run's folder.
        name: of the file.
        rows: N rows of the index of a prepared set.
        probabilities: float [N, 8].
    """
    table = rows[["image", "subject", "expression"]].join(conditions(rows)).assign(
        **{column: probabilities[:, i] for i, column in enumerate(PROBABILITIES)})
    storage.write_bytes(storage.join(run, name), table.to_csv(index=False).encode())


def read_predictions(run: str, also: str = "") -> pd.DataFrame:
    """The test images of a run with their probabilities: `predictions.csv` of its folder.

    `also`: of this further data set (`predictions-NAME.csv`) instead.

    Raises: storage.DamagedError, also where rows are missing: there must be as many as `report.json` says.
    """
    file = storage.join(run, f"predictions-{also}.csv" if also else "predictions.csv")
    try:
        # "NA" is the name of a person, and no missing value
        table = pd.read_csv(io.BytesIO(storage.read_bytes(file)), dtype={"image": str, "subject": str},
                            keep_default_na=False, na_values={"subject": [""]})
    except FileNotFoundError:
        raise storage.DamagedError(f"{file}: is missing; {REMEDY}") from None
    except ValueError:  # of pandas: a parser's error, no columns at all, or no UTF-8
        raise storage.DamagedError(f"{file}: is damaged (no CSV table); {REMEDY}") from None
    expected = ["image", "subject", "expression", *CONDITIONS, *PROBABILITIES]
    report = read_report(run)
    scored = next(other for other in report["also"] if other["name"] == also) if also else report
    images = scored["metrics"]["test_images"]
    whole = (list(table.columns) == expected and len(table) == images and table["expression"].isin(EXPRESSIONS).all()
             and all(kind == np.float64 for kind in table[PROBABILITIES].dtypes))
    if not whole:
        raise storage.DamagedError(f"{file}: is damaged (not the {images} rows that report.json counts); {REMEDY}")
    return table
