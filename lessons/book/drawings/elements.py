"""The elements of the drawings: one style, and a list of all drawings (`DRAWINGS`).

Coordinates are tenths of an inch from the lower left corner. Blue is frozen, orange is trained, a
dashed line is a temporary array. The colours are Okabe and Ito's, for all kinds of colour vision.
"""

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from minilora.config import ModelConfig

ROOT = Path(__file__).parents[3]
INK = "#222222"
GREY = "#6b6b6b"
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#00785a"
PURPLE = "#a0497a"
KINDS = {  # fill, edge, line style
    "frozen": ("#d6e9f5", BLUE, "-"),
    "trained": ("#fbdcc4", ORANGE, "-"),
    "temporary": ("#ffffff", GREEN, "--"),
    "data": ("#f0f0f0", GREY, "-"),
}
SMOLLM2 = ModelConfig(49152, 576, 1536, 30, 9, 3, 64)


class Drawing(NamedTuple):
    """A function that draws on axes, the size of the picture in inches, and its alt text."""

    draw: object
    width: float
    height: float
    alt: str


DRAWINGS = {}


def drawing(height, alt, width=7.0):
    """Register a function as the drawing of the same name."""

    def register(function):
        DRAWINGS[function.__name__] = Drawing(function, width, height, alt)
        return function

    return register


def drawn(name):
    """Draw, and return the figure."""
    draw, width, height, _ = DRAWINGS[name]
    fig = Figure(figsize=(width, height), facecolor="white")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    ax.axis("off")
    draw(ax)
    return fig


def save(name):
    """Write one drawing as SVG. The same code writes the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": name, "mathtext.fontset": "dejavusans"}):
        file = ROOT / "figures" / "drawings" / f"{name}.svg"
        drawn(name).savefig(file, metadata={"Date": None, "Creator": None})


# ------------------------------------------------------------------------------------ the elements


def text(ax, x, y, words, size=9, color=INK, ha="center", va="center", **options):
    """Write words at a point."""
    ax.text(x, y, words, size=size, color=color, ha=ha, va=va, **options)


def title(ax, x, y, words, size=11, **options):
    """Write a heading."""
    text(ax, x, y, words, size, ha="left", weight="bold", **options)


def rectangle(ax, x, y, w, h, kind="data", **options):
    """Draw a rectangle with its lower left corner at (x, y)."""
    fill, edge, style = KINDS[kind]
    ax.add_patch(Rectangle((x, y), w, h, **{"fc": fill, "ec": edge, "ls": style, **options}))


def box(ax, x, y, w, h, words="", kind="data", size=9):
    """Draw a rectangle with round corners, and words in the middle."""
    fill, edge, style = KINDS[kind]
    shape = FancyBboxPatch(
        (x + 0.3, y + 0.3), w - 0.6, h - 0.6, boxstyle="round,pad=0.3,rounding_size=0.5",
        fc=fill, ec=edge, ls=style, lw=1.2,
    )  # fmt: skip
    ax.add_patch(shape)
    text(ax, x + w / 2, y + h / 2, words, size)


def matrix(ax, x, y, w, h, words, kind, rows="", columns=""):
    """Draw a matrix to scale, with the names of its two sides."""
    rectangle(ax, x, y, w, h, kind, lw=1.4)
    text(ax, x + w / 2, y + h / 2, words, 11)
    text(ax, x - 0.6, y + h / 2, rows, color=GREY, ha="right")
    text(ax, x + w / 2, y + h + 1.1, columns, color=GREY)


def arrow(ax, *points, color=INK, style="-", curve=0.0):
    """Draw an arrow along straight lines."""
    for a, b in pairwise(points[:-1]):
        ax.plot(*zip(a, b), color=color, lw=1.2, ls=style, solid_capstyle="projecting")
    ax.add_patch(FancyArrowPatch(
        *points[-2:], arrowstyle="-|>", mutation_scale=10, color=color, lw=1.2, ls=style,
        shrinkA=0, shrinkB=0, connectionstyle=f"arc3,rad={curve}",
    ))  # fmt: skip


def legend(ax, x, y, step, **kinds):
    """Explain kinds of boxes in a row."""
    for i, (kind, words) in enumerate(kinds.items()):
        rectangle(ax, x + i * step, y - 0.6, 2, 1.3, kind, lw=1.2)
        text(ax, x + i * step + 2.7, y, words, ha="left")


def plot_axes(ax, x, y, w, h, **labels):
    """Add axes for a plot at a place of the drawing."""
    width, height = ax.get_xlim()[1], ax.get_ylim()[1]
    plot = ax.figure.add_axes((x / width, y / height, w / width, h / height))
    plot.spines[["top", "right"]].set_visible(False)
    plot.tick_params(labelsize=8.5)
    plot.set(**labels)
    plot.xaxis.label.set_size(9)
    plot.yaxis.label.set_size(9)
    return plot


def plus(ax, x, y):
    """Draw a sum."""
    text(ax, x, y, "+", 11, bbox={"boxstyle": "circle,pad=0.15", "fc": "w", "ec": INK})


def bits_per_weight(block_size=64):
    """Return the bits of a weight in NF4 with double quantization, without the one offset."""
    return 4 + 8 / block_size + 32 / (block_size * 256)
