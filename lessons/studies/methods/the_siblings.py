# %% [markdown]
# # Other methods than LoRA
#
# **The question.** What do the other methods of parameter-efficient fine-tuning train, and what do
# they learn and forget?
#
# A method is defined by the parameters it adds, their initialization, and the line that uses them.
# The study [Prompts and prefixes](prompts_and_prefixes.py) asks why prompts answer nothing here.
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 0 and 1.

# %%
import numpy as np

import minilora
from minilora.evaluation import plot
from minilora.lessons.helpers import compare
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    deviation,
    figure,
    of,
    read_sweep,
    short,
    table,
)
from minilora.lessons.helpers.compare import TABLE
from minilora.tree import flatten, num_parameters

model, tokenizer = minilora.load("micro")
config = model.config
tokens = [tokenizer.encode("Ada keeps a pink kite in the barn. Who, what, where?")]

# %% [markdown]
# ## The same number of parameters
#
# `TABLE` has a row per method. If a method has a size (a rank, a width, a number of [virtual
# tokens](../../guide/glossary.md)), the size is chosen so that the number of parameters is nearest
# to 5,472. This is LoRA on all projections at r = 2.
#
# L is the number of layers, d the width, f the MLP's, k that of keys, V the size of the vocabulary.
#
# **Predict.** Before the first step, which methods compute exactly what the base computes?
#
# <details><summary>Answer</summary>
# All except those with virtual tokens (prefix, prompt, P-tuning), and PiSSA, which differs by
# rounding. Every token attends to the virtual tokens, so they change the output from the start.
# ("All" is tempting, because LoRA starts at the base.)
# </details>

# %%
L, V = config.num_hidden_layers, config.vocab_size
d, f = config.hidden_size, config.intermediate_size
k = config.num_key_value_heads * config.head_dim
in_plus_out, out = 9 * d + 2 * k + 3 * f, 3 * d + 2 * k + 2 * f  # of the seven projections


def expected_parameters(method, size):
    """Return the number of trained parameters; size is r, the width, or the virtual tokens."""
    counts = {
        "lora": L * size * in_plus_out,
        "dora": L * size * in_plus_out + L * out,
        "vera": L * (d + k + 2 * size),
        "bottleneck": 2 * L * (2 * d * size + size + d),
        "prefix": 2 * L * size * k,
        "prompt": size * d,
        "p-tuning": (size + 3 * d + 3) * d,
        "ia3": L * (2 * k + f),
        "bitfit": L * out,
        "norm": (2 * L + 1) * d,
        "head": V * d,
        "full": V * d + L * (2 * d * d + 2 * k * d + 3 * d * f) + (2 * L + 1) * d,
    }
    return counts[method]


bare = minilora.forward({}, model, tokens)
trained, expected, distance, cells = {}, {}, {}, []
for name, entry in TABLE.items():
    method = compare.sized(entry, model, compare.BUDGET)
    start = minilora.get_peft_model(model, method)  # PiSSA returns another base
    size = getattr(method, entry.size or "num_virtual_tokens")
    trained[name] = num_parameters(start.adapters)
    expected[name] = expected_parameters(entry.method, size)
    logits = minilora.forward(start.adapters, start.model, tokens)
    distance[name] = np.abs(logits - bare).max() / np.abs(bare).max()
    leaf = ".".join(next(iter(flatten(start.adapters))).split(".")[-2:])
    cells.append([name, trained[name], f"{distance[name]:.1e}", leaf])
table(["method", "trained", "distance from the base", "a leaf"], cells)

# %% [markdown]
# A zero (LoRA's B, VeRA's b, the second matrix of the bottleneck, BitFit's biases) or a one (IA³,
# and DoRA's m/‖W‖) gives exactly the base. PiSSA takes W apart and adds the parts up again, which
# gives the base up to rounding. Virtual tokens change the model from the start.

# %%
# Checks
VIRTUAL = ("prefix", "prompt", "p-tuning")
for name in TABLE:
    assert trained[name] == expected[name], f"{name}: the number must be the formula's"
    assert (distance[name] > 0) == (name in (*VIRTUAL, "pissa")), f"{name}: {distance[name]}"
assert distance["pissa"] < 1e-5, "PiSSA must be the base up to rounding"
assert min(distance[name] for name in VIRTUAL) > 0.1, "virtual tokens must change the model"

# %% [markdown]
# ## What they learn, and what they forget
#
# Each method trains for 200 steps with five seeds (`siblings_sweep.csv`), at a rate that was the
# best in a sweep of its own with one seed. "Own text" is the loss on held-out notes of the base's
# own language.
#
# **Predict.** Which method forgets most? Does a method that learns less also forget less?
#
# <details><summary>Answer</summary>
# The prefix: it forgets most on average, and answers no question. So "learns less, forgets less"
# does not hold here. (Full fine-tuning is tempting: it trains most. It comes second.)
# </details>

