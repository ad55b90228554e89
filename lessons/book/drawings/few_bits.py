"""Weights in few bits: NF4, the bytes of double quantization, both passes, merging, memory."""

from statistics import NormalDist

import numpy as np

from lessons.book.drawings.elements import *
from minilora import nf4
from minilora.formats.hf_folder import projection_shapes


@drawing(
    3.7,
    "A normal density with NF4's sixteen values as vertical lines, close together near zero. "
    "Below, eight weights of a block, divided by their largest magnitude, move to the nearest "
    "value.",
)
def nf4_number_line(ax):
    plot = plot_axes(ax, 2.5, 4.5, 65, 31.5, xlim=(-1.08, 1.08), ylim=(-0.36, 0.56))
    plot.spines["left"].set_visible(False)
    plot.set(yticks=[], xlabel="weight / absmax of its block")
    reach = NormalDist().inv_cdf(1 - (1 / 32 + 1 / 30) / 2)  # NF4's 1.0 is this quantile
    x = np.linspace(-1.08, 1.08, 300)
    density = 0.42 * np.exp(-0.5 * (x * reach) ** 2)
    plot.fill_between(x, density, color="#e8e8e8", lw=0)
    plot.plot(x, density, color=GREY, lw=1)
    for code, value in enumerate(nf4.NF4):
        plot.plot([value, value], [0, 0.45], color=BLUE, lw=1.4)
        plot.text(value, 0.47, str(code), ha="center", size=8.5, color=BLUE)
    plot.text(-1.07, 0.53, "code", size=8.5, color=BLUE)
    plot.text(-0.85, 0.26, "normal\ndensity", size=8.5, color=GREY, ha="center")
    plot.axhline(0, color=INK, lw=0.8)
    weights, absmax = block_of_eight()
    codes = nf4.nearest(weights / absmax, nf4.CODEBOOKS["nf4"])
    for i, (w, code) in enumerate(zip(weights / absmax, codes)):
        plot.plot(w, -0.28, "o", color=ORANGE, ms=5, zorder=3)
        plot.annotate(
            "",
            (nf4.NF4[code], 0),
            (w, -0.27),
            arrowprops={"arrowstyle": "-|>", "color": ORANGE, "lw": 1},
        )
        plot.text(w, -0.345, f"{weights[i]:.2f}", size=8, ha="center", color=ORANGE)
    plot.text(0.83, -0.2, f"absmax\n= {absmax:.2f}", size=8.5, ha="center", color=ORANGE)


def block_of_eight():
    """Return eight weights and their largest magnitude, both float32."""
    # RMSE of NF4, E2M1, int4 and FP4: in the order and about in the ratios of lesson 6
    weights = np.float32([0.60, 0.05, -0.25, -0.18, -0.31, -0.55, 0.30, -0.10])
    return weights, np.abs(weights).max()


@drawing(
    3.4,
    "Eight weights of a block in NF4, E2M1, int4 and bitsandbytes' FP4: for each the code and the "
    "value that the code stands for, and the root of the mean squared error of each format, which "
    "grows in this order.",
)
def quantize_a_block(ax):
    weights, absmax = block_of_eight()
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    e2m1 = np.concatenate([e2m1, 0 - e2m1]).astype(np.float32)
    int4 = (np.arange(-7, 8) / 7).astype(np.float32)
    formats = {"NF4": nf4.NF4, "E2M1": e2m1, "int4": int4, "FP4 (bitsandbytes)": nf4.FP4}
    errors = []
    title(ax, 2, 31.5, f"one block, scale (absmax) = {absmax:.2f}")
    text(ax, 38, 31.5, "in each column: code → value", color=GREY, ha="left")
    text(ax, 2, 28.3, "weight", ha="left", weight="bold")
    for column, (name, values) in enumerate(formats.items()):
        x = 12 + 14.4 * column
        code = nf4.Codebook.from_values(values) if len(values) == 16 else None
        midpoints = (values[1:] + values[:-1]) / 2
        text(ax, x, 28.3, name, ha="left", weight="bold")
        restored = []
        for i, w in enumerate(weights / absmax):
            number = nf4.nearest(w, code) if code else np.searchsorted(midpoints, w)
            restored.append(values[number] * absmax)
            words = f"{number if code else number - 7:>2} → {restored[-1]:6.3f}"
            error = abs(restored[-1] - weights[i])
            bar = Rectangle((x - 0.5, 24.6 - 2.6 * i), 100 * error, 2.1, fc="#fbdcc4", lw=0)
            ax.add_patch(bar)
            text(ax, x, 25.6 - 2.6 * i, words, ha="left", family="monospace")
        errors.append(np.sqrt(np.mean((np.array(restored) - weights) ** 2)))
        text(ax, x, 3.6, f"RMSE {errors[-1]:.3f}", ha="left", color=ORANGE)
    assert errors == sorted(errors), "the columns must be in the order of their errors"
    for i, w in enumerate(weights):
        text(ax, 2, 25.6 - 2.6 * i, f"{w:5.2f}", ha="left", family="monospace")
    words = "bars: size of an error. The block is chosen to show the order of a million weights"
    text(ax, 2, 1.4, words, 8.5, GREY, ha="left")


