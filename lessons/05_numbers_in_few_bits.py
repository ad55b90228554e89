# %% [markdown]
# # 5. Numbers in few bits
#
# **The question.** How can sixteen values stand for a million weights, which sixteen should they
# be, and how do we know that the choice is good?
#
# Storing a weight in four bits is one division and one look-up. All the thinking is in two
# choices: how many weights share a scale, and where the sixteen values lie.
#
# Time: about ten seconds. You need: what a histogram and a quantile are.

# %%
from functools import partial
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
from common import QUICK, figure, short, table

import minilora
from minilora import TrainConfig, data, layers, model, nf4
from minilora.data.rows import held_out_notes
from minilora.evaluation import plot
from minilora.kernels import fused
from minilora.quant import int8
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, get, unflatten

rng = np.random.default_rng(0)


def rms(x):
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


# %% [markdown]
# ## One block
#
# Weights are cut into blocks of B neighbours. A block keeps its largest magnitude, the absmax.
# Everything in it, divided by that, lies in [-1, 1] and becomes the nearest of a few fixed values.
# With k bits and whole numbers these are q/M for q = -M … M, M = 2ᵏ⁻¹ - 1: 7 for int4, 127 for
# int8.
#
# **Predict:** the eight weights below, in int4: how far off can one be? And when the first is
# 10?

# %%
w = np.float32([0.9, -0.31, 0.05, 0.44, -0.72, 0.18, -0.09, 0.6])
for w[0] in (0.9, 10):
    absmax = np.abs(w).max()
    q = np.rint(w / absmax * 7)
    error = np.abs(q * absmax / 7 - w).max()
    print("weights", w, " codes", q.astype(int), f" largest error {error:.3f}")
    assert error <= absmax / 14 + 1e-6  # |ŵ - w| ≤ absmax · half the gap between two values
assert np.count_nonzero(q) == 2  # beside the outlier only -0.72 is left

# %% [markdown]
# The error is in proportion to the absmax, so one outlier costs its whole block: six of its
# seven neighbours became zero. Blocks decide how many neighbours an outlier can spoil.
#
# ## Four times sixteen values
#
# Errors are compared by RMSE, the root of their mean square. **int4** is evenly spaced. **E2M1**,
# the FP4 of QLoRA's tables, is a float with a sign, two bits of exponent and one of mantissa, over
# its largest, 6. **The fp4 of bitsandbytes**, the library that QLoRA is run with, has 1/192 where
# E2M1 has 1/12. **NF4** we come to.
#
# **Predict:** normal weights in blocks of 64. Which code is best, which worst, and by what
# factor is int8 better than int4?

# %%
n = short(2**20, 2**17)
normal = rng.standard_normal(n).astype(np.float32)
magnitudes = np.arange(8) / 7, np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
int4, e2m1 = (np.concatenate([m, -m]).astype(np.float32) for m in magnitudes)
VALUES = {"nf4": nf4.NF4, "e2m1": e2m1, "int4": int4, "fp4": nf4.FP4}


def rounded(w, values, block_size=64):
    """The flat w, as sixteen values and an absmax a block can give it."""
    x, absmax = nf4.normalize(w, block_size)
    code = nf4.Code.of(values)
    return code.values[nf4.nearest(x, code)] * np.repeat(absmax, block_size)[: w.size]


error = {name: rms(rounded(normal, values) - normal) for name, values in VALUES.items()}
x, absmax = nf4.normalize(normal, 64)
error["int8"] = rms(np.rint(x * 127) / 127 * np.repeat(absmax, 64) - normal)
table(["code", "RMSE on N(0, 1)"], [[name, f"{e:.4f}"] for name, e in error.items()])
mean_error = np.abs(rounded(normal, nf4.NF4) - normal).mean()
print(f"NF4's mean |error|: {mean_error:.6f}, expected 0.072798")

