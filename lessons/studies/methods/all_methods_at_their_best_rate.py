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
from functools import partial

import numpy as np

from minilora.evaluation import plot
from minilora.lessons.helpers.common import (
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    deviation,
    figure,
    of,
    read_sweep,
    table,
    verdict,
)
from minilora.lessons.studies.methods import best_rates_sweep as experiment

sweep = read_sweep("best_rates")
METHODS, FAMILY, VIRTUAL = experiment.RATES, experiment.FAMILY, ("prefix", "prompt", "p-tuning")
at_best = partial(experiment.at_best, sweep)

# %% [markdown]
# ## The best rates
#
# The runs are those of the study [Methods at their best rate](methods_at_their_best_rate.py):
# `micro`, the questions, 200 steps of 8 rows. LoRA and its variants have r = 2. If another method
# has a size (bottleneck, virtual tokens), its number of parameters is as near to LoRA's 5,472 as
# possible. P-tuning keeps its 16 virtual tokens. Each method is tried at four to six rates: 1, 2
# and 5 times powers of ten. The rate with the lowest mean loss on the validation split is chosen.
#
# **Predict.** How far apart are the lowest and the highest of the 14 best rates?
#
# <details><summary>Answer</summary>
# The best rate of full fine-tuning is 0.005, and that of IA³ and the head 0.2: 40 times as much. (A
# factor of 4 is tempting, if you know only LoRA and full fine-tuning.)
# </details>

# %%
chosen = {method: experiment.best_rate(sweep, method) for method in METHODS}
cells = [[method, f"{chosen[method]:g}"] for method in sorted(chosen, key=chosen.get)]
table(["method", "best rate"], cells)

# %% [markdown]
# If a paper compares methods at one rate, its result can depend on this rate (the study [Methods at
# their best rate](methods_at_their_best_rate.py)).

# %%
# Checks
for method, rate in chosen.items():
    tried = {row["rate"] for row in sweep if row["method"] == method}
    assert tried == set(METHODS[method]) and 4 <= len(tried) <= 6, f"{method}: four to six rates"
    assert all(f"{r:e}"[0] in "125" and float(f"{r:.0e}") == r for r in tried), "1, 2, 5"
    assert min(METHODS[method]) < rate < max(METHODS[method]), f"{method}: the best rate is inside"
assert len(METHODS) == 14 and round(chosen["ia3"] / chosen["full"]) == 40, "40 times as much"
assert chosen["full"] == min(chosen.values()), "full fine-tuning has the lowest"
assert chosen["ia3"] == chosen["head"] == max(chosen.values()), "IA³ and the head the highest"

# %% [markdown]
# ## The scores
#
# The scores are of the test split and of eight seeds, which chose nothing. The methods are in the
# order of their mean loss. A method is called better than a later one if the interval of the mean
# paired difference of the log losses lies above zero. There are 14·13/2 = 91 pairs, and 95 %
# intervals may be wrong for about five of them. So the level is 1 − 0.05/91 (Bonferroni): then even
# one wrong verdict is unlikely. The last column has the later methods for which it is not shown.
#
# **Predict.** Which of 14 methods learn the questions? Does the number of parameters decide?
#
# <details><summary>Answer</summary>
# Full fine-tuning, LoRA, its variants and VeRA answer more than half of the questions in the mean,
# the others less than a twentieth. The head has more than twice the parameters of LoRA and answers
# no question. IA³ has an eighth of LoRA's, and a lower mean loss than the head. ("Yes" is tempting:
# full fine-tuning has most parameters, and the lowest mean loss.)
# </details>

# %%
loss, exact, trained = (
    {method: at_best(method, column) for method in METHODS}
    for column in ("loss", "exact_match", "trained")
)


def better(a, b):
    """Return the verdict on the claim "a has a lower test loss than b"."""
    return verdict(np.log(loss[b] / loss[a]), level=1 - 0.05 / 91)


order = sorted(METHODS, key=lambda method: loss[method].mean())
cells = []
for place, method in enumerate(order):
    not_worse = [m for m in order[place + 1 :] if better(method, m) != HOLDS]
    scores = deviation(loss[method]), deviation(100 * exact[method], 1)
    cells.append([method, int(trained[method][0]), *scores, ", ".join(not_worse)])
table(["method", "trained", "test loss", "exact (%)", "not shown better than"], cells)

