# %% [markdown]
# # MERGE 7c. Where float16 fails
#
# **The question.** With adapters in float16, the mean loss was that of float32, to 3 % (the study
# [The precision of adapters](the_precision_of_adapters.py)). Why are activations and Adam's moments
# not in float16?
#
# **Continues:** [lesson 8](../../08_training_through_four_bits.py).
#
# **Time:** a few seconds to run, five minutes to read. **You need:** the study [The precision of
# adapters](the_precision_of_adapters.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import figure, short
from minilora import InputError, LoraConfig, TrainConfig, data, layers, optim
from minilora.evaluation import plot
from minilora.training import gradient_at
from minilora.tree import named_leaves

config, base, tokenizer = minilora.load("micro", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, base = minilora.get_peft_model(base, lora_config, 0)
masked = TrainConfig(mask_prompt=True)
examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, masked)

# %% [markdown]
# ## Three failures
#
# float16 has numbers up to 65504. The smallest above zero is 6e-8.
#
# ![The bits of float32, bfloat16 and float16: sign, exponent and
# fraction.](../../../figures/drawings/number_formats.svg)
#
# **Predict.** Which three quantities of a training step leave it?
#
# <details><summary>Answer</summary>
# A weight of 65520, the square of an activation of 300, and the terms of Adam's second moment in a
# model that has learned: most g² are zero in float16.
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

settings = TrainConfig(
    iters=short(150, 60), batch_size=16, learning_rate=4e-3, lr_schedule="constant"
)
learned, _ = minilora.train(adapters, base, examples, config, settings)
one_row_each = [[example] for example in examples]
ops = minilora.operations(learned, base)
in_one_batch = TrainConfig(batch_size=16)
_, grads, _ = gradient_at(learned, base, one_row_each, 0, config, in_one_batch, ops)
entries = np.concatenate([g.ravel() for _, g in named_leaves(grads)])
lost = {"g": np.mean(np.float16(entries) == 0), "g²": np.mean(np.float16(entries**2) == 0)}
lost_in_bfloat16 = np.mean(optim.round_to({"v": entries**2}, "bfloat16")["v"] == 0)
print(f"zero in float16: {lost['g']:.1%} of the entries of g, {lost['g²']:.1%} of those of g²,")
print(f"and Adam's ε of 1e-8 is {np.float16(1e-8)}, so m would be divided by zero")

# %%
xlabel, ylabel = "magnitude, as a power of ten", "share of the entries (%)"
with figure("float16_range", xlabel, ylabel, "Gradients of a model that has learned") as axes:
    for (label, x), style in zip({"g": entries, "g²": entries**2}.items(), plot.LINES):
        powers = np.log10(np.abs(x[x != 0]))
        weights = np.full(len(powers), 100 / len(powers))
        axes.hist(powers, 60, weights=weights, histtype="step", label=label, color=style["color"])
    axes.axvline(np.log10(2.0**-25), color=plot.INK, linestyle=":", linewidth=1)
    axes.annotate("zero in float16 ←", (np.log10(2.0**-25) - 0.2, 0), ha="right", va="bottom")
    axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Most squares of the gradient's entries are too small for
# float16](../../../figures/float16_range.png)
#
# The gradients are those of `micro`, a model of 0.1 million parameters, after 150 steps. float16
# fails by its *range*, at both ends. Loss scaling (Micikevicius et al. 2018) lifts small gradients
# and their squares; that it keeps a whole run in range is not tested here. In minilora,
# activations, gradients and moments are float32, and `adapter_dtype` only sets how the adapters are
# stored. A weight that leaves the range of float16 stops the run with an error that names the
# weight.

# %%
# Checks
assert largest[0] == 65504 and "lora_B" in str(refusal), (
    "float16 must end at 65504, and beyond it raise InputError"
)
assert not in_float16.any(), "x/√∞: the row must be silently zero in float16"
assert in_float32[0, 0] > 1, "and not in float32"
assert lost["g²"] > short(0.5, 0.05) and lost["g"] < 0.02, "g² must vanish in float16, g not"
assert np.float16(1e-8) == 0, "Adam's ε must be zero in float16"
assert lost_in_bfloat16 < 1e-3, "g² must not vanish in bfloat16"

# %% [markdown]
# ## What was shown
#
# float16 has too small a range for squares: 300² is above it, and most squares of the gradients of
# a `micro` that has learned are below it. In bfloat16, fewer than one of 1,000 is zero.
#
# **What to try.**
#
# 1. `activation = [[300, 100, 1, 1]]`: find the largest number that RMSNorm survives in float16.
# 2. `iters=short(150, 60)`: train for 20 steps. Is g² still lost?
# 3. `entries**2`: multiply the entries by 1,000 first, as loss scaling does. How much is lost then?
#
# **Where to stop with a debugger.** `optim.round_to`.
#
# **Exercises.** adamw.
#
# **Further reading.** Micikevicius et al. 2018, *Mixed Precision Training*:
# [arXiv:1710.03740](https://arxiv.org/abs/1710.03740).
