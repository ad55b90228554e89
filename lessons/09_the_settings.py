# %% [markdown]
# # 9. The settings: where, rank, alpha, rate
#
# **The question.** A recipe of LoRA names the matrices, r, alpha and a learning rate. Which of them
# matter, and which are one knob twice?
#
# The tables are sweeps on `micro` (0.1 million parameters): 200 steps of 8 rows of the questions,
# three to eight seeds. The verdicts are about this base and this task. The setting alpha
# (`lora_alpha`) is α.
#
# **Time:** 10 seconds to run, fifteen minutes to read. **You need:** lessons 3, 5 and 8.

# %%
import numpy as np

import minilora
from lessons.helpers.common import (
    HOLDS,
    OPEN,
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
from minilora import LoraConfig, TrainConfig, data
from minilora.tree import arrays, flatten, overlay, tree_map

model_config, base, tokenizer = minilora.load("micro")
rows = data.load_rows("questions", "train")
ALL = ("all-linear",)

# %% [markdown]
# ## Where
#
# A layer has seven projections. The LoRA paper trains those of q and v only. Each row below has r =
# 8, s = α/r = 2, the rate 0.01 and five seeds.
#
# **Predict.** The training loss of q and v is as high as the held-out loss. Is it better to add
# more matrices, although this trains up to five times as many parameters on the same rows?
#
# <details><summary>Answer</summary>
# Yes: adding o more than halves the mean loss, and all seven matrices more than halve it again.
# ("No" is tempting for fear of overfitting. But overfitting has a training loss far below the
# held-out loss, see lesson 10.)
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
# *All seven* (`all-linear`) **holds here**: begin with them. The study [Where to apply
# it](studies/lora/where_to_apply.py) spends one number of parameters in ten ways, too: all seven at
# r = 4 have a lower loss than any one matrix of attention at r = 38.

# %%
# Checks
bottom, with_o, top = rungs["q v"], rungs["q v o"], rungs["all seven"]
assert 0.75 < bottom.mean() / trained_on["q v"] < 1.25, "q v must underfit"
assert with_o.mean() < 0.5 * bottom.mean(), "adding o must halve the loss"
assert top.mean() < 0.5 * with_o.mean(), "all seven must halve the loss again"

# %% [markdown]
# ## How much rank
#
# Here alpha = 2r, so s = 2 at every rank. The losses are means of five seeds.
#
# **Predict.** Is r = 1 enough? Is r = 64 better than r = 32? (A weight of attention is 48 × 48.)
#
# <details><summary>Answer</summary>
# r = 1 is too little. On all seven, r = 64 is much worse than r = 32 at the rate 0.01, and the best
# of all at 0.004. ("Too many parameters" is a tempting reason. But at 0.004 it has as many. With s
# fixed, the first step changes more at a larger rank: lesson 3.)
# </details>

# %%
sweep = read_sweep("rank")
by_rank, cells = {}, []
RANKS = (1, 2, 4, 8, 16, 32, 64)
for where, rate in (("q v", 1e-2), ("all", 1e-2), ("all", 4e-3)):
    for r in RANKS:
        by_rank[where, rate, r] = np.array(of(sweep, "loss", targets=where, rate=rate, r=r))
    means = [by_rank[where, rate, r].mean() for r in RANKS]
    cells.append([f"{where}, rate {rate:g}", *(f"{mean:.3f}" for mean in means)])
table(["held-out loss at r =", *map(str, RANKS)], cells)

# %% [markdown]
# *"The rank hardly matters"* **holds here in a range**: on all seven at the rate 0.01, the means
# from r = 4 to 32 differ by less than a factor of 2.5.

# %%
# Checks
for where, enough in (("q v", 16), ("all", 4)):
    least, most = by_rank[where, 1e-2, 1].min(), by_rank[where, 1e-2, enough].max()
    assert least > 4 * most, f"{where}: r = 1 must be too little"
flat = [by_rank["all", 1e-2, r].mean() for r in (4, 8, 16, 32)]
assert max(flat) < 2.5 * min(flat), "r = 4 to 32 must be similar"
assert by_rank["all", 1e-2, 64].mean() > 5 * by_rank["all", 1e-2, 32].mean(), "r = 64 must fail"
assert min(RANKS, key=lambda r: by_rank["all", 4e-3, r].mean()) == 64, "and be the best at 0.004"

# %% [markdown]
# ## Alpha is a learning rate and a start
#
# "Tuning α is roughly the same as tuning the learning rate, if we scale the initialization
# appropriately" (LoRA, Sec. 4.1, under Adam). For an exact version, let c be a positive number.
# Replace A by A/c, B by B/c, and α by c²·α. Then the update is the same:
#
# $$\frac{c^2\alpha}{r} \cdot \frac{B}{c} \cdot \frac{A}{c} = \frac{\alpha}{r} B A$$
#
# The gradients of the new factors are c times as large (lesson 4). Adam divides by their size, so
# at a learning rate η its steps do not depend on c. With η/c, the new factors stay 1/c of the old
# ones, step after step. So, with A₀ for A at the start (without clipping and weight decay, and with
# Adam's ε times c),
#
# $$(\alpha,\; \eta,\; A_0) \quad\text{and}\quad (c^2\alpha,\; \eta/c,\; A_0/c)
#   \quad\text{are the same run.}$$
#
# **Predict.** How close are the losses of 60 such steps to each other, for c = 2?
#
# <details><summary>Answer</summary>
# They are equal, bit for bit: multiplying by a power of two rounds nothing. ("Close" is tempting,
# because training magnifies each rounding. Here both runs round alike.)
# </details>


# %%
def run(alpha, rate, c=1.0):
    """Train at r = 8 with A₀ divided by c and ε multiplied by c: (losses, trained tree)."""
    config = LoraConfig(r=8, lora_alpha=alpha, target_modules=ALL)
    adapters, _ = minilora.get_peft_model(base, config, 0)
    adapters = overlay(adapters, tree_map(lambda w: w / np.float32(c), arrays(adapters)))
    # with such a max_grad_norm, no gradient is clipped
    fixed = {"iters": short(60, 20), "batch_size": 8, "mask_prompt": True, "max_grad_norm": 1e9}
    settings = TrainConfig(learning_rate=rate, adam_eps=c * 1e-8, **fixed)
    examples, _ = data.encode_rows(rows, tokenizer, settings)
    adapters, history = minilora.train(adapters, base, examples, model_config, settings)
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
# **Predict.** At one learning rate: which matters more, r or alpha?
#
# <details><summary>Answer</summary>
# Alpha. (r is tempting, because it decides how many parameters are trained.) At r = 4, an alpha of
# 4 has 26 to 35 times the loss of 64. The rank has an effect as well: at alpha = 64, r = 4 has 1.3
# to 2 times the loss of r = 64. (95 % intervals of the mean ratio of eight seeds.)
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
at_2r, smaller, larger = times((4, 8), (4, 64)), times((4, 16), (4, 64)), times((64, 16), (4, 16))
verdicts = {
    "alpha": claim("r = 4: alpha 4 against 64, > 10 times", of_alpha, np.log(10), times=True),
    "rank": claim("alpha = 64: r = 4 against 64, > 1 times", of_rank, times=True),
    "both": claim("alpha costs more than r, > 5 times", of_alpha - of_rank, np.log(5), times=True),
    "2r": claim("r = 4: alpha 8 against 64, > 5 times", at_2r, np.log(5), times=True),
    "64": claim("r = 4: alpha 16 against 64, > 1 times", smaller, times=True),
    "rsLoRA": claim("alpha = 16: r = 64 against 4, > 1 times", larger, times=True),
}

# %% [markdown]
# Three rules of thumb, on this model of 0.1 million parameters and at this rate:
#
# - "alpha = r" and "alpha = 2r": at r = 4, their mean losses are more than ten and more than five
#   times that of alpha = 64. At r = 4, 16 and 64, alpha = 64 has less than 1.2 times the lowest
#   mean loss; at a rate of 0.016 and r = 8 it fails (the study [What α/r
#   does](studies/lora/what_alpha_over_r_does.py)). So a rule for alpha needs a rate.
# - "alpha = 16, whatever r is" (QLoRA uses it at r = 64): at this rate and r = 4, alpha = 64 has
#   the lower mean loss.
# - "Large ranks need α/√r" (rsLoRA) is not shown either way: at alpha = 16, r = 64 has 0.8 to 2.1
#   times the loss of r = 4 (95 % interval of the mean ratio).

# %%
# Checks
for name in ("alpha", "rank", "both", "2r", "64"):
    assert verdicts[name] == HOLDS, name
assert verdicts["rsLoRA"] == OPEN, "r = 64 must not be shown to be worse at a fixed alpha"
for logs, ends in ((of_alpha, (26, 35)), (of_rank, (1.3, 2.0)), (larger, (0.8, 2.1))):
    _, low, high = np.exp(interval(logs))
    assert abs(low / ends[0] - 1) < 0.05 and abs(high / ends[1] - 1) < 0.05, f"{low} to {high}"
for r in (4, 16, 64):
    lowest = min(loss.mean() for (rank, _), loss in losses.items() if rank == r)
    assert losses[r, 64].mean() < 1.2 * lowest, f"r = {r}: alpha = 64 must be good"
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
# are similar at one rate, and a larger one needs a lower rate if s is fixed. Without clipping and
# decay, a change of alpha is a change of the rate, the start of A and ε. At one rate, alpha = 4 in
# place of 64 raises the loss by more than five times the factor of r = 4 in place of 64.
#
# So a recipe: all seven matrices, r = 8 or 16, an alpha, and then a search for the rate. Lesson 5
# has its size: a few times that of full fine-tuning on `micro`, more for wider models. [Dropout,
# and what a wrong choice costs](studies/training/dropout_and_wrong_choices.py) ranks the mistakes.
#
# **What to try.**
#
# 1. `run(alpha=64, rate=2e-3, c=2)`: use c = 3, with its alpha and rate. Why only close?
# 2. `"max_grad_norm": 1e9`: use 1. What breaks?
# 3. `("q v", "q v o", …)`: add "q v o, MLP of layer 0". How much does one MLP bring?
#
# **Where to stop with a debugger.** `config.rank_and_scaling`: the place where α/r is computed.
#
# **Exercises.** adamw, lora-init.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). rsLoRA:
# [arXiv:2312.03732](https://arxiv.org/abs/2312.03732).
