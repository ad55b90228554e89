"""What the model reads and how it is trained: masks, positions, targets, schedules, norms."""

import numpy as np
from matplotlib.patches import Circle

from lessons.book.drawings.elements import *
from minilora import TrainConfig, layers, optim


@drawing(
    2.9,
    "Three attention masks of ten tokens. Causal: each token sees itself and all before it. "
    "Packed: it sees only its own example. Window: it sees at most four tokens.",
)
def masks(ax):
    t = np.arange(10)
    starts = {
        "causal": ("every key up to its own", 0 * t),
        "two packed examples": ("keys of the same example", np.where(t < 6, 0, 6)),
        "window of 4": ("the last 4 keys", np.maximum(0, t - 3)),
    }
    for i, (name, (words, first)) in enumerate(starts.items()):
        x, seen = 5 + 22.8 * i, layers.attention_mask(first[None], 10)[0]
        text(ax, x + 8.5, 26.8, name, 10, weight="bold")
        for row in range(10):
            for column in range(10):
                fill = BLUE if seen[row, column] else "#f0f0f0"
                corner = (x + 1.7 * column, 21.8 - 1.7 * row)
                ax.add_patch(Rectangle(corner, 1.7, 1.7, fc=fill, ec="white", lw=1))
        text(ax, x + 8.5, 4.7, "key s")
        text(ax, x + 8.5, 2.2, words, color=GREY)
    text(ax, 2.8, 15, "query t", rotation=90)
    text(ax, 5.8, 24.6, "0", 8, GREY)
    text(ax, 21.2, 24.6, "9", 8, GREY)


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
    text(ax, 14, 25.5, "(a cos θ − b sin θ,\n b cos θ + a sin θ)", color=ORANGE, ha="left")
    text(ax, 12.9, 19, "θ", 10)
    text(ax, 1.5, 5.6, "a: element j of a head\nb: element j + hd/2", 9, GREY, ha="left")
    for row, j in enumerate((0, 1, 2, 3)):
        y = 23 - 5.6 * row
        text(ax, 32.2, y, f"pair {j}", ha="right")
        for t in range(8):
            clock(ax, 35.3 + 4.6 * t, y, 2, cos[t, j], sin[t, j], BLUE)
    for t in range(8):
        text(ax, 35.3 + 4.6 * t, 27, str(t))
    text(ax, 51.4, 29.5, "position t in the sequence")
    words = f"shown: the first 4 of {cos.shape[-1]} pairs (hd = {config.head_dim})"
    text(ax, 1.5, 1.8, words, 8.5, GREY, ha="left")
    text(ax, 51.4, 1.8, "a score q·k depends only on the difference of positions", color=GREY)


def clock(ax, x, y, radius, cos, sin, color):
    """Draw a circle with a hand at an angle."""
    ax.add_patch(Circle((x, y), radius, fc="white", ec="#bbbbbb", lw=1))
    arrow(ax, (x, y), (x + radius * cos, y + radius * sin), color=color)


@drawing(
    2.6,
    "A row of tokens and its targets, shifted by one. With mask_prompt only the answer's "
    "tokens and the end of text count in the loss.",
)
def targets(ax):
    tokens = ["Who", "has", "the", "kite", "?", "Ada", "keeps", "it", "<end>"]
    for i, word in enumerate(tokens[:-1]):
        answer = i >= 4  # the token whose target is the answer's first
        box(ax, 11 + 7.1 * i, 17.5, 6.8, 4, word)
        box(ax, 11 + 7.1 * i, 9, 6.8, 4, tokens[i + 1], "trained" if answer else "data")
        arrow(ax, (14.4 + 7.1 * i, 17.5), (14.4 + 7.1 * i, 13))
        text(ax, 14.4 + 7.1 * i, 6.6, "1" if answer else "0", 10, ORANGE if answer else GREY)
    for y, words in ((19.5, "tokens"), (11, "targets"), (6.6, "mask")):
        text(ax, 1.5, y, words, ha="left", weight="bold")
    text(ax, 28.8, 23.7, "prompt", color=GREY)
    text(ax, 57.2, 23.7, "answer", color=ORANGE)
    text(ax, 35, 2.6, "loss = Σ mask · (−log p(target)) / Σ mask", color=INK)


@drawing(
    2.6,
    "The learning rate over 100 steps: linear warm-up, then constant, linear to zero, or half "
    "a cosine to zero.",
)
def schedules(ax):
    plot = plot_axes(
        ax, 7, 5.5, 60, 18.5, xlabel="step", ylabel="rate / largest rate", ylim=(0, 1.08)
    )
    styles = zip(("constant", "linear", "cosine"), (GREY, BLUE, ORANGE), ("-", "--", "-."))
    for name, color, style in styles:
        config = TrainConfig(iters=100, learning_rate=1.0, warmup_ratio=0.1, lr_schedule=name)
        rates = [optim.get_lr(step, config) for step in range(100)]
        plot.plot(rates, style, color=color, lw=1.8, label=name)
    plot.axvspan(0, 10, color="#f0f0f0", zorder=0)
    plot.text(5, 0.06, "warm-up", size=8.5, color=GREY, ha="center", rotation=90)
    plot.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.12, 0))
