# %% [markdown]
# # 7. Double quantization
#
# **The question.** With their scales, four bits per weight are four and a half. What reduces
# them to 4.127, and what does that cost?
#
# Every byte of a 4-bit model is counted, and the error of the second quantization is measured. The
# study [When double quantization fails](studies/bits/when_double_quantization_fails.py) shows
# weights for which the method fails.
#
# **Time:** a few seconds to run, fifteen minutes to read. **You need:** lesson 2.

# %%
import numpy as np

import minilora
from minilora import TrainConfig, double_quant, nf4
from minilora.double_quant import double_dequantize, double_quantize
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers.common import QUICK, held_out_notes, short, table
from minilora.tree import flatten, num_parameters

rng = np.random.default_rng(0)


def rms(x):
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


# %% [markdown]
# ## Half a bit, and how to save most of it
#
# In blocks of 64, a weight needs 4 bits for its code (two codes share a byte, the first in the high
# four bits) and a 64th of a float32 absmax. [Double quantization](guide/glossary.md) stores each
# absmax in eight bits, and one float32 scale for 256 of them (QLoRA, Sec. 3):
#
# $$4 + \frac{32}{64} = 4.5 \qquad\qquad 4 + \frac{8}{64} + \frac{32}{256 \cdot 64} = 4.127$$
#
# `load(name, scheme)` leaves the embedding in the type of its file, here float16 (in lesson 0 and
# 2 it was float32), and the norms in float32.
#
# **Predict.** A weight is 1024 × 1024. Does the formula give its bytes exactly? And `tiny`, in NF4
# with double quantization: does the whole model need 4.127/32 of its dense size in float32?
#
# <details><summary>Answer</summary>
# For the weight, all but four bytes: the offset (the mean of all absmax, a float32 per tensor) is
# not in the formula. `tiny` needs more, because only its projections are quantized. After the
# codes, its largest part is the embedding, with 16 bits per number. (4.127/32 is tempting, because
# the embedding has only a few per cent of the numbers.)
#
# ![The bytes of a weight: codes, codes of absmax, nested absmax,
# offset](../figures/drawings/double_quantized_bytes.svg)
# </details>

# %%
w = rng.standard_normal((1024, 1024)).astype(np.float32)
single, double = nf4.quantize(w), nf4.quantize(w, double_quant=True)
rows = []
for name, q, formula in (
    ("float32 absmax", single, 4 + 32 / 64),
    ("double quantization", double, 4 + 8 / 64 + 32 / (256 * 64)),
):
    rows.append([name, q.nbytes, f"{8 * q.nbytes / w.size:.6f}", f"{formula:.6f}"])
table(["scales", "bytes", "bits per weight", "formula"], rows)
saved = (32 - 8 - 32 / 256) / 64
print(f"saved: {saved:.3f} bits per weight, {saved * 65e9 / 8e9:.2f} GB of 65 billion weights")

tiny = minilora.load("tiny", "nf4-dq").model.base
parts = dict.fromkeys(("codes", "codes of absmax", "nested absmax", "offsets"), 0)
parts |= {"embedding": 0, "norms": 0}
for path, leaf in flatten(tiny).items():
    if isinstance(leaf, nf4.Quantized):
        second = leaf.stored_absmax
        arrays = leaf.codes, second.codes, second.nested_absmax, second.offset
        for part, array in zip(parts, arrays):
            parts[part] += array.nbytes
    else:
        parts["norms" if "norm" in path else "embedding"] += leaf.nbytes
table(["part of tiny", "bytes"], [*parts.items(), ["together", nbytes(tiny)]])
of_dense = nbytes(tiny) / 4 / num_parameters(tiny)
print(f"{of_dense:.3f} of the dense size, not {4.127 / 32:.3f}")

# %%
# Checks
m = w.size // 64  # blocks
assert single.nbytes == w.size // 2 + 4 * m, "codes, and a float32 per block"
assert double.nbytes == w.size // 2 + m + 4 * m // 256 + 4, "codes, bytes, scales, and one offset"
assert parts["embedding"] == 2 * 256 * 128, "the embedding has 16 bits per number"
assert sum(parts.values()) == nbytes(tiny), "the parts must add up to the byte"
assert sorted(parts, key=parts.get)[-2:] == ["embedding", "codes"], "the two largest parts"
assert of_dense > 4.127 / 32, "the embedding and the norms need more"
assert abs(saved * 65e9 / 8e9 - 3) < 0.05, "approximately 3 GB for a 65B model (QLoRA, Sec. 1)"

# %% [markdown]
# The study [Every byte of a model](studies/bits/every_byte_of_a_model.py) has the bytes of the
# files, too.
#
# ## The second level
#
# No absmax is negative. Their mean, the *offset*, is subtracted. The differences are divided by the
# largest magnitude of 256, the *scale* (the nested absmax), and rounded to the nearest value of the
# dynamic map (Dettmers 2016). The map has 0, 1, and 254 values in seven decades, each decade with
# twice as many as the one below.
#
# The weights below are normal, or have *heavy tails*: some are far from all others (Student's t
# with three degrees of freedom).
#
# **Predict.** Which share of the map's values is within a tenth of zero? Does the map have less
# error than 255 evenly spaced values?
#
# <details><summary>Answer</summary>
# Half of the map's values ("nearly all" is tempting, because six of seven decades are there). For
# normal weights, fewer than a third of the differences are there, and even steps have less error.
# For heavy tails, more than half of them are there, and the map has less error.
# </details>

