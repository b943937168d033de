"""Draws a small synthetic CK+ and JAFFE in their true layouts, since licences forbid shipping the real ones.

Identity is the shape of the face, skin, hair, lighting and pose; expression is a set of facial action units (Ekman,
Friesen, "Facial Action Coding System", 1978) whose intensity grows along a sequence.
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
from fer_ray.data.layouts import jaffe
from fer_ray.progress import Progress

VERSION = 1
CODES = {"anger": 1, "contempt": 2, "disgust": 3, "fear": 4, "happiness": 5, "sadness": 6, "surprise": 7}
JAFFE_CODES = {v: k for k, v in jaffe.CODES.items()}
INITIALS = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM", "UY", "YM")
SHIFT = 4  # OpenCV draws at 1/16 px

# Full intensity of each unit, lengths in half face widths; y points down.
UNITS = {
    "neutral": {},
    "anger": {"brow_in": 0.17, "brow_out": 0.0, "brow_gap": -0.09, "eye": -0.25, "width": -0.10, "curve": -0.03,
              "thin": 0.7, "frown": 1.0},
    "contempt": {"one_corner": 0.24, "eye": -0.12, "width": 0.03},
    "disgust": {"brow_in": 0.09, "brow_out": 0.06, "eye": -0.5, "wrinkle": 1.0, "curve": -0.10, "open": 0.11,
                "lift": 0.10, "teeth": 1.0},
    "fear": {"brow_in": -0.16, "brow_out": -0.03, "brow_gap": -0.05, "eye": 0.45, "width": 0.16, "open": 0.13,
             "curve": -0.06},
    "happiness": {"curve": 0.20, "width": 0.20, "open": 0.15, "teeth": 1.0, "eye": -0.25, "cheek": 1.0},
    "sadness": {"brow_in": -0.15, "brow_out": 0.09, "eye": -0.35, "curve": -0.17, "width": -0.05},
    "surprise": {"brow_in": -0.20, "brow_out": -0.20, "eye": 0.6, "open": 0.42, "width": -0.14},
}


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


def render_face(person: np.random.Generator, expression: str, intensity: float, noise: np.random.Generator,
                size: tuple[int, int], half_width: float) -> np.ndarray:
    """Draw a grey face; uint8 [height, width].

    Lengths of the face are in units of half its width, from its centre, y down.

    Args:
        person: generator freshly seeded by the identity: the same seed draws the same person.
        expression: one of `UNITS`.
        intensity: 0 (neutral) to 1 (apex).
        noise: generator of what differs between two pictures of one person.
        size: width and height of the picture in px.
        half_width: half the width of the face in px.
    """
    u, width, height = person.uniform, *size
    skin, hair, ground = u(135, 215), u(12, 75), u(60, 150)
    long, jaw, eye_gap, eye_size = u(1.25, 1.42), u(0.72, 0.95), u(0.40, 0.46), u(0.13, 0.165)
    brow_y, brow_thick, nose_long, nose_wide = u(-0.42, -0.36), u(0.045, 0.085), u(0.36, 0.46), u(0.13, 0.2)
    mouth_y, mouth_wide, lip = u(0.66, 0.74), u(0.30, 0.37), u(0.04, 0.065)
    hair_line, hair_sides, light, style = u(-0.95, -0.8), u(0.9, 1.12), u(-0.28, 0.28), person.integers(3)
    glasses, beard = person.random() < 0.1, person.random() < 0.15
    habits = {k: u(0.8, 1.2) for k in ("brow_in", "brow_out", "eye", "curve", "open", "width")}
    rest_curve, rest_brow = u(-0.02, 0.02), u(-0.02, 0.02)
    # Strength of each action unit in this picture: people smile more or less widely.
    a = {unit: full * intensity * habits.get(unit, 1.0) for unit, full in UNITS[expression].items()}
    side = 1 if person.random() < 0.5 else -1

    image = np.full((height, width), ground, np.float32)
    image += np.linspace(-20, 20, width, dtype=np.float32)
    centre = np.array([width / 2, height * 0.52]) + noise.uniform(-0.04, 0.04, 2) * half_width
    tilt = np.deg2rad(person.uniform(-3, 3) + noise.uniform(-1.5, 1.5))
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * half_width

    def at(points) -> np.ndarray:
        """Face coordinates -> OpenCV's fixed-point pixels."""
        return np.round((np.asarray(points, float) @ turn.T + centre) * 2**SHIFT).astype(np.int32)

    def fill(points, value: float) -> None:
        cv2.fillPoly(image, [at(points)], float(value), cv2.LINE_AA, SHIFT)

    def line(points, thick: float, value: float) -> None:
        cv2.polylines(image, [at(points)], False, float(value), max(1, round(thick * half_width)), cv2.LINE_AA, SHIFT)

    def oval(x, y, rx, ry, n=40) -> np.ndarray:
        t = np.linspace(0, 2 * np.pi, n)
        return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], 1)

    def soften(area, value: float, radius: float) -> None:
        """Shading that the cascade looks for."""
        add_soft_shape(image, at(area), value, radius * half_width)

    # hair behind, neck and shoulders, face
    fill(oval(0, -0.25, 1.05 * hair_sides, 1.32 + 0.1 * (style == 2)), hair)
    if style == 1:
        fill([[-1.1, -0.2], [1.1, -0.2], [1.15, 1.5], [-1.15, 1.5]], hair)
    fill([[-0.42, 0.8], [0.42, 0.8], [0.5, 1.8], [-0.5, 1.8]], skin * 0.72)
    fill([[-2.0, 2.4], [-1.5, 1.75], [-0.5, 1.5], [0.5, 1.5], [1.5, 1.75], [2.0, 2.4]], ground * 0.5)
    jaw_drop = 0.25 * a.get("open", 0)
    t = np.linspace(0, 2 * np.pi, 80)
    narrow = np.where(np.sin(t) > 0, 1 - (1 - jaw) * np.sin(t) ** 2, 1.0)
    outline = np.stack([0.98 * np.cos(t) * narrow, np.sin(t) * np.where(np.sin(t) > 0, long - 0.1 + jaw_drop, 1.2)], 1)
    fill(outline, skin)
    top = outline[np.sin(t) < hair_line + 0.35]
    fill(np.concatenate([top[top[:, 1].argsort()][:0], [[-0.95, hair_line + 0.2], [-0.6, hair_line],
                         [0.0, hair_line - 0.05 + 0.08 * style], [0.6, hair_line], [0.95, hair_line + 0.2],
                         [0.8, -1.2], [0, -1.45], [-0.8, -1.2]]]), hair)
    if beard:
        soften(oval(0, 1.0, 0.62, 0.3), -45, 0.08)
    # forehead, cheeks and nose bridge are bright, eye sockets dark
    soften(oval(0, -0.62, 0.55, 0.12), 14, 0.1)
    for s in (-1, 1):
        soften(oval(s * eye_gap, -0.16, 0.29, 0.19), -0.30 * skin, 0.07)
        soften(oval(s * 0.5, 0.3 - 0.05 * a.get("cheek", 0), 0.2, 0.16), 18 + 12 * a.get("cheek", 0), 0.1)
        soften(oval(s * 0.95, 0.3, 0.16, 0.7), -0.16 * skin, 0.1)
    soften(oval(0, -0.05, 0.085, 0.36), 0.16 * skin, 0.045)
    soften(oval(0, mouth_y + 0.3, 0.2, 0.05), -14, 0.05)

    gaze = noise.uniform(-0.02, 0.02)
    for s in (-1, 1):  # eyes and brows
        x, y, opening = s * eye_gap, -0.15, eye_size * 0.5 * (1 + 1.25 * a.get("eye", 0))
        arc = np.linspace(-1, 1, 17)
        upper = np.stack([x + eye_size * 1.15 * arc, y - opening * (1 - arc**2)], 1)
        lower = np.stack([x + eye_size * 1.15 * arc, y + 0.75 * opening * (1 - arc**2)], 1)
        eye = np.concatenate([upper, lower[::-1]])
        before = image.copy()
        fill(eye, min(245.0, skin + 45))
        fill(oval(x + gaze, y - 0.005, 0.068, 0.068), 30)
        fill(oval(x + gaze + 0.02, y - 0.03, 0.015, 0.015), 240)
        inside = np.zeros(image.shape, np.float32)
        cv2.fillPoly(inside, [at(eye)], 1.0, cv2.LINE_AA, SHIFT)
        image[:] = image * inside + before * (1 - inside)
        line(upper, 0.035, 25)
        line(lower, 0.012, skin * 0.55)
        line(upper - [0, 0.055], 0.012, skin * 0.6)
        gap, drop = a.get("brow_gap", 0), rest_brow
        inner = [s * (eye_gap - 0.2 + gap), brow_y + 0.03 + drop + a.get("brow_in", 0)]
        middle = [s * (eye_gap + 0.03 + gap / 2), brow_y - 0.055 + drop
                  + 0.5 * (a.get("brow_in", 0) + a.get("brow_out", 0))]
        outer = [s * (eye_gap + 0.27), brow_y + 0.03 + drop + a.get("brow_out", 0)]
        line([inner, middle, outer], brow_thick, min(hair, 60))
        if a.get("frown"):
            line([[s * 0.06, -0.46], [s * 0.045, -0.3]], 0.022, skin * (1 - 0.4 * a["frown"]))
        if glasses:
            line(oval(x, y, 0.27, 0.2), 0.025, 40)
    # nose
    tip = -0.15 + nose_long + 0.08
    line([[-nose_wide, tip - 0.04], [-nose_wide * 0.5, tip + 0.03], [0, tip + 0.01], [nose_wide * 0.5, tip + 0.03],
          [nose_wide, tip - 0.04]], 0.025, skin * 0.5)
    for s in (-1, 1):
        fill(oval(s * nose_wide * 0.55, tip, 0.04, 0.022), 40)
        if a.get("wrinkle"):
            dark = skin * (1 - 0.45 * a["wrinkle"])
            for k in range(3):
                line([[s * 0.02, -0.1 + 0.07 * k], [s * 0.13, -0.16 + 0.07 * k]], 0.018, dark)
            line([[s * 0.2, tip - 0.08], [s * 0.36, tip + 0.18]], 0.025, dark)
        if a.get("cheek"):
            line([[s * 0.24, tip - 0.02], [s * 0.42, mouth_y - 0.1], [s * 0.46, mouth_y + 0.04]], 0.022,
                 skin * (1 - 0.3 * a["cheek"]))
    # mouth
    w, curve, opening = mouth_wide + a.get("width", 0), rest_curve + a.get("curve", 0), a.get("open", 0)
    t = np.linspace(-1, 1, 25)
    corner = -curve * (t**2 - 0.35) - a.get("one_corner", 0) * np.clip(t * side, 0, 1) ** 2
    round_off = np.sqrt(1 - t**2)
    upper = np.stack([w * t, mouth_y + corner - (0.35 * opening + a.get("lift", 0)) * round_off], 1)
    lower = np.stack([w * t, mouth_y + corner + 0.75 * opening * round_off], 1)
    thick = lip * (1 - a.get("thin", 0)) + 0.012
    red = skin * 0.52
    if opening > 0.015:
        fill(np.concatenate([upper, lower[::-1]]), 25)
        if a.get("teeth"):
            fill(np.concatenate([upper, (upper + 0.55 * (lower - upper))[::-1]]), 235)
        line(upper, thick, red)
        line(lower, thick * 1.2, red)
    else:
        fill(np.concatenate([upper - np.stack([0 * t, thick * round_off], 1),
                             (lower + np.stack([0 * t, 1.3 * thick * round_off], 1))[::-1]]), red)
        line(upper, 0.02, 35)
    if a.get("one_corner"):
        x = side * (w + 0.06)
        line([[x, mouth_y - a["one_corner"] - 0.1], [x + side * 0.03, mouth_y - a["one_corner"] + 0.08]], 0.022, red)

    image = cv2.GaussianBlur(image, (0, 0), 0.008 * half_width + 0.3)
    ramp = (np.arange(width, dtype=np.float32) - centre[0]) / half_width
    image *= 1 + light * np.clip(ramp, -1.5, 1.5) * 0.5
    image *= np.float32(noise.uniform(0.93, 1.07))
    image += noise.normal(0, 3.0, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def add_soft_shape(image: np.ndarray, points: np.ndarray, value: float, sigma: float) -> None:
    """Add a value to the pixels of a polygon, with edges blurred by `sigma` px.

    Only the polygon's surroundings are blurred, as far as the blur reaches. That is a seventh of the work that the
    whole picture takes, and the same to the last bit.

    Args:
        image: float32 [H, W], changed in place.
        points: int32 [N, 2], the polygon's corners (x, y) in units of 1/16 px.
        value: what is added.
        sigma: standard deviation of the Gaussian blur in px.
    """
    mask = np.zeros_like(image)
    cv2.fillPoly(mask, [points], 1.0, cv2.LINE_AA, SHIFT)
    reach = round(4 * sigma) + 8  # OpenCV's kernel for float32 ends at 4 sigma; smooth edges are some pixels wide
    left, top = np.maximum(points.min(0) // 2**SHIFT - reach, 0)
    right, bottom = np.maximum(points.max(0) // 2**SHIFT + reach, 0)
    # Columns in multiples of 16: OpenCV rounds otherwise where its vector instructions leave a rest of a row.
    around = slice(top, bottom), slice(left // 16 * 16, -(-right // 16) * 16)
    if mask[around].size:
        image[around] += cv2.GaussianBlur(mask[around], (0, 0), sigma) * value


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
