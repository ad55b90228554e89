# %% [markdown]
# # MERGE 18b. The memory of the real model
#
# **The question.** How many parameters of SmolLM2 does LoRA train, and how much memory does a step
# of training need?
#
# ![Bytes per weight of the base's projections in a training step, without activations: full
# fine-tuning 16, LoRA 4.37, QLoRA 0.88.](../../../figures/drawings/step_memory.svg)
#
# **Continues:** [lesson 8](../../08_training_through_four_bits.py).
#
# **Time:** a second to run, five minutes to read. **You need:** lesson 8 and the study [A real
# model calls tools](../training/a_real_model_calls_tools.py), and `minilora fetch smollm2`.

# %%
import minilora
from lessons.helpers import toolcalls
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.memory import format_estimate, memory_estimate, nbytes
from minilora.tree import num_parameters

config, base, tokenizer = minilora.load("smollm2", "nf4-dq")

# %% [markdown]
# ## Parameters and bytes
#
# **Predict.** How many parameters are trained, with r = 8 on all seven projections? In float32 the
# base would take half a gigabyte. How much does it take here?
#
# <details><summary>Answer</summary>
# 2,442,240, less than 2 % of the model. The base takes a sixth of its size in float32.
# </details>

# %%
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
adapters, _ = minilora.get_peft_model(base, lora_config, rng=0)
minilora.print_trainable_parameters(adapters, base)

settings = TrainConfig(batch_size=4, mask_prompt=True)
rows = toolcalls.rows("train")
examples, _ = data.encode_rows(rows, tokenizer, settings)
tokens = settings.batch_size * max(len(example.tokens) - 1 for example in examples)
parts = memory_estimate(adapters, base, config, tokens)
print(f"a step over at most {tokens} tokens:\n{format_estimate(parts)}")

# Full fine-tuning stores each weight, its gradient and Adam's two moments, in float32.
FULL_MB = 16 * num_parameters(base) / 1e6
quotient = 4 * num_parameters(base) / nbytes(base)
print(f"full fine-tuning, before any activation: {FULL_MB:,.0f} MB")
print(f"in float32 the base would be {quotient:.1f} times as large")

# %% [markdown]
# The base is a sixth of its size in float32, not an eighth: the embedding stays in 8 bits, as in
# its file (`low_precision.py`), and the scales take bytes, too. The largest part of the estimate is
# now the activations. `--gradient-checkpointing` recomputes them instead of storing them
# ([memory](../../guide/speed-and-memory.md)).
#
# SmolLM2's file is quantized to 4 bits already (Q4_1). So this lesson cannot show what quantizing
# costs a model. The lessons with the embedded models can.

# %%
# Checks
L, d, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
k = config.num_key_value_heads * config.head_dim
expected = L * lora_config.r * (9 * d + 2 * k + 3 * f)  # r·(in + out), seven projections, L layers
assert num_parameters(adapters) == expected == 2_442_240, "the number of trained parameters"
share = num_parameters(adapters) / num_parameters(base)
assert 0.018 < share < 0.019, "less than 2 % of the model is trained"
of_micro = num_parameters(base) / num_parameters(minilora.load("micro")[1])
assert 1_400 < of_micro < 1_410, "the model must have 1,400 times the parameters of micro"
assert 6 < quotient < 6.5, "the base must be a sixth of its size in float32"
assert sum(parts.values()) / 1e6 < FULL_MB / 4, "a step must need a quarter of full fine-tuning"
assert max(parts, key=parts.get) == "activations", "the activations must be the largest part"
assert 0.1 < nbytes(adapters) / nbytes(base) < 0.125, "the adapter: a ninth of the 4-bit base"

# %% [markdown]
# ## What was shown
#
# LoRA trains less than 2 % of this model. By the estimate, a step with a base in 4 bits needs less
# than a quarter of the memory that full fine-tuning needs for its weights and their state alone.
#
# **What to try.**
#
# 1. `"nf4-dq"`: load the base with "none". Which parts of the estimate grow?
# 2. `batch_size=4`: use 16. Which part is the largest then?
# 3. `r=8`: use 64. Does the memory of a step grow much?
#
# **Where to stop with a debugger.** `memory.activation_floats` (which arrays does a layer keep?).
#
# **Exercises.** lora-count, memory-estimate.
#
# **Further reading.** QLoRA, Fig. 6, on the memory of a step:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).
