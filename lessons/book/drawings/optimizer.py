"""Drawings of an optimizer step: initialization, signs, rates, dropout, trained parameters."""

import numpy as np

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
