# %% [markdown]
# # The memory of a step
#
# **The question.** In 4 bits, the frozen weights need about an eighth of their bytes. How much
# memory does that save in a whole training step?
#
# The first two sections measure it, for one product and for a step of a random model. The third
# estimates a step of SmolLM2, a model of 135 million parameters.
#
# **Continues:** [lesson 3](../../03_training_through_four_bits.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 3 and 6, and for the
# last section `minilora fetch smollm2`.

# %%
import subprocess
import sys
import tracemalloc

import numpy as np
from autograd import make_vjp

import minilora
from minilora import LoraConfig, TrainConfig, data, layers, nf4
from minilora.evaluation.memory import format_estimate, memory_estimate, nbytes
from minilora.lessons.helpers import one_step, toolcalls
from minilora.lessons.helpers.common import LESSONS, short, table
from minilora.tree import num_parameters

rng = np.random.default_rng(0)

# %% [markdown]
# ## What one product keeps
#
# The backward pass of y = x Ŵᵀ needs Ŵ again. There are two ways: keep the dense Ŵ from the forward
# pass, or keep the codes and dequantize them again.
#
# **Predict.** A 4-bit weight of 1024 × 1024 is multiplied with an input. How many bytes are kept
# for the backward pass, apart from the input, if the dense weight is kept? And if its codes are?

# %%
weight = nf4.quantize(rng.standard_normal((1024, 1024)), double_quant=True)
x = np.ones((4, 1024), np.float32)


def bytes_kept(operation):
    """Return the bytes that stay allocated between the forward and the backward pass."""
    operation(x)  # whatever is compiled is compiled now
    tracemalloc.start()
    backward = make_vjp(operation)(x)  # noqa: F841  (it holds what the backward pass needs)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept


kept_codes = bytes_kept(lambda x: layers.matmul(x, weight))  # dequantizes in both passes
kept_dense = bytes_kept(lambda x: layers.matmul(x, weight.dequantize()))  # keeps the dense Ŵ
print(f"kept: {kept_codes:,} bytes with the codes, {kept_dense:,} with a dense copy")

# %% [markdown]
# **Answer.** The dense copy has 4 MB. With the codes, less than 128 kB is kept. (The codes have
# half a megabyte, but they are there anyway: they are the base.)
#
# ## A whole step
#
# `minilora.evaluation.memory` estimates a step: frozen weights, adapters, their gradients, Adam's
# two moments, and activations. It counts no dense copies of weights. `one_step.py` runs a step of
# LoRA on a random model in a process of its own, and compares its growth with the estimate.
#
# **Predict.** With the weights at an eighth, how much smaller is the whole step?

# %%
depth = short(8, 4)
steps, rows = {}, []
for scheme in ("none", "nf4-dq"):
    one_step.step(scheme, 512, 1)  # compiles the kernels, which needs memory, too
    command = [sys.executable, "-m", "minilora.lessons.helpers.one_step", scheme, str(depth)]
    options = {"cwd": LESSONS.parent, "capture_output": True, "text": True, "check": True}
    done = subprocess.run(command, **options)
    steps[scheme] = [float(megabytes) for megabytes in done.stdout.split()]
    rows.append([scheme, *(f"{megabytes:.0f}" for megabytes in steps[scheme])])
table([f"MB, {depth} layers of width 512", "measured", "estimate", "of it activations"], rows)

# %% [markdown]
# **Answer.** It needs about half, because only the weights become smaller: with NF4, more than 60 %
# of the estimate are activations, which are as large as before. Both steps are within a quarter of
# the estimate, which counts no dense copies.
#
# ## A real model
#
# **Predict.** LoRA has r = 8 on all seven projections of SmolLM2. How many parameters are trained?
# In float32 the base would take half a gigabyte. How much does it take here?

# %%
model, tokenizer = minilora.load("smollm2", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
adapters, _ = minilora.get_peft_model(model, lora_config, rng=0)
minilora.print_trainable_parameters(adapters, model)

settings = TrainConfig(batch_size=4, mask_prompt=True)
examples, _ = data.encode_rows(toolcalls.rows("train"), tokenizer, settings)
tokens = settings.batch_size * max(len(example.tokens) - 1 for example in examples)
parts = memory_estimate(adapters, model, tokens)
print(f"a step over at most {tokens} tokens:\n{format_estimate(parts)}")

# Full fine-tuning stores each weight, its gradient and Adam's two moments, in float32.
n = num_parameters(model.base)
print(f"full fine-tuning, before any activation: {16 * n / 1e6:,.0f} MB")

# %% [markdown]
# **Answer.** 2,442,240, less than 2 % of the model. The base takes a sixth of its size in float32,
# and not an eighth: the embedding stays in 8 bits, as in its file, and the scales take bytes, too.
#
# Here, too, most of the estimate is activations. `--gradient-checkpointing` recomputes them instead
# of storing them ([memory](../../guide/speed-and-memory.md)).
#
# ## What was shown
#
# Dequantizing again in the backward pass saves the memory of a dense copy. In the random model, the
# whole step shrinks to about half, not to an eighth: most of the estimate is activations. By the
# estimate, a step of LoRA on SmolLM2 in 4 bits needs less than a quarter of the memory that full
# fine-tuning needs for its weights and their state alone.
#
# **What to try.**
#
# 1. `B, T = 4, 64` in `one_step.py`: use 1 and 16. How much smaller is the step in NF4 now?
# 2. `np.ones((4, 1024), ...)`: use 4,000 rows. Which of the two numbers grows?
# 3. `minilora.load("smollm2", "nf4-dq")`: use "none". Which parts of the estimate grow?
# 4. `batch_size=4`: use 16. Which part is the largest then?
#
# **Where to stop with a debugger.** `memory.activation_floats` in `minilora/evaluation/memory.py`:
# which arrays does a layer keep?
#
# **Exercises.** lora-count, memory-estimate.
#
# **Further reading.** QLoRA, Sec. 4 and, on the memory of a step, Fig. 6:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Chen et al. 2016 recompute activations:
# [arXiv:1604.06174](https://arxiv.org/abs/1604.06174).

# %%
# Checks
assert kept_codes < 2**17, "dequantizing again must keep less than 128 kB"
assert kept_dense > 4 * 2**20, "the dense copy must have 4 MB"
for scheme, (measured, predicted, activations) in steps.items():
    ratio = measured / predicted
    assert 0.85 < ratio < short(1.25, 1.4), f"{scheme}: {ratio:.2f} times the estimate"
assert activations > 0.6 * predicted, "NF4: activations must be the largest part"
ratio = steps["none"][0] / steps["nf4-dq"][0]
assert 1.6 < ratio < 2.6, f"the dense step must be about twice as large, not {ratio:.2f} times"
assert num_parameters(adapters) == 2_442_240, "the number of trained parameters"
assert num_parameters(adapters) < 0.02 * n, "less than 2 % of the model is trained"
of_micro = n / num_parameters(minilora.load("micro").model.base)
assert 1_400 < of_micro < 1_410, "the model must have 1,400 times the parameters of micro"
assert 6 < 4 * n / nbytes(model.base) < 6.5, "the base must be a sixth of its size in float32"
assert sum(parts.values()) < 16 * n / 4, "a step must need a quarter of full fine-tuning"
assert max(parts, key=parts.get) == "activations", "the activations must be the largest part"
