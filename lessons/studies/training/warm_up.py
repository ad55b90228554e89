# %% [markdown]
# # Warm-up
#
# **The question.** What does a warm-up of the learning rate prevent?
#
# **Continues:** [lesson 5](../../05_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** the study [Accumulation and the
# batch](accumulation.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, figure
from lessons.studies.training.optimization_sweep import case, show, train
from minilora import LoraConfig, TrainConfig, data, optim
from minilora.evaluation import plot
from minilora.training import gradient_at
from minilora.tree import arrays, flatten, tree_map

settings = TrainConfig(iters=200, batch_size=32, learning_rate=4e-3, mask_prompt=True)
config, base, tokenizer = minilora.load("micro")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, base = minilora.get_peft_model(base, lora_config, 0)
mixed = data.load_rows("notes", "valid")[:100] + data.load_rows("questions", "valid")[:100]
bins = [[example] for example in data.encode_rows(mixed, tokenizer, settings)[0]]

# %% [markdown]
# ## The first step
#
# At the first step, Adam's corrected moments are g and g², so (Kingma and Ba 2015, Alg. 1)
#
# $$\Delta\theta = -\eta\,\frac{g}{|g| + \varepsilon} \approx -\eta\,\mathrm{sign}(g)$$
#
# The step has nearly full length in every entry where |g| is far above ε. Its signs are those of
# one batch's gradient. Warm-up makes the first steps short.
#
# **Predict.** How far does the first step move a parameter whose gradient is a thousand times
# smaller than another's? How far does it move `lora_A`?
#
# <details><summary>Answer</summary>
# As far as the other (within 2 %). The matrix A does not move: its gradient contains B, which is
# zero.
# </details>

# %%
ops = minilora.operations(adapters, base)
_, first, _ = gradient_at(adapters, base, bins, 0, config, settings, ops)
start = arrays(adapters)
rates = dict.fromkeys(flatten(start), 4e-3)
moved, _ = optim.adamw(start, first, optim.adamw_init(start), rates, settings)
step = flatten(tree_map(np.subtract, moved, start))
gradients = flatten(first)
of_b = [path for path in step if path.endswith("lora_B")]
g = np.abs(np.concatenate([gradients[path].ravel() for path in of_b]))
d = np.abs(np.concatenate([step[path].ravel() for path in of_b]))
seen = g > 1e-6  # a hundred times Adam's ε
print(f"gradients of lora_B from {g[seen].min():.0e} to {g.max():.0e},", end=" ")
print(f"steps from {d[seen].min():.5f} to {d.max():.5f}")

# %%
# Checks
assert g[seen].max() > 1000 * g[seen].min(), "the gradients must differ a thousandfold"
assert np.allclose(d[seen], 4e-3, rtol=0.02), "every step must be η (ε/|g| is at most a hundredth)"
for path in step:
    assert path in of_b or not step[path].any(), f"{path} must not move: B is zero"

# %% [markdown]
# ## Runs without warm-up
#
# **Predict.** Is the held-out loss higher without warm-up, at our rate and at ten times that?
#
# <details><summary>Answer</summary>
# At our rate, it is lower with four of five seeds. At ten times the rate, it is higher.
# </details>

# %%
USUAL = "all as it is"  # 200 steps of 16 rows at 4e-3, a warm-up of 12 steps


CASES = (USUAL, "no warm-up", "ten times the rate", "ten times, no warm-up")
show(*CASES)

# %%
title = "Warm-up taken away, at two learning rates, five seeds"
with figure("warm_up", "held-out loss (nats per token)", "", title, height=2.4) as axes:
    for y, name in enumerate(reversed(CASES)):
        axes.plot(
            case(name),
            [y] * len(case(name)),
            color=plot.LINES[0]["color"],
            marker="o",
            markersize=4,
        )
    axes.set(xscale="log", yticks=range(len(CASES)), yticklabels=reversed(CASES))

# %% [markdown]
# ![Without warm-up: much the same loss at our rate, a higher loss at ten times
# it](../../../figures/warm_up.png)
#
# **Not missed here.** At our rate, the run without warm-up has a lower loss with four of five
# seeds, and with the fifth a loss that is about a tenth higher. No step has a loss above 4.5. At
# ten times the rate, warm-up is missed: without it, the loss rises above 5 on the way, and ends
# higher with every seed.

# %%
# Checks
assert case("no warm-up", "worst").max() < 4.5, (
    "the worst step, near the start (the runs begin at 4)"
)
cold, usual = case("no warm-up"), case(USUAL)
assert (cold < usual).sum() == 4, "without warm-up, a lower loss with four of five seeds"
assert 1.05 < (cold / usual).max() < 1.15, "and with the fifth, a loss that is a tenth higher"
fast, fast_cold = "ten times the rate", "ten times, no warm-up"
assert case(fast_cold).min() > 1.2 * case(fast).max(), "at ten times the rate, warm-up must help"
worst, worst_cold = case(fast, "worst").max(), case(fast_cold, "worst").min()
assert worst_cold > 5 > worst, "and without it the loss must rise above the start"
if not QUICK:  # two runs of the sweep again
    for name, other in ((fast, fast_cold), (fast_cold, fast)):
        again = train(name)
        loss, steps = again.scores["loss"], [row["loss"] for row in again.history]
        assert agrees(loss, case(name), case(other)), f"{name}: {loss}, in the sweep {case(name)}"
        assert (max(steps) > 5) == (name == fast_cold), f"{name}: the worst step is {max(steps)}"
        assert 3.5 < steps[0] < 4.5, f"the first loss is that of the base: {steps[0]}"

# %% [markdown]
# ## What was shown
#
# Adam's first step moves each entry of `lora_B` whose gradient is far above ε by nearly the
# learning rate. At ten times our rate, runs of `micro` (0.1 million parameters) end with a higher
# loss without warm-up. At ours, four of five end with a lower one.
#
# **What to try.**
#
# 1. `g > 1e-6`: use 1e-9. Which steps are shorter than η, and why?
# 2. `batch_size=32` in `settings`: use 1. How many signs of the first step change?
# 3. `show(USUAL, ...)`: add "five times the rate". Is its worst step above the start?
#
# **Where to stop with a debugger.** `optim.adamw`, its inner function `step`: `m / denominator` at
# step 1 is ±1.
#
# **Exercises.** warmup, adamw.
#
# **Further reading.** Kingma and Ba 2015: [arXiv:1412.6980](https://arxiv.org/abs/1412.6980). Goyal
# et al. 2017, on warm-up: [arXiv:1706.02677](https://arxiv.org/abs/1706.02677). Liu et al. 2019,
# *On the Variance of the Adaptive Learning Rate*:
# [arXiv:1908.03265](https://arxiv.org/abs/1908.03265).
