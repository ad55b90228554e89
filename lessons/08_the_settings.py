# %% [markdown]
# # 8. The settings: where, rank, alpha, rate
#
# **The question.** A recipe of LoRA names the matrices, r, alpha and a learning rate. Which of them
# matter, and which are one knob twice?
#
# The tables are sweeps on `micro` (0.1 million parameters): 200 steps of 8 rows of the questions,
# three to eight seeds. The verdicts are about this base and this task. The setting alpha
# (`lora_alpha`) is α.
#
# **Time:** 10 seconds to run, twenty minutes to read. **You need:** lessons 1, 3 and 7.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers.common import (
    HOLDS,
    QUICK,
    belongs,
    claim,
    finetune,
    interval,
    of,
    read_sweep,
    short,
    table,
)
from minilora.tree import arrays, flatten, overlay, tree_map

model, tokenizer = minilora.load("micro")
rows = data.load_rows("questions", "train")
ALL = ("all-linear",)

# %% [markdown]
# ## Where
#
# A layer has seven projections. In most experiments, the LoRA paper trains those of q and v only.
# Each row below has r = 8, s = α/r = 2, the rate 0.01 and five seeds.
#
# **Predict.** The training loss of q and v is as high as the held-out loss. Is it better to add
# more matrices, although this trains up to five times as many parameters on the same rows?
#
# <details><summary>Answer</summary>
# Yes: adding o more than halves the mean loss, and all seven matrices more than halve it again.
# ("No" is tempting for fear of overfitting, that is, of memorizing the training rows. But then the
# training loss would be far below the held-out loss: lesson 9.)
# </details>

# %%
sweep = read_sweep("targets")
rungs, trained_on, cells = {}, {}, []
for name in ("q v", "q v o", "q v o, every MLP", "all seven"):
    columns = ("trained", "train_loss", "loss")
    trained, on_train, held_out = (np.array(of(sweep, c, part="climb", name=name)) for c in columns)
    rungs[name], trained_on[name] = held_out, on_train.mean()
    cells.append([name, int(trained[0]), f"{on_train.mean():.3f}", f"{held_out.mean():.3f}"])
table(["matrices", "parameters", "training loss", "held-out loss"], cells)

# %% [markdown]
# So begin with all seven (`all-linear`). The study [Where to apply
# it](studies/lora/where_to_apply.py) compares matrices with equal numbers of parameters.

# %%
# Checks
bottom, with_o, top = rungs["q v"], rungs["q v o"], rungs["all seven"]
assert 0.75 < bottom.mean() / trained_on["q v"] < 1.25, "q v must underfit"
assert with_o.mean() < 0.5 * bottom.mean(), "adding o must halve the loss"
assert top.mean() < 0.5 * with_o.mean(), "all seven must halve the loss again"

# %% [markdown]
# ## How much rank
#
# Here all seven matrices are trained. alpha = 2r, so s = 2 at every rank. The losses are means of
# five seeds.
#
# **Predict.** Is r = 1 enough? At the rate 0.01, is r = 64 better than r = 32? (A weight of
# attention is 48 × 48. So BA has rank 48 at most, and at r = 64, A and B have more numbers than W.)
#
# <details><summary>Answer</summary>
# r = 1 is too little. r = 64 is much worse than r = 32 at the rate 0.01, but the best of all at
# 0.004. ("Too many parameters" is a tempting reason. But at 0.004 it has as many. With s
# fixed, the first step changes more at a larger rank: lesson 1.)
# </details>

# %%
sweep = read_sweep("rank")
by_rank, cells = {}, []
RANKS = (1, 2, 4, 8, 16, 32, 64)
for rate in (1e-2, 4e-3):
    for r in RANKS:
        by_rank[rate, r] = np.array(of(sweep, "loss", targets="all", rate=rate, r=r))
    cells.append([f"rate {rate:g}", *(f"{by_rank[rate, r].mean():.3f}" for r in RANKS)])
table(["held-out loss at r =", *map(str, RANKS)], cells)

# %% [markdown]
# At the rate 0.01, the mean loss varies by up to 2.3 times from r = 4 to 32, and r = 1 is about
# 7 times worse than the worst of these. So the rank matters less in this range, and much below it.

