# %% [markdown]
# # 8. The settings: where, rank, alpha, rate
#
# **The question.** A recipe of LoRA names the matrices, r, alpha and a learning rate. Which of them
# matter, and which are one knob twice?
#
# The pictures show stored runs of `micro` (0.1 million parameters), 200 steps of 8 questions each.
# What they show is about this base and this task. The setting `lora_alpha` is α, and s = α/r.
#
# **Time:** 10 seconds to run, twelve minutes to read. **You need:** lessons 1 and 7.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.lessons.helpers import common
from minilora.tree import arrays, flatten

# %% [markdown]
# ## Where
#
# A layer has seven projections. In most experiments, the LoRA paper trains those of q and v only.
# Here r = 8, s = 2 and the rate is 0.01.
#
# **Predict.** With q and v only, the training loss is as high as the held-out loss. Do more
# matrices help, although they train up to five times as many parameters on the same rows?

# %%
# Picture
targets = common.read_sweep("targets")
held_out, on_train = {}, {}
_, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
for name in ("all seven", "q v o, every MLP", "q v o", "q v"):
    held_out[name] = np.array(common.of(targets, "loss", part="climb", name=name))
    on_train[name] = np.mean(common.of(targets, "train_loss", part="climb", name=name))
    trained = common.of(targets, "trained", part="climb", name=name)[0]
    label = f"{name}: {trained:,.0f} parameters"
    axes.semilogx(held_out[name], [label] * 5, "o", color="C0", alpha=0.5)
    axes.semilogx(on_train[name], label, "|", color="C1", markersize=16)
axes.set_xlabel("loss, in nats per token; dots: held-out; |: training, mean")
plt.show()

# %% [markdown]
# **Answer.** Yes: adding o lowers the loss with each of five seeds, and all seven lower it again.
# Each time, the mean is more than halved. Equal losses that are *high* mean that the adapter has
# not learned even its own rows; with *overfitting*, the training loss is far lower (lesson 9). The
# study [Where to apply it](studies/lora/where_to_apply.py) compares matrices with equal numbers of
# parameters.
#
# ## How much rank
#
# Now all seven matrices are trained, with α = 2r, so s = 2 at every rank.
#
# **Predict.** Is r = 1 enough, at these two rates? Is r = 64 better than r = 32, at the rate 0.01
# and at 0.004? (An attention weight is 48 × 48. So at r = 64, A and B have more numbers than W.)

# %%
# Picture
ranks = common.read_sweep("rank")
RANKS = (1, 2, 4, 8, 16, 32, 64)
by_rank = {}
for rate in (0.01, 0.004):
    cells = [common.of(ranks, "loss", targets="all", rate=rate, r=r) for r in RANKS]
    by_rank[f"rate {rate}"] = np.array(cells)
common.show_losses(by_rank, RANKS, "rank", "means and ranges of five seeds")

# %% [markdown]
# **Answer.** r = 1 is far behind r = 4, at both rates. (Its loss still falls with the rate, so a
# part of this may be the rate.) From r = 4 to 32, at 0.01, the rank matters much less. r = 64 is
# far worse than r = 32 at 0.01, but the best of all at 0.004. So it does not have too many
# parameters: the rate is too high. With s fixed, a step changes more at a larger rank (lesson 1).
#
# ## Alpha is a learning rate and a start
#
# "Tuning α is roughly the same as tuning the learning rate, if we scale the initialization
# appropriately" (LoRA, Sec. 4.1, under Adam). For an exact version, let c be a positive number.
# Replace A by A/c, B by B/c, and α by c²·α. Then (α/r)·BA is the same.
#
# The gradients of the new factors are c times as large (lesson 1), but Adam's steps do not depend
# on that (lesson 7). So with the rate η/c, the new factors stay 1/c of the old ones, step after
# step. With A₀ for A at the start, these two runs have the same ΔW on two conditions:
#
# $$(\alpha,\; \eta,\; A_0) \quad\text{and}\quad (c^2\alpha,\; \eta/c,\; A_0/c)$$
#
# - without clipping and weight decay,
# - with Adam's ε times c (it is added to a root that is c times as large).
#
# **Predict.** For c = 2, α is four times as large. Are the losses of the two runs in float32 equal
# after 60 steps, or only close?

# %%
model, _ = minilora.load("micro")


def run(alpha, rate, c):
    """Train at r = 8 from A₀/c with Adam's ε times c, without clipping."""
    start = common.lora_adapters(model, a=1 / c, alpha=alpha), model
    settings = {"iters": common.short(60, 20), "batch_size": 8, "max_grad_norm": 1e9}
    return common.finetune(start=start, learning_rate=rate, adam_eps=c * 1e-8, **settings)


one, other = run(alpha=16, rate=4e-3, c=1), run(alpha=64, rate=2e-3, c=2)
print(f"last loss with (α, η, A₀):      {one.history[-1]['loss']:.8f}")
print(f"last loss with (4α, η/2, A₀/2): {other.history[-1]['loss']:.8f}")

# %% [markdown]
# **Answer.** Equal, bit for bit: a power of two rounds nothing. So a change of α is a change of the
# rate and of A₀. In practice nobody rescales A₀, so the two are *nearly* one knob.
#
# ## Alpha at one rate, and at its own
#
# **Predict.** At the rate 0.004, which costs more: an α that is 16 times too small, or such an r?
# And does such an α have another rate at which it does well?

