"""Weights in few bits: NF4, the bytes of double quantization, both passes, merging."""

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
    text(plot, -0.85, 0.29, "normal\ndensity", 8.5, GREY)
    text(plot, -1.04, 0.54, "code", 8.5, BLUE)
    for code, value in enumerate(nf4.NF4):
        plot.plot([value, value], [0, 0.45], color=BLUE, lw=1.4)
        text(plot, value, 0.485, str(code), 8.5, BLUE)
    plot.axhline(0, color=INK, lw=0.8)
    weights, absmax = block_of_eight()
    shares = weights / absmax
    style = {"arrowstyle": "-|>", "color": ORANGE, "lw": 1}
    for w, share, code in zip(weights, shares, nf4.nearest(shares, nf4.CODEBOOKS["nf4"])):
        plot.plot(share, -0.28, "o", color=ORANGE, ms=5, zorder=3)
        plot.annotate("", (nf4.NF4[code], 0), (share, -0.27), arrowprops=style)
        text(plot, share, -0.33, f"{w:.2f}", 8, ORANGE)
    text(plot, 0.83, -0.16, f"absmax\n= {absmax:.2f}", 8.5, ORANGE)


def block_of_eight():
    """Return eight weights and their largest magnitude, both float32."""
    # RMSE of NF4, E2M1, int4 and FP4: in the order and about in the ratios of lesson 2
    weights = np.float32([0.60, 0.05, -0.25, -0.18, -0.31, -0.55, 0.30, -0.10])
    return weights, np.abs(weights).max()


@drawing(
    3.4,
    "Eight weights of a block in NF4, E2M1, int4 and bitsandbytes' FP4: for each the value that is "
    "stored and its error, and the root of the mean squared error of each format, which grows in "
    "this order.",
)
def quantize_a_block(ax):
    weights, absmax = block_of_eight()
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    columns = (
        (12, "NF4", nf4.NF4),
        (26.4, "E2M1", np.concatenate([-e2m1, e2m1])),
        (40.8, "int4", np.arange(-7, 8) / 7),
        (55.2, "FP4 (bitsandbytes)", nf4.FP4),
    )
    rows = 25.6 - 2.6 * np.arange(8)
    title(ax, 2, 31.5, f"one block, scale (absmax) = {absmax:.2f}")
    text(ax, 38, 31.5, "in each column: the value that is stored", color=GREY, ha="left")
    title(ax, 2, 28.3, "weight", 9)
    for y, w in zip(rows, weights):
        text(ax, 2, y, f"{w:5.2f}", ha="left", family="monospace")
    errors = []
    for x, name, values in columns:
        nearest = np.abs(weights[:, None] / absmax - values).argmin(axis=1)
        stored = values[nearest] * absmax
        title(ax, x, 28.3, name, 9)
        for y, value, error in zip(rows, stored, np.abs(stored - weights)):
            rectangle(ax, x - 0.5, y - 1, 100 * error, 2.1, "trained", lw=0)
            text(ax, x, y, f"{value:6.3f}", ha="left", family="monospace")
        errors.append(np.sqrt(np.mean((stored - weights) ** 2)))
        text(ax, x, 3.6, f"RMSE {errors[-1]:.3f}", ha="left", color=ORANGE)
    assert errors == sorted(errors), "the columns must be in the order of their errors"
    words = "bars: size of an error. The block is chosen to show the order of a million weights"
    text(ax, 2, 1.4, words, 8.5, GREY, ha="left")


@drawing(
    3.3,
    "The bytes of a weight of shape (1536, 576) in NF4 with double quantization: two codes per "
    "byte, one byte per 64 weights, one float32 per 16,384 weights, and one offset.",
)
def double_quantized_bytes(ax):
    out, width = projection_shapes(SMOLLM2)["up_proj"]
    q = nf4.quantize(np.ones((out, width), np.float32), 64, double_quant=True)
    double, n = q.stored_absmax, out * width
    parts = (
        ("4-bit codes", q.codes, 8, "two codes per byte", "4 bits per weight"),
        ("codes of absmax", double.codes, 4, "one byte per 64 weights", "8/64 bits per weight"),
        ("nested absmax", double.nested_absmax, 2, "one float32 per 16,384 weights",
         "32/16,384 bits per weight"),
        ("offset", double.offset, 1, "one float32 per tensor", "32 bits in all"),
    )  # fmt: skip
    title(ax, 2, 30.8, f"up_proj of SmolLM2, {out} × {width} = {n:,} weights")
    for i, (name, array, count, words, bits) in enumerate(parts):
        y = 24.5 - 5.6 * i
        box(ax, 2, y, 15, 4, name, "frozen")
        for byte in range(count):
            rectangle(ax, 19 + 2.5 * byte, y + 0.7, 2.5, 2.6, "frozen")
            if array is q.codes:
                ax.plot([20.25 + 2.5 * byte] * 2, [y + 0.7, y + 3.3], ":", color=BLUE, lw=0.8)
        text(ax, 40, y + 2.9, words, ha="left")
        text(ax, 40, y + 0.9, bits, color=GREY, ha="left")
        text(ax, 68.5, y + 2, f"{array.nbytes:,} bytes", ha="right")
    total = f"{q.nbytes:,} bytes, {8 * q.nbytes / n:.3f} bits per weight (float32: {4 * n:,} bytes)"
    text(ax, 68.5, 4, total, ha="right", weight="bold")
    words = "absmax ≈ map[code] · nested absmax + offset        weight ≈ NF4[code] · absmax"
    text(ax, 68.5, 1.6, words, color=GREEN, ha="right")


