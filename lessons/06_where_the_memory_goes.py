# %% [markdown]
# # 6. Where the memory goes
#
# **The question.** Where do the bytes of fine-tuning go, and which of them do LoRA and QLoRA save?
#
# This lesson measures the bytes of one training step of `tiny`, a base of one million parameters
# that comes with the package. The study [Memory on paper](studies/memory/memory_on_paper.py)
# computes the same for Llamas of 7 and 65 billion parameters.
#
# **Time:** a second to run, ten minutes to read. **You need:** lessons 0 and 5.
#
# ## The names of the package
#
# In lesson 0, `adapters` and `base` were dicts; in the package, they are trees. A model has
# settings, `model.config`, and frozen weights, `model.base`. The lessons use:
#
# | name | what it is or returns |
# |---|---|
# | `LoraConfig`, `TrainConfig` | the settings of LoRA, and those of a run |
# | `MethodConfig("full")` | the settings of another method, here full fine-tuning |
# | `load("tiny")` | (model, tokenizer) |
# | `quantize(model, "nf4-dq")` | the model with its projections in NF4 with double quantization |
# | `get_peft_model(model, config, rng)` | (adapters, model), where A is drawn with `rng` |
# | `load_rows`, `encode_rows`, `collate` | rows of text; examples (tokens and a mask); a batch |
# | `loss(adapters, model, batch)` | the loss of lesson 5, part 5 |
# | `value_and_grad(loss)` | a function that returns the loss, and its gradient for `adapters` |
# | `train(adapters, model, examples, …)` | (trained adapters, one dict per step) |
# | `evaluate(adapters, model, examples)` | the loss and other scores |
# | `arrays(tree)` | the tree without its settings, such as α/r |
# | `get(tree, path)`, `named_leaves(tree)` | what is at a path; all (path, array) |
# | `overlay(lower, upper)` | `lower`, with the arrays of `upper` in the place of its own |
# | `memory_estimate(adapters, model, …)` | the bytes of a step, computed from the shapes |
# | `short(60, 20)` | 60, or 20 in a quick run (`MINILORA_QUICK=1`); a helper of the lessons |
#
# PEFT (parameter-efficient fine-tuning) stands for all methods that train few parameters. LoRA is
# one; "full" fine-tuning trains all parameters.

# %%
import tracemalloc

import numpy as np
from autograd import make_vjp

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig, data
from minilora.batching import collate
from minilora.evaluation import memory
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers.common import table
from minilora.optim import adamw_init
from minilora.tree import arrays, num_parameters, overlay

rng = np.random.default_rng(0)
ALL = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))

# %% [markdown]
# ## What one step keeps
#
# A training step needs the weights, a gradient per trained parameter, and Adam's two running
# averages per trained parameter (lesson 0, part 6), its *moments*. It also needs the
# [*activations*](guide/glossary.md): the results of the forward pass that the backward pass uses.
# Without them, a step needs the following bytes per weight of a projection, with r = 8 on all
# projections. (LoRA trains 0.023 numbers per frozen weight, so it needs 4 + 16 · 0.023 = 4.37.)
#
# ![Bytes per weight in a step, without activations, for the projections of SmolLM2: full
# fine-tuning 16, LoRA 4.37, QLoRA 0.88.](../figures/drawings/step_memory.svg)
#
# **Predict.** `tiny` has 1.0 million parameters; A and B have 0.09 million. For 16 × 64 tokens, the
# activations of full fine-tuning take 33 MB. Is the whole step of LoRA ten times smaller than that
# of full fine-tuning, or two times? What does a base in 4 bits save in addition?
#
# <details><summary>Answer</summary>
# Neither: LoRA's step needs more than three quarters of the bytes, and a base in 4 bits saves about
# a tenth of those. Ten times is tempting, because the trained numbers are eleven times fewer. But
# here most bytes are activations, and LoRA keeps as many.
# </details>

# %%
model, tokenizer = minilora.load("tiny")
settings = TrainConfig(max_seq_length=65)
examples, _ = data.encode_rows(data.load_rows("notes", "train"), tokenizer, settings)
examples = [example for example in examples if len(example.tokens) == 65][:16]  # 64 inputs
batch = collate([[example] for example in examples])  # rows of one example each


def activations_and_gradient(adapters, model):
    """Return the bytes kept between the forward and the backward pass, and the gradient."""

    def of_arrays(traced):
        return minilora.loss(overlay(adapters, traced), model, batch)

    def forward_pass():  # autograd returns the backward pass, a function, and the loss
        return make_vjp(of_arrays)(arrays(adapters))

    forward_pass()  # the first call also compiles the fast kernels: that is not counted
    tracemalloc.start()  # count the bytes of what Python and NumPy allocate, until it is freed
    backward, loss = forward_pass()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept, backward(np.ones_like(loss))


