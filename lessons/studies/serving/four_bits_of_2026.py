# %% [markdown]
# # Four bits of 2026: MXFP4 and NVFP4
#
# **The question.** Models are published in MXFP4 or NVFP4. An adapter is trained on such a base and
# merged into it, in four bits again. How much of the update survives?
#
# NVIDIA (2025) reports that NVFP4 is more accurate than MXFP4 (OCP Microscaling specification 1.0,
# 2023), by smaller blocks and finer scales. [axolotl#3803](https://github.com/axolotl-ai-cloud/axolotl/issues/3803)
# and [mlx-lm#1564](https://github.com/ml-explore/mlx-lm/pull/1564) report that an adapter is lost
# when the merged model is quantized again. The first one discusses stochastic rounding, too.
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 10 seconds to run, fifteen minutes to read. **You need:** lesson 2 and the study
# [Merging into four bits](merging_into_four_bits.py).

# %%
from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.evaluation import plot
from minilora.lessons.helpers.common import FAILS, HOLDS, agrees, claim, interval, of, read_sweep
from minilora.lessons.studies.serving import four_bits_of_2026_sweep as formats

FORMATS, norm = formats.FORMATS, np.linalg.norm

# %% [markdown]
# ## Small floats and their scales
#
# The name of a small float counts its bits: E2M1 has 2 for the exponent and 1 for the mantissa, and
# a sign. With m bits of mantissa, the numbers between 2^k and 2^(k + 1) are 2^(k − m) apart. Below
# the smallest exponent (0 in E2M1), the steps stay as they are there, down to zero. A weight is an
# element times the scale of its block:
#
# - **MXFP4**: E2M1, blocks of 32, a scale of E8M0: the 2^k for which 4 · 2^k is the largest power
#   of two up to the absmax (Sec. 6.3; 4 is the largest one in E2M1). 4 + 8/32 = 4.25 bits.
# - **NVFP4**: E2M1, blocks of 16, a scale of E4M3 times a float32 for the tensor. 4.5 bits.
# - **NF4**: blocks of 64, a float32. 4.5 bits (4.127 with double quantization).
#
# **Predict.** Which magnitudes has E2M1? On normal weights, NVFP4's error is 17 % below that of
# MXFP4. Is it more because of its blocks or because of its scales?

# %%
rng = np.random.default_rng(0)
W = rng.standard_normal(2**17)
weights = {"normal": W, "Laplace": rng.laplace(size=2**17)}
weights["micro"] = formats.flat(minilora.load("micro").model)
errors = {d: {f: formats.error(w, *how) for f, how in FORMATS.items()} for d, w in weights.items()}
for d, of_d in errors.items():
    print(d, {f: f"{e:.4f}" for f, e in of_d.items()})
print("E2M1:", magnitudes := np.unique(formats.e2m1(np.linspace(0, 10, 1001))))
exact = [formats.error(W, "E2M1", size, formats.exact) for size in (32, 16)]
found = np.array([errors["normal"]["MXFP4"], *exact, errors["normal"]["NVFP4"]])
change = found[1:] / found[:-1] - 1
print("exact scales {:+.1%}, blocks of 16 {:+.1%}, scales in E4M3 {:+.1%}".format(*change))

# %% [markdown]
# **Answer.** Eight: 0, 0.5, 1, 1.5, 2, 3, 4, 6. More because of the scales: exact ones gain 12 %,
# half the block 7 %, and E4M3 costs 1 %. NF4 has a smaller error than both, on normal weights and
# on those of `micro`; NVFP4 on heavy tails (Laplace).
#
# ## Rounding to nearest: half a step
#
# The weights Ŵ of such a base *are* values of the format. Let g be the step to a neighbour. If ŵ +
# δ is rounded to nearest, it returns to ŵ for |δ| < g/2. So a change below half a step is lost, and
# one above it moves the element by a whole step. Let R(δ) be what is added. The share of ΔW that is
# kept is the part of R along it. For normal δ of standard deviation σ, it approaches
#
# $$\frac{E[\delta \, R(\delta)]}{\sigma^2} = E[R'(\delta)] = \sum_k g_k \, \varphi_\sigma(m_k) =
# 1 - 2 e^{-2 \pi^2 t^2} + \dots$$
#
# The first step integrates by parts (the normal density has φ′(δ) = −δφ(δ)/σ²). R is a staircase
# that jumps by g_k at the midpoints m_k. The last form (Poisson's sum) is for equal steps, t = σ/g.
#
# **Predict.** At which t is half of the update kept? Is it nearer to 1/2 or to 1/4?

