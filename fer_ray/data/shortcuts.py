"""How well can the expression be guessed without looking at the face?

Where all pictures of one class come from one camera, a network may learn the camera. A small model is therefore given
what is known of each picture besides the face, and guesses the expression of people that it was not fitted on. What it
reaches above chance, a network can reach without reading a face.
"""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd

from fer_ray.data import pixels, splits
from fer_ray.data.manifest import EXPRESSIONS

MEASURED_SIDE = 64  # px of the copy that brightness, contrast and colour are measured on
# A picture is a colour picture from so many grey levels on, by which its channels differ on average. Of the 2,255
# photographs of the "facial expressions" set, 1,913 are at 0 and 342 above 5, whatever the mode of their files.
COLOUR_FROM = 3.0

FOLDS = 5  # of people
TREES = 20
MIN_PEOPLE = 10  # fewer do not show whether a guess holds for others
MAX_OF_CLASS = 1250  # images that are looked at, a random choice: 10,000 of eight classes take seconds
# The bar: a twentieth of the way from chance to 1, and above what the same guesses reach when people swap them.
MARGIN, SWAPS, QUANTILE = 0.05, 1000, 0.999
UNITS = {"colour": "colour (grey levels)", "width": "width (px)", "height": "height (px)",
         "brightness": "brightness (of 255)", "contrast": "contrast (grey levels)", "face share": "share of the face"}
PHRASES = {"source": "from {}", "colour": "{} pictures", "file format": "{} files", "face": "face {}"}
NAMED = 4  # single features in the table, the worst first
GRAY = "faces.gray true where colour tells it, "
MORE_PICTURES = "more pictures of the classes that stand out, from elsewhere"


def measure(picture: np.ndarray, content: bytes) -> dict[str, float | str]:
    """What is kept of a picture besides its face.

    Args:
        picture: uint8 [H, W] or [H, W, 3] (RGB).
        content: the bytes that it was decoded from.

    Returns: `chroma` (mean difference of the largest and smallest channel), `brightness` and `contrast` (mean and
        standard deviation of grey), all in grey levels, and `format` of the file.
    """
    small = cv2.resize(picture, (MEASURED_SIDE, MEASURED_SIDE), interpolation=cv2.INTER_AREA)
    gray = small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    chroma = 0.0 if small.ndim == 2 else float(np.ptp(small.astype(np.int16), axis=2).mean())
    return {"chroma": chroma, "brightness": float(gray.mean()), "contrast": float(gray.std()),
            "format": pixels.format_of(content)}


def colour_or_grey(chroma: pd.Series) -> pd.Series:
    """Of each picture "coloured" or "grey", as `measure` found it: a file in colour may hold a grey picture."""
    return pd.Series(np.where(chroma >= COLOUR_FROM, "coloured", "grey"), chroma.index)


def faces_found(rows: pd.DataFrame) -> pd.Series:
    """Of each row of an index, whether its crop is that of a face that was found or given, and the only large one."""
    return pd.Series(np.select([~rows["face_found"], rows["several"]], ["not found", "one of several"], "found"),
                     rows.index)


def audit(rows: pd.DataFrame, seed: int = 0, gray: bool = False) -> dict:
    """Guess the expression without the face, by folds of people.

    Args:
        rows: of the index of a prepared set.
        seed: of the folds, the model and the swaps.
        gray: whether the crops are grey (`faces.gray`), so that the pictures' colour tells a network nothing.

    Returns: `images`, `people` and `classes` that were looked at; `reason`, why nothing follows from them, or None;
        `warning`, whether the guesses are above the bar, in a sentence, or None; if there is no `reason`,
        `balanced_accuracy` of the guesses, `chance`, `bar` and `features`, the single ones that tell most: dicts of
        `name`, `balanced_accuracy`, `what` is shown by class, whether as a `share` of its images, and `by_class`.
    """
    rows = _some_of_each_class(rows, seed)
    people = pd.factorize(splits.people(rows))[0] if len(rows) else np.zeros(0, int)
    labels = pd.factorize(rows["expression"].to_numpy(dtype=str), sort=True)[0]
    counts = {"images": len(rows), "people": len(np.unique(people)), "classes": len(np.unique(labels))}
    if counts["people"] < MIN_PEOPLE or counts["classes"] < 2:
        return counts | {"warning": None, "reason": f"{counts['classes']} classes of {counts['people']} people tell "
                                                     f"nothing; at least 2 of {MIN_PEOPLE} are needed"}
    known = _known(rows).drop(columns=["colour"] * gray, errors="ignore")
    guessed = _guess(known, labels, people, seed)
    found = _balanced_accuracy(labels, guessed)
    chance = 1 / counts["classes"]
    bar = max(chance + MARGIN * (1 - chance), _by_chance(labels, guessed, people, seed))
    single = {name: _balanced_accuracy(labels, _guess(known[[name]], labels, people, seed, trees=1)) for name in known}
    worst = sorted(single, key=lambda name: -single[name])[:NAMED]
    warning = (f"the expression can be guessed without the face: balanced accuracy {found:.3f}, where chance is "
               f"{chance:.3f} and the bar {bar:.3f}; {worst[0]} alone reaches {single[worst[0]]:.3f}. What helps: "
               f"{'' if gray else GRAY}{MORE_PICTURES}") if found > bar else None
    return counts | {"reason": None, "warning": warning, "balanced_accuracy": found, "chance": chance, "bar": bar,
                     "features": [{"name": name, "balanced_accuracy": single[name],
                                   **_by_class(known[name], rows["expression"])}
                                  for name in worst if single[name] > chance]}


