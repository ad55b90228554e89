# %% [markdown]
# # The memory of a step
#
# **The question.** The frozen weights need an eighth of their bytes. Does a training step, too?
#
# **Continues:** [lesson 8](../../08_training_through_four_bits.py).
#
# **Time:** a few seconds to run, five minutes to read. **You need:** lesson 8.

# %%
import subprocess
import sys
import tracemalloc

import numpy as np
from autograd import make_vjp

from lessons.helpers.common import SWEEPS, short, table
from minilora import layers, nf4

rng = np.random.default_rng(0)

# %% [markdown]
# ## What one product keeps
#
# The backward pass of y = x Ŵᵀ needs Ŵ again. There are two ways: keep the dense Ŵ from the forward
# pass, or keep the codes and dequantize them again.
#
# ![The forward pass dequantizes W, multiplies, and drops it. The backward pass dequantizes W again.
# Kept: the codes, the adapters and the input x.](../../../figures/drawings/qlora_passes.svg)
#
# **Predict.** A 4-bit weight of 1024 × 1024 is multiplied with an input. How many bytes are kept
# for the backward pass, apart from the input, in each way?
#
# <details><summary>Answer</summary>
# The dense copy is 4 MB. With the codes, less than 128 kB is kept: the codes are there anyway.
# </details>

# %%
weight = nf4.quantize(rng.standard_normal((1024, 1024)), double_quant=True)
x = np.ones((4, 1024), np.float32)


def product_with_codes(x):
    """Compute x Ŵᵀ; the backward pass dequantizes again."""
    return layers.matmul(x, weight)


def product_with_dense_copy(x):
    """Compute x Ŵᵀ; autograd keeps the dense Ŵ."""
    return layers.matmul(x, weight.dequantize())


def bytes_kept(operation):
    """Return the bytes that stay allocated between the forward and the backward pass."""
    operation(x)  # whatever is compiled is compiled now
    tracemalloc.start()
    backward = make_vjp(operation)(x)  # noqa: F841  (it holds what the backward pass needs)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept


kept_codes, kept_dense = bytes_kept(product_with_codes), bytes_kept(product_with_dense_copy)
print(f"the product with the codes keeps {kept_codes:,} bytes")
print(f"the product with a dense copy keeps {kept_dense:,} bytes")

# %%
# Checks
assert kept_codes < 2**17, "dequantizing again must keep less than 128 kB"
assert kept_dense > 4 * 2**20, "the dense copy must have 4 MB"

# %% [markdown]
# ## A whole step
#
# `minilora.evaluation.memory` estimates a step: frozen weights, adapters, their gradients, Adam's
# two moments, and activations. It counts no dense copies of weights. Here a step runs in a new
# process, and its growth is compared with the estimate.
#
# **Predict.** With the weights at an eighth, how much smaller is the whole step?
#
# <details><summary>Answer</summary>
# To about half: with NF4, activations are more than 60 % of the estimate.
# </details>

# %%
depth = short(8, 4)
measured, predicted, activations, rows = {}, {}, {}, []
for scheme in ("none", "nf4-dq"):
    command = [sys.executable, SWEEPS / "one_step.py", scheme, str(depth)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured[scheme], predicted[scheme], activations[scheme] = map(float, output.split())
    numbers = measured[scheme], predicted[scheme], activations[scheme]
    rows.append([scheme, *(f"{megabytes:.0f}" for megabytes in numbers)])
table([f"MB, {depth} layers of width 512", "measured", "estimate", "of it activations"], rows)

# %% [markdown]
# Both steps are within a quarter of the estimate, which counts no dense copies.
#
# On Linux, `one_step.py` reads the peak of its process from `VmHWM`, not from `ru_maxrss`.

# %%
# Checks
for scheme in measured:
    ratio = measured[scheme] / predicted[scheme]
    assert 0.85 < ratio < short(1.25, 1.4), f"{scheme}: {ratio:.2f} times the estimate"
ratio = measured["none"] / measured["nf4-dq"]
assert 1.6 < ratio < 2.6, f"the dense step must be about twice as large, not {ratio:.2f} times"
assert activations["nf4-dq"] > 0.6 * predicted["nf4-dq"], "activations must be the largest part"

# %% [markdown]
# ## What was shown
#
# Dequantizing again in the backward pass saves the memory of a dense copy. The whole step shrinks
# to about half, not to an eighth: most of the estimate is activations.
#
# **What to try.**
#
# 1. `B, T = 4, 64` in `one_step.py`: use 1 and 16. How much smaller is the step in NF4 now?
# 2. `np.ones((4, 1024), ...)`: use 4,000 rows. Which of the two numbers grows?
# 3. `depth = short(8, 4)`: use 16 layers. Does the estimate still hold?
#
# **Where to stop with a debugger.** `memory.activation_floats` in `minilora/evaluation/memory.py`.
#
# **Exercises.** memory-estimate.
#
# **Further reading.** QLoRA, Sec. 4: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Chen et
# al. 2016 recompute activations: [arXiv:1604.06174](https://arxiv.org/abs/1604.06174).
