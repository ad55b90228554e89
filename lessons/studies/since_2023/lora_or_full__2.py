# %% [markdown]
# # MERGE 14b. More rank, or everything
#
# **The question.** How does the loss depend on the number of trained parameters, and what does a
# run forget?
#
# **Continues:** [lesson 9](../../09_the_settings.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** the study [LoRA or full
# fine-tuning](lora_or_full.py).

# %%
import numpy as np

from lessons.helpers.common import HOLDS, OPEN, QUICK, belongs, claim, figure, of, read_sweep, table
from lessons.studies.since_2023 import lora_or_full_sweep as experiment
from minilora.evaluation import plot

sweep = read_sweep("lora_or_full")


def column(name, shift, size):
    """Return a column of the runs on 4,000 clean rows, one number per seed."""
    return np.array(of(sweep, name, shift=shift, rows=4000, noise=0, size=size))


def label(size):
    """Return the name of a size: a rank, or the words of the sweep."""
    return size if isinstance(size, str) else f"r = {size}"


# %% [markdown]
# ## Learning, over the number of trained parameters
#
# `lora_or_full_sweep.py` trains `micro` on the two shifts of the study [LoRA or full
# fine-tuning](lora_or_full.py): questions (small) and a language with permuted letters (large).
# Each run has 200 steps of 16 rows. The learning rates are those of the study [LoRA or full
# fine-tuning](lora_or_full.py): one for full fine-tuning, and one for LoRA, which was chosen at r =
# 8 with one seed. Rank 8, full and "8 + embedding" have eight seeds, the other sizes three. The
# scores are of held-out rows.
#
# Full fine-tuning trains a copy of the whole base. "8 + embedding" trains rank 8 on the projections
# and a copy of the embedding.
#
# **Predict.** On which shift is rank 1 enough? Does full fine-tuning answer more on the small
# shift? Does a higher rank help on the large one?
#
# <details><summary>Answer</summary>
# Rank 1 is enough on neither. On the small shift, rank 8 and full fine-tuning both answer more than
# 97 %. On the large shift, full fine-tuning has the lower loss, and rank 32 gains less than 0.1
# nats over rank 8.
# </details>

# %%
SMALL = (1, 8, 32, "full")
LARGE = (1, 8, 32, "32, half the rate", "8 + embedding", "full")
rows = []
for shift, sizes in (("small", SMALL), ("large", LARGE)):
    for size in sizes:
        loss, trained = column("loss", shift, size), int(column("trained", shift, size)[0])
        exact = f"{column('exact_match', shift, size).mean():.0%}" if shift == "small" else ""
        seeds = f"{loss.min():.4f} to {loss.max():.4f}"
        rows.append([shift, label(size), trained, f"{loss.mean():.4f}", seeds, exact])
table(["shift", "size", "trained", "held-out loss", "seeds", "exact"], rows)

small = {size: column("loss", "small", size) for size in SMALL}
large = {size: column("loss", "large", size) for size in LARGE}
closed = (large[8] - large["8 + embedding"]) / (large[8] - large["full"])  # of each seed
small_ratio, large_ratio = (np.log(loss[8] / loss["full"]) for loss in (small, large))
exact = {size: column("exact_match", "small", size) for size in (8, "full")}
rank = large[8][:3] - np.minimum(large[32], large["32, half the rate"])
verdicts = {
    "small": claim("small: r = 8 over full, > 1.5 times", small_ratio, np.log(1.5), times=True),
    "large": claim("large: r = 8 over full, > 1.5 times", large_ratio, np.log(1.5), times=True),
    "answers": claim("small: full has more right answers", exact["full"] - exact[8]),
    "closed": claim("the embedding closes most of the gap", closed, above=0.5),
    "rank": claim("large: r = 32 gains less than 0.1 nats", rank, 0, 0.1),
}

# %%
xlabel, ylabel = "trained parameters", "held-out loss (nats per token)"
title = "On the large shift, a higher rank is not enough"
with figure("lora_or_full", xlabel, ylabel, title) as axes:
    for shift, losses, style in (("small", small, plot.LINES[0]), ("large", large, plot.LINES[1])):
        trained = [column("trained", shift, size)[0] for size in SMALL]
        means = [losses[size].mean() for size in SMALL]
        axes.plot(trained, means, marker="o", label=f"{shift} shift", **style)
        for x, size in zip(trained, SMALL):
            axes.plot([x, x], [losses[size].min(), losses[size].max()], color=style["color"])
    x, y = column("trained", "large", "8 + embedding")[0], large["8 + embedding"].mean()
    axes.plot(x, y, "D", color=plot.LINES[1]["color"])
    axes.annotate("r = 8 and the embedding", (x, y), (-8, -12), ha="right", fontsize=8,
                  textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, loc="lower left")

# %% [markdown]
# ![Held-out loss over trained parameters, one line per shift](../../../figures/lora_or_full.png)
#
# On this model of 0.1 million parameters:
#
# - **Small shift.** Rank 8 and full fine-tuning answer more than 97 % with each seed. Full
#   fine-tuning has a lower loss, but no more right answers are shown.
# - **Large shift.** The loss of rank 8 is more than 1.5 times that of full fine-tuning on average.
#   Rank 32 trains nine tenths as many parameters as the model has, and gains less than 0.1 nats
#   over rank 8 on average (three seeds, the better of two rates).
# - Most of this gap closes on average if the embedding is trained, too.
#
# So "LoRA on all layers matches full fine-tuning" holds here for the right answers on the small
# shift, and not for the losses. It also matters which parameters are trained.

