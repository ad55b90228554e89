"""Pictures of letters, drawn from the typefaces that matplotlib ships.

Each letter is rotated and moved a little, and has noise; `shifted` moves the pictures again.
"""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font

from minilora.lessons.helpers import convnet

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SIDE = 16  # pixels
TYPEFACES = {
    "sans": "DejaVuSans", "bold": "DejaVuSans-Bold", "serif": "DejaVuSerif",
    "mono": "DejaVuSansMono", "roman": "cmr10", "italic": "cmti10", "times": "STIXGeneral",
    "slanted": "STIXGeneralItalic",
}  # fmt: skip


@lru_cache
def _font(typeface):
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return FT2Font(str(folder / f"{TYPEFACES[typeface]}.ttf"))


def letter(char, typeface, size, angle):
    """Return the glyph as ink in [0, 1], (height, width); size: pixels per em, angle: degrees."""
    font = _font(typeface)
    font.set_size(size, 72)
    font.set_text(char, angle)
    font.draw_glyphs_to_bitmap()
    return np.asarray(font.get_image(), "f4") / 255


def draw(typeface, n, seed, noise=0.1, ink=1.0, paper=0.0):
    """Return n pictures (n, SIDE, SIDE), and their labels, in the order of the alphabet.

    A pixel is paper + (ink − paper)·glyph + noise.
    """
    rng = np.random.default_rng([3, seed, sorted(TYPEFACES).index(typeface)])
    labels = np.arange(n) % len(LETTERS)
    glyphs = np.zeros((n, SIDE, SIDE), "f4")
    for glyph, label in zip(glyphs, labels):
        g = letter(LETTERS[label], typeface, rng.uniform(13, 17), rng.uniform(-10, 10))
        g = g[:SIDE, :SIDE]
        room = [SIDE - side for side in g.shape]
        y, x = (rng.integers(n // 4, n - n // 4 + 1) for n in room)  # near the middle
        glyph[y : y + g.shape[0], x : x + g.shape[1]] = g
    pictures = paper + (ink - paper) * glyphs + noise * rng.standard_normal(glyphs.shape)
    return pictures.astype("f4"), labels


def shifted(pictures, rng, by=1):
    """Move each picture by up to `by` pixels, vertically and horizontally."""
    wide = np.pad(pictures, ((0, 0), (by, by), (by, by)), mode="edge")
    rows, columns = rng.integers(0, 2 * by + 1, (2, len(pictures)))
    moved = [p[i : i + SIDE, j : j + SIDE] for p, i, j in zip(wide, rows, columns)]
    return np.stack(moved)


@lru_cache
def reader(seed=0, iters=400):
    """Return (base, running) of a network that reads `sans`: see `convnet.pretrain`."""
    return convnet.pretrain(draw("sans", 100 * len(LETTERS), seed), len(LETTERS), seed, iters)
