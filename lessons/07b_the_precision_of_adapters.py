# %% [markdown]
# # 7b. The precision of adapters
#
# **The question.** In which type may adapters be: float32, float16 or bfloat16?
#
# float32 has 24 significant bits, float16 has 11, and bfloat16 has 8. But bfloat16 has float32's
# range, while float16 ends at 65504.
#
# **Time:** a quarter of a minute to run, 15 minutes to read. **You need:** lesson 7, Adam.

# %%
from itertools import pairwise

import numpy as np
from common import QUICK, figure, finetune, of, read_sweep, short, table

import minilora
from minilora import InputError, LoraConfig, TrainConfig, data, kernels, layers, lora, optim
from minilora.evaluation import plot
from minilora.training import gradient_at
from minilora.tree import flatten, named_leaves, unflatten

BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
config, base, tokenizer = minilora.load("micro", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
fresh, frozen = lora.init(base, lora_config, np.random.default_rng(0))
masked = TrainConfig(mask_prompt=True)
examples, _ = data.prepare(data.load_rows("questions", "train"), tokenizer, masked)


def adapters_after_each_step(rate, n=20, dtype="float32"):
    """Train n steps at a constant rate; return a list of {path: array}."""
    settings = TrainConfig(
        iters=n, batch_size=16, learning_rate=rate, lr_schedule="constant", adapter_dtype=dtype
    )
    after = []

    def keep(rows, adapters, state):
        after.append(flatten(adapters))

    minilora.train(fresh, frozen, examples, config, settings, on_step=keep)
    return after


# %% [markdown]
# ## Small steps
#
# A number in [2ᵉ, 2ᵉ⁺¹) with p significant bits has its neighbours at a distance of 2ᵉ⁻ᵖ⁺¹. A step
# of less than half of that, 2ᵉ⁻ᵖ, is lost when the sum is rounded. Adam's steps are about as large
# as the learning rate.
#
# **Predict.** Which of the two 16-bit types loses small steps? At a rate of 6e-5, which share of A
# does not move, if its entries are within ±0.14?
#
# <details><summary>Answer</summary>
# bfloat16 loses them: it has three bits fewer than float16, so its steps are 8 times coarser. Most
# of A does not move. In float16, only the largest entries do not.
# </details>

# %%
RATE = 6e-5


def hundred_steps(dtype):
    """Add RATE to 0.1 a hundred times, and round after each step."""
    value = {"lora_A": np.full(1, 0.1, np.float32)}
    for _ in range(100):
        value = optim.round_to({"lora_A": value["lora_A"] + np.float32(RATE)}, dtype)
    return value["lora_A"][0]


def shares_that_stay(dtype):
    """Return the share of A that a training step leaves as it is: measured, predicted."""
    measured, predicted = [], []
    for old, new in pairwise(adapters_after_each_step(RATE, dtype=dtype)[9:]):
        for path in old:
            if "lora_A" in path:
                half_gap = 2.0 ** (np.floor(np.log2(np.abs(old[path]) + 1e-30)) - BITS[dtype])
                measured.append(np.mean(old[path] == new[path]))
                predicted.append(np.mean(half_gap > RATE))
    return np.mean(measured), np.mean(predicted)


sums, stay, cells = {}, {}, []
for dtype in BITS:
    sums[dtype], stay[dtype] = hundred_steps(dtype), shares_that_stay(dtype)
    cells.append([dtype, f"{sums[dtype]:.4f}", *(f"{share:.1%}" for share in stay[dtype])])
table(["type", f"0.1 + 100·{RATE:.0e}", "of A does not move", "predicted"], cells)

# %%
# Checks
for dtype, (measured, predicted) in stay.items():
    assert abs(measured - predicted) < 0.15, f"{dtype}: measured {measured}, not {predicted}"
    exact = abs(sums[dtype] - 0.106) < 1e-3
    assert exact == (dtype != "bfloat16"), f"{dtype}: only bfloat16 may lose a hundred steps"
for dtype, least, most in (("float32", 0, 1e-3), ("float16", 0.02, 0.3), ("bfloat16", 0.6, 1)):
    assert least <= stay[dtype][0] <= most, f"{dtype}: {stay[dtype][0]:.1%} of A does not move"

# %% [markdown]
# ## What that costs
#
# `sweeps/adapter_dtypes.py` trains 200 steps in each type, at three rates, with three seeds.

# %%
sweep = read_sweep("adapter_dtypes")
RATES = (6e-5, 5e-4, 4e-3)
loss, cells = {}, []
for dtype in BITS:
    cells.append([dtype])
    for rate in RATES:
        values = np.array(of(sweep, "loss", adapter_dtype=dtype, learning_rate=rate))
        loss[dtype, rate] = values
        cells[-1].append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
table(["loss after 200 steps", *(f"rate {rate:.0e}" for rate in RATES)], cells)

xlabel, ylabel = "learning rate", "held-out loss / that in float32"
with figure("adapter_dtypes", xlabel, ylabel, "Adapters in 16 bits, three seeds") as axes:
    for dtype, style, marker in zip(("float16", "bfloat16"), plot.LINES, "os"):
        ratios = np.array([loss[dtype, rate] / loss["float32", rate] for rate in RATES])
        means = ratios.mean(axis=1)
        ends = means - ratios.min(axis=1), ratios.max(axis=1) - means
        axes.errorbar(RATES, means, ends, label=dtype, marker=marker, capsize=3, **style)
    axes.set(xscale="log", ylim=(0.9, 1.4))
    axes.legend(frameon=False, loc="upper right")

# %% [markdown]
# ![bfloat16 has a higher loss at small rates, float16 does not](../figures/adapter_dtypes.png)
#
# bfloat16's loss is a quarter higher at 6e-5 and still a tenth higher at 4e-3. float16's loss is
# that of float32. This is why recipes keep a float32 copy of weights that are in bfloat16.

# %%
# Checks
for rate in RATES:
    half = loss["float16", rate] / loss["float32", rate]  # of each seed
    brain = loss["bfloat16", rate] / loss["float32", rate]
    assert (np.abs(half - 1) < 0.03).all(), f"float16 must be like float32 at {rate}"
    assert (brain > 1.02).all(), f"bfloat16 must be worse than float32 at {rate}"
    assert rate > RATE or (brain > 1.1).all(), (
        "and by a tenth at the smallest (found: 1.21 to 1.28)"
    )
if not QUICK:  # one run of the sweep again
    settings = {"learning_rate": RATE, "lr_schedule": "constant", "adapter_dtype": "bfloat16"}
    live = finetune(scheme="nf4-dq", seed=0, **settings).scores["loss"]
    assert abs(live / loss["bfloat16", RATE][0] - 1) < 0.1, f"{live} differs from the sweep"

# %% [markdown]
# ## Where float16 fails
#
# **Predict.** float16 has a small range. Which three quantities of a training step leave it?
#
# <details><summary>Answer</summary>
# A large weight (above 65504), the square of an activation, and Adam's second moment of a model
# that has learned (g² is below the smallest float16).
# </details>

# %%
largest = optim.round_to({"lora_B": np.float32([65504])}, "float16")["lora_B"]
refusal = None
try:
    optim.round_to({"lora_B": np.float32([65520])}, "float16")
except InputError as error:
    refusal = error
print(f"a weight: {largest[0]:.0f} stays; for 65520, minilora says: {refusal}")

activation = [[300, 100, 1, 1]]
with np.errstate(over="ignore"):
    in_float16 = layers.rms_norm(np.float16(activation), np.ones(4, np.float16), 1e-5)
in_float32 = layers.rms_norm(np.float32(activation), np.ones(4, np.float32), 1e-5)
print("an activation: 300² > 65504, so RMSNorm gives", in_float16, "in place of", in_float32)

learned = adapters_after_each_step(4e-3, n=short(150, 60))[-1]
one_row_each = [[example] for example in examples]
_, grads, _ = gradient_at(
    unflatten(learned), frozen, one_row_each, 0, config, TrainConfig(batch_size=16), kernels.OPS
)
entries = np.concatenate([g.ravel() for _, g in named_leaves(grads)])
lost = {"g": np.mean(np.float16(entries) == 0), "g²": np.mean(np.float16(entries**2) == 0)}
lost_in_bfloat16 = np.mean(optim.round_to({"v": entries**2}, "bfloat16")["v"] == 0)
print(f"zero in float16: {lost['g']:.1%} of the entries of g, {lost['g²']:.1%} of those of g²,")
print(f"and Adam's ε of 1e-8 is {np.float16(1e-8)}, so m would be divided by zero")

# %% [markdown]
# float16 fails by its *range*, at both ends. Loss scaling (Micikevicius et al. 2018) lifts small
# gradients, but the second moment must be float32. In minilora, activations, gradients and moments
# are always float32, and `adapter_dtype` only sets how the adapters are stored. So float16 is safe
# for adapters. A weight that leaves its range stops the run with an error that names the weight.

# %%
# Checks
assert largest[0] == 65504 and refusal, "float16 must end at 65504, and beyond it raise InputError"
assert not in_float16.any(), "x/√∞: the row must be silently zero in float16"
assert in_float32[0, 0] > 1, "and not in float32"
assert lost["g²"] > short(0.5, 0.05) and lost["g"] < 0.02, "g² must vanish in float16, g not"
assert np.float16(1e-8) == 0, "Adam's ε must be zero in float16"
assert lost_in_bfloat16 < 1e-3, "g² must not vanish in bfloat16"

# %% [markdown]
# ## What was shown
#
# bfloat16 loses small steps, because it has few significant bits. float16 loses small and large
# numbers, because it has a small range. For stored adapters, float16 is the better 16-bit type.
#
# **What to try.** 1. `RATE = 6e-5`: try 6e-4. 2. `np.full(1, 0.1, np.float32)`: begin at 0.01.
# 3. `n=short(150, 60)`: train 20 steps. Is g² still lost?
#
# **Exercises.** adamw.
#
# **Further reading.** Micikevicius et al. 2018, *Mixed Precision Training*:
# [arXiv:1710.03740](https://arxiv.org/abs/1710.03740).
