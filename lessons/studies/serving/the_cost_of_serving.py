# %% [markdown]
# # The cost of serving
#
# **The question.** How fast does a model generate with a separate adapter, a merged one, an 8-bit
# or a 4-bit base, for one prompt and for eight at the same time?
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** half a minute to run, ten minutes to read. **You need:** lessons 2 and 4.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora import Model, ModelConfig, kernels
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import lora_adapters, short, table
from minilora.lessons.helpers.pretraining import random_params
from minilora.lessons.studies.serving import late_sweep
from minilora.model import with_adapters
from minilora.tree import named_leaves, num_parameters

rng = np.random.default_rng(0)

# %% [markdown]
# ## Six ways to serve one model
#
# A model of 12.7 million random parameters generates one token after the other. For a single token,
# a 4-bit or 8-bit weight is multiplied directly from its codes (`kernels.weights.matvec`).
# For several tokens, each weight is dequantized first.
#
# `minilora.generate_batch` continues several prompts together. Each step computes one token per
# prompt, and each prompt has its own adapter or none. With "adapter separate", eight prompts have
# eight different adapters.
#
# **Predict.** The 4-bit model has a seventh of the bytes to read. Is it seven times as fast? What
# does an adapter cost in multiplications, and what in time? Is a batch of eight prompts eight times
# as fast as one prompt?

# %%
shape = ModelConfig(
    vocab_size=256, hidden_size=512, intermediate_size=1536, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=4, head_dim=64,
)  # fmt: skip
dense = Model(shape, random_params(shape, rng), kernels.ops)
quantized, eight_bit = (minilora.quantize(dense, scheme) for scheme in ("nf4-dq", "int8"))
adapters = [lora_adapters(dense, b=1, seed=seed) for seed in range(8)]  # one per prompt
nothing = [{}] * 8
WAYS = {
    "dense": (nothing, dense),
    "dense, adapter separate": (adapters, dense),
    "dense, adapter merged": (nothing, minilora.merge(adapters[0], dense)),
    "int8": (nothing, eight_bit),
    "NF4": (nothing, quantized),
    "NF4, adapter separate": (adapters, quantized),
}
prompts = rng.integers(256, size=(8, 1)).tolist()  # eight prompts of one token
tokens = short(24, 4)


