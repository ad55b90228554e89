# %% [markdown]
# # What makes a code good?
#
# **The question.** NF4 is said to be optimal because its sixteen values are used equally often. Is
# that so? For which weights, and in which blocks, is it good? And does the code with the least
# error also cost the model the least?
#
# `codes.py` has four codes (NF4, FP4, E2M1 and int4), and `rounded`, which quantizes and
# dequantizes with one absmax per block, as in lesson 2.
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 2.

# %%
import numpy as np

import minilora
from minilora import TrainConfig, nf4
from minilora.lessons.helpers import codes
from minilora.lessons.helpers.codes import rms, rounded
from minilora.lessons.helpers.common import QUICK, held_out_notes, interval, short, spread, table
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten

rng = np.random.default_rng(0)
n = short(2**20, 2**17)
normal = rng.standard_normal(n).astype(np.float32)

# %% [markdown]
# ## The myth of equally filled bins
#
# The *bin* of a value holds the weights that are rounded to it. The next cell makes two more codes:
# "equal bins", whose bins hold equally many normal weights, and "least squares", whose values are
# moved until the error no longer falls.
#
# **Predict.** An equal share is 6.25 %. How full are NF4's fullest and emptiest bin? Is a code
# whose bins *are* equal better or worse than NF4?

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


VALUES = codes.VALUES | {
    "equal bins": np.quantile(x, (np.arange(16) + 0.5) / 16).astype(np.float32),
    "least squares": least_squares(nf4.NF4),
}
error = {name: rms(rounded(normal, values) - normal) for name, values in VALUES.items()}
share = bin_shares(nf4.NF4)
print("share of each NF4 bin, in %:", np.round(100 * share, 1))
for name in ("least squares", "equal bins"):
    print(f"error (RMS) of {name}: {error[name] / error['nf4']:.2f} of NF4's")

# %% [markdown]
# **Answer.** NF4's bins are not equal: with normal weights, they hold 9.2 % to 1.7 %. (A possible
# reason: its quantiles are those of weights divided by *one* scale, but each block is divided by
# its largest weight.) A code with equal bins has 1.4 times NF4's error: the few weights far outside
# share a value, and their errors are large. NF4 is not the code of least error, either: "least
# squares" has 5 % less.
#
# ## Block sizes and distributions
#
# Four kinds of weights: normal; uniform; heavy-tailed (Student's t with 3 degrees of freedom); and
# normal, but about one in 512 is twenty times as large.
#
# **Predict.** How does NF4's error grow from blocks of 64 to blocks of 4096, for each kind? For
# which kind is NF4 not the best code?

# %%
spikes = np.where(rng.random(n) < 1 / 512, np.float32(20), np.float32(1))
weights = {
    "normal": normal,
    "uniform": rng.uniform(-1, 1, n).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, n).astype(np.float32),
    "with outliers": normal * spikes,
}
by_code, growth, cells = {}, {}, []
for kind, w in weights.items():
    by_code[kind] = {c: rms(rounded(w, values) - w) / rms(w) for c, values in codes.VALUES.items()}
    growth[kind] = rms(rounded(w, nf4.NF4, 4096) - w) / rms(w) / by_code[kind]["nf4"]
    cells.append([kind, *(f"{e:.3f}" for e in by_code[kind].values()), f"{growth[kind]:.2f}"])
table(["RMS error / RMS of w", *codes.VALUES, "growth from 64 to 4096"], cells)

# %% [markdown]
# **Answer.** By less than 5 % for uniform weights, by 10 to 30 % for normal ones, and to more than
# two and three times its size for heavy tails and outliers. So small blocks help against outliers.
# A float32 absmax per block costs 32/B bits per weight, with B the block size; lesson 2 reduces
# that cost. In blocks of 64, NF4 is the best code but for uniform weights: there, the evenly spaced
# int4 has the least error.
#
# ## A trained model
#
# The *kurtosis* of a distribution is the mean fourth power over the squared variance. It measures
# how heavy the tails are: 1.8 for uniform and 3 for normal numbers.
#
# **Predict.** What is the kurtosis of the weights of our base? And does the code with the least
# error cost the model the least?
#
# The cost is how much rounding raises the loss on notes. A code can be lucky with one cut of the
# weights into blocks. So each weight is cut in eight ways: blocks begin at its 8th, 16th, …
# element.

