"""Draws faces whose person and expression are known, for the sample and for tests.

Identity is the shape of the face, skin, hair, lighting and pose; expression is a set of facial action units (Ekman,
Friesen, "Facial Action Coding System", 1978). Lengths of a face are in units of half its width, from its centre,
y down.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

SHIFT = 4  # OpenCV draws at 1/16 px
SIDES = (-1, 1)  # left and right in the picture

# Full intensity of each unit.
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


def render_face(person: np.random.Generator, expression: str, intensity: float, noise: np.random.Generator,
                size: tuple[int, int], half_width: float) -> np.ndarray:
    """Draw a grey face; uint8 [height, width].

    Args:
        person: generator freshly seeded by the identity: the same seed draws the same person.
        expression: one of `UNITS`.
        intensity: 0 (neutral) to 1 (apex).
        noise: generator of what differs between two pictures of one person.
        size: width and height of the picture in px.
        half_width: half the width of the face in px.
    """
    looks = Looks.draw(person)
    units = dict.fromkeys(("brow_in", "brow_out", "brow_gap", "eye", "cheek", "frown", "wrinkle", "width", "curve",
                           "open", "lift", "thin", "teeth", "one_corner"), 0.0)
    units |= {unit: full * intensity * looks.habits.get(unit, 1.0) for unit, full in UNITS[expression].items()}
    canvas = Canvas.empty(size, half_width, looks.ground, person, noise)
    draw_head(canvas, looks, units)
    draw_shading(canvas, looks, units)
    gaze = noise.uniform(-0.02, 0.02)
    for side in SIDES:
        draw_eye(canvas, looks, units, side, gaze)
        draw_brow(canvas, looks, units, side)
        draw_glasses(canvas, looks, side)
    draw_nose(canvas, looks, units)
    draw_mouth(canvas, looks, units)
    return photograph(canvas, looks, noise)


@dataclasses.dataclass(frozen=True)
class Looks:
    """What a person looks like; grey values from 0 to 255, lengths in half face widths."""

    skin: float
    hair: float
    ground: float
    length: float
    jaw: float
    eye_gap: float
    eye_size: float
    brow_y: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    lip: float
    hair_line: float
    hair_width: float
    light: float
    hair_style: int
    glasses: bool
    beard: bool
    # How strongly this person moves each unit: people smile more or less widely.
    habits: dict[str, float]
    resting_curve: float
    resting_brow: float
    raised_corner: int

    @classmethod
    def draw(cls, person: np.random.Generator) -> Looks:
        """A person of this generator. The order of the draws is part of what a seed means."""
        u = person.uniform
        return cls(
            skin=u(135, 215), hair=u(12, 75), ground=u(60, 150), length=u(1.25, 1.42), jaw=u(0.72, 0.95),
            eye_gap=u(0.40, 0.46), eye_size=u(0.13, 0.165), brow_y=u(-0.42, -0.36), brow_thickness=u(0.045, 0.085),
            nose_length=u(0.36, 0.46), nose_width=u(0.13, 0.2), mouth_y=u(0.66, 0.74), mouth_width=u(0.30, 0.37),
            lip=u(0.04, 0.065), hair_line=u(-0.95, -0.8), hair_width=u(0.9, 1.12), light=u(-0.28, 0.28),
            hair_style=int(person.integers(3)), glasses=person.random() < 0.1, beard=person.random() < 0.15,
            habits={unit: u(0.8, 1.2) for unit in ("brow_in", "brow_out", "eye", "curve", "open", "width")},
            resting_curve=u(-0.02, 0.02), resting_brow=u(-0.02, 0.02),
            raised_corner=1 if person.random() < 0.5 else -1)


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A picture and where the face lies in it: float32 [H, W], centre in px, rotation times scale [2, 2]."""

    image: np.ndarray
    centre: np.ndarray
    turn: np.ndarray
    half_width: float

    @classmethod
    def empty(cls, size: tuple[int, int], half_width: float, ground: float, person: np.random.Generator,
              noise: np.random.Generator) -> Canvas:
        """The background, lit from one side; where the face will be is partly the person's habit and partly noise."""
        width, height = size
        image = np.full((height, width), ground, np.float32)
        image += np.linspace(-20, 20, width, dtype=np.float32)
        centre = np.array([width / 2, height * 0.52]) + noise.uniform(-0.04, 0.04, 2) * half_width
        tilt = np.deg2rad(person.uniform(-3, 3) + noise.uniform(-1.5, 1.5))
        turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * half_width
        return cls(image, centre, turn, half_width)

    def at(self, points) -> np.ndarray:
        """Face coordinates [N, 2] as OpenCV's fixed-point pixels, int32 [N, 2]."""
        return np.round((np.asarray(points, float) @ self.turn.T + self.centre) * 2**SHIFT).astype(np.int32)

    def fill(self, points, value: float) -> None:
        """Paint a polygon."""
        cv2.fillPoly(self.image, [self.at(points)], float(value), cv2.LINE_AA, SHIFT)

    def line(self, points, thickness: float, value: float) -> None:
        """Paint an open line."""
        cv2.polylines(self.image, [self.at(points)], False, float(value), max(1, round(thickness * self.half_width)),
                      cv2.LINE_AA, SHIFT)

    def soften(self, points, value: float, radius: float) -> None:
        """Add light or shade with soft edges, which is what the face detector looks for."""
        add_soft_shape(self.image, self.at(points), value, radius * self.half_width)


