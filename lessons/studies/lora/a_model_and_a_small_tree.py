# %% [markdown]
# # A model and a small tree
#
# **The question.** What is fine-tuning with LoRA in this package, from the first line to the last?
#
# A model is a function and a tree of arrays: nested dicts, which `flatten` turns into the one dict
# of lesson 0, from paths to arrays. LoRA adds a second, small tree. It has a node for each weight
# that gets an adapter, and only this tree is trained.
#
# **Continues:** [lesson 0](../../00_qlora_in_one_file.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** Python, and
# [lesson 0](../../00_qlora_in_one_file.py) or at least its parts 3 and 6.

# %%
import os

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.memory import nbytes
from minilora.tree import flatten, num_parameters

QUICK = bool(os.environ.get("MINILORA_QUICK"))  # a quick run, for the tests: fewer steps

config, base, tokenizer = minilora.load("micro")
print(f"{num_parameters(base):,} parameters in {len(flatten(base))} arrays, for example")
for path in list(flatten(base))[:4]:
    print(" ", path, flatten(base)[path].shape)

# %% [markdown]
# ## The base
#
# The [base](../../guide/glossary.md) is the model before fine-tuning. It was trained on one kind of
# text: notes about who keeps what where (`minilora.data.tasks`). We will ask it about such notes in
# a form that it has not seen.
#
# **Predict.** What will it answer before any training?
#
# <details><summary>Answer</summary>
# Almost never the right words: in 4 bits, exact match is below 5 % (checked below).
# </details>


# %%
def say(adapters, base, prompt, length=24):
    """Continue `prompt` greedily, with the likeliest token at each step."""
    ids = tokenizer.encode(prompt)
    return tokenizer.decode(list(minilora.generate(adapters, base, ids, config, max_tokens=length)))


rows = data.load_rows("questions", "valid")
print(rows[0]["prompt"])
print("the base says:   ", repr(say({}, base, rows[0]["prompt"])))
print("the right answer:", repr(rows[0]["completion"]))

# %% [markdown]
# ## The adapter
#
# The base is quantized to four bits (NF4 with double quantization: lessons 6 and 7). Then each of
# the seven projections of a layer ("all-linear") gets two thin matrices, `lora_A` (r, in) and
# `lora_B` (out, r). Their product times α/r (`lora_alpha` over `r`) is added to the weight W₀. Two
# things are important:
#
# - `get_peft_model` returns *two* trees: the adapters, which also have the number α/r next to the
#   factors (`lora_scaling`), and the base, which it does not change. Nothing else separates trained
#   from frozen parameters: the loss is differentiated with respect to argument 0, the adapters.
# - `lora_B` is exactly zero, so the adapter changes nothing yet.
#
# ![Two trees. The base has a weight at each path. The adapters have lora_A, lora_B, their scaling
# and their dropout at the paths of the seven projections, and nothing
# elsewhere.](../../../figures/drawings/two_trees.svg)
#
# **Predict.** A float32 number has 32 bits. Why does the 4-bit base need more than an eighth of the
# base's bytes?
#
# <details><summary>Answer</summary>
# Only the projections are quantized. The embedding stays in float32, and here it is then more than
# half of all bytes.
# </details>

