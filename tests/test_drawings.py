"""The drawings: each is stored, and in a lesson or a page. They compute with the package."""

import io
import re
from importlib import import_module
from pathlib import Path

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lessons.book.drawings.elements import DRAWINGS, drawn

ROOT = Path(__file__).parents[1]
for path in sorted(ROOT.glob("lessons/book/drawings/[a-z]*.py")):
    import_module(f"lessons.book.drawings.{path.stem}")  # it adds its own to DRAWINGS
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
