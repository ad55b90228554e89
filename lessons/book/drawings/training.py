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
    2.5,
    "The tokens of a text go through the frozen model. The new head reads the state of the last "
    "token and gives one logit per class. The model's own head is not used.",
)
def class_head(ax):
    tokens = ["Wes", "keeps", "a", "pink", "book", "in", "the", "loft", "."]
    for i, word in enumerate(tokens):
        x = 1.5 + 5.3 * i
        box(ax, x, 3.6, 5, 3.6, word)
        arrow(ax, (x + 2.5, 7.2), (x + 2.5, 9.6))
        arrow(ax, (x + 2.5, 14.4), (x + 2.5, 16.8))
        box(ax, x, 16.8, 5, 3.6, "h", "temporary")
    box(ax, 1.5, 9.6, 47.4, 4.8, "frozen model, with or without LoRA", "frozen")
    text(ax, 25.2, 1.6, "the last token has seen the whole text", color=GREY)
    text(ax, 25.2, 22.4, "the model's own head (V, D) is not used", color=GREY)
    arrow(ax, (48.9, 18.6), (53, 18.6))
    box(ax, 53, 15.9, 12.5, 5.4, "score W\n(C, D)", "trained")
    arrow(ax, (59.2, 15.9), (59.2, 13))
    box(ax, 53, 9.4, 12.5, 3.6, "C logits", "temporary")
    arrow(ax, (59.2, 9.4), (59.2, 7))
    text(ax, 59.2, 5.4, "softmax: p(class)", color=INK)


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


@drawing(
    2.9,
    "Gradient accumulation: two micro-batches with 6 and 2 target tokens. The sum of both "
    "losses is divided by all 8 tokens. The mean of the two means would weight the tokens "
    "differently.",
)
def accumulation(ax):
    for y, n, name in ((20, 6, "micro-batch 1"), (11, 2, "micro-batch 2")):
        text(ax, 1.5, y + 2, name, ha="left", weight="bold")
        for i in range(n):
            box(ax, 15 + 3.2 * i, y + 0.6, 3, 3, "", "data")
        text(ax, 15.2, y - 0.8, f"{n} target tokens", 8.5, GREY, ha="left")
        arrow(ax, (35.4, y + 2), (39.6, y + 2))
        box(ax, 39.6, y, 12.4, 4.2, f"Σ of {n} losses", "temporary")
        path(ax, (52, y + 2), (61.5, y + 2), (61.5, 19.8 if y > 15 else 15.6))
    box(ax, 55, 15.6, 13.5, 4.2, "÷ 8, one step", "trained")
    text(ax, 1.5, 5.2, "right:  (Σ₁ + Σ₂) / 8       each token counts 1/8", color=GREEN, ha="left")
    text(
        ax,
        1.5,
        2.6,
        "wrong: (Σ₁/6 + Σ₂/2) / 2    tokens count 1/12 and 1/4",
        color=PURPLE,
        ha="left",
    )


@drawing(
    3.0,
    "BatchNorm divides by statistics of the batch and updates running statistics in each "
    "forward pass, without a gradient. RMSNorm has no such state: only its weight could be "
    "trained.",
)
def norms(ax):
    columns = (
        (1.5, "BatchNorm", "mean and variance\nof the batch"),
        (37, "RMSNorm", "mean square\nof the token itself"),
    )
    for x, name, statistic in columns:
        title(ax, x, 27.8, name)
        box(ax, x, 18, 6, 4, "x")
        box(ax, x + 10, 17.3, 14, 5.4, statistic)
        box(ax, x + 26.5, 18, 5.5, 4, "y")
        arrow(ax, (x + 6, 20), (x + 10, 20))
        arrow(ax, (x + 24, 20), (x + 26.5, 20))
        words = "γ, β" if name == "BatchNorm" else "weight"
        box(ax, x + 11.5, 24.4, 13, 3, f"{words}: gradient", "trained")
        arrow(ax, (x + 18, 24.4), (x + 18, 22.7))
    box(ax, 8, 8.2, 21, 4.2, "running mean, variance", "other")
    arrow(
        ax,
        (18.5, 17.3),
        (18.5, 12.4),
        "updated in training mode,\nwithout a gradient",
        PURPLE,
        (9, 0),
        size=8.5,
    )
    text(ax, 18.5, 5.9, "used in evaluation mode", 9, PURPLE)
    text(
        ax, 54, 12.6, "no running statistics:\ntraining and evaluation\ncompute the same", 9, GREEN
    )
    text(ax, 35, 2, "“frozen” must mean both: no gradient, and evaluation mode for BatchNorm", 9)


@drawing(
    3.1,
    "A fact is a key and twelve random letters out of sixteen, so it has 48 bits. Its letters are "
    "the targets. What the model has learned is 4 bits per letter minus the letter's loss in bits.",
)
def memorized_bits(ax):
    letters = "pmcjmgeedaio"
    losses = (3.1, 2.2, 0.6, 1.8, 0.2, 2.6, 3.3, 0.9, 0.1, 1.4, 0.4, 2.0)  # made up
    box(ax, 1.5, 22, 8, 4.5, "aej:", "data", 11, family="monospace")
    text(ax, 5.5, 28.4, "key", color=GREY)
    text(ax, 36, 28.4, "12 random letters of 16: 12 · log₂ 16 = 48 bits", color=GREY)
    for i, (letter, loss) in enumerate(zip(letters, losses)):
        x = 11 + 4.4 * i
        box(ax, x, 22, 4.2, 4.5, letter, "trained", 11, family="monospace")
        fill = {"width": 2.6, "lw": 1, "ec": INK}
        ax.add_patch(Rectangle((x + 0.8, 8), height=2.5 * loss, fc="#f0f0f0", **fill))
        learned = 2.5 * (4 - loss)
        ax.add_patch(Rectangle((x + 0.8, 8 + 2.5 * loss), height=learned, fc="#9ecae9", **fill))
    for bits in (0, 4):
        text(ax, 10, 8 + 2.5 * bits, f"{bits} bits", 8.5, GREY, ha="right")
    text(ax, 8.8, 13, "loss of\nthe letter", 9, GREY, ha="right")
    text(ax, 64.5, 15, "learned", 9, BLUE, ha="left")
    total = 4 * len(letters) - sum(losses)
    text(ax, 36, 5.2, f"learned = 48 − Σ loss (in bits) = {total:.1f} bits (an example, made up)")
    text(ax, 36, 2.2, "capacity = Σ over all facts / number of trained parameters", 9, ORANGE)
