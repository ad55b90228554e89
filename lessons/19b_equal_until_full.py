# %% [markdown]
# # 19b. Equal until it is full
#
# **The question.** Does LoRA equal full fine-tuning as long as its capacity is sufficient?
#
# The second claim of *LoRA Without Regret* (Schulman et al. 2025): LoRA equals full fine-tuning
# until the data exceed its capacity. Then it learns less per step.
# [Lesson 19c](19c_batch_size_and_place.py) tests two more claims: about batch sizes and places.
#
# ![Two claims as sketches: the best rates, and ranks that follow full fine-tuning until their
# capacity is used](../figures/drawings/regret_claims.svg)
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lesson 19.

# %%
import numpy as np
from common import QUICK, figure, of, read_sweep, spread, table
from sweeps import regret

from minilora.evaluation import plot

STEPS = (25, 50, 100, 200)
SIZES = (1, 8, 64, "full")
NAMES = {1: "r = 1", 8: "r = 8", 64: "r = 64", "full": "full"}


# %% [markdown]
# ## Equal until the capacity is used?
#
# The runs are those of lesson 19: the questions, 8 rows per step. Each length of run has its best
# rate. Rank 64 trains 175,104 numbers, more than the 95,568 of the model.
#
# **Predict.** Which rank follows full fine-tuning longest? Is r = 64 as good after 200 steps?
#
# <details><summary>Answer</summary>
# r = 8 and r = 64 are as good as full fine-tuning for 100 steps, up to the spread of the seeds. r =
# 1 is behind from the start. After 200 steps, r = 64 is behind as well, and not better than r = 8.
# </details>

# %%
loss = {(size, n): regret.at_best_rate(size, n) for size in SIZES for n in STEPS}
table(
    ["mean held-out loss", *(f"{n} steps" for n in STEPS)],
    [[NAMES[size], *(f"{loss[size, n].mean():.3f}" for n in STEPS)] for size in SIZES],
)

# %%
title = "Each length of run at its best rate: mean and range of five seeds"
with figure("regret_steps", "steps", "held-out loss (nats per token)", title) as axes:
    for size, style, marker in zip(SIZES, plot.LINES, "osD^"):
        means = [loss[size, n].mean() for n in STEPS]
        axes.plot(STEPS, means, marker=marker, markersize=4, label=NAMES[size], **style)
        low, high = ([end(loss[size, n]) for n in STEPS] for end in (np.min, np.max))
        axes.fill_between(STEPS, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", xticks=STEPS, xticklabels=STEPS)
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower left")

# %% [markdown]
# ![Held-out loss over the number of steps for three ranks and full
# fine-tuning](../figures/regret_steps.png)
#
# Up to 100 steps, the seeds of r = 8 and r = 64 overlap with those of full fine-tuning. After 200
# steps, full fine-tuning is ahead with every seed, by less than 0.01 nats per token. But capacity
# is not the reason: r = 64 trains more numbers than the model has.
#
# A task that has no rule, only facts, needs capacity. In `sweeps/capacity.py` (lesson 20), an
# adapter of rank 1 in one layer (912 parameters) sees random letters 500 times, to learn them by
# heart.
#
# **Predict.** The facts have 0.5, 1, 2 and 4 bits per parameter. How much of that is learned?
#
# <details><summary>Answer</summary>
# Nearly all of 0.5, half of 1, a fifth of 2, and a twentieth of 4.
# </details>

# %%
facts = read_sweep("capacity")
rows, learned = [], {}
for n in (10, 19, 38, 76):
    case = {"size": 1, "place": "all", "layer": 1, "facts": n, "steps": 500}
    learned[n], offered = np.array(of(facts, "bits", **case)), of(facts, "offered", **case)[0]
    share = f"{learned[n].mean() / offered:.0%}"
    rows.append([f"{n} facts", f"{offered:.2f}", spread(learned[n]), share])
full = {name: of(facts, name, size="full", facts=76)[0] for name in ("bits", "offered")}
share_full = full["bits"] / full["offered"]
table(["r = 1 in one layer", "bits per parameter", "learned", "share"], rows)
print(f"full fine-tuning, 76 facts: {share_full:.0%} of the bits are learned")

# %%
# Checks
for r in (8, 64):
    for n in (25, 50, 100):
        assert loss[r, n].min() < loss["full", n].max(), f"r = {r}, {n} steps: within the seeds"
    assert loss[r, 200].min() > loss["full", 200].max(), f"r = {r} must be behind at the end"
assert loss[1, 25].min() > loss["full", 25].max(), "r = 1 must be behind from the start"
assert loss[64, 200].mean() > loss[8, 200].mean() / 2, "r = 64 must not be much better than r = 8"
assert learned[10].min() > 0.7 * 0.53 and share_full > 0.9, "below the capacity, all is learned"
assert learned[38].max() < 0.4 * 2, "above it, most is not"

# %%
if not QUICK:  # a run of the sweep again; other processors round differently
    live = regret.run_one(("micro", 8, 8, 4e-3, 0))["loss_100"]
    in_sweep = regret.curve("micro", 8, 100)[1][2, 0]
    print(f"r = 8, 100 steps: loss {live:.3f}, in the sweep {in_sweep:.3f}")
    assert 0.7 < live / in_sweep < 1.4, "the run must agree with the sweep"

# %% [markdown]
# ## What was shown
#
# On the questions, LoRA equals full fine-tuning for 100 steps, up to the spread of the seeds. Then
# it falls behind for another reason than its capacity: a higher rank does not help. Of few facts it
# learns nearly all, and of many facts little. That agrees with the claim, but does not prove it: in
# 1,500 steps it learns more (lesson 20).
#
# **What to try.**
#
# 1. `(10, 19, 38, 76)`: add 152 facts to `CASES` in `sweeps/capacity.py`. Is less learned?
# 2. `STEPS`: in `sweeps/regret.py`, run 400 steps. Does r = 8 stay behind?
# 3. `facts(n, seed)` in `sweeps/capacity.py`: give each answer twelve times the same letter.
#
# **Exercises.** lora-count, lowrank-product.
#
# **Further reading.** [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/).
