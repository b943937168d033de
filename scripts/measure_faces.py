"""How many faces Haar finds, by itself and with a border: `python scripts/measure_faces.py --root FOLDER`.

A picture that is cropped to the face shows Haar too little: its template holds the face's surroundings. Counts, for the
grey and the coloured pictures below a folder, those in which a face is found, those of the others that a face fills
(`faces.fills`), and those without any; and how large the found faces are in their pictures. Prints a table.
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


def search(file: Path) -> tuple[str, str, float] | None:
    """Kind of picture, one of `faces.SEARCHES`, and the face's side as a part of the picture's shorter one."""
    try:
        picture = pixels.load(str(file))
    except pixels.ImageError:
        return None
    kind = "grey" if picture.ndim == 2 else "colour"
    if box := finder().find(picture):
        return kind, "found", max(box[2:]) / min(picture.shape[:2])
    return kind, "fills" if faces.fills(finder(), picture) else "none", np.nan


def main() -> None:
    """Print a row for each kind of picture, and one for all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with pictures")
    files = sorted(path for path in parser.parse_args().root.rglob("*") if path.is_file())
    with multiprocessing.Pool() as pool:
        done = [one for one in pool.map(search, files, chunksize=16) if one]
    print("| pictures | | found | fills the picture | none | median side | taken for |\n" + "| --- " * 7 + "|")
    for kind in ("grey", "colour", "all"):
        rows = [one for one in done if kind in (one[0], "all")]
        counts = [sum(one[1] == search for one in rows) for search in faces.SEARCHES]
        side = np.nanmedian([np.nan, *(one[2] for one in rows)])
        taken = "cropped to the face" if faces.are_crops(*counts) else "photographs"
        print(f"| {kind} | {len(rows):,} | " + " | ".join(f"{n:,}" for n in counts) + f" | {side:.2f} | {taken} |")


if __name__ == "__main__":
    main()
