"""Does a network judge faces or pictures? `python scripts/measure_shortcuts.py RUN [RUN ...]`, folders of runs.

The test images of each run are changed in ways that change no expression: a skin tint over grey pictures, grey over
coloured ones, a border about them, half their size. Faces are then found and cut anew, as in photographs. A network
that judges faces stays as accurate as it was; one that has learned a shortcut does not. The folds of a
cross-validation together test each image once. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable

import cv2
import numpy as np
from tqdm import tqdm

from fer_ray.data import faces, pixels
from fer_ray.data.manifest import EXPRESSIONS
from fer_ray.evaluate import protocols
from fer_ray.model import checkpoints
from fer_ray.use import networks, photographs

SKIN = np.array([1.0, 0.8, 0.67])  # of red, green and blue: (225, 180, 150) where a grey picture has 225


def tint(picture: np.ndarray) -> np.ndarray:
    """A grey picture in the colour of skin."""
    return (faces.to_gray(picture)[..., None] * SKIN).astype(np.uint8)


def frame(picture: np.ndarray) -> np.ndarray:
    """The picture with a black border of a tenth of its shorter side."""
    width = round(0.1 * min(picture.shape[:2]))
    return cv2.copyMakeBorder(picture, width, width, width, width, cv2.BORDER_CONSTANT, value=0)


def halve(picture: np.ndarray) -> np.ndarray:
    """The picture at half its size."""
    return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


# For each change the pictures that it is for, as predictions.csv calls them, and what it does.
CHANGES: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "a skin tint over grey pictures": (("grey",), tint), "grey over coloured pictures": (("coloured",), faces.to_gray),
    "a border": (("grey", "coloured"), frame), "half the size": (("grey", "coloured"), halve)}


def guesses(checkpoint: str, images: list[str], kinds: list[str]) -> dict[str, np.ndarray]:
    """By change, and "" for none, the class number guessed for each image; -1 where a change is not for it.

    Args:
        checkpoint: URI.
        images: N pictures.
        kinds: "grey" or "coloured" of each.
    """
    network = networks.load(checkpoint)
    config = dataclasses.replace(networks.describe(checkpoint).faces, on_no_face="whole")
    cutter = photographs.Cutter(photographs.Search(config, "largest"))
    guessed = {name: np.full(len(images), -1) for name in ["", *CHANGES]}
    for number, image in enumerate(tqdm(images, checkpoint, leave=False)):
        picture = pixels.load(image)
        versions = {"": picture} | {name: change(picture) for name, (wanted, change) in CHANGES.items()
                                    if kinds[number] in wanted}
        scores = network.probabilities([cutter.crops(version)[0].pixels for version in versions.values()])
        for name, row in zip(versions, scores, strict=True):
            guessed[name][number] = row.argmax()
    return guessed


def main() -> None:
    """Print a row for each change, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folder or URI of a run that was evaluated, such as DIR/runs/NAME")
    options = parser.parse_args()
    labels, parts = [], []
    for run in options.runs:
        tested = protocols.pooled([run])
        labels.append(tested["expression"].map({name: i for i, name in enumerate(EXPRESSIONS)}).to_numpy())
        parts.append(guesses(checkpoints.find_best(run), tested["image"].tolist(), tested["colour"].tolist()))
    right = {name: np.concatenate([part[name] for part in parts]) == np.concatenate(labels) for name in parts[0]}
    changed = {name: np.concatenate([part[name] for part in parts]) >= 0 for name in CHANGES}
    print("| change | images | accuracy before | after | moved by |\n| --- | --- | --- | --- | --- |")
    found = {}
    for name, members in changed.items():
        if members.any():
            before, after = float(right[""][members].mean()), float(right[name][members].mean())
            print(f"| {name} | {members.sum():,} | {before:.3f} | {after:.3f} | {after - before:+.3f} |")
            found[name] = {"images": int(members.sum()), "before": before, "after": after, "moved": after - before}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
