# %% [markdown]
# # Underfitting and overfitting
#
# **The question.** What do the training loss and the held-out loss say about a run? Does the
# held-out loss rise when a model overfits? And which adapter can test the labels?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** half a minute to run, eight minutes to read. **You need:** lesson 9.

# %%
import math

from minilora.data import tasks
from minilora.evaluation import plot
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    figure,
    finetune,
    of,
    read_sweep,
    short,
    spread,
    table,
)
from minilora.lessons.studies.evaluation.label_check_sweep import check

ITERS = short(200, 20)
EVERY = ITERS // 10
GUESS = 2 * math.log(24 * 8) / 23  # nats per token: a model that ignores the question (lesson 9)

# %% [markdown]
# ## Three runs
#
# Each run has 200 steps of 16 rows, on `micro` (0.1 million parameters), with one seed. A linear
# head (a copy of the embedding that computes the logits) is trained on 4,000 rows, and an adapter
# of rank 8 on 32 rows and on 4,000 rows. If both losses are high, the model underfits. If only the
# held-out loss is high, it overfits.
#
# **Predict.** Sketch both losses of a head on 4,000 rows, and of rank 8 on 32 rows and on 4,000.
# Where does the held-out loss of the run on 32 rows rise again?

# %%
_, underfit = check(("head", "none", 0), ITERS, steps_per_eval=EVERY)
few = finetune(rows=tasks.questions("train", 32, seed=0), iters=ITERS, steps_per_eval=EVERY)
many = finetune(rows=tasks.questions("train", 4000, seed=0), iters=ITERS, steps_per_eval=EVERY)
HISTORIES = {
    "underfits: a head, 4,000 rows": underfit,
    "overfits: r = 8, 32 rows": few.history,
    "fits: r = 8, 4,000 rows": many.history,
}

# %%
# Picture
ends = {}
xlabel, ylabels = "optimizer step", ["loss (nats per target token)", "", ""]
size = {"width": 9.6, "height": 3.4, "columns": 3}
with figure("underfit_overfit", xlabel, ylabels, list(HISTORIES), **size) as panels:
    for axes, (title, history) in zip(panels, HISTORIES.items()):
        steps, losses = plot.points(history, "loss")
        train = plot.smooth(losses, 10)
        evaluated, held_out = plot.points(history, "eval_loss")
        ends[title] = train[-1], held_out[-1], min(held_out)
        axes.plot(steps, train, label="training", **plot.LINES[0])
        axes.plot(evaluated, held_out, label="held out", marker="o", markersize=4, **plot.LINES[1])
        axes.axhline(GUESS, color=plot.GREY, linewidth=0.8)
        axes.text(ITERS, GUESS + 0.02, "ignores the question", ha="right", fontsize=8)
        axes.set_ylim(0, 1.25)
        axes.legend(frameon=False, loc="upper right")

# %% [markdown]
# ![Training and held-out loss: both high, far apart, both
# low](../../../figures/underfit_overfit.png)
#
# **Answer.** Nowhere by much: the run on 32 rows ends less than a tenth above its lowest held-out
# loss, although textbooks draw a rise. But this loss is more than ten times as high as the training
# loss: that is overfitting. The head underfits: both of its losses are high and close together.
#
# ## Which adapter can test the labels?
#
# Lesson 9 trains few parameters on right and on shuffled labels. There are two candidates: the head
# alone (12,288 numbers), or LoRA with r = 1 on all projections (2,736). The sweep has five seeds.
#
# **Predict.** With right labels, which of the two can learn to answer the questions?

# %%
# Table
sweep = read_sweep("label_check")
seeds, right, cells = {}, {}, []
for trained in ("head", "rank 1"):
    for fault in ("none", "shuffled labels"):
        case = {"trained": trained, "fault": fault}
        seeds[trained, fault] = of(sweep, "loss", **case)
        right[trained, fault] = of(sweep, "exact_match", **case)
        exact = f"{min(right[trained, fault]):.0%} to {max(right[trained, fault]):.0%}"
        cells.append([trained, fault, spread(seeds[trained, fault], 3), exact])
table(["trained", "fault", "held-out loss", "right answers"], cells)

# %% [markdown]
# **Answer.** Only rank 1. The head has more parameters, but it cannot change what the layers
# compute: with right labels, too, its loss is above that of a guess. A check that fails on right
# labels shows nothing about them.
#
# ## What was shown
#
# In these three runs, the gap between the two losses shows overfitting, and their height
# underfitting. The held-out loss of the run that overfits ends less than a tenth above its lowest
# value. A head alone cannot test the labels of this task, and rank 1 can.
#
# **What to try.**
#
# 1. `finetune(rows=tasks.questions("train", 32, ...))`: add `lr_schedule="constant"`. Does it rise?
# 2. `32` rows: use 128. How large is the gap?
# 3. `check(("head", "none", 0), ITERS, …)`: use 1,000 steps. Does the head reach the guess?
#
# **Where to stop with a debugger.** `loop.better`: it gets each held-out loss.
#
# **Exercises.** one-file-loss.
#
# **Further reading.** The study [Little data](../data/little_data.py), where the held-out loss of
# another model does rise. Nakkiran et al. 2019, *Deep Double Descent*:
# [arXiv:1912.02292](https://arxiv.org/abs/1912.02292).

# %%
# Checks
under, over, fit = ends.values()
assert under[0] > GUESS and under[1] < 1.2 * under[0], "underfitting: both losses are high"
for fault in ("none", "shuffled labels"):
    assert min(seeds["head", fault]) > 1.1 * GUESS, f"head, {fault}: worse than a guess"
    assert max(right["head", fault]) < 0.01, "the head cannot answer the question"
assert max(seeds["rank 1", "none"]) < GUESS / 4, "rank 1 must learn the task"
assert min(right["rank 1", "none"]) > 0.5, "and answer most questions"
if not QUICK:
    assert over[1] > 10 * over[0], "overfitting: a gap of more than a factor of ten"
    assert over[1] < 1.1 * over[2], "the held-out loss must not rise"
    assert fit[1] < 2 * fit[0] and fit[1] < GUESS / 10, "a good fit: both losses are low"
    own, others = (seeds["head", fault] for fault in ("none", "shuffled labels"))
    assert agrees(under[1], own, others), f"head, seed 0: {under[1]}"
