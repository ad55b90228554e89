# %% [markdown]
# # 3. Training through four bits
#
# **The question.** The base is in four bits. How does a gradient pass through it, and what can an
# adapter repair that rounding has broken?
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 1 and 2.

# %%
import autograd.numpy as anp
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
    notes_loss,
    of,
    read_sweep,
    short,
    table,
)
from minilora.tree import flatten

rng = np.random.default_rng(0)

# %% [markdown]
# ## The gradient through a 4-bit weight
#
# In the forward pass, y = x Ŵᵀ. Ŵ is the weight that dequantize computes from codes and scales. Let
# g = ∂L/∂y (x, y and g have one row per token). The codes are fixed, so Ŵ is a constant, and the
# chain rule gives (QLoRA's Eq. 5, differentiated)
#
# $$y_k = \sum_i \hat W_{ki}\, x_i \qquad \frac{\partial L}{\partial x} = g\,\hat W$$
#
# ![Both passes dequantize W for one product](../figures/drawings/qlora_passes.svg)
#
# **Predict.** Is g·Ŵ right, or g·W, with the weight from before quantization? And if the weights
# move by a millionth, how many codes change?

# %%
w = rng.standard_normal((16, 64)).astype(np.float32)
q = nf4.quantize(w, double_quant=True)
x, g = rng.standard_normal((3, 64)), rng.standard_normal((3, 16))


def loss(x):
    """Compute a loss with ∂L/∂y = g."""
    return anp.sum(g * layers.matmul(x, q))


by_autograd = grad(loss)(x)
off = {}
for name, gradient in {"g·Ŵ": g @ q.dequantize(), "g·W": g @ w}.items():
    off[name] = np.linalg.norm(gradient - by_autograd) / np.linalg.norm(by_autograd)
    print(f"{name} differs from autograd's gradient by {off[name]:.0e}")

moved = nf4.quantize(w + np.float32(1e-6) * rng.standard_normal(w.shape).astype(np.float32))
print(f"codes that change when the weights move by 1e-6: {np.sum(moved.codes != q.codes)}")

# %% [markdown]
# **Answer.** g·Ŵ: the gradient belongs to the function that is computed. g·W is off by NF4's error,
# 9 % of a normal weight. No code changes: as a function of the weight, a code is constant, or it
# jumps. So no gradient can train the codes, and only the adapter learns.
#
# ## The frozen bytes
#
# Scales and norms are numbers that could be trained, but they are in the base, which gets no
# gradient. So training must leave each byte of the base as it was.

# %%
base, _ = minilora.load("micro", "nf4-dq")
before = {path: np.copy(w.codes) for path, w in flatten(base.base).items() if "_proj" in path}
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
start = minilora.get_peft_model(base, lora_config, 0)
trained = finetune(start=start, iters=20)
changed = sum(np.any(flatten(base.base)[path].codes != codes) for path, codes in before.items())
print(f"after 20 steps, {changed} of {len(before)} projections have another code")

# %% [markdown]
# ## What an adapter repairs
#
# NF4 costs `micro` (0.1 million parameters) so little that there is nothing to repair. So the same
# weights are also rounded to eight values, 3 bits, and to four values, 2 bits. The values are made
# as those of NF4 are:

# %%
dense, _ = minilora.load("micro")
bases = {
    "32 bits": dense, "NF4": base, "3 bits": in_few_bits(dense, 3), "2 bits": in_few_bits(dense, 2)
}  # fmt: skip
own_text = {name: notes_loss({}, model) for name, model in bases.items()}
print("the four values of 2 bits, times absmax:", np.round(normal_float(2), 2))
for name, nats in own_text.items():
    print(f"{name:>7}: loss of the base on its own text {nats:.3f} nats per token")

# %% [markdown]
# In 2 bits, the base is destroyed: 2.6 nats in place of 0.2.
#
# **Predict.** An adapter of rank 8 is trained on each of these bases, for 200 steps, to answer the
# questions. On which bases does it learn to answer them? And does it also repair the base on its
# own text?

# %%
# Picture
# the runs of a sweep, twelve seeds for each base: `studies/bits/bases_sweep.py`
sweep = read_sweep("bases")
SCHEMES = {"32 bits": "none", "NF4": "nf4-dq", "3 bits": "3 bits", "2 bits": "2 bits"}
losses = {name: np.array(of(sweep, "loss", scheme=s)) for name, s in SCHEMES.items()}
exact = {name: np.array(of(sweep, "exact_match", scheme=s)) for name, s in SCHEMES.items()}
for place, seeds in enumerate(losses.values()):
    plt.semilogy([place] * len(seeds), seeds, "o", alpha=0.4, color="C0")
    plt.semilogy([place - 0.2, place + 0.2], [np.median(seeds)] * 2, color="C1", linewidth=2)
