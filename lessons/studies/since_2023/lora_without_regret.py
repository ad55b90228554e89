# %% [markdown]
# # LoRA without regret
#
# **The question.** How many times the learning rate of full fine-tuning does LoRA need, and does
# the factor depend on the rank or on the length of the run?
#
# *LoRA Without Regret* (Schulman et al. 2025, Thinking Machines) answers from runs on Llama and
# Qwen models, with α = 32 and a scaling of α/r:
#
# - The best rate of LoRA is about 10 times that of full fine-tuning, and about 15 times in very
#   short runs. It hardly depends on the rank.
# - At its best rate, LoRA learns like full fine-tuning, until its capacity is used.
#
# A [reproduction with
# DistilBERT](https://github.com/thinking-machines-lab/tinker-feedback/issues/67) found about 3.
# The study [Equal until it is full](equal_until_full.py) tests the second claim.
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 7 and 8.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, MethodConfig, TrainConfig, data
from minilora.evaluation import plot
from minilora.layers import value_and_grad
from minilora.lessons.helpers.common import (
    FAILS,
    HOLDS,
    OPEN,
    QUICK,
    agrees,
    best_rates,
    claim,
    figure,
    table,
    verdict,
)
from minilora.lessons.studies.since_2023 import regret_sweep as regret
from minilora.tree import named_leaves

# %% [markdown]
# ## A prediction from the first step
#
# Adam's first step is about −η·sign(gradient). To first order, the loss falls by η times the sum of
# the absolute gradients. For full fine-tuning this is ‖G‖₁, with G = ∂L/∂W. For LoRA, only B has a
# gradient, (α/r)·[G a₁ … G a_r], where a_k are the rows of A. Let n be the number of columns of G.
# The entries of A have variance 1/(3n). An entry of G a_k is a sum of n terms. If the entries of G
# are independent, its size is about 1/√3 of the size of an entry of G. And G a_k is only one
# column, so ‖G a_k‖₁ ≈ ‖G‖₁/(√3·n). The sum over k cancels 1/r:
#
# $$\text{full: } \eta \lVert G \rVert_1 \qquad \text{LoRA: } \eta\,\frac{\alpha}{r} \sum_{k=1}^r
#   \lVert G a_k \rVert_1 \approx \eta\,\frac{\alpha}{\sqrt{3}\,n} \lVert G \rVert_1$$
#
# For the same gain, LoRA needs √3·n/α times the rate. The rank is not in this factor.
#
# **Predict.** By the first step, LoRA needs √3·n/α times the rate of full fine-tuning. What is the
# factor for `micro` (width 48) and `tiny` (width 128) with α = 32?
#
# <details><summary>Answer</summary>
# By the formula 2.6 and 6.9; measured, about 3 and about 8. (The same factor for both is tempting,
# as in the claim. But n, the width, is in the formula.)
# </details>


# %%
RANKS = (1, 8, 64)
NAMES = {1: "r = 1", 8: "r = 8", 64: "r = 64", "full": "full"}


def first_gain(adapter_config):
    """Return the sum of the absolute gradients of the projections, or of A and B, at step 0.

    The gradient of A is zero there.
    """
    adapters, _ = minilora.get_peft_model(model, adapter_config, 0)
    _, gradient = value_and_grad(minilora.loss)(adapters, model, batch)
    return sum(np.abs(g).sum() for path, g in named_leaves(gradient) if "_proj" in path)


factor, cells = {}, []
for name in ("micro", "tiny"):
    model, tokenizer = minilora.load(name)
    rows = data.load_rows("questions", "train")[:32]
    examples, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))
    batch = data.collate([[example] for example in examples])
    full = first_gain(MethodConfig("full"))
    for r in RANKS:
        lora = first_gain(LoraConfig(r=r, lora_alpha=32, target_modules="all-linear"))
        factor[name, r] = full / lora
    width = model.config.hidden_size
    measured = [f"{factor[name, r]:.1f}" for r in RANKS]
    cells.append([f"{name}, width {width}", f"{np.sqrt(3) * width / 32:.1f}", *measured])
