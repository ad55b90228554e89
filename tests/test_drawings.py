"""The drawings: their numbers are the package's, and each of them is in a lesson or a page."""

import io
import re
from importlib import import_module
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from numpy.testing import assert_array_equal

from minilora import layers, nf4

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "lessons" / "book" / "drawings"
NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
MODULES = {name: import_module(f"lessons.book.drawings.{name}") for name in NAMES}
DRAWINGS, drawn = MODULES["elements"].DRAWINGS, MODULES["elements"].drawn
PAGES = [ROOT / "README.md", *ROOT.glob("lessons/**/*.md"), *ROOT.glob("lessons/**/*.py")]
TEXT = " ".join(path.read_text("utf-8") for path in PAGES).replace("\n# ", " ").replace("\n", " ")
SHOWN = re.findall(r"!\[([^\]]*)\]\([./]*figures/drawings/(\w+)\.", TEXT)  # (alt text, name)
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")


def count_elements(svg):
    """Return how often an SVG has each kind of element: other versions of matplotlib round more."""
    return {tag: svg.count(f"<{tag} ") for tag in ("path", "use", "g")}


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_stored_and_shown_and_agrees_with_its_alt_texts(name):
    svg = io.StringIO()
    with matplotlib.rc_context({"mathtext.fontset": "dejavusans"}):
        fig = drawn(name)
        fig.savefig(svg, format="svg")
    stored = ROOT / "figures" / "drawings" / f"{name}.svg"
    assert count_elements(svg.getvalue()) == count_elements(stored.read_text("utf-8"))

    alts = [alt for alt, shown in SHOWN if shown == name]
    assert alts
    numbers = NUMBER.findall(" ".join(text.get_text() for text in fig.findobj(Text)))
    for alt in [DRAWINGS[name].alt, *alts]:
        assert set(NUMBER.findall(alt)) <= set(numbers), alt

    renderer = FigureCanvasAgg(fig).get_renderer()
    whole = fig.bbox.padded(1)
    for text in (text for axes in fig.axes for text in axes.texts if text.get_text().strip()):
        box = text.get_window_extent(renderer)
        assert (whole.min <= box.min).all() and (box.max <= whole.max).all(), text.get_text()


def test_the_number_line_has_the_values_of_nf4():
    plot = drawn("nf4_number_line").axes[1]
    lines = [line.get_xdata()[0] for line in plot.lines if list(line.get_ydata()) == [0, 0.45]]
    assert_array_equal(np.float32(lines), nf4.NF4)
    weights, absmax = MODULES["few_bits"].block_of_eight()
    q = nf4.quantize(np.tile(weights, 2), 16)
    ends = [note.xy[0] for note in plot.texts if hasattr(note, "arrow_patch")]
    assert_array_equal(np.float32(ends), nf4.NF4[nf4.unpack_4bit(q.codes)[:8]])
    assert absmax == q.absmax[0]


def test_the_bytes_are_those_of_a_quantized_tensor():
    rng = np.random.default_rng(0)
    q = nf4.quantize(rng.standard_normal((1536, 576)).astype(np.float32), 64, double_quant=True)
    texts = [text.get_text() for text in drawn("double_quantized_bytes").findobj(Text)]
    double = q.stored_absmax
    sizes = [part.nbytes for part in (q.codes, double.codes, double.nested_absmax)]
    assert {f"{size:,} bytes" for size in (*sizes, 4)} <= {*texts}
    total = f"{q.nbytes:,} bytes, {8 * q.nbytes / (1536 * 576):.3f} bits per weight"
    assert any(text.startswith(total) for text in texts)


def test_the_masks_are_those_of_attention():
    cells = drawn("masks").axes[0].patches
    dark = [cell.get_facecolor()[0] < 0.5 for cell in cells]
    t = np.arange(10)
    starts = np.stack([0 * t, np.where(t < 6, 0, 6), np.maximum(0, t - 3)])
    assert_array_equal(np.reshape(dark, (3, 10, 10)), layers.attention_mask(starts, 10))