@drawing(
    3.3,
    "The bytes of a weight of shape (1536, 576) in NF4 with double quantization: two codes per "
    "byte, one byte per 64 weights, one float32 per 16,384 weights, and one offset.",
)
def double_quantized_bytes(ax):
    shape = projection_shapes(SMOLLM2)["up_proj"]
    q = nf4.quantize(np.ones(shape, np.float32), 64, double_quant=True)
    double = q.stored_absmax
    n = shape[0] * shape[1]
    parts = (
        ("4-bit codes", q.codes, "two codes per byte", "4 bits"),
        ("codes of absmax", double.codes, "one byte per 64 weights", "8/64 bits"),
        ("nested absmax", double.nested_absmax, "one float32 per 16,384 weights", "32/16,384 bits"),
        ("offset", double.offset, "one float32 per tensor", "32 bits in all"),
    )
    title(ax, 2, 30.8, f"up_proj of SmolLM2, {shape[0]} × {shape[1]} = {n:,} weights")
    for i, (name, array, words, bits) in enumerate(parts):
        y = 24.5 - 5.6 * i
        box(ax, 2, y, 15, 4, name, "frozen")
        cells(ax, 19, y + 0.7, (8, 4, 2, 1)[i], 2.6, split=i == 0)
        text(ax, 40, y + 2.9, words, ha="left")
        text(ax, 40, y + 0.9, f"{bits} per weight" if i < 3 else bits, color=GREY, ha="left")
        text(
            ax,
            68.5,
            y + 2,
            f"{array.nbytes:,} bytes",
            ha="right",
            weight="bold" if i == 0 else None,
        )
    total = f"{q.nbytes:,} bytes, {8 * q.nbytes / n:.3f} bits per weight (float32: {4 * n:,} bytes)"
    text(ax, 68.5, 4, total, ha="right", weight="bold")
    text(
        ax,
        68.5,
        1.6,
        "absmax ≈ map[code] · nested absmax + offset        weight ≈ NF4[code] · absmax",
        ha="right",
        color=GREEN,
    )


def cells(ax, x, y, count, side, split=False):
    """Draw a row of bytes; `split` shows the two halves of each."""
    fill, edge, _ = KINDS["frozen"]
    for i in range(count):
        ax.add_patch(Rectangle((x + i * side, y), side, side, fc=fill, ec=edge, lw=1))
        if split:
            middle = x + (i + 0.5) * side
            ax.plot([middle, middle], [y, y + side], color=edge, lw=0.8, ls=":")


