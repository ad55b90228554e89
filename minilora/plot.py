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
def figure(path, xlabel, ylabel, title, width=6.4, height=3.6):
    """Yield the axes of a figure that is written to `path` (PNG) at the end of the block."""
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.add_subplot()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    yield axes
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    # no date and no version in the file: the same figure has the same bytes
    fig.savefig(path, dpi=144, metadata={"Software": None})


def smooth(values, span):
    """The mean of each value and up to `span - 1` before it."""
    return [
        sum(values[max(0, i + 1 - span) : i + 1]) / min(i + 1, span) for i in range(len(values))
    ]


def curve(path, history, title, floor=None):
    """The learning curve: training loss a step (thin), its moving mean, held-out loss (dots).

    history: rows of `train.train`. `floor` draws a line that no model can get below, in nats.
    """
    steps = [row["step"] for row in history if "loss" in row]
    losses = [row["loss"] for row in history if "loss" in row]
    held_out = [(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row]
    with figure(path, "optimizer step", "loss (nats a target token)", title) as axes:
        axes.plot(steps, losses, color=GREY, linewidth=0.6, alpha=0.6)
        axes.plot(steps, smooth(losses, 10), label="training (mean of 10 steps)", **LINES[0])
        if held_out:
            axes.plot(*zip(*held_out), marker="o", markersize=4, label="held out", **LINES[1])
        if floor is not None:
            axes.axhline(floor, color=INK, linewidth=1, linestyle=":", label="entropy of the text")
        axes.set_ylim(bottom=0)
