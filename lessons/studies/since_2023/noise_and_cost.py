# %% [markdown]
# # Little data, wrong answers, and memory
#
# **The question.** Does a low rank protect against little or wrong data, and what does the step
# from LoRA to full fine-tuning cost?
#
# The runs are those of the study [LoRA or full fine-tuning](lora_or_full.py): questions (the small
# shift) and a language with permuted letters (the large shift), three or eight seeds.
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** the study [LoRA or full
# fine-tuning](lora_or_full.py).

# %%
import numpy as np

import minilora
from minilora.evaluation.memory import memory_estimate
from minilora.lessons.helpers.common import FAILS, HOLDS, OPEN, QUICK, belongs, claim, table
from minilora.lessons.studies.since_2023 import lora_or_full_sweep as experiment
from minilora.lessons.studies.since_2023.lora_or_full_sweep import column, label
from minilora.tree import flatten, num_parameters

# %% [markdown]
# ## Little data and wrong answers
#
# **Predict.** With 64 rows, which method overfits? If a quarter of the answers is wrong, does a
# small rank protect against them?
#
# <details><summary>Answer</summary>
# On the small shift, both do: their training losses are below a quarter of their held-out losses.
# With more data, wrong answers cost LoRA (r = 8) fewer right answers. With wrong answers, the
# losses of r = 8 and of full fine-tuning are not shown to differ. ("A low rank cannot learn the
# wrong answers" is tempting. But with 64 rows, r = 8 learns its rows by heart as well.)
# </details>

# %%
CASES = (("small", 64, 0), ("large", 64, 0), ("small", 64, 0.25), ("small", 4000, 0),
         ("small", 4000, 0.25))  # fmt: skip
loss, train_loss, exact, cells = {}, {}, {}, []
for shift, rows, noise in CASES:
    for size in (8, "full"):
        case = (shift, rows, noise, size)
        loss[case], train_loss[case], exact[case] = (
            column(name, shift, size, rows, noise) for name in ("loss", "train_loss", "exact_match")
        )
        means = f"{train_loss[case].mean():.4f}", f"{loss[case].mean():.3f}"
        seeds = f"{loss[case].min():.3f} to {loss[case].max():.3f}"
        right = f"{exact[case].mean():.0%}" if shift == "small" else ""
        cells.append([shift, rows, f"{noise:.0%}", label(size), *means, seeds, right])
header = ["shift", "rows", "wrong", "size", "train loss", "held-out loss", "seeds", "exact"]
table(header, cells)


def over_r_8(*case):
    """Return log(loss of full fine-tuning / loss of r = 8), one per seed."""
    return np.log(loss[*case, "full"] / loss[*case, 8])


clean = {rows: exact["small", rows, 0, 8][:3] for rows in (64, 4000)}
wrong = {rows: exact["small", rows, 0.25, 8] for rows in (64, 4000)}
cost = {rows: clean[rows] - wrong[rows] for rows in (64, 4000)}
text = "full over r = 8, > 1 times"
verdicts = {
    "small": claim(f"64 rows, small: {text}", over_r_8("small", 64, 0), times=True),
    "large": claim(f"64 rows, large: {text}", over_r_8("large", 64, 0), times=True),
    "rank, 64": claim(f"64 rows, wrong: {text}", over_r_8("small", 64, 0.25), times=True),
    "rank, 4000": claim(f"4,000 rows, wrong: {text}", over_r_8("small", 4000, 0.25), times=True),
    "data": claim("wrong answers: 4,000 rows answer half more", wrong[4000] - wrong[64], 0.5),
    "cost": claim("wrong answers cost r = 8 fewer of 4,000 rows", cost[64] - cost[4000]),
}

# %% [markdown]
# On this model of 0.1 million parameters and with three seeds:
#
# - Little data, small shift: the training losses of both are below a quarter of their held-out
#   losses. LoRA has the lower held-out loss.
# - Little data, large shift: full fine-tuning has the lower held-out loss, although its held-out
#   loss over its training loss is more than three times that of LoRA.
# - Wrong answers: with more data, they cost LoRA fewer right answers. With 4,000 rows, more than
#   nine of ten are right although a quarter of the training answers is wrong. With 64 rows, less
#   than a quarter are, and more than seven of ten if no training answer is wrong. With wrong
#   answers, the losses of r = 8 and of full fine-tuning are not shown to differ (three seeds).

# %%
# Checks
for size in (8, "full"):
    known = train_loss["small", 64, 0, size] < loss["small", 64, 0, size] / 4
    assert known.all(), f"{size} must know its rows by heart"
for name, expected in (("small", HOLDS), ("large", FAILS), ("data", HOLDS), ("cost", HOLDS)):
    assert verdicts[name] == expected, name
gap, gap_8 = (loss["large", 64, 0, z] / train_loss["large", 64, 0, z] for z in ("full", 8))
assert gap.min() > 3 * gap_8.max(), "large shift: full must overfit far more"
for name in ("rank, 64", "rank, 4000"):
    assert verdicts[name] == OPEN, "the losses of r = 8 and of full must not be shown to differ"
assert wrong[4000].min() > 0.9 and wrong[64].max() < 0.25, "nine of ten, and two of ten"
assert clean[64].min() > 0.7, "without wrong answers, 64 rows must give more than seven of ten"
if not QUICK:  # a run of the sweep again
    live = experiment.run(("small", 64, 0.25, 8, 0))["exact_match"]
    assert belongs(live, wrong[64], wrong[4000]), f"{live:.0%} is not the sweep's"

# %% [markdown]
# ## Memory and files
#
# **Predict.** How many times more bytes of training state (trained weights, gradients, Adam's
# moments) does full fine-tuning need than rank 8?
#
# <details><summary>Answer</summary>
# More than four times on this small model. (Hundreds of times is tempting: with 7 billion
# parameters, it is right. With larger matrices and the same r, the factor is larger.)
# </details>

# %%
model, _ = minilora.load("micro")
STATE = ("trained weights", "their gradients", "Adam's two moments")
state = {}
for size in (8, "full"):
    adapters = experiment.start(model, size, seed=0)
    parts = memory_estimate(adapters, model, tokens=0)
    state[size] = sum(parts[part] for part in STATE)
    print(f"{label(size)}: {num_parameters(adapters):,} trained, {state[size]:,} bytes of state")
print(f"full fine-tuning needs {state['full'] / state[8]:.1f} times the state of r = 8")

# %%
# Checks
assert state["full"] > 4 * state[8], "full must need four times the state of r = 8"
everything = sum(w.size for w in flatten(model.base).values())
assert num_parameters(adapters) == everything, "full fine-tuning must train every number"

# %% [markdown]
# ## What was shown
#
# On a model of 0.1 million parameters, wrong answers cost LoRA (r = 8) fewer right answers with
# more data (three seeds). On the small shift with 4,000 rows, the step from r = 8 to full
# fine-tuning costs more than four times the training state, a file as large as the model per task,
# and more of the base's own language (the study [LoRA or full fine-tuning](lora_or_full.py)). It
# gives a lower loss. More right answers are not shown.
#
# **What to try.**
#
# 1. `CASES`: add `("large", 4000, 0)`. How much does more data help on the large shift?
# 2. `tokens=0` in `memory_estimate`: use 1,200, a step of 16 rows. What is the factor then?
# 3. `minilora.load("micro")`: load "tiny" and compare the bytes of state again.
#
# **Where to stop with a debugger.** `memory.memory_estimate` (which line grows with the batch?).
#
# **Exercises.** memory-estimate, lora-count.
#
# **Further reading.** Biderman et al. 2024, *LoRA Learns Less and Forgets Less*:
# [arXiv:2405.09673](https://arxiv.org/abs/2405.09673).
