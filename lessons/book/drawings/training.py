"""A run: the first step of Adam, the schedules, and what to do if it goes wrong."""

import numpy as np

from lessons.book.drawings.elements import *
from minilora import TrainConfig, optim


@drawing(
    2.7,
    "Left: six gradient entries between a hundred thousandth and one. Right: the first step of "
    "Adam, which moves each of them by the learning rate, against the sign of its gradient.",
)
def first_step_of_adam(ax):
    gradient = np.array([0.8, -0.05, 0.002, -0.3, 0.00001, -0.004])
    params = {"B": np.zeros(6)}
    grads, rates = {"B": gradient}, {"B": 4e-3}
    stepped, _ = optim.adamw(params, grads, optim.adamw_init(params), rates, TrainConfig())
    colors = np.where(gradient > 0, ORANGE, BLUE)
    left = plot_axes(ax, 8, 5.5, 24, 17, xlabel="entry of B", ylabel="|gradient|")
    left.bar(range(6), np.abs(gradient), color=colors)
    left.set(yscale="log", ylim=(3e-6, 3))
    right = plot_axes(ax, 44, 5.5, 24, 17, xlabel="entry of B", ylabel="first step / η")
    right.bar(range(6), stepped["B"] / 4e-3, color=colors)
    right.axhline(0, color=INK, lw=0.8)
    right.set(ylim=(-1.5, 1.5), yticks=[-1, 0, 1])
    text(ax, 20, 24.8, "orange: positive, blue: negative", 8.5, GREY)
    text(ax, 56, 24.8, "m̂/√v̂ = g/|g| at the first step", 8.5, GREY)


@drawing(
    2.6,
    "The learning rate over 100 steps: linear warm-up, then constant, linear to zero, or half "
    "a cosine to zero.",
)
def schedules(ax):
    plot = plot_axes(ax, 7, 5.5, 60, 18.5, xlabel="step", ylabel="rate / largest rate")
    for name, color, style in (("constant", GREY, "-"), ("linear", BLUE, "--"),
                               ("cosine", ORANGE, "-.")):  # fmt: skip
        config = TrainConfig(iters=100, learning_rate=1.0, warmup_ratio=0.1, lr_schedule=name)
        rates = [optim.get_lr(step, config) for step in range(100)]
        plot.plot(rates, style, color=color, lw=1.8, label=name)
    plot.axvspan(0, 10, color="#f0f0f0", zorder=0)
    text(plot, 3, 0.8, "warm-up", 8.5, GREY, rotation=90)
    plot.set_ylim(0, 1.08)
    plot.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.12, 0))


@drawing(
    3.7,
    "A decision tree for a run that goes wrong: is the training loss finite, does it fall, "
    "does the held-out loss fall as well, and does the text that the model generates agree.",
)
def symptoms(ax):
    questions = (
        ("Is the training loss finite?", "rate too high, no warm-up,\n16-bit overflow"),
        ("Does the training loss fall?",
         "rate too low, B and A both zero,\nadapters not in the gradient"),
        ("Does the held-out loss fall?", "too few rows, too many steps;\nor another distribution"),
        ("Are generated answers right?",
         "other template or base than in\ntraining; prompt in the loss"),
    )  # fmt: skip
    for i, (question, cause) in enumerate(questions):
        y = 30.5 - 8.1 * i
        box(ax, 1.5, y, 27, 4.4, question, "frozen")
        arrow(ax, (28.5, y + 2.2), (38, y + 2.2), color=PURPLE)
        text(ax, 33.2, y + 3.3, "no", color=PURPLE)
        box(ax, 38, y - 0.3, 30, 5, cause)
        arrow(ax, (15, y), (15, y - 3.5), color=GREEN)
        text(ax, 17.2, y - 1.8, "yes", color=GREEN)
    text(ax, 15, 1.6, "done: report the test rows once", color=GREEN)