# %%
# Checks
assert by_rank[1e-2, 1].min() > 4 * by_rank[1e-2, 4].max(), "r = 1 must be too little"
flat = [by_rank[1e-2, r].mean() for r in (4, 8, 16, 32)]
assert 2.2 < max(flat) / min(flat) < 2.4, "r = 4 to 32: up to 2.3 times"
worse = [by_rank[1e-2, 1].mean() / mean for mean in flat]
assert 6.5 < min(worse) < 7.5 and 15.5 < max(worse) < 16.5, "r = 1: 7 to 16 times worse"
assert by_rank[1e-2, 64].mean() > 5 * by_rank[1e-2, 32].mean(), "r = 64 must fail"
assert min(RANKS, key=lambda r: by_rank[4e-3, r].mean()) == 64, "and be the best at 0.004"

# %% [markdown]
# ## Alpha is a learning rate and a start
#
# "Tuning α is roughly the same as tuning the learning rate, if we scale the initialization
# appropriately" (LoRA, Sec. 4.1, under Adam). For an exact version, let c be a positive number.
# Replace A by A/c, B by B/c, and α by c²·α. Then the update is the same:
#
# $$\frac{c^2\alpha}{r} \cdot \frac{B}{c} \cdot \frac{A}{c} = \frac{\alpha}{r} B A$$
#
# The gradients of the new factors are c times as large (lesson 1). Adam divides by their size, so
# its steps do not depend on c. With η/c in place of the learning rate η, the new factors stay 1/c
# of the old ones, step after step. Let A₀ be A at the start. Without clipping and weight decay, and
# with Adam's ε times c, these two runs have the same ΔW on paper:
#
# $$(\alpha,\; \eta,\; A_0) \quad\text{and}\quad (c^2\alpha,\; \eta/c,\; A_0/c)$$
#
# **Predict.** One run has α, η and A₀, another one c²·α, η/c and A₀/c. For c = 2, are the losses of
# 60 steps in float32 equal, or only close?
#
# <details><summary>Answer</summary>
# Equal, bit for bit: multiplying by a power of two rounds nothing. ("Close" is tempting, because
# training magnifies each rounding. Here both runs round alike.)
# </details>


# %%
def run(alpha, rate, c=1.0):
    """Train at r = 8 with A₀ divided by c and ε multiplied by c: (losses, trained tree)."""
    config = LoraConfig(r=8, lora_alpha=alpha, target_modules=ALL)
    adapters, _ = minilora.get_peft_model(model, config, 0)
    adapters = overlay(adapters, tree_map(lambda w: w / np.float32(c), arrays(adapters)))
    # with such a max_grad_norm, no gradient is clipped
    fixed = {"iters": short(60, 20), "batch_size": 8, "mask_prompt": True, "max_grad_norm": 1e9}
    settings = TrainConfig(learning_rate=rate, adam_eps=c * 1e-8, **fixed)
    examples, _ = data.encode_rows(rows, tokenizer, settings)
    adapters, history = minilora.train(adapters, model, examples, settings)
    return np.array([step["loss"] for step in history]), flatten(arrays(adapters))


losses_1, factors_1 = run(alpha=16, rate=4e-3)
losses_2, factors_2 = run(alpha=64, rate=2e-3, c=2)
print(f"last loss with (α, η, A₀):      {losses_1[-1]:.8f}")
print(f"last loss with (4α, η/2, A₀/2): {losses_2[-1]:.8f}")

# %%
# Checks
assert np.array_equal(losses_1, losses_2), "the losses must be equal, not only close"
for path, factor in factors_1.items():
    assert np.array_equal(factor, 2 * factors_2[path]), f"{path} must be twice the other"

# %% [markdown]
# ## Alpha or rank
#
# **Predict.** The learning rate is fixed, and r or alpha becomes 16 times larger. Which matters
# more?
#
# <details><summary>Answer</summary>
# Alpha. (r is tempting, because it decides how many parameters are trained.) At r = 4, alpha = 4
# has 26 to 35 times the loss of alpha = 64. At alpha = 64, r = 4 has only 1.3 to 2 times the loss
# of r = 64. (95 % intervals of the mean ratio of eight seeds.)
# </details>

