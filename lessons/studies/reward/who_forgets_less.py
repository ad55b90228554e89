# %% [markdown]
# # Who forgets less, and why?
#
# **The question.** A model can learn a task from rewards for its own answers, or by imitating given
# answers. Which way forgets less at the same reward, and is the way itself the reason?
#
# *RL's Razor* (Shenfeld et al. 2025) reports that reinforcement learning forgets less than
# imitation at the same accuracy. The paper's reason is not the method itself: forgetting follows
# KL(base‖trained), the divergence of the trained model from its base on the new task, with R² =
# 0.96 in a toy experiment and 0.71 with a language model. A model that samples its own answers
# stays near its base. *Self-Distillation Enables Continual Learning* (Shenfeld et al. 2026) also
# forgets less, with demonstrations that are turned into answers in the model's own words.
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, a quarter of an hour to read. **You need:** the study [Does a reward
# need rank?](does_reward_need_rank.py), and what a Kullback-Leibler divergence is.

# %%
import math

import numpy as np

import minilora
from minilora.evaluation import plot
from minilora.lessons.helpers import common, echoes, rollouts
from minilora.lessons.helpers.common import HOLDS, QUICK, belongs, claim, of, short, spread, table
from minilora.lessons.studies.reward import who_forgets_less_sweep as experiment

model, tokenizer = minilora.load("micro")
rows = echoes.rows("test", 64)

# %% [markdown]
# ## Three forms of one answer
#
# An answer gets the reward 1 if it names the place. The base names it in its own form, "In the
# barn." Imitation can teach this form, or another one: the near form differs in one word, and the
# foreign form is unlike all that the base writes. Each form gets the full reward.
#
# **Predict.** The base names the place in one third of its answers. It is trained until it always
# names it. What is the smallest possible KL(trained‖base) of an answer?
#
# <details><summary>Answer</summary>
# log 3 = 1.10 nats: keep the answers of the base that name the place, and multiply their
# probabilities by three. Each other distribution with the full reward is farther away. "Zero" is
# tempting, because the base can do the task already. But it does so only in every third answer.
# </details>
#
# In general, let the base have the reward ρ₀, and the trained model ρ. Then
#
# $$\mathrm{KL}(\text{trained} \,\|\, \text{base}) \ge
# \rho \log \frac{\rho}{\rho_0} + (1 - \rho) \log \frac{1 - \rho}{1 - \rho_0}$$
#
# In words: the divergence is at least that of two coins, which fall on heads with probabilities ρ
# and ρ₀. The two sides are equal if the trained model changes only how often it names the place.

# %%
before = echoes.expected_reward({}, model, rows)


def least(reward, before):
    """Return the smallest KL(trained‖base) of a model with this reward, in nats per answer."""
    parts = [(reward, before), (1 - reward, 1 - before)]
    return sum(p * math.log(p / q) for p, q in parts if p)


print(f"the base: expected reward {before:.3f}")
print(f"least KL: {least(1.0, before):.2f} nats at reward 1, ", end="")
print(f"{least(experiment.GOAL, before):.2f} at {experiment.GOAL}")
nats = {}
cells = []
for form, text in echoes.FORMS.items():
    batch = echoes.batch_of(rows, [row.answer(text) for row in rows])
    log_p = rollouts.log_probabilities({}, model, batch)
    nats[form] = -float(np.mean(rollouts.of_targets(log_p, batch)))
    cells.append([form, tokenizer.decode(rows[0].answer(text)), f"{nats[form]:.1f}"])
table(["form", "example", "−log p of the base, nats"], cells)

# %%
# Checks
assert 0.2 < before < 0.5, "the base must name the place in about one third of its answers"
assert nats["own"] < 3 < 10 < nats["near"] < nats["foreign"] / 1.5, (
    "the forms must be this far away"
)
assert least(0.5, 0.5) == 0 and abs(least(1.0, 1 / 3) - math.log(3)) < 1e-9, "the bound"

# %% [markdown]
# ## The same reward, four ways
#
# `who_forgets_less_sweep.py` trains `micro` (0.1 million parameters; LoRA, r = 8) in four ways:
# from the reward, and by imitation of each form. A run is scored every five steps, and ends at an
# expected reward of 0.8 (the probability of the three forms) on sentences that it has not trained
# on. Each way has its own learning rate. Of the rates with which two further seeds reached the
# reward within 120 steps, it is the one that forgot least on other sentences and notes. (This is
# the smallest of these rates. Half of it was tried, too, and did not reach the reward.)
#
# "Forgotten" is the rise of the loss on the base's own notes, in nats per byte. It leaves out the
# bytes that choose the form of an echo: those *must* become worse, as the task asks for places.
#
# **Predict.** Order the four ways by what they forget. Where is imitation of the own form: with
# the reward, or with the other imitations?
#
# <details><summary>Answer</summary>
# The foreign form forgets most, then the near form. Imitation of the own form is with the reward,
# within 0.01 nats per byte. "All imitation forgets more" is tempting, because the paper's imitation
# does. But its examples were not written by the base.
# </details>

# %%
sweep = common.read_sweep("who_forgets_less")
WAYS = experiment.WAYS


def column(name, way):
    """Return a column of the runs of a way at its best rate, one number per seed."""
    return np.array(of(sweep, name, way=way, split="test"))


cells = []
for way, text in WAYS.items():
    means = f"{column('rate', way)[0]:g}", f"{column('steps', way).mean():.0f}"
    divergences = spread(column("forward", way)), spread(column("reverse", way))
    cells.append([text, *means, *divergences, spread(column("forgotten", way), 3)])
table(["five seeds", "rate", "steps", "KL(base‖trained)", "KL(trained‖base)", "forgotten"], cells)
lost = {way: column("forgotten", way) for way in WAYS}
verdicts = {
    way: claim(f"{WAYS[way]} forgets more than the reward", lost[way] - lost["reward"])
    for way in ("near", "foreign")
}
difference = lost["own"] - lost["reward"]
near_zero = claim("imitation of the own form: within 0.01 of the reward", difference, -0.01, 0.01)

# %% [markdown]
# ## Forgetting over the divergence
#
# A way with a smaller rate needs more steps and mostly forgets less. So one rate per way could
# mislead. The figure has all runs of the sweep that reached the reward, at all rates.
#
# **Predict.** Do the four ways lie on one curve?
#
# <details><summary>Answer</summary>
# Nearly: over KL(base‖trained), the runs of all ways form one rising band. "Four clouds" is
# tempting, because the ways have different losses and targets. But reinforcement at the rate 0.004
# forgets about as much as imitation of the near form at 0.001.
# </details>

# %%
reached = [row for row in sweep if row["reward"] >= experiment.GOAL]


def values(name, way=None):
    """Return a column of all runs that reached the reward, or of those of one way."""
    return np.array([row[name] for row in reached if way in (None, row["way"])])


correlation = {}
for name, text in {"forward": "KL(base‖trained)", "reverse": "KL(trained‖base)"}.items():
    correlation[name] = common.rank_correlation(values(name), values("forgotten"))
    print(f"{text} and forgetting, {len(reached)} runs: rank correlation {correlation[name]:.3f}")
cells = []
for rate in (1e-3, 2e-3, 4e-3):
    at_rate = {way: of(reached, "forgotten", way=way, rate=rate) for way in WAYS}
    cells.append([f"{rate:g}", *(spread(found, 3) for found in at_rate.values())])
    nearer = [*at_rate["reward"], *at_rate["own"]]
    assert max(nearer) < min(at_rate["near"]), f"{rate}: the near form must forget more"
    assert max(at_rate["near"]) < min(at_rate["foreign"]), f"{rate}: and the foreign form most"
table(["rate: forgotten", *WAYS.values()], cells)

xlabel, ylabel = "KL(base‖trained), nats per answer", "forgotten, nats per byte"
title = "All runs that reached an expected reward of 0.8"
with common.figure("forgetting_over_kl", xlabel, ylabel, title) as axes:
    for (way, text), style, marker in zip(WAYS.items(), plot.LINES, "osD^"):
        x, y = values("forward", way), values("forgotten", way)
        axes.plot(x, y, marker, color=style["color"], markersize=4, label=text)
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, loc="lower right")

