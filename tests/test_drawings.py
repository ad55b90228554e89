"""The drawings: their numbers are the package's, and each of them is in a lesson or a page."""

import re
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from minilora import layers, nf4
from minilora.config import ModelConfig
from minilora.formats import hf_folder

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "lessons" / "drawings"
STORED = ROOT / "figures" / "drawings"
NAMES = re.findall(r"^@drawing\([^@]*?^def (\w+)", "".join(
    path.read_text("utf-8") for path in sorted(FOLDER.glob("*.py"))), re.MULTILINE)  # fmt: skip


@pytest.fixture(scope="module")
def modules():
    """Return the modules of lessons/drawings by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        names = (
            "elements", "low_rank", "few_bits", "training", "optimizer", "outcomes",
        )  # fmt: skip
        found = {name: __import__(name) for name in names}
        yield found
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def drawn(modules, name):
    """Draw, and return the figure."""
    draw, width, height, _ = modules["elements"].DRAWINGS[name]
    fig = Figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 10 * width), ylim=(0, 10 * height))
    ax.axis("off")
    draw(ax)
    return fig


def words(fig):
    """Return the words of all texts of a figure."""
    return [text.get_text() for axes in fig.axes for text in axes.texts]


def test_there_are_many_drawings_and_each_has_an_alt_text(modules):
    drawings = modules["elements"].DRAWINGS
    assert sorted(NAMES) == sorted(drawings) and len(drawings) >= 12
    assert all(len(drawing.alt) > 60 for drawing in drawings.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_drawing_is_stored_and_shown(name):
    assert (STORED / f"{name}.svg").exists()
    pages = [ROOT / "README.md", *ROOT.glob("lessons/*.md"), *ROOT.glob("lessons/[0-9]*.py")]
    assert any(f"figures/drawings/{name}." in page.read_text("utf-8") for page in pages)


NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")


def alt_texts(name):
    """Return the texts that the pages show for a drawing to readers who cannot see it."""
    found = []
    for page in [ROOT / "README.md", *ROOT.glob("lessons/*.md"), *ROOT.glob("lessons/[0-9]*.py")]:
        text = page.read_text("utf-8").replace("\n# ", " ").replace("\n", " ")
        found += re.findall(rf"!\[([^\]]*)\]\([./]*figures/drawings/{name}\.", text)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_alt_texts_are_in_the_drawing(modules, name):
    fig = drawn(modules, name)
    FigureCanvasAgg(fig).draw()  # the labels of the ticks
    shown = NUMBER.findall(" ".join(text.get_text() for text in fig.findobj(Text)))
    for alt in [modules["elements"].DRAWINGS[name].alt, *alt_texts(name)]:
        assert set(NUMBER.findall(alt)) <= set(shown), alt


@pytest.mark.parametrize("name", NAMES)
def test_texts_do_not_leave_the_drawing(modules, name):
    fig = drawn(modules, name)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    whole = fig.bbox.padded(1)
    for axes in fig.axes:
        for text in (text for text in axes.texts if text.get_text().strip()):
            box = text.get_window_extent(canvas.get_renderer())
            inside = whole.x0 <= box.x0 and whole.y0 <= box.y0 and box.x1 <= whole.x1
            assert inside and box.y1 <= whole.y1, text.get_text()


def test_a_drawing_is_in_at_most_two_lessons():
    shown = Counter()
    for lesson in ROOT.glob("lessons/[0-9]*.py"):
        text = lesson.read_text("utf-8")
        shown.update(set(re.findall(r"\]\(\.\./figures/drawings/(\w+)\.svg\)", text)))
    assert {name for name, count in shown.items() if count > 2} == set()


def test_the_first_step_of_adam_moves_each_entry_by_the_rate(modules):
    bars = drawn(modules, "first_step_of_adam").axes[2].patches
    gradients = drawn(modules, "first_step_of_adam").axes[1].patches
    heights = [bar.get_height() for bar in bars]
    # m̂/(√v̂ + ε) = |g|/(|g| + 1e-8): a thousandth below 1 for the smallest gradient, 1e-5
    np.testing.assert_allclose(np.abs(heights), 1, rtol=1.1e-3)
    for bar, gradient in zip(bars, gradients):
        assert bar.get_facecolor() == gradient.get_facecolor()


def test_the_budgets_are_those_of_the_sweep(modules):
    from sweeps import targets

    for ranks in targets.SPENT.values():
        assert modules["optimizer"].budget_of(ranks) == pytest.approx(targets.BUDGET, rel=0.02)
    assert f"{targets.BUDGET:,}" in words(drawn(modules, "one_budget"))


def test_the_parameters_of_the_drawings_are_those_of_the_models(modules):
    found = " ".join(words(drawn(modules, "llama_65b")))
    assert "65.3 billion" in found  # lesson 1b asserts 65,285,660,672


def test_temperature_changes_no_order_and_the_likeliest_most(modules):
    heights = [
        [bar.get_height() for bar in axes.patches]
        for axes in drawn(modules, "temperature").axes[1:]
    ]
    for p in heights:
        assert sum(p) == pytest.approx(1) and p == sorted(p, reverse=True)
    assert heights[0][0] > heights[1][0] > heights[2][0]


def test_the_gaps_are_distances_to_the_values_of_nf4(modules):
    plot = drawn(modules, "gaps_of_codes").axes[1]
    edge = plot.collections[0].get_paths()[0].vertices
    x, height = edge[:, 0], edge[:, 1]
    at = np.abs(x[:, None] - nf4.NF4).min(axis=1)
    outline = (height > 0) & (np.abs(x) < 1)
    np.testing.assert_allclose(height[outline], at[outline], atol=1e-6)


def test_the_number_line_has_the_values_of_nf4(modules):
    plot = drawn(modules, "nf4_number_line").axes[1]
    lines = [line.get_xdata()[0] for line in plot.lines if list(line.get_ydata()) == [0, 0.45]]
    np.testing.assert_array_equal(np.float32(lines), nf4.NF4)
    weights, absmax = modules["few_bits"].block_of_eight()
    codes = nf4.unpack_4bit(nf4.quantize(np.tile(weights, 2), 16).codes)[:8]
    ends = [note.xy[0] for note in plot.texts if hasattr(note, "arrow_patch")]
    np.testing.assert_array_equal(np.float32(ends), nf4.NF4[codes])
    assert absmax == nf4.quantize(np.tile(weights, 2), 16).absmax[0]


def test_the_bytes_are_those_of_a_quantized_tensor(modules):
    rng = np.random.default_rng(0)
    q = nf4.quantize(rng.standard_normal((1536, 576)).astype(np.float32), 64, double_quant=True)
    found = words(drawn(modules, "double_quantized_bytes"))
    double = q.stored_absmax
    for size in (q.codes.nbytes, double.codes.nbytes, double.nested_absmax.nbytes, 4):
        assert f"{size:,} bytes" in found
    total = f"{q.nbytes:,} bytes, {8 * q.nbytes / (1536 * 576):.3f} bits per weight"
    assert any(text.startswith(total) for text in found)
    bits = modules["elements"].bits_per_weight()
    assert 8 * (q.nbytes - 4) / (1536 * 576) == pytest.approx(bits)


def test_the_masks_are_those_of_attention(modules):
    cells = drawn(modules, "masks").axes[0].patches
    dark = [cell.get_facecolor()[0] < 0.5 for cell in cells]
    t = np.arange(10)
    starts = (0 * t, np.where(t < 6, 0, 6), np.maximum(0, t - 3))
    masks = [layers.attention_mask(first[None], 10)[0] for first in starts]
    np.testing.assert_array_equal(np.reshape(dark, (3, 10, 10)), masks)


def test_the_model_of_the_drawings_has_the_shapes_of_smollm2(modules):
    assert hf_folder.projection_shapes(modules["elements"].SMOLLM2) == {
        "q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
        "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536),
    }  # fmt: skip


def test_the_rotation_is_that_of_the_package(modules):
    config = ModelConfig(256, 48, 128, 3, 3, 3, 16)
    cos, sin = layers.rope_cos_sin(np.arange(8), config)
    pair = layers.apply_rope(np.eye(1, 16)[None, None], cos[1:2], sin[1:2])[0, 0, 0]
    np.testing.assert_allclose(pair[[0, 8]], [np.cos(1), np.sin(1)], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_drawings_are_what_the_code_draws(modules, tmp_path, name):
    modules["elements"].save(name, tmp_path)
    text = (tmp_path / f"{name}.svg").read_text("utf-8")
    assert numbers(text) == numbers((STORED / f"{name}.svg").read_text("utf-8"))


def numbers(svg):
    """Return how often an SVG has each kind of element: other versions of matplotlib round more."""
    return {tag: svg.count(f"<{tag} ") for tag in ("path", "use", "g")}


def test_the_command_draws_one_drawing(monkeypatch, modules, tmp_path):
    monkeypatch.setattr(sys, "argv", ["drawings", "lora_and_qlora"])
    monkeypatch.setattr(modules["elements"].save, "__defaults__", (tmp_path,))
    runpy.run_path(str(FOLDER / "__main__.py"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lora_and_qlora.png",
        "lora_and_qlora.svg",
    ]
