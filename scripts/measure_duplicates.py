"""What the search for near-duplicates finds: `python scripts/measure_duplicates.py --root FOLDER [--images N]`.

Takes photographs, makes a copy of each in several ways, finds and crops all faces, and counts how many copies
`duplicates.clusters` puts into one cluster with their original, and how many `duplicates.is_same_picture` recognises.
It also counts the pairs of originals in one cluster: false alarms, unless the folder itself holds copies. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from fer_ray.data import duplicates, faces, pixels
from fer_ray.data_config import FacesConfig


def reencoded(picture: np.ndarray) -> np.ndarray:
    """The picture as JPEG of quality 50."""
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_UNCHANGED))


# Kind of copy -> how it is made of a picture, uint8 [H, W(, 3)].
COPIES = {
    "the same file": lambda picture: picture,
    "mirrored": lambda picture: np.ascontiguousarray(picture[:, ::-1]),
    "JPEG of quality 50": reencoded,
    "25 grey levels brighter": lambda picture: cv2.add(picture, np.full_like(picture, 25)),
    "0.7 of the size": lambda picture: cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA),
    "contrast 0.8": lambda picture: np.clip(picture * 0.8 + 10, 0, 255).astype(np.uint8),
    "blurred (sigma 1.5 px)": lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.5),
    "top and left 5 % cut off": lambda picture: np.ascontiguousarray(picture[picture.shape[0] // 20 :,
                                                                             picture.shape[1] // 20 :]),
}


def features(picture: np.ndarray, finder) -> dict | None:
    """The hashes and thumbnails that clusters are made from, or None if no face is found."""
    box = finder.find(picture)
    return None if box is None else duplicates.looks_of(faces.cut(picture, box, 0.2), picture)


def clusters_of(looks: list[dict]) -> np.ndarray:
    """The clusters of features."""
    thumbnails = [duplicates.stacked(one[name] for one in looks) for name in duplicates.THUMBNAILS]
    return duplicates.clusters(pd.DataFrame(looks), thumbnails)


def have_same_picture(one: dict, other: dict) -> bool:
    """Whether the features are those of one picture; a thumbnail serves as well as the crop that it was made of."""
    first, second = (np.frombuffer(found["face_thumbnail"], np.uint8).reshape(2 * [duplicates.THUMBNAIL_SIDE])
                     for found in (one, other))
    return duplicates.is_same_picture(first, second)


def read_faces(root: Path, finder) -> tuple[list[dict], list[np.ndarray]]:
    """Features and pixels of every picture below `root` in which a face is found."""
    found, pictures = [], []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            picture = pixels.load(str(path))
        except ValueError:  # no image
            continue
        if (one := features(picture, finder)) is not None:
            found.append(one)
            pictures.append(picture)
    return found, pictures


def main() -> None:
    """Print a line for each kind of copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with photographs of different people")
    parser.add_argument("--images", type=int, default=500, help="number of photographs that are copied")
    options = parser.parse_args()
    finder = faces.finder(FacesConfig())
    originals, pictures = read_faces(options.root, finder)
    sizes = np.bincount(clusters_of(originals))
    linked_pairs, pairs = int((sizes * (sizes - 1) // 2).sum()), len(originals) * (len(originals) - 1) // 2
    print(f"{len(originals)} photographs, {pairs} pairs, {linked_pairs} of them linked")
    found_share, same_share = {}, {}
    copied = range(0, len(originals), max(1, len(originals) // options.images))
    for name, change in COPIES.items():
        copies = [(original, features(change(pictures[original]), finder)) for original in copied]
        with_face = [(original, copy) for original, copy in copies if copy is not None]
        cluster = clusters_of([*originals, *(copy for _, copy in with_face)])
        hits = sum(cluster[original] == cluster[len(originals) + number]
                   for number, (original, _) in enumerate(with_face))
        same = sum(have_same_picture(originals[original], copy) for original, copy in with_face)
        found_share[name], same_share[name] = round(hits / len(with_face), 3), round(same / len(with_face), 3)
        print(f"{name:28} {hits} of {len(with_face)} copies found ({hits / len(with_face):.1%}), {same} are the same "
              f"picture ({same / len(with_face):.1%}); "
              f"{len(copies) - len(with_face)} without a face", flush=True)
    print(json.dumps({"pairs": pairs, "linked_pairs": linked_pairs, "found": found_share, "same": same_share}))


if __name__ == "__main__":
    main()
