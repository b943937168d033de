"""Draws a small synthetic CK+ and JAFFE in their true layouts, since licences forbid shipping the real ones.

In the sequences of CK+ the intensity of an expression grows from frame to frame.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from fer_ray.data import listing, manifest
from fer_ray.data.drawn_face import render_face
from fer_ray.data.layouts import jaffe
from fer_ray.progress import Progress

VERSION = 1
CODES = {"anger": 1, "contempt": 2, "disgust": 3, "fear": 4, "happiness": 5, "sadness": 6, "surprise": 7}
JAFFE_CODES = {v: k for k, v in jaffe.CODES.items()}
INITIALS = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")


def write_sample(root: Path, subjects: int, seed: int) -> None:
    """Write `root`/CK+ with `subjects` people and `root`/jaffe with a sixth as many others (3 to 10).

    The same arguments always give the same bytes. If the folder already holds their result, nothing is done.

    Raises: manifest.DataError if `root` holds anything that this function did not write.
    """
    root, wanted = Path(root), {"version": VERSION, "subjects": subjects, "seed": seed}
    done, begun = root / listing.DRAWN_MARKER, root / "sample.part"
    if listing.is_drawn_sample(root) and json.loads(done.read_text()) == wanted:
        return
    if root.is_dir() and any(root.iterdir()) and not done.is_file() and not begun.is_file():
        raise manifest.DataError(f"{root}: holds files that are no rendered sample; give an empty folder")
    root.mkdir(parents=True, exist_ok=True)
    begun.touch()
    done.unlink(missing_ok=True)
    for name in ("CK+", "jaffe"):
        shutil.rmtree(root / name, ignore_errors=True)
    people = [(root / "CK+", i, seed) for i in range(subjects)]
    others = [(root / "jaffe", i, seed) for i in range(min(10, max(3, subjects // 6)))]
    # Processes are the parallelism here, not OpenCV's threads. Those are ended in this process, before it is forked: a
    # child that tried to would wait for ever for threads that exist in its parent only.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with (ProcessPoolExecutor(os.cpu_count()) as pool,
              Progress("draw the sample", len(people) + len(others), "people") as progress):
            for _ in itertools.chain(pool.map(_write_ckplus_subject, people), pool.map(_write_jaffe_subject, others)):
                progress.advance()
    finally:
        cv2.setNumThreads(threads)
    (root / "CK+" / "cohn-kanade-images" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (root / "jaffe" / "README").write_text("Rendered faces in the layout of JAFFE.\n")
    done.write_text(json.dumps(wanted))
    begun.unlink()


def write_new_face(folder: Path, seed: int) -> None:
    """Write four photographs of each expression of one person who is in no sample, in a folder for each expression.

    The same arguments always give the same bytes. If the folder already holds a drawn sample, nothing is done.
    """
    if listing.is_drawn_sample(folder):
        return
    rng = np.random.default_rng([seed, 6])
    for expression in manifest.EXPRESSIONS:
        (folder / expression).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            strength = rng.uniform(0.75, 1.0)
            face = render_face(np.random.default_rng([seed, 5]), expression, strength, rng, (320, 320), 100)
            cv2.imwrite(str(folder / expression / f"{number}.png"), face)
    (folder / listing.DRAWN_MARKER).write_text(json.dumps({"version": VERSION, "subjects": 1, "seed": seed}))


def _write_ckplus_subject(task: tuple[Path, int, int]) -> None:
    """One person: three labelled sequences, and for every fifth an unlabelled one."""
    root, number, seed = task
    identity, subject = [seed, 1, number], f"S{5 + number:03d}"
    emotions = [list(CODES)[(3 * number + k) % len(CODES)] for k in range(3)]
    rng = np.random.default_rng([seed, 2, number])
    for sequence, emotion in enumerate(emotions + ["sadness"] * (number % 5 == 0), start=1):
        folder = root / "cohn-kanade-images" / subject / f"{sequence:03d}"
        folder.mkdir(parents=True)
        frames = int(rng.integers(6, 12))
        for frame in range(1, frames + 1):
            face = render_face(np.random.default_rng(identity), emotion, (frame - 1) / (frames - 1), rng,
                               (640, 490), 118)
            cv2.imwrite(str(folder / f"{subject}_{sequence:03d}_{frame:08d}.png"), face)
        labels = root / "Emotion" / subject / f"{sequence:03d}"
        if sequence <= 3 or number % 10 == 0:  # of the unlabelled, some folders are empty and some absent
            labels.mkdir(parents=True)
        if sequence <= 3:
            file = labels / f"{subject}_{sequence:03d}_{frames:08d}_emotion.txt"
            file.write_text(f"   {CODES[emotion]:.7e}\n")


def _write_jaffe_subject(task: tuple[Path, int, int]) -> None:
    """One person: two takes of each of the seven expressions of JAFFE; serial numbers have holes."""
    root, number, seed = task
    root.mkdir(parents=True, exist_ok=True)
    rng, serial = np.random.default_rng([seed, 4, number]), 23 * number
    for expression, code in JAFFE_CODES.items():
        for take in (1, 2):
            serial += int(rng.integers(1, 3))
            face = render_face(np.random.default_rng([seed, 3, number]), expression, rng.uniform(0.75, 1.0), rng,
                               (256, 256), 66)
            cv2.imwrite(str(root / f"{INITIALS[number]}.{code}{take}.{serial}.tiff"), face)