slack = short(5e-4, 15e-4)  # five standard errors and more
golden = {"nf4": 0.0920, "e2m1": 0.1057, "int4": 0.1077, "fp4": 0.1220}
assert all(abs(error[name] - value) < slack for name, value in golden.items())
assert abs(mean_error - 0.072798) < slack / 2
assert abs(error["int4"] / error["int8"] / (127 / 7) - 1) < 0.05
for name in ("nf4", "fp4"):  # the library packs bytes in a loop, and gives the same numbers
    w_hat = nf4.quantize(normal, 64, code=name).dequantize()
    assert np.array_equal(w_hat, rounded(normal, VALUES[name]))

# %% [markdown]
# int8's gap is 7/127 of int4's, and so is its error. bitsandbytes' fp4 is worst: it spends a
# value on 1/192, next to zero, and has nothing between there and 1/6.
#
# ![Eight weights of a block in NF4, FP4 and int4: for each the code and the value that the code
# stands for, and the root of the mean squared error of the three
# formats.](../figures/drawings/quantize_a_block.svg)
#
# ## Where NF4's sixteen values come from
#
# Weights are nearly normal, so take quantiles Q of a normal distribution. As printed:
#
#     qᵢ = ½·(Q(i/(2ᵏ + 1)) + Q((i + 1)/(2ᵏ + 1)))   (QLoRA, Eq. 4)
#
# **Predict:** put k = 4 and i = 0 into it. What is Q(0)?


# %%
def quantile(p):
    """The inverse of the normal distribution function, with its limits."""
    return NormalDist().inv_cdf(p) if 0 < p < 1 else np.inf * (1 if p else -1)


eq4 = [(quantile(i / 17) + quantile((i + 1) / 17)) / 2 for i in range(17)]
print("Eq. 4, i = 0 … 16:", np.round(eq4, 2))
assert eq4[0] == -np.inf and eq4[16] == np.inf  # sixteen of the seventeen keep one of the two

# %% [markdown]
# An end is infinite. What the published code does, and what every file holds: the outermost
# probability moves in to p = 1 - (1/32 + 1/30)/2, half a bin of sixteen and half a bin of
# fifteen, averaged; eight positive quantiles at even steps from p to ½, seven negative ones, an
# exact zero; all divided by the largest.
#
# ![A normal density with NF4's sixteen values as vertical lines, close together near zero. Below,
# eight weights of a block, divided by their largest magnitude, move to the nearest
# value.](../figures/drawings/nf4_number_line.svg)

# %%
outer = round(1 - (1 / 32 + 1 / 30) / 2, 7)
positive = [quantile(p) for p in np.linspace(outer, 0.5, 9)[:-1]]
negative = [-quantile(p) for p in np.linspace(outer, 0.5, 8)[:-1]]
built = np.sort([*positive, 0, *negative]) / max(positive)
print("built:    ", np.round(built, 4), "\npublished:", np.round(nf4.NF4, 4))
assert np.abs(built - nf4.NF4).max() < 2**-23  # two units in the last place below 1, in float32
assert abs(np.diff(nf4.NF4).max() / 2 - 0.1519036) < 1e-7  # so |ŵ - w| ≤ 0.152·absmax

# %% [markdown]
# ## The myth of equally filled bins
#
# NF4 is often said to fill its sixteen bins equally, and therefore to be optimal.
#
# **Predict:** how full are its fullest and its emptiest bin, where an equal share is 6.25 %? And
# if we *made* a code with equal bins, would it be better or worse?

# %%
share = np.bincount(nf4.nearest(x, nf4.CODES["nf4"]), minlength=16) / n
print("NF4's bins, in %:", np.round(100 * share, 1))
assert abs(share.max() - 0.093) < 0.002 and abs(share.min() - 0.017) < 0.002
assert share.argmax() == 6 and share.argmin() == 15  # just below zero; the outermost

