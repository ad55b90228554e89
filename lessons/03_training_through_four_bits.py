# %% [markdown]
# # 3. Training through four bits
#
# **The question.** The base is in four bits. How does a gradient pass through it, and what does an
# adapter learn next to weights that rounding has broken?
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 1 and 2.

# %%
import matplotlib.pyplot as plt
import numpy as np
from autograd import grad

import minilora
from minilora import LoraConfig, layers, nf4
from minilora.lessons.helpers.codes import in_few_bits, normal_float
from minilora.lessons.helpers.common import (
    HOLDS,
    OPEN,
    belongs,
    claim,
    finetune,
    interval,
    notes_loss,
    of,
    read_sweep,
    short,
    verdict,
)
from minilora.lessons.studies.bits.bases_sweep import shuffled
from minilora.tree import flatten

rng = np.random.default_rng(0)

# %% [markdown]
# ## The gradient through a 4-bit weight
#
# In the forward pass, y = x Ŵᵀ. Ŵ is the weight that dequantize computes from codes and scales. The
# codes are fixed, so Ŵ is a constant. With g = ∂L/∂y (x, y and g have one row per token), the chain
# rule gives, as in lesson 0 (QLoRA's Eq. 5, differentiated)
#
# $$\frac{\partial L}{\partial x} = g\,\hat W$$
#
# With an adapter, its part s·(gB)A is added, as in lesson 1.
#
# ![Both passes dequantize W for one product](../figures/drawings/qlora_passes.svg)
#
# **Predict.** If x moves by v, the loss changes by the sum of (gradient · v) over all entries. Is
# the gradient gŴ, or gW, with the weight from before quantization? And if the weights move by about
# 0.000001, how many codes change?

# %%
w = rng.standard_normal((64, 64)).astype(np.float32)
q = nf4.quantize(w, double_quant=True)
w_hat = q.dequantize().astype(np.float64)
x, v, g = (rng.standard_normal((3, 64)) for _ in "xvg")


def loss(x):
    """Compute a loss with ∂L/∂y = g, for y = x Ŵᵀ."""
    return np.sum(g * (x @ w_hat.T))


change = (loss(x + v) - loss(x - v)) / 2
for name, gradient in {"gŴ": g @ w_hat, "gW": g @ w}.items():
    print(f"the loss changes by {change:.4f}; {name} says {np.sum(gradient * v):.4f}")
off = np.linalg.norm(g @ w - g @ w_hat) / np.linalg.norm(g @ w_hat)
print(f"gW is off by {off:.1%}")

moved = nf4.quantize(w + np.float32(1e-6) * rng.standard_normal(w.shape).astype(np.float32))
print(f"codes that change when the weights move by 1e-6: {np.sum(moved.codes != q.codes)}")

# %% [markdown]
# **Answer.** gŴ: the gradient belongs to the function that is computed. gW is off by about NF4's
# error. No code changes: as a function of the weight, a code is constant, or it jumps. So its
# gradient is zero, or does not exist, and only the adapter learns.
#
# ## An adapter next to broken weights
#
# NF4 costs `micro` (0.1 million parameters) almost nothing. So the same weights are also rounded to
# 3 bits, eight values, and to 2 bits, four values, made as those of NF4 are. In a fifth base, the
# numbers of each projection are shuffled, so nothing that it had learned is left in them. (The
# embedding stays.) `notes_loss` is the loss of a base on its *own text*, sentences like those that
# it was pretrained on.

# %%
dense = minilora.load("micro").model
bases = {
    "32 bits": dense,
    "NF4": minilora.quantize(dense, "nf4-dq"),
    "3 bits": in_few_bits(dense, 3),
    "2 bits": in_few_bits(dense, 2),
    "shuffled": shuffled(dense),
}
own_text = {name: notes_loss({}, model) for name, model in bases.items()}
print("the four values of 2 bits, times absmax:", np.round(normal_float(2), 2))
for name, nats in own_text.items():
    print(f"{name:>8}: loss of the base on its own text {nats:.3f} nats per token")

