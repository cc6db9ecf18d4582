"""Figures as PNG files that are small enough to be kept beside their pages."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

plt.switch_backend("Agg")  # figures are only written: no window, and no display needed
DPI = 100
COLOURS = 64  # of the palette: lines of a dozen colours and the shades of their anti-aliased edges


def to_png(figure: Figure, dpi: int = DPI) -> bytes:
    """The drawn figure, at ``dpi`` pixels an inch; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    return with_palette(Image.open(buffer))


def with_palette(image: Image.Image) -> bytes:
    """A PNG of the image in ``COLOURS`` colours, about a third of the size of one in 24-bit colour."""
    # Without dithering, whose noise in flat areas would cost more bytes than the palette saves.
    reduced = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def panels(count: int, height: float = 3.8) -> tuple[Figure, list[plt.Axes]]:
    """A row of axes with grids; ``height`` in inches."""
    figure, axes = plt.subplots(1, count, figsize=(5.2 * count, height), layout="constrained", squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, list(axes[0])