# %%
xlabel, title = "test loss (nats per token)", "Each method at its best rate: a point per seed"
with figure("all_best_rates", xlabel, "", title) as axes:
    for i, method in enumerate(order):
        color = plot.LINES[1 if method in VIRTUAL else 0]["color"]
        axes.plot(loss[method], [i] * 8, "o", color=color, markersize=4, alpha=0.7)
    axes.set(xscale="log", yticks=range(len(order)), yticklabels=order)
    axes.invert_yaxis()

# %% [markdown]
# ![Test loss of all methods, eight seeds](../../../figures/all_best_rates.png)
#
# In the order of the means: full fine-tuning; LoRA and its variants; VeRA; bottleneck and BitFit;
# IA³, prompt and prefix; the norms, the head and P-tuning. Of a model of 0.1 million parameters:
#
# - **More expressive than virtual tokens**, measured by the loss, holds here for LoRA, its
#   variants, VeRA, the bottleneck and BitFit. For IA³, it holds against the prefix, and it is not
#   shown either way against the prompt.
# - **Prompts need large models.** The prompt's loss is near 0.457, the loss of knowing only the
#   form of an answer (the study [Prompts and prefixes](prompts_and_prefixes.py)). At most 1 % of
# the answers are right. This agrees with the claim, but a small model alone
#   cannot show what a large one does: not shown either way.
# - **The number of parameters** does not decide. BitFit (1,488) is better than the head (12,288).
# - **Within LoRA's family**, no difference is shown (the study [Methods at their best
#   rate](methods_at_their_best_rate.py)).
# - **VeRA** is better than the bottleneck, and DoRA is better than VeRA. Between VeRA and LoRA, no
#   difference is shown. VeRA trains as many parameters as LoRA.
# - **Other settings** give other scores. In the study [Other methods than LoRA](the_siblings.py),
#   with 16 rows per step and another rate of the bottleneck, it answers 19 ± 23 % of the questions,
#   and BitFit 12 ± 10 % (five seeds).

# %%
# Checks
OTHERS = set(METHODS) - {*FAMILY, "vera", "full"}
for low_rank in FAMILY:
    for method in OTHERS:
        assert better(low_rank, method) == HOLDS, f"{low_rank} must be better than {method}"
    for other in set(FAMILY) - {low_rank}:
        assert better(low_rank, other) == OPEN, f"{low_rank} and {other} must not be separable"
for method in ("vera", "bottleneck", "bitfit"):
    assert all(better(method, virtual) == HOLDS for virtual in VIRTUAL), f"{method}: better"
for a, b in (
    ("vera", "bottleneck"), ("dora", "vera"), ("ia3", "prefix"), ("ia3", "head"),
    ("full", "lora"), ("bitfit", "head"),
):  # fmt: skip
    assert better(a, b) == HOLDS, f"{a} must have a lower loss than {b}"
for a, b in (("lora", "vera"), ("ia3", "prompt")):
    assert better(a, b) == OPEN, f"{a} and {b} must not be separable"
assert [trained[m][0] for m in ("bitfit", "head", "lora", "vera")] == [1488, 12288, 5472, 5472]
assert round(trained["lora"][0] / trained["ia3"][0]) == 8, "IA³ has an eighth of LoRA's"
learned = {method for method in METHODS if exact[method].mean() > 0.5}
assert learned == {*FAMILY, "vera", "full"}, "full fine-tuning and the low-rank methods learn it"
assert all(exact[method].mean() < 0.05 for method in OTHERS), "and no other"
assert exact["head"].max() == 0, "the head answers no question"
GROUPS = ("full",), FAMILY, ("vera",), ("bottleneck", "bitfit"), ("ia3", "prompt", "prefix")
GROUPS += (("norm", "head", "p-tuning"),)
places = [order.index(method) for group in GROUPS for method in sorted(group, key=order.index)]
assert places == list(range(14)), "the six groups, in the order of the means"
for method in ("prompt", "prefix"):
    assert 0.9 < loss[method].mean() / 0.457 < 1.1, f"{method}: only the form is learned"
for method, percent in (("bottleneck", "19 ± 23"), ("bitfit", "12 ± 10")):
    other = 100 * np.array(of(read_sweep("siblings"), "exact_match", method=method))
    assert deviation(other, 0) == percent, f"{method}: other settings"
    assert len(other) == 5, "five seeds"
assert max(exact[method].max() for method in VIRTUAL) < 0.01, "at most 1 % with virtual tokens"
if not QUICK:  # a run of the sweep again
    again = experiment.run(("bitfit", chosen["bitfit"], 2))["loss"]
    assert belongs(again, loss["bitfit"], loss["prompt"]), "the run must agree with the sweep"

# %% [markdown]
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
