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
# **Continues:** [lesson 9](../../09_the_settings.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** the studies [Other methods than
# LoRA](the_siblings.py) and [Methods at their best rate](methods_at_their_best_rate.py).

# %%
from functools import partial

import numpy as np

from lessons.helpers.common import (
    HOLDS,
    OPEN,
    QUICK,
    belongs,
    figure,
    of,
    read_sweep,
    table,
    verdict,
)
from lessons.studies.methods import best_rates_sweep as experiment
from minilora.evaluation import plot

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
# The best rate of full fine-tuning is 0.005, and that of IA³ and the head 0.2: 40 times as much.
# </details>

# %%
chosen = {method: experiment.best_rate(sweep, method) for method in METHODS}
by_rate = {}
for method, rate in chosen.items():
    by_rate.setdefault(rate, []).append(method)
table(["best rate", "methods"], [[f"{r:g}", ", ".join(by_rate[r])] for r in sorted(by_rate)])

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
# **Predict.** Which methods learn the task? Does the number of parameters decide?
#
# <details><summary>Answer</summary>
# Full fine-tuning, LoRA, its variants and VeRA answer more than half of the questions in the mean,
# the others less than a twentieth. The head has more than twice the parameters of LoRA and answers
# no question. IA³ has an eighth of LoRA's, and a lower mean loss than the head.
# </details>

# %%
LEVEL = 1 - 0.05 / 91


def better(a, b):
    """Return the verdict on the claim "a has a lower test loss than b"."""
    return verdict(np.log(at_best(b, "loss") / at_best(a, "loss")), level=LEVEL)


order = sorted(METHODS, key=lambda method: at_best(method, "loss").mean())
cells = []
for place, method in enumerate(order):
    loss, exact = at_best(method, "loss"), 100 * at_best(method, "exact_match")
    not_worse = [m for m in order[place + 1 :] if better(method, m) != HOLDS]
    cells.append([
        method, int(at_best(method, "trained")[0]), f"{loss.mean():.3f} ± {loss.std(ddof=1):.3f}",
        f"{exact.mean():.1f} ± {exact.std(ddof=1):.1f}", ", ".join(not_worse),
    ])  # fmt: skip
table(["method", "trained", "test loss", "exact (%)", "not shown better than"], cells)

# %%
xlabel, title = "test loss (nats per token)", "Each method at its best rate: a point per seed"
with figure("all_best_rates", xlabel, "", title) as axes:
    for i, method in enumerate(order):
        losses, color = at_best(method, "loss"), plot.LINES[1 if method in VIRTUAL else 0]["color"]
        axes.plot(losses, [i] * len(losses), "o", color=color, markersize=4, alpha=0.7)
        axes.plot([losses.mean()] * 2, [i - 0.3, i + 0.3], color=color)
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
# the answers are right. This agrees with the   claim, but a small model alone cannot show what a
# large one does: not shown either way.
# - **The number of parameters** does not decide. BitFit (1,488) is better than the head (12,288).
# - **Within LoRA's family**, no difference is shown (the study [Methods at their best rate](methods_at_their_best_rate.py)).
# - **VeRA** is better than the bottleneck, and DoRA is better than VeRA. Between VeRA and LoRA, no
#   difference is shown. VeRA trains as many parameters as LoRA.
# - **Other settings** give other scores. In the study [Other methods than LoRA](the_siblings.py), with 16 rows per step and another rate of
#   the bottleneck, it answers 19 ± 23 % of the questions, and BitFit 12 ± 10 % (five seeds).

# %%
# Checks
OTHERS = set(METHODS) - {*FAMILY, "vera", "full"}
for low_rank in FAMILY:
    for method in OTHERS:
        assert better(low_rank, method) == HOLDS, f"{low_rank} must be better than {method}"
    for other in set(FAMILY) - {low_rank}:
        assert better(low_rank, other) == OPEN, f"{low_rank} and {other} must not be separable"
assert better("vera", "bottleneck") == HOLDS and better("lora", "vera") == OPEN
assert better("dora", "vera") == HOLDS, "DoRA must be better than VeRA"
for method in ("vera", "bottleneck", "bitfit"):
    assert all(better(method, virtual) == HOLDS for virtual in VIRTUAL), f"{method}: better"
assert better("ia3", "prefix") == HOLDS and better("ia3", "prompt") == OPEN
assert better("ia3", "head") == HOLDS, "IA³ must be better than the head"
assert better("full", "lora") == HOLDS, "full fine-tuning must be better than LoRA"
assert better("bitfit", "head") == HOLDS, "1,488 parameters must be better than 12,288"
trained = {method: at_best(method, "trained")[0] for method in METHODS}
assert (trained["bitfit"], trained["head"], trained["lora"]) == (1488, 12288, 5472)
assert trained["vera"] == trained["lora"] and round(trained["lora"] / trained["ia3"]) == 8
learned = {m for m in METHODS if at_best(m, "exact_match").mean() > 0.5}
assert learned == {*FAMILY, "vera", "full"}, "full fine-tuning and the low-rank methods learn it"
assert all(at_best(m, "exact_match").mean() < 0.05 for m in OTHERS), "and no other"
assert at_best("head", "exact_match").max() == 0, "the head answers no question"
GROUPS = ("full",), FAMILY, ("vera",), ("bottleneck", "bitfit"), ("ia3", "prompt", "prefix")
GROUPS += (("norm", "head", "p-tuning"),)
places = [order.index(method) for group in GROUPS for method in sorted(group, key=order.index)]
assert places == list(range(14)), "the six groups, in the order of the means"
for method in ("prompt", "prefix"):
    mean = at_best(method, "loss").mean()
    assert 0.9 * 0.457 < mean < 1.1 * 0.457, f"{method}: only the form is learned"
for method, percent in (("bottleneck", "19 ± 23"), ("bitfit", "12 ± 10")):
    exact = 100 * np.array(of(read_sweep("siblings"), "exact_match", method=method))
    assert f"{exact.mean():.0f} ± {exact.std(ddof=1):.0f}" == percent, (
        f"{method} in the study `the_siblings`"
    )
    assert len(exact) == 5, "five seeds"
assert max(at_best(method, "exact_match").max() for method in VIRTUAL) < 0.01

if not QUICK:  # a run of the sweep again
    live = experiment.run(("bitfit", chosen["bitfit"], 2))["loss"]
    print(f"bitfit: loss {live:.3f}, in the sweep {at_best('bitfit', 'loss')[0]:.3f}")
    cell, rival = at_best("bitfit", "loss"), at_best("prompt", "loss")
    assert belongs(live, cell, rival), "the run must agree with the sweep"

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
# 2. `compare.TABLE`: the study [Other methods than LoRA](the_siblings.py) has 16 rows per step. Which best rates differ, and why?
# 3. `experiment.run(("ia3", 0.2, 0))`: train IA³ for 2,000 steps. Does it learn the task?
#
# **Exercises.** ia3, prefix, lora-count.
#
# **Further reading.** Lester et al. 2021: [arXiv:2104.08691](https://arxiv.org/abs/2104.08691).
# Ding et al. 2023 compare such groups on a hundred tasks:
# [doi:10.1038/s42256-023-00626-4](https://doi.org/10.1038/s42256-023-00626-4).