# %% [markdown]
# ![Forgetting over the divergence from the base](../../../figures/forgetting_over_kl.png)
#
# At each of these rates, imitation of the near form forgets more than reinforcement and imitation
# of the own form, and the foreign form most. At a rate that is too large, reinforcement forgets,
# too: the model moves far from the base. Forgetting follows the divergence, as the paper says. In
# these runs, KL(base‖trained) orders it a little better than KL(trained‖base). The latter depends
# almost only on the form: a near answer has a probability of e⁻³¹ under the base, whatever else the
# model has changed.
#
# This does not prove a cause: the runs also differ in their steps and rates.

# %%
# Checks
assert {*verdicts.values(), near_zero} == {HOLDS}, verdicts
assert lost["reward"].max() < lost["near"].min() < lost["near"].max() < lost["foreign"].min()
for way in WAYS:
    floor = [least(row["reward"], before) for row in reached if row["way"] == way]
    # 0.9: the divergence is estimated from 64 sampled answers
    assert (values("reverse", way) > 0.9 * np.array(floor)).all(), "no run may be below the bound"
assert correlation["forward"] > 0.9, "forgetting must follow the divergence"
ratio = np.mean(at_rate["reward"]) / np.mean(of(reached, "forgotten", way="near", rate=1e-3))
assert 0.5 < ratio < 2, "reinforcement at 0.004 forgets about as much as the near form at 0.001"
live = experiment.run(("own", column("rate", "own")[0], "test", 0), steps=short(120, 5))
again = experiment.run(("reward", column("rate", "reward")[0], "test", 0), steps=short(120, 5))
for row in (live, again):
    print(f"{WAYS[row['way']]}, again: {row['steps']} steps, forgotten {row['forgotten']:.3f}")
    own = lost[row["way"]]
    assert QUICK or row["reward"] >= experiment.GOAL, f"{row['way']}: the reward is not reached"
    assert QUICK or belongs(row["forgotten"], own, lost["near"]), f"{row['way']}: not {own}"

