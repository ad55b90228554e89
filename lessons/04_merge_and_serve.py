# %% [markdown]
# # 4. Merge and serve
#
# **The question.** An adapter is trained. How is it used: separate from the base, one of several,
# or merged into the weights? What does each way change?
#
# Each way is tried with two small adapters. The study [The cost of
# serving](studies/serving/the_cost_of_serving.py) measures the speed of each way.
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lessons 1 and 2.

# %%
import numpy as np

import minilora
from minilora import nf4
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers.common import QUICK, short, table
from minilora.lessons.studies.serving.combining_sweep import backwards, fit, forwards, held_out
from minilora.methods import several
from minilora.methods.compose import combine
from minilora.rounding import round_to
from minilora.tree import named_leaves

rng = np.random.default_rng(0)
model, words = minilora.load("micro")
norm = np.linalg.norm


def loss(adapters, examples):
    """Return the held-out loss of the base with an adapter ({} for none), nats per token."""
    return minilora.evaluate(adapters, model, examples)["loss"]


# %% [markdown]
# ## Several adapters, one base
#
# Two adapters are trained (r = 4, all seven projections). One answers "Who, what, where?", the
# other "Where, what, who?". Each is a tree of its own, and both use the *same* base.
#
# **Predict.** How many bytes does the second adapter add, as a share of the base?
#
# <details><summary>Answer</summary>
# Its own factors, about a ninth of this small base. ("As much as the base" is tempting,
# because full fine-tuning needs a second model.) To switch, pass the other adapter.
# </details>

# %%
iters = short(100, 10)
before = {path: w.tobytes() for path, w in named_leaves(model.base)}
first = fit(model, forwards, 0, iters=iters)  # who, what, where?
second = fit(model, backwards, 100, iters=iters)  # where, what, who?
tasks = {"who, what, where?": held_out(forwards), "where, what, who?": held_out(backwards)}
scores = {name: loss(adapters, tasks[name]) for name, adapters in zip(tasks, (first, second))}
print("held-out losses:")
for name, score in scores.items():
    print(f"  {name} {score:.3f}, without the adapter {loss({}, tasks[name]):.3f}")
print(f"base {nbytes(model.base):,} bytes, each adapter {nbytes(first):,}")

# %%
# Checks
for path, w in named_leaves(model.base):
    assert before[path] == w.tobytes(), f"{path}: the base must be unchanged"
assert 0.1 < nbytes(first) / nbytes(model.base) < 0.12, "an adapter: about a ninth of the base"
if not QUICK:
    for name in tasks:
        assert scores[name] < loss({}, tasks[name]) / 4, f"{name}: it must be learned"

# %% [markdown]
# ## One adapter per row
#
# Each *row* of a batch can have its own adapter, or none. Below, six rows use three adapters (the
# third is `{}`, none) in one call.
#
# **Predict.** Six rows of one batch use three adapters. How many products with a weight W of the
# base does this need: one, three or six? By how much do the logits differ from those of six
# separate calls?
#
# <details><summary>Answer</summary>
# One: W serves all rows, and only A and B are gathered per row, so A has the shape (rows, r, in).
# (Three is tempting: one per adapter, as if each were merged.) The logits differ by rounding at
# most.
# </details>

# %%
adapters = [first, second, {}]
batch = np.array([example.tokens[:40] for example in tasks["who, what, where?"][:6]])
adapter_of_row = [0, 1, 2, 1, 0, 2]
mixed = minilora.forward(several.per_row(adapters, adapter_of_row), model, batch)
alone = []
for row, i in enumerate(adapter_of_row):
    alone.append(minilora.forward(adapters[i], model, batch[row : row + 1])[0])
difference = np.abs(mixed - np.array(alone)).max() / np.abs(mixed).max()
print(f"six rows, three adapters, one call: they differ by {difference:.1e} of the largest logit")

# %%
# Checks
assert difference < 21 * 128 * 2**-24, "21 projections of at most 128 terms, each rounded once"
wrong = minilora.forward(several.per_row(adapters, adapter_of_row[::-1]), model, batch)
assert np.abs(wrong - np.array(alone)).max() / np.abs(mixed).max() > 0.01, "adapters must matter"

# %% [markdown]
# ## Combining
#
# The sum of two updates is one update again, with the ranks added up (here, B₁ and
# B₂ contain their s):
#
# $$B_1 A_1 + B_2 A_2 = [B_1\; B_2] \begin{bmatrix} A_1 \\ A_2 \end{bmatrix}$$
#
# **Predict.** Is B₁ + B₂ times A₁ + A₂ the same? And does a model with the exact sum of both
# updates answer both questions?
#
# <details><summary>Answer</summary>
# No: (B₁ + B₂)(A₁ + A₂) also has B₁A₂ and B₂A₁. And no: on each task, the exact sum has a much
# higher loss than the adapter of the task. ("Yes" is tempting, because nothing is lost in the sum.
# But each adapter was trained without the other one.)
# </details>

# %%
off, combined = {}, {}
for kind in ("cat", "linear"):  # factors side by side, or added
    combined[kind], errors = combine([first, second], [1.0, 1.0], kind)
    off[kind] = max(errors.values())
    print(f"{kind}: off by at most {off[kind]:.0e} of the sum of the updates")