def oval(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """An ellipse as a polygon, float64 [40, 2]."""
    angle = np.linspace(0, 2 * np.pi, 40)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], 1)


def draw_head(canvas: Canvas, looks: Looks, units: dict[str, float]) -> None:
    """Hair behind the head, neck, shoulders, the face itself, its hair line and beard."""
    canvas.fill(oval(0, -0.25, 1.05 * looks.hair_width, 1.32 + 0.1 * (looks.hair_style == 2)), looks.hair)
    if looks.hair_style == 1:
        canvas.fill([[-1.1, -0.2], [1.1, -0.2], [1.15, 1.5], [-1.15, 1.5]], looks.hair)
    canvas.fill([[-0.42, 0.8], [0.42, 0.8], [0.5, 1.8], [-0.5, 1.8]], looks.skin * 0.72)
    canvas.fill([[-2.0, 2.4], [-1.5, 1.75], [-0.5, 1.5], [0.5, 1.5], [1.5, 1.75], [2.0, 2.4]], looks.ground * 0.5)
    angle = np.linspace(0, 2 * np.pi, 80)
    below, jaw_drop = np.sin(angle) > 0, 0.25 * units["open"]
    narrowing = np.where(below, 1 - (1 - looks.jaw) * np.sin(angle) ** 2, 1.0)
    height = np.where(below, looks.length - 0.1 + jaw_drop, 1.2)
    canvas.fill(np.stack([0.98 * np.cos(angle) * narrowing, np.sin(angle) * height], 1), looks.skin)
    line = looks.hair_line
    canvas.fill([[-0.95, line + 0.2], [-0.6, line], [0.0, line - 0.05 + 0.08 * looks.hair_style], [0.6, line],
                 [0.95, line + 0.2], [0.8, -1.2], [0, -1.45], [-0.8, -1.2]], looks.hair)
    if looks.beard:
        canvas.soften(oval(0, 1.0, 0.62, 0.3), -45, 0.08)


def draw_shading(canvas: Canvas, looks: Looks, units: dict[str, float]) -> None:
    """Bright forehead, cheeks and bridge of the nose; dark eye sockets and sides."""
    canvas.soften(oval(0, -0.62, 0.55, 0.12), 14, 0.1)
    for side in SIDES:
        canvas.soften(oval(side * looks.eye_gap, -0.16, 0.29, 0.19), -0.30 * looks.skin, 0.07)
        canvas.soften(oval(side * 0.5, 0.3 - 0.05 * units["cheek"], 0.2, 0.16), 18 + 12 * units["cheek"], 0.1)
        canvas.soften(oval(side * 0.95, 0.3, 0.16, 0.7), -0.16 * looks.skin, 0.1)
    canvas.soften(oval(0, -0.05, 0.085, 0.36), 0.16 * looks.skin, 0.045)
    canvas.soften(oval(0, looks.mouth_y + 0.3, 0.2, 0.05), -14, 0.05)


def draw_eye(canvas: Canvas, looks: Looks, units: dict[str, float], side: int, gaze: float) -> None:
    """White, iris and its light within the lids, then the lids."""
    x, y, opening = side * looks.eye_gap, -0.15, looks.eye_size * 0.5 * (1 + 1.25 * units["eye"])
    arc = np.linspace(-1, 1, 17)
    upper = np.stack([x + looks.eye_size * 1.15 * arc, y - opening * (1 - arc**2)], 1)
    lower = np.stack([x + looks.eye_size * 1.15 * arc, y + 0.75 * opening * (1 - arc**2)], 1)
    outline = np.concatenate([upper, lower[::-1]])
    before = canvas.image.copy()
    canvas.fill(outline, min(245.0, looks.skin + 45))
    canvas.fill(oval(x + gaze, y - 0.005, 0.068, 0.068), 30)
    canvas.fill(oval(x + gaze + 0.02, y - 0.03, 0.015, 0.015), 240)
    inside = np.zeros(canvas.image.shape, np.float32)
    cv2.fillPoly(inside, [canvas.at(outline)], 1.0, cv2.LINE_AA, SHIFT)
    canvas.image[:] = canvas.image * inside + before * (1 - inside)
    canvas.line(upper, 0.035, 25)
    canvas.line(lower, 0.012, looks.skin * 0.55)
    canvas.line(upper - [0, 0.055], 0.012, looks.skin * 0.6)


