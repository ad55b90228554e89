# %% [markdown]
# # Pitfalls
#
# **The question.** How do you recognize each common mistake, and what fixes it?
#
# This lesson makes four mistakes on purpose. For each it shows the symptom and a fix, and for three
# a change that seems right and is not enough. The study [Norms and biases](norms_and_biases.py) is
# about norms, the study [Pitfalls](pitfalls.py) about quantization and merging.
#
# ![A decision tree for a run that goes wrong: is the training loss finite, does it fall, does the
# held-out loss fall as well, and does the text that the model generates
# agree.](../../../figures/drawings/symptoms.svg)
#
# **Continues:** [lesson 10](../../10_is_it_good.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** lesson 0.

# %%
from typing import NamedTuple

import numpy as np

from lessons.helpers.common import QUICK, figure, finetune, short, table
from minilora import LoraConfig, data
from minilora.evaluation import plot
from minilora.tree import num_parameters

STEPS = short(120, 12)
questions, held_out = (data.load_rows("questions", split) for split in ("train", "valid"))
ALL = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")


class Outcome(NamedTuple):
    """The result of a run."""

    trained: int  # parameters
    losses: list  # per step
    train_loss: float  # the mean of the last ten steps
    loss: float  # held-out
    exact: float  # the share of right held-out answers
    watched: list  # (step, held-out loss), every 20 steps


def run(lora_config=ALL, rows=questions, learning_rate=1e-2, watch=False):
    """Fine-tune `micro` with LoRA for 120 steps of 16 rows, and score it on 100 held-out rows."""
    watching = {"steps_per_eval": short(20, 6)} if watch else {}
    settings = {"iters": STEPS, "learning_rate": learning_rate, **watching}
    result = finetune(lora_config, rows=rows, held_out=held_out[:100], **settings)
    losses = [row["loss"] for row in result.history if "loss" in row]
    watched = [(row["step"], row["eval_loss"]) for row in result.history if "eval_loss" in row]
    scores, trained = result.scores, num_parameters(result.adapters)
    train_loss = float(np.mean(losses[-10:]))
    return Outcome(trained, losses, train_loss, scores["loss"], scores["exact_match"], watched)


def show(outcomes):
    """Print a table of runs, {name: Outcome}."""
    cells = []
    for name, x in outcomes.items():
        losses = f"{x.train_loss:.4f}", f"{x.loss:.4f}"
        cells.append([name, x.trained, *losses, f"{x.exact:.0%}"])
    table(["run", "trained", "train loss", "held-out loss", "exact"], cells)


sound = run()
show({"sound": sound})

# %% [markdown]
# This is a sound run of `micro` (0.1 million parameters): rank 8 on all projections, rate 0.01.
# Each run is one seed. So the checks ask for a factor of three or more between the held-out losses
# of a mistake and of its fix.
#
# ## 1. Too little capacity
#
# Rank 1 on `q_proj` alone.
#
# **Predict.** Do training loss and held-out loss differ? Does a higher learning rate help?
#
# <details><summary>Answer</summary>
# They are within 1.5 times of each other, and both are high. With five times the rate, hardly an
# answer is right.
# </details>

# %%
narrow = LoraConfig(r=1, lora_alpha=2, target_modules=("q_proj",))
small, small_fast = run(narrow), run(narrow, learning_rate=5e-2)
show({"rank 1 on q": small, "five times the rate": small_fast, "fix: rank 8 on all": sound})

# %% [markdown]
# - **Symptom:** training loss and held-out loss are close, and both are high.
# - **Why:** a possible reason is too few trained numbers: the training rows are not fitted either.
# - **Fix:** a higher rank, on more matrices. Five times the learning rate does not repair it: both
#   losses stay high, and hardly an answer is right.
#
# ## 2. Too little data: 24 rows
#
# **Predict.** Does the held-out loss fall and then rise, so that stopping early saves the run?
#
# <details><summary>Answer</summary>
# Stopping early does not save it. The best held-out loss on the way is more than three times that
# of 400 rows after as many steps.
# </details>

# %%
little, more = run(rows=questions[:24], watch=True), run(rows=questions[:400])
best = min(loss for _, loss in little.watched)
show({"24 rows": little, "fix: 400 rows": more})
print(f"the lowest held-out loss on the way, with 24 rows: {best:.4f}")

# %% [markdown]
# - **Symptom:** a gap. The training loss is low, and the held-out loss is high.
# - **Why:** a possible reason: it learns its rows by heart.
# - **Fix:** more rows. Stopping early is not enough here.
#
# ## 3. Wrong targets
#
# Nearly the same number of parameters, all in the MLP.
#
# **Predict.** A model has to copy words from its prompt. Which matrices must change?
#
# <details><summary>Answer</summary>
# Adapters on the MLP alone are not enough here. Only attention moves information between positions.
# </details>

