# %% [markdown]
# # Accumulation and the batch
#
# **The question.** A batch does not fit into memory, so its gradient is accumulated over
# micro-batches. What must be counted? And is a large batch a goal?
#
# This is one of four studies that change one setting of the optimizer at a time, with five seeds,
# on the questions and the base `micro` (0.1 million parameters). The others are
# [Warm-up](warm_up.py), [Why clipping helps](why_clipping_helps.py) and [Schedules and weight
# decay](schedules_and_decay.py).
#
# **Continues:** [lesson 7](../../07_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 7.

# %%
from dataclasses import replace

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, optim
from minilora.lessons.helpers.common import QUICK, table
from minilora.lessons.studies.training.optimization_sweep import USUAL, again, case, show
from minilora.training import gradient_at, num_targets
from minilora.tree import tree_map

model, tokenizer = minilora.load("micro")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, model = minilora.get_peft_model(model, lora_config, 0)

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
# **Predict.** A batch has notes (long, with a low loss) and questions (about two dozen target
# tokens, with a high loss). Each micro-batch is one row. Is the mean of means higher or lower than
# the loss of the batch?
#
# <details><summary>Answer</summary>
# Higher: the questions are short, so the mean of means gives their tokens too much weight. (Equal
# is tempting, because a mean of means is the mean if all parts have the same size.)
# </details>

# %%
mixed = data.load_rows("notes", "valid")[:100] + data.load_rows("questions", "valid")[:100]
one = TrainConfig(batch_size=1, mask_prompt=True)
bins = [[example] for example in data.encode_rows(mixed, tokenizer, one)[0]]


def gradient(settings, step=0):
    """Return (loss, gradient, target tokens) of a step."""
    loss, grads, batch = gradient_at(adapters, model, bins, step, settings)
    return loss, grads, sum(map(num_targets, batch))


K = 32
whole = gradient(replace(one, batch_size=K))
accumulated = gradient(replace(one, grad_accumulation_steps=K))
losses, parts, tokens = zip(*(gradient(one, step) for step in range(K)))
of_means = np.mean(losses), tree_map(lambda *gs: sum(gs) / K, *parts), sum(tokens)
off, cells = [], []
for name, (loss, grads, tokens) in (
    ("one batch of 32", whole),
    ("32 of 1, by target tokens", accumulated),
    ("32 of 1, mean of means", of_means),
):
    difference = optim.global_norm(tree_map(np.subtract, grads, whole[1]))
    off.append(difference / optim.global_norm(whole[1]))  # ‖g − h‖ / ‖h‖ over all leaves
    cells.append([name, tokens, f"{loss:.6f}", f"{off[-1]:.1e}"])
table(["one step over 32 rows", "target tokens", "loss", "gradient is off by"], cells)
lengths = set(map(num_targets, bins[100:]))
print(f"target tokens of a question: {lengths}")

# %% [markdown]
# The first two agree up to rounding. The third is another loss and another gradient. (The trainer
# of Hugging Face had this bug until 2024, see below.) It does not show if all micro-batches have
# equally many target tokens. The 100 questions here are such a case: each has 23.

# %%
# Checks
assert lengths == {23}, "every question must have the same number of target tokens"
assert whole[2] == accumulated[2] == of_means[2], "each way must count the same target tokens"
# Float32 has 24 bits; the sums run over some thousand terms in another order.
assert abs(accumulated[0] / whole[0] - 1) < 1e-5, "accumulation must give the batch's loss"
assert off[1] < 1e-4, "accumulation must give the batch's gradient"
assert of_means[0] > 1.3 * whole[0] and off[2] > 0.4, "the mean of means must be something else"

# %% [markdown]
# ## A large batch is not a goal
#
# `optimization_sweep.csv` has the runs of these four studies: 200 steps of 16 rows at a learning
# rate of 4e-3, unless the name of the case says otherwise. `case` reads one of them, `show` prints
# a table, and `again` runs a case again. The three cases below see 3,200 rows each.
#
# **Predict.** Which has the lower held-out loss, at one learning rate: 800 steps of 4 rows, or 50
# steps of 64 rows?
#
# <details><summary>Answer</summary>
# 800 steps of 4 rows, with every seed. (64 rows are tempting, because their gradient has less
# noise. But there are 16 times fewer steps, and Adam's step has the size of the rate.)
# </details>

# %%
SMALL, LARGE = "4 rows, 800 steps", "64 rows, 50 steps"
show(SMALL, USUAL, LARGE)

# %% [markdown]
# So a larger batch alone is no gain here. Accumulate to reach a batch that you want but that the
# machine cannot hold.

# %%
# Checks
assert case(LARGE).min() > 10 * case(USUAL).max(), "50 steps must not be enough, with any seed"
assert case(SMALL).max() < 0.75 * case(USUAL).min(), "more and smaller steps must be better here"
if not QUICK:
    for name in (SMALL, LARGE):
        again(name, USUAL)

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
# 2. `K = 32`: use 64. Is the loss of the batch the same?
#
# **Where to stop with a debugger.** `training.accumulate` (`weight`).
#
# **Exercises.** accumulation, debug-accumulation.
#
# **Further reading.** Hugging Face 2024, *Fixing Gradient Accumulation*:
# [huggingface.co/blog/gradient_accumulation](https://huggingface.co/blog/gradient_accumulation).
