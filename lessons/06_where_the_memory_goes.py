# %% [markdown]
# # 6. Where the memory goes
#
# **The question.** Where do the bytes of fine-tuning go, and which of them do LoRA and QLoRA save?
#
# **Time:** a second to run, ten minutes to read. **You need:** lessons 0, 1 and 2.

# %%
import minilora
from minilora import LoraConfig, MethodConfig
from minilora.lessons.helpers.common import batch_of, bytes_of_step, questions, table

# %% [markdown]
# ## Seven and 65 billion weights
#
# A step needs its weights, and for each trained number a gradient and Adam's two averages (lesson
# 0, part 6). Here, a weight and its gradient have 16 bits, and an average has 32.
# (PEFT keeps A and B in float32: 16 bytes.)
#
# | | bytes per number |
# |---|---|
# | trained | 2 + 2 + 4 + 4 = **12** |
# | frozen, in 16 bits | **2** |
# | frozen, in NF4 with double quantization (lesson 2) | 4.127/8 = **0.516** |
#
# A step also needs [*activations*](guide/glossary.md): what the forward pass keeps for the backward
# pass.
#
# **Predict.** LLaMA-7B has 6.74 billion weights, of which 6.48 are in projections. With r = 64 on
# all projections, A and B have 0.16 billion numbers. How many GB do full fine-tuning, LoRA and
# QLoRA need, without activations?


# %%
def step(D, F, layers, method, tokens=512, r=64):
    """Return the GB of {part of a step} for a LLaMA; method: "full", "LoRA" or "QLoRA"."""
    projections = layers * (4 * D * D + 3 * D * F)  # q, k, v, o; gate, up, down
    others = 2 * 32_000 * D + (2 * layers + 1) * D  # two matrices for 32,000 tokens; the norms
    if method == "full":
        trained, frozen_bytes = projections + others, 0
    else:
        trained = layers * r * (4 * (D + D) + 3 * (D + F))
        frozen_bytes = (0.516 if method == "QLoRA" else 2) * projections + 2 * others
    parts = {
        "weights": frozen_bytes + 2 * trained,
        "gradients": 2 * trained,
        "Adam": 8 * trained,
        "activations": 2 * tokens * layers * (6 * D + 2 * F),
        "checkpointed": 2 * tokens * (layers * D + 6 * D + 2 * F),
    }
    parts["sum"] = sum(parts.values()) - parts["activations"]  # with checkpointing
    return {part: round(size / 1e9, 1) for part, size in parts.items()}


LLAMAS = {"7B": (4096, 11_008, 32), "65B": (8192, 22_016, 80)}  # D, F, layers
steps = {(name, m): step(*LLAMAS[name], m) for name in LLAMAS for m in ("full", "LoRA", "QLoRA")}
rows = [[*names, *parts.values()] for names, parts in steps.items()]
table(["GB, 512 tokens", "", *steps["7B", "full"]], rows)

# %% [markdown]
# **Answer.** Full: 6.74 · 12 = 80.9 GB. LoRA: 6.74 · 2 + 0.16 · 12 = 15.4 GB. QLoRA: 6.48 · 0.516 +
# 0.26 · 2 + 0.16 · 12 = 5.8 GB, where 0.26 are embedding, head and norms. (The sums of the table
# add the checkpointed activations.)
#
# So LoRA saves ten of twelve bytes of each frozen weight, and QLoRA most of the other two. For
# LLaMA-65B, the QLoRA paper (Sec. 1) says more than 780 GB, and less than 48 with QLoRA: so does
# the table, with these bits. (The study [Memory on paper](studies/memory/memory_on_paper.py)
# derives the formulas from the shapes of the arrays.)
#
# The activations are, per layer and token, at least the two norms' results (2D numbers), q, k and v
# (3D), the input of o_proj (D), gate, and the input of down_proj, from which up is computed again
# by a division (2F, where F is the width of the MLP). With [*gradient
# checkpointing*](guide/glossary.md), only the input of each layer is kept (D), and the backward
# pass computes one layer at a time again.
#
# QLoRA's third part are *paged optimizers*: Adam's averages live in memory that the GPU pages to
# the CPU when a step needs more than the GPU has. (A
# [study](studies/memory/paged_optimizers.py) does it with a file.)
#
# **Predict.** The table has one row of 512 tokens. You train LLaMA-7B with QLoRA on batches of 16
# such rows, on a GPU with 24 GB. Does a step fit, without and with checkpointing?

# %%
sixteen = step(*LLAMAS["7B"], "QLoRA", tokens=16 * 512)
print(sixteen)

