# %% [markdown]
# # All methods at their best rate
#
# **The question.** How far apart are LoRA, IA³, prompts, biases and the other methods, if each has
# its own best learning rate and eight seeds?
#
# Two claims about groups of methods:
#
# - [PEFT's documentation](https://huggingface.co/docs/peft/main/methods/overview): adapter methods
#   (LoRA, bottleneck, …) can in general express more than methods with virtual tokens, and come
#   closer to full fine-tuning.
# - Lester et al. 2021: prompt tuning comes close to full fine-tuning only in models with billions
#   of parameters.
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** the studies [Other methods than
# LoRA](the_siblings.py) and [Methods at their best rate](methods_at_their_best_rate.py).

# %%
import numpy as np

from minilora.evaluation import plot
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import HOLDS, OPEN, QUICK
from minilora.lessons.studies.methods import best_rates_sweep as experiment

sweep = common.read_sweep("best_rates")
METHODS, FAMILY, VIRTUAL = experiment.RATES, experiment.FAMILY, ("prefix", "prompt", "p-tuning")

# %% [markdown]
# ## The best rates
#
# The runs are those of the study [Methods at their best rate](methods_at_their_best_rate.py):
# `micro`, the questions, 200 steps of 8 rows. LoRA and its variants have r = 2. If another method
# has a size (bottleneck, virtual tokens), its number of parameters is as near to LoRA's 5,472 as
# possible. P-tuning keeps its 16 virtual tokens. Each method is tried at several rates: 1, 2 and 5
# times powers of ten. The rate with the lowest mean loss on the validation split is chosen.
#
# **Predict.** How far apart are the lowest and the highest of the 14 best rates?

# %%
chosen = {method: experiment.best_rate(sweep, method) for method in METHODS}
for method in sorted(chosen, key=chosen.get):
    print(f"{method:>10}: best rate {chosen[method]:g}")

# %% [markdown]
# **Answer.** The best rate of full fine-tuning is 0.005, and that of IA³ and the head 0.2: 40 times
# as much. If a paper compares methods at one rate, its result can depend on this rate.
#
# ## The scores
#
# The scores are of the test split and of eight seeds, which chose nothing. A method is called
# better than another if the interval of the mean paired difference of the log losses lies above
# zero. There are 14·13/2 = 91 pairs, and 95 % intervals may be wrong for about five of them. So the
# level is 1 − 0.05/91 (Bonferroni): then even one wrong verdict is unlikely.
#
# **Predict.** Which of 14 methods learn the questions? Does the number of parameters decide?

# %%
loss, exact, trained = (
    {method: experiment.at_best(sweep, method, column) for method in METHODS}
    for column in ("loss", "exact_match", "trained")
)


def better(a, b):
    """Return the verdict on the claim "a has a lower test loss than b"."""
    return common.verdict(np.log(loss[b] / loss[a]), level=1 - 0.05 / 91)


# %%
# Picture
order = sorted(METHODS, key=lambda method: loss[method].mean())
xlabel, title = "test loss (nats per token)", "Each method at its best rate: a point per seed"
with common.figure("all_best_rates", xlabel, "", title) as axes:
    for i, method in enumerate(order):
        color = plot.LINES[1 if method in VIRTUAL else 0]["color"]
        axes.plot(loss[method], [i] * 8, "o", color=color, markersize=4, alpha=0.7)
    axes.set(xscale="log", yticks=range(len(order)), yticklabels=order)
    axes.invert_yaxis()

# %%
# Table
cells = []
for place, method in enumerate(order):
    not_worse = [m for m in order[place + 1 :] if better(method, m) != HOLDS]
    percent = common.deviation(100 * exact[method], 1)
    cells.append([method, int(trained[method][0]), percent, ", ".join(not_worse)])
common.table(["method", "trained", "exact match (%)", "not shown better than"], cells)

# %% [markdown]
# **Answer.** Full fine-tuning, LoRA, its variants and VeRA answer more than half of the questions
# in the mean, the others less than a twentieth. The number of parameters does not decide: BitFit
# (1,488) has a lower loss than the head (12,288), which answers no question. (The last column has
# the later methods for which "better" is not shown.) Of a model of 0.1 million parameters:
#
# ![Test loss of all methods, eight seeds](../../../figures/all_best_rates.png)
#
# - **More expressive than virtual tokens**, measured by the loss, holds here for LoRA, its
#   variants, VeRA, the bottleneck and BitFit. For IA³, it holds against the prefix, and it is not
#   shown either way against the prompt.
# - **Prompts need large models** is not shown either way. The prompt's loss is near 0.457, the loss
#   of knowing only the form of an answer (the study [Prompts and
#   prefixes](prompts_and_prefixes.py)). This agrees with the claim, but a small model alone cannot
#   show what a large one does.
# - **Within LoRA's family**, no difference is shown.
#
# ## What was shown
#
# With tuned rates and eight seeds, LoRA and its variants have a lower mean loss than virtual tokens
# on a model of 0.1 million parameters. Between LoRA and its variants, no difference of the loss is
# shown.
#
# **What to try.**
#
# 1. `experiment.best_rate`: choose each rate by the test split. Do the groups change?
# 2. `TABLE` in `compare.py`: the study [Other methods than LoRA](the_siblings.py) has 16 rows per
#    step. Which best rates differ, and why?
# 3. `experiment.run(("ia3", 0.2, 0))`: train IA³ for 2,000 steps. Does it learn the task?
#
# **Exercises.** ia3, prefix, lora-count.
#
# **Further reading.** Lester et al. 2021: [arXiv:2104.08691](https://arxiv.org/abs/2104.08691).
# Ding et al. 2023 compare such groups on a hundred tasks:
# [doi:10.1038/s42256-023-00626-4](https://doi.org/10.1038/s42256-023-00626-4).

# %%
# Checks
for method, best in chosen.items():
    assert METHODS[method][0] < best < METHODS[method][-1], f"{method}: the best rate is inside"
assert len(METHODS) == 14 and round(chosen["ia3"] / chosen["full"]) == 40, "40 times as much"
assert chosen["full"] == min(chosen.values()), "full fine-tuning has the lowest"
assert chosen["ia3"] == chosen["head"] == max(chosen.values()), "IA³ and the head the highest"
pairs = [(a, b) for a in (*FAMILY, "vera", "bottleneck", "bitfit") for b in VIRTUAL]
for a, b in [*pairs, ("ia3", "prefix"), ("bitfit", "head")]:
    assert better(a, b) == HOLDS, f"{a} must have a lower loss than {b}"
for a, b in [("ia3", "prompt"), *((a, b) for a in FAMILY for b in FAMILY if a != b)]:
    assert better(a, b) == OPEN, f"{a} and {b} must not be separable"
assert [trained[method][0] for method in ("bitfit", "head", "lora")] == [1488, 12288, 5472]
for method in METHODS:
    right = exact[method].mean()
    learns = method in (*FAMILY, "vera", "full")
    assert (right > 0.5) if learns else (right < 0.05), f"{method}: {right} right answers"
assert exact["head"].max() == 0, "the head answers no question"
assert 0.9 < loss["prompt"].mean() / 0.457 < 1.1, "only the form is learned"
if not QUICK:  # a run of the sweep again
    again = experiment.run(("bitfit", chosen["bitfit"], 2))["loss"]
    assert common.belongs(again, loss["bitfit"], loss["prompt"]), "it must agree with the sweep"
