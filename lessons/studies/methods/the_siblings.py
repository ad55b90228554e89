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
from minilora.lessons.helpers import common, compare
from minilora.lessons.helpers.common import QUICK, agrees, short
from minilora.lessons.helpers.compare import TABLE
from minilora.tree import num_parameters

model, tokenizer = minilora.load("micro")
config = model.config
tokens = [tokenizer.encode("Ada keeps a pink kite in the barn. Who, what, where?")]
VIRTUAL = ("prefix", "prompt", "p-tuning")

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
    distance[name] = np.abs(logits - bare).max()
    cells.append([name, trained[name], f"{distance[name]:.1e}"])
common.table(["method", "trained", "largest change of a logit"], cells)

# %% [markdown]
# **Answer.** All except those with virtual tokens, and PiSSA, which differs by rounding: it takes W
# apart and adds the parts up again. The others start at a zero (LoRA's B, VeRA's b, the second
# matrix of the bottleneck, BitFit's biases) or at a one (IA³, and DoRA's m/‖W‖). Every token
# attends to the virtual tokens, so they change the output from the start.
#
# ## What they learn, and what they forget
#
# Each method trains for 200 steps with five seeds (`siblings_sweep.csv`), at a rate that was the
# best in a sweep of its own with one seed. "Own text" is the loss on held-out notes of the base's
# own language.
#
# **Predict.** Which method forgets most? Does a method that learns less also forget less?

# %%
# Picture
sweep = common.read_sweep("siblings")
loss, exact, after = (
    {name: np.array(common.of(sweep, column, method=name)) for name in TABLE}
    for column in ("loss", "exact_match", "notes_after")
)
xlabel, ylabel = "held-out loss (nats per token)", "own text (nats per byte)"
title = "Learned and forgotten: mean and standard deviation of five seeds"
with common.figure("siblings", xlabel, ylabel, title) as axes:
    for name in TABLE:
        x, y = loss[name].mean(), after[name].mean()
        color = plot.LINES[1 if name in VIRTUAL else 0]["color"]
        bars = after[name].std(ddof=1), loss[name].std(ddof=1)  # of y and x
        axes.errorbar(x, y, *bars, "o", color=color, elinewidth=0.5)
        axes.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log")
before = sweep[0]["notes_before"]
forgotten = {name: after[name].mean() - before for name in TABLE}
times = forgotten["full"] / forgotten["lora"]
print(f"own text before: {before:.3f}; full forgets {times:.1f} times as much as LoRA")

# %% [markdown]
# **Answer.** The prefix forgets most on average, and answers no question. So "what learns less
# forgets less" does not hold here: the prefix forgets more than each low-rank method, with every
# seed. Full fine-tuning, which trains most, comes second.
#
# ![Own text over task loss: the prefix learns little, and forgets most on
# average](../../../figures/siblings.png)
#
# - With this many parameters of `micro`, the low-rank methods (LoRA, LoRA+, PiSSA, DoRA and VeRA)
#   answer most questions on average. The others, except full fine-tuning, answer fewer than three
#   of ten on average. The scores are in [a table of the guide](../../guide/methods.md).
# - Full fine-tuning trains all parameters, has the lowest mean loss, and forgets about three times
#   as much as LoRA.
#
# ## What was shown
#
# On `micro` (0.1 million parameters, five seeds), the low-rank methods and full fine-tuning answer
# most questions on average. The others answer fewer than three of ten on average.
#
# **What to try.**
#
# 1. `compare.BUDGET` in `compare.sized`: use 20,000. Which method gets which size?
# 2. `compare.Job("lora", ...)`: run "dora" with the seeds 0 to 2. How far apart are they?
# 3. `forgotten`: print it for all methods, in order.
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

# %%
# Checks
assert trained == expected, "the numbers of parameters must be those of the formulas"
for name in TABLE:
    assert (distance[name] > 0) == (name in (*VIRTUAL, "pissa")), f"{name}: {distance[name]}"
assert distance["pissa"] < 1e-3 < 1 < min(distance[name] for name in VIRTUAL), "PiSSA: rounding"
low_rank = ("lora", "lora+", "pissa", "dora", "vera")
for name in TABLE:
    right = exact[name].mean()
    learns = name in (*low_rank, "full")
    assert (right > 0.5) if learns else (right < 0.3), f"{name}: {right} right answers"
assert exact["prefix"].max() == 0, "the prefix must answer no question"
assert sorted(TABLE, key=forgotten.get)[-2:] == ["full", "prefix"], "they forget most"
for name in low_rank:
    assert after["prefix"].min() > after[name].max(), f"the prefix must forget more than {name}"
assert 2.5 < times < 4, "full must forget about three times as much as LoRA"
assert min(TABLE, key=lambda name: loss[name].mean()) == "full", "full must learn best"
again = compare.run(compare.Job("lora", iters=short(200, 5)))  # a run of the sweep again
for column, seeds in (("loss", loss), ("notes_after", after)):
    agree = QUICK or agrees(again[column], seeds["lora"], seeds["full"])
    assert agree, f"{column} {again[column]}, in the sweep {seeds['lora']}"