@drawing(
    4.2,
    "QLoRA's forward pass dequantizes W, multiplies, and drops it. The backward pass "
    "dequantizes W again. Kept between the passes: the codes, the adapters and the input x, which "
    "the gradients of A and B need.",
)
def qlora_passes(ax):
    box(ax, 26, 34.3, 18, 4.4, "4-bit codes and scales of W", "frozen", 8.5)
    passes = (
        (21.6, "forward", "x", "data", "h", INK),
        (4, "backward", "∂L/∂x", "temporary", "∂L/∂h", GREEN),
    )
    for y, head, left, kind, right, color in passes:
        title(ax, 1.5, y + 9, head, 10, color=color)
        box(ax, 28.5, y + 4.8, 13, 3.6, "Ŵ", "temporary", 11)
        box(ax, 28.5, y - 1.8, 13, 3.6, "A, B", "trained")
        box(ax, 5, y + 1.6, 8, 3.6, left, kind)
        box(ax, 57, y + 1.6, 7, 3.6, right)
    for y in (28.2, 21.6):
        arrow(ax, (13, 25), (20, 25), (20, y), (28.5, y))
        arrow(ax, (41.5, y), (51, y), (51, 26.5 if y > 25 else 23.5))
    plus(ax, 51, 25)
    arrow(ax, (52.5, 25), (57, 25))
    for y in (10.6, 4):
        arrow(ax, (57, 7.4), (50, 7.4), (50, y), (41.5, y), color=GREEN)
        arrow(ax, (28.5, y), (20, y), (20, 7.4), (13, 7.4), color=GREEN)
    arrow(ax, (35, 34.3), (35, 30), color=GREEN)
    text(ax, 39.6, 32.2, "dequantize", 8.5, GREEN)
    arrow(ax, (44, 36.5), (66, 36.5), (66, 14.4), (35, 14.4), (35, 12.4), color=GREEN)
    text(ax, 59, 15.4, "dequantize again", 8.5, GREEN)
    text(ax, 46, 29.4, "Ŵx", 8.5)
    text(ax, 46, 11.8, "g·Ŵ", 8.5, GREEN)
    # the gradients of A and B need ∂L/∂h and the kept x; A and B themselves do not get x
    box(ax, 52, 0.2, 17, 3.4, "∂L/∂A, ∂L/∂B: for Adam", "temporary", 8.5)
    arrow(ax, (60.5, 5.6), (60.5, 3.6), color=GREEN)
    arrow(ax, (9, 23.2), (9, 18.3), (0.7, 18.3), (0.7, 1.2), (52, 1.2), color=GREY)
    text(ax, 9.6, 19.4, "x is kept for ∂L/∂A and ∂L/∂B", 8.5, GREY, ha="left")


@drawing(
    3.4,
    "Number lines of what can be stored near a weight. A small update moves the weight in "
    "float32 and in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays "
    "the same.",
)
def merging_precision(ax):
    w = nf4.NF4[9]  # read from four bits
    updated = w + np.float32(0.012)
    low, high = 0.135, 0.252
    bfloat16 = np.arange(np.ceil(low * 1024), high * 1024) / 1024
    values = nf4.NF4[(low < nf4.NF4) & (high > nf4.NF4)]

    def place(value):
        return 15 + (value - low) / (high - low) * 53

    rows = ((26.5, "float32", [w, updated]), (16.5, "bfloat16", bfloat16), (6.5, "NF4", values))
    for y, name, grid in rows:
        title(ax, 1.5, y, name, 9)
        ax.plot([15, 68], [y, y], color=INK, lw=1)
        if name == "float32":  # too many to draw
            ax.plot([15, 68], [y, y], color=BLUE, lw=5, alpha=0.35)
        else:
            ax.vlines(place(grid), y - 0.9, y + 0.9, color=BLUE, lw=0.7 if len(grid) > 2 else 2)
        before, after = (min(grid, key=lambda value: abs(value - v)) for v in (w, updated))
        arrow(ax, (place(w), y + 4.6), (place(before), y + 0.9), color=ORANGE)
        arrow(ax, (place(updated), y + 4.6), (place(after), y + 0.9), color=ORANGE)
        text(ax, place(w), y + 5.6, f"Ŵ {w:.3f}", 8.5, ha="right")
        text(ax, place(updated) - 2, y + 5.6, f"Ŵ + ΔW {updated:.3f}", 8.5, ha="left")
        color = ORANGE if after > before else PURPLE
        text(ax, 68, y + 3.6, f"stored change: {after - before:.4f}", color=color, ha="right")
    for value in values:
        text(ax, place(value), 4.2, f"{value:.4f}", 8.5, BLUE)
    words = "blue: numbers that the format can store near Ŵ (NF4 with an absmax of 1)"
    text(ax, 15, 1.6, words, color=BLUE, ha="left")


