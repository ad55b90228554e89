"""Figures in one style, which can be read in grey and without colour vision."""

from contextlib import contextmanager
from pathlib import Path

from ..formats.files import atomic_write

INK = "#1b1b1b"
GREY = "#8a8a8a"
LINES = (  # they differ in darkness and dashes, not only in hue
    {"color": "#1f4e79", "linestyle": "-"},
    {"color": "#d1751f", "linestyle": "--"},
    {"color": "#5a9a6f", "linestyle": "-."},
    {"color": "#8a5a83", "linestyle": ":"},
)


@contextmanager
def figure(path, xlabel, ylabel, title, width=6.4, height=3.6, columns=1, rows=1):
    """Yield the axes of a figure; write it to `path` (PNG) at the end of the block.

    With several panels, the axes are a list, row by row, and each text is a list or one for all.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    panels = list(fig.subplots(rows, columns, squeeze=False).flat)
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
    # without date and version in the file, the same figure has the same bytes
    with atomic_write(Path(path)) as (temporary,):
        fig.savefig(temporary, format="png", dpi=144, metadata={"Software": None})


def smooth(values, span):
    """Return the mean of each value and up to `span - 1` before it."""
    return [sum(values[max(0, i - span) : i]) / min(i, span) for i in range(1, len(values) + 1)]


def points(history, name):
    """Return the steps and the values of the rows that have `name`."""
    rows = [row for row in history if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def curve(path, history, title, kept=0):
    """Write the figure of a training history (losses, exact match) to `path`; see `train`.

    kept: the step whose adapters a run keeps because they are the best; 0: none.
    """
    steps, losses = points(history, "loss")
    every = slice(None, None, max(1, -(-len(steps) // 2000)))  # more points would not be seen
    held_out = points(history, "eval_loss")
    with figure(path, "optimizer step", "loss (nats per target token)", title) as axes:
        axes.plot(steps[every], losses[every], color=GREY, linewidth=0.6, alpha=0.6)
        means = smooth(losses, 10)[every]
        axes.plot(steps[every], means, label="training (mean of 10 steps)", **LINES[0])
        axes.set_ylim(bottom=0)
        if held_out[0]:
            axes.plot(*held_out, marker="o", markersize=4, label="held out", **LINES[1])
            share = axes.twinx()
            share.set(ylim=(0, 1.03), ylabel="exact match (share of held-out rows)")
            squares = {"marker": "s", "markersize": 4} | LINES[2]
            share.plot(*points(history, "eval_exact_match"), **squares)
            axes.plot([], [], label="exact match (right)", **squares)
        if kept:
            axes.axvline(kept, label=f"kept: step {kept}", color=INK, linewidth=1, linestyle=":")
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