# %%
SIZES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.265, 0.4, 0.7, 1)  # t: the size of an update, in steps
step = {name: formats.mean_step(W, *how) for name, how in FORMATS.items()}
nearest, theory, noisy = {}, {}, {}
for f, how in FORMATS.items():
    sigmas = step[f] * np.array(SIZES)
    nearest[f] = np.array([formats.survival(sigma, W, how, rng) for sigma in sigmas])
    noisy[f] = np.array([formats.survival(sigma, W, how, rng, at_random=True) for sigma in sigmas])
    theory[f] = np.array([formats.predicted(sigma, W, *how) for sigma in sigmas])
    t = np.interp(0.5, theory[f], SIZES)
    print(f"{f}: half is kept at t = {t:.2f}, which is ‖ΔW‖ = {t * step[f] / W.std():.3f} ‖W‖")

# %% [markdown]
# **Answer.** To 1/4: 2e^(−2π²t²) = ½ gives t = 0.265, where 6 % of the elements move, but by a
# whole step. In mean steps, the three formats are nearly alike: half is kept at 7 to 8 % of ‖W‖.
# Below 1 %, next to nothing is. (The largest elements of a block cannot grow if the scale is kept.
# So even of large updates, not all is kept.)
#
# ## Stochastic rounding: all of it, with noise
#
# Stochastic rounding moves x to its upper neighbour with probability (x − lower)/g, so its mean is
# x: all of ΔW is kept, in expectation. An element with |δ| < g moves by g with probability |δ|/g.
# Its variance is |δ|(g − |δ|), and for normal δ
#
# $$\frac{E\|\text{error}\|^2}{\|\Delta W\|^2} = \frac{g \, E|\delta|}{\sigma^2} - 1 =
# \sqrt{\frac{2}{\pi}} \, \frac{1}{t} - 1$$
#
# **Predict.** Leaving ΔW out has the error 1. For which t is that of stochastic rounding smaller?

# %%
# Picture
noise = np.sqrt(np.sqrt(2 / np.pi) / np.array(SIZES[:6]) - 1)
_, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, style in zip(FORMATS, plot.LINES):
    panels[0].plot(SIZES, theory[name], label=f"{name}, equation", **style)
    for axes, column in zip(panels, (0, 2)):
        for marker, points in (("o", nearest[name]), ("x", noisy[name])):
            axes.plot(SIZES, points[:, column], marker, color=style["color"], markersize=4)
panels[1].plot(SIZES[:6], noise, color="0.6", label="equation, stochastic")
for axes, title in zip(panels, ("kept of ΔW (o nearest, x stochastic)", "error/‖ΔW‖")):
    axes.set(xscale="log", title=title, xlabel="size of ΔW, in steps (t)")
    axes.legend(frameon=False)
plt.show()

# %% [markdown]
# **Answer.** For t > 0.4. At t = 0.1, the noise is 2.6 times as large as the update: without the
# adapter, the weights are nearer to the trained ones. But the noise has mean 0 in each direction,
# and ΔW has few directions. Which of the two matters, only a model can tell.
#
# ## New scales
#
# Merging usually quantizes again, with new scales: from the absmax of Ŵ + ΔW.
#
# **Predict.** In which format does an update of ‖W‖/1,000 change the weight by much more than that?

