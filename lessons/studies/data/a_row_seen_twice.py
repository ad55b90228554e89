# %% [markdown]
# # A row seen twice
#
# **The question.** Why does the training loss fall in steps, one at each epoch's end?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** half a minute to run, fifteen minutes to read. **You need:** lesson 9.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig
from minilora.batching import batch_at
from minilora.data.tasks import questions
from minilora.evaluation import plot
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import (
    QUICK,
    finetune,
    interval,
    scores_of,
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
# The same number of steps is run a second time, with rows that are **drawn** at random from the
# same 64. Then there are no epochs: some rows come twice before others come once.
#
# **Predict.** Which part of the fall of the loss happens between the last step of an epoch and the
# first step of the next? And with drawn rows, at the same steps?
#
# <details><summary>Answer</summary>
# In epochs: more than all of it, because the loss *rises* within an epoch. With drawn rows, hardly
# any, in the mean. "A quarter" is tempting for both, because a quarter of all pairs of steps are
# such ends. It would be right if the loss fell equally at each step. But a training loss is
# computed *before* the step, so all losses of the first epoch are of rows never seen. When the next
# epoch begins, all rows have been seen once more.
# </details>

# %%
known = facts(4000, 99)
first = finetune(
    MethodConfig("full"), rows=known[1000:], held_out=known[:100], iters=150, learning_rate=2e-3
)
MODEL = minilora.merge(first.adapters, first.model)


def staircase(rows, seed, rate, held_out=None, model=MODEL, on_step=None):
    """Return the training losses, one row per epoch, and the held-out loss after the run."""
    start = minilora.get_peft_model(model, LORA, seed)
    steps = ROWS // BATCH * EPOCHS
    done = finetune(
        start=start, rows=rows, held_out=held_out, seed=seed, iters=steps, learning_rate=rate,
        batch_size=BATCH, lr_schedule="constant", warmup_ratio=0.0, on_step=on_step,
    )  # fmt: skip
    losses = np.array([record["loss"] for record in done.history])
    return losses.reshape(EPOCHS, -1), done.scores["loss"]


def falls(losses):
    """Return the fall of the loss in the whole run, and its part at the ends of epochs."""
    return losses[0, 0] - losses[-1, -1], (losses[:-1, -1] - losses[1:, 0]).sum()


def drawn(rows, seed):
    """Return as many rows as all epochs have, drawn with replacement."""
    picked = np.random.default_rng(seed).integers(len(rows), size=len(rows) * EPOCHS)
    return [rows[i] for i in picked]


def own_facts(seed):
    """Return the 64 facts of a seed."""
    return facts(4000, 1)[ROWS * seed : ROWS * (seed + 1)]


def runs_of(rows_of, rate, held_out=None, model=MODEL):
    """Return a run's losses and its held-out loss, one per seed; rows_of: seed -> rows."""
    return [staircase(rows_of(seed), seed, rate, held_out, model) for seed in SEEDS]


RATE, LOW = 1e-2, 3e-3
runs = {
    "facts, in epochs": runs_of(own_facts, RATE, known[:100]),
    "facts, drawn": runs_of(lambda seed: drawn(own_facts(seed), seed), RATE, known[:100]),
    "facts, in epochs, 3e-3": runs_of(own_facts, LOW, known[:100]),
}


def show(names):
    """Print the falls of the training loss, and the held-out loss at the end."""
    cells = []
    for name in names:
        whole, ends = np.transpose([falls(losses) for losses, _ in runs[name]])
        held = [loss for _, loss in runs[name]]
        cells.append([name, spread(whole), spread(ends), spread(held)])
    table(["rows", "fall of the loss", "at the ends of epochs", "held-out loss"], cells)


show(runs)
print(f"held-out loss before these runs: {first.scores['loss']:.2f}")
title = "The training loss of 64 facts, mean of the seeds"
with common.figure("staircase", "optimizer step", "training loss (nats per token)", title) as axes:
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
# The grey lines are the ends of epochs. The held-out loss begins at 2.6 and rises in all runs:
# there is nothing to learn but the rows themselves. So the loss falls at a stair because the model
# has *memorized* rows in one more view.
#
# Why does the loss rise within an epoch? The next cell scores all 64 rows after each step.


# %%
def seen_and_to_come(seed):
    """Return the mean losses after the first, second and third step of an epoch, (3, 2).

    The first number is of the rows that the epoch has had, the second of those that are to come.
    """
    rows = own_facts(seed)
    found = []

    def on_step(state, _):
        done = state.step % 4
        if done:
            steps = range(state.step - done, state.step - done + 4)
            batches = [batch_at(rows, step, BATCH, seed) for step in steps]
            losses = [scores_of(state.adapters, MODEL, batch)["loss"] for batch in batches]
            found.append([np.mean(losses[:done]), np.mean(losses[done:])])

    staircase(rows, seed, RATE, known[:1], on_step=on_step)
    return np.mean(np.reshape(found, (EPOCHS, 3, 2)), axis=0)


parts = np.array([seen_and_to_come(seed) for seed in SEEDS])
cells = [[step + 1, *map(spread, parts[:, step].T)] for step in range(3)]
table(["steps of the epoch", "rows of these steps", "rows to come"], cells)

# %% [markdown]
# After its step, a row has a lower loss than the rows still to come. From step to step, the loss of
# the rows to come rises: memorizing some rows makes others worse, as it does with held-out rows.
# The mean loss of the rows of these steps stays about the same.
#
# A user of FastChat writes that stairs come from a learning rate that is too high, and vanish at a
# tenth of it. Here, at 3e-3 the stairs are lower. But still, in the mean, the whole fall is at the
# ends of epochs. A rate of a tenth was not tested.

# %%
# Checks
fall = {name: np.transpose([falls(losses) for losses, _ in runs[name]]) for name in runs}
for name, part in {"facts, in epochs": 1, "facts, in epochs, 3e-3": 0.5}.items():
    whole, ends = fall[name]
    assert (ends > part * whole).all(), f"{name}: the loss must fall at the ends of epochs"
    assert ends.mean() > whole.mean(), f"{name}: in the mean, the whole fall"
whole, ends = fall["facts, drawn"]
assert (whole > 0.2).all(), "the loss of drawn rows must fall, too"
more = fall["facts, in epochs"][1] - ends
assert (more > 0).all() and (QUICK or interval(more).low > 0.5), "drawn rows have no stairs"
high, low = (fall[name][1] for name in ("facts, in epochs", "facts, in epochs, 3e-3"))
assert (high > 1.5 * low).all(), "a lower rate must make lower stairs, in every seed"
assert (parts[:, :, 0] < parts[:, :, 1]).all(), "the epoch's rows must have the lower loss"
worse = parts[:, 2, 1] - parts[:, 0, 1]
assert QUICK or interval(worse).low > 0, "rows to come must become worse"
for name, found in runs.items():
    lowest = min(loss for _, loss in found)
    assert lowest > first.scores["loss"] + 0.1, f"{name}: the held-out loss must rise"

# %% [markdown]
# ## With a rule, there are no stairs
#
# The same run with 64 questions on `micro` itself (no facts). A question can be answered by a rule.
#
# **Predict.** A run repeats 64 questions that a rule can answer. How much of the fall of the
# training loss is at the ends of epochs? There are 19 ends, and 79 pairs of steps.
#
# <details><summary>Answer</summary>
# Less than half, in every seed. What the model learns from a row also helps with rows not seen yet,
# so the loss falls within an epoch, too. "All of it" is tempting, because the rows repeat as often
# as before.
# </details>

# %%
micro = minilora.load("micro").model
runs["questions"] = runs_of(lambda seed: questions("train", ROWS, seed), RATE, model=micro)
show(["questions"])

# %%
# Checks
whole, ends = np.transpose([falls(losses) for losses, _ in runs["questions"]])
assert (ends < 0.5 * whole).all(), "with a rule, most of the fall must be within epochs"

# %% [markdown]
# **So stairs are not an error.** They show that the model memorizes rows. Look at the held-out
# loss: if it does not fall with the training loss, more epochs only teach the model these rows.

# %% [markdown]
# ## What was shown
#
# On `micro` (0.1 million parameters, five seeds): with rows that have no rule, the whole fall of
# the training loss is at the ends of epochs, also (in the mean) at a lower rate, and the held-out
# loss rises. Rows drawn at random have no such stairs. With a rule, most of the fall is within
# epochs. Whether *one* view is enough to memorize a row, as Howard and Whitaker suspect of large
# models, was not tested: here a stair is low, and many views are needed.
#
# **What to try.**
#
# 1. `EPOCHS`: use 60. When are all facts known?
# 2. `ROWS, BATCH`: use 128 rows. Are the stairs lower?
# 3. `LORA`: use r = 1. Is there still a staircase?
#
# **Where to stop with a debugger.** `batching.batch_at`: which rows does a step get?
#
# **Exercises.** one-file-loss, prompt-mask.
#
# **Further reading.** Howard and Whitaker 2023, *Can LLMs learn from a single example?*:
# [fast.ai](https://www.fast.ai/posts/2023-09-04-learning-jumps/). The study [How many
# rows](how_many_rows.py): when a second epoch helps.