table(["factor for an equal first gain", "formula", *(NAMES[r] for r in RANKS)], cells)

# %%
# Checks
for name in ("micro", "tiny"):
    of_ranks = [factor[name, r] for r in RANKS]
    assert max(of_ranks) < 1.3 * min(of_ranks), f"{name}: the factor must not depend on the rank"
assert 2.5 < factor["micro", 8] < 3.5, "width 48 must need about three times the rate"
assert 7 < factor["tiny", 8] < 10, "width 128 must need about eight times the rate"

# %% [markdown]
# ## The best rates
#
# `regret_sweep.py` trains on the questions: 8 rows per step, a constant rate, α = 32, all seven
# projections, with eight seeds for r = 8 and full fine-tuning of `micro`, else with five. A run is
# scored after 25, 50, 100 and 200 steps. Each length has its best rate: the minimum of a parabola
# through the lowest point and its two neighbours, in logarithms of rate and loss.
#
# **Predict.** Do r = 1 and r = 64 have the same best rate? Is the factor larger in short runs?
#
# <details><summary>Answer</summary>
# In the mean, the best rates of r = 1 and r = 64 differ by less than 3 times. The mean factor of
# `micro` is 2.3 after 25 steps and 1.9 after 200 steps. That it is larger in short runs is not
# shown: 2.3 and 1.9 look different, but the interval of their ratio contains 1.
# </details>

# %%
STEPS = (25, 50, 100, 200)


def best_rate(name, size, steps, seeds=regret.CHOOSING):
    """Return the rate at the lowest point of the parabola."""
    return best_rates(*regret.curve(name, size, steps, seeds=seeds))[1]


def log_ratios(name, one, other, steps, seeds=regret.CHOOSING):
    """Return log(best rate of size `one` / that of size `other`), one per seed."""
    rates = [[best_rate(name, size, steps, [seed]) for seed in seeds] for size in (one, other)]
    return -np.diff(np.log(rates), axis=0)[0]


best = {n: [best_rate("micro", size, n) for size in NAMES] for n in STEPS}
cells = [[f"{n} steps", *(f"{rate:.1e}" for rate in rates)] for n, rates in best.items()]
table(["best rate, micro", *NAMES.values()], cells)
factors, ten, verdicts = {}, [], {}
for case in (("micro", 25), ("micro", 200), ("tiny", 25)):
    name, steps = case
    seeds = regret.SEEDS if name == "micro" else regret.CHOOSING
    factors[case] = log_ratios(name, 8, "full", steps, seeds)
    sentence = f"{name}, {steps} steps: r = 8 / full is 7 to 15"
    ten.append(claim(sentence, factors[case], np.log(7), np.log(15), times=True, digits=1))
short_runs, long_runs, of_tiny = factors.values()
verdicts["short"] = claim("micro: 25 steps over 200, > 1 times", short_runs - long_runs, times=True)
for steps in (25, 200):
    of_rank = log_ratios("micro", 64, 1, steps)
    sentence = f"micro, {steps} steps: r = 64 / r = 1 is 1/3 to 3"
    verdicts["rank", steps] = claim(sentence, of_rank, -np.log(3), np.log(3), times=True)
first_step = np.log(factor["tiny", 8]) - of_tiny
verdicts["tiny"] = claim("tiny: predicted factor over measured, > 1 times", first_step, times=True)