# %%
model, tokenizer = minilora.load("micro")
leaves = flatten(model.base).items()
projections = {path: w.astype(np.float32) for path, w in leaves if is_projection(path)}
kurtosis = [np.mean((w - w.mean()) ** 4) / w.var() ** 2 for w in projections.values()]
print(f"kurtosis of {len(kurtosis)} weights: {min(kurtosis):.2f} to {max(kurtosis):.2f}")
notes = held_out_notes(tokenizer, TrainConfig())[0][: short(128, 32)]
untouched = minilora.evaluate({}, model, notes)["loss"]


def cost(values, shift):
    """Return by how much rounding raises the loss; blocks begin at element `shift`."""
    leaves = flatten(model.base)
    for path, w in projections.items():
        coarse = rounded(np.roll(w.ravel(), shift), values)
        leaves[path] = np.roll(coarse, -shift).reshape(w.shape)
    return minilora.evaluate({}, model._replace(base=unflatten(leaves)), notes)["loss"] - untouched


costs, cells = {}, []
for code in sorted(VALUES, key=error.get):
    costs[code] = np.array([cost(VALUES[code], shift) for shift in range(0, short(64, 16), 8)])
    cells.append([code, f"{error[code]:.4f}", spread(costs[code], 5)])
table(["code", "normal RMS error", "cost (nats per token): mean, least to most"], cells)

# %% [markdown]
# **Answer.** About 3, as that of normal numbers. No: E2M1 has less error than int4 on normal
# numbers and costs `micro` more, and bitsandbytes' fp4 has a third more error than NF4 and costs
# several times as much. The RMS error counts all weights alike, and a loss does not. The three
# cheapest codes are NF4, int4 and "least squares"; NF4 costs this base less than a hundredth of its
# loss. QLoRA's Table 2 has NF4 as the best code, and E2M1 before int4.
#
# ## What was shown
#
# On normal numbers, NF4's bins are not equal, and a code with equal bins has more error. In blocks
# of 64, NF4 has the least error of the four codes for weights that are normal or heavy-tailed, and
# not for uniform ones. Smaller blocks reduce the error of weights with outliers. Less error is not
# always less cost: E2M1 has less than int4, and costs `micro` (0.1 million parameters) more.
#
# **What to try.**
#
# 1. `least_squares(nf4.NF4)`: begin at `codes.VALUES["int4"]`. Does it find the same values?
# 2. `minilora.load("micro")`: load "tiny". Is NF4 still the best code?
# 3. `rng.random(n) < 1 / 512`: make one weight in 32 an outlier. Which block size helps?
# 4. `rng.standard_t(3, n)`: use 10 degrees of freedom. Which row does it resemble?
#
# **Exercises.** one-file-quantize, one-file-nearest.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Yoshida 2023,
# *NF4 Isn't Information Theoretically Optimal (and that's Good)*:
# [arXiv:2306.06965](https://arxiv.org/abs/2306.06965). Dettmers and Zettlemoyer 2022, *The case for
# 4-bit precision*, on block sizes and bits: [arXiv:2212.09720](https://arxiv.org/abs/2212.09720).

# %%
# Checks
assert abs(share.max() - 0.092) < 0.002 and abs(share.min() - 0.017) < 0.002, "NF4's bin shares"
equal = bin_shares(VALUES["equal bins"])
assert equal.min() > 0.05 and equal.max() < 0.07, "the bins of `equal bins` must be nearly equal"
assert 1.38 < error["equal bins"] / error["nf4"] < 1.48, "equal bins: 1.4 times NF4's error"
assert 0.94 < error["least squares"] / error["nf4"] < 0.96, "least squares must gain 5 %"
for kind, errors in by_code.items():
    best = min(errors, key=errors.get)
    assert best == ("int4" if kind == "uniform" else "nf4"), f"{best} is best for {kind}"
assert growth["uniform"] < 1.05 and 1.1 < growth["normal"] < 1.3, "normal weights need it little"
assert growth["heavy-tailed"] > 2 and growth["with outliers"] > 3, "small blocks must pay here"
assert min(kurtosis) > 2.7 and max(kurtosis) < 3.6, "trained weights must be nearly normal"
mean = {code: cuts.mean() for code, cuts in costs.items()}
assert mean["fp4"] > 4 * mean["nf4"] and 1.25 < error["fp4"] / error["nf4"] < 1.4, "a third more"
assert mean["nf4"] < untouched / 100, "NF4 must cost less than a hundredth of the loss"
if not QUICK:
    cheapest = sorted(mean, key=mean.get)[:3]
    assert set(cheapest) == {"nf4", "int4", "least squares"}, "the three cheapest codes"
    assert error["e2m1"] < error["int4"], "E2M1 has less error than int4"
    assert interval(costs["e2m1"] - costs["int4"]).low > 0, "and costs more, over the cuts"