# %% [markdown]
# ## What was shown
#
# On this model of 0.1 million parameters and one task, reinforcement forgot less than imitation of
# a near or a foreign form at the same reward, with each seed. Imitation of the base's own form
# forgot as little as reinforcement, within 0.01 nats per byte. So the reward itself is not what
# protects the model's knowledge here: imitation of answers that the base itself could have given
# does it, too. This agrees with both papers.
#
# The limits: the base can do the task already, the answers are short, and its own text is one
# synthetic language. The paper's claim is about skills that a language model of 3 billion
# parameters loses on other benchmarks. To test it, one needs such a model, several tasks, and
# imitation of human answers.
#
# A thing to try in practice: if you train by imitation, let the model write the answers, and keep
# those that are right.
#
# **What to try.**
#
# 1. `FORMS` in `echoes.py`: write the foreign form as " In a {place}." How far is it, and how much
#    does it forget?
# 2. `GOAL` in `who_forgets_less_sweep.py`: 0.9. Does reinforcement still keep its lead?
# 3. `examples` in `echoes.py`: give each row an answer that the base itself has sampled and that
#    got the reward (rejection sampling). Is it as good as the own form?
#
# **Where to stop with a debugger.** `divergence` and `own_text` in `echoes.py`; `stop` in
# `who_forgets_less_sweep.py`.
#
# **Exercises.** one-file-loss, prompt-mask.
#
# **Further reading.** Shenfeld et al. 2025, *RL's Razor*:
# [arXiv:2509.04259](https://arxiv.org/abs/2509.04259). Shenfeld et al. 2026, *Self-Distillation
# Enables Continual Learning*: [arXiv:2601.19897](https://arxiv.org/abs/2601.19897). Chen et al.
# 2025, *Retaining by Doing*, who also find that a model's own answers are the reason:
# [arXiv:2510.18874](https://arxiv.org/abs/2510.18874).
