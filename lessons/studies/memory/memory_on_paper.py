# %% [markdown]
# # Memory on paper
#
# **The question.** The QLoRA paper (Sec. 1) says that fine-tuning LLaMA-65B in 16 bits takes more
# than 780 GB, and with QLoRA less than 48 GB. Do both numbers follow from the shapes?
#
# Lesson 6 has a table of the parts, from formulas. Here, the same is counted from all arrays.
#
# **Continues:** [lesson 6](../../06_where_the_memory_goes.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lessons 2 and 6.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, ModelConfig, lora
from minilora.evaluation.memory import activation_floats
from minilora.formats.hf_folder import shapes
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, num_parameters, unflatten

# %% [markdown]
# ## 65 billion parameters
#
# `np.broadcast_to(0, shape)` is an array with a shape, a dtype and an `nbytes`, but with the memory
# of one number. A tree of such arrays is a model on paper. `num_parameters` and `lora.target_paths`
# treat it like a real one.
#
# **Predict.** 65 billion weights of 4 bits are 33 GB. What takes the rest of the 48 GB?

# %%
config = ModelConfig(
    vocab_size=32000, hidden_size=8192, intermediate_size=22016, num_hidden_layers=80,
    num_attention_heads=64, num_key_value_heads=64, head_dim=128, tie_word_embeddings=False,
)  # fmt: skip
weights = {path: np.broadcast_to(np.float16(0), shape) for path, shape in shapes(config).items()}


def lora_count(leaves, lora_config):
    """Compute Σ r·(in + out) over the adapted projections of {path: weight}."""
    paths = lora.target_paths(unflatten(leaves), lora_config)
    return sum(lora_config.r * sum(leaves[f"{path}.weight"].shape) for path in paths)


R64 = LoraConfig(r=64, target_modules=("all-linear",))
# Bits of a frozen projection; for QLoRA: 4 of the code, 8 per absmax of 64 weights, 32 per nested
# absmax of 256 (lesson 2)
FROZEN_BITS = {"LoRA": 16, "QLoRA": 4 + 8 / 64 + 32 / (64 * 256)}
in_layers = activation_floats(unflatten(weights), config) - config.hidden_size - 1  # the last norm
per_layer = in_layers / config.num_hidden_layers


def step_on_paper(method, tokens=512):
    """Return {part: GB} of a step with gradient checkpointing; weights that stay dense: 16 bits."""
    if method == "full":
        n, frozen_bits = num_parameters(weights), 0
    else:
        n = lora_count(weights, R64)
        bits = {path: FROZEN_BITS[method] if is_projection(path) else 16 for path in weights}
        frozen_bits = sum(w.size * bits[path] for path, w in weights.items())
    inputs = config.num_hidden_layers * config.hidden_size  # the input of each layer is kept
    sizes = {
        "frozen": frozen_bits / 8,
        "trained": 2 * n,
        "gradients": 2 * n,
        "moments": 8 * n,
        "activations": 2 * tokens * (inputs + per_layer),  # and one layer's at a time
    }
    return {part: size / 1e9 for part, size in sizes.items()}


paper = {method: step_on_paper(method) for method in ("full", *FROZEN_BITS)}
sums = {method: sum(parts.values()) for method, parts in paper.items()}
print("65B, a row of 512 tokens:", {method: f"{gb:.1f} GB" for method, gb in sums.items()})

# %% [markdown]
# **Answer.** The largest part is Adam's moments of the adapters: with r = 64 on all projections,
# the adapters have 0.8 billion parameters. (Activations are few, because only the input of each
# layer is kept, and one layer is computed again at a time: 0.8 GB for 512 tokens.)
#
# Twelve bytes per parameter (2 for the weight, 2 for its gradient, 8 for the moments) are the 780
# GB. For a frozen weight, LoRA saves ten of the twelve. The other two are the weight itself, and
# they alone are more than 48 GB. With QLoRA's fewer bits the sum is below that. (Without double
# quantization it would be 3 GB more: lesson 2.)
#
# A layer keeps 6D + 2F numbers per token, and one per norm and head: the formula of lesson 6, whose
# table has the parts of each step. These sums leave out what a framework needs in addition. Below
# 48 GB, a few GB are left.
#
# ## What was shown
#
# By these sums, both numbers follow from the shapes. QLoRA stays below 48 GB because the frozen
# weights have fewer bits; LoRA with weights in 16 bits does not.
#
# **What to try.**
#
# 1. `LoraConfig(r=64, ...)`: use r = 8. How many GB are left below 48?
# 2. `tokens=512`: use 100,000 tokens. Which part grows?
# 3. `8 * n` in `step_on_paper`: use 2 bytes, for two moments in 8 bits. What does that save?
#
# **Exercises.** lora-count, memory-estimate.
#
# **Further reading.** QLoRA: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Dettmers et al.
# 2021, *8-bit Optimizers*: [arXiv:2110.02861](https://arxiv.org/abs/2110.02861).

# %%
# Checks
tiny = minilora.load("tiny").model
R8 = LoraConfig(r=8, target_modules=("all-linear",))
real = num_parameters(minilora.get_peft_model(tiny, R8, 0).adapters)
assert lora_count(flatten(tiny.base), R8) == real, "it must count what get_peft_model creates"
assert num_parameters(weights) == 65_285_660_672, "LLaMA-65B"
assert lora_count(weights, R64) == 799_539_200, "0.8 billion parameters"
formula = 6 * config.hidden_size + 2 * config.intermediate_size
assert 0 < per_layer / formula - 1 < 1e-3, "lesson 6 must count every array"
assert 780 < sums["full"] < 790, "more than 780 GB"
assert sums["QLoRA"] < 48 < paper["LoRA"]["frozen"], "only QLoRA fits into 48 GB"
assert 2 < 48 - sums["QLoRA"] < 6, "a few GB are left"
projections = sum(w.size for path, w in weights.items() if is_projection(path))
assert 33 < projections * FROZEN_BITS["QLoRA"] / 8e9 < 34, "33 GB of codes and scales"
others = {part: size for part, size in paper["QLoRA"].items() if part != "frozen"}
assert max(others, key=others.get) == "moments", "the moments must be the largest of the rest"
assert abs(others["activations"] - 0.8) < 0.05, "0.8 GB for 512 tokens"
