# %% [markdown]
# # MERGE 5c. How many weights share a scale?
#
# **The question.** How large should a block be, and for which weights is NF4 the right code?
#
# `codes.py` has the values of four codes (NF4, FP4, E2M1 and int4), and `rounded`, which
# quantizes and dequantizes with one absmax per block as in lesson 6.
#
# **Continues:** [lesson 6](../../06_four_bits.py).
#
# **Time:** a few seconds to run, five minutes to read. **You need:** lesson 6.

# %%
import numpy as np

from lessons.helpers.codes import VALUES, rms, rounded
from lessons.helpers.common import figure, short, table
from minilora import nf4
from minilora.evaluation import plot

rng = np.random.default_rng(0)
n = short(2**20, 2**17)
# %% [markdown]
# ## Block sizes and distributions
#
# Four kinds of weights: normal; uniform; heavy-tailed (Student's t with 3 degrees of freedom); and
# normal, but about one in 512 is twenty times as large.
#
# **Predict.** How does NF4's error grow from blocks of 64 to blocks of 4096, for each kind? For
# which kind is NF4 not the best code?
#
# <details><summary>Answer</summary>
# By less than 5 % for uniform weights, by 10 to 30 % for normal ones, and to more than two and
# three times its size for heavy tails and outliers. For uniform weights, in blocks of 64, the
# evenly spaced int4 has the least error.
# </details>

# %%
normal = rng.standard_normal(n).astype(np.float32)
spikes = np.where(rng.random(n) < 1 / 512, np.float32(20), np.float32(1))
weights = {
    "normal": normal,
    "uniform": rng.uniform(-1, 1, n).astype(np.float32),
    "heavy-tailed": rng.standard_t(3, n).astype(np.float32),
    "with outliers": normal * spikes,
}
SIZES, CODES = [16, 32, 64, 128, 256, 1024, 4096], ["nf4", "e2m1", "int4", "fp4"]
by_size, by_code, rows = {}, {}, []
for kind, w in weights.items():
    by_code[kind] = [rms(rounded(w, VALUES[code]) - w) / rms(w) for code in CODES]
    by_size[kind] = [rms(nf4.quantize(w, size).dequantize() - w) / rms(w) for size in SIZES]
    rows.append([kind, *(f"{e:.3f}" for e in by_code[kind] + by_size[kind])])
table(["RMSE / RMS of w", *CODES, *(f"nf4, {size}" for size in SIZES)], rows)

# %%
xlabel, ylabel = "weights that share an absmax", "RMSE / RMS of w"
with figure("block_sizes", xlabel, ylabel, "NF4's error over the block size") as axes:
    for (kind, errors), style, marker in zip(by_size.items(), plot.LINES, "os^D"):
        axes.plot(SIZES, errors, label=kind, marker=marker, markersize=4, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, SIZES)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left")

# %% [markdown]
# ![Error over block size: flat for uniform weights, steep for
# outliers](../../../figures/block_sizes.png)
#
# With heavy tails or outliers, blocks of 64 have less than half the error of blocks of 4096. With
# uniform weights, the error grows by less than 5 %. A float32 absmax per block costs 32/B bits per
# weight, with B the block size. Lesson 7 reduces that cost.

# %%
# Checks
growth = {kind: errors[-1] / errors[2] for kind, errors in by_size.items()}  # from 64 to 4096
for kind, errors in by_code.items():
    best = CODES[int(np.argmin(errors))]
    assert best == ("int4" if kind == "uniform" else "nf4"), f"{best} is best for {kind}"
assert growth["uniform"] < 1.05 and 1.1 < growth["normal"] < 1.3, "normal weights need it little"
assert growth["heavy-tailed"] > 2 and growth["with outliers"] > 3, "small blocks must pay here"

# %% [markdown]
# ## What was shown
#
# Smaller blocks reduce the error of weights with outliers. In blocks of 64, NF4 has the least error
# of the four codes for weights that are normal or heavy-tailed, and not for uniform ones.
#
# **What to try.**
#
# 1. `rng.random(n) < 1 / 512`: make one weight in 32 an outlier. Which block size helps?
# 2. `np.float32(20)`: make the outliers 5 times as large. Where does the line lie?
# 3. `rng.standard_t(3, n)`: use 10 degrees of freedom. Which curve does it resemble?
#
# **Exercises.** absmax-blocks.
#
# **Further reading.** Dettmers and Zettlemoyer 2022, *The case for 4-bit precision*, on block sizes
# and bits: [arXiv:2212.09720](https://arxiv.org/abs/2212.09720).