# %% [markdown]
# With 32 bits, NF4 and 3 bits, the loss is near 0.2. With 2 bits, little is left of what the base
# knew: a model that knows only how often each letter occurs has 2.96. After shuffling, nothing is
# left.
#
# **Predict.** An adapter of rank 8 is trained on each of these bases, for 200 steps, to answer the
# questions. How many answers are right on each base?

# %%
# Picture
# the runs of a sweep, twelve seeds for each base: `studies/bits/bases_sweep.py`
sweep = read_sweep("bases")
SCHEMES = {"32 bits": "none", "NF4": "nf4-dq", **{name: name for name in list(bases)[2:]}}
losses = {name: np.array(of(sweep, "loss", scheme=s)) for name, s in SCHEMES.items()}
exact = {name: np.array(of(sweep, "exact_match", scheme=s)) for name, s in SCHEMES.items()}
for place, seeds in enumerate(losses.values()):
    plt.semilogy([place] * len(seeds), seeds, "o", alpha=0.4, color="C0")
    plt.semilogy([place - 0.2, place + 0.2], [np.median(seeds)] * 2, color="C1", linewidth=2)
plt.xticks(range(5), [f"{name}\n{np.median(x):.0%} right" for name, x in exact.items()])
plt.ylabel("held-out loss of the answers, in nats per token")
plt.title("a dot is a seed; lines and right answers: medians of twelve seeds")
plt.show()

# %% [markdown]
# **Answer.** The medians of twelve seeds are:
#
# - **32 bits, NF4 and 3 bits**: nearly all.
# - **2 bits**: 90 %, with a loss nearly three times that of 32 bits.
# - **Shuffled**: 64 %, with a loss five times that of 2 bits.
#
# The shuffled base is the control: its projections say nothing, so there, A and B learn it all. So
# the difference is what 2 bits per weight still say.
#
# The adapter does not bring back the base, because it is trained on the questions only: on the
# base's own text, the loss even rises (seed 0: from 0.205 to 1.35 with 32 bits, from 2.552 to 3.28
# with 2).
#
# How small is the cost of NF4? The seeds are *paired*: the difference to the dense base is taken
# seed by seed. Below are the mean difference and, in parentheses, its 95 % interval: 95 of 100 such
# intervals contain the true mean, if the differences are about normal.

# %%
# Table
SMALL = 0.003  # nats per token
paired = {name: losses[name] - losses["32 bits"] for name in losses}
any_cost = claim("NF4 costs anything", paired["NF4"], digits=4)
small = claim(f"NF4 costs less than {SMALL} nats", paired["NF4"], -SMALL, SMALL, digits=4)
of_two_bits = claim("2 bits cost anything", paired["2 bits"], digits=4)

# %% [markdown]
# QLoRA's main claim is that four bits cost the fine-tuned model nothing. Here, no cost is shown:
# the interval contains zero. It ends at 0.0007 nats, 6 % of the dense base's mean loss (0.011), so
# a larger mean cost is excluded. For 2 bits, a cost is shown. The studies [The memory of a
# step](studies/memory/the_memory_of_a_step.py) and [The precision of
# adapters](studies/bits/the_precision_of_adapters.py) go on from here.
#
# ## What was shown
#
# QLoRA needs no gradient of a code, only products with the dequantized weight. On `micro`, no cost
# of four bits is shown after training. With 2 bits, an adapter of rank 8 still learns most answers.
# The adapter learns a part of that alone, as the shuffled base shows.
#
# **What to try.**
#
# 1. `double_quant=True`: leave it out. How far is gW off now?
# 2. `in_few_bits(dense, 2)`: use 1, two values. Does it still learn?
# 3. `r=8` in the last cell: train with `bases["2 bits"]` and r = 1, 8, 32. Does a larger r help?
#
# **Where to stop with a debugger.** `layers.dense`: called in `layers.matmul`, and once more for
# its gradient.
#
# **Exercises.** linear-4bit, linear-4bit-backward, test-frozen, debug-export, design-bytes.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

