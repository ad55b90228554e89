# %% [markdown]
# # Underfitting and overfitting
#
# **The question.** What do the training loss and the held-out loss say about a run? And does the
# held-out loss rise when a model overfits?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** a quarter of a minute to run, five minutes to read. **You need:** lesson 9.

# %%
import math

from minilora.data import tasks
from minilora.evaluation import plot
from minilora.lessons.helpers.common import QUICK, figure, finetune, short, table
from minilora.lessons.studies.evaluation.label_check_sweep import check

ITERS, EVERY = short(200, 20), short(20, 10)
FLOOR = 2 * math.log(24 * 8) / 23  # nats per token: a model that ignores the question (lesson 9)

# %% [markdown]
# ## Three runs
#
# Each run has 200 steps of 16 rows, on `micro` (0.1 million parameters), with one seed. A linear
# head is trained on 4,000 rows, and an adapter of rank 8 on 32 rows and on 4,000 rows. If both
# losses are high, the model underfits. If only the held-out loss is high, the model overfits.
#
# **Predict.** Sketch both losses of a head on 4,000 rows, and of rank 8 on 32 rows and on 4,000.
# Where does the held-out loss of the run on 32 rows rise again?
#
# <details><summary>Answer</summary>
# Nowhere by much: at the end it is less than a tenth above its lowest value. It is also more than
# ten times as high as the training loss. A rise is tempting, because textbooks draw one.
# </details>

# %%
_, underfit = check(("head", "none", 0), ITERS, steps_per_eval=EVERY)
few = finetune(rows=tasks.questions("train", 32, seed=0), iters=ITERS, steps_per_eval=EVERY)
many = finetune(rows=tasks.questions("train", 4000, seed=0), iters=ITERS, steps_per_eval=EVERY)
HISTORIES = {
    "underfits: a head, 4,000 rows": underfit,
    "overfits: r = 8, 32 rows": few.history,
    "fits: r = 8, 4,000 rows": many.history,
}

ends, cells = [], []
xlabel, ylabels = "optimizer step", ["loss (nats per target token)", "", ""]
size = {"width": 9.6, "height": 3.4, "columns": 3}
with figure("underfit_overfit", xlabel, ylabels, list(HISTORIES), **size) as panels:
    for axes, (title, history) in zip(panels, HISTORIES.items()):
        steps, train = zip(*((row["step"], row["loss"]) for row in history if "loss" in row))
        train = plot.smooth(train, 10)
        evaluated, held_out = zip(
            *((row["step"], row["eval_loss"]) for row in history if "eval_loss" in row)
        )
        ends.append((train[-1], held_out[-1], min(held_out)))
        cells.append([title, *(f"{loss:.4f}" for loss in ends[-1])])
        axes.plot(steps, train, label="training", **plot.LINES[0])
        axes.plot(evaluated, held_out, label="held out", marker="o", markersize=4, **plot.LINES[1])
        axes.axhline(FLOOR, color=plot.GREY, linewidth=0.8)
        axes.text(ITERS, FLOOR + 0.02, "ignores the question", ha="right", fontsize=8)
        axes.set_ylim(0, 1.25)
        axes.legend(frameon=False, loc="upper right")
table(["", "train loss", "held-out loss", "lowest held-out"], cells)

# %% [markdown]
# ![Training and held-out loss: both high, far apart, both
# low](../../../figures/underfit_overfit.png)
#
# **Underfitting:** both losses are high and close together, here with 4,000 rows. With an adapter
# of rank 8, both are low.
#
# **Overfitting:** there is a gap between the two losses, here a factor of more than ten. **The rise
# of the textbooks does not come:** the last held-out loss is less than a tenth above the lowest. So
# compare the two losses.

# %%
# Checks
under, over, fit = ends
assert under[1] < 1.2 * under[0], "underfitting: both losses must be close together"
assert under[0] > FLOOR, "underfitting: the training loss must be above that of a guess"
if not QUICK:
    assert over[1] > 10 * over[0], "overfitting: a gap of more than a factor of ten"
    assert fit[1] < 2 * fit[0] and fit[1] < FLOOR / 10, "a good fit: both losses are low"
    assert over[1] < 1.1 * over[2], "the held-out loss must not rise"

# %% [markdown]
# ## What was shown
#
# In these three runs, the gap between the two losses shows overfitting, and their height
# underfitting. The held-out loss of the run that overfits ends less than a tenth above its lowest
# value.
#
# **What to try.**
#
# 1. `finetune(rows=tasks.questions("train", 32, ...))`: add `lr_schedule="constant"`. Does it rise?
# 2. `32` rows: use 128. How large is the gap?
# 3. `plot.smooth(losses, 10)`: use 1. How much does the loss vary from step to step?
#
# **Where to stop with a debugger.** `loop.better`: it gets each held-out loss.
#
# **Exercises.** one-file-loss.
#
# **Further reading.** The study [Little data](../data/little_data.py), where the held-out loss of
# another model does rise. Nakkiran et al. 2019, *Deep Double Descent*:
# [arXiv:1912.02292](https://arxiv.org/abs/1912.02292).