# %%
blocks = short(2**16, 2**12)
KINDS = {
    "normal": rng.standard_normal(64 * blocks).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, 64 * blocks).astype(np.float32),
}


def absmax_errors(w):
    """Quantize the absmax of w in three ways; return their RMSE, and the numbers that are coded."""
    absmax = nf4.quantize(w).absmax
    offset = double_quant.mean(absmax)
    centred = (absmax - offset).reshape(-1, double_quant.NESTED_BLOCK_SIZE)
    scale = np.abs(centred).max(axis=1, keepdims=True)
    even_steps = np.rint(centred / scale * 127) / 127 * scale + offset
    without_offset = double_quantize(absmax, np.float32(0))
    errors = {
        "dynamic map": rms(double_dequantize(double_quantize(absmax)) - absmax),
        "even steps": rms(even_steps.ravel() - absmax),
        "dynamic map, no offset": rms(double_dequantize(without_offset) - absmax),
    }
    return errors, (centred / scale).ravel()


errors, coded, rows = {}, {}, []
for kind, weights in KINDS.items():
    errors[kind], coded[kind] = absmax_errors(weights)
    rows.append([kind, *(f"{e:.4f}" for e in errors[kind].values())])
table(["RMSE of the absmax", *errors["normal"]], rows)

near = {"map": np.mean(np.abs(double_quant.DYNAMIC_MAP) < 0.1)}
for kind, x in coded.items():
    near[kind] = np.mean(np.abs(x) < 0.1)
print(f"within 0.1 of zero: {near['map']:.0%} of the map's values,", end=" ")
print(f"{near['normal']:.0%} of the differences if weights are normal,", end=" ")
print(f"{near['heavy-tailed']:.0%} if heavy-tailed")

# %% [markdown]
# For normal weights, the offset reduces the error of the absmax by a factor of three, and even
# steps have a third less error than the map.

# %%
# Checks
normal, heavy = errors["normal"], errors["heavy-tailed"]
ratio = normal["even steps"] / normal["dynamic map"]
assert 0.6 < ratio < 0.72, f"even steps must have a third less error (found: 0.67), not {ratio}"
by_offset = normal["dynamic map, no offset"] / normal["dynamic map"]
assert 2.8 < by_offset < 3.6, (
    f"the offset must gain a factor of three (found: 3.2), not {by_offset}"
)
assert heavy["even steps"] > 1.2 * heavy["dynamic map"], "the map must be better here (found: 1.7)"
assert abs(near["map"] - 0.5) < 0.01, "half of the map must be within 0.1 of zero"
assert near["normal"] < 1 / 3 and near["heavy-tailed"] > 0.5, "the coded differences near zero"

# %% [markdown]
# ## What it costs
#
# **Predict.** Each absmax has eight bits in place of 32. How much larger is the error of the
# weights, and how much larger is the loss of the model?
#
# <details><summary>Answer</summary>
# The error grows by less than 0.1 % for normal weights and by 0.2 to 0.5 % for heavy tails. (Much
# more is tempting: a quarter of the bits. But the error of a code of four bits is far larger.) The
# loss of the two small bases changes by less than a fortieth of what NF4 itself costs.
# </details>

# %%
growth = {}
for kind, weights in KINDS.items():
    once, twice = nf4.quantize(weights), nf4.quantize(weights, double_quant=True)
    growth[kind] = rms(twice.dequantize() - weights) / rms(once.dequantize() - weights) - 1
    print(f"{kind} weights: the error grows by {growth[kind]:.3%}")

costs = {}
for name in short(("micro", "tiny"), ("micro",)):
    model, tokenizer = minilora.load(name)
    notes = held_out_notes(tokenizer, TrainConfig())[0][: short(256, 64)]
    loss = {}
    for scheme in ("none", "nf4", "nf4-dq"):
        loss[scheme] = minilora.evaluate({}, minilora.quantize(model, scheme), notes)["loss"]
    costs[name] = loss["nf4"] - loss["none"], loss["nf4-dq"] - loss["nf4"]
    print(f"{name}: NF4 costs {costs[name][0]:.1e} nats per token,", end=" ")
    print(f"double quantization {costs[name][1]:.0e} more")

# %%
# Checks
assert 0 < growth["normal"] < 1e-3, "less than 0.1 % more error for normal weights"
assert QUICK or 2e-3 < growth["heavy-tailed"] < 5e-3, "about 0.3 % for heavy tails"
for name, (of_nf4, more) in costs.items():
    assert abs(more) < (0.2 if QUICK else 1 / 40) * of_nf4, f"{name}: more than a fortieth"

# %% [markdown]
# ## What was shown
#
# Double quantization saves 0.373 bits per weight, and the error of normal weights grows by less
# than 0.1 %. For them, even steps have less error than its map.
#
# **What to try.**
#
# 1. `double_quant.NESTED_BLOCK_SIZE`: use groups of 64 for the even steps. Is the error smaller?
# 2. `* 127) / 127`: use 7, four bits. Is that still good?
# 3. `standard_t(3, ...)`: use 2 degrees.
#
# **Where to stop with a debugger.** `double_quant.double_quantize`: `offset`, `nested_absmax`, and
# how many of `codes` differ from the nearest to `x`.
#
# **Exercises.** one-file-double-quantize, one-file-quantize, predict-bits.
#
# **Further reading.** QLoRA, Sec. 3: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Dettmers
# 2016, *8-Bit Approximations*: [arXiv:1511.04561](https://arxiv.org/abs/1511.04561).
