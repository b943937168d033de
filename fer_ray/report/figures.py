"""What all figures (matplotlib) share: colours, pictures in a grid, and the way into a file or a page."""

from __future__ import annotations

import base64
import io

import numpy as np

SPLITS = ("train", "val", "test")
BLUE, ORANGE, GREY = "#2f5d8a", "#d1772e", "#8a8f98"
# of each expression, wherever several are drawn together
COLOURS = {"anger": "#d62f2f", "contempt": "#8a5a2b", "disgust": "#3f8f3a", "fear": "#7b4bb7", "happiness": "#e8a513",
           "neutral": "#7a828c", "sadness": "#2f6fb7", "surprise": "#e0701f"}


def png(figure) -> bytes:
    """A figure as a PNG file."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text():  # of a name: matplotlib would read it as a formula
            text.set_parse_math(False)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    return sink.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG file as a picture inside the page."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def beside_each_other(pictures: list[tuple[bytes, float]]) -> bytes:
    """PNG files, each with its relative width, side by side as one."""
    import matplotlib.image as image
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, len(pictures), width_ratios=[width for _, width in pictures])
    for axis, (picture, _) in zip(axes, pictures, strict=True):
        axis.imshow(image.imread(io.BytesIO(picture)))
        axis.axis("off")
    return png(figure)


def tiles(axis, rows: list[list[np.ndarray]], gap: int = 8) -> int:
    """Show images as a grid on one axis: an axis for each would take seconds to draw.

    Args:
        axis: of matplotlib.
        rows: of uint8 [S, S(, 3)] images, all of one size.
        gap: white pixels between them.

    Returns: the distance between the left edges of two neighbours, in px.
    """
    side = rows[0][0].shape[0] + gap
    picture = np.full((side * len(rows), side * max(map(len, rows)), 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture[y * side : (y + 1) * side - gap, x * side : (x + 1) * side - gap] = np.atleast_3d(image)
    axis.imshow(picture)
    axis.set_xticks([]), axis.set_yticks([])
    axis.spines[:].set_visible(False)
    return side


def integer_axis(axis) -> None:
    """Let the x axis have ticks at whole numbers only, such as epochs."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
