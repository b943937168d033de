"""What all figures (matplotlib) share: colours, pictures in a grid, and the way into a file or a page."""

from __future__ import annotations

import base64
import io

import numpy as np

SPLITS = ("train", "val", "test")
BLUE, ORANGE, GREY = "#2f5d8a", "#d1772e", "#8a8f98"
MIN_COLUMNS = 4  # of a grid of pictures: a single one would be stretched to the width of the page
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


def captioned(rows: list[list[tuple[np.ndarray, str]]], side: float, fontsize: int = 7):
    """Rows of pictures, each below its caption, as a figure; on one axis, as `tiles` and for the same reason.

    Args:
        rows: of uint8 [H, W(, 3)] pictures of any size, each with its caption, which may have several lines.
        side: of the longer side of each picture on the page, in inches.
        fontsize: of the captions, in points.
    """
    from matplotlib.figure import Figure

    gap, line = 0.08, 1.3 * fontsize / 72
    captions = [max((caption.count("\n") + 1 for _, caption in row if caption), default=0) * line for row in rows]
    width = max(MIN_COLUMNS, *map(len, rows)) * (side + gap) + gap
    height = sum(captions) + len(rows) * (side + gap) + gap
    figure = Figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)  # in inches
    axis.axis("off")
    bottom = 0.0
    for row, caption_height in zip(rows, captions, strict=True):
        bottom += gap + caption_height + side
        for column, (picture, caption) in enumerate(row):
            high, wide = (side * length / max(picture.shape[:2]) for length in picture.shape[:2])
            middle = gap + column * (side + gap) + side / 2
            axis.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect="auto",
                        extent=(middle - wide / 2, middle + wide / 2, bottom, bottom - high))
            axis.text(middle, bottom - high - gap / 3, caption, ha="center", va="bottom", fontsize=fontsize)
    return figure


def integer_axis(axis) -> None:
    """Let the x axis have ticks at whole numbers only, such as epochs."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