# Equal bins: quantiles of what is really coded, weights over the absmax of their block.
VALUES["equal bins"] = np.quantile(x, (np.arange(16) + 0.5) / 16).astype(np.float32)
equal = np.bincount(nf4.nearest(x, nf4.Code.of(VALUES["equal bins"])), minlength=16) / n
assert equal.min() > 0.05 and equal.max() < 0.07

# Least squares: move each value to the mean of its bin, again and again (Lloyd 1982). An error in
# x counts with absmax², since ŵ - w = absmax·(x̂ - x).
some, weight = x[: 2**17], np.repeat(absmax, 64)[: 2**17].astype(np.float64) ** 2
values = nf4.NF4.astype(np.float64)
for _ in range(60):
    bins = np.searchsorted((values[1:] + values[:-1]) / 2, some)
    values = np.bincount(bins, weight * some, 16) / np.bincount(bins, weight, 16)
VALUES["least squares"] = values.astype(np.float32)

for name in ("least squares", "equal bins"):
    error[name] = rms(rounded(normal, VALUES[name]) - normal)
    print(f"RMSE with {name}: {error[name]:.4f}, {error[name] / error['nf4']:.2f} of NF4's")
assert error["equal bins"] > 1.3 * error["nf4"]
assert error["least squares"] < 0.97 * error["nf4"]

# %% [markdown]
# Both halves of the saying are wrong. The bins hold 1.7 % to 9.3 %: NF4's quantiles are those of
# weights over *one* scale, but each block divides by its own largest. And equal bins are no aim:
# the code that has them errs by 1.4 times as much, since it spends its values where weights are
# many, not where errors are large. Nor is NF4 the code of least error, which gains 5 % (Yoshida
# 2023 says so too). Keep that one in mind for the loss, below.
#
# ## Block sizes and distributions
#
# **Predict:** from blocks of 64 to blocks of 4096, how does NF4's error grow for weights that
# are normal, uniform, heavy-tailed (Student's t, 3 degrees of freedom), or normal with one in
# 512 made twenty times as large? For which of them is NF4 not the best code?
#
# ![One outlier among 32 weights. In one block of 32 all other weights round to few values. In
# blocks of 8 only the outlier's own block suffers, at the price of more
# scales.](../figures/drawings/blocks_and_outliers.svg)

# %%
weights = {
    "normal": normal,
    "uniform": rng.uniform(-1, 1, n).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, n).astype(np.float32),
    "with outliers": normal * np.where(rng.random(n) < 1 / 512, np.float32(20), np.float32(1)),
}
SIZES, codes = [16, 32, 64, 128, 256, 1024, 4096], ["nf4", "e2m1", "int4", "fp4"]
by_size, by_code = {}, {}
for kind, w in weights.items():
    by_size[kind] = [rms(nf4.quantize(w, size).dequantize() - w) / rms(w) for size in SIZES]
    by_code[kind] = [rms(rounded(w, VALUES[code]) - w) / rms(w) for code in codes]
table(["RMSE / RMS of w", *codes, *(f"nf4 in {size}" for size in SIZES)], [
    [kind, *(f"{e:.3f}" for e in by_code[kind] + by_size[kind])] for kind in weights
])  # fmt: skip
assert min(by_code["uniform"]) == by_code["uniform"][2]  # even values for even weights
assert all(min(by_code[kind]) == by_code[kind][0] for kind in weights if kind != "uniform")
growth = {kind: errors[-1] / errors[2] for kind, errors in by_size.items()}  # from 64 to 4096
assert growth["uniform"] < 1.05 and 1.1 < growth["normal"] < 1.3
assert growth["heavy-tailed"] > 2 and growth["with outliers"] > 3

