"""The low-rank update: LoRA and QLoRA, the trees, the places, the gradient, singular values."""

import numpy as np
from matplotlib.patches import Polygon

import minilora
from lessons.book.drawings.elements import *
from minilora import LoraConfig
from minilora.tree import num_parameters


@drawing(
    4.5,
    "LoRA adds the product of two small trained matrices B and A to a frozen matrix W. QLoRA "
    "does the same, but stores W in 4 bits and dequantizes it for each matrix product.",
)
def lora_and_qlora(ax):
    n, r = 4096, 8
    for x, name, quantized in ((1.5, "LoRA", False), (37, "QLoRA", True)):
        title(ax, x, 42.7, name)
        box(ax, x + 16, 12.5, 8.4, 3.4, "x   (in)")
        if quantized:
            box(ax, x - 0.5, 11.8, 10.5, 5, "4-bit codes\n+ scales", "frozen")
            arrow(ax, (x + 4.7, 16.8), (x + 4.7, 21), "dequantize", GREEN, (4.4, 0), size=8)
            path(ax, (x + 16, 14.2), (x + 13, 14.2), (x + 13, 25.7), (x + 9.5, 25.7))
        else:
            path(ax, (x + 16, 14.2), (x + 4.7, 14.2), (x + 4.7, 21))
        words, kind = ("Ŵ", "temporary") if quantized else ("W", "frozen")
        matrix(ax, x, 21, 9.5, 9.5, words, kind)
        text(ax, x + 5.2, 32, "(out, in)", color=GREY, ha="left")
        adapter_path(ax, x + 20.2)
        path(ax, (x + 4.7, 30.5), (x + 4.7, 36.6), (x + 14.7, 36.6))
        text(ax, x + 17.6, 40.7, f"h = {words}x + (α/r)·B(Ax)", ha="left")
    count = f"{2 * r * n:,} numbers ({200 * r / n:.2f} %)"
    packed = n * n * bits_per_weight() / 8 / 1e6
    rows = (
        (
            "W, 4096 × 4096",
            f"16 bits: {n * n * 2 / 1e6:.1f} MB",
            f"{bits_per_weight():.2f} bits: {packed:.2f} MB",
        ),
        ("A and B, r = 8", count, count),
        ("gradients, Adam", "for A and B only", "for A and B only"),
    )
    for y, (head, left, right) in zip((8.6, 6.4, 4.2), rows):
        text(ax, 1.5, y, head, color=GREY, ha="left")
        text(ax, 15.5, y, left, ha="left")
        text(ax, 47, y, right, ha="left")
    words = "made for one product, then dropped"
    legend(ax, 15.5, 1.2, 11, frozen="frozen", trained="trained", temporary=words)


def adapter_path(ax, x):
    """Draw A and B above each other, their shapes, and the sum at the end."""
    fill, edge, _ = KINDS["trained"]
    for y, low, high, words, shape in ((20, 6, 1.3, "A", "(r, in)"), (27, 1.3, 6, "B", "(out, r)")):
        corners = [(x - low, y), (x + low, y), (x + high, y + 4.5), (x - high, y + 4.5)]
        ax.add_patch(Polygon(corners, fc=fill, ec=edge, lw=1.4))
        text(ax, x, y + 2.25, words, 11)
        text(ax, x + 6, y + 2.25, shape, color=GREY, ha="left")
    text(ax, x + 6, 25.8, "rank r", color=ORANGE, ha="left")
    arrow(ax, (x, 15.9), (x, 20))
    arrow(ax, (x, 24.5), (x, 27))
    path(ax, (x, 31.5), (x, 36.6), (x - 2.7, 36.6))
    text(ax, x + 0.7, 34, "· α/r", ha="left", color=ORANGE)
    circle(ax, x - 4.2, 36.6, "+")
    arrow(ax, (x - 4.2, 38), (x - 4.2, 41.2))


@drawing(
    2.2,
    "W' equals W, of shape (out, in), plus alpha over r times B, of shape (out, r), times A, "
    "of shape (r, in). B starts at zero and A at random values.",
)
def low_rank_update(ax):
    y, side, r = 6.5, 12, 1.8
    matrix(ax, 4, y, side, side, "W'", "temporary", "out", "in")
    text(ax, 19.2, y + side / 2, "=", 14)
    matrix(ax, 25, y, side, side, "W", "frozen", "out", "in")
    text(ax, 41, y + side / 2, "+   α/r ·", 12)
    matrix(ax, 49.5, y, r, side, "B", "trained", "out", "r")
    matrix(ax, 55.5, y + side / 2 - r / 2, side, r, "A", "trained", "r", "in")
    text(ax, 31, 4.4, "frozen: out · in numbers", color=BLUE)
    text(ax, 57, 4.4, "trained: r · (out + in) numbers", color=ORANGE)
    text(ax, 57, 2.4, "start: B = 0, A random, so B·A = 0", color=GREY)
    text(ax, 10, 4.4, "after merging", color=GREEN)