# %%
MLP = ("gate_proj", "up_proj", "down_proj")
wrong = run(LoraConfig(r=14, lora_alpha=28, target_modules=MLP))
wrong_wide = run(LoraConfig(r=42, lora_alpha=84, target_modules=MLP))
show({"MLP": wrong, "MLP, three times the rank": wrong_wide, "fix: all projections": sound})

# %% [markdown]
# - **Symptom:** that of too little capacity: both losses are close. The held-out loss is more than
#   four times the sound run's.
# - **Why:** a possible reason: the task needs other matrices, those of attention.
# - **Fix:** all projections, QLoRA's advice. At this rate, three times the rank is not enough.
#
# ## 4. A learning rate that is too high
#
# Four times the sound rate.
#
# **Predict.** Does the loss go to infinity?
#
# <details><summary>Answer</summary>
# No. It falls, but ends more than ten times as high as at the sound rate.
# </details>

# %%
fast = run(learning_rate=4e-2)
show({"rate 0.04": fast, "fix: rate 0.01": sound})
print(f"first step: {fast.losses[0]:.2f}, worst step: {max(fast.losses):.2f}")

# %% [markdown]
# - **Symptom:** the loss falls, but ends far above the sound run's.
# - **Why:** the steps are too large. A possible reason that the loss does not explode: Adam's steps
#   are bounded.
# - **Fix:** a lower rate.

# %%
panels_of = [
    ("1. capacity", small, "rank 1 on q", sound, "rank 8 on all"),
    ("2. little data", little, "24 rows", more, "400 rows"),
    ("3. wrong targets", wrong, "MLP only", sound, "all projections"),
    ("4. rate too high", fast, "rate 0.04", sound, "rate 0.01"),
]
titles = [title for title, *_ in panels_of]
xlabel, ylabel = "optimizer step", "loss (nats per token)"
with figure("pitfalls", xlabel, ylabel, titles, width=8.4, height=6, columns=2, rows=2) as panels:
    for axes, (_, spoilt, name, fixed, fix) in zip(panels, panels_of):
        for outcome, label, style in ((spoilt, name, plot.LINES[1]), (fixed, fix, plot.LINES[0])):
            axes.plot(plot.smooth(outcome.losses, 5), label=label, **style)
            axes.plot(STEPS, outcome.loss, "o", color=style["color"], clip_on=False)
        axes.plot([], [], "o", color=plot.GREY, label="held out")
        for step, loss in spoilt.watched:
            axes.plot(step, loss, "o", markersize=3, color=plot.LINES[1]["color"])
        axes.set(yscale="log", ylim=(0.003, 8))
        axes.legend(frameon=False, loc="lower left", fontsize=8)

# %% [markdown]
# ![Four panels: the losses of each mistake, next to the fixed run](../../../figures/pitfalls.png)

# %%
# Checks
assert 0.7 < small.train_loss / small.loss < 1.4, "1: both losses must agree"
assert abs(wrong.trained / sound.trained - 1) < 0.02, "3: as many parameters as the sound run"
if not QUICK:
    assert sound.loss < 0.05 and sound.exact > 0.8, "the sound run must learn the task"
    for losses in (small, small_fast):
        assert min(losses.train_loss, losses.loss) > 20 * sound.loss, "1: high at both rates"
    assert small_fast.exact < 0.05, "1: a higher rate must not repair it"
    assert little.train_loss < little.loss / 5, "2: a gap between the losses"
    assert more.loss < best / 3, "2: 400 rows must be better than any early stop"
    assert min(wrong.loss, wrong_wide.loss) > 4 * sound.loss, "3: high at both ranks"
    assert 0.7 < wrong.train_loss / wrong.loss < 1.4, "3: both losses must agree"
    assert fast.loss > 10 * sound.loss, "4: the loss must stay high"
    assert fast.loss < fast.losses[0] / 2, "4: and fall at first"
    assert np.isfinite(fast.losses).all(), "4: the loss must not explode"

# %% [markdown]
# ## What was shown
#
# In these runs, the held-out loss was high with too little capacity, with wrong targets, and with a
# rate that is too high. With too little data, the training loss was far below the held-out loss.
#
# **What to try.**
#
# 1. `narrow`: use rank 8 on `q_proj`. Is it enough?
# 2. `questions[:24]`: use 100 rows. How large is the gap?
# 3. `learning_rate=4e-2`: use 2e-2. Is it still too high?
#
# **Where to stop with a debugger.** `lora.target_paths` (which paths come back?).
#
# **Exercises.** lora-count, prompt-mask.
#
# **Further reading.** QLoRA, Sec. 4: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).
