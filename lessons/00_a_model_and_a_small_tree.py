# %% [markdown]
# # 0. A model and a small tree
#
# **The question.** What is fine-tuning with LoRA, in code, from the first line to the last?
#
# A model is a function and a tree of arrays. Fine-tuning with LoRA is a second, small tree that
# stands beside the first where something is trained. Everything below is that sentence, run.
#
# ![Two trees side by side. The base has a weight at each path. The adapters have lora_A and lora_B
# at the paths of q_proj and v_proj, and nothing elsewhere.](../figures/drawings/two_trees.svg)
#
# Time: about half a minute. You need: Python, and to know what a matrix product is.

# %%
import os

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, lora
from minilora.evaluation.memory import nbytes
from minilora.tree import flatten, num_parameters

QUICK = bool(os.environ.get("MINILORA_QUICK"))
rng = np.random.default_rng(0)

config, base, tokenizer = minilora.load("micro")
print(f"{num_parameters(base):,} parameters in {len(flatten(base))} arrays, for example")
for path in list(flatten(base))[:4]:
    print(" ", path, flatten(base)[path].shape)

# %% [markdown]
# The base, the model before fine-tuning, speaks one language: notes about who has what
# (`minilora.tasks`). We are going to ask it questions about such notes, in words that it never saw.
#
# **Predict:** what will it answer before any training?


# %%
def say(adapters, base, prompt, length=24):
    """The model's greedy continuation of `prompt`."""
    ids = tokenizer.encode(prompt)
    return tokenizer.decode(list(minilora.generate(adapters, base, ids, config, max_tokens=length)))


rows = data.load_rows("questions", "valid")
print(rows[0]["prompt"])
print("it says: ", repr(say({}, base, rows[0]["prompt"])))
print("right is:", repr(rows[0]["completion"]))

# %% [markdown]
# Now the base goes into four bits (NF4, its scales quantized too: lessons 5 and 6), and an adapter
# is put on it. Beside each weight W₀ of the seven projections of a layer ("all-linear") stand two
# thin matrices, `lora_A` (r, in) and `lora_B` (out, r); their product times α/r (`lora_alpha` over
# `r`) is added to W₀. Two things are worth stopping at.
#
# - `lora.init` returns *two* trees: what is trained, and the frozen base with a scaling beside
#   each adapted weight. Nothing else tells trained from frozen: the trained tree is argument 0.
# - `lora_B` is exactly zero, so the adapter changes nothing yet.
#
# **Predict:** how many of the base's bytes does the 4-bit base need? Why not an eighth?

# %%
frozen = minilora.quantize(base, "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, frozen = lora.init(frozen, lora_config, rng)

tokens = np.array([tokenizer.encode(rows[0]["prompt"])])
untouched = minilora.forward({}, frozen, tokens, config)
assert np.array_equal(minilora.forward(adapters, frozen, tokens, config), untouched)

print(f"{nbytes(base):,} bytes dense, {nbytes(frozen):,} in NF4 with double quantization:")
print("the embedding, which stays dense, is most of what is left of so small a model")
embedding = base["model"]["embed_tokens"]["weight"].nbytes
assert embedding > nbytes(frozen) / 2
print(f"{num_parameters(adapters):,} parameters to train beside {num_parameters(frozen):,}")

# %% [markdown]
# Training is a loop over `value_and_grad(loss)`. Stop in it with a debugger, in an editor or so:
#
#     MINILORA_PLAIN=1 python -m pdb lessons/00_a_model_and_a_small_tree.py
#     (Pdb) import minilora.layers
#     (Pdb) b minilora.layers.linear, "lora_A" in trained
#     (Pdb) c
#
# and look at `x.shape`, `trained` and `frozen`. Without the condition the first stops are in the
# bare base, where `trained` is `{}`. (pdb finds what is imported already: hence the first line.)
#
# The loss is in nats a token (the natural logarithm), of the answer alone (`mask_prompt`). Exact
# match is the share of rows in which every token of the answer is the likeliest one.
#
# ![A row of tokens and its targets, shifted by one. With mask_prompt only the answer's tokens and
# the end of text count in the loss.](../figures/drawings/targets.svg)

# %%
settings = TrainConfig(
    iters=60 if QUICK else 400, batch_size=16, learning_rate=4e-3, mask_prompt=True
)
examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
valid, _ = data.encode_rows(rows, tokenizer, settings)

before = minilora.evaluate(adapters, frozen, valid, config)
adapters, history = minilora.train(adapters, frozen, examples, config, settings)
after = minilora.evaluate(adapters, frozen, valid, config)
for name in ("loss", "exact_match"):
    print(f"{name:<12} before {before[name]:.3f}   after {after[name]:.3f}")
assert before["exact_match"] < 0.05
assert after["loss"] < before["loss"] / 2
print("it says: ", repr(say(adapters, frozen, rows[0]["prompt"])))
as_it_was = flatten(minilora.load("micro")[1])
assert all(np.array_equal(w, as_it_was[path]) for path, w in flatten(base).items())
assert round(nbytes(adapters) / 1000) == 88

# %% [markdown]
# **The merge.** W' = W₀ + (α/r)·BA is a matrix of the same shape as W₀, so a trained adapter can
# disappear into it. Merging is therefore an equation between two calls of one function:
#
#     forward(adapters, frozen, x) == forward({}, merge(adapters, frozen), x)
#
# **Predict:** will the two sides be equal bit for bit?

# %%
merged = lora.merge(adapters, frozen)
apart = minilora.forward(adapters, frozen, tokens, config)
together = minilora.forward({}, merged, tokens, config)
difference = np.abs(apart - together).max() / np.abs(apart).max()
print(f"largest difference, relative to the largest logit: {difference:.1e}")
# Not bit for bit: W₀x + BAx and (W₀ + BA)x round at different places. Each of the 21 products
# sums at most 128 terms, in float32 with half a unit in the last place of 2⁻²⁴ each.
assert 0 < difference < 21 * 128 * 2**-24

# %% [markdown]
# **What this showed.** The base was never written to; all that was learned is in a tree of
# `lora_A` and `lora_B` (88 kB, nearly as much as so small a base in four bits; of a real model it
# is a small part); and it can be kept apart (to swap it) or merged (to forget that it was there).
#
# **Where to stop with a debugger.** `layers.linear` (the one place where LoRA is read),
# `lora.init` (why B is zero), `training.train` (the loop).
#
# **Exercises.** rms-norm, rotation, swiglu, cross-entropy, attention.