# %%
# Checks
assert abs(change - np.sum(g @ w_hat * v)) < 1e-10, "the gradient must be gŴ: the loss is linear"
by_autograd = grad(lambda x: layers.np.sum(g * layers.matmul(x, q)))(x)
assert np.allclose(by_autograd, g @ w_hat, rtol=0, atol=1e-8), "minilora's gradient is gŴ"
assert 0.07 < off < 0.11, "gW must be off by NF4's error, about 9 %"
assert np.array_equal(moved.codes, q.codes), "a change of 1e-6 must not change a code"
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))


def weights_of(model):
    """Return copies of all weights, dequantized."""
    return [np.array(layers.dense(w)) for w in flatten(model.base).values()]


before = weights_of(bases["NF4"])
trained = finetune(start=minilora.get_peft_model(bases["NF4"], lora_config, 0), iters=20)
for w, again in zip(before, weights_of(bases["NF4"]), strict=True):
    assert np.array_equal(w, again), "training must not write to the base"
assert trained.scores["loss"] < 1.5, "but it must learn"
assert own_text["NF4"] < 1.02 * own_text["32 bits"], "NF4 must cost this base almost nothing"
assert abs(own_text["3 bits"] - 0.226) < 0.003 and abs(own_text["2 bits"] - 2.55) < 0.03
assert own_text["shuffled"] > 2.96 > own_text["2 bits"], "shuffled: worse than letters alone"
right = [np.sum(exact[name] > 0.9) for name in ("32 bits", "3 bits")]
assert right == [12, 11], "3 bits: as many right answers in eleven of twelve seeds"
medians = {name: np.median(losses[name]) for name in losses}
assert abs(np.median(exact["2 bits"]) - 0.9) < 0.02, "2 bits: nine of ten"
assert abs(np.median(exact["shuffled"]) - 0.64) < 0.02, "shuffled: about two of three"
for worse, better, times in (("2 bits", "32 bits", 3), ("shuffled", "2 bits", 5)):
    ratio = medians[worse] / medians[better]
    assert 0.8 < ratio / times < 1.25, f"{worse}: {ratio} times the loss of {better}"
both = np.log(losses["shuffled"]) - np.log(losses["2 bits"])
assert interval(both).low > 0, "2 bits must be better than shuffled, seed by seed"
assert any_cost == OPEN and small == HOLDS and of_two_bits == HOLDS
for scheme in ("int8", "fp4", "nf4", "nf4-dq"):
    cost = np.array(of(sweep, "loss", scheme=scheme)) - losses["32 bits"]
    assert verdict(cost, -SMALL, SMALL) == HOLDS, f"{scheme} must cost less than {SMALL} nats"
    assert verdict(cost) == OPEN, f"{scheme}: a cost must not be shown"
times = np.log(losses["NF4"] / losses["32 bits"])
assert verdict(times, -np.inf, np.log(1.1)) == HOLDS, "NF4: less than 1.1 times the loss"
points = 100 * (exact["32 bits"] - exact["NF4"])
assert verdict(points, -2, 2) == HOLDS, "NF4: less than 2 points of exact match"
assert abs(losses["32 bits"].mean() - 0.011) < 0.0005, "the dense base's mean loss"
assert abs(interval(losses["NF4"] - losses["32 bits"]).high - 0.0007) < 0.0001, "6 % of it"
for name in short(("32 bits", "2 bits"), ()):  # two runs of the sweep again, seed 0
    start = minilora.get_peft_model(bases[name], lora_config, 0)
    run = finetune(start=start, seed=0)
    # on another processor, a run that is done again counts like one more seed
    assert belongs(np.log(run.scores["loss"]), np.log(losses[name])), f"{name}: not the sweep's"
    assert notes_loss(run.adapters, bases[name]) > own_text[name], "the base is not brought back"
