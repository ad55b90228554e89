"""The low-rank update: LoRA and QLoRA, the trees, the places, the gradient, singular values."""

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
