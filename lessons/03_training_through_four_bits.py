# %% [markdown]
# # 3. Training through four bits
#
# **The question.** The base is in four bits. How does a gradient pass through it, and what does
# that cost in quality?
#
# QLoRA is LoRA with a frozen weight in four bits, dequantized for each product. The study [The
# memory of a step](studies/memory/the_memory_of_a_step.py) measures what that saves, and [The
# precision of adapters](studies/bits/the_precision_of_adapters.py) asks of which type A and B may
# be.
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 1 and 2.

# %%
import pickle

import autograd.numpy as anp
import numpy as np
from autograd import grad

import minilora
from minilora import LoraConfig, TrainConfig, data, layers, nf4
from minilora.lessons.helpers.common import (
    HOLDS,
    OPEN,
    belongs,
    claim,
    finetune,
    held_out_notes,
    interval,
    of,
    read_sweep,
    short,
    table,
)
from minilora.quant.schemes import SCHEMES
from minilora.tree import arrays, flatten

rng = np.random.default_rng(0)

# %% [markdown]
# ## The gradient through a 4-bit weight
#
# In the forward pass, y = x Ŵᵀ. Ŵ is the weight that dequantize computes from codes and scales. Let
# g = ∂L/∂y (x, y and g have one row per token).
#
# **Predict.** Finite differences measure ∂L/∂x. Will they agree with g·Ŵ, or with g·W for the
# weight before quantization? And what is the gradient with respect to the codes?
#
# <details><summary>Answer</summary>
# With g·Ŵ: the gradient belongs to the function that is computed. (g·W is tempting, because W is
# the "true" weight. It is off by about NF4's own error: 9 % of normal weights, lesson 2.) Rounding
# has the gradient zero almost everywhere: moving the weights by about 1e-6 changes no code.
# </details>

# %%
w = rng.standard_normal((16, 64)).astype(np.float32)
q = nf4.quantize(w, double_quant=True)
x, g = rng.standard_normal((3, 64)), rng.standard_normal((3, 16))


def loss(x):
    """Compute a loss with ∂L/∂y = g."""
    return anp.sum(g * layers.matmul(x, q))


def finite_differences(f, x, h=1e-4):
    """Compute ∂f/∂x, entry by entry, from f(x + h) and f(x − h)."""
    gradient = np.empty_like(x)
    for i in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[i] = h
        gradient[i] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


numeric = finite_differences(loss, x)
candidates = {
    "autograd": grad(loss)(x),
    "g·Ŵ": g @ q.dequantize(),
    "g·W, before quantization": g @ w,
}
off = {}
for name, candidate in candidates.items():
    off[name] = np.linalg.norm(candidate - numeric) / np.linalg.norm(numeric)
    print(f"{name:<26} differs from the finite differences by {off[name]:.0e}")

moved = nf4.quantize(w + np.float32(1e-6) * rng.standard_normal(w.shape).astype(np.float32))
print(f"codes that change when the weights move by 1e-6: {np.sum(moved.codes != q.codes)}")

# %% [markdown]
# Ŵ is a constant. So the chain rule gives (QLoRA's Eq. 5, differentiated)
#
# $$\frac{\partial L}{\partial x_i} = \sum_k g_k \frac{\partial y_k}{\partial x_i}
#   = \sum_k g_k \hat W_{ki}, \qquad \frac{\partial L}{\partial x} = g\,\hat W$$
#
# ![Both passes dequantize W for one product](../figures/drawings/qlora_passes.svg)
#
# As a function of the weight, a code is constant, or it jumps. So no gradient can train the codes,
# and only the adapter learns.

# %%
# Checks
assert off["autograd"] < 1e-8 and off["g·Ŵ"] < 1e-8, "the gradient must be g·Ŵ"
assert 0.05 < off["g·W, before quantization"] < 0.15, "g·W must be off by NF4's error, about 9 %"
assert np.array_equal(moved.codes, q.codes), "a change of 1e-6 must not change a code"

# %% [markdown]
# ## The frozen bytes
#
# Scales and norms are numbers that could be trained. But they are in the base, which gets no
# gradient (lesson 1). So 20 training steps must leave each byte of the base as it was, and change
# each array of the adapter.