# %%
# Checks
for name in ("small", "large", "closed", "rank"):
    assert verdicts[name] == HOLDS, name
assert verdicts["answers"] == OPEN and min(map(np.min, exact.values())) > 0.97, "both answer all"
assert column("exact_match", "small", 1).max() < 0.75, "small shift: rank 1 is not enough"
assert large[1].min() > 1.5 * large[8].max(), "large shift: rank 1 is not enough"
share = column("trained", "large", 32)[0] / column("trained", "large", "full")[0]
assert 0.9 < share < 0.95, "rank 32 trains nine tenths as many parameters as the model has"
if not QUICK:  # a run of the sweep again
    live = experiment.run(("small", 4000, 0.0, "full", 0))
    for name in ("loss", "notes"):
        cell, rival = column(name, "small", "full"), column(name, "small", 8)
        assert belongs(live[name], cell, rival), f"{name}: {live[name]} is not the sweep's"

# %% [markdown]
# ## Forgetting
#
# After each run, the model was also scored on held-out notes of the base's own language. Before a
# run, this loss is near the entropy of the notes, 0.204 nats per byte.
#
# **Predict.** Which one keeps the base's notes better, r = 8 or full fine-tuning? And what does
# rank 32 keep?
#
# <details><summary>Answer</summary>
# On the small shift, r = 8 keeps more than full fine-tuning, and r = 32 forgets more than three
# quarters as much as full fine-tuning. On the large shift, every rank and full fine-tuning lose
# more than 4 nats per byte.
# </details>

# %%
SIZES = (1, 8, 32, "full")
after = {
    shift: [column("notes", shift, size).mean() for size in SIZES] for shift in ("small", "large")
}
rows = [[f"{shift} shift", *(f"{loss:.2f}" for loss in losses)] for shift, losses in after.items()]
table(["loss on the old notes", *map(label, SIZES)], rows)
before = read_sweep("siblings")[0]["notes_before"]  # the base's own loss, the same notes
print(f"before training: {before:.3f}")
more = column("notes", "small", "full") - column("notes", "small", 8)
forgets = claim("small shift: full forgets more than r = 8", more)
of_rank = column("notes", "small", 32) - column("notes", "small", 8)[:3]
rank_forgets = claim("small shift: r = 32 forgets more than r = 8", of_rank)

# %%
xlabel, ylabel = "loss on the new task (nats per token)", "loss on the old notes (nats per byte)"
title = "On the small shift, r = 8 forgets less than full"
with figure("forgetting", xlabel, ylabel, title) as axes:
    for (shift, marker), style in zip((("small", "o"), ("large", "s")), plot.LINES):
        color = style["color"]
        axes.plot([], [], marker, color=color, label=f"{shift} shift")
        for size in SIZES if shift == "small" else (*SIZES, "8 + embedding"):
            x, y = column("loss", shift, size).mean(), column("notes", shift, size).mean()
            axes.plot(x, y, marker, color=color)
            axes.annotate(label(size), (x, y), (5, 4), textcoords="offset points", fontsize=8)
    axes.axhline(before, color=plot.GREY, linewidth=0.8)
    axes.annotate("the base before training", (0.05, before), (0, 3), fontsize=8,
                  textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", ylim=(0, 8), xlim=(0.0013, 3))
    axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Loss on the base's notes over the loss on the new task](../../../figures/forgetting.png)
#
# "Forgets less" holds here for r = 8 (eight seeds, a model of 0.1 million parameters), and r = 32
# forgets more than r = 8, and more than three quarters as much as full fine-tuning (three seeds).
# On the large shift no size keeps the old notes. The learning rates differ, too (0.01 for LoRA and
# 0.005 for full). So the table compares recipes, not ranks alone.

# %%
# Checks
assert forgets == HOLDS, "full fine-tuning must forget more than r = 8"
assert rank_forgets == HOLDS, "r = 32 must forget more than r = 8"
by_rank, by_full = (column("notes", "small", size)[:3] - before for size in (32, "full"))
assert (by_rank > 0.75 * by_full).all(), "r = 32 must forget three quarters as much as full"
assert abs(before - 0.204) < 0.002, "before a run, the loss is near the entropy of the notes"
for size in SIZES:
    forgotten = column("notes", "large", size).min() - before
    assert forgotten > 4, f"large shift, {label(size)}: more than 4 nats per byte are forgotten"

# %% [markdown]
# ## What was shown
#
# On this model of 0.1 million parameters, rank 32 gained less than 0.1 nats over rank 8 on the
# large shift, and a trained embedding closed most of the gap. Full fine-tuning had lower losses
# than rank 8, and forgot more on the small shift.
#
# **What to try.**
#
# 1. `SMALL` in the figure's loop: draw exact match over the parameters instead of the loss.
# 2. `column("notes", ...)` in the table: print the range of the seeds as well.
# 3. `LARGE`: run `lora_or_full_sweep.py` with a rank between 8 and 32, and add it.
#
# **Where to stop with a debugger.** `start` in `lora_or_full_sweep.py` (the embedding becomes a
# trained leaf); `tree.overlay` (it is laid over the one of the base).
#
# **Exercises.** lora-count, cross-entropy.
#
# **Further reading.** Biderman et al. 2024, *LoRA Learns Less and Forgets Less*:
# [arXiv:2405.09673](https://arxiv.org/abs/2405.09673). Hu et al. 2021, LoRA, Sec. 7.1, on small
# ranks: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