@drawing(
    4.2,
    "QLoRA's forward pass dequantizes W, multiplies, and drops it. The backward pass "
    "dequantizes W again. Kept between the passes: the codes, the adapters and the input x, which "
    "the gradients of A and B need.",
)
def qlora_passes(ax):
    box(ax, 26, 34.3, 18, 4.4, "4-bit codes and scales of W", "frozen", 8.5)
    for y, head, color in ((23, "forward", INK), (5.4, "backward", GREEN)):
        text(ax, 1.5, y + 7.6, head, 10, color, ha="left", weight="bold")
        box(ax, 28.5, y + 3.4, 13, 3.6, "Ŵ", "temporary", 11)
        box(ax, 28.5, y - 3.2, 13, 3.6, "A, B", "trained")
    arrow(ax, (35, 34.3), (35, 30), "dequantize", GREEN, (4.6, 0), size=8.5)
    path(ax, (44, 36.5), (66, 36.5), (66, 14.4), (35, 14.4), (35, 12.4), color=GREEN)
    text(ax, 59, 15.4, "dequantize again", 8.5, GREEN)
    box(ax, 5, 23.2, 8, 3.6, "x")
    box(ax, 57, 23.2, 7, 3.6, "h")
    circle(ax, 51, 25, "+")
    for y in (28.2, 21.6):
        path(ax, (13, 25), (20, 25), (20, y), (28.5, y))
        path(ax, (41.5, y), (51, y), (51, 26.5 if y > 25 else 23.5))
    arrow(ax, (52.5, 25), (57, 25))
    box(ax, 57, 5.6, 7, 3.6, "∂L/∂h")
    box(ax, 5, 5.6, 8, 3.6, "∂L/∂x", "temporary")
    for y in (10.6, 4):
        path(ax, (57, 7.4), (50, 7.4), (50, y), (41.5, y), color=GREEN)
        path(ax, (28.5, y), (20, y), (20, 7.4), (13, 7.4), color=GREEN)
    # the gradients of A and B need ∂L/∂h and the kept x; A and B themselves do not get x
    box(ax, 52, 0.2, 17, 3.4, "∂L/∂A, ∂L/∂B: for Adam", "temporary", 8.5)
    path(ax, (60.5, 5.6), (60.5, 3.6), color=GREEN)
    path(ax, (9, 23.2), (9, 18.3), (0.7, 18.3), (0.7, 1.2), (52, 1.2), color=GREY)
    text(ax, 9.6, 19.4, "x is kept for ∂L/∂A and ∂L/∂B", 8.5, GREY, ha="left")
    text(ax, 22, 12, "g·Ŵ", 8.5, GREEN)
    text(ax, 46, 29.4, "Ŵx", 8.5)


@drawing(
    3.4,
    "Number lines of what can be stored near a weight. A small update moves the weight in "
    "float32 and in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays "
    "the same.",
)
def merging_precision(ax):
    w, update = np.float32(0.185), np.float32(0.012)
    low, high = 0.155, 0.252
    values = nf4.NF4[(low < nf4.NF4) & (high > nf4.NF4)]
    steps = np.arange(np.ceil(low * 1024), high * 1024) / 1024
    rows = (
        (26.5, "float32", [], 0),
        (16.5, "bfloat16", steps, 1024),
        (6.5, "NF4, absmax 1", values, 0),
    )

    def place(value):
        return 15 + (value - low) / (high - low) * 53

    for y, name, grid, inverse in rows:
        ax.plot([15, 68], [y, y], color=INK, lw=1)
        text(ax, 1.5, y, name, ha="left", weight="bold")
        for value in grid:
            ax.plot(
                [place(value)] * 2, [y - 0.9, y + 0.9], color=BLUE, lw=2 if len(grid) < 9 else 0.7
            )
        if len(grid) == 0:
            ax.plot([15, 68], [y, y], color=BLUE, lw=5, alpha=0.35)
        ends = [w, w + update]
        if inverse:
            ends = [np.round(v * inverse) / inverse for v in ends]
        if name.startswith("NF4"):
            ends = [nf4.NF4[nf4.nearest(v, nf4.CODEBOOKS["nf4"])] for v in ends]
        for value, target in zip((w, w + update), ends):
            arrow(ax, (place(value), y + 4.6), (place(target), y + 0.9), color=ORANGE)
        stored = f"stored change: {ends[1] - ends[0]:.4f}"
        text(ax, 68, y + 3.6, stored, ha="right", color=ORANGE if ends[1] > ends[0] else PURPLE)
        text(ax, place(w), y + 5.6, f"W {w:.3f}", 8.5, ha="right")
        text(ax, place(w + update) - 2, y + 5.6, f"W + ΔW {w + update:.3f}", 8.5, ha="left")
    for value in values:
        text(ax, place(value), 4.2, f"{value:.4f}", 8.5, BLUE)
    text(ax, 15, 1.6, "blue: numbers that the format can store near W", color=BLUE, ha="left")


