"""What the leak audit finds: `python scripts/measure_duplicates.py --root FOLDER [--images N]`.

Takes photographs, makes a copy of each in several ways, finds and crops all faces, and counts how many copies
`duplicates.clusters` links to their original, and how many pairs of originals it links (false alarms, unless the
folder holds copies). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from fer_ray.config import FacesConfig  # noqa: E402
from fer_ray.data import duplicates, faces, pixels  # noqa: E402


def reencoded(picture: np.ndarray) -> np.ndarray:
    """JPEG of quality 50."""
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])[1]
    return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)


COPIES = {
    "the same file": lambda p: p,
    "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "JPEG of quality 50": reencoded,
    "25 grey levels brighter": lambda p: cv2.add(p, np.full_like(p, 25)),
    "0.7 of the size": lambda p: cv2.resize(p, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA),
    "contrast 0.8": lambda p: np.clip(p * 0.8 + 10, 0, 255).astype(np.uint8),
    "blurred (sigma 1.5 px)": lambda p: cv2.GaussianBlur(p, (0, 0), 1.5),
    "top and left 5 % cut off": lambda p: np.ascontiguousarray(p[p.shape[0] // 20 :, p.shape[1] // 20 :]),
}


def looks(picture: np.ndarray, finder) -> dict | None:
    """What the audit compares, or None if there is no face."""
    box = finder.find(picture)
    return None if box is None else duplicates.looks_of(faces.cut(picture, box, 0.2), picture)


def main() -> None:
    """Print a line a kind of copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder with photographs of different people")
    parser.add_argument("--images", type=int, default=500, help="photographs that are copied")
    options = parser.parse_args()
    finder, originals, pictures = faces.finder(FacesConfig()), [], []
    for path in sorted(p for p in options.root.rglob("*") if p.is_file()):
        try:
            picture = pixels.load(str(path))
        except ValueError:
            continue
        if (found := looks(picture, finder)) is not None:
            originals.append(found)
            pictures.append(picture)
    cluster = duplicates.clusters(pd.DataFrame(originals))
    sizes = np.bincount(cluster)
    alarms, pairs = int((sizes * (sizes - 1) // 2).sum()), len(originals) * (len(originals) - 1) // 2
    print(f"{len(originals)} photographs, {pairs} pairs, {alarms} of them linked")
    found_share = {}
    step = max(1, len(originals) // options.images)
    for name, change in COPIES.items():
        copies = [(i, looks(change(pictures[i]), finder)) for i in range(0, len(originals), step)]
        seen = [(i, c) for i, c in copies if c is not None]
        linked = duplicates.clusters(pd.DataFrame([*originals, *(c for _, c in seen)]))
        hits = sum(linked[i] == linked[len(originals) + k] for k, (i, _) in enumerate(seen))
        found_share[name] = round(hits / len(seen), 3)
        print(f"{name:28} {hits} of {len(seen)} copies found ({hits / len(seen):.1%}); "
              f"{len(copies) - len(seen)} without a face", flush=True)
    print(json.dumps({"pairs": pairs, "linked_pairs": alarms, "found": found_share}))


if __name__ == "__main__":
    main()
