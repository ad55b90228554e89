# %% [markdown]
# # Pitfalls
#
# **The question.** How do you recognize each common mistake, and what fixes it?
#
# This study makes six mistakes on purpose: four in training, and two in quantizing. For each it
# shows the symptom and a fix, and for three a change that seems right and is not enough. The study
# [Norms and biases](norms_and_biases.py) adds two mistakes with norms.
#
# ![A decision tree for a run that goes wrong: is the training loss finite, does it fall, does the
# held-out loss fall as well, and does the text that the model generates
# agree.](../../../figures/drawings/symptoms.svg)
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** half a minute to run, a quarter of an hour to read. **You need:** lessons 2, 4 and 9.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, data
from minilora.lessons.helpers.common import QUICK, finetune, scores_of, short, table
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, num_parameters, unflatten

STEPS = short(120, 12)
questions = data.load_rows("questions", "train")
held_out = data.load_rows("questions", "valid")[:100]


def run(r=8, targets="all-linear", rows=questions, rate=1e-2, iters=STEPS, **settings):
    """Fine-tune `micro` with LoRA for 120 steps of 16 rows, and score it on 100 held-out rows."""
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)
    settings |= {"rows": rows, "held_out": held_out, "iters": iters, "learning_rate": rate}
    return finetune(config, **settings)


def losses(run):
    """Return the training loss (the mean of the last ten steps) and the held-out loss."""
    steps = [row["loss"] for row in run.history if "loss" in row]
    return np.mean(steps[-10:]), run.scores["loss"]


def show(runs):
    """Print a table of runs, {name: Run}."""
    cells = []
    for name, run in runs.items():
        numbers = [f"{loss:.4f}" for loss in losses(run)] + [f"{run.scores['exact_match']:.0%}"]
        cells.append([name, num_parameters(run.adapters), *numbers])
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
# answer is right. (A higher rate is tempting, because a low one looks the same: both losses high.)
# </details>

# %%
small, small_fast = (run(1, ("q_proj",), rate=rate) for rate in (1e-2, 5e-2))
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
# Stopping early does not save it. (It is tempting, because the training loss is far below the
# held-out loss.) The best held-out loss on the way is more than three times that of 400 rows after
# as many steps.
# </details>

# %%
little = run(rows=questions[:24], steps_per_eval=short(20, 6))
more = run(rows=questions[:400])
best = min(row["eval_loss"] for row in little.history if "eval_loss" in row)
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
# Adapters on the MLP alone are not enough here. (The MLP is tempting, because it has most of the
# weights. But only attention moves information between positions.)
# </details>

# %%
MLP = ("gate_proj", "up_proj", "down_proj")
wrong, wrong_wide = (run(r, MLP) for r in (14, 42))
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
# No. It falls, but ends more than ten times as high as at the sound rate. (Yes is tempting, because
# plain gradient descent diverges. But Adam's steps are bounded.)
# </details>

# %%
fast = run(rate=4e-2)
show({"rate 0.04": fast, "fix: rate 0.01": sound})
steps = [row["loss"] for row in fast.history]
print(f"first step: {steps[0]:.2f}, worst step: {max(steps):.2f}")

# %% [markdown]
# - **Symptom:** the loss falls, but ends far above the sound run's.
# - **Why:** the steps are too large. A possible reason that the loss does not explode: Adam's steps
#   are bounded.
# - **Fix:** a lower rate.

# %%
# Checks
assert 0.7 < np.divide(*losses(small)) < 1.4, "1: both losses must agree"
trained, as_many = (num_parameters(run.adapters) for run in (wrong, sound))
assert abs(trained / as_many - 1) < 0.02, "3: as many parameters as the sound run"
if not QUICK:
    _, loss = losses(sound)
    assert loss < 0.05 and sound.scores["exact_match"] > 0.8, "the sound run must learn the task"
    assert min(*losses(small), *losses(small_fast)) > 20 * loss, "1: high at both rates"
    assert small_fast.scores["exact_match"] < 0.05, "1: a higher rate must not repair it"
    assert np.divide(*losses(little)) < 1 / 5, "2: a gap between the losses"
    assert losses(more)[1] < best / 3, "2: 400 rows must be better than any early stop"
    assert min(losses(wrong)[1], losses(wrong_wide)[1]) > 4 * loss, "3: high at both ranks"
    assert 0.7 < np.divide(*losses(wrong)) < 1.4, "3: both losses must agree"
    assert losses(fast)[1] > 10 * loss, "4: the loss must stay high"
    assert losses(fast)[1] < steps[0] / 2, "4: and fall at first"
    assert np.isfinite(steps).all(), "4: the loss must not explode"

# %% [markdown]
# ## 5. Outliers and large blocks
#
# A block stores one absmax, and its codes are shares of it. So one outlier makes all other weights
# of its block coarse. The larger the block, the more weights it affects. Here one weight of ten
# standard deviations is planted in each projection of `micro` (0.1 million parameters).
#
# **Predict.** How much worse are blocks of 4096 than blocks of 64, without and with outliers?
#
# <details><summary>Answer</summary>
# Without outliers, each of the five block sizes costs less than 0.01 nats per byte. (More is
# tempting, because large blocks are often said to be harmful.) With outliers, blocks of 4096 cost
# more than four times as much as blocks of 64.
# </details>