# %%
titles, ylabel = ["25 steps", "200 steps"], ["held-out loss (nats per token)", ""]
with figure("regret_rates", "learning rate", ylabel, titles, width=7.6, columns=2) as panels:
    for axes, steps in zip(panels, (25, 200)):
        for (size, name), style in zip(NAMES.items(), plot.LINES):
            rates, losses = regret.curve("micro", size, steps)
            label = name if steps == 200 else None
            axes.plot(rates, losses.mean(axis=1), marker="o", markersize=4, label=label, **style)
            low, high = losses.min(axis=1), losses.max(axis=1)
            axes.fill_between(rates, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log")
        axes.tick_params(which="minor", labelsize=7)
    panels[1].legend(frameon=False, fontsize=8, loc="upper left")

# %% [markdown]
# ![Held-out loss over the learning rate for three ranks and full fine-tuning, after 25 and 200
# steps](../../../figures/regret_rates.png)
#
# On byte-level models of 0.1 and 1 million parameters (the ranges are 95 % intervals of the mean,
# not of single seeds):
#
# - **Ranks.** With 64 times the rank, the best rate of `micro` changes by 0.8 to 2.2 times after 25
#   or 200 steps (five seeds). "Less than 3 times" holds here.
# - **Short runs.** For `micro`, the factor after 25 steps is 0.8 to 1.9 times that after 200: a
#   larger one is not shown.
# - **10 times** does not hold here. For `micro`, the factor is 1.6 to 3.4 times after 25 steps and
#   1.5 to 2.4 times after 200. For `tiny` it is 2.5 to 6.8 times after 25 steps (five seeds). This
#   is no evidence against 10 times in models of billions of parameters.
#
# For 25 steps, the prediction is not shown to be wrong for `micro`, and is too large for `tiny` in
# the mean. For a width of 4,096 (Llama 3.1 8B) and α = 32 the formula gives √3·4096/32 = 222.
# Schulman et al. report about 10. One possible reason: in a larger model, G is concentrated on few
# inputs. Then ‖G‖₁/‖G a_k‖₁ is smaller, and so is the factor. This is not tested here.

# %%
# Checks
assert set(ten) == {FAILS}, "the factor must not be 7 to 15"
for case, x in factors.items():
    assert verdict(x, np.log(1.45), np.log(7)) == HOLDS, f"{case}: the factor must be 1.5 to 7"
assert len(regret.SEEDS) == 8 and len(regret.CHOOSING) == 5, "eight seeds, else five"
means = [f"{np.exp(x.mean()):.1f}" for x in (short_runs, long_runs)]
assert means == ["2.3", "1.9"], "the factors after 25 and after 200 steps"
for steps, (*of_ranks, of_full) in best.items():
    assert of_full < min(of_ranks), f"{steps} steps: LoRA must need the higher rate"
assert verdicts["short"] == OPEN, "a larger factor in short runs must not be shown"
assert verdicts["rank", 25] == HOLDS and verdicts["rank", 200] == HOLDS, "the rank hardly matters"
assert verdicts["tiny"] == HOLDS, "tiny: the prediction must be too large"
assert verdict(np.log(factor["micro", 8]) - short_runs) == OPEN, "micro: it must not be shown wrong"
if not QUICK:  # a run of the sweep again
    live = regret.run(("micro", 8, 8, 2e-3, 0))["loss"]
    _, losses = regret.curve("micro", 8, 200, seeds=regret.SEEDS)
    print(f"r = 8, 200 steps: loss {live:.4f}, in the sweep {losses[1, 0]:.4f}")
    # losses[4] is at ten times the best rate of full: too much
    assert agrees(live, losses[1], losses[4]), "the run must agree with the sweep"

# %% [markdown]
# ## What was shown
#
# On byte-level models of 0.1 and 1 million parameters, the mean best rate of LoRA at r = 8 is 1.5
# to 7 times that of full fine-tuning. For `micro`, r = 1 and r = 64 differ by less than 3 times in
# the mean. So sweep the rate for your model.
#
# **What to try.**
#
# 1. `lora_alpha=32` in the first table: use 8. How do the factors change?
# 2. `best_rate("micro", size, n)`: print it for each seed. How far apart are the seeds?
# 3. `RATES` in `regret_sweep.py`: add 3.2e-2 for `micro`. Which rank learns least at it?
#
# **Exercises.** one-file-init-lora, adamw, lowrank-gradient.
#
# **Further reading.** [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/).
