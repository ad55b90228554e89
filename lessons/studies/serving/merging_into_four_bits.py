# %% [markdown]
# # Merging into four bits
#
# **The question.** A QLoRA adapter is trained on a 4-bit base. Into which weights should it be
# merged, and may the result be quantized again?
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 10 seconds to run, fifteen minutes to read. **You need:** lesson 4, and what
# quantizing to NF4 does (lesson 2).

# %%
import numpy as np

from minilora import nf4
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    deviation,
    finetune,
    of,
    read_sweep,
    short,
    table,
)
from minilora.lessons.studies.serving import merging_sweep as merging

rng = np.random.default_rng(0)
n = 512
W = 0.02 * rng.standard_normal((n, n), np.float32)
norm = np.linalg.norm


def update_of(size):
    """Return a ΔW of rank 8 with ‖ΔW‖ = size·‖W‖."""
    d = rng.standard_normal((n, 8), np.float32) @ rng.standard_normal((8, n), np.float32)
    return d * np.float32(size * norm(W) / norm(d))


# %% [markdown]
# ## Why the error grows with each switch
#
# A server can switch adapters by merging and unmerging. Below, an update of 1 % is added to an NF4
# weight and subtracted again, ten times. The error grows about tenfold, although almost no code
# changes. (In float32 and bfloat16 it does not grow: the next switch rounds to the same numbers.)
#
# **Predict.** If the codes do not change, what does?

# %%
start = nf4.quantize(W)
d, w = update_of(0.01), start.dequantize()
errors = []
for _ in range(10):
    end = nf4.quantize(nf4.quantize(w + d).dequantize() - d)
    w = end.dequantize()
    errors.append(norm(w - start.dequantize()) / norm(d))
print(f"error of the weight / ‖ΔW‖: {errors[0]:.2f} after one switch, {errors[9]:.2f} after ten")
codes = nf4.unpack_4bit(start.codes)
two = np.isin(codes, (0, 15)).reshape(-1, 64).sum(axis=1) > 1  # blocks with two codes of ±1
growth = end.absmax / start.absmax - 1
print(f"the absmax grows by {growth[two].mean():.1%} in some blocks, {two.mean():.0%} of all")

# %% [markdown]
# **Answer.** The absmax of some blocks. The largest element of a block is stored exactly, with the
# code of −1 or 1. If a second element is near enough to get such a code, too, +ΔW may make one of
# the two larger, and −ΔW the other. The new absmax is the larger of them, both times. So it can
# grow with each switch.
#
# ## The dead zone
#
# A QLoRA adapter is trained on the dequantized weights Ŵ. It can be merged in three ways:
#
# 1. **Ŵ + ΔW, dense:** this is what was trained. It is exact.
# 2. **quantize(Ŵ + ΔW):** four bits again. An element gets another code only if its share of the
#    absmax crosses the middle between two values. Other changes of the share are rounded away.
# 3. **W + ΔW**, with the original 16-bit W: this adds W − Ŵ, the error of quantizing the base. In
#    NF4 its norm is 9 % of ‖W‖ (normal weights), and the adapter was trained *with* this error in
#    place.
#
# ![The three ways as arrows from W and from Ŵ](../../../figures/drawings/three_merges.svg)
#
# **Predict.** At which ‖ΔW‖/‖W‖ does the second way keep half of the update? And what does
# quantize(W + ΔW), the original W in four bits, keep of an update of 1 %, in the mean?


# %%
def in_four_bits(w):
    """Return a weight as it is read back from NF4."""
    return nf4.quantize(w, double_quant=True).dequantize()


W_hat = in_four_bits(W)
SIZES = (0.003, 0.01, 0.03, 0.1, 0.3)
error = {"4 bits again": [], "original W": []}
kept = {"kept in 4 bits again": [], "in quantize(W + ΔW)": []}
for size in SIZES:
    d = update_of(size)
    from_hat, from_w = in_four_bits(W_hat + d), in_four_bits(W + d)
    error["4 bits again"].append(norm(from_hat - (W_hat + d)) / norm(d))
    error["original W"].append(norm(W - W_hat) / norm(d))  # of the base, at each size
    for name, w in zip(kept, (from_hat, from_w)):  # both are Ŵ without ΔW
        kept[name].append(np.vdot(w - W_hat, d) / np.vdot(d, d))  # 1: all of ΔW
cells = []
for size, *numbers in zip(SIZES, *error.values(), *kept.values()):
    cells.append([f"{size}", *(f"{number:.2f}" for number in numbers)])
table(["‖ΔW‖/‖W‖", *error, *kept], cells)