# %%
BLOCKS = (16, 64, 256, 1024, 4096)
model, _ = minilora.load("micro")
notes = data.load_rows("notes", "valid")


def with_outliers(size=10):
    """Return the model with a weight of `size` standard deviations in each projection."""
    leaves, rng = flatten(model.base), np.random.default_rng(0)
    for path, w in leaves.items():
        if is_projection(path):
            w = w.copy()
            w[rng.integers(w.shape[0]), rng.integers(w.shape[1])] = size * w.std()
            leaves[path] = w
    return model._replace(base=unflatten(leaves))


def loss_of(model):
    """Return the loss on the base's own notes, in nats per byte."""
    return scores_of({}, model, notes)["loss"]


added, cells = [], []
for name, original in (("as it is", model), ("with outliers", with_outliers())):
    coded = [minilora.quantize(original, "nf4", size) for size in BLOCKS]
    dense, int8, *nf4 = map(loss_of, (original, minilora.quantize(original, "int8"), *coded))
    added.append(np.array([int8, *nf4]) - dense)
    cells.append([name, f"{dense:.4f}", *(f"{cost:+.4f}" for cost in added[-1])])
table(["base", "dense", "int8", *(f"NF4, {size}" for size in BLOCKS)], cells)

# %% [markdown]
# - **Symptom:** quantizing costs several times as much with large blocks as with small ones.
# - **Why:** an outlier sets the scale of its whole block.
# - **Fix:** smaller blocks, or 8 bits. **Not confirmed here:** that large blocks are harmful as
#   such. Without outliers, they cost this base less than 0.01 nats per byte.

# %%
# Checks
as_it_is, (int8, of_16, of_64, *_, of_4096) = added
assert max(abs(int8), abs(as_it_is[0])) < 0.01, "int8 must cost almost nothing"
assert max(as_it_is) < 0.01, "without outliers, every block size must cost almost nothing"
assert of_4096 > 4 * of_64, "with outliers, large blocks must cost several times as much"
assert of_64 > max(0.01, of_16), "blocks of 16 cost less than of 64"

# %% [markdown]
# ## 6. Merging into 4 bits
#
# After training, W + ΔW can be quantized to 4 bits again.
#
# **Predict.** Which of these merges keep the loss of the adapter: dense, int8, NF4?
#
# <details><summary>Answer</summary>
# Dense, and int8 within 5 %. NF4 raises the loss by more than 30 %. (To expect that it keeps the
# loss is tempting, because the base was in NF4 while the adapter was trained.)
# </details>

# %%
qlora = run(rate=4e-3, iters=short(200, 12), scheme="nf4-dq")
merged = minilora.merge(qlora.adapters, qlora.model)
show({"adapter kept separate": qlora})
_, separate = losses(qlora)
merged_loss = {}
for scheme in ("none", "int8", "nf4-dq"):
    merged_loss[scheme] = scores_of({}, minilora.quantize(merged, scheme), held_out)["loss"]
    print(f"merged, {scheme}: held-out loss {merged_loss[scheme]:.4f}")

# %% [markdown]
# - **Symptom:** the loss is higher after merging into 4 bits than in the run, without an error.
# - **Why:** a part of the update is rounded away (lesson 4).
# - **Fix:** keep the adapter separate, merge into a dense model, or merge into 8 bits.
#
# This is one run of `micro`. The study [Merging into four
# bits](../serving/merging_into_four_bits.py) has five seeds at two learning rates.

# %%
# Checks
assert abs(merged_loss["none"] / separate - 1) < 1e-3, "a dense merge must keep the scores"
assert abs(merged_loss["int8"] / separate - 1) < 0.05, "int8 must nearly keep them"
assert QUICK or merged_loss["nf4-dq"] > 1.3 * separate, "NF4 must lose a part"

# %% [markdown]
# ## What was shown
#
# In these runs, the held-out loss was high with too little capacity, with wrong targets, and with a
# rate that is too high. With too little data, the training loss was far below the held-out loss.
# With outliers, blocks of 4096 cost several times as much as blocks of 64. Merging into 4 bits
# raised the loss, without an error. If a run is good and its result is not, look at what was saved
# (the study [Norms and biases](norms_and_biases.py)) and how it was merged.
#
# **What to try.**
#
# 1. `run(1, ("q_proj",), rate=rate)`: use rank 8 on `q_proj`. Is it enough?
# 2. `questions[:24]`: use 100 rows. How large is the gap?
# 3. `rate=4e-2`: use 2e-2. Is it still too high?
# 4. `with_outliers(size=10)`: use 3 and 30. From which size on do blocks of 64 suffer?
# 5. `("none", "int8", "nf4-dq")`: add "fp4". Which loses more, nf4-dq or fp4?
#
# **Where to stop with a debugger.** `lora.target_paths` (which paths come back?). `nf4.normalize`
# (`absmax` of the block with the outlier).
#
# **Exercises.** lora-count, prompt-mask, one-file-quantize, one-file-nearest, lora-merge,
# test-merge.
#
# **Further reading.** QLoRA, Sec. 4: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Dettmers
# et al. 2022, *LLM.int8()*, on outliers: [arXiv:2208.07339](https://arxiv.org/abs/2208.07339).