# %%
model, tokenizer = minilora.load("micro", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, model = minilora.get_peft_model(model, lora_config, 0)
settings = TrainConfig(iters=20, batch_size=16, learning_rate=4e-3, mask_prompt=True)
examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
valid, _ = data.encode_rows(data.load_rows("questions", "valid"), tokenizer, settings)

before = pickle.dumps(model.base)  # every byte of codes, scales, embedding and norms
trained, _ = minilora.train(adapters, model, examples, settings)
after = pickle.dumps(model.base)
old, new = flatten(arrays(adapters)), flatten(trained)
changed = sum(np.any(old[path] != new[path]) for path in old)
print(f"frozen: {len(before):,} bytes, unchanged: {after == before}")
print(f"trained: {changed} of {len(old)} arrays have changed")

# %%
# Checks
assert after == before, "training must not write to the base"
assert changed == len(old), "every array of the adapter must change"

# %% [markdown]
# ## One adapter, five bases
#
# The same LoRA (r = 8 on all projections, 200 steps) was trained on `micro` in five forms: dense,
# int8, FP4, NF4, and NF4 with double quantization. There are twelve seeds for each
# (`bases_sweep.py`). The *exact match* is the share of answers without a mistake. The seeds are
# *paired*: the difference to the dense base is taken seed by seed. The mean of the twelve
# differences has a 95 % interval: 95 of 100 such intervals contain the true mean. A claim *holds
# here* if the whole interval agrees with it, *does not hold here* if the whole interval contradicts
# it, and else is *not shown either way*.
#
# **Predict.** FP4 costs the base more than twice as much as NF4 before training. And after
# training?
#
# <details><summary>Answer</summary>
# After training, no difference is seen: all four intervals contain zero. ("Twice as much" is
# tempting, but A and B are trained next to the rounded weights.) That is not a proof of no
# difference. The intervals exclude a mean cost of more than 0.003 nats per token, which is about a
# quarter of the loss of 0.011.
# </details>

# %%
dense, _ = minilora.load("micro")
notes = held_out_notes(tokenizer, TrainConfig())[0][:64]
sweep = read_sweep("bases")
bare, losses, exact, rows = {}, {}, {}, []
for scheme in SCHEMES:
    bare[scheme] = minilora.evaluate({}, minilora.quantize(dense, scheme), notes)["loss"]
    losses[scheme] = np.array(of(sweep, "loss", scheme=scheme))
    exact[scheme] = np.array(of(sweep, "exact_match", scheme=scheme))
    cost = bare[scheme] - bare["none"]
    _, low, high = interval(losses[scheme] - losses["none"])
    cells = [f"{cost:.5f}", f"{losses[scheme].mean():.4f}", f"{low:+.4f} to {high:+.4f}"]
    rows.append([scheme, *cells, f"{exact[scheme].mean():.1%}"])
header = ["base", "cost to the bare base", "loss after training", "cost then (95 %)", "exact match"]
table(header, rows)

SMALL = 0.003  # nats per token
# claim(sentence, differences, above, below): is their mean above `above` and below `below`?
quantized = [scheme for scheme in SCHEMES if scheme != "none"]
small, any_cost = {}, {}
for scheme in quantized:
    cost = losses[scheme] - losses["none"]
    small[scheme] = claim(f"{scheme} costs less than {SMALL} nats", cost, -SMALL, SMALL, digits=4)
    any_cost[scheme] = claim(f"{scheme} costs anything", cost, digits=4)
fp4_or_nf4 = claim("FP4 is worse than NF4", losses["fp4"] - losses["nf4"], digits=4)
ratio = np.log(losses["nf4-dq"] / losses["none"])
at_most = claim("nf4-dq's loss is < 1.1 times", ratio, -np.inf, np.log(1.1), times=True)
points = 100 * (exact["none"] - exact["nf4-dq"])
right = claim("nf4-dq costs less than 2 points of exact match", points, -2, 2, digits=1)

live = {}
for scheme in short(["none", "nf4-dq"], []):  # two runs of the sweep again, seed 0
    live[scheme] = finetune(scheme=scheme, seed=0).scores["loss"]
    print(f"{scheme}, seed 0: {live[scheme]:.4f} now, {losses[scheme][0]:.4f} in the sweep")

# %% [markdown]
# QLoRA's main claim is that four bits cost the fine-tuned model nothing. On this model of 0.1
# million parameters, no cost is seen. For nf4-dq, a mean cost of more than a tenth of the loss is
# excluded (95 %), and a smaller one is not. QLoRA's other claim, that NF4 is better than FP4 after
# training, is not shown either way. Before training, FP4 costs this base less than 3 % of its loss.

# %%
# Checks
fp4_cost, nf4_cost = bare["fp4"] - bare["none"], bare["nf4"] - bare["none"]
assert fp4_cost > 2 * nf4_cost > 0, "FP4 must cost the bare base more than twice what NF4 costs"
assert bare["fp4"] < 1.03 * bare["none"], "FP4 must cost this base less than 3 % of its loss"
for scheme in quantized:
    assert small[scheme] == HOLDS, f"{scheme} must cost less than {SMALL} nats per token"
    assert any_cost[scheme] == OPEN, f"{scheme}: a cost must not be shown"
assert fp4_or_nf4 == OPEN and right == HOLDS and at_most == HOLDS
assert 0.2 < SMALL / losses["none"].mean() < 0.3, "0.003 nats: about a quarter of the loss"
untrained = [np.log(minilora.evaluate({}, dense, valid)["loss"])]
for scheme, value in live.items():
    # on another processor, a run that is done again counts like one more seed
    assert belongs(np.log(value), np.log(losses[scheme]), untrained), f"{scheme}: not the sweep's"
if live:
    assert abs(live["nf4-dq"] - live["none"]) < SMALL, "the cost must be small now, too"

# %% [markdown]
# ## What was shown
#
# QLoRA needs no gradient of a code, only products with the dequantized weight. The frozen bytes do
# not change. On a model of 0.1 million parameters, no cost of four bits is shown after training. A
# cost of more than a tenth of the loss is excluded (nf4-dq, 95 % interval of the mean of twelve
# seeds).
#
# **What to try.**
#
# 1. `double_quant=True`: leave it out. How far is g·W off now?
# 2. `minilora.load("micro", "nf4-dq")`: use "fp4". Does `trained` change?
# 3. `notes = held_out_notes(...)[0][:64]`: use all notes. How stable are the costs?
#
# **Where to stop with a debugger.** `layers.dense`: called in `layers.matmul`, and once more
# for its gradient.
#
# **Exercises.** linear-4bit, linear-4bit-backward, test-frozen, debug-export, design-bytes.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).