def _some_of_each_class(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    shuffled = rows.sample(frac=1, random_state=seed)
    return shuffled.groupby("expression").head(MAX_OF_CLASS).sort_values("image").reset_index(drop=True)


def _known(rows: pd.DataFrame) -> pd.DataFrame:
    """What is known of each picture besides the face, a column each; what is equal in all pictures is left out."""
    box = np.array(rows["box"].tolist(), float).reshape(len(rows), 4)
    known = pd.DataFrame({
        "source": rows["dataset"], "colour": rows["chroma"], "width": rows["width"], "height": rows["height"],
        "brightness": rows["brightness"], "contrast": rows["contrast"],
        "face share": box[:, 2] * box[:, 3] / (rows["width"] * rows["height"]),  # 1 where no face was found
        "file format": rows["format"], "face": faces_found(rows)})
    return known.loc[:, known.nunique() > 1]


def _as_numbers(known: pd.DataFrame) -> np.ndarray:
    """float64 [N, columns]; names become numbers."""
    return np.stack([column if column.dtype.kind in "if" else pd.factorize(column, sort=True)[0]
                     for _, column in known.items()], axis=1).astype(np.float64) if known.shape[1] else np.zeros(
                         (len(known), 0))


def _guess(known: pd.DataFrame, labels: np.ndarray, people: np.ndarray, seed: int, trees: int = TREES) -> np.ndarray:
    """The guessed label of each row by a forest that was fitted on other people, int [N]."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold
    from sklearn.tree import DecisionTreeClassifier

    options = {"min_samples_leaf": max(3, len(labels) // 200), "class_weight": "balanced", "random_state": seed}
    model = (RandomForestClassifier(trees, **options) if trees > 1
             else DecisionTreeClassifier(max_depth=6, **options))
    features, guessed = _as_numbers(known), np.zeros(len(labels), int)
    if features.shape[1]:
        for others, members in GroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels, people):
            guessed[members] = model.fit(features[others], labels[others]).predict(features[members])
    return guessed


def _by_chance(labels: np.ndarray, guessed: np.ndarray, people: np.ndarray, seed: int) -> float:
    """A balanced accuracy that the guesses hardly exceed (`QUANTILE`) if they have nothing to do with the labels.

    People swap their guesses, in any order: the images of one person are alike, so that single images would vary too
    little.
    """
    rng = np.random.default_rng(seed)
    own = np.argsort(people, kind="stable")
    scores = []
    for _ in range(SWAPS):
        other = np.lexsort((rng.random(len(people)), rng.permutation(people.max() + 1)[people]))
        scores.append(_balanced_accuracy(labels[own], guessed[other]))
    return float(np.quantile(scores, QUANTILE))


def _balanced_accuracy(labels: np.ndarray, guessed: np.ndarray) -> float:
    """Mean recall over the classes, as `model.metrics` has it."""
    right = np.bincount(labels[labels == guessed], minlength=labels.max() + 1)
    return float((right / np.bincount(labels)).mean())


def _by_class(values: pd.Series, expressions: pd.Series) -> dict:
    """What a column of `_known` is in each class: the share of the value that differs most, or the median."""
    name = str(values.name)
    if name == "colour" and (values >= COLOUR_FROM).nunique() > 1:
        values = colour_or_grey(values)
    if values.dtype.kind in "if":
        return {"what": f"median {UNITS[name]}", "share": False,
                "by_class": _in_order(values.groupby(expressions).median())}
    shares = pd.crosstab(expressions, values, normalize="index")
    differs_most = (shares.max() - shares.min()).idxmax()
    return {"what": PHRASES[name].format(differs_most), "share": True, "by_class": _in_order(shares[differs_most])}


def _in_order(by_class: pd.Series) -> dict[str, float]:
    return {expression: float(by_class[expression]) for expression in EXPRESSIONS if expression in by_class}