@drawing(
    3.1,
    "Bytes per weight of the base in a training step: full fine-tuning 16, LoRA 4.37, QLoRA 0.88. "
    "Of LoRA's, 4 are the frozen weights. The others are the adapters, their gradients and Adam's "
    "moments.",
)
def step_memory(ax):
    shapes = projection_shapes(SMOLLM2).values()
    share = sum(8 * (out + n) for out, n in shapes) / sum(out * n for out, n in shapes)
    bars = (
        ("full fine-tuning", 4, 1),
        ("LoRA, r = 8", 4, share),
        ("QLoRA, r = 8", bits_per_weight() / 8, share),
    )
    plot = plot_axes(
        ax,
        15,
        7,
        53,
        20,
        xlabel="bytes per projection weight, float32 (without activations)",
        xlim=(0, 17.5),
    )
    names = ("frozen weights", "trained weights", "their gradients", "Adam's two moments")
    colors, hatches = ("#9ecae9", ORANGE, "#f0b37e", "#fbdcc4"), ("", "", "//", "..")
    for y, (_, weights, trained) in zip((2, 1, 0), bars):
        full = trained == 1
        parts, left = (0 if full else weights, 4 * trained, 4 * trained, 8 * trained), 0.0
        for size, color, hatch, name in zip(parts, colors, hatches, names):
            style = {"color": color, "hatch": hatch, "edgecolor": INK, "lw": 0.6}
            plot.barh(y, size, 0.6, left, label=name if y == 2 else None, **style)
            left += size
        plot.text(left + 0.2, y, f"{left:.2f}", va="center", size=9)
    plot.set_yticks((2, 1, 0), [name for name, *_ in bars], size=9)
    plot.legend(frameon=False, fontsize=8.5, loc="lower right")
    text(
        ax,
        15,
        28.8,
        f"SmolLM2's projections; A and B have {100 * share:.1f} % of their weights",
        ha="left",
    )


@drawing(
    2.9,
    "LLM.int8 splits a product: the few columns of x with a number of 6 or more are multiplied "
    "in floating point with the same columns of W, the rest in 8-bit integers.",
)
def llm_int8(ax):
    fill, edge, _ = KINDS["trained"]
    outliers = (2, 6)
    for x, y, rows, name in ((2, 12, 5, "x  (tokens, in)"), (24, 10.2, 6, "W  (out, in)")):
        for column in range(9):
            kind = (fill, edge) if column in outliers else KINDS["frozen"][:2]
            corner = (x + 1.8 * column, y)
            ax.add_patch(Rectangle(corner, 1.8, 1.8 * rows, fc=kind[0], ec=kind[1], lw=0.9))
        text(ax, x + 8.1, 23.6, name)
    text(ax, 21, 16, "·", 16)
    text(ax, 43, 16, "=", 14)
    box(ax, 46.5, 17.6, 21.5, 4.6, "8-bit integers, then scales", "frozen", 8.5)
    text(ax, 57.2, 15.6, "+", 13)
    box(ax, 46.5, 9, 21.5, 4.6, "floating point", "trained", 8.5)
    text(ax, 10, 9.6, "outlier columns: |x| ≥ 6", 8.5, ORANGE)
    text(ax, 57.2, 24.4, "blue columns", 9, BLUE)
    text(ax, 57.2, 7.2, "orange columns", 9, ORANGE)
    text(ax, 35, 3, "y = absmaxₓ · absmax_w / 127² · Σ qₓ·q_w  +  Σ over outlier columns x·w", 9)


@drawing(
    2.7,
    "The bits of float32, bfloat16 and float16: sign, exponent and fraction. bfloat16 has the "
    "range of float32 and few digits, float16 more digits and a small range.",
)
def number_formats(ax):
    formats = (("float32", 8, 23), ("bfloat16", 8, 7), ("float16", 5, 10))
    for row, (name, exponent, fraction) in enumerate(formats):
        y, x = 19.5 - 6.3 * row, 10.5
        text(ax, 1.5, y + 1, name, ha="left", weight="bold")
        for bits, kind in ((1, "data"), (exponent, "frozen"), (fraction, "trained")):
            for _ in range(bits):
                fill, edge, _ = KINDS[kind]
                ax.add_patch(Rectangle((x, y), 1.15, 2.2, fc=fill, ec=edge, lw=0.8))
                x += 1.15
        step = 2.0**-fraction
        largest = (2 - step) * 2.0 ** (2 ** (exponent - 1) - 1)
        words = f"next number after 1: 1 + {step:.2g}     largest: {largest:.3g}"
        text(ax, 10.5, y - 1.5, words, 8.5, GREY, ha="left")
    legend(ax, 10.5, 2, 15, data="sign", frozen="exponent: range", trained="fraction: precision")