plt.xticks(range(len(losses)), list(losses))
plt.ylabel("held-out loss of the answers, in nats per token")
plt.title("after training; a dot is a seed, a line the median of twelve")
plt.show()
cells = [
    [name, f"{np.median(losses[name]):.3f}", f"{np.median(exact[name]):.0%}"] for name in exact
]
table(["base", "median loss", "median of right answers"], cells)

# %%
runs = {}
for name in short(("32 bits", "2 bits"), ()):  # two runs of the sweep again, seed 0
    start = minilora.get_peft_model(bases[name], lora_config, 0)
    runs[name] = finetune(start=start, seed=0)
    repaired = notes_loss(runs[name].adapters, bases[name])
    score = runs[name].scores
    print(
        f"{name}: loss of the answers {score['loss']:.4f}, {score['exact_match']:.0%} right; "
        f"on the base's own text {repaired:.2f} nats"
    )

# %% [markdown]
# **Answer.** On all of them. In 2 bits, the adapter learns the answers on a base that has forgotten
# its language: A and B are trained next to the rounded weights, so they also correct the rounding
# where the answers need it. They do not repair the base: on its own text its loss rises, as that of
# the dense base does, because no row asks for that text. And the repair is not free. The median
# loss in 2 bits is three times that of 32 bits, and some answers stay wrong.
#
# How small is the cost of NF4? The seeds are *paired*: the difference to the dense base is taken
# seed by seed. The mean of the twelve differences has a 95 % interval: 95 of 100 such intervals
# contain the true mean.

# %%
# Table
SMALL = 0.003  # nats per token
paired = {name: losses[name] - losses["32 bits"] for name in losses}
any_cost = claim("NF4 costs anything", paired["NF4"], digits=4)
small = claim(f"NF4 costs less than {SMALL} nats", paired["NF4"], -SMALL, SMALL, digits=4)
of_two_bits = claim("2 bits cost anything", paired["2 bits"], digits=4)

# %% [markdown]
# QLoRA's main claim is that four bits cost the fine-tuned model nothing. On this model, no cost is
# shown, and a mean cost of more than 0.003 nats, a quarter of the loss, is excluded. For 2 bits, a
# cost is shown. The studies [The memory of a step](studies/memory/the_memory_of_a_step.py) and [The
# precision of adapters](studies/bits/the_precision_of_adapters.py) go on from here.
#
# ## What was shown
#
# QLoRA needs no gradient of a code, only products with the dequantized weight. The frozen bytes do
# not change. An adapter is trained next to the rounded weights and corrects them where its rows
# need it, even on a base in 2 bits, but it does not repair the base.
#
# **What to try.**
#
# 1. `double_quant=True`: leave it out. How far is g·W off now?
# 2. `in_few_bits(dense, 2)`: use 1, two values. Does it still learn?
# 3. `r=8`: use 1 and 32 with "2 bits". What does a larger adapter repair?
#
# **Where to stop with a debugger.** `layers.dense`: called in `layers.matmul`, and once more
# for its gradient.
#
# **Exercises.** linear-4bit, linear-4bit-backward, test-frozen, debug-export, design-bytes.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

# %%
# Checks
assert off["g·Ŵ"] < 1e-6, "the gradient must be g·Ŵ: the same product, rounded otherwise"
assert 0.05 < off["g·W"] < 0.15, "g·W must be off by NF4's error, about 9 %"
assert np.array_equal(moved.codes, q.codes), "a change of 1e-6 must not change a code"
assert changed == 0, "training must not write to the base"
assert trained.scores["loss"] < 4, "but it must learn"
assert own_text["NF4"] < 1.02 * own_text["32 bits"], "NF4 must cost this base almost nothing"
assert own_text["2 bits"] > 10 * own_text["32 bits"], "2 bits must destroy it"
for name in losses:
    assert np.median(exact[name]) > 0.85, f"{name}: most answers must be right"
ratio = np.median(losses["2 bits"]) / np.median(losses["32 bits"])
assert 2 < ratio < 4, f"2 bits must cost about three times the loss, not {ratio}"
assert any_cost == OPEN and small == HOLDS and of_two_bits == HOLDS
assert 0.2 < SMALL / losses["32 bits"].mean() < 0.3, "0.003 nats: about a quarter of the loss"
for name, done in runs.items():
    # on another processor, a run that is done again counts like one more seed
    assert belongs(np.log(done.scores["loss"]), np.log(losses[name])), f"{name}: not the sweep's"
if runs:
    forgotten = notes_loss(runs["2 bits"].adapters, bases["2 bits"])
    assert forgotten > own_text["2 bits"], "the adapter must not repair the base on its own text"
