# %% [markdown]
# # Accumulation and the batch
#
# **The question.** Accumulation, warm-up, clipping, schedules, weight decay: what does each of them
# prevent? We find out by removing it.
#
# Each part is removed or changed, with five seeds, on the questions and the base `micro` (0.1
# million parameters). The lessons say which of them are missed here.
#
# This lesson is about [gradient accumulation](../../guide/glossary.md), the study
# [Warm-up](warm_up.py) about warm-up, the study [Why clipping helps](why_clipping_helps.py) about
# clipping, and the study [Schedules and weight decay](schedules_and_decay.py) about schedules and
# weight decay.
#
# **Continues:** [lesson 5](../../05_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 0, and Adam's two
# moments (lesson 5).

# %%
from dataclasses import replace

import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, table
from lessons.studies.training.optimization_sweep import case, show, train
from minilora import LoraConfig, TrainConfig, data, optim
from minilora.layers import value_and_grad
from minilora.training import gradient_at, num_targets
from minilora.tree import tree_map

defaults = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
config, base, tokenizer = minilora.load("micro")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, base = minilora.get_peft_model(base, lora_config, 0)

# %% [markdown]
# ## Accumulation must count target tokens
#
# The loss of a batch is a mean over its n target tokens, L = Σ_t ℓ_t / n. If a batch is too large
# for the memory, it is cut into k micro-batches, with n_i target tokens each, and their gradients
# are added up. That must give the same L and the same gradient:
#
# $$L = \sum_i \frac{n_i}{n} L_i \qquad \text{and not} \qquad \frac{1}{k} \sum_i L_i$$
#
# The second formula is a mean of means. It gives a token in a short micro-batch more weight.
#
# ![A row of tokens and its targets, shifted by one. With mask_prompt only the answer's tokens
# count.](../../../figures/drawings/targets.svg)
#
# **Predict.** A batch has notes (long, with a low loss) and questions (about two dozen target
# tokens, with a high loss). Each micro-batch is one row. Is the mean of means higher or lower than
# the loss of the batch?
#
# <details><summary>Answer</summary>
# Higher: the questions are short, so the mean of means gives their tokens too much weight.
# </details>

# %%
mixed = data.load_rows("notes", "valid")[:100] + data.load_rows("questions", "valid")[:100]
bins = [[example] for example in data.encode_rows(mixed, tokenizer, defaults)[0]]


def mean_of_means(settings):
    """Accumulate in the wrong way: each micro-batch has the same weight."""
    k, total, parts = settings.grad_accumulation_steps, 0.0, []
    for i in range(k):
        batch = data.collate(data.batch_at(bins, i, settings.batch_size, settings.seed))
        value, grads = value_and_grad(minilora.loss)(adapters, base, batch, config)
        total += float(value) / k
        parts.append(tree_map(lambda g: g / k, grads))
    return total, tree_map(lambda *gs: sum(gs), *parts)


def relative_distance(grads, others):
    """Compute ‖g − h‖ / ‖h‖ over all leaves."""
    return optim.global_norm(tree_map(np.subtract, grads, others)) / optim.global_norm(others)


large = replace(defaults, batch_size=32)
cut = replace(defaults, batch_size=1, grad_accumulation_steps=32)
ops = minilora.operations(adapters, base)
loss, grads, batch = gradient_at(adapters, base, bins, 0, config, large, ops)
loss_cut, grads_cut, batch_cut = gradient_at(adapters, base, bins, 0, config, cut, ops)
tokens, tokens_cut = (sum(map(num_targets, sequences)) for sequences in (batch, batch_cut))
loss_means, grads_means = mean_of_means(cut)
off_cut, off_means = relative_distance(grads_cut, grads), relative_distance(grads_means, grads)
table(
    ["one step over 32 rows", "target tokens", "loss", "gradient is off by"],
    [
        ["one batch of 32", tokens, f"{loss:.6f}", "0"],
        ["32 of 1, by target tokens", tokens_cut, f"{loss_cut:.6f}", f"{off_cut:.1e}"],
        ["32 of 1, mean of means", tokens_cut, f"{loss_means:.6f}", f"{off_means:.1e}"],
    ],
)
lengths = {sum(example.mask) for [example] in bins[100:]}
print(f"target tokens of a question: {lengths}")

# %% [markdown]
# The first two agree up to rounding. The third is another loss and another gradient. (The trainer
# of Hugging Face had this bug until 2024, see below.) It does not show if all micro-batches have
# equally many target tokens. The 100 questions here are such a case: each has 23.

# %%
# Checks
assert lengths == {23}, "every question must have the same number of target tokens"
assert tokens == tokens_cut, "both ways must count the same target tokens"
# Float32 has 24 bits; the sums run over some thousand terms in another order.
assert abs(loss_cut - loss) < 1e-5 * loss, "accumulation must give the batch's loss"
assert off_cut < 1e-4, "accumulation must give the batch's gradient"
assert loss_means > 1.3 * loss and off_means > 0.4, "the mean of means must be something else"

# %% [markdown]
# ## A large batch is not a goal
#
# `optimization_sweep.csv` has the runs of this lesson: 200 steps of 16 rows at a learning rate of
# 4e-3, unless the name of the case says otherwise. The three cases below see 3,200 rows each.
#
# **Predict.** Which has the lower held-out loss, at one learning rate: 800 steps of 4 rows, or 50
# steps of 64 rows?
#
# <details><summary>Answer</summary>
# 800 steps of 4 rows, with every seed.
# </details>

# %%
USUAL = "all as it is"
show("4 rows, 800 steps", USUAL, "64 rows, 50 steps")

# %% [markdown]
# So a larger batch alone is no gain here. Accumulate to reach a batch that you want but that the
# machine cannot hold.

# %%
# Checks
small_batch, large_batch = case("4 rows, 800 steps"), case("64 rows, 50 steps")
assert large_batch.min() > 10 * case(USUAL).max(), "50 steps must not be enough, with any seed"
assert small_batch.max() < 0.75 * case(USUAL).min(), "more and smaller steps must be better here"
if not QUICK:  # two runs of the sweep again
    for name in ("4 rows, 800 steps", "64 rows, 50 steps"):
        again = train(name).scores["loss"]
        assert agrees(again, case(name), case(USUAL)), f"{name}: {again}, in the sweep {case(name)}"

# %% [markdown]
# ## What was shown
#
# Accumulation must weight micro-batches by their target tokens. On `micro`, at one learning rate
# and for the same number of rows, batches of 4, 16 and 64 rows end in this order: the larger the
# batch, the higher the held-out loss.
#
# **What to try.**
#
# 1. `data.load_rows("notes", "valid")[:100]`: leave the notes out. Is the mean of means right now?
# 2. `batch_size=1, grad_accumulation_steps=32`: use 8 and 4. Is the mean of means nearer?
# 3. `large = replace(defaults, batch_size=32)`: use 64 rows. Is the loss of the batch the same?
#
# **Where to stop with a debugger.** `training.accumulate` (`weight`).
#
# **Exercises.** accumulation.
#
# **Further reading.** Hugging Face 2024, *Fixing Gradient Accumulation*:
# [huggingface.co/blog/gradient_accumulation](https://huggingface.co/blog/gradient_accumulation).
