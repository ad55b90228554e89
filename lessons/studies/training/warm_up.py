# %% [markdown]
# # Warm-up
#
# **The question.** What does a warm-up of the learning rate prevent?
#
# **Continues:** [lesson 5](../../05_adamw_and_the_rate.py).
#
# **Time:** 10 seconds to run, five minutes to read. **You need:** lesson 5. `case`, `show` and
# `again` are those of the study [Accumulation and the batch](accumulation.py): `micro`, 0.1 million
# parameters, five seeds.

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK
from lessons.studies.training.optimization_sweep import USUAL, again, case, show
from minilora import LoraConfig, TrainConfig, data, optim
from minilora.layers import value_and_grad
from minilora.tree import arrays, flatten, tree_map

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
# ![The learning rate over 100 steps: linear warm-up, then constant, linear to zero, or half a
# cosine.](../../../figures/drawings/schedules.svg)
#
# **Predict.** How far does the first step move a parameter whose gradient is a thousand times
# smaller than another's? How far does it move `lora_A`?
#
# <details><summary>Answer</summary>
# As far as the other (within 2 %). A thousandth is tempting, because without Adam's division by |g|
# it would be so. The matrix A does not move: its gradient contains B, which is zero.
# </details>

# %%
config, base, tokenizer = minilora.load("micro")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, base = minilora.get_peft_model(base, lora_config, 0)
settings = TrainConfig(mask_prompt=True)
rows, _ = data.encode_rows(data.load_rows("questions", "valid")[:32], tokenizer, settings)
batch = data.collate([[example] for example in rows])
_, grads = value_and_grad(minilora.loss)(adapters, base, batch, config)
start = arrays(adapters)
rates = dict.fromkeys(flatten(start), 4e-3)
after, _ = optim.adamw(start, grads, optim.adamw_init(start), rates, settings)
gradients = flatten(grads)
step = flatten(tree_map(np.subtract, after, start))
of_b = [path for path in step if path.endswith("lora_B")]
g, d = (np.abs(np.concatenate([of[p].ravel() for p in of_b])) for of in (gradients, step))
seen = g > 1e-6  # a hundred times Adam's ε
print(f"gradients of lora_B from {g[seen].min():.0e} to {g.max():.0e},", end=" ")
print(f"steps from {d[seen].min():.5f} to {d[seen].max():.5f}")

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
# At our rate, it is lower with four of five seeds. At ten times the rate, it is higher. (Higher at
# both is tempting, because nearly every recipe has a warm-up.)
# </details>

# %%
FAST, COLD = "ten times the rate", "ten times, no warm-up"
show(USUAL, "no warm-up", FAST, COLD)

# %% [markdown]
# **Not missed here.** At our rate, the run without warm-up has a lower loss with four of five
# seeds, and with the fifth a loss that is about a tenth higher. No step has a loss above 4.5. At
# ten times the rate, warm-up is missed: without it, the loss rises above 5 on the way, and ends
# higher with every seed.

# %%
# Checks
ratio = case("no warm-up") / case(USUAL)
assert case("no warm-up", "worst").max() < 4.5, "the worst step, near the start (runs begin at 4)"
assert (ratio < 1).sum() == 4, "without warm-up, a lower loss with four of five seeds"
assert 1.05 < ratio.max() < 1.15, "and with the fifth, a loss that is a tenth higher"
assert case(COLD).min() > 1.2 * case(FAST).max(), "at ten times the rate, warm-up must help"
worst = case(FAST, "worst").max()
assert case(COLD, "worst").min() > 5 > worst, "and without it the loss must rise above the start"
if not QUICK:
    for name, other in ((FAST, COLD), (COLD, FAST)):
        steps = [row["loss"] for row in again(name, other).history]
        assert (max(steps) > 5) == (name == COLD), f"{name}: the worst step is {max(steps)}"
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
# 2. `[:32]`: use other rows, `[32:64]`. How many signs of the first step change?
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
