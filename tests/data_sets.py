"""Small data sets in the layouts of the real ones, and what `sources` makes of a folder."""

import collections

import cv2
import numpy as np

from fer_ray.data import sources
from fer_ray.data_config import DataConfig

GREY = " ".join(str(i % 256) for i in range(48 * 48))


def put(path, side=40):
    """A small picture at `path`, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((side, side), 99, np.uint8))
    return path


def read(root, kind="auto", by="subject", **options):
    """The rows and the rejected rows of a folder."""
    found = sources.read_manifest(DataConfig(kind, str(root), **options), by)
    return found.rows.to_pandas(), found.rejected.to_pandas()


def reasons(rejected):
    """How many rejected rows have each reason."""
    return dict(collections.Counter(rejected.reason))


def put_sequence(root, numbers, labelled, code=3, sequence="S005/001", names="{subject}_{sequence}_{number:08}.png",
                 images="cohn-kanade-images/{subject}/{sequence}", labels="Emotion/{subject}/{sequence}"):
    """A sequence of CK+ with these frames, and the label file of the frame `labelled` (None: no label)."""
    parts = dict(zip(("subject", "sequence"), sequence.split("/"), strict=True))
    for number in numbers:
        put(root / images.format(**parts) / names.format(**parts, number=number))
    if labelled is not None:
        folder = root / labels.format(**parts)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{parts['subject']}_{parts['sequence']}_{labelled:08}_emotion.txt").write_text(f"   {code:.7e}\n")


def put_numbered_rafdb(root, counts, first=1, more=()):
    """RAF-DB's pictures in numbered folders, `counts` of each class from folder `first` on, a sixth of them test."""
    content = put(root / "x.png").read_bytes()
    (root / "x.png").unlink()
    number = 0
    for folder, count in enumerate(counts, start=first):
        for k in range(count):
            number, split = number + 1, "test" if k % 6 == 5 else "train"
            place = root / "DATASET" / split / str(folder)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{split}_{number:05}_aligned.jpg").write_bytes(content)
    for name in more:
        put(root / "DATASET" / name)