# %%
sweep = read_sweep("siblings")
loss, exact, before, after = (
    {name: np.array(of(sweep, column, method=name)) for name in TABLE}
    for column in ("loss", "exact_match", "notes_before", "notes_after")
)
forgotten = {name: after[name] - before[name] for name in TABLE}

cells = []
for name in TABLE:
    scores = deviation(loss[name]), deviation(100 * exact[name], 0), deviation(after[name])
    cells.append([name, trained[name], *scores])
table(["method", "trained", "held-out loss", "exact (%)", "own text"], cells)
quotient = forgotten["full"].mean() / forgotten["lora"].mean()
print(f"before: {before['lora'][0]:.3f}; full forgets {quotient:.1f} times as much as LoRA")

# %%
xlabel, ylabel = "held-out loss (nats per token)", "own text (nats per byte)"
with figure("siblings", xlabel, ylabel, "What is learned and what is forgotten") as axes:
    for name in TABLE:
        x, y = loss[name].mean(), after[name].mean()
        axes.plot(x, y, "o", color=plot.LINES[1 if name in VIRTUAL else 0]["color"])
        axes.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log")

# %% [markdown]
# ![Own text over task loss: the prefix learns little, and forgets most on
# average](../../../figures/siblings.png)
#
# - With this many parameters of `micro`, the low-rank methods answer most questions on average. The
#   others, except full fine-tuning, answer fewer than three of ten on average. The order of the
#   low-rank methods is not shown: DoRA's runs alone go from a third of the answers to all, and
#   VeRA's from a twentieth to nine tenths.
# - Full fine-tuning trains all parameters, has the lowest mean loss, and forgets about three times
#   as much as LoRA.
# - "What learns less forgets less" does not hold here: the prefix answers nothing, and forgets more
#   than each low-rank method, with every seed.
#
# Without the adapter, the base is there again, bit for bit. With PiSSA, keep the base.

# %%
# Checks
low_rank = ("lora", "lora+", "pissa", "dora")
worst = max(loss[name].max() for name in low_rank)
for name in set(TABLE) - {*low_rank, "vera", "full"}:
    assert loss[name].mean() > worst, f"{name} must learn less than the low-rank methods"
    assert exact[name].mean() < 0.3, f"{name} must answer few questions"
dora, vera = exact["dora"], exact["vera"]
assert dora.min() < 0.34 and dora.max() == 1, "DoRA's runs: from a third of the answers to all"
assert vera.min() < 0.06 and 0.85 < vera.max() < 0.9, "VeRA's runs: from a twentieth to nine tenths"
for name in VIRTUAL:
    assert exact[name].max() == 0, f"{name} must answer no question"
assert 2.5 < quotient < 4, "full must forget about three times as much as LoRA"
assert forgotten["full"].min() > 2 * forgotten["lora"].max(), "in every seed"
assert after["prefix"].min() > after["pissa"].max() + 1, "the prefix must forget more"
assert max(TABLE, key=lambda name: forgotten[name].mean()) == "prefix", "most on average"
for name in (*low_rank, "vera"):
    assert exact[name].mean() > 0.5, f"{name} must answer most questions"
    assert after["prefix"].min() > after[name].max(), f"the prefix must forget more than {name}"
    assert loss["full"].max() < loss[name].min(), "full must learn best"
for name, other in (("lora", "full"), ("full", "lora")):  # two runs of the sweep again
    again = compare.run(compare.Job(name, iters=short(200, 5)))
    for column, seeds in (("loss", loss), ("notes_after", after)):
        agree = QUICK or agrees(again[column], seeds[name], seeds[other])
        assert agree, f"{name}: {column} {again[column]}, in the sweep {seeds[name]}"

# %% [markdown]
# ## What was shown
#
# On `micro` (0.1 million parameters, five seeds), the low-rank methods and full fine-tuning answer
# most questions on average. The others answer fewer than three of ten on average.
#
# **What to try.**
#
# 1. `compare.BUDGET` in `compare.sized`: use 20,000. Which method gets which size?
# 2. `compare.Job("lora", ...)`: run "dora" with the seeds 0 to 2. How far apart are they?
# 3. `forgotten["full"]`: print `forgotten` for all methods, in order.
#
# **Where to stop with a debugger.** `layers.hooks_of` (what does it return for a projection without
# a magnitude?), `dora.apply`.
#
# **Exercises.** ia3, prefix, dora-norm, lora-count.
#
# **Further reading.** Houlsby et al. 2019 (bottleneck):
# [arXiv:1902.00751](https://arxiv.org/abs/1902.00751). Ben Zaken et al. 2022 (BitFit):
# [arXiv:2106.10199](https://arxiv.org/abs/2106.10199). Liu et al. 2022 (IA³):
# [arXiv:2205.05638](https://arxiv.org/abs/2205.05638). Liu et al. 2024 (DoRA):
# [arXiv:2402.09353](https://arxiv.org/abs/2402.09353). Kopiczko et al. 2024 (VeRA):
# [arXiv:2310.11454](https://arxiv.org/abs/2310.11454). He et al. 2022, a comparison:
# [arXiv:2110.04366](https://arxiv.org/abs/2110.04366).