titles = ["how full NF4's bins are", "NF4's error"]
labels = ["code", "weights that share an absmax"], ["share of the weights (%)", "RMSE / RMS of w"]
with figure("four_bits", *labels, titles, width=8.4, columns=2) as (left, right):
    left.bar(range(16), 100 * share, color=plot.LINES[0]["color"], width=0.8, zorder=2)
    left.set_xticks(range(0, 16, 3))
    left.axhline(6.25, color=plot.INK, linestyle=":", linewidth=1, zorder=3)
    left.annotate("equal share", (15.4, 6.4), ha="right", fontsize=9, color=plot.INK)
    for (kind, errors), style, marker in zip(by_size.items(), plot.LINES, "os^D"):
        right.plot(SIZES, errors, label=kind, marker=marker, markersize=4, **style)
    right.set_xscale("log", base=2)
    right.set_xticks(SIZES, SIZES)
    right.set_ylim(bottom=0)
    right.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Bars: NF4's bins hold 1.7 to 9.3 %. Lines: error over block size, flat for uniform weights,
# steep with outliers](../figures/four_bits.png)
#
# Small blocks are an insurance against outliers, at 32/B bits a weight. Normal weights hardly
# need it, uniform ones not at all, and for those evenly spaced int4 is the best code.
#
# ## A trained model
#
# **Predict:** is the kurtosis of our base's weights (the mean fourth power over the square of the
# variance: how heavy the tails are) near 3 (normal), 1.8 (uniform), or far
# above? And does the code with the least error cost the model the least?
#
# One rounding is one throw of the dice. So each weight is also read from its 4th, 8th, … element
# on, which cuts it into other blocks; the spread over these cuts is the error bar.

# %%
config, base, tokenizer = minilora.load("micro")
projections = {p: w.astype(np.float32) for p, w in flatten(base).items() if is_projection(p)}
kurtosis = [np.mean((w - w.mean()) ** 4) / w.var() ** 2 for w in projections.values()]
print(f"kurtosis of {len(kurtosis)} weights: {min(kurtosis):.2f} to {max(kurtosis):.2f}")
assert min(kurtosis) > 2.7 and max(kurtosis) < 3.6
notes = held_out_notes(tokenizer, TrainConfig())[0][:64]
untouched = minilora.evaluate({}, base, notes, config)["loss"]


def cost(values, shift):
    """What rounding costs the model, in nats a token, with each weight cut from `shift` on."""
    cut = {
        path: np.roll(rounded(np.roll(w.ravel(), shift), values), -shift).reshape(w.shape)
        for path, w in projections.items()
    }
    coarse = unflatten({**flatten(base), **cut})
    return minilora.evaluate({}, coarse, notes, config)["loss"] - untouched


costs = {code: [cost(v, 4 * s) for s in range(short(16, 3))] for code, v in VALUES.items()}
mean = {code: np.mean(some) for code, some in costs.items()}
table(["code", "RMSE", "mean cost in nats", "least", "most"], [
    [c, f"{error[c]:.4f}", f"{mean[c]:.5f}", f"{min(costs[c]):.5f}", f"{max(costs[c]):.5f}"]
    for c in sorted(costs, key=error.get)
])  # fmt: skip
assert mean["equal bins"] > 8 * mean["nf4"] and mean["fp4"] > 4 * mean["nf4"]  # found: 27, 10
assert mean["nf4"] < untouched / 100
if not QUICK:
    assert mean["nf4"] == min(mean.values())
    assert mean["least squares"] > 1.3 * mean["nf4"]  # found: 2.1
    assert mean["e2m1"] > 1.2 * mean["int4"]  # found: 1.7