@drawing(
    4.7,
    "Two trees side by side. The base has a weight at each path. The adapters have lora_A and "
    "lora_B, their scaling and their dropout at the paths of the seven projections of each layer, "
    "and nothing elsewhere.",
)
def two_trees(ax):
    _, base, _ = minilora.load("micro")
    chosen = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
    adapters, _ = minilora.get_peft_model(base, chosen, 0)
    title(ax, 2, 44.6, f"base: {num_parameters(base):,} numbers, frozen", color=BLUE)
    title(ax, 40, 44.6, f"adapters: {num_parameters(adapters):,}, trained", color=ORANGE)
    y, attention = 41.8, "layers.0.self_attn"
    projections = [f"{attention}.{name}" for name in ("q_proj", "k_proj")]
    for place in ("", "embed_tokens", "layers", "layers.0", attention, *projections):
        ours = find(adapters["model"], place)
        depth, lowest = len(place.split(".")) - (not place), y - 2.2
        for x, node, color in ((2, find(base["model"], place), BLUE), (40, ours, ORANGE)):
            if node is None:
                continue
            text(ax, x + 2.2 * depth, y, place.rpartition(".")[2] or "model", **CODE)
            leaves = [(name, leaf) for name, leaf in node.items() if not isinstance(leaf, dict)]
            for i, (name, leaf) in enumerate(leaves, 1):
                words = f"{name}  {getattr(leaf, 'shape', leaf)}"
                shade = color if hasattr(leaf, "shape") else GREY  # a float is not trained
                text(ax, x + 2.2 * depth + 2.2, y - 2.2 * i, words, **{**CODE, "color": shade})
                lowest = min(lowest, y - 2.2 * (i + 1))
        if place in projections and ours:
            arrow(ax, (18, y), (39.5 + 2.2 * depth, y), "the same path", GREY, size=8.5)
        y = lowest
    for words in ("v, o, gate, up, down: the same", "layers 1 and 2: the same"):
        for x in (6.4, 44.4):
            text(ax, x, y, words, color=GREY, ha="left")
        y -= 2.2


CODE = {"size": 9, "ha": "left", "family": "monospace"}


def find(tree, dotted):
    """Return the node at a path, or None."""
    for key in filter(None, dotted.split(".")):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


@drawing(
    4.4,
    "One layer of a Llama: the attention sublayer above, the MLP below. A pair A, B can sit "
    "on each of the seven projections. Other methods train norms, prefixes, scalings or "
    "bottlenecks.",
)
def llama_block(ax):
    for y, sign, name in ((38.3, "q_proj", "q"), (33.3, "k_proj", "k"), (28.3, "v_proj", "v")):
        projection(ax, 20, y - 1.7, sign)
        path(ax, (16.5, 33.3), (17.8, 33.3), (17.8, y), (20, y))
        if name == "v":
            path(ax, (29.5, y), (41.2, y), (41.2, 31.6))
        else:
            box(ax, 32, y - 1.5, 5.5, 3, "RoPE", size=9)
            arrow(ax, (29.5, y), (32, y))
            path(ax, (37.5, y), (38.5, y), (38.5, 33.3), (39.5, 33.3))
    box(ax, 39.5, 31.6, 10, 3.4, "attention")
    residual(ax, 33.3, 52.5, "o_proj", 49.5)
    other(ax, 52, 27.2, "prefix: more keys and values")
    other(ax, 45, 39.5, "IA³: scales k and v")
    for y, name, x, end in ((15.3, "gate_proj", 33.5, 14), (9.3, "up_proj", 37.5, 10.6)):
        projection(ax, 20, y - 1.7, name)
        path(ax, (16.5, 12.3), (17.8, 12.3), (17.8, y), (20, y))
        path(ax, (29.5, y), (x, y), (x, end))
    box(ax, 32, 10.6, 11, 3.4, "SwiGLU")
    residual(ax, 12.3, 52.5, "down_proj", 43)
    other(ax, 35, 6.2, "IA³: scales the input of down_proj")
    other(ax, 58, 6.2, "bottleneck: after")
    other(ax, 10.5, 29.6, "norm weight")
    other(ax, 10.5, 8.6, "norm weight")
    legend(
        ax,
        2,
        1.5,
        21,
        trained="A, B of LoRA",
        frozen="frozen projection",
        other="for other methods",
    )