# %%
up = ("E2M1", 32, partial(formats.e8m0, up=True))  # no element is clipped
moved = {}
for name, how in {**FORMATS, "MXFP4, up": up}.items():
    before = formats.quantized(W, *how)
    update = 1e-3 * rng.standard_normal(W.size)
    moved[name] = norm(formats.quantized(before + update, *how) - before) / norm(update)
    print(f"{name}: the weight changes by {moved[name]:.1f} ‖ΔW‖")

# %% [markdown]
# **Answer.** In MXFP4. If the largest elements of a block are 4 · 2^k and become smaller, however
# little, the scale is halved, and the largest value is 3 · 2^k: these elements lose a quarter. Some
# libraries round the scale up, to clip nothing: then an element of 6 · 2^k that grows doubles it.
#
# ## A model
#
# The sweep trains `micro` (0.1 million parameters; LoRA, r = 8) on bases in float32, NF4, MXFP4 and
# NVFP4 with eight seeds: at the rate that is best on the float32 base (with two further seeds), and
# at a quarter of it. After 2, 6 and 40 steps, the adapter is merged.
#
# **Predict.** Rounding to nearest has the smaller error of the weights at each size, and stochastic
# rounding keeps the larger share. Which of the two does the loss follow, at t = 0.1 and at t = 1?

# %%
# Picture
sweep = [row for row in read_sweep("four_bits_of_2026") if row["split"] == "test"]
GENTLE, BEST = sorted({row["rate"] for row in sweep})
logs = partial(formats.logs, sweep)
sizes, ratios = {}, {}
_, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for base, style, marker in zip(FORMATS, plot.LINES, "osD"):
    for case in product((GENTLE, BEST), formats.STEPS):
        sizes[base, case] = np.exp(logs(base, "size", *case)).mean() * W.std() / step[base]
        ratios[base, case] = logs(base, "nearest", *case) - logs(base, "stochastic", *case)
        mean, *ends = np.exp(interval(ratios[base, case]))
        color, label = style["color"], base if case == (BEST, 40) else None
        axes.plot([sizes[base, case]] * 2, ends, color=color)
        axes.plot(sizes[base, case], mean, marker, color=color, label=label)
axes.axhline(1, color="0.7")
axes.set(xscale="log", xlabel="size of ΔW, in steps (t)", ylabel="loss: nearest/stochastic, 95 %")
axes.legend(frameon=False)
plt.show()

# %%
# Table
verdicts = {}
for base, case in product(FORMATS, ((BEST, 2), (GENTLE, 6), (BEST, 40))):
    kept = np.mean(of(sweep, f"kept_nearest_{case[1]}", base=base, rate=case[0]))
    sentence = f"{base}, t = {sizes[base, case]:.2f}, {kept:.0%} kept: loss, nearest/stochastic"
    verdicts[base, case] = claim(sentence, ratios[base, case], times=True, digits=2)
for base in FORMATS:
    apart = logs(base, "apart", BEST, 40) - logs("float32", "apart", BEST, 40)
    verdicts[base] = claim(f"{base}, apart: loss/on float32", apart, times=True, digits=2)
new = logs("MXFP4", "nearest", GENTLE, 2) - logs("MXFP4", "again", GENTLE, 2)
verdicts["new"] = claim("MXFP4, 2 steps: scales kept/new scales", new, times=True)

