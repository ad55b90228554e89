"""Figures: one style, readable in grey and without colour vision, units on every axis."""

from contextlib import contextmanager

from matplotlib.figure import Figure

INK, GREY = "#1b1b1b", "#8a8a8a"
LINES = (  # told apart by darkness and by dash, not by hue alone
    {"color": "#1f4e79", "linestyle": "-"},
    {"color": "#d1751f", "linestyle": "--"},
    {"color": "#5a9a6f", "linestyle": "-."},
    {"color": "#8a5a83", "linestyle": ":"},
)


@contextmanager
def figure(path, xlabel, ylabel, title, width=6.4, height=3.6, columns=1, rows=1):
    """Yield the axes of a figure, and write the figure to `path` (PNG) at the end of the block.

    With several panels, the axes are a list, row by row, and each text is a list or one for all.
    """
    fig = Figure(figsize=(width, height), layout="constrained")
    panels = list(fig.subplots(rows, columns, squeeze=False).ravel())
    for i, axes in enumerate(panels):
        x, y, head = (t if isinstance(t, str) else t[i] for t in (xlabel, ylabel, title))
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(head, loc="left", fontsize=11, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    yield panels if len(panels) > 1 else panels[0]
    for axes in panels:
        if axes.get_legend_handles_labels()[0] and not axes.get_legend():
            axes.legend(frameon=False, loc="center right")
    # no date and no version in the file: the same figure has the same bytes
    fig.savefig(path, dpi=144, metadata={"Software": None})


def smooth(values, span):
    """Return the mean of each value and up to `span - 1` before it."""
    return [
        sum(values[max(0, i + 1 - span) : i + 1]) / min(i + 1, span) for i in range(len(values))
    ]


def curve(path, history, title):
    """Draw the training loss and its moving mean; if evaluated, held-out loss and exact match.

    history: rows of `train.train`.
    """
    steps = [row["step"] for row in history if "loss" in row]
    losses = [row["loss"] for row in history if "loss" in row]
    held_out = [row for row in history if "eval_loss" in row]
    at = [row["step"] for row in held_out]
    with figure(path, "optimizer step", "loss (nats a target token)", title) as axes:
        axes.plot(steps, losses, color=GREY, linewidth=0.6, alpha=0.6)
        axes.plot(steps, smooth(losses, 10), label="training (mean of 10 steps)", **LINES[0])
        axes.set_ylim(bottom=0)
        if held_out:
            losses = [row["eval_loss"] for row in held_out]
            axes.plot(at, losses, marker="o", markersize=4, label="held out", **LINES[1])
            share = axes.twinx()
            share.set(ylim=(0, 1.03), ylabel="exact match (share of held-out rows)")
            exact = [row["eval_exact_match"] for row in held_out]
            share.plot(at, exact, marker="s", markersize=4, label="exact match", **LINES[2])
            axes.plot([], [], marker="s", markersize=4, label="exact match (right)", **LINES[2])


def comparison(path, points):
    """Draw held-out loss over trained parameters, both axes logarithmic.

    points: (label, parameters, (mean, standard deviation, least, most) of the loss, whether a
    budget set the size), the last ones filled.
    """
    title = "held-out loss, exact match beside it; filled: one budget set the size"
    ylabel = "held-out loss (nats a target token)"
    color = LINES[0]["color"]
    with figure(path, "trained parameters", ylabel, title, 7.6, 4.8) as axes:
        axes.set(xscale="log", yscale="log")
        axes.margins(x=0.25)
        points = sorted(points, key=lambda point: point[2])
        for i, (label, x, (y, _, least, most), filled) in enumerate(points):
            axes.plot([x, x], [least, most], color=color, linewidth=1)
            axes.plot(x, y, marker="o", color=color, markerfacecolor=color if filled else "white")
            # labels to the right and to the left in turn, so that two close points keep apart
            side, offset = ("left", (6, -3)) if i % 2 else ("right", (-6, -3))
            axes.annotate(label, (x, y), offset, textcoords="offset points", fontsize=8, ha=side)