# %%
sweep = read_sweep("alpha")
ALPHAS = (4, 8, 16, 32, 64, 128)
losses, cells = {}, []
for alpha in ALPHAS:
    cells.append([str(alpha)])
    for r in (4, 16, 64):
        if r == 4 or alpha >= 16:
            losses[r, alpha] = np.array(of(sweep, "loss", part="r", r=r, alpha=alpha))
            cells[-1].append(f"{losses[r, alpha].mean():.3f}")
        else:
            cells[-1].append("")
table(["alpha, rate 0.004", "r = 4", "r = 16", "r = 64"], cells)


def times(higher, lower):
    """Return the logarithms of the ratios of the losses of two settings, one per seed."""
    return np.log(losses[higher] / losses[lower])


of_alpha, of_rank = times((4, 4), (4, 64)), times((4, 64), (64, 64))
at_2r, smaller = times((4, 8), (4, 64)), times((4, 16), (4, 64))
verdicts = {
    "alpha": claim("r = 4: alpha 4 against 64, > 10 times", of_alpha, np.log(10), times=True),
    "rank": claim("alpha = 64: r = 4 against 64, > 1 times", of_rank, times=True),
    "both": claim("alpha costs more than r, > 5 times", of_alpha - of_rank, np.log(5), times=True),
    "2r": claim("r = 4: alpha 8 against 64, > 5 times", at_2r, np.log(5), times=True),
    "64": claim("r = 4: alpha 16 against 64, > 1 times", smaller, times=True),
}

# %% [markdown]
# So at r = 4 and this rate, alpha = 64 has a lower loss than three rules of thumb:
#
# - "alpha = r": alpha = 4 has more than ten times the loss.
# - "alpha = 2r": alpha = 8 has more than five times the loss.
# - "alpha = 16" at every r (QLoRA, with r = 64): alpha = 16 has two to six times the loss.
#
# At a higher rate, alpha = 64 fails (the study [What α/r
# does](studies/lora/what_alpha_over_r_does.py), which also tests rsLoRA's α/√r). So no alpha is
# good or bad without its rate.

# %%
# Checks
for name, found in verdicts.items():
    assert found == HOLDS, name
for logs, ends in ((of_alpha, (26, 35)), (of_rank, (1.3, 2.0)), (smaller, (2.1, 6.0))):
    _, low, high = np.exp(interval(logs))
    assert abs(low / ends[0] - 1) < 0.05 and abs(high / ends[1] - 1) < 0.05, f"{low} to {high}"
live = {}
for alpha in (8, 64):  # two runs of the sweep again
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=ALL)
    live[alpha] = finetune(config, batch_size=8, iters=short(200, 20)).scores["loss"]
for alpha, other in ((8, 64), (64, 8)):
    cell, rival = np.log(losses[4, alpha]), np.log(losses[4, other])
    assert QUICK or belongs(np.log(live[alpha]), cell, rival), f"alpha = {alpha}: not the sweep's"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters: all seven matrices are better than q and v. Ranks 4 to 32
# differ by up to 2.3 times at one rate, and a larger one needs a lower rate if s is fixed. Without
# clipping and decay, a change of alpha is a change of the rate, the start of A and ε. At one rate,
# alpha matters more than the rank.
#
# So a recipe: all seven matrices, r = 8 or 16, a fixed alpha, such as 16, and then a search for the
# rate (lesson 7 says where to begin). [Dropout, and what a wrong choice
# costs](studies/training/dropout_and_wrong_choices.py) ranks the mistakes.
#
# **What to try.**
#
# 1. `run(alpha=64, rate=2e-3, c=2)`: use c = 3, with its alpha and rate. Why only close?
# 2. `"max_grad_norm": 1e9`: use 1. What breaks?
# 3. `("q v", "q v o", …)`: add "q v o, MLP of layer 0". How much does one MLP bring?
#
# **Where to stop with a debugger.** `config.rank_and_scaling`: the place where α/r is computed.
#
# **Exercises.** adamw, one-file-init-lora, design-rows.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