# %% [markdown]
# Trained weights are close to normal. But error and cost rank the codes differently. "Least
# squares" has less error than NF4 and costs more; bitsandbytes' fp4 has a third more error and
# costs several times as much. A mean over all weights is not what a model feels. NF4 is best in the
# mean over the cuts, as in QLoRA's Table 2, though one cut alone can say otherwise; E2M1 and int4
# stand the other way round there. And NF4 costs this base less than a hundredth of its loss, so all
# of this ranks small numbers.
#
# ## Outliers in what comes in: LLM.int8
#
# In eight bits one can multiply whole numbers, if x is quantized as well, row by row:
#
#     y = absmaxₓ·absmax_w/127² · Σ qₓ·q_w + Σ over outlier columns x·w   (LLM.int8, Sec. 3)
#
# Columns of x with any |x| ≥ 6 are multiplied in floating point. The paper finds that from 6.7
# billion parameters on all layers have them, and that they are few.
#
# ![LLM.int8 splits a product: the few columns of x with a number of 6 or more are multiplied in
# floating point with the same columns of W, the rest in 8-bit
# integers.](../figures/drawings/llm_int8.svg)
#
# **Predict:** our larger base, `tiny`, has a million parameters. Does a number that enters one of
# its projections reach 6?

# %%
config, base, _ = minilora.load("tiny")
batch = data.collate([[example] for example in notes[:32]])
inputs = {"rms_norm": [], "attention": [], "swiglu": []}  # everything that enters a projection


def seen(name):
    """`fused`'s operation, which keeps what it returns for the tokens that are not padding."""

    def operation(*args, **kwargs):
        y = getattr(fused, name)(*args, **kwargs)
        inputs[name].append(y[batch["mask"] > 0])
        return y

    return operation


seen_by = {name: seen(name) for name in inputs}
ops = SimpleNamespace(**{
    **vars(fused),
    "rms_norm": seen_by["rms_norm"],
    "self_attention": partial(layers.self_attention, attention=seen_by["attention"]),
    "mlp": partial(layers.mlp, swiglu=seen_by["swiglu"]),
})  # fmt: skip
model.hidden_states({}, base, batch["tokens"], batch["segment_starts"], config, ops)
for name, some in inputs.items():
    print(f"largest number that comes from {name}: {max(np.abs(x).max() for x in some):.1f}")
    assert (max(np.abs(x).max() for x in some) > 6) == (name == "swiglu")

rows = []
for i, x in enumerate(inputs["swiglu"]):
    w = get(base, f"model.layers.{i}.mlp.down_proj.weight").astype(np.float32)
    y, q = x.astype(np.float64) @ w.T, int8.quantize(w)
    whole, apart = (rms(int8.matmul(x, q, t) - y) / rms(y) for t in (np.inf, 6.0))
    rows.append([np.abs(x).max(), (np.abs(x) >= 6).any(axis=0).mean(), whole, apart])
table(["down_proj of layer", "largest", "outlier columns", "error in int8", "outliers apart"], [
    [str(i), f"{a:.0f}", f"{100 * b:.0f} %", f"{100 * c:.2f} %", f"{100 * d:.2f} %"]
    for i, (a, b, c, d) in enumerate(rows)
])  # fmt: skip
largest, columns, whole, apart = np.transpose(rows)
assert (apart < 0.8 * whole).all() and (apart[2:] < 0.5 * whole[2:]).all()  # found: 0.68, 0.31
assert columns.min() > 0.1 and columns.max() > 0.6  # found: 18 % and 79 %

# %% [markdown]
# Outliers are there, and taking them apart cuts the error, in the last layers to a third. But
# they are not few columns. What enters `down_proj` is a product of two numbers (SwiGLU), each
# token has its own large ones, and in the last layer most columns have one somewhere in 32
# notes: most of that product is done in floating point, and the eight bits are saved in memory
# only.
#
# **What this showed.** A code fits a distribution, that of weights over their block's largest.
# Equal bins are a myth, least error is not least cost, small blocks are an insurance.
#
# **Where to stop with a debugger.** `nf4.normalize` (`blocks`, `absmax`), `nf4.nearest`
# (`code.midpoints`, and where `searchsorted` puts a tie), `int8.matmul` (`outliers`, `codes`).
#
# **Exercises.** absmax-blocks, nearest-code, int8-rows.
