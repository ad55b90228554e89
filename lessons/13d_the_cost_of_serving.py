# %% [markdown]
# # 13d. The cost of serving
#
# **The question.** How fast does a model generate with a separate adapter, a merged one, or a 4-bit
# base?
#
# **Time:** a quarter of a minute to run, five minutes to read. **You need:** lessons 6 and 13.

# %%
import time

import numpy as np
from common import short, table
from sweeps.pretraining import random_params

import minilora
from minilora import LoraConfig, lora
from minilora.config import ModelConfig
from minilora.evaluation.memory import nbytes
from minilora.kernels.nf4 import matvec
from minilora.tree import named_leaves, tree_map

rng = np.random.default_rng(0)

# %% [markdown]
# ## Five ways to serve one model
#
# A model of 12.7 million random parameters generates one token after the other. For a single token,
# a 4-bit weight is multiplied directly from its codes (`kernels.nf4.matvec`). For a prompt of
# several tokens, each weight is dequantized first.
#
# ![A LoRA layer, where the base and the adapter are added, and a QLoRA layer, where the base is in
# four bits.](../figures/drawings/lora_and_qlora.svg)
#
# ![Where the bytes of tiny are in NF4 with double quantization: embedding, 4-bit codes, scales,
# norms.](../figures/drawings/model_bytes.svg)
#
# **Predict.** The 4-bit model has a seventh of the bytes to read. Is it seven times as fast? What
# does an adapter cost in multiplications, and what in time?
#
# <details><summary>Answer</summary>
# It is not: each code has to be decoded. The adapter has less than 4 % of the multiplications, but
# its many small products can cost more of the time than that.
# </details>

# %%
shape = ModelConfig(
    vocab_size=256,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
)
dense = random_params(shape, rng)
quantized = minilora.quantize(dense, "nf4-dq")
lora_config = LoraConfig(r=8, target_modules=("all-linear",))
adapters, frozen = lora.init(dense, lora_config, rng)
adapters = tree_map(lambda w: 0.01 * rng.standard_normal(w.shape, np.float32), adapters)
_, frozen_quantized = lora.init(quantized, lora_config, rng)
WAYS = {
    "dense": ({}, dense),
    "dense, adapter separate": (adapters, frozen),
    "dense, adapter merged": ({}, lora.merge(adapters, frozen)),
    "NF4": ({}, quantized),
    "NF4, adapter separate": (adapters, frozen_quantized),
}


def speed(pair, tokens):
    """Return (ms to the first token after a prompt of 32 tokens, tokens per second from there)."""
    times = [time.perf_counter()]
    for _ in minilora.generate(*pair, list(range(32)), shape, max_tokens=tokens):
        times.append(time.perf_counter())
    return 1e3 * (times[1] - times[0]), (len(times) - 2) / (times[-1] - times[1])


cells = []
for name, pair in WAYS.items():
    measured = [speed(pair, short(48, 8)) for _ in range(3)]
    first = min(ms for ms, _ in measured)
    rate = max(rate for _, rate in measured)
    cells.append([name, nbytes(pair[0]) + nbytes(pair[1]), f"{first:.0f}", f"{rate:.0f}"])
table(["", "bytes", "first token, ms", "tokens per second"], cells)

# %%
in_base = sum(w.size for path, w in named_leaves(dense) if "proj" in path)
in_adapter = sum(w.size for _, w in named_leaves(adapters))
print(f"the dense model has {nbytes(dense) / nbytes(quantized):.1f} times the bytes of NF4")
print(f"multiplications per token in projections: {in_base:,}", end=", ")
print(f"in the adapter: {in_adapter:,}, which is {in_adapter / in_base:.1%}")

# %% [markdown]
# The speeds are those of your machine. On a busy machine they vary by a third. **A seventh of the
# bytes does not mean a seventh of the time**, because each code has to be decoded. How fast this is
# depends on the processor. With AVX-512, one instruction decodes sixteen codes, and the 4-bit model
# can be several times as fast as the dense one. Without it, it can be slower.
#
# A separate adapter has few multiplications, but two small products per projection, and each call
# has a fixed cost. A merged adapter costs nothing (LoRA, Sec. 4).

# %%
# Checks
assert nbytes(dense) > 6 * nbytes(quantized), "the 4-bit model must have less than a sixth"
assert in_adapter < 0.04 * in_base, "the adapter has less than 4 % of the multiplications"
x = rng.standard_normal(512, np.float32)
q = quantized["model"]["layers"]["0"]["mlp"]["gate_proj"]["weight"]
error = np.abs(matvec(q, x) - q.dequantize() @ x)
terms = np.abs(q.dequantize()) @ np.abs(x)
assert (error <= 512 * 2**-24 * terms).all(), "the product from the codes, to rounding"

# %% [markdown]
# ## What was shown
#
# Lessons 13 to 13d together: a separate adapter is exact, can be switched at no cost, and takes a
# little time. Merged into the dequantized base on which it was trained, it is exact, too. All other
# ways change the model. Write down which way you used, and evaluate the model that you ship.
#
# **What to try.**
#
# 1. `LoraConfig(r=8, ...)`: use r = 64. By how much does the speed with an adapter fall?
# 2. `list(range(32))`: a prompt of 200 tokens. How does the time to the first token grow?
# 3. `hidden_size=512`: use 128 with 2 heads of 64. Which way is the fastest now?
#
# **Where to stop with a debugger.** `kernels.weights.frozen_matmul`: one row is multiplied directly
# from the codes; for several rows the weight is dequantized.
#
# **Exercises.** linear-4bit, lora-merge.
#
# **Further reading.** Pope et al. 2022, *Efficiently Scaling Transformer Inference*:
# [arXiv:2211.05102](https://arxiv.org/abs/2211.05102). Frantar et al. 2024, *MARLIN*, 4-bit
# kernels: [arXiv:2408.11743](https://arxiv.org/abs/2408.11743).
