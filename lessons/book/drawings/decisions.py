"""The decisions before a run, in their order: the drawing of the guide's page "Decisions"."""

from lessons.book.drawings.elements import *

STEPS = (  # a decision, where to begin, and what to look at
    ("1. Rows", "as many as you have; 200 held out", "held-out loss"),
    ("2. Base", "dense if it fits, else nf4-dq", "minilora train --dry-run"),
    ("3. Where", "all seven projections", "trained parameters"),
    ("4. Rank and α", "r = 8, α = 16", "training loss too high? a larger r"),
    ("5. Learning rate", "three rates, each twice the one before", "the best is not at an end"),
    ("6. Epochs", "until the held-out loss rises", "--keep-best"),
    ("7. Serve", "adapter separate, on its base", "score it after merging"),
)


@drawing(
    4.1,
    "Seven decisions from top to bottom: rows, base, where, rank and α, learning rate, epochs, "
    "serve. Each has a value to begin with and something to look at.",
)
def decisions(ax):
    for x, words in ((9, "decide"), (30, "begin with"), (57, "then look at")):
        text(ax, x, 38.8, words, color=GREY)
    for i, (decision, start, look) in enumerate(STEPS):
        y = 33.2 - 5.3 * i
        box(ax, 1, y, 16, 4.2, decision, "frozen")
        box(ax, 18.5, y, 25, 4.2, start, "trained", 8.5)
        box(ax, 45, y, 24, 4.2, look, size=8.5)
        if i:
            arrow(ax, (9, y + 5.3), (9, y + 4.2), color=GREY)