def projection(ax, x, y, name):
    """Draw a frozen projection with an adapter on its upper edge."""
    box(ax, x, y, 9.5, 3.4, name, "frozen")
    fill, edge, _ = KINDS["trained"]
    ax.add_patch(Rectangle((x + 6.1, y + 2.7), 3.6, 1.7, fc=fill, ec=edge, lw=1.2, zorder=4))
    text(ax, x + 7.9, y + 3.5, "A, B", 8, zorder=5)


def residual(ax, y, x, name, start):
    """Draw the norm at the start of a sublayer, the last projection, and the sum at the end."""
    text(ax, 1.2, y, "x", 11)
    arrow(ax, (2.2, y), (8, y))
    box(ax, 8, y - 1.7, 8.5, 3.4, "RMSNorm")
    projection(ax, x, y - 1.7, name)
    arrow(ax, (start, y), (x, y))
    arrow(ax, (x + 9.5, y), (x + 12.4, y))
    circle(ax, x + 13.9, y, "+")
    path(ax, (5, y), (5, y - 8.6), (x + 13.9, y - 8.6), (x + 13.9, y - 1.6), color=GREY)
    arrow(ax, (x + 15.4, y), (x + 17.3, y))


def other(ax, x, y, words):
    """Name a place where another method trains something."""
    text(ax, x, y, words, 8.5, PURPLE)


@drawing(
    3.1,
    "LoRA's backward pass. The gradient g of the output gives the gradients of B and A "
    "through the rank-r bottleneck. The gradient of W, a full matrix, is never computed.",
)
def lora_gradient(ax):
    for x, words in ((2, "x   (in)"), (27, "Ax   (r)"), (52, "h   (out)")):
        box(ax, x, 20, 11, 3.6, words)
    for x, words in ((16, "A"), (41, "B")):
        box(ax, x, 20, 8, 3.6, words, "trained", 11)
    for x in (13, 24, 38, 49):
        arrow(ax, (x, 21.8), (x + 3, 21.8))
    box(ax, 28.5, 25.8, 8, 3.4, "W", "frozen", 11)
    path(ax, (7.5, 23.6), (7.5, 27.5), (28.5, 27.5))
    path(ax, (36.5, 27.5), (57.5, 27.5), (57.5, 23.6))
    text(ax, 50.5, 23.4, "· s", color=ORANGE)
    text(ax, 44.8, 18.7, "forward", color=GREY)
    text(ax, 44.8, 16.2, "backward", color=GREEN)
    gradients = ((2, "Aᵀsg' + Wᵀg"), (27, "g' = Bᵀg   (r)"), (52, "g = ∂L/∂h"))
    for x, words in gradients:
        box(ax, x, 11.5, 11, 3.6, words, "temporary", 8.5)
    arrow(ax, (52, 13.3), (38, 13.3), color=GREEN)
    arrow(ax, (27, 13.3), (13, 13.3), color=GREEN)
    for x, source, words in (
        (20, 32.5, "∂L/∂A = s·g' xᵀ\n(r, in)"),
        (45, 57.5, "∂L/∂B = s·g (Ax)ᵀ\n(out, r)"),
    ):
        box(ax, x - 7, 3.6, 14, 4.6, words, "trained")
        path(ax, (source, 11.5), (source, 9.6), (x + 3, 9.6), (x + 3, 8.2), color=GREEN)
    text(
        ax,
        35,
        1.4,
        "∂L/∂W = g xᵀ (out, in) is never computed: W is not an argument of the gradient",
        color=BLUE,
    )


