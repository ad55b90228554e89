# %% [markdown]
# # What makes a code good?
#
# **The question.** NF4 is said to be optimal because its sixteen values are used equally often. Is
# that so, and does the code with the least error also cost the model the least?
#
# `codes.py` has four codes, and `rounded`, which quantizes and dequantizes with one absmax per
# block, as in lesson 6.
#
# **Continues:** [lesson 6](../../06_four_bits.py).
#
# **Time:** half a minute to run, ten minutes to read. **You need:** lesson 6.

# %%
import numpy as np

import minilora
from lessons.helpers import codes
from lessons.helpers.codes import rms, rounded
from lessons.helpers.common import QUICK, figure, held_out_notes, short, table
from minilora import TrainConfig, nf4
from minilora.evaluation import plot
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten

rng = np.random.default_rng(0)
n = short(2**20, 2**17)
normal = rng.standard_normal(n).astype(np.float32)
VALUES = dict(codes.VALUES)  # NF4, FP4, E2M1 and int4; two more come below

# %% [markdown]
# ## The myth of equally filled bins
#
# The *bin* of a value holds the weights that are rounded to it.
#
# **Predict.** An equal share is 6.25 %. How full are NF4's fullest and emptiest bin? Is a code
# whose bins *are* equal better or worse than NF4?
#
# <details><summary>Answer</summary>
# With normal weights, they hold 9.3 % and 1.7 %. A code with equal bins has 1.4 times NF4's error.
# </details>

# %%
x, absmax = nf4.normalize(normal, 64)


def bin_shares(values):
    """Return the share of the weights in each bin (16,)."""
    return np.bincount(nf4.nearest(x, nf4.Codebook.from_values(values)), minlength=16) / n


def least_squares(values, steps=60):
    """Move each value to the weighted mean of its bin, repeatedly (Lloyd 1982).

    An error in x counts with absmax², because ŵ − w = absmax·(x̂ − x).
    """
    sample = x[: 2**17]
    weight = np.repeat(absmax, 64)[: 2**17].astype(np.float64) ** 2
    values = values.astype(np.float64)
    for _ in range(steps):
        bins = np.searchsorted((values[1:] + values[:-1]) / 2, sample)
        values = np.bincount(bins, weight * sample, 16) / np.bincount(bins, weight, 16)
    return values.astype(np.float32)


VALUES["equal bins"] = np.quantile(x, (np.arange(16) + 0.5) / 16).astype(np.float32)
VALUES["least squares"] = least_squares(nf4.NF4)
error = {name: rms(rounded(normal, values) - normal) for name, values in VALUES.items()}
share, equal = bin_shares(nf4.NF4), bin_shares(VALUES["equal bins"])
print("share of each NF4 bin, in %:", np.round(100 * share, 1))
for name in ("least squares", "equal bins"):
    print(f"RMSE of {name}: {error[name]:.4f}, {error[name] / error['nf4']:.2f} of NF4's")

# %%
with figure("nf4_bins", "code", "share of the weights (%)", "How full NF4's bins are") as axes:
    axes.bar(range(16), 100 * share, color=plot.LINES[0]["color"], width=0.8, zorder=2)
    axes.set_xticks(range(16))
    axes.axhline(6.25, color=plot.INK, linestyle=":", linewidth=1, zorder=3)
    axes.annotate("equal share", (15.4, 6.4), ha="right", fontsize=9, color=plot.INK)

# %% [markdown]
# ![Bars: NF4's bins hold 1.7 to 9.3 % of the weights](../../../figures/nf4_bins.png)
#
# NF4's bins are not equal. A possible reason: its quantiles are those of weights divided by *one*
# scale, but each block is divided by its largest weight. A code with equal bins has more error. And
# NF4 is not the code of least error, either: "least squares" has 5 % less.

# %%
# Checks
assert abs(share.max() - 0.093) < 0.002 and abs(share.min() - 0.017) < 0.002, "NF4's bin shares"
assert share.argmax() == 6, "the fullest bin is just below zero"
assert share.argmin() == 15, "the emptiest bin is the outermost"
assert equal.min() > 0.05 and equal.max() < 0.07, "the bins of `equal bins` must be nearly equal"
assert 1.38 < error["equal bins"] / error["nf4"] < 1.48, "equal bins: 1.4 times NF4's error"
assert 0.94 < error["least squares"] / error["nf4"] < 0.96, "least squares must gain 5 %"

# %% [markdown]
# ## A trained model
#
# The *kurtosis* of a distribution is the mean fourth power over the squared variance. It measures
# how heavy the tails are: 1.8 for uniform and 3 for normal numbers.
#
# **Predict.** What is the kurtosis of the weights of our base? And does the code with the least
# error cost the model the least?
#
# <details><summary>Answer</summary>
# About 3, as that of normal numbers. No: the mean cost of "least squares" is not below NF4's, and
# E2M1 has less error than int4 and costs more.
# </details>
#
# Each weight is also cut into other blocks, which begin at its 8th, 16th, … element. The cost is
# measured on three sets of notes.

