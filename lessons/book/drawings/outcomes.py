"""What comes out: errors of codes, merged models, judged answers, other ways to adapt."""

import numpy as np

from lessons.book.drawings.elements import *


@drawing(
    3.2,
    "Three ways to merge, as arrows. The trained model is Ŵ plus ΔW. From the original W the same "
    "arrow ends elsewhere, W − Ŵ away. In four bits again, the end moves to the nearest point of a "
    "grid, which can be Ŵ itself.",
)
def three_merges(ax):
    for i in range(5):
        for j in range(4):
            ax.plot(6 + 8 * i, 5 + 7 * j, "o", color=BLUE, ms=5)
    w_hat, w, d = np.array([14, 12]), np.array([16.4, 14.8]), np.array([3.0, -1.4])
    ax.plot(*w, "s", color=INK, ms=6)
    arrow(ax, w_hat, w_hat + d, color=ORANGE)
    arrow(ax, w, w + d, color=ORANGE, style="--")
    arrow(ax, w_hat + d, w_hat + np.array([0.3, 0.1]), color=PURPLE, curve=-0.5)
    text(ax, 11.3, 12.6, "Ŵ", 10, BLUE)
    text(ax, 15, 16.8, "W", 10)
    text(ax, 20.4, 9.4, "Ŵ + ΔW", 9, ORANGE)
    text(ax, 22.6, 15.4, "W + ΔW", 9, ORANGE)
    lines = (
        (25.5, "blue: what four bits can store", BLUE),
        (20, "1.  Ŵ + ΔW, dense: the trained model", ORANGE),
        (
            14.5,
            "2.  four bits again: the nearest blue point,\n     here Ŵ: the update is lost",
            PURPLE,
        ),
        (8, "3.  W + ΔW: off by W − Ŵ,\n     which can be longer than ΔW", INK),
    )
    for y, words, color in lines:
        text(ax, 43, y, words, 9, color, ha="left")


@drawing(
    2.9,
    "Where virtual tokens are. Prompt tuning puts trained vectors before the embeddings, once. "
    "Prefix tuning puts trained keys and values before those of the text in every layer.",
)
def virtual_tokens(ax):
    for x, name in ((1.5, "prompt tuning"), (37, "prefix tuning")):
        title(ax, x, 26.5, name)
        for row, words in enumerate(("embeddings", "layer 0", "layer 1", "layer 2")):
            y = 5 + 5 * row
            text(ax, x, y + 1.7, words, 8.5, GREY, ha="left")
            for i in range(7):
                virtual = i < 2
                if virtual and name == "prefix tuning" and row == 0:
                    continue
                trained = virtual and (row == 0 or name == "prefix tuning")
                kind = "trained" if trained else "data"
                words = ("P" if row == 0 else "K V") if trained else ""
                box(ax, x + 10 + 3.2 * i, y, 3, 3.4, words, kind, 6.5)
    text(ax, 17, 2, "trained once, below all layers", 8.5, ORANGE)
    text(ax, 53, 2, "trained in every layer", 8.5, ORANGE)


@drawing(
    3.7,
    "A decision tree for a run that goes wrong: is the training loss finite, does it fall, "
    "does the held-out loss fall as well, and does the text that the model generates agree.",
)
def symptoms(ax):
    questions = (
        ("Is the training loss finite?", "rate too high, no warm-up,\n16-bit overflow"),
        (
            "Does the training loss fall?",
            "rate too low, B and A both zero,\nadapters not in the gradient",
        ),
        ("Does the held-out loss fall?", "too few rows, too many steps;\nor another distribution"),
        (
            "Are generated answers right?",
            "other template or base than in\ntraining; prompt in the loss",
        ),
    )
    for i, (question, cause) in enumerate(questions):
        y = 30.5 - 8.1 * i
        box(ax, 1.5, y, 27, 4.4, question, "frozen")
        arrow(ax, (28.5, y + 2.2), (38, y + 2.2), "no", PURPLE)
        box(ax, 38, y - 0.3, 30, 5, cause, "other")
        if i < 3:
            arrow(ax, (15, y), (15, y - 3.7), "yes", GREEN, (2.2, 0))
    arrow(ax, (15, 6.2), (15, 3.6), "yes", GREEN, (2.2, 0))
    text(ax, 15, 2.2, "done: report the test rows once", 9, GREEN)