@drawing(
    2.9,
    "A matrix is a sum of rank-one matrices, each with a singular value. Keeping the largest "
    "three gives the best matrix of rank three; the rest is the error.",
)
def singular_values(ax):
    rng = np.random.default_rng(5)
    u, v = (np.linalg.qr(rng.standard_normal((12, 12)))[0] for _ in range(2))
    s = 3.0 * 0.55 ** np.arange(12)
    plot = plot_axes(ax, 5.5, 5, 22, 20, xlabel="number k", ylabel="singular value σₖ")
    plot.bar(range(1, 13), s, color=[ORANGE] * 3 + ["#c4c4c4"] * 9)
    plot.set_xticks([1, 3, 6, 9, 12])
    plot.annotate("kept: r = 3", (3.2, 1.3), color=ORANGE, size=9)
    error = np.sqrt(np.sum(s[3:] ** 2) / np.sum(s**2))
    plot.annotate(f"dropped:\nerror {100 * error:.0f} %", (6, 0.55), color=GREY, size=9)
    terms = [s[k] * np.outer(u[:, k], v[:, k]) for k in range(3)]
    pictures = (
        ("ΔW, rank 12", u * s @ v.T),
        *((f"σ{'₁₂₃'[k]}u{'₁₂₃'[k]}v{'₁₂₃'[k]}ᵀ", w) for k, w in enumerate(terms)),
    )
    for i, (name, w) in enumerate(pictures):
        x = 31 + 10.2 * i
        picture = plot_axes(ax, x, 12, 8, 8)
        picture.imshow(w, cmap="PuOr", vmin=-0.8, vmax=0.8)
        picture.axis("off")
        text(ax, x + 4, 22, name)
        text(ax, x + 9.1, 16, "≈++ "[i], 12)
    text(ax, 50.5, 8.3, "B = [σ₁u₁  σ₂u₂  σ₃u₃],   A = [v₁  v₂  v₃]ᵀ,   r = 3", 9, ORANGE)
    text(ax, 50.5, 5.3, "no other matrix of rank 3 is nearer (Eckart and Young 1936)", 8.5, GREY)


@drawing(
    2.7,
    "Where each setting acts: dropout on the input of A, the rank between A and B, alpha over "
    "r on the result, and the learning rate on the steps of A and B.",
)
def settings(ax):
    places = (
        (1.5, "x", "data"),
        (12, "dropout", "data"),
        (25.5, "A", "trained"),
        (38, "B", "trained"),
    )
    for x, words, kind in (*places, (50.5, "· α/r", "data")):
        box(ax, x, 14, 8.5, 4, words, kind, 11 if len(words) == 1 else 9)
    for start, end in ((10, 12), (20.5, 25.5), (34, 38), (46.5, 50.5), (59, 62.3)):
        arrow(ax, (start, 16), (end, 16))
    circle(ax, 63.9, 16, "+")
    box(ax, 32, 21.5, 8.5, 3.6, "W", "frozen", 11)
    path(ax, (5.7, 18), (5.7, 23.3), (32, 23.3))
    path(ax, (40.5, 23.3), (63.9, 23.3), (63.9, 17.6))
    arrow(ax, (65.5, 16), (69, 16))
    labels = (
        (16.2, "lora_dropout:\nzeroes entries of\nA's input only"),
        (36, "r: the width\nbetween A and B"),
        (54.7, "lora_alpha: scales\nthe update by α/r"),
    )  # fmt: skip
    for x, words in labels:
        text(ax, x, 11, words, 9, PURPLE, va="top")
        arrow(ax, (x, 11.4), (x, 13.9 if x != 36 else 15.6), color=PURPLE)
    text(ax, 36, 3.4, "learning_rate: the size of a step of A and B; B starts at zero", 9, ORANGE)


@drawing(
    4.0,
    "Eight ways to adapt a layer: what each trains, and the equation. LoRA, DoRA, IA3, "
    "bottleneck, prefix, prompt, BitFit and full fine-tuning.",
)
def methods(ax):
    entries = (
        ("full", "h = (W + ΔW)x", "every weight"), ("LoRA", "h = Wx + (α/r)·BAx", "A and B"),
        ("DoRA", "h = m · V/‖V‖ x,  V = W + (α/r)·BA", "A, B and m"),
        ("IA³", "k, v, and down_proj's input, times l", "vectors l"),
        ("bottleneck", "h = h + U·σ(Dh)", "U and D, after a sublayer"),
        ("prefix", "attention over [P; K], [P'; V]", "P, P' per layer"),
        ("prompt", "layer 0 reads [P; embeddings]", "P, virtual tokens"),
        ("BitFit", "h = Wx + b", "the biases b"),
    )  # fmt: skip
    for i, (name, equation, trained) in enumerate(entries):
        x, y = (1.5, 38) if i < 4 else (36, 38)
        y -= 9.4 * (i % 4)
        kind = "trained" if name == "full" else "frozen"
        ax.add_patch(
            Rectangle((x + 2.5, y - 5.5), 5, 5, fc=KINDS[kind][0], ec=KINDS[kind][1], lw=1.2)
        )
        for place in METHOD_PARTS[name]:
            ax.add_patch(
                Rectangle(
                    (x + place[0], y + place[1]),
                    *place[2:],
                    fc=KINDS["trained"][0],
                    ec=ORANGE,
                    lw=1.2,
                )
            )
        text(ax, x + 12.5, y - 0.8, name, 10, ha="left", weight="bold")
        text(ax, x + 12.5, y - 3, equation, 8.5, ha="left")
        text(ax, x + 12.5, y - 5.1, trained, 8.5, ORANGE, ha="left")
    text(ax, 35, 1.2, "blue: the frozen layer     orange: trained", 8.5, GREY)


