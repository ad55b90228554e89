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
from minilora.lessons.helpers.common import QUICK, agrees, finetune, of, read_sweep, short, table
from minilora.lessons.studies.serving import merging_sweep as merging

rng = np.random.default_rng(0)
n = short(512, 256)
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
#
# <details><summary>Answer</summary>
# The absmax of some blocks. The largest element of a block is stored exactly, with the code of −1
# or 1. If a second element is near enough to get such a code, too, +ΔW may make one of the two
# larger, and −ΔW the other. The new absmax is the larger of them, both times. So it can grow with
# each switch. "Nothing" is tempting, if one thinks of the codes as the weight.
# </details>

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
largest = np.isin(codes, (0, 15)).reshape(-1, 64).sum(axis=1)  # per block: codes of −1 and 1
growth = end.absmax / start.absmax - 1
print(f"{(largest > 1).mean():.0%} of the blocks have two elements with a code of −1 or 1")
print(f"growth of the absmax: {growth[largest > 1].mean():.1%} in these blocks, ", end="")
print(f"{abs(growth[largest == 1].mean()):.1%} in blocks with one")

# %%
# Checks
assert 8 < errors[9] / errors[0] < 12, "the error must grow about tenfold"
assert (nf4.unpack_4bit(end.codes) == codes).mean() > 0.999, "almost no code may change"
assert growth[largest > 1].mean() > 0.03, "with two such elements, the absmax must grow"
assert np.abs(growth[largest == 1]).max() < 1e-5, "with one, it may not"

# %% [markdown]
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
#
# <details><summary>Answer</summary>
# Between 3 % and 10 %: at 3 % it keeps less than a tenth, at 10 % more than four fifths. From the
# original W, about all of ΔW is kept, at each size. "Nothing" is tempting for both, because the
# gaps between the values are the same.
# </details>

# %%
W_hat = nf4.quantize(W, double_quant=True).dequantize()
SIZES = (0.003, 0.01, 0.03, 0.1, 0.3)
error = {"4 bits again": [], "original W": []}
cells, kept, kept_of_w = [], {}, {}
for size in SIZES:
    d = update_of(size)
    trained = W_hat + d
    again, onto_w = (nf4.quantize(w + d, double_quant=True).dequantize() for w in (W_hat, W))
    for way, w in zip(error, (again, W + d)):
        error[way].append(norm(w - trained) / norm(d))
    # of ΔW itself: 1 is all of it, 0 is nothing. Both weights are Ŵ without ΔW.
    kept[size], kept_of_w[size] = (np.vdot(w - W_hat, d) / np.vdot(d, d) for w in (again, onto_w))
    of_size = [f"{errors[-1]:.2f}" for errors in error.values()]
    cells.append([f"{size}", *of_size, f"{kept[size]:.0%}", f"{kept_of_w[size]:.0%}"])
print(f"‖W − Ŵ‖/‖W‖ = {norm(W - W_hat) / norm(W):.3f}; errors / ‖ΔW‖, and what is kept of ΔW:")
table(["‖ΔW‖/‖W‖", *error, "kept in 4 bits again", "in quantize(W + ΔW)"], cells)

# %% [markdown]
# An error of 1 is what discarding the adapter would give. At 1 % and 3 %, four bits have a *larger*
# error, and the original W one that is larger still.
#
# The last column differs from the one before it. Ŵ is W in 4 bits: each element *is* one of the
# sixteen values, and most elements of a small ΔW do not reach the midpoint to the next. An element
# of the original W lies anywhere between two values. Few elements of W + ΔW change their code, but
# these move by a whole gap. In the mean over many elements, rounding does not lose ΔW.

# %%
# Checks
assert abs(norm(W - W_hat) / norm(W) - 0.092) < 0.005, "the error of NF4 on a normal weight"
again, original = (dict(zip(SIZES, error[way])) for way in ("4 bits again", "original W"))
assert min(again[0.01], again[0.03]) > 1.02, "worse than discarding the adapter"
for size in (0.01, 0.03):
    assert original[size] > 1.5 * again[size], "W is worse still"
assert original[0.1] > again[0.1], "also at 10 %"
assert again[0.3] < 0.4, "large updates survive"
assert max(kept[0.003], kept[0.01]) < 0.2, "from Ŵ, small updates must be lost"
assert 0.02 < kept[0.03] < 0.09, "at 3 %, a twentieth is kept"
assert kept[0.1] > 0.8, "at 10 %, more than four fifths"
for size, share in kept_of_w.items():  # its noise: the quantization error over n² elements
    assert abs(share - 1) < 0.06 + 5 * 0.09 / (size * n), f"{size}: rounding must be unbiased"

