# %% [markdown]
# # Who forgets less, and why?
#
# **The question.** A model can learn a task from rewards for its own answers, or by imitating given
# answers. Which way forgets less at the same reward, and is the way itself the reason?
#
# *RL's Razor* (Shenfeld et al. 2025) reports that reinforcement learning forgets less than
# imitation at the same accuracy. The paper's reason is not the method itself: forgetting follows
# KL(base‖trained), the divergence of the trained model from its base on the new task. A model that
# samples its own answers stays near its base. *Self-Distillation Enables Continual Learning*
# (Shenfeld et al. 2026) also forgets less, with demonstrations that are turned into answers in the
# model's own words.
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** the study [Does a reward need
# rank?](does_reward_need_rank.py), and what a Kullback-Leibler divergence is.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.evaluation import plot
from minilora.lessons.helpers import common, echoes, rollouts
from minilora.lessons.helpers.common import HOLDS, QUICK, belongs, claim, of, short
from minilora.lessons.studies.reward import who_forgets_less_sweep as experiment
from minilora.optim import global_norm

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

# %%
before = echoes.expected_reward({}, model, rows)


def least(reward):
    """Return the smallest KL(trained‖base) of a model with this reward, in nats per answer."""
    parts = [(reward, before), (1 - reward, 1 - before)]
    return sum(p * math.log(p / q) for p, q in parts if p)


print(f"the base names the place with probability {before:.3f}")
print(f"least KL: {least(1.0):.2f} nats at reward 1, {least(experiment.GOAL):.2f} at reward 0.8")
nats = {}
for form, text in echoes.FORMS.items():
    batch = echoes.batch_of(rows, [row.answer(text) for row in rows])
    log_p = rollouts.log_probabilities({}, model, batch)
    nats[form] = -np.mean(rollouts.of_targets(log_p, batch))
    example = tokenizer.decode(rows[0].answer(text))
    print(f"{form} form, {example!r}: −log p of the base is {nats[form]:.1f} nats")

# %% [markdown]
# **Answer.** log 3 = 1.10 nats: keep the answers of the base that name the place, and multiply
# their probabilities by three. Each other distribution with the full reward is farther away. In
# general, let the base have the reward ρ₀, and the trained model ρ. Then
#
# $$\mathrm{KL}(\text{trained} \,\|\, \text{base}) \ge
# \rho \log \frac{\rho}{\rho_0} + (1 - \rho) \log \frac{1 - \rho}{1 - \rho_0}$$
#
# In words: the divergence is at least that of two coins, which fall on heads with probabilities ρ
# and ρ₀. The two sides are equal if the trained model changes only how often it names the place.
#
# ## The same reward, four ways
#
# `who_forgets_less_sweep.py` trains `micro` (0.1 million parameters; LoRA, r = 8) in four ways:
# from the reward, and by imitation of each form. A run is scored every five steps, and ends at an
# expected reward of 0.8 (the probability of the three forms) on sentences that it has not trained
# on. Each way has its own learning rate. Of the rates with which two further seeds reached the
# reward within 120 steps, it is the one that forgot least on other sentences and notes.
#
# "Forgotten" is the rise of the loss on the base's own notes, in nats per byte. It leaves out the
# bytes that choose the form of an echo: those *must* become worse, as the task asks for places.
#
# **Predict.** Order the four ways by what they forget. Where is imitation of the own form: with
# the reward, or with the other imitations? And does forgetting follow KL(base‖trained)?

# %%
# Picture
sweep = common.read_sweep("who_forgets_less")
answered = [row for row in sweep if row["way"] in experiment.WAYS]
reached = [row for row in answered if row["reward"] >= experiment.GOAL]
xlabel, ylabel = "KL(base‖trained), nats per answer", "forgotten, nats per byte"
title = "All runs that reached an expected reward of 0.8"
with common.figure("forgetting_over_kl", xlabel, ylabel, title) as axes:
    for (way, name), style, marker in zip(experiment.WAYS.items(), plot.LINES, "osD^"):
        x, y = (of(reached, column, way=way) for column in ("forward", "forgotten"))
        axes.plot(x, y, marker, color=style["color"], markersize=4, label=name)
    axes.set(xscale="log", yscale="log")
    axes.legend(frameon=False, loc="lower right")

# %%
# Table
lost = {}
for way in experiment.RATES:
    lost[way] = np.array(of(sweep, "forgotten", way=way, split="test"))
over = {way: lost[way][:5] - lost["reward"] for way in experiment.WAYS}
verdicts = [
    claim(f"imitation of the {form} form forgets more than reinforcement", over[form])
    for form in ("near", "foreign")
]
same = claim("imitation of the own form: within 0.01 of it", over["own"], -0.01, 0.01)
columns = ([row[column] for row in reached] for column in ("forward", "forgotten"))
correlation = common.rank_correlation(*columns)
print(f"divergence and forgetting, {len(reached)} runs: rank correlation {correlation:.2f}")

# %% [markdown]
# **Answer.** The foreign form forgets most, then the near form. Imitation of the own form is with
# the reward, within 0.01 nats per byte. So "imitation forgets more" is true only of answers that
# the base does not write. The order is the same at each of the rates 0.001, 0.002 and 0.004.
#
# ![Forgetting over the divergence from the base](../../../figures/forgetting_over_kl.png)
#
# The runs of all ways and rates form one rising band: forgetting follows the divergence, as the
# paper says. This does not prove a cause, as the runs also differ in their steps and rates.
#
# ## Weighting each token by its probability
#
# *Dynamic fine-tuning* ([Wu et al. 2025](https://arxiv.org/abs/2508.05629)) multiplies the loss of
# each token by the token's probability p, as a constant. The gradient of log p has a factor 1/p,
# so imitation pulls hardest at tokens that the model does not write. The weight takes this factor
# away: p·∇log p = ∇p, so the mean of p is maximized, not that of log p. The paper reports that this
# generalizes better.
#
# **Predict.** Here the near form is imitated, with this weight and without. Each has its own rate,
# as above. At the same reward, which forgets less?

# %%
# Picture
_, axes = plt.subplots(figsize=(4.6, 2.8), layout="constrained")
for place, way in enumerate(("near", "weighted")):
    axes.semilogy(np.full(8, place), lost[way], "os"[place], fillstyle="none")
axes.set(xlim=(-0.5, 1.5), ylabel="forgotten, nats per byte", title="eight seeds")
axes.set_xticks((0, 1), ("near form", "near form,\neach token times p"))
plt.show()
times = lost["weighted"] / lost["near"]
more = claim("with the weight, more is forgotten", np.log(times), times=True)

# %% [markdown]
# **Answer.** The weighted runs forget 3 to 14 times as much, with each of eight seeds, and two of
# them do not reach the reward in 120 steps. A possible reason: the base writes each byte of "At "
# with p of about 0.00003, so the weighted loss hardly moves them, and needs a rate that is eight
# times as high. At that rate, the other bytes move, too. That the weight makes a model forget less
# **does not hold here**, for an answer that the base does not write.
#
# ## What was shown
#
# On this model of 0.1 million parameters and one task, reinforcement forgot less than imitation of
# a near or a foreign form at the same reward, with each seed. Imitation of the base's own form
# forgot as little as reinforcement, within 0.01 nats per byte. So the reward itself is not what
# protects the model's knowledge here: imitation of answers that the base itself could have given
# does it, too. This agrees with both papers. Weighting each token of the near form by its
# probability made the model forget more.
#
# The limits: the base can do the task already, the answers are short, and its own text is one
# synthetic language. To test the paper's claim, one needs a language model of some billion
# parameters, several tasks, and imitation of human answers.
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

# %%
# Checks
assert 0.2 < before < 0.5, "the base must name the place in about one third of its answers"
assert nats["own"] < 3 < 10 < nats["near"] < nats["foreign"] / 1.5, "the forms must be this far"
for row in reached:  # 0.9: the divergence is estimated from 64 sampled answers
    assert row["reverse"] > 0.9 * least(row["reward"]), "no run may be below the bound"
assert verdicts == [HOLDS, HOLDS] and same == HOLDS
assert lost["reward"].max() < lost["near"].min() < lost["near"].max() < lost["foreign"].min()
for rate in (1e-3, 2e-3, 4e-3):
    reward, own, near, foreign = (
        of(reached, "forgotten", way=way, rate=rate) for way in experiment.WAYS
    )
    assert max(reward + own) < min(near), f"{rate}: the near form must forget more"
    assert max(near) < min(foreign), f"{rate}: and the foreign form most"
assert more == HOLDS, "with the weight, more must be forgotten"
assert 3 < times.min() < times.max() < 14, "with each seed"
ends = of(sweep, "reward", way="weighted", split="test")
assert sum(end < experiment.GOAL for end in ends) == 2, "two runs must end without the reward"
token = echoes.batch_of(rows[:1], [rows[0].answer(text)[1:2]])
start = experiment.start_of(model, "8", 0)
plain, weighted = (
    global_norm(common.gradients_of(start, model, token, loss))
    for loss in (minilora.loss, experiment.weighted_loss)
)
p = math.exp(-minilora.loss({}, model, token))
assert abs(weighted / (p * plain) - 1) < 1e-3, "the weight must be p, a constant"
assert correlation > 0.9, "forgetting must follow the divergence"
for way, seed in (("own", 0), ("weighted", 8)):  # two runs of the sweep again
    rate = of(sweep, "rate", way=way, split="test")[0]
    again = experiment.run((way, rate, "test", seed), steps=short(120, 5))
    assert QUICK or again["reward"] >= experiment.GOAL, f"{way}: the reward is not reached"
    assert QUICK or belongs(again["forgotten"], lost[way], lost["near"]), f"{way}: not the sweep's"