both = {name: loss(combined["cat"], tasks[name]) for name in tasks}
for name in tasks:
    print(f"  {name} {both[name]:.3f} with the exact sum, {scores[name]:.3f} alone")

# %% [markdown]
# The study [Averaging and stacking adapters](studies/serving/averaging_and_stacking.py) has
# averages, and an adapter that is trained on top of another one.

# %%
# Checks
assert off["cat"] < 1e-6 and off["linear"] > 0.1, "only factors side by side give the sum"
if not QUICK:
    for name in tasks:
        assert both[name] > 2 * scores[name], f"{name}: the sum must disturb both"

# %% [markdown]
# ## Merging, and undoing it
#
# W' = W + ΔW and W = W' − ΔW are exact on paper (LoRA, Sec. 4). But a stored weight is rounded: to
# 24 binary digits in float32, to 11 in float16, to 8 in bfloat16. A change below half of its last
# digit is lost. A server that switches adapters by merging and unmerging rounds twice per switch.
#
# ![Number lines of what can be stored near a weight. A small update moves the weight in float32
# and in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays the
# same.](../figures/drawings/merging_precision.svg)
#
# **Predict.** The update is 1 % of the weight. How large is the error of merging in bfloat16, as a
# share of the update? After ten switches, is the error ten times that of one?
#
# <details><summary>Answer</summary>
# About a sixth: rounding to 8 digits moves a weight by 0.17 % of its size in the mean, and the
# update is 1 %. From one switch to ten, the error does not grow in float32, float16 and bfloat16.
# ("Ten times" is tempting. But the next switch with the same ΔW rounds to the same numbers again.)
# In NF4, however, it grows about tenfold here: the codes stay, but where two weights of a block
# share the code of the largest one, each switch can make the absmax larger.
# </details>

# %%
n = short(512, 256)
W = 0.02 * rng.standard_normal((n, n), np.float32)


def update_of(size):
    """Return a ΔW of rank 8 with ‖ΔW‖ = size·‖W‖."""
    d = rng.standard_normal((n, 8), np.float32) @ rng.standard_normal((8, n), np.float32)
    return d * np.float32(size * norm(W) / norm(d))


def stored(w, kind):
    """Return w as it is read back after it was stored as `kind`."""
    if kind in ("nf4", "nf4-dq"):
        return nf4.quantize(w, double_quant=kind == "nf4-dq").dequantize()
    return round_to({"w": w}, kind)["w"]


d, errors = update_of(0.01), {}
for kind in ("float32", "float16", "bfloat16", "nf4", "nf4-dq"):
    start = stored(W, kind)
    lost = norm(stored(start + d, kind) - (np.float64(start) + d)) / norm(d)
    w = start
    switches = []
    for _ in range(10):
        w = stored(stored(w + d, kind) - d, kind)
        switches.append(norm(w - start) / norm(d))
    errors[kind] = lost, switches[0], switches[9]
cells = [[kind, *(f"{x:.1e}" for x in numbers)] for kind, numbers in errors.items()]
table(["weight as", "error of merging / ‖ΔW‖", "after one switch", "after ten"], cells)

# %%
# Checks
assert errors["float32"][0] < 1e-4, "float32 loses almost nothing"
assert 0.01 < errors["float16"][0] < 0.04, "float16 loses some per cent of the update"
assert 0.1 < errors["bfloat16"][0] < 0.25, "bfloat16 loses about a sixth"
for kind in ("nf4", "nf4-dq"):
    assert 0.9 < errors[kind][0] < 1.2, f"{kind} loses all of it: the error is that of the update"
for kind, (_, one, ten) in errors.items():
    if kind.startswith("nf4"):
        assert 8 < ten / one < 12, f"{kind}: the error must grow about tenfold, not by {ten / one}"
    else:
        assert ten < 1.1 * one, f"{kind}: the error may not grow"

# %% [markdown]
# The study [Merging into four bits](studies/serving/merging_into_four_bits.py) explains the growth
# in NF4. The safe way: keep the base and the adapter, and merge from them each time.
#
# ## What was shown
#
# Adapters share one base, and each row can have its own. A sum of two updates is exact, and yet on
# each task it has more than twice the loss of the task's adapter. Merging rounds: with an update of
# 1 % of random weights, the error is about a sixth of the update in bfloat16, and about the whole
# update in NF4.
#
# **What to try.**
#
# 1. `update_of(0.01)`: use 0.001. In which types is anything left of the update?
# 2. `adapter_of_row`: give all rows the same adapter. How large is the difference?
# 3. `for _ in range(10)`: use two different updates in turn. Does the error of bfloat16 grow?
#
# **Where to stop with a debugger.** `several.per_row` (the shapes of the gathered factors),
# `lora.merge`.
#
# **Exercises.** lora-merge, test-merge, combine-exact.
#
# **Further reading.** LoRA, Sec. 4: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Sheng et
# al. 2023, *S-LoRA*, serve thousands of adapters:
# [arXiv:2311.03285](https://arxiv.org/abs/2311.03285).