models = {
    "full": minilora.get_peft_model(model, MethodConfig("full")),
    "LoRA": minilora.get_peft_model(model, ALL, rng),
    "QLoRA": minilora.get_peft_model(minilora.quantize(model, "nf4-dq"), ALL, rng),
}
parts, total, rows = {}, {}, []
for name, (adapters, its_model) in models.items():
    activations, gradient = activations_and_gradient(adapters, its_model)
    frozen = 0 if name == "full" else nbytes(its_model.base)  # full: every array has a trained copy
    parts[name] = {
        "frozen": frozen,
        "trained": nbytes(adapters),
        "gradients": nbytes(gradient),
        "moments": nbytes(adamw_init(arrays(adapters))),
        "activations": activations,
    }
    total[name] = sum(parts[name].values())
    rows.append([name, *parts[name].values(), total[name]])
table(["bytes", *parts["full"], "together"], rows)
print(f"LoRA's step is {total['full'] / total['LoRA']:.2f} times smaller,", end=" ")
print(f"QLoRA's {total['full'] / total['QLoRA']:.2f} times")
pairs = models["full"], models["LoRA"]
estimates = [memory.memory_estimate(adapters, its_model, 64) for adapters, its_model in pairs]
estimates[0]["frozen weights"] = 0  # full: as above
one_row = [sum(estimate.values()) for estimate in estimates]
print("estimated for one row of 64 tokens: full {:,}, LoRA {:,}".format(*one_row))

# %% [markdown]
# Everything that belongs to the *trained* parameters (weights, gradients, moments: 16 bytes per
# parameter in float32) shrinks with their number, here eleven times. The base in 4 bits is less
# than a sixth of its size; its embedding stays dense.
#
# But with A and B on all seven projections, **LoRA saves no activations**: the gradient of A needs
# the same inputs x as the gradient of W (lesson 1 shows why). With one row, the activations weigh
# less: by the estimate, LoRA then saves three fifths.
#
# ![LoRA's backward pass: the gradient g of the output gives the gradients of B and A through the
# rank-r bottleneck. The gradient of W is never computed.](../figures/drawings/lora_gradient.svg)

# %%
# Checks
assert batch["tokens"].shape == (16, 64), "the batch must have 16 rows of 64 tokens"
for_trained = {}
for name, (adapters, its_model) in models.items():
    row, n = parts[name], num_parameters(adapters)
    predicted = memory.memory_estimate(adapters, its_model, batch["tokens"].size)
    assert row["gradients"] == predicted["their gradients"] == 4 * n, f"{name}: gradients"
    assert row["moments"] == predicted["Adam's two moments"] == 8 * n, f"{name}: moments"
    assert abs(row["activations"] / predicted["activations"] - 1) < 0.25, f"{name}: activations"
    for_trained[name] = row["trained"] + row["gradients"] + row["moments"]
assert for_trained["full"] == 16 * num_parameters(model.base), "16 bytes per trained parameter"
assert 10 < for_trained["full"] / for_trained["LoRA"] < 12, "LoRA must save eleven times of them"
assert 6 < parts["LoRA"]["frozen"] / parts["QLoRA"]["frozen"] < 7, "4 bits: less than a sixth"
for name in ("LoRA", "QLoRA"):
    share = parts[name]["activations"] / parts["full"]["activations"]
    assert 0.99 < share < 1.01, f"{name} must keep the same activations, not {share:.1%}"
for name in models:
    assert parts[name]["activations"] > total[name] / 2, f"{name}: most bytes are activations"
assert 0.08 < 1 - total["QLoRA"] / total["LoRA"] < 0.12, "4 bits must save another tenth"
assert 1.2 < total["full"] / total["LoRA"] < total["full"] / total["QLoRA"] < 2, "less than twice"
assert total["LoRA"] / total["full"] > 0.75, "LoRA's step must need more than three quarters"
assert abs(parts["full"]["activations"] / 33e6 - 1) < 0.02, "the activations must take 33 MB"
full, lora = one_row
assert 0.55 < 1 - lora / full < 0.65, "with one row, most bytes are weights: LoRA saves more"

# %% [markdown]
# ## What was shown
#
# LoRA saves the gradients and the moments of the weights that are not trained. QLoRA saves bytes of
# the frozen weights, too. Both keep all activations here.
#
# **What to try.**
#
# 1. `[:16]` in the line of `examples`: use one row. How many times smaller is LoRA's step now?
# 2. `LoraConfig(r=8, ...)`: use r = 64. Which parts grow?
# 3. `target_modules=("all-linear",)`: use `("q_proj", "v_proj")`. Do the activations shrink?
#
# **Where to stop with a debugger.** `memory.memory_estimate` (`minilora/evaluation/memory.py`):
# look at `activation_floats` for full fine-tuning and for LoRA. Why are they equal?
#
# **Exercises.** memory-estimate, predict-parameters.
#
# **Further reading.** LoRA, Sec. 4.2: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Chen et
# al. 2016 recompute activations: [arXiv:1604.06174](https://arxiv.org/abs/1604.06174).