METHOD_PARTS = {  # rectangles x, y, width, height, from the upper left corner of an entry
    "full": (), "LoRA": ((8.3, -5.5, 1, 5), (9.6, -3.4, 2.2, 1)),
    "DoRA": ((8.3, -5.5, 1, 5), (9.6, -3.4, 2.2, 1), (2.5, -0.2, 5, 0.8)),
    "IA³": ((8.3, -5.5, 0.9, 5),), "bottleneck": ((8.6, -4.6, 0.9, 3.2), (9.9, -4.6, 0.9, 3.2)),
    "prefix": ((0.4, -5.5, 1.5, 2.3), (0.4, -2.8, 1.5, 2.3)), "prompt": ((0.4, -7.4, 2.8, 1.2),),
    "BitFit": ((8.3, -5.5, 0.9, 5),),
}  # fmt: skip


@drawing(
    2.9,
    "One frozen base is shared by two adapters. Each row of a batch names its adapter: the first "
    "row uses A1 and B1, the second A2 and B2, the third none.",
)
def one_base_many_adapters(ax):
    box(ax, 26, 11.5, 18, 8, "base: one copy,\nnever written to", "frozen", 10)
    rows = (("row 1", "A₁, B₁"), ("row 2", "A₂, B₂"), ("row 3", "no adapter"))
    for i, (row, words) in enumerate(rows):
        y = 20.5 - 7 * i
        box(ax, 1.5, y - 2, 10, 4, row)
        arrow(ax, (11.5, y), (26, 15.5 - 2 * (i - 1)))
        box(ax, 53.5, y - 2, 14, 4, words, "trained" if i < 2 else "data")
        arrow(ax, (44, 15.5 - 2 * (i - 1)), (53.5, y))
    text(ax, 60.5, 25, "chosen per row", color=ORANGE)
    text(ax, 6.5, 25, "one batch", color=GREY)
    uses = ("to load: a small tree", "to switch: pass another tree", "to disable: pass {}")
    text(ax, 35, 2, "      ".join(uses), 8.5, GREY)


@drawing(
    2.7,
    "The size of the first update over the rank by the formula, for three rules that agree at "
    "r = 8: with a constant factor it grows as the root of r, with alpha over r it falls, with "
    "alpha over the root of r it stays.",
)
def scaling_rules(ax):
    plot = plot_axes(
        ax, 8, 5.5, 38, 19.5, xlabel="rank r", ylabel="‖ΔW‖ after one step\n(1 at r = 8)"
    )
    r = np.array([1, 2, 4, 8, 16, 32, 64])
    rules = (("constant:  s = 2", r / r, GREY, ":"), ("LoRA:  s = 16/r", 8 / r, BLUE, "-"),
             (f"rsLoRA:  s = {2 * np.sqrt(8):.2f}/√r", np.sqrt(8 / r), ORANGE, "--"))  # fmt: skip
    for (name, scale, color, style), y in zip(rules, (2.6, 0.42, 1.05)):
        plot.plot(r, scale * np.sqrt(r / 8), style, color=color, lw=1.8, marker="o", ms=3.5)
        plot.text(70, y, name, color=color, size=9, va="center")
    plot.set_xscale("log", base=2)
    plot.set_yscale("log", base=2)
    plot.set_xticks(r, r)
    plot.set_yticks([0.5, 1, 2], ["½", "1", "2"])
    words = "ΔW = −s·η·sign(∂L/∂B)·A,\na sum of r terms: size s·√r"
    text(ax, 46.6, 12, words, 8.5, GREY, ha="left")