@drawing(
    3.2,
    "Three ways to merge, as arrows. The trained model is Ŵ plus ΔW. From the original W the same "
    "arrow ends elsewhere, W − Ŵ away. In four bits again, the end moves to the nearest point of a "
    "grid, which can be Ŵ itself.",
)
def three_merges(ax):
    across, up = np.meshgrid(6 + 8 * np.arange(5), 5 + 7 * np.arange(4))
    ax.plot(across.ravel(), up.ravel(), "o", color=BLUE, ms=5)
    ax.plot(16.4, 14.8, "s", color=INK, ms=6)
    arrow(ax, (14, 12), (17, 10.6), color=ORANGE)
    arrow(ax, (16.4, 14.8), (19.4, 13.4), color=ORANGE, style="--")
    arrow(ax, (17, 10.6), (14.3, 12.1), color=PURPLE, curve=-0.5)
    text(ax, 11.3, 12.6, "Ŵ", 10, BLUE)
    text(ax, 15, 16.8, "W", 10)
    text(ax, 20.4, 9.4, "Ŵ + ΔW", color=ORANGE)
    text(ax, 22.6, 15.4, "W + ΔW", color=ORANGE)
    lines = (
        (25.5, "blue: what four bits can store", BLUE),
        (20, "1.  Ŵ + ΔW, dense: the trained model", ORANGE),
        (14.5, "2.  four bits again: the nearest blue point,\n     here Ŵ: ΔW is lost", PURPLE),
        (8, "3.  W + ΔW: off by W − Ŵ,\n     which can be longer than ΔW", INK),
    )
    for y, words, color in lines:
        text(ax, 43, y, words, color=color, ha="left")


@drawing(
    2.9,
    "LLM.int8 splits a product: the few columns of x with a number of 6 or more are multiplied "
    "in floating point with the same columns of W, the rest in 8-bit integers.",
)
def llm_int8(ax):
    for x, y, height, name in ((2, 12, 9, "x  (tokens, in)"), (24, 10.2, 10.8, "W  (out, in)")):
        for column in range(9):
            kind = "trained" if column in (2, 6) else "frozen"
            rectangle(ax, x + 1.8 * column, y, 1.8, height, kind)
        text(ax, x + 8.1, 23.6, name)
    text(ax, 21, 16, "·", 16)
    text(ax, 43, 16, "=", 14)
    box(ax, 46.5, 17.6, 21.5, 4.6, "8-bit integers, then scales", "frozen", 8.5)
    text(ax, 57.2, 15.6, "+", 13)
    box(ax, 46.5, 9, 21.5, 4.6, "floating point", "trained", 8.5)
    text(ax, 10, 9.6, "outlier columns: |x| ≥ 6", 8.5, ORANGE)
    text(ax, 57.2, 24.4, "blue columns", color=BLUE)
    text(ax, 57.2, 7.2, "orange columns", color=ORANGE)
    text(ax, 35, 3, "y = absmaxₓ · absmax_w / 127² · Σ qₓ·q_w  +  Σ over outlier columns x·w")


@drawing(
    2.7,
    "The bits of float32, bfloat16 and float16: sign, exponent and fraction. bfloat16 has the "
    "range of float32 and few digits, float16 more digits and a small range.",
)
def number_formats(ax):
    formats = ((19.5, "float32", 8, 23), (13.2, "bfloat16", 8, 7), (6.9, "float16", 5, 10))
    for y, name, exponent, fraction in formats:
        title(ax, 1.5, y + 1, name, 9)
        kinds = ["data"] + ["frozen"] * exponent + ["trained"] * fraction
        for i, kind in enumerate(kinds):
            rectangle(ax, 10.5 + 1.15 * i, y, 1.15, 2.2, kind)
        step = 2.0**-fraction
        largest = (2 - step) * 2.0 ** (2 ** (exponent - 1) - 1)
        words = f"next number after 1: 1 + {step:.2g}     largest: {largest:.3g}"
        text(ax, 10.5, y - 1.5, words, 8.5, GREY, ha="left")
    legend(ax, 10.5, 2, 15, data="sign", frozen="exponent: range", trained="fraction: precision")