# %%
quantized = minilora.quantize(base, "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, _ = minilora.get_peft_model(quantized, lora_config, 0)

tokens = np.array([tokenizer.encode(rows[0]["prompt"])])
untouched = minilora.forward({}, quantized, tokens, config)
with_adapters = minilora.forward(adapters, quantized, tokens, config)
embedding = base["model"]["embed_tokens"]["weight"].nbytes
print(f"{nbytes(base):,} bytes dense, {nbytes(quantized):,} in NF4 with double quantization,")
print(f"of which {embedding:,} are the dense embedding")
print(f"{num_parameters(adapters):,} trained and {num_parameters(quantized):,} frozen parameters")

# %%
# Checks
assert np.array_equal(with_adapters, untouched), "B = 0: the adapter must not change the model"
assert embedding > nbytes(quantized) / 2, "the embedding must be most of the quantized base"

# %% [markdown]
# ## Training
#
# Training is a loop over `value_and_grad(loss)`, which returns the loss and its gradient. To look
# inside, stop in it with a debugger, in your editor or on the command line. (The package computes
# with compiled fast versions of `layers.py`. `MINILORA_PLAIN=1` turns them off.)
#
#     MINILORA_PLAIN=1 python -m pdb lessons/00c_a_model_and_a_small_tree.py
#     (Pdb) import minilora.layers
#     (Pdb) b minilora.layers.linear, "lora_A" in node
#     (Pdb) c
#
# and look at `x.shape` and `node`: the weight of the base, and the factors that the adapter lays
# over it. The condition skips the calls without an adapter. (pdb sets breakpoints only in modules
# that are already imported, so the first line imports one.)
#
# The loss is in nats per token (natural logarithm) and counts the tokens of the answer only
# (`mask_prompt`). Exact match is the share of rows in which every answer token is the likeliest
# one.
#
# ![A row of tokens and its targets, shifted by one. With mask_prompt only the answer's tokens
# count.](../../../figures/drawings/targets.svg)

# %%
settings = TrainConfig(
    iters=60 if QUICK else 400, batch_size=16, learning_rate=4e-3, mask_prompt=True
)
examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
valid, _ = data.encode_rows(rows, tokenizer, settings)

before = minilora.evaluate(adapters, quantized, valid, config)
adapters, history = minilora.train(adapters, quantized, examples, config, settings)
after = minilora.evaluate(adapters, quantized, valid, config)
for name in ("loss", "exact_match"):
    print(f"{name:<12} before {before[name]:.3f}   after {after[name]:.3f}")
print("the model says:", repr(say(adapters, quantized, rows[0]["prompt"])))
print(f"the adapter has {nbytes(adapters):,} bytes")

# %%
# Checks
assert before["exact_match"] < 0.05, "the base must not know the task"
assert after["loss"] < before["loss"] / 2, "training must at least halve the held-out loss"
as_it_was = flatten(minilora.load("micro")[1])
for path, w in flatten(base).items():
    assert np.array_equal(w, as_it_was[path]), f"training changed the base's {path}"
assert round(nbytes(adapters) / 1000) == 88, "the adapter must have 88 kB"
assert 0.9 < nbytes(adapters) / nbytes(quantized) < 1, "nearly as many as the 4-bit base"

# %% [markdown]
# ## Merging
#
# W₀ + (α/r)·BA is a matrix of W₀'s shape, so a trained adapter can be added to its weight. After
# that, no adapter is left. Merging is correct if two calls of one function agree, up to rounding:
#
#     forward(adapters, base, x) == forward({}, merge(adapters, base), x)
#
# **Predict.** Will the two sides be equal bit for bit?
#
# <details><summary>Answer</summary>
# No. W₀x + BAx and (W₀ + BA)x are the same number in exact arithmetic, but they round at different
# places.
# </details>

# %%
merged = minilora.merge(adapters, quantized)
unmerged_logits = minilora.forward(adapters, quantized, tokens, config)
merged_logits = minilora.forward({}, merged, tokens, config)
difference = np.abs(unmerged_logits - merged_logits).max() / np.abs(unmerged_logits).max()
print(f"largest difference, relative to the largest logit: {difference:.1e}")

# %%
# Checks
# Each of the 21 products sums at most 128 terms in float32. Each term adds an error of at most 2⁻²⁴
# (half a unit in the last place).
assert 0 < difference < 21 * 128 * 2**-24, "merging differs by more than rounding, or not at all"

# %% [markdown]
# ## What was shown
#
# Training changed no array of the loaded base. Everything learned is in a tree of `lora_A` and
# `lora_B`. Here this tree is nearly as large as the 4-bit base; with the same r it is a ninth of
# SmolLM2 in 4 bits (the study [The memory of a step](../memory/the_memory_of_a_step.py)). The
# adapter can be kept separate (to swap it) or merged (to run without it).
#
# **What to try.**
#
# 1. `LoraConfig(r=8, ...)`: set r to 1, and then to 32. How do the bytes and the loss change?
# 2. `target_modules=("all-linear",)`: adapt only `("q_proj", "v_proj")`. The study [Where to apply it](where_to_apply.py) does this
#    properly.
# 3. `minilora.quantize(base, "nf4-dq")`: use "none". Is the loss after training lower?
#
# **Where to stop with a debugger.** `layers.linear` (the one place that uses the adapter),
# `lora.init` (where B is set to zero), `training.train` (the loop).
#
# **Exercises.** The operations of the model: rms-norm, rotation, swiglu, cross-entropy, attention
# (lesson 1).
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). QLoRA:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).