# %%
config, base, tokenizer = minilora.load("micro")
projections = {p: w.astype(np.float32) for p, w in flatten(base).items() if is_projection(p)}
kurtosis = [np.mean((w - w.mean()) ** 4) / w.var() ** 2 for w in projections.values()]
print(f"kurtosis of {len(kurtosis)} weights: {min(kurtosis):.2f} to {max(kurtosis):.2f}")
notes = held_out_notes(tokenizer, TrainConfig())[0]
NOTE_SETS = [notes[start : start + 64] for start in (0, 64, 128)]


def losses(tree):
    """Return the loss on each set of notes, nats per token."""
    return np.array([minilora.evaluate({}, tree, some, config)["loss"] for some in NOTE_SETS])


untouched = losses(base)


def cost(values, shift):
    """Return by how much rounding raises the loss on each set; blocks begin at `shift`."""
    leaves = flatten(base)
    for path, w in projections.items():
        coarse = rounded(np.roll(w.ravel(), shift), values)
        leaves[path] = np.roll(coarse, -shift).reshape(w.shape)
    return losses(unflatten(leaves)) - untouched


costs, rows = {}, []
for code in sorted(VALUES, key=error.get):
    costs[code] = np.array([cost(VALUES[code], 8 * i) for i in range(short(8, 2))])  # (cuts, sets)
    numbers = costs[code].mean(), *costs[code].mean(axis=0)
    rows.append([code, f"{error[code]:.4f}", *(f"{x:.5f}" for x in numbers)])
table(["code", "normal RMSE", "cost (nats per token)", "of notes 1", "notes 2", "notes 3"], rows)
differences = (costs["least squares"] - costs["nf4"]).mean(axis=1)  # per cut
scatter = differences.std(ddof=1) / len(differences) ** 0.5
print(f"least squares minus NF4: {differences.mean():.5f} ± {scatter:.5f} (standard error)")

# %% [markdown]
# The error on normal numbers and the cost rank the codes differently. E2M1 has less error than int4
# and costs `micro` more on each set of notes; bitsandbytes' fp4 has a third more error than NF4 and
# costs `micro` several times as much. The order of the three cheapest codes is not shown: int4 and
# "least squares" change places with the notes, and NF4 is the cheapest on each set, but "least
# squares" costs less than three standard errors more. QLoRA's Table 2 has NF4 as the best code, and
# E2M1 before int4. NF4 costs this base less than a hundredth of its loss.

# %%
# Checks
mean = {code: np.mean(of_code) for code, of_code in costs.items()}
assert min(kurtosis) > 2.7 and max(kurtosis) < 3.6, "trained weights must be nearly normal"
assert mean["equal bins"] > 8 * mean["nf4"], "found: 19 times"
assert 1.28 < error["fp4"] / error["nf4"] < 1.37, "fp4 must have a third more error"
assert mean["fp4"] > 4 * mean["nf4"], "found: 10 times"
assert mean["nf4"] < untouched.min() / 100, "NF4 must cost less than a hundredth of the loss"
if not QUICK:
    cheap = {code for code in mean if mean[code] < 0.7 * mean["e2m1"]}
    assert cheap == {"nf4", "int4", "least squares"}, "the three cheapest codes"
    assert mean["least squares"] > 1.05 * mean["nf4"], "least error is not least cost (found: 1.3)"
    assert differences.mean() < 3 * scatter, "NF4 and least squares are not told apart"
    of_notes = {code: costs[code].mean(axis=0) for code in cheap}
    ahead = of_notes["int4"] < of_notes["least squares"]
    assert ahead.any() and not ahead.all(), "int4 and least squares change places with the notes"
    lowest = np.minimum(of_notes["int4"], of_notes["least squares"])
    assert (of_notes["nf4"] < lowest).all(), "NF4 is the cheapest on each set of notes"
    assert error["e2m1"] < error["int4"], "E2M1 has less error than int4"
    ratio = costs["e2m1"].mean(axis=0) / costs["int4"].mean(axis=0)
    assert ratio.min() > 1.2, "and costs more, on each set of notes (found: 1.5 to 3.3)"

# %% [markdown]
# ## What was shown
#
# On normal numbers, NF4's bins are not equal, and a code with equal bins has more error. Less error
# is not always less cost: E2M1 has less than int4, and costs `micro` more.
#
# **What to try.**
#
# 1. `least_squares(nf4.NF4)`: begin at `VALUES["int4"]`. Does it find the same values?
# 2. `minilora.load("micro")`: load "tiny". Is NF4 still the best code?
# 3. `rounded(w, values, block_size=64)`: use 256. Which codes suffer?
#
# **Exercises.** absmax-blocks, nearest-code.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Yoshida 2023,
# *NF4 Isn't Information Theoretically Optimal (and that's Good)*:
# [arXiv:2306.06965](https://arxiv.org/abs/2306.06965).