# %%
# Table
alphas = common.read_sweep("alpha")
logs = {}  # {(r, α): logarithms of the losses at the rate 0.004, one per seed}
for r, alpha in ((4, 4), (4, 64), (64, 64)):
    logs[r, alpha] = np.log(common.of(alphas, "loss", part="r", r=r, alpha=alpha))
    print(f"r = {r}, α = {alpha}: loss {np.exp(np.mean(logs[r, alpha])):.4f}, a geometric mean")
of_alpha, of_rank = logs[4, 4] - logs[4, 64], logs[4, 64] - logs[64, 64]
ten_times = common.claim("α = 4 for 64, at r = 4, > 10 times", of_alpha, np.log(10), times=True)
any_cost = common.claim("r = 4 for 64, at α = 64, > 1 times", of_rank, times=True)
more = common.claim("α costs more than r, > 1 times", of_alpha - of_rank, times=True)

# %%
# Picture
GRID = (1e-3, 4e-3, 1.6e-2, 6.4e-2)
of_rate = {}
for alpha in (4, 16, 64):
    cells = [common.of(alphas, "loss", part="rate", alpha=alpha, rate=rate) for rate in GRID]
    of_rate[f"α = {alpha}"] = np.array(cells)
common.show_losses(of_rate, GRID, "learning rate", "r = 8: means and ranges of three seeds")

# %% [markdown]
# **Answer.** At this rate α costs far more: 26 to 35 times the loss, and r 1.3 to 2.0 times (95 %
# intervals of the mean ratio of eight seeds). The picture shows why: of these rates, the best of α
# = 4 is higher than that of α = 64. At 0.004, α = 4 fails. At 0.016 it does far better, and α = 64
# fails. That the lowest points differ is not shown with three seeds. So no α is good or bad without
# its rate. The study [What α/r does](studies/lora/what_alpha_over_r_does.py) has more.
#
# **The recipe.** Train all seven matrices with r = 8 and α = 16. Leave α there, also at another
# rank (lesson 1), and tune only the rate. On `micro`, begin at four times the best rate of full
# fine-tuning. On a wide model, the formula of the first step gives more (lesson 7): begin at the
# common ten times. Try half and twice as much. [Decisions](guide/decisions.md) has the sources. The
# study [What a wrong choice costs](studies/training/dropout_and_wrong_choices.py) ranks mistakes.
#
# ## What was shown
#
# On `micro`, all seven matrices are better than q and v, and at the two rates tried, r = 1 is far
# behind r = 4. A larger rank needs a lower rate if s is fixed. α and the rate are nearly one knob,
# so only one is tuned.
#
# **What to try.**
#
# 1. `run(alpha=64, rate=2e-3, c=2)`: use c = 3, with its alpha and rate. Why only close?
# 2. `"max_grad_norm": 1e9`: use 1. What breaks?
# 3. `"q v o, every MLP"`: use "q v o, MLP of layer 0". How much does one MLP bring?
#
# **Where to stop with a debugger.** `config.rank_and_scaling`: the place where α/r is computed.
#
# **Exercises.** adamw, one-file-init-lora, design-rows.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).

# %%
# Checks
qv, qvo, seven = (held_out[name].mean() for name in ("q v", "q v o", "all seven"))
assert 0.75 < qv / on_train["q v"] < 1.25, "q v: training and held-out loss are equal"
lower = [held_out["q v o"] < held_out["q v"], held_out["all seven"] < held_out["q v o"]]
assert np.all(lower), "each step lowers the loss with each seed"
assert qvo < 0.5 * qv and seven < 0.5 * qvo, "o must halve the loss, and all seven once more"
fast, slow = (dict(zip(RANKS, losses)) for losses in by_rank.values())
for curve in (fast, slow):
    assert curve[1].min() > 1.5 * curve[4].max(), "r = 1 must be far behind"
middle = [fast[r].mean() for r in (4, 8, 16, 32)]
assert max(middle) / min(middle) < 2.5 < 5 < fast[1].mean() / max(middle), "4 to 32: much less"
assert fast[64].mean() > 5 * fast[32].mean(), "r = 64 must fail at 0.01"
assert min(RANKS, key=lambda r: slow[r].mean()) == 64, "and be the best at 0.004"
first, second = ([step["loss"] for step in done.history] for done in (one, other))
assert first == second, "the losses must be equal, not only close"
for path, factor in flatten(arrays(one.adapters)).items():
    assert np.array_equal(factor, 2 * flatten(arrays(other.adapters))[path]), f"{path}: not twice"
assert ten_times == any_cost == more == common.HOLDS, "the three claims must hold"
for ratios, ends in ((of_alpha, (26, 35)), (of_rank, (1.3, 2.0))):
    found = np.exp(common.interval(ratios)[1:])
    assert np.allclose(found, ends, rtol=0.05), f"the ends of the interval are {found}"
small, usual, large = of_rate.values()
assert small.mean(axis=1).argmin() == 2 and large.mean(axis=1).argmin() == 1, "at 0.016 and 0.004"
assert small[1].min() > 5 * small[2].max(), "α = 4 must fail at 0.004"
assert large[2].min() > 5 * large[1].max(), "α = 64 must fail at 0.016"
for lowest in (small[2], usual[2]):  # no difference is shown
    assert common.verdict(np.log(lowest / large[1])) == common.OPEN, f"{lowest}: a difference"
