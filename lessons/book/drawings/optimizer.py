"""Drawings of an optimizer step: initialization, signs, rates, dropout, trained parameters."""

import numpy as np
from matplotlib.patches import Circle

from lessons.book.drawings.elements import *
from minilora import TrainConfig, optim


@drawing(
    3.0,
    "The four starts of B and A. If both are zero, both gradients are zero for ever. If one is "
    "zero, the product is zero and the zero factor has a gradient. If both are random, the model "
    "starts changed.",
)
def four_starts(ax):
    starts = (
        ("B zero, A random", 0, 1, "LoRA's start: equals the base, learns", GREEN),
        ("B random, A zero", 1, 0, "equals the base, learns", GREEN),
        ("both random", 1, 1, "starts from a changed model", PURPLE),
        ("both zero", 0, 0, "equals the base, never learns", PURPLE),
    )
    for i, (name, b, a, verdict, color) in enumerate(starts):
        x, y = 1.5 + 35 * (i % 2), 17.5 - 14 * (i // 2)
        text(ax, x, y + 10, name, 10, ha="left", weight="bold")
        for filled, corner, size in ((b, (x + 1, y + 1), (2, 7)), (a, (x + 4, y + 3.6), (7, 2))):
            fill = KINDS["trained"][0] if filled else "white"
            ax.add_patch(Rectangle(corner, *size, fc=fill, ec=ORANGE, lw=1.2))
        text(ax, x + 2, y + 4.5, "B")
        text(ax, x + 7.5, y + 4.6, "A")
        lines = (
            "BA " + ("≠" if a and b else "=") + " 0",
            "∂L/∂B = s·G Aᵀ " + ("≠" if a else "=") + " 0",
            "∂L/∂A = s·BᵀG " + ("≠" if b else "=") + " 0",
        )
        for row, words in enumerate(lines):
            text(ax, x + 13, y + 7.4 - 2.3 * row, words, ha="left")
        text(ax, x + 13, y + 0.2, verdict, 8.5, color, ha="left")


@drawing(
    2.7,
    "Left: six gradient entries between a hundred thousandth and one. Right: the first step of "
    "Adam, which moves each of them by the learning rate, against the sign of its gradient.",
)
def first_step_of_adam(ax):
    gradient = np.array([0.8, -0.05, 0.002, -0.3, 0.00001, -0.004])
    params, grads = {"B": np.zeros((1, 6))}, {"B": gradient[None]}
    stepped, _ = optim.adamw(params, grads, optim.adamw_init(params), {"B": 4e-3}, TrainConfig())
    left = plot_axes(ax, 8, 5.5, 24, 17, xlabel="entry of B", ylabel="|gradient|")
    colors = [ORANGE if g > 0 else BLUE for g in gradient]
    left.bar(range(6), np.abs(gradient), color=colors)
    left.set(yscale="log", ylim=(3e-6, 3))
    right = plot_axes(ax, 44, 5.5, 24, 17, xlabel="entry of B", ylabel="first step / η")
    right.bar(range(6), stepped["B"][0] / 4e-3, color=colors)
    right.axhline(0, color=INK, lw=0.8)
    right.set(ylim=(-1.5, 1.5), yticks=[-1, 0, 1], yticklabels=["−1", "0", "1"])
    text(ax, 20, 24.8, "orange: positive, blue: negative", 8.5, GREY)
    text(ax, 56, 24.8, "m̂/√v̂ = g/|g| at the first step", 8.5, GREY)


@drawing(
    3.0,
    "One step of size η. Full fine-tuning moves each entry of W by η. LoRA moves each entry of B "
    "by η, and an entry of the update is a sum of r small numbers of A, times s and η.",
)
def one_entry_moves(ax):
    title(ax, 1.5, 27.5, "full fine-tuning")
    title(ax, 30, 27.5, "LoRA")
    for i in range(5):
        for j in range(5):
            ax.add_patch(Rectangle((3 + 2.6 * i, 9.5 + 2.6 * j), 2.6, 2.6, fc="#fbdcc4", ec=ORANGE))
            text(ax, 4.3 + 2.6 * i, 10.8 + 2.6 * j, "±η", 7.5)
    text(ax, 9.5, 6.6, "an entry of W moves by η", 9)
    for j in range(5):
        for i in range(2):
            ax.add_patch(
                Rectangle((31 + 2.6 * i, 9.5 + 2.6 * j), 2.6, 2.6, fc="#fbdcc4", ec=ORANGE)
            )
            text(ax, 32.3 + 2.6 * i, 10.8 + 2.6 * j, "±η", 7.5)
    text(ax, 33.6, 24, "step of B", 8.5, GREY)
    text(ax, 38.6, 16, "·", 14)
    for i in range(5):
        for j in range(2):
            corner = (41 + 2.6 * i, 13.4 + 2.6 * j)
            ax.add_patch(Rectangle(corner, 2.6, 2.6, fc="#f0f0f0", ec=GREY))
    text(ax, 47.5, 20.2, "A, entries up to 1/√in", 8.5, GREY)
    text(ax, 49, 6.6, "an entry of ΔW = s·η·(± a₁ ± … ± a_r), about s·η·√(r / (3·in))", 9)
    text(ax, 35, 2.4, "s = α/r, in: the width of the input, a₁ … a_r: entries of A", 9, GREY)


@drawing(
    2.8,
    "Dropout on the input of A: three of ten entries are zero, the others are divided by 0.7. The "
    "frozen W gets the input unchanged.",
)
def dropout_entries(ax):
    x = np.array([0.6, -0.4, 0.9, 0.3, -0.7, 0.5, -0.2, 0.8, -0.5, 0.4])
    kept = np.array([1, 1, 0, 1, 1, 0, 1, 1, 0, 1])
    for y, values, words in ((18, x, "x"), (6, x * kept / 0.7, "dropout(x)")):
        text(ax, 1.5, y, words, 10, ha="left", weight="bold")
        ax.plot([13, 44], [y, y], color=GREY, lw=0.8)
        for i, value in enumerate(values):
            corner = (13.6 + 3.1 * i, min(y, y + 5 * value))
            ax.add_patch(Rectangle(corner, 2.2, abs(5 * value), fc="#d6e9f5", ec=BLUE, lw=1))
            if value == 0:
                text(ax, 14.7 + 3.1 * i, y + 1.4, "0", 9, PURPLE)
    arrow(ax, (28.5, 13.2), (28.5, 10.8), "· mask / 0.7", PURPLE, (-6.5, 0), size=8.5)
    box(ax, 52, 16, 8, 4, "W", "frozen", 11)
    box(ax, 52, 4, 8, 4, "A", "trained", 11)
    arrow(ax, (45, 18), (52, 18))
    arrow(ax, (45, 6), (52, 6))
    path(ax, (60, 18), (65, 18), (65, 13.6))
    path(ax, (60, 6), (65, 6), (65, 10.4), color=ORANGE)
    circle(ax, 65, 12, "+")
    text(ax, 67.4, 8.2, "· B", 8.5, ORANGE)
    text(ax, 35, 25.6, "a new mask per step; no mask in evaluation", 9, GREY)


@drawing(
    3.0,
    "Clipping at c. A gradient longer than c is shortened to the circle of radius c and keeps its "
    "direction. A shorter one is unchanged.",
)
def clipped_gradients(ax):
    ax.add_patch(Circle((17, 13.5), 8, fc="#f6f6f6", ec=GREY, ls="--", lw=1.2))
    text(ax, 17, 3.6, "‖g‖ = c", 9, GREY)
    for end in ((3.5, 2), (14, 9), (-4.5, 3.5)):
        norm = np.hypot(*end)
        if norm > 8:
            arrow(ax, (17, 13.5), (17 + end[0], 13.5 + end[1]), color="#b5b5b5", style="--")
        scale = min(1, 8 / norm)
        arrow(ax, (17, 13.5), (17 + scale * end[0], 13.5 + scale * end[1]), color=ORANGE)
    text(ax, 32, 23.5, "g", 10, GREY, ha="left")
    text(ax, 25.4, 16.6, "g · c/‖g‖", 9, ORANGE, ha="left")
    lines = (
        (18, "all trained parameters are one vector g", INK),
        (14, "longer than c: same direction, length c", ORANGE),
        (10, "shorter: unchanged", ORANGE),
        (5.5, "Adam's v remembers the squares of what is left:", INK),
        (3, "at most c² per step", GREEN),
    )
    for y, words, color in lines:
        text(ax, 36, y, words, 9, color, ha="left")


@drawing(
    3.3,
    "One budget of parameters, spent in four ways on the seven matrices of a layer: one matrix at "
    "rank 38, two at rank 19, the MLP at rank 7, or all seven at rank 4.",
)
def one_budget(ax):
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    ways = {
        "q": {"q_proj": 38},
        "q and v": {"q_proj": 19, "v_proj": 19},
        "MLP": {"gate_proj": 7, "up_proj": 7, "down_proj": 7},
        "all seven": dict.fromkeys(names, 4),
    }
    for column, name in enumerate(names):
        text(ax, 16 + 7 * column, 30, name.removesuffix("_proj"), 9, weight="bold")
    text(ax, 68.5, 30, "parameters", 8.5, GREY, ha="right")
    for row, (way, ranks) in enumerate(ways.items()):
        y = 23.5 - 6.2 * row
        text(ax, 1.5, y + 2, way, 10, ha="left")
        for column, name in enumerate(names):
            x, r = 13.2 + 7 * column, ranks.get(name, 0)
            ax.add_patch(Rectangle((x, y), 5.6, 4.2, fc="#d6e9f5", ec=BLUE, lw=1))
            if r:
                ax.add_patch(Rectangle((x, y), 5.6, 4.2 * r / 38, fc="#f0b37e", ec=ORANGE, lw=1))
                text(ax, x + 2.8, y + 3.1 if r < 30 else y + 2.1, f"r = {r}", 8)
        text(ax, 68.5, y + 2, f"{budget_of(ranks):,}", 9, ORANGE, ha="right")
    text(ax, 35, 2, "micro: three layers, attention 48 × 48, MLP 48 × 128", 9, GREY)


def budget_of(ranks):
    """Return 3·Σ r·(in + out) for {name: rank} on the matrices of micro."""
    wide = ("gate_proj", "up_proj", "down_proj")
    return 3 * sum(r * (48 + (128 if name in wide else 48)) for name, r in ranks.items())


@drawing(
    3.1,
    "The memory of a step over time. Activations grow in the forward pass and shrink in the "
    "backward pass. Each product adds a dense copy of one weight for a moment. The codes stay.",
)
def memory_over_time(ax):
    plot = plot_axes(ax, 6, 5.5, 42, 22.5, xlabel="time", ylabel="bytes")
    layers = 4
    codes, states = 1.0, 0.6
    time, kept = [0.0], [0.0]
    for i in range(2 * layers):
        change = 0.7 if i < layers else -0.7
        time.append(i + 1.0)
        kept.append(kept[-1] + change)
    kept = np.array(kept)
    plot.fill_between(time, 0, codes, color="#d6e9f5", lw=0)
    plot.fill_between(time, codes, codes + states, color="#fbdcc4", lw=0)
    plot.fill_between(time, codes + states, codes + states + kept, color="#dddddd", lw=0)
    for i in range(2 * layers):
        height = codes + states + (kept[i] + kept[i + 1]) / 2
        plot.add_patch(Rectangle((i + 0.4, height), 0.2, 0.55, fc="white", ec=GREEN, ls="--"))
    plot.axvline(layers, color=INK, lw=0.8, ls=":")
    plot.set(xlim=(0, 2 * layers), ylim=(0, 5.4), xticks=[], yticks=[])
    plot.text(2, 5, "forward", size=9, ha="center")
    plot.text(6, 5, "backward", size=9, ha="center")
    lines = (
        (23, "dense copy of one weight, for one product", GREEN),
        (18, "activations", GREY),
        (12.5, "A, B, gradients, moments", ORANGE),
        (8, "codes and scales: all the time", BLUE),
    )
    for y, words, color in lines:
        text(
            ax,
            49.5,
            y,
            words.replace(", for", ",\nfor").replace(": ", ":\n"),
            8.5,
            color,
            ha="left",
        )


@drawing(
    2.6,
    "A weight of RMSNorm multiplies one channel of every token, so its step moves a whole column. "
    "An entry of A changes one column of the update of a projection.",
)
def one_norm_weight(ax):
    for x, name in ((3, "tokens after RMSNorm"), (40, "update of a projection")):
        title(ax, x, 23.5, name)
    for row in range(5):
        for column in range(9):
            fill = "#f0b37e" if column == 3 else "#f0f0f0"
            corner = (3 + 2.4 * column, 8 + 2.4 * row)
            ax.add_patch(Rectangle(corner, 2.4, 2.4, fc=fill, ec="white", lw=1))
    text(ax, 13.8, 5.4, "one norm weight: a channel of every token", 8.5, ORANGE)
    for row in range(5):
        for column in range(9):
            fill = "#fbdcc4" if column == 3 else "#f0f0f0"
            corner = (40 + 2.4 * column, 8 + 2.4 * row)
            ax.add_patch(Rectangle(corner, 2.4, 2.4, fc=fill, ec="white", lw=1))
    text(ax, 50.8, 5.4, "one entry of A: one input, times s·B", 8.5, ORANGE)
    text(ax, 35, 1.8, "Adam moves both by the same η, but they do not do the same", 9, GREY)