def speed(adapters, model, n):
    """Return the tokens per second of n prompts together: the fastest of three runs."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        minilora.generate_batch(adapters[:n], model, prompts[:n], max_tokens=tokens)
        seconds.append(time.perf_counter() - start)
    return n * tokens / min(seconds)


cells = []
for name, (own, model) in WAYS.items():
    one, eight = speed(own, model, 1), speed(own, model, 8)
    size = nbytes(model.base) + nbytes(own[0])
    cells.append([name, size, f"{one:.0f}", f"{eight:.0f}", f"{eight / one:.1f}"])
table(["", "bytes", "tokens/s, one prompt", "eight prompts", "ratio"], cells)

in_base = sum(w.size for path, w in named_leaves(dense.base) if "proj" in path)
in_adapter = num_parameters(adapters[0])
print(f"multiplications per token in projections: {in_base:,}", end=", ")
print(f"in the adapter: {in_adapter:,}, which is {in_adapter / in_base:.1%}")

# %% [markdown]
# **Answer.** It depends on the machine. **A seventh of the bytes need not be a seventh of the
# time**, because each code has to be decoded. How fast this is depends on the processor: with
# AVX-512, one instruction decodes sixteen codes ([speed and
# memory](../../guide/speed-and-memory.md#what-bounds-a-step)). The 8-bit model reads a quarter of
# the bytes, and a conversion to float32 decodes its codes.
#
# A step for eight prompts reads and decodes each weight once, as a step for one prompt does, and
# multiplies eight times as often. So compare the column "ratio" with 8, and the three ways to store
# the weights with each other in both columns. (No check depends on the speeds. They vary if the
# machine does something else at the same time. The bytes are those of the base and of one adapter.)
#
# A separate adapter has less than 4 % of the multiplications, but two small products per
# projection, which may cost more of the time. A merged adapter has none of them (LoRA, Sec. 4).
#
# ## An adapter that begins late
#
# A usual adapter changes the keys and values of every token that it reads. So if several adapters
# read one long text, each needs a cache of its own. An *activated LoRA* ([Greenewald et al.
# 2025](https://arxiv.org/abs/2504.12397)) is active only from its own tokens on. The base alone
# reads the text before, so one cache serves all adapters, and the base. The paper reports that
# answers stay as good.
#
# The rows of `micro` (0.1 million parameters) have a sentence of 34 bytes, and then a question and
# its answer. Here, the second adapter begins at the question, in training, too.
#
# **Predict.** How far are the keys of the sentence from the base's, in each of the three layers,
# with a usual adapter? Is an adapter as good if it begins at the question?

# %%
usual, base = late_sweep.trained("everywhere", 8e-3, seed=1, steps=short(200, 20))
sentences = common.batch_of(common.questions("valid")[:20])["tokens"][:, : late_sweep.BEGIN]
of_base = late_sweep.cached(base, sentences)
changes = []
for own, shared in zip(late_sweep.cached(with_adapters(usual, base), sentences), of_base):
    changes.append(np.linalg.norm(own.k - shared.k) / np.linalg.norm(shared.k))
print("change of the keys by layer:", ", ".join(f"{change:.0%}" for change in changes))

# %%
# Picture
sweep = common.read_sweep("late")
losses, right = {}, {}
for label, training, use in (
    ("usual", "everywhere", "everywhere"), ("begins late", "late", "late"),
    ("usual, used late", "everywhere", "late"),
):  # fmt: skip
    runs = [row for row in sweep if row["training"] == training and row["seed"] != 0]
    losses[label] = np.array([row[f"loss_{use}"] for row in runs])
    right[label] = np.array([row[f"right_{use}"] for row in runs])
    plt.semilogy(np.full(8, len(losses)), losses[label], "o", fillstyle="none")
ticks = [f"{label}\n{np.median(share):.0%} right" for label, share in right.items()]
plt.xticks(range(1, 4), ticks)
plt.ylabel("held-out loss, nats per token")
plt.title("eight seeds; right answers: medians")
plt.show()

# %% [markdown]
# **Answer.** By 10, 31 and 68 %: more from layer to layer. With the late adapter, they are the
# base's, bit for bit, because the base computes them.
#
# That it is as good **does not hold here**. With each of eight seeds, the late adapter has a higher
# loss, 2.8 to 28 times. Its median of right answers is about 90 %; one seed has 7 %. A possible
# reason: in the cache of the sentence, the base keeps what continues a sentence, not what answers a
# question. And an adapter that was trained from the first token on fails if it is used late.
#
# ## What was shown
#
# A separate adapter can be switched without a change of the base, and needs more products. A
# smaller base has fewer bytes to read, and more to decode. A batch reads each weight once for all
# prompts. Which way is the fastest depends on the machine, so measure it. Adapters that begin late
# share the cache of the text before them, and answer worse on `micro` (0.1 million parameters).
# (The study [Merging into four bits](merging_into_four_bits.py) compares losses of merged models.)
#
# **What to try.**
#
# 1. `b=1` in `lora_adapters`: add `r=64`. By how much does the speed with an adapter fall?
# 2. `size=(8, 1)` in `prompts`: prompts of 200 tokens. How much slower is each way?
# 3. `hidden_size=512`: use 128 with 2 heads of 64. Which way is the fastest now?
#
# **Where to stop with a debugger.** `kernels.weights.matmul`: one row is multiplied directly
# from the codes; for several rows the weight is dequantized.
#
# **Exercises.** linear-4bit, lora-merge.
#
# **Further reading.** Pope et al. 2022, *Efficiently Scaling Transformer Inference*:
# [arXiv:2211.05102](https://arxiv.org/abs/2211.05102). Frantar et al. 2024, *MARLIN*, 4-bit
# kernels: [arXiv:2408.11743](https://arxiv.org/abs/2408.11743).

# %%
# Checks
in_32, in_8, in_4 = (nbytes(model.base) for model in (dense, eight_bit, quantized))
assert 12.65e6 < num_parameters(dense.base) < 12.75e6, "12.7 million parameters"
assert 6.5 < in_32 / in_4 < 7.5, "the 4-bit model must have a seventh"
assert 3.7 < in_32 / in_8 < 4.1, "the 8-bit model must have a quarter"
assert in_adapter < 0.04 * in_base, "the adapter has less than 4 % of the multiplications"
assert np.abs(np.array(changes) - (0.10, 0.31, 0.68)).max() < short(0.05, 1), "of each layer"
assert np.all(np.diff(changes) > 0), "more from layer to layer"
late, plain = losses["begins late"], losses["usual"]
assert (late > 2.7 * plain).all() and (late < 28 * plain).all(), "a late one has a higher loss"
assert 0.87 < np.median(right["begins late"]) < 0.93 and right["begins late"].min() == 0.07
assert right["usual"].min() == 1 and right["usual, used late"].max() < 0.1, "trained as it is used"
if not common.QUICK:  # a run of the sweep again
    again = late_sweep.run(("late", 4e-3, 1))["loss_late"]
    for other in (plain, losses["usual, used late"]):
        assert common.agrees(again, late, other), f"{again} is not the sweep's loss"