# %% [markdown]
# **Answer.** At t = 0.1 the share, at t = 1 the error. After two steps at the best rate, ΔW is 2 %
# of W, and the loss with nearest is about 1.3 times that with stochastic rounding. The noise is 3.6
# times as large as ΔW, but 6 to 7 % of W. The rounding error of the base is 9 to 11 %. Near t = 0.4
# both are equal. Above, nearest keeps most of ΔW, and stochastic rounding adds noise (in NVFP4, the
# interval just excludes 1). New scales in MXFP4 do no harm: what they change is along ΔW. With the
# adapter apart, no base is shown to be worse than float32. (Each is one rounding of one model.)
#
# ## What was shown
#
# On normal weights, half of an update survives rounding to nearest at a quarter of a step, 7 to 8 %
# of W, in all three formats, as derived. On `micro` (0.1 million parameters), nearest loses a small
# update, and stochastic rounding keeps it. That stochastic rounding is better for a large one
# **does not hold here**. Whether a large model bears the noise is not shown.
#
# **What to try.**
#
# 1. `rng.laplace(size=2**17)`: use `rng.standard_t(3, 2**17)`. How far is NVFP4 ahead of NF4?
# 2. `before = quantized(w, *how)` in `survival`: use w itself. What is kept of ΔW then, and why?
#
# **Where to stop with a debugger.** `stochastic` and `two_scales` in `four_bits_of_2026_sweep.py`.
#
# **Exercises.** test-merge, one-file-nearest, measure-merge.
#
# **Further reading.** [OCP Microscaling Formats
# 1.0](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf) and
# [NVIDIA on
# NVFP4](https://developer.nvidia.com/blog/introducing-nvfp4-for-efficient-and-accurate-low-precision-inference/).
# Fasi et al. 2026 on stochastic rounding: [arXiv:2603.06060](https://arxiv.org/abs/2603.06060).
# Chmiel et al. 2025 train in NVFP4: [arXiv:2505.19115](https://arxiv.org/abs/2505.19115). A way
# without this loss: [Training through the merge](training_through_the_merge.py).

# %%
# Checks
assert list(magnitudes) == [0, 0.5, 1, 1.5, 2, 3, 4, 6], "E2M1 has eight magnitudes"
for d, of_d in errors.items():
    assert of_d["NVFP4"] < 0.9 * of_d["MXFP4"], f"{d}: NVFP4 must be better than MXFP4"
    assert min(of_d, key=of_d.get) == ("NVFP4" if d == "Laplace" else "NF4"), d
assert abs(found[0] / found[1] - 1.14) < 0.01, "a power of two is coarse"
assert np.abs(change - [-0.12, -0.07, 0.01]).max() < 0.006, "scales gain more than blocks"
for f in FORMATS:
    share, chances, _ = nearest[f].T  # within five standard errors, and 0.001 for rare moves
    assert (np.abs(share - theory[f]) < 5 * chances + 1e-3).all(), f"{f}: Σ g·φ(m)"
    assert 0.2 < np.interp(0.5, theory[f], SIZES) < 0.3, "half at a quarter of a step"
    share, chances, distance = noisy[f].T  # up to a tenth of the elements cannot grow
    assert (np.abs(share - 0.95) < 0.05 + 5 * chances).all(), "all is kept in the mean"
    assert np.abs(distance[:3] / noise[:3] - 1).max() < 0.1, "the noise of the equation"
assert min(moved["MXFP4"], moved["MXFP4, up"]) > 20 > 1 > max(moved["NF4"], moved["NVFP4"])
for base in FORMATS:
    for case in ((BEST, 2), (GENTLE, 6)):
        assert verdicts[base, case] == HOLDS, f"{base}: a small update must survive stochastically"
    assert verdicts[base, (BEST, 40)] == FAILS, f"{base}: a large one must be better to nearest"
    assert abs(ratios[base, (GENTLE, 40)].mean()) < 0.05, f"{base}: near t = 0.4, both are equal"
    assert np.ptp(logs(base, "nearest", GENTLE, 2)) < 1e-3, f"{base}: all seeds lose ΔW"
    assert verdicts[base] != HOLDS == verdicts["new"], "adapter apart, and new scales"
run = formats.run(("MXFP4", GENTLE, "test", 0))
seeds = [np.exp(logs("MXFP4", way, GENTLE, 6)) for way in ("stochastic", "nearest")]
assert agrees(run["stochastic_6"], *seeds) and agrees(run["nearest_6"], *seeds[::-1])
assert run["kept_nearest_2"] < 0.01 < 0.2 < run["kept_again_2"], "new scales move along ΔW"