@drawing(
    2.7,
    "Two runs find two subspaces of the same space. The angle between their directions says how "
    "much they agree: φ is one for the same directions, r over d for random ones.",
)
def subspaces(ax):
    cases = (
        (3, "the same", 4, "φ near 1"),
        (26, "partly shared", 40, "φ between"),
        (49, "unrelated", 86, "φ near r/d"),
    )
    for x, name, angle, words in cases:
        text(ax, x + 9, 24.6, name, 10, weight="bold")
        for turn, color, label in ((0, BLUE, "u₁"), (angle, ORANGE, "u₂")):
            way = np.radians(turn)
            end = (x + 2 + 14 * np.cos(way), 7.5 + 14 * np.sin(way))
            arrow(ax, (x + 2, 7.5), end, color=color)
            shift = (1.6, -0.9) if turn == 0 else (1.4, 1.0)
            text(ax, end[0] + shift[0], end[1] + shift[1], label, 10, color)
        text(ax, x + 9, 4.6, words, 9, GREY)
    words = "φ = ‖U₁ᵀU₂‖² / r: the mean squared cosine (U₁, U₂: r directions of each run's ΔW)"
    text(ax, 35, 1.6, words, 8.5)


@drawing(
    2.9,
    "Two adapters are added exactly by placing B1 and B2 side by side and A1 above A2: the rank "
    "doubles. Averaging the factors also multiplies B1 by A2, and is not the same.",
)
def adapters_combined(ax):
    title(ax, 1.5, 26.8, "exact: concatenate the ranks")
    for i, (name, kind) in enumerate((("B₁", "trained"), ("B₂", "other"))):
        matrix(ax, 4 + 2.6 * i, 8, 2.6, 13, name, kind, "out" * (i == 0), "r", 9)
    for i, (name, kind) in enumerate((("A₁", "trained"), ("A₂", "other"))):
        matrix(ax, 14, 14.8 - 2.6 * i, 13, 2.6, name, kind, "r", "in" * (i == 0), 9)
    text(ax, 14, 4.6, "= B₁A₁ + B₂A₂,  rank 2r", color=GREEN)
    title(ax, 36, 26.8, "not the same: average the factors")
    matrix(ax, 39, 8, 2.6, 13, "", "data", "out", "r")
    matrix(ax, 46, 13.2, 13, 2.6, "½(A₁ + A₂)", "data", "r", "in", 9)
    text(ax, 37.6, 5.9, "½(B₁ + B₂)", 9, ha="left")
    text(ax, 36, 2.6, "= ¼(B₁A₁ + B₂A₂ + B₁A₂ + B₂A₁)", color=PURPLE, ha="left")


@drawing(
    3.2,
    "The largest singular values of a matrix, after an update of full rank and after an update of "
    "rank one with the same norm. Above each bar is the largest cosine with the directions of the "
    "matrix before. The update of rank one adds one tall bar with a small cosine: an intruder.",
)
def intruder_dimensions(ax):
    rng = np.random.default_rng(1)
    n, top, epsilon = 48, 9, 0.5
    U0, _ = np.linalg.qr(rng.standard_normal((n, n)))
    V0, _ = np.linalg.qr(rng.standard_normal((n, n)))
    W0 = (U0 * np.geomspace(10, 0.5, n)) @ V0.T
    dense, factor = rng.standard_normal((n, n)), rng.standard_normal((2, n))
    updates = {"update of full rank": dense, "update of rank one, same norm": np.outer(*factor)}
    for i, (name, update) in enumerate(updates.items()):
        U, S, _ = np.linalg.svd(W0 + 9 * update / np.linalg.norm(update))
        cosines = np.abs(U.T @ U0).max(axis=1)
        x = 3 + 34 * i
        text(ax, x, 29.5, name, 10, ha="left", weight="bold")
        for j in range(top):
            kind = "trained" if cosines[j] < epsilon else "frozen"
            fill, edge, _ = KINDS[kind]
            left = x + 3.4 * j
            ax.add_patch(Rectangle((left, 5), 2.8, 1.6 * S[j], fc=fill, ec=edge, lw=1.2))
            words = f"{cosines[j]:.2f}".lstrip("0")
            text(ax, left + 1.4, 6.2 + 1.6 * S[j], words, 8.5, edge)
    text(
        ax,
        3,
        3.2,
        "bars: singular values of W₀ + ΔW; numbers: largest |cosine| of the left",
        8.5,
        GREY,
        ha="left",
    )
    text(
        ax,
        3,
        1.2,
        "singular vector with all of W₀. Orange: below 0.5, an intruder dimension",
        8.5,
        GREY,
        ha="left",
    )
