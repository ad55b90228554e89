# %% [markdown]
# # 9. Optimization
#
# **The question.** Accumulation, warm-up, clipping, schedules, weight decay: what does each of them
# prevent? We find out by removing it.
#
# Each part is removed alone, with three seeds, on the questions and the base `micro`. Some are
# missed at once. Some are not missed here at all, and then the lesson says so. This lesson is about
# accumulation and warm-up, [lesson 9b](09b_why_clipping_helps.py) about clipping, and [lesson
# 9c](09c_schedules_and_decay.py) about schedules and weight decay.
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lesson 0, and Adam's two
# moments (lesson 4b).

# %%
from dataclasses import replace

import numpy as np
from common import of, read_sweep, table

import minilora
from minilora import LoraConfig, TrainConfig, data, kernels, lora, optim
from minilora.layers import value_and_grad
from minilora.training import gradient_at
from minilora.tree import flatten, tree_map

defaults = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
config, base, tokenizer = minilora.load("micro")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, frozen = lora.init(base, lora_config, np.random.default_rng(0))

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
# Higher: the questions are short, so the mean of means gives their tokens too much weight.
# </details>

# %%
mixed = data.load_rows("notes", "valid")[:100] + data.load_rows("questions", "valid")[:100]
bins = [[example] for example in data.prepare(mixed, tokenizer, defaults)[0]]


def mean_of_means(settings):
    """Accumulate in the wrong way: each micro-batch has the same weight."""
    k, total, parts = settings.grad_accumulation_steps, 0.0, []
    for i in range(k):
        batch = data.collate(data.batch_at(bins, i, settings.batch_size, settings.seed))
        value, grads = value_and_grad(minilora.loss)(adapters, frozen, batch, config)
        total += float(value) / k
        parts.append(tree_map(lambda g: g / k, grads))
    return total, tree_map(lambda *gs: sum(gs), *parts)


def relative_distance(grads, others):
    """Compute ‖g − h‖ / ‖h‖ over all leaves."""
    return optim.global_norm(tree_map(np.subtract, grads, others)) / optim.global_norm(others)


large = replace(defaults, batch_size=32)
cut = replace(defaults, batch_size=1, grad_accumulation_steps=32)
loss, grads, tokens = gradient_at(adapters, frozen, bins, 0, config, large, kernels.OPS)
loss_cut, grads_cut, tokens_cut = gradient_at(adapters, frozen, bins, 0, config, cut, kernels.OPS)
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
# The first two agree up to rounding. The third is another loss and another gradient. Widely used
# trainers had this bug until late 2024. It does not show if all micro-batches have equally many
# target tokens. Our questions are such a case: every answer has the same length.

# %%
# Checks
assert len(lengths) == 1, "every question must have the same number of target tokens"
assert tokens == tokens_cut, "both ways must count the same target tokens"
# Float32 has 24 bits; the sums run over some thousand terms in another order.
assert abs(loss_cut - loss) < 1e-5 * loss, "accumulation must give the batch's loss"
assert off_cut < 1e-4, "accumulation must give the batch's gradient"
assert loss_means > 1.3 * loss and off_means > 0.4, "the mean of means must be something else"

# %% [markdown]
# ## A large batch is not a goal
#
# `sweeps/optimization.csv` has the runs of this lesson: 200 steps of 16 rows at a learning rate of
# 4e-3, unless the name of the case says otherwise. The three cases below see 3,200 rows each, and
# so equally many target tokens.
#
# **Predict.** At one learning rate: 800 steps of 4 rows, or 50 steps of 64 rows?
#
# <details><summary>Answer</summary>
# 800 steps of 4 rows. The larger batch takes fewer steps, and they are hardly longer.
# </details>

# %%
sweep = read_sweep("optimization")
USUAL = "all as it is"


def case(name, column="loss"):
    """Return a column of a case of the sweep, one number per seed."""
    return np.array(of(sweep, column, case=name))


def show(*names):
    """Print a table of cases: held-out loss, exact match, worst step, loss on the base's notes."""
    rows = []
    for name in names:
        losses, exact = case(name), case(name, "exact_match").mean()
        cells = [
            f"{losses.mean():.4f}",
            f"{losses.min():.4f} to {losses.max():.4f}",
            f"{exact:.0%}",
        ]
        worst, notes = case(name, "worst").mean(), case(name, "notes").mean()
        rows.append([name, *cells, f"{worst:.1f}", f"{notes:.2f}"])
    table(["case", "held-out loss", "three seeds", "exact", "worst step", "base's notes"], rows)


