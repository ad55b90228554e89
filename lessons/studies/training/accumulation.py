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
from minilora.lessons.studies.training.optimization_sweep import USUAL, case, is_of, show, train
from minilora.training import gradient_at
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
# The second formula is a mean of means.
#
# **Predict.** A batch has notes (long, with a low loss) and questions (about two dozen target
# tokens, with a high loss). Each micro-batch is one row. Is the mean of means higher or lower than
# the loss of the batch?

# %%
mixed = data.load_rows("notes", "valid")[:100] + data.load_rows("questions", "valid")[:100]
one = TrainConfig(batch_size=1, mask_prompt=True)
bins = [[example] for example in data.encode_rows(mixed, tokenizer, one)[0]]
K = 32


def gradient(step=0, **settings):
    """Return (loss, gradient) of a step."""
    return gradient_at(adapters, model, bins, step, replace(one, **settings))[:2]


whole = gradient(batch_size=K)
accumulated = gradient(grad_accumulation_steps=K)
losses, parts = zip(*(gradient(step) for step in range(K)))
of_means = np.mean(losses), tree_map(lambda *gs: sum(gs) / K, *parts)


def off(grads):
    """Return how far a gradient is from that of the whole batch, relative to it."""
    return optim.global_norm(tree_map(np.subtract, grads, whole[1])) / optim.global_norm(whole[1])


WAYS = {
    "one batch of 32": whole,
    "32 of 1, by target tokens": accumulated,
    "32 of 1, mean of means": of_means,
}
cells = [[name, f"{loss:.6f}", f"{off(grads):.1e}"] for name, (loss, grads) in WAYS.items()]
table(["one step over 32 rows", "loss", "gradient is off by"], cells)

# %% [markdown]
# **Answer.** Higher. The mean of means gives a token in a short row, a question, more weight.
# Weighted by target tokens, loss and gradient are those of the whole batch, up to rounding. The
# mean of means is another loss and another gradient. The trainer of Hugging Face had this bug until
# 2024 (see below). It does not show if all micro-batches have equally many target tokens.
#
# ## A large batch is not a goal
#
# `optimization_sweep.csv` has the runs of these four studies: 200 steps of 16 rows at a learning
# rate of 4e-3, unless the name of the case says otherwise. `case` reads one of them, `show` draws
# some, and `train` runs one. The three cases below see 3,200 rows each.
#
# **Predict.** Which has the lower held-out loss, at one learning rate: 800 steps of 4 rows, or 50
# steps of 64 rows?

# %%
# Picture
SMALL, LARGE = "4 rows, 800 steps", "64 rows, 50 steps"
show(SMALL, USUAL, LARGE)

# %% [markdown]
# **Answer.** 800 steps of 4 rows, with every seed. The gradient of 64 rows has less noise, but
# there are 16 times fewer steps, and Adam's step has the size of the rate. So a larger batch alone
# is no gain here. Accumulate to reach a batch that you want but that the machine cannot hold.
#
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

# %%
# Checks
# Float32 has 24 bits; the sums run over some thousand terms in another order.
assert abs(accumulated[0] / whole[0] - 1) < 1e-5, "accumulation must give the batch's loss"
assert off(accumulated[1]) < 1e-4, "accumulation must give the batch's gradient"
assert of_means[0] > 1.3 * whole[0], "the mean of means must be higher"
assert off(of_means[1]) > 0.4, "and have another gradient"
assert case(LARGE).min() > 10 * case(USUAL).max(), "50 steps must not be enough, with any seed"
assert case(SMALL).max() < 0.75 * case(USUAL).min(), "more and smaller steps must be better here"
assert QUICK or is_of(train(LARGE), LARGE, USUAL), "a run of the sweep again"