def draw_brow(canvas: Canvas, looks: Looks, units: dict[str, float], side: int) -> None:
    """The brow and, in a frown, the crease beside it."""
    gap, y = units["brow_gap"], looks.brow_y
    inner = [side * (looks.eye_gap - 0.2 + gap), y + 0.03 + looks.resting_brow + units["brow_in"]]
    middle = [side * (looks.eye_gap + 0.03 + gap / 2),
              y - 0.055 + looks.resting_brow + 0.5 * (units["brow_in"] + units["brow_out"])]
    outer = [side * (looks.eye_gap + 0.27), y + 0.03 + looks.resting_brow + units["brow_out"]]
    canvas.line([inner, middle, outer], looks.brow_thickness, min(looks.hair, 60))
    if units["frown"]:
        canvas.line([[side * 0.06, -0.46], [side * 0.045, -0.3]], 0.022, looks.skin * (1 - 0.4 * units["frown"]))


def draw_glasses(canvas: Canvas, looks: Looks, side: int) -> None:
    """One glass of those who wear them."""
    if looks.glasses:
        canvas.line(oval(side * looks.eye_gap, -0.15, 0.27, 0.2), 0.025, 40)


def draw_nose(canvas: Canvas, looks: Looks, units: dict[str, float]) -> None:
    """Wings and nostrils, the wrinkles of disgust and the cheek's fold of a smile."""
    wing, tip = looks.nose_width, -0.15 + looks.nose_length + 0.08
    canvas.line([[-wing, tip - 0.04], [-wing * 0.5, tip + 0.03], [0, tip + 0.01], [wing * 0.5, tip + 0.03],
                 [wing, tip - 0.04]], 0.025, looks.skin * 0.5)
    for side in SIDES:
        canvas.fill(oval(side * wing * 0.55, tip, 0.04, 0.022), 40)
        if units["wrinkle"]:
            dark = looks.skin * (1 - 0.45 * units["wrinkle"])
            for y in (-0.1, -0.1 + 0.07, -0.1 + 0.07 * 2):
                canvas.line([[side * 0.02, y], [side * 0.13, y - 0.06]], 0.018, dark)
            canvas.line([[side * 0.2, tip - 0.08], [side * 0.36, tip + 0.18]], 0.025, dark)
        if units["cheek"]:
            canvas.line([[side * 0.24, tip - 0.02], [side * 0.42, looks.mouth_y - 0.1],
                         [side * 0.46, looks.mouth_y + 0.04]], 0.022, looks.skin * (1 - 0.3 * units["cheek"]))


def draw_mouth(canvas: Canvas, looks: Looks, units: dict[str, float]) -> None:
    """Open lips with what is between them, or closed ones; contempt raises one corner."""
    width = looks.mouth_width + units["width"]
    across = np.linspace(-1, 1, 25)
    raised = units["one_corner"] * np.clip(across * looks.raised_corner, 0, 1) ** 2
    y = looks.mouth_y + (-(looks.resting_curve + units["curve"]) * (across**2 - 0.35) - raised)
    rounded = np.sqrt(1 - across**2)
    upper = np.stack([width * across, y - (0.35 * units["open"] + units["lift"]) * rounded], 1)
    lower = np.stack([width * across, y + 0.75 * units["open"] * rounded], 1)
    thickness = looks.lip * (1 - units["thin"]) + 0.012
    if units["open"] > 0.015:
        draw_open_lips(canvas, upper, lower, thickness, looks.skin * 0.52, bool(units["teeth"]))
    else:
        swell = np.stack([0 * across, thickness * rounded], 1)
        canvas.fill(np.concatenate([upper - swell, (lower + 1.3 * swell)[::-1]]), looks.skin * 0.52)
        canvas.line(upper, 0.02, 35)
    if units["one_corner"]:
        x, top = looks.raised_corner * (width + 0.06), looks.mouth_y - units["one_corner"]
        canvas.line([[x, top - 0.1], [x + looks.raised_corner * 0.03, top + 0.08]], 0.022, looks.skin * 0.52)


def draw_open_lips(canvas: Canvas, upper: np.ndarray, lower: np.ndarray, thickness: float, red: float,
                   teeth: bool) -> None:
    """The dark of the mouth, teeth, and the two lips; float64 [25, 2] each."""
    canvas.fill(np.concatenate([upper, lower[::-1]]), 25)
    if teeth:
        canvas.fill(np.concatenate([upper, (upper + 0.55 * (lower - upper))[::-1]]), 235)
    canvas.line(upper, thickness, red)
    canvas.line(lower, thickness * 1.2, red)


def photograph(canvas: Canvas, looks: Looks, noise: np.random.Generator) -> np.ndarray:
    """The picture that a camera takes: out of focus a little, lit from one side, with noise; uint8 [H, W]."""
    image = cv2.GaussianBlur(canvas.image, (0, 0), 0.008 * canvas.half_width + 0.3)
    ramp = (np.arange(image.shape[1], dtype=np.float32) - canvas.centre[0]) / canvas.half_width
    image *= 1 + looks.light * np.clip(ramp, -1.5, 1.5) * 0.5
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