show("4 rows, 800 steps", USUAL, "64 rows, 50 steps")

# %% [markdown]
# So accumulate to reach a batch that you want but that the machine cannot hold. Do not accumulate
# because larger is better.

# %%
# Checks
small_batch, large_batch = case("4 rows, 800 steps"), case("64 rows, 50 steps")
assert large_batch.min() > 10 * case(USUAL).max(), "50 steps must not be enough, with any seed"
assert small_batch.max() < 0.75 * case(USUAL).min(), "more and smaller steps must be better here"

# %% [markdown]
# ## Warm-up
#
# At the first step, Adam's moments are g and g², so (Kingma and Ba 2015, Alg. 1)
#
# $$\Delta\theta = -\eta\,\frac{g}{|g| + \varepsilon} = -\eta\,\mathrm{sign}(g)$$
#
# The step has full length in every entry, whatever the gradient is, and its direction is the sign
# of one batch's noise. Warm-up makes the first steps short, until the moments have seen more
# batches.
#
# **Predict.** How far does the first step move a parameter whose gradient is a thousand times
# smaller than another's? How far does it move `lora_A`?
#
# <details><summary>Answer</summary>
# As far as the other. `lora_A` does not move: its gradient contains B, which is zero.
# </details>

# %%
_, first, _ = gradient_at(adapters, frozen, bins, 0, config, large, kernels.OPS)
moved, _ = optim.adamw(adapters, first, optim.adamw_init(adapters), lambda path: 4e-3, defaults)
step = flatten(tree_map(np.subtract, moved, adapters))
gradients = flatten(first)
of_b = [path for path in step if path.endswith("lora_B")]
g = np.abs(np.concatenate([gradients[path].ravel() for path in of_b]))
d = np.abs(np.concatenate([step[path].ravel() for path in of_b]))
seen = g > 1e-6  # a hundred times Adam's ε
print(f"gradients of lora_B from {g[seen].min():.0e} to {g.max():.0e},", end=" ")
print(f"steps from {d[seen].min():.5f} to {d.max():.5f}")
show(USUAL, "no warm-up", "ten times the rate", "ten times, no warm-up")

# %% [markdown]
# **Not missed here.** At a good rate, a run without warm-up reaches the same loss or a lower one:
# it wastes no steps, and its worst step is hardly above its first. At ten times the rate, warm-up
# is missed: without it, the loss rises above where it began, and the run ends far worse. (Neither
# is good.) Warm-up is a margin for a rate that is too high, not a gain at one that is right.

# %%
# Checks
assert g[seen].max() > 1000 * g[seen].min(), "the gradients must differ a thousandfold"
assert np.allclose(d[seen], 4e-3, rtol=0.02), "every step must be η (ε/|g| is at most a hundredth)"
for path in step:
    assert path in of_b or not step[path].any(), f"{path} must not move: B is zero"
assert case("no warm-up", "worst").max() < 4.5, (
    "the worst step, near the start (the runs begin at 4)"
)
assert case("no warm-up").max() < 1.5 * case(USUAL).min(), "without warm-up, the same loss"
fast, fast_cold = "ten times the rate", "ten times, no warm-up"
assert case(fast_cold).min() > 1.2 * case(fast).max(), "at ten times the rate, warm-up must help"
worst, worst_cold = case(fast, "worst").max(), case(fast_cold, "worst").min()
assert worst_cold > 5 > worst, "and without it the loss must rise above the start"

# %% [markdown]
# ## What was shown
#
# Accumulation must weight micro-batches by target tokens. Warm-up protects against a high rate.
#
# **What to try.** 1. `notes[:100]`: leave the notes out of `mixed`. Is the mean of means right now?
# 2. `batch_size=1, grad_accumulation_steps=32`: use 8 and 4. 3. `g > 1e-6`: use 1e-9. Which steps
# are shorter?
#
# **Exercises.** accumulation, warmup, adamw.
#
# **Further reading.** Kingma and Ba 2015: [arXiv:1412.6980](https://arxiv.org/abs/1412.6980). Goyal
# et al. 2017, on warm-up: [arXiv:1706.02677](https://arxiv.org/abs/1706.02677).