# %% [markdown]
# **Answer.** Between 3 % and 10 %: at 3 % the second way keeps less than a tenth, at 10 % more than
# four fifths. From the original W, about all of ΔW is kept, at each size.
#
# Why? Ŵ is W in 4 bits: each element *is* one of the sixteen values, and most elements of a small
# ΔW do not reach the midpoint to the next. An element of the original W lies anywhere between two
# values. Few elements of W + ΔW change their code, but these move by a whole gap. In the mean over
# many elements, rounding does not lose ΔW.
#
# An error of 1 is what discarding the adapter would give. At 1 % and 3 %, four bits have a *larger*
# error, and the original W one that is larger still.

# %% [markdown]
# ## What the task says
#
# The sweep trains QLoRA of `micro` (0.1 million parameters) at two learning rates, five seeds each,
# and scores all merged models.
#
# **Predict.** An adapter of a 4-bit base is merged into the base Ŵ or into the original W, and
# stored dense or in four bits. Order the merged models from best to worst.

# %%
# Table
sweep = read_sweep("merging")
seeds = {
    (name, rate): np.array(of(sweep, name, rate=rate))
    for name in merging.WAYS
    for rate in merging.RATES
}
cells = []
for way, text in merging.WAYS.items():
    cells.append([text, *(deviation(seeds[way, rate], 4) for rate in merging.RATES)])
table(["held-out loss, five seeds", *(f"rate {rate}" for rate in merging.RATES)], cells)

# %% [markdown]
# **Answer.** Ŵ + ΔW has the lowest held-out loss, that of the separate adapter, at both rates and
# in every seed. **So merge into the base on which the adapter was trained, dequantized.** If you
# need four bits again, evaluate *after* quantizing.
#
# The error on random weights does not order the rest: after the run at 0.001, W + ΔW has a lower
# loss than four bits in every seed.
#
# ## What was shown
#
# Ŵ + ΔW is the trained model. Four bits keep less than a tenth of an update of 3 % of random
# weights, and repeated merging in four bits lets some scales grow. The study [Three ways to serve
# an adapter in 4 bits](three_ways_to_serve.py) compares three models.
#
# **What to try.**
#
# 1. `for _ in range(10)`: 100 switches. Where does the growth of the absmax end?
# 2. `nf4.quantize(w, double_quant=True)`: use `block_size=32`. Does the dead zone shrink?
# 3. `SIZES`: add 0.05 and 0.07. Where exactly is half of the update kept? The study [Four bits of
#    2026](four_bits_of_2026.py) derives it.
#
# **Where to stop with a debugger.** `merged_ways` in `merging_sweep.py`, and `nf4.quantize`.
#
# **Exercises.** test-merge, linear-4bit, one-file-nearest, measure-merge.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Xu et al. 2023,
# *QA-LoRA*, train an adapter that merges into low bits exactly:
# [arXiv:2309.14717](https://arxiv.org/abs/2309.14717).

# %%
# Checks
assert 8 < errors[9] / errors[0] < 12, "the error must grow about tenfold"
assert (nf4.unpack_4bit(end.codes) == codes).mean() > 0.999, "almost no code may change"
assert growth[two].mean() > 0.03, "with two such elements, the absmax must grow"
assert np.abs(growth[~two]).max() < 1e-5, "with one, it may not"
assert abs(norm(W - W_hat) / norm(W) - 0.092) < 0.005, "the error of NF4 on a normal weight"
for quantized, original in list(zip(*error.values()))[1:3]:  # updates of 1 % and of 3 %
    assert original / 1.5 > quantized > 1.02, "worse than discarding the adapter, and W still more"
share = dict(zip(SIZES, kept["kept in 4 bits again"]))
assert max(share[0.003], share[0.01], share[0.03]) < 0.1, "from Ŵ, small updates must be lost"
assert share[0.1] > 0.8, "at 10 %, more than four fifths"
for size, of_w in zip(SIZES, kept["in quantize(W + ΔW)"]):
    noise = 5 * 0.09 / (size * n)  # the error of rounding n² elements, in the direction of ΔW
    assert abs(of_w - 1) < 0.06 + noise, f"{size}: rounding must be unbiased"
low, high = merging.RATES
for rate in merging.RATES:
    apart = seeds["apart", rate]
    assert np.abs(seeds["dequantized", rate] / apart - 1).max() < 1e-3, "Ŵ + ΔW must be exact"
    for way in ("dequantized_4bit", "original", "original_4bit"):
        assert (seeds[way, rate] > 1.05 * apart).all(), f"{way}: it must be worse in every seed"
for way in ("dequantized_4bit", "original_4bit"):
    assert (seeds["original", low] < seeds[way, low]).all(), "the original W must be second"
run = finetune(scheme="nf4-dq", learning_rate=low, iters=short(200, 20))  # seed 0 of the sweep
again = merging.scored(run, low, 0)
for way in merging.WAYS:
    same = agrees(again[way], seeds[way, low], seeds[way, high])
    assert QUICK or same, f"{way}: {again[way]}, not {seeds[way, low]}"
