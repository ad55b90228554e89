# %% [markdown]
# # Outliers in the input: LLM.int8
#
# **The question.** In eight bits, one can multiply whole numbers if the input is quantized, too.
# What about inputs with outliers?
#
# **Continues:** [lesson 2](../../02_four_bits.py).
#
# **Time:** a few seconds to run, five minutes to read. **You need:** lesson 2.

# %%
from types import SimpleNamespace

import numpy as np

import minilora
from minilora import TrainConfig
from minilora.kernels import fused
from minilora.lessons.helpers import llm_int8
from minilora.lessons.helpers.codes import rms
from minilora.lessons.helpers.common import batch_of, held_out_notes, table
from minilora.model import hidden_states
from minilora.quant import int8
from minilora.tree import get

# %% [markdown]
# ## A product of whole numbers
#
# Each row of W has one absmax, and so has each row of x (one token). With the codes q in
# −127 … 127,
#
# $$y = \frac{\mathrm{absmax}_x\,\mathrm{absmax}_w}{127^2} \sum_i q_{x,i}\,q_{w,i}
#   + \sum_{i\ \text{outlier column}} x_i\,w_i \qquad \text{(LLM.int8, Sec. 3)}$$
#
# An *outlier column* of x is one in which any |x| is at least 6. These columns are left out of the
# first sum and multiplied in floating point. The paper finds outliers in all layers of models with
# 6.7 billion parameters or more, and says that they are in few columns.
#
# ![LLM.int8 splits a product: columns of x with a number of 6 or more in floating point, the rest
# in 8-bit integers.](../../../figures/drawings/llm_int8.svg)
#
# **Predict.** The numbers of x and w are normal, but one column of x is 60. How many of the 127
# steps does a number of size 1 get if the outliers are in the first sum? And with the second sum,
# does the error vanish?

# %%
rng = np.random.default_rng(0)
w_example = rng.standard_normal((16, 64)).astype(np.float32)
x_example = rng.standard_normal((4, 64)).astype(np.float32)
x_example[:, 5] = 60


def relative_errors(x, w):
    """Return the error of the int8 product, relative to y: without and with outlier columns."""
    y = x.astype(np.float64) @ w.T
    q = int8.quantize(w)
    return [rms(llm_int8.matmul(x, q, threshold) - y) / rms(y) for threshold in (np.inf, 6.0)]


in_one, separate = relative_errors(x_example, w_example)
print(f"error with one outlier: {in_one:.2%} in one sum, {separate:.2%} with two sums")

# %% [markdown]
# **Answer.** Two: the absmax of each row is 60, and 127/60 is 2.1. With two sums, the error is
# about a third. It does not vanish, because the codes of w are rounded, too.
#
# ## A real model
#
# The inputs of the seven projections come from three operations: the norm (q, k, v, gate, up),
# attention (o) and SwiGLU (down). Each operation is wrapped to record what it returns, on 32 notes.
#
# **Predict.** Our larger base, `tiny`, has a million parameters. Does an input of one of its
# projections reach 6?

# %%
model, tokenizer = minilora.load("tiny")
batch = batch_of(held_out_notes(tokenizer, TrainConfig())[0][:32])
inputs = {"rms_norm": [], "attention": [], "swiglu": []}


def recording(name):
    """Return the operation `fused.NAME`; it records its result for tokens that are not padding."""

    def operation(*args, **kwargs):
        y = getattr(fused, name)(*args, **kwargs)
        inputs[name].append(y[batch["mask"] > 0])
        return y

    return operation


ops = SimpleNamespace(**{**vars(fused), **{name: recording(name) for name in inputs}})
hidden_states(model._replace(ops=ops), batch["tokens"], batch["segment_starts"])
largest = {name: max(np.abs(x).max() for x in arrays) for name, arrays in inputs.items()}
for name, value in largest.items():
    print(f"largest number that comes from {name}: {value:.1f}")

results = []
for i, x in enumerate(inputs["swiglu"]):
    w = get(model.base, f"model.layers.{i}.mlp.down_proj.weight").astype(np.float32)
    results.append([(np.abs(x) >= 6).any(axis=0).mean(), *relative_errors(x, w)])
cells = [[i, *(f"{share:.1%}" for share in row)] for i, row in enumerate(results)]
table(["down_proj of layer", "outlier columns", "error in int8", "outliers separate"], cells)

# %% [markdown]
# **Answer.** Only that of down_proj, a product of two numbers (SwiGLU). The outliers are there in a
# small model, too. With two sums, the error is smaller in all layers, in the last two about a
# third. But the outlier columns are not few: in the last layer, most columns have an outlier
# somewhere in 32 notes, and most of the product is done in floating point.
#
# ## What was shown
#
# LLM.int8 multiplies whole numbers and handles columns with outliers in floating point. In `tiny`,
# on 32 notes, the outliers come from SwiGLU, and they are spread over many columns.
#
# **What to try.**
#
# 1. `x_example[:, 5] = 60`: put the outlier in one row only, `x_example[0, 5]`. Which rows improve?
# 2. `(np.inf, 6.0)` in `relative_errors`: try a threshold of 12. How large is the error then?
# 3. `[:32]`: use 4 notes. How does the share of outlier columns change?
#
# **Where to stop with a debugger.** `llm_int8.matmul` (`outliers`, `codes`).
#
# **Exercises.** int8-rows.
#
# **Further reading.** Dettmers et al. 2022, *LLM.int8()*:
# [arXiv:2208.07339](https://arxiv.org/abs/2208.07339). Xiao et al. 2022, *SmoothQuant*, move the
# outliers into the weights: [arXiv:2211.10438](https://arxiv.org/abs/2211.10438).

# %%
# Checks
assert 0.25 < separate / in_one < 0.4, "separate outliers: about a third of the error (found: 0.32)"
for name, value in largest.items():
    assert (value > 6) == (name == "swiglu"), f"{name}: the largest input is {value}"
columns, without, with_columns = np.transpose(results)
assert (with_columns < 0.8 * without).all(), "outlier columns must help in all layers (found: 0.68)"
assert (with_columns[2:] < 0.35 * without[2:]).all(), "to a third in the last ones (found: 0.31)"
assert columns.min() > 0.1 and columns[-1] > 0.6, "they are many columns (found: 18 % and 79 %)"