# %% [markdown]
# ## What the task says
#
# The sweep trains QLoRA of `micro` (0.1 million parameters) at two learning rates, five seeds each,
# and scores all merged models.
#
# **Predict.** An adapter of a 4-bit base is merged into the base Ŵ or into the original W, and
# stored dense or in four bits. Order the merged models from best to worst.
#
# <details><summary>Answer</summary>
# Ŵ + ΔW has the lowest held-out loss, that of the separate adapter. After the run at 0.001, the
# original W is second, although its error on random weights is larger than that of four bits. So
# the order of these errors is the tempting answer.
# </details>

# %%
sweep = read_sweep("merging")
WAYS = merging.WAYS  # the sweep's columns, and their names in the tables


def column(name, rate):
    """Return a column of the sweep at a learning rate, one number per seed."""
    return np.array(of(sweep, name, rate=rate))


for rate in merging.RATES:
    print(f"learning rate {rate}, median ‖ΔW‖/‖W‖ {column('size', rate).mean():.2f}")
    cells = []
    for way, text in WAYS.items():
        losses, exact = column(way, rate), column(f"exact_{way}", rate).mean()
        cells.append([text, f"{losses.mean():.4f} ± {losses.std(ddof=1):.4f}", f"{exact:.0%}"])
    table(["five seeds", "held-out loss", "exact match"], cells)

# %% [markdown]
# **Merge into the base on which the adapter was trained, dequantized.** The other ways have a
# higher held-out loss, at both rates and in every seed. If you need four bits again, evaluate
# *after* quantizing.
#
# The error on random weights does not order the rest: after the run at 0.001, W + ΔW has a lower
# loss than four bits in every seed. That run's updates are about half as large as those at 0.004,
# and four bits raise its loss by more than three times as much.

# %%
# Checks
for rate in merging.RATES:
    apart = column("apart", rate)
    assert np.abs(column("dequantized", rate) / apart - 1).max() < 1e-3, "Ŵ + ΔW must be exact"
    for way in ("dequantized_4bit", "original", "original_4bit"):
        assert (column(way, rate) > 1.05 * apart).all(), f"{way}: it must be worse in every seed"
for way in ("dequantized_4bit", "original_4bit"):
    assert (column("original", 1e-3) < column(way, 1e-3)).all(), "the original W must be second"
lost = {rate: column("dequantized_4bit", rate) - column("apart", rate) for rate in merging.RATES}
assert lost[1e-3].min() > 3 * lost[4e-3].max(), "small updates must lose more to four bits"
assert 1.6 < column("size", 4e-3).mean() / column("size", 1e-3).mean() < 2.5, "half as large"
live = {}  # two runs of the sweep again
for rate, other in (merging.RATES, merging.RATES[::-1]):
    run = finetune(scheme="nf4-dq", learning_rate=rate, iters=short(200, 20))
    live[rate] = merging.scored(run, rate, 0)
    for way in WAYS:
        again, own = live[rate][way], column(way, rate)
        agree = QUICK or agrees(again, own, column(way, other))
        assert agree, f"{way}, {rate}: {again}, not {own}"
if not QUICK:
    small = live[1e-3]
    assert small["apart"] < small["original"] < small["dequantized_4bit"], "the order, run again"

# %% [markdown]
# ## What was shown
#
# Ŵ + ΔW is the trained model. Four bits keep less than a tenth of an update of 3 % of random
# weights, and repeated merging in four bits lets some scales grow. The study [Three ways to serve
# an adapter in 4 bits](three_ways_to_serve.py) compares three models.
#
# **What to try.**
#
# 1. `for _ in range(10)`: 100 switches. Where does the growth of the absmax end?
# 2. `nf4.quantize(W, double_quant=True)`: use `block_size=32`, also for `again`. Does the dead zone
#    shrink?
# 3. `SIZES`: add 0.05 and 0.07. Where exactly is half of the update kept?
#
# **Where to stop with a debugger.** `merged_ways` in `merging_sweep.py`, and `nf4.quantize`.
#
# **Exercises.** test-merge, linear-4bit, one-file-nearest, measure-merge.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Xu et al. 2023,
# *QA-LoRA*, train an adapter that merges into low bits exactly:
# [arXiv:2309.14717](https://arxiv.org/abs/2309.14717).