# %% [markdown]
# **Answer.** Only with checkpointing, which needs at least 8.7 GB. (The table has no logits,
# another 1.05 GB in float32, and a framework keeps more.) Activations grow with the tokens: without
# checkpointing, they alone have 16 · 1.53 = 24.4 GB.
#
# ## What LoRA does not save
#
# Now a step is measured: of `tiny`, a base of 1.0 million weights that comes with the package (four
# layers, D = 128, F = 512), for 16 rows of 74 tokens. Everything is in float32, so a trained number
# has 16 bytes. With r = 8 on all seven matrices, A and B have 0.09 million numbers.
#
# **Predict.** LoRA trains eleven times fewer numbers. Is its step 11, 4 or 1.3 times smaller?

# %%
model, _ = minilora.load("tiny")
lora = LoraConfig(r=8, target_modules="all-linear")
batch = batch_of(questions()[:16])
starts = {
    "full": minilora.get_peft_model(model, MethodConfig("full")),
    "LoRA": minilora.get_peft_model(model, lora, 0),
    "QLoRA": minilora.get_peft_model(minilora.quantize(model, "nf4-dq"), lora, 0),
}
measured = {name: bytes_of_step(*start, batch) for name, start in starts.items()}
sums = {name: sum(parts.values()) for name, parts in measured.items()}
table(["bytes", *measured["full"], "sum"], [[n, *measured[n].values(), sums[n]] for n in sums])

# %% [markdown]
# **Answer.** Only 1.3 times. Here most bytes are activations, and **LoRA on all seven matrices
# keeps nearly as many as full fine-tuning**: the gradient of A needs the input x of each token, as
# that of W does (lesson 1).
#
# ![LoRA's backward pass: the gradient g of the output gives the gradients of B and A through the
# rank-r bottleneck. The gradient of W is never computed.](../figures/drawings/lora_gradient.svg)
#
# ## What was shown
#
# A trained number needs 12 bytes, a frozen one 2, or half a byte in NF4. LoRA saves the gradients
# and averages of the frozen weights, and QLoRA also most of their bits. Activations grow with the
# tokens, and neither method saves many of them: checkpointing does, for a second forward pass.
#
# **What to try.**
#
# 1. `tokens=16 * 512`: how many rows fit into 24 GB with checkpointing?
# 2. `r=64` in `step`: use r = 8. How many GB does "65B QLoRA" save?
# 3. `target_modules="all-linear"`: use `("q_proj", "v_proj")`. Do the activations shrink?
#
# **Where to stop with a debugger.** `memory.memory_estimate` (`minilora/evaluation/memory.py`):
# look at `activation_floats` for full fine-tuning and for this LoRA. Why are they equal?
#
# **Exercises.** memory-estimate, predict-parameters.
#
# **Further reading.** QLoRA, Sec. 3: [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Chen et
# al. 2016 recompute activations: [arXiv:1604.06174](https://arxiv.org/abs/1604.06174).

# %%
# Checks
for method, gb in {"full": 80.9, "LoRA": 15.4, "QLoRA": 5.8}.items():  # 0.182: checkpointed
    assert abs(steps["7B", method]["sum"] - gb - 0.182) < 0.1, f"{method}: both are rounded to 0.1"
qlora = steps["65B", "QLoRA"]
assert steps["65B", "full"]["sum"] > 780 and qlora["sum"] < 48, "the bounds of the paper"
assert qlora["sum"] - qlora["checkpointed"] + qlora["activations"] > 48, "it needs checkpointing"
logits = 4 * 16 * 512 * 32_000 / 1e9
assert sixteen["sum"] + logits < 24 < sixteen["activations"], "16 rows: only with checkpointing"
assert round(logits, 2) == 1.05, "GB of logits in float32"
full, lora_step, qlora_step = measured.values()
assert full["gradients"] == full["weights"] == full["Adam"] / 2, "4 + 4 + 8 bytes"
assert 11 < full["gradients"] / lora_step["gradients"] < 12, "eleven times fewer numbers"
for parts in (lora_step, qlora_step):
    assert abs(parts["activations"] / full["activations"] - 1) < 0.01, "the same activations"
assert 1.25 < sums["full"] / sums["LoRA"] < 1.35, "the step must be 1.3 times smaller"
# four layers with D = 128 and F = 512; two query heads share a key, so k and v have D/2 numbers
formula = 4 * batch["tokens"].size * 4 * (5 * 128 + 2 * 512)
# a tenth more: the inputs of the loss, one number per norm and head, and Python's own objects
assert 1 < full["activations"] / formula < 1.1, "the formula must count every large array"
