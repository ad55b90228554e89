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
from minilora import LoraConfig, Model, ModelConfig, lora
from minilora.evaluation.memory import activation_floats
from minilora.formats.hf_folder import shapes
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, named_leaves, num_parameters, unflatten

# %% [markdown]
# ## 7 and 65 billion parameters
#
# `np.broadcast_to(0, shape)` is an array with a shape, a dtype and an `nbytes`, but with the memory
# of one number. A tree of such arrays is a model on paper. `num_parameters` and `lora.target_paths`
# treat it like a real one.
#
# **Predict.** 65 billion weights of 4 bits are 33 GB. What takes the rest of the 48 GB?
#
# <details><summary>Answer</summary>
# The largest part is Adam's moments of the adapters: with r = 64 on all projections, the adapters
# have 0.8 billion parameters. (Activations are few, because only the input of each layer is kept,
# and one layer is computed again at a time: 0.8 GB for 512 tokens.)
# </details>


# %%
def llama_on_paper(width, hidden, layers, heads):
    """Return a first-generation LLaMA in 16 bits, without its memory."""
    config = ModelConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=width // heads,
        tie_word_embeddings=False,
    )  # fmt: skip
    leaves = {path: np.broadcast_to(np.float16(0), s) for path, s in shapes(config).items()}
    return Model(config, unflatten(leaves))


def lora_count(base, config):
    """Compute Σ r·(in + out) over the adapted projections."""
    weights = flatten(base)
    paths = lora.target_paths(base, config)
    return sum(config.r * sum(weights[f"{path}.weight"].shape) for path in paths)


R64 = LoraConfig(r=64, lora_alpha=16, target_modules=("all-linear",))
# Bits of a frozen projection; for QLoRA: 4 of the code, 8 per absmax of 64 weights, 32 per nested
# absmax of 256 (lesson 2)
FROZEN_BITS = {"LoRA": 16, "QLoRA": 4 + 8 / 64 + 32 / (64 * 256)}


def numbers_kept(model):
    """Return how many numbers a layer keeps per token for the backward pass."""
    config = model.config
    whole = activation_floats(model.base, config) - (config.hidden_size + 1)  # the last norm
    return whole / config.num_hidden_layers


def step_on_paper(model, method, tokens=512):
    """Return {part: GB} of a step with gradient checkpointing; weights that stay dense: 16 bits."""
    config = model.config
    n = num_parameters(model.base)
    frozen_bits = 0
    if method != "full":
        n = lora_count(model.base, R64)
        for path, w in named_leaves(model.base):
            frozen_bits += w.size * (FROZEN_BITS[method] if is_projection(path) else 16)
    inputs = config.num_hidden_layers * config.hidden_size  # the input of each layer is kept
    sizes = {
        "frozen": frozen_bits / 8,
        "trained": 2 * n,
        "gradients": 2 * n,
        "moments": 8 * n,
        "activations": 2 * tokens * (inputs + numbers_kept(model)),  # and one layer's at a time
    }
    return {part: size / 1e9 for part, size in sizes.items()}


llamas = {"7B": llama_on_paper(4096, 11008, 32, 32), "65B": llama_on_paper(8192, 22016, 80, 64)}
paper = {method: step_on_paper(llamas["65B"], method) for method in ("full", *FROZEN_BITS)}
sums = {method: sum(parts.values()) for method, parts in paper.items()}
print("65B, a row of 512 tokens:", {method: f"{gb:.1f} GB" for method, gb in sums.items()})

# %% [markdown]
# Twelve bytes per parameter (2 for the weight, 2 for its gradient, 8 for the moments) are the 780
# GB. For a frozen weight, LoRA saves ten of the twelve. The other two are the weight itself, and
# they alone are more than 48 GB. With QLoRA's fewer bits the sum is below that. (Without double
# quantization it would be 3 GB more: lesson 2.)
#
# A layer keeps 6D + 2F numbers per token, and one per norm and head: the formula of lesson 6, whose
# table has the parts of each step. These sums leave out what a framework needs in addition. Below
# 48 GB, a few GB are left.

# %%
# Checks
llama_7b, llama_65b = llamas["7B"].base, llamas["65B"].base
tiny = minilora.load("tiny").model
R8 = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
real = num_parameters(minilora.get_peft_model(tiny, R8, 0).adapters)
assert lora_count(tiny.base, R8) == real, "the formula must count what get_peft_model creates"
assert num_parameters(llama_7b) == 6_738_415_616, "LLaMA-7B"
assert num_parameters(llama_65b) == 65_285_660_672, "LLaMA-65B"
assert lora_count(llama_7b, LoraConfig(r=8)) == 4_194_304, "r = 8 on q_proj and v_proj of 7B"
assert lora_count(llama_7b, R64) == 159_907_840, "r = 64 on all projections of 7B"
assert lora_count(llama_65b, R64) == 799_539_200, "r = 64 on all projections of 65B"
for llama in llamas.values():
    D, F = llama.config.hidden_size, llama.config.intermediate_size
    assert 0 < numbers_kept(llama) / (6 * D + 2 * F) - 1 < 1e-3, "lesson 6 must count every array"
assert 780 < sums["full"] < 790, "more than 780 GB"
assert sums["QLoRA"] < 48 < paper["LoRA"]["frozen"], "only QLoRA fits into 48 GB"
projections = sum(w.size for path, w in named_leaves(llama_65b) if is_projection(path))
assert 33 < projections * FROZEN_BITS["QLoRA"] / 8e9 < 34, "33 GB of codes and scales"
others = {part: size for part, size in paper["QLoRA"].items() if part != "frozen"}
assert max(others, key=others.get) == "moments", "the moments must be the largest of the rest"
assert 2 < 48 - sums["QLoRA"] < 6, "a few GB are left"

# %% [markdown]
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
