# %% [markdown]
# # A row seen twice
#
# **The question.** Why does the training loss fall in steps, one at each epoch's end?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** half a minute to run, ten minutes to read. **You need:** lesson 9.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig
from minilora.data.tasks import questions
from minilora.evaluation import plot
from minilora.lessons.helpers.common import (
    QUICK,
    figure,
    finetune,
    interval,
    short,
    spread,
    table,
)
from minilora.lessons.studies.since_2023.capacity_sweep import facts

SEEDS = range(short(5, 1))
ROWS, BATCH, EPOCHS = 64, 16, short(20, 12)
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))

# %% [markdown]
# ## The staircase
#
# Users ask why their loss curve looks like stairs: flat during an epoch, with a drop where the next
# one begins ([alpaca-lora](https://github.com/tloen/alpaca-lora/issues/502),
# [LlamaFactory](https://github.com/hiyouga/LlamaFactory/issues/7485),
# [FastChat](https://github.com/lm-sys/FastChat/issues/2025)). They suspect an error. Howard and
# Whitaker (2023) suspect that a large model memorizes a row after one view.
#
# Here, the rows are 64 facts: a key of three letters, and an answer of twelve random letters. There
# is no rule, so a row teaches nothing about another one. The base knows the format: it is `micro`
# (0.1 million parameters), trained on other facts. An epoch has four steps of 16 rows.
#
# A second run has as many steps, with rows that are **drawn** at random from the same 64. So there
# are no epochs: some rows come twice before others come once. A third run has 64 questions instead
# of facts, on `micro` itself. A question can be answered by a rule.
#
# **Predict.** Which part of the fall of the loss happens between the last step of an epoch and the
# first step of the next, in each of the three runs? (There are 19 such ends, and 79 pairs of
# steps.)

# %%
known = facts(4000, 99)
first = finetune(
    MethodConfig("full"), rows=known[1000:], held_out=known[:100], iters=150, learning_rate=2e-3
)
knows_format = minilora.merge(first.adapters, first.model)


def run_of(rows, seed, model=knows_format, held_out=known[:100]):
    """Return the training losses, one row per epoch, and the held-out loss after the run."""
    done = finetune(
        start=minilora.get_peft_model(model, LORA, seed), rows=rows, held_out=held_out, seed=seed,
        iters=ROWS // BATCH * EPOCHS, learning_rate=1e-2, batch_size=BATCH, lr_schedule="constant",
        warmup_ratio=0.0,
    )  # fmt: skip
    losses = np.array([record["loss"] for record in done.history])
    return losses.reshape(EPOCHS, -1), done.scores["loss"]


def own_facts(seed):
    """Return the 64 facts of a seed."""
    return facts(4000, 1)[ROWS * seed : ROWS * (seed + 1)]


def drawn(rows, seed):
    """Return as many rows as all epochs have, drawn with replacement."""
    picked = np.random.default_rng(seed).integers(len(rows), size=len(rows) * EPOCHS)
    return [rows[i] for i in picked]


micro = minilora.load("micro").model
runs = {
    "facts, in epochs": [run_of(own_facts(seed), seed) for seed in SEEDS],
    "facts, drawn": [run_of(drawn(own_facts(seed), seed), seed) for seed in SEEDS],
    "questions": [run_of(questions("train", ROWS, seed), seed, micro, None) for seed in SEEDS],
}
whole, ends, held_out, cells = {}, {}, {}, []
for name, seeds in runs.items():
    whole[name] = np.array([losses[0, 0] - losses[-1, -1] for losses, _ in seeds])
    ends[name] = np.array([(losses[:-1, -1] - losses[1:, 0]).sum() for losses, _ in seeds])
    held_out[name] = np.array([loss for _, loss in seeds])
    cells.append([name, *(spread(part[name]) for part in (whole, ends, held_out))])
table(["rows", "fall of the loss", "at the ends of epochs", "held-out loss"], cells)
print(f"held-out loss before the runs on facts: {first.scores['loss']:.2f}")

# %%
# Picture
title = "The training loss of 64 facts, mean of the seeds"
with figure("staircase", "optimizer step", "training loss (nats per token)", title) as axes:
    for name, style in zip(("facts, in epochs", "facts, drawn"), plot.LINES):
        mean = np.mean([losses for losses, _ in runs[name]], axis=0)
        axes.plot(mean.ravel(), label=name, **style)
    for step in range(4, 4 * EPOCHS, 4):
        axes.axvline(step - 0.5, color="#dddddd", linewidth=0.6, zorder=0)
    axes.legend(frameon=False, loc="lower left")

# %% [markdown]
# ![Training loss over 80 steps: rows in epochs fall at each grey line, drawn rows fall
# everywhere](../../../figures/staircase.png)
#
# The grey lines are the ends of epochs.
#
# **Answer.** Facts in epochs: more than all of it, because the loss *rises* within an epoch. A
# training loss is computed *before* the step. So all losses of the first epoch are of rows never
# seen, and when the next epoch begins, all rows have been seen once more. Within an epoch,
# memorizing some rows makes others worse: the held-out loss, of facts that are in no run, begins at
# 2.6 and rises. With drawn rows, these steps are like others: in some seeds, the loss rises there.
# With a rule, less than half, in every seed: what the model learns from a row also helps with rows
# not seen yet.
#
# **So stairs are not an error.** They show that the model memorizes rows. Look at the held-out
# loss: if it does not fall with the training loss, more epochs only teach the model these rows.
#
# ## What was shown
#
# On `micro` (0.1 million parameters, five seeds): with rows that have no rule, the whole fall of
# the training loss is at the ends of epochs, and the held-out loss rises. Rows drawn at random have
# no such stairs. With a rule, most of the fall is within epochs. Whether *one* view is enough to
# memorize a row, as Howard and Whitaker suspect of large models, was not tested: here a stair is
# low, and many views are needed.
#
# **What to try.**
#
# 1. `EPOCHS`: use 60. When are all facts known?
# 2. `learning_rate=1e-2`: use 3e-3. Are the stairs lower?
# 3. `LORA`: use r = 1. Is there still a staircase?
#
# **Where to stop with a debugger.** `batching.batch_at`: which rows does a step get?
#
# **Exercises.** one-file-loss, prompt-mask.
#
# **Further reading.** Howard and Whitaker 2023, *Can LLMs learn from a single example?*:
# [fast.ai](https://www.fast.ai/posts/2023-09-04-learning-jumps/). The study [How many
# rows](how_many_rows.py): when a second epoch helps.

# %%
# Checks
stairs, without = ends["facts, in epochs"], ends["facts, drawn"]
assert (stairs > whole["facts, in epochs"]).all(), "the whole fall must be at the ends of epochs"
assert (whole["facts, drawn"] > 0.2).all(), "the loss of drawn rows must fall, too"
assert (stairs > without).all(), "but drawn rows have no stairs"
assert QUICK or interval(stairs - without).low > 0.5, "a difference of half a nat in the mean"
assert QUICK or without.min() < 0, "in some seeds, the loss must rise there"
assert abs(first.scores["loss"] - 2.6) < 0.1, "where the held-out loss begins"
for name in ("facts, in epochs", "facts, drawn"):
    assert held_out[name].min() > first.scores["loss"] + 0.1, f"{name}: held-out loss must rise"
assert (ends["questions"] < 0.5 * whole["questions"]).all(), "with a rule: within epochs"
