"""The model: a Llama's layer, positions, masks, and where virtual tokens are."""

import numpy as np
from matplotlib.patches import Circle

from lessons.book.drawings.elements import *
from minilora import layers


@drawing(
    4.4,
    "One layer of a Llama: the attention sublayer above, the MLP below. A pair A, B can sit "
    "on each of the seven projections.",
)
def llama_block(ax):
    for y, name in ((38.3, "q_proj"), (33.3, "k_proj"), (28.3, "v_proj")):
        projection(ax, 20, y, name)
        arrow(ax, (16.5, 33.3), (17.8, 33.3), (17.8, y), (20, y))
    for y in (38.3, 33.3):
        box(ax, 32, y - 1.5, 5.5, 3, "RoPE")
        arrow(ax, (29.5, y), (32, y))
        arrow(ax, (37.5, y), (38.5, y), (38.5, 33.3), (39.5, 33.3))
    arrow(ax, (29.5, 28.3), (44.5, 28.3), (44.5, 31.6))
    box(ax, 39.5, 31.6, 10, 3.4, "attention")
    residual(ax, 33.3, "o_proj", 49.5)
    for y, name in ((15.3, "gate_proj"), (9.3, "up_proj")):
        projection(ax, 20, y, name)
        arrow(ax, (16.5, 12.3), (17.8, 12.3), (17.8, y), (20, y))
    arrow(ax, (29.5, 15.3), (37.5, 15.3), (37.5, 14))
    arrow(ax, (29.5, 9.3), (37.5, 9.3), (37.5, 10.6))
    box(ax, 32, 10.6, 11, 3.4, "SwiGLU")
    residual(ax, 12.3, "down_proj", 43)
    legend(ax, 2, 1.5, 21, trained="A, B of LoRA", frozen="frozen projection")


def projection(ax, x, y, name):
    """Draw a frozen projection with an adapter on its upper edge."""
    box(ax, x, y - 1.7, 9.5, 3.4, name, "frozen")
    rectangle(ax, x + 6.1, y + 1, 3.6, 1.7, "trained", lw=1.2, zorder=4)
    text(ax, x + 7.9, y + 1.8, "A, B", 8, zorder=5)


def residual(ax, y, name, start):
    """Draw the norm at the start of a sublayer, the last projection, and the sum at the end."""
    text(ax, 1.2, y, "x", 11)
    arrow(ax, (2.2, y), (8, y))
    box(ax, 8, y - 1.7, 8.5, 3.4, "RMSNorm")
    arrow(ax, (start, y), (52.5, y))
    projection(ax, 52.5, y, name)
    arrow(ax, (62, y), (64.9, y))
    plus(ax, 66.4, y)
    arrow(ax, (5, y), (5, y - 8.6), (66.4, y - 8.6), (66.4, y - 1.6), color=GREY)
    arrow(ax, (67.9, y), (69.8, y))


@drawing(
    3.2,
    "Rotary positions: a pair of numbers is a point in the plane. At position t it is rotated "
    "by t times the pair's frequency. Of eight pairs, the first four are shown: pair 0 turns "
    "quickly, pair 3 slowly.",
)
def rope(ax):
    config = ModelConfig(256, 48, 128, 3, 3, 3, 16)
    cos, sin = layers.rope_cos_sin(np.arange(8), config)
    clock(ax, 10.5, 17.5, 7.5, cos[1, 0], sin[1, 0], ORANGE)
    arrow(ax, (10.5, 17.5), (18, 17.5), color=GREY)
    text(ax, 19.5, 17.5, "(a, b)", color=GREY, ha="left")
    text(ax, 14, 25.5, "(a cos φ − b sin φ,\n b cos φ + a sin φ)", color=ORANGE, ha="left")
    text(ax, 12.9, 19, "φ", 10)
    text(ax, 1.5, 5.6, "a: element j of a head\nb: element j + hd/2", color=GREY, ha="left")
    text(ax, 51.4, 29.5, "position t in the sequence")
    for t in range(8):
        text(ax, 35.3 + 4.6 * t, 27, str(t))
        for j in range(4):
            clock(ax, 35.3 + 4.6 * t, 23 - 5.6 * j, 2, cos[t, j], sin[t, j], BLUE)
    for j in range(4):
        text(ax, 32.2, 23 - 5.6 * j, f"pair {j}", ha="right")
    words = f"shown: the first 4 of {cos.shape[-1]} pairs (hd = {config.head_dim})"
    text(ax, 1.5, 1.8, words, 8.5, GREY, ha="left")
    text(ax, 51.4, 1.8, "a score q·k depends only on the difference of positions", color=GREY)


def clock(ax, x, y, radius, cos, sin, color):
    """Draw a circle with a hand at an angle."""
    ax.add_patch(Circle((x, y), radius, fc="white", ec="#bbbbbb", lw=1))
    arrow(ax, (x, y), (x + radius * cos, y + radius * sin), color=color)


@drawing(
    2.9,
    "Three attention masks of ten tokens. Causal: each token sees itself and all before it. "
    "Packed: it sees only its own example. Window: it sees at most four tokens.",
)
def masks(ax):
    t = np.arange(10)
    kinds = (
        (5, "causal", "every key up to its own", 0 * t),
        (27.8, "two packed examples", "keys of the same example", np.where(t < 6, 0, 6)),
        (50.6, "window of 4", "the last 4 keys", np.maximum(0, t - 3)),
    )
    for x, name, words, first in kinds:
        for row, column in np.ndindex(10, 10):
            seen = layers.attention_mask(first[None], 10)[0, row, column]
            fill = BLUE if seen else "#f0f0f0"
            rectangle(ax, x + 1.7 * column, 21.8 - 1.7 * row, 1.7, 1.7, fc=fill, ec="white")
        text(ax, x + 8.5, 26.8, name, 10, weight="bold")
        text(ax, x + 8.5, 4.7, "key s")
        text(ax, x + 8.5, 2.2, words, color=GREY)
    text(ax, 2.8, 15, "query t", rotation=90)
    text(ax, 5.8, 24.6, "0", 8, GREY)
    text(ax, 21.2, 24.6, "9", 8, GREY)


@drawing(
    2.9,
    "Where virtual tokens are. Prompt tuning puts trained vectors before the embeddings, once. "
    "Prefix tuning puts trained keys and values before those of the text in every layer.",
)
def virtual_tokens(ax):
    methods = (
        (1.5, "prompt tuning", ("P", "", "", ""), "trained once, below all layers"),
        (37, "prefix tuning", (None, "K V", "K V", "K V"), "trained in every layer"),
    )
    for x, method, trained, words in methods:
        title(ax, x, 26.5, method)
        text(ax, x + 16, 2, words, 8.5, ORANGE)
        for row, name in enumerate(("embeddings", "layer 0", "layer 1", "layer 2")):
            y, virtual = 5 + 5 * row, trained[row]
            text(ax, x, y + 1.7, name, 8.5, GREY, ha="left")
            for i in range(7):
                if i >= 2:
                    box(ax, x + 10 + 3.2 * i, y, 3, 3.4)
                elif virtual is not None:
                    kind = "trained" if virtual else "data"
                    box(ax, x + 10 + 3.2 * i, y, 3, 3.4, virtual, kind, 6.5)
