# %% [markdown]
# # Does a reward need rank?
#
# **The question.** In reinforcement learning, a model sees no right answers: it learns how good its
# own answers are. Is an adapter of rank 1 enough for that, and does the noise of a 4-bit base help?
#
# *LoRA Without Regret* (Schulman et al. 2025) reports that rank 1 matches full fine-tuning in
# reinforcement learning with policy gradients, on mathematical problems. Its reason: an answer has
# one reward, which is about one bit. A later attempt with two seeds found the same at 8 billion
# parameters, and could not decide it at 0.6 billion ([open-rl, pull request
# 208](https://github.com/gke-labs/open-rl/pull/208)). In the curves of Hugging Face's attempt, full
# fine-tuning moves ahead and stays there
# ([Kaitchup](https://kaitchup.substack.com/p/tiny-recursive-models-for-very-specific)).
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 20 seconds to run, a quarter of an hour to read. **You need:** lesson 1, what
# a rank is, and what sampling from a model is.

# %%
import numpy as np

import minilora
from minilora.layers import value_and_grad
from minilora.lessons.helpers import common, echoes, rollouts
from minilora.lessons.helpers.common import HOLDS, OPEN, QUICK, belongs, claim, short, spread, table
from minilora.lessons.studies.reward import rank_for_reward_sweep as experiment
from minilora.optim import global_norm

model, tokenizer = minilora.load("micro")

# %% [markdown]
# ## A group of answers, and their rewards
#
# The base was trained on sentences such as "Ada keeps a pink kite in the barn." An echo follows
# each of them: who, what or where, equally often. Here, an answer gets the reward 1 if it names the
# place, otherwise 0. The *policy* is the model as a distribution of answers y to a prompt x. The
# gradient of the mean reward is a mean over answers that the model itself has sampled (REINFORCE,
# Williams 1992):
#
# $$\nabla \, \mathbb{E}[r(y)] = \mathbb{E}\big[(r(y) - b) \, \nabla \log p(y \mid x)\big]$$
#
# In words: make answers that are better than b more probable, and the others less probable. Any b
# that does not depend on y gives the same expected gradient. Here, b is the mean reward of eight
# answers to the same prompt, as in GRPO (Shao et al. 2024), but without dividing by the standard
# deviation. (This b includes y's own reward, which multiplies the expected gradient by 7/8.) r − b
# is called the *advantage*.
#
# **Predict.** What is the gradient if all eight answers get the reward 1?
#
# <details><summary>Answer</summary>
# Zero: each advantage is zero. "More of the same" is tempting, because all answers were right. But
# none of them is better than the others, and the same holds if all were wrong.
# </details>

# %%
GROUP = 8
rows = echoes.rows("test", 2)
group = [rows[0]] * GROUP
answers = rollouts.sample({}, model, [row.prompt for row in group], seed=1)
rewards = [echoes.reward(row, answer) for row, answer in zip(group, answers)]
advantages = rollouts.group_advantages(rewards, GROUP)
print(tokenizer.decode(rows[0].prompt))
for answer, reward, advantage in zip(answers, rewards, advantages):
    print(f"{tokenizer.decode(answer):16} reward {reward:.0f}, advantage {advantage:+.3f}")

start = experiment.start_of(model, "1", seed=0)
batch = echoes.batch_of(group, answers)
norms = {}
for name, given in {"sampled": rewards, "all 1": [1.0] * GROUP}.items():
    given = np.float32(rollouts.group_advantages(given, GROUP))
    _, grads = value_and_grad(rollouts.policy_loss)(start, model, batch, given)
    norms[name] = global_norm(grads)
print(f"norm of the gradient: {norms['sampled']:.2f}, with all rewards 1: {norms['all 1']:.2f}")

# %%
# Checks
assert 0 < sum(rewards) < GROUP, "the base must name the place in some of the answers"
assert abs(advantages.sum()) < 1e-6, "the advantages of a group must sum to zero"
assert norms["all 1"] == 0 < norms["sampled"], "equal rewards must give no gradient"

# %% [markdown]
# ## Rank 1, rank 8, all weights
#
# `rank_for_reward_sweep.py` trains `micro` (0.1 million parameters) for 40 steps of 32 answers.
# Their rewards have at most 40 · 32 = 1,280 bits. Rank 1 on all projections has 2,736 parameters,
# and the study [How much fits into an adapter](../since_2023/how_much_fits_into_an_adapter.py)
# found that adapters of rank 1 memorize 0.6 bits per parameter, and more in longer runs. So
# capacity is not the limit here. Each size has its own learning rate: the best of four on other
# sentences, with two further seeds. The *expected reward* is the probability of three answers that
# name the place (`FORMS` in `echoes.py`), on sentences on which no run was trained.
#
# **Predict.** Which size has the highest reward after 40 steps? What happens to the entropy of an
# answer meanwhile? And which size forgets least of the base's own text?
#
# <details><summary>Answer</summary>
# Full fine-tuning has the highest mean reward, but rank 1 is within 0.05 of it. The entropy falls,
# because two of the three echoes become rare. (In some runs, it rises first.) Rank 1 forgets least.
# "The larger one learns much more" is tempting, and it is true for a task of imitation: in [LoRA or
# full fine-tuning](../since_2023/lora_or_full.py), rank 1 answers less than three quarters of the
# questions, and full fine-tuning more than 97 %.
# </details>

# %%
sweep = common.read_sweep("rank_for_reward")


def end(found, name="reward"):
    """Return a score of the runs after the last step, one number per seed."""
    return np.array([row[f"{name}_{experiment.STEPS}"] for row in found])


def forgotten(found):
    """Return by how much the loss on the base's own text rose, in nats per byte."""
    return np.array([row["own_loss"] - row["own_loss_before"] for row in found])


of_size = {size: experiment.runs(sweep, "usual", "dense", size) for size in experiment.SIZES}
cells = []
for size, found in of_size.items():
    name = size if size == "full" else f"r = {size}"
    scores = spread(end(found)), spread(end(found, "entropy")), spread(forgotten(found), 3)
    cells.append([name, int(found[0]["trained"]), f"{found[0]['rate']:g}", *scores])
first = of_size["1"][0]
print(f"before: expected reward {first['reward_0']:.2f}, entropy {first['entropy_0']:.2f} nats")
table(["five seeds", "trained", "rate", "expected reward", "entropy", "forgotten"], cells)
equal = {}
for size in ("1", "8"):
    difference = end(of_size[size]) - end(of_size["full"])
    equal[size] = claim(f"r = {size} is within 0.05 of full", difference, -0.05, 0.05)
difference = forgotten(of_size["full"]) - forgotten(of_size["1"])
forgets = claim("full forgets more than r = 1", difference)

titles = ["Expected reward", "Entropy of an answer, in nats"]
with common.figure("reward", "optimizer step", "", titles, width=7.5, columns=2) as panels:
    for axes, name in zip(panels, ("reward", "entropy")):
        for line, (size, found) in enumerate(of_size.items()):
            curves = np.transpose([experiment.curve(row, name) for row in found])
            label = size if size == "full" else f"r = {size}"
            common.curve_of_seeds(axes, experiment.POINTS, curves, label, line)
        axes.set_ylim(bottom=0)

# %% [markdown]
# ![Reward and entropy over the steps, for rank 1, rank 8 and all
# weights](../../../figures/reward.png)
#
# On this model of 0.1 million parameters and one rule, rank 1 is within 0.05 of full fine-tuning,
# and it forgets less. That rank 8 is within 0.05, too, is not shown: one of its five seeds ends at
# 0.58. The two seeds that chose its rate had ended above 0.89. Rewards make noisy gradients, and
# two seeds are too few to see that a rate fails in one run of five.
#
# The rate matters for forgetting, too: rank 8 at the smallest rate, 0.001, forgot at most 0.02 nats
# per byte in its two runs, and still ended above 0.81.

# %% [markdown]
# ## Does the noise of four bits help to explore?
#
# *QeRL* (Huang et al. 2025) quantizes the base to NVFP4 and reports three things: the entropy of
# the answers rises, the reward grows faster than with LoRA on a 16-bit base, and it ends higher
# (GSM8K, Qwen2.5 7B: 88.5 against 88.1; with NF4 85.0). The reason given is that the noise makes
# the model try more.
#
# Noise can only help where a model tries too little. So `model_of` in the sweep makes a "rare"
# base: it names the place in one of sixteen answers, and says who otherwise. It is used dense, in
# NF4, and in E2M1 with blocks of 16, which is NVFP4 except for its scales (float32 here).
#
# **Predict.** Does four-bit noise raise the entropy of the usual base, and of the rare one? On
# which of the three versions of the rare base does an adapter learn the rare answer best?
#
# <details><summary>Answer</summary>
# It does, in both formats and on both bases. Which version is best is not shown: the seeds differ
# too much.
# "The one with the most entropy" is tempting, but entropy also counts misspelled words, and those
# get no reward.
# </details>

# %%
many = echoes.rows("test", short(512, 32))
entropies = {
    (kind, scheme): echoes.entropies({}, experiment.model_of(kind, scheme), many)
    for kind in ("usual", "rare") for scheme in experiment.SCHEMES
}  # fmt: skip
raised = {}
for kind, scheme in entropies:
    change = entropies[kind, scheme] - entropies[kind, "dense"]
    if scheme != "dense":
        raised[kind, scheme] = common.interval(change)
        mean, low, high = raised[kind, scheme]
        print(f"{kind} base, {scheme}: {mean:+.2f} ({low:.2f} to {high:.2f}) nats", end=", ")
        print(f"{len(many)} sentences")

of_base = {scheme: experiment.runs(sweep, "rare", scheme, "8") for scheme in experiment.SCHEMES}
cells = []
for scheme, found in of_base.items():
    mean = f"{np.mean(entropies['rare', scheme]):.2f}"
    halfway, last = (spread([row[f"reward_{step}"] for row in found]) for step in (20, 40))
    cells.append([scheme, f"{found[0]['rate']:g}", mean, halfway, last])
header = ["r = 8, rare base, five seeds", "rate", "entropy at step 0", "reward at step 20"]
table([*header, "reward at step 40"], cells)
helps = {
    scheme: claim(f"{scheme}: a higher reward than dense", end(found) - end(of_base["dense"]))
    for scheme, found in of_base.items() if scheme != "dense"
}  # fmt: skip

# %% [markdown]
# So the first half of the claim holds here: both formats raise the entropy. For the second half,
# neither a gain nor a loss is shown. Four of the five runs on NF4 end below a reward of 0.2, and
# one on the dense base does, but the interval of the five differences is wide. Each version has its
# own best rate, so the table compares pairs of a base and a rate.

# %%
# Checks
assert equal == {"1": HOLDS, "8": OPEN}, equal
assert forgets == HOLDS, "full fine-tuning must forget more than rank 1"
assert (forgotten(of_size["8"]) > forgotten(of_size["1"])).all(), "and rank 8, in every seed"
curves = np.array([experiment.curve(row, "entropy") for size in of_size for row in of_size[size]])
assert (curves[:, -1] < curves[:, 0]).all(), "the entropy must fall in every run"
assert 0 < np.sum(curves.max(axis=1) > curves[:, 0] + 0.1) < len(curves), "in some, it rises first"
tuning = experiment.runs(sweep, "usual", "dense", "8", split="valid")
gentle = [row for row in tuning if row["rate"] == 1e-3]
assert forgotten(gentle).max() < 0.02 and end(gentle).min() > 0.81, "a small rate forgets less"
assert end(of_size["8"]).min() < 0.65 < 0.85 < end(of_size["1"]).min(), "rank 8 fails in one seed"
chose = [row for row in tuning if row["rate"] == of_size["8"][0]["rate"]]
assert end(chose).min() > 0.89, "the seeds that chose its rate did not fail"
assert QUICK or min(low for _, low, _ in raised.values()) > 0, "noise must raise the entropy"
assert set(helps.values()) == {OPEN}, helps
assert [sum(end(of_base[scheme]) < 0.2) for scheme in ("nf4", "dense")] == [4, 1], "runs that fail"
for size in ("1", "full"):
    rate = of_size[size][0]["rate"]
    live = experiment.run(("usual", "dense", size, rate, "test", 0), short(40, 2))
    reward = live["reward_0" if QUICK else "reward_40"]
    print(f"{size}, again: expected reward {reward:.3f}")
    assert QUICK or belongs(reward, end(of_size[size])), f"{size}: not {end(of_size[size])}"

# %% [markdown]
# ## What was shown
#
# On this model of 0.1 million parameters, with a reward for one of three answers that the base
# gives already, rank 1 was within 0.05 of full fine-tuning, and forgot less. This agrees with the
# claim, but one rule needs few bits. To test the claim itself, one needs problems on which a model
# of some billion parameters learns for hundreds of steps, and more than two seeds. Four-bit noise
# raised the entropy. That it helps was not shown.
#
# **What to try.**
#
# 1. `reward` in `echoes.py`: 1 if the answer is shorter than eleven bytes. Is rank 1 still enough?
# 2. `GROUP` and `group=8` in `rollouts.py`: use 2 and 32. Which learns fastest with the same number
#    of answers?
# 3. `reward` again: let it depend on the colour in the sentence (four say where, four say who).
#    A trial did not learn this in 100 steps. Does it with 1,000?
#
# **Where to stop with a debugger.** `rollouts.reinforce` and `rollouts.policy_loss`.
#
# **Exercises.** lora-count, one-file-loss, one-file-init-lora.
#
# **Further reading.** Schulman et al. 2025, *LoRA Without Regret*:
# [thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/). Huang et al. 2025,
# *QeRL*: [arXiv:2510.11696](https://arxiv.org/abs/2510.11696). Shao et al. 2024, *DeepSeekMath*
# (GRPO): [arXiv:2402.03300](https://arxiv.org/abs/2402.03300). Morris et al. 2026, *Learning to
# Reason in 13 Parameters*: [arXiv:2602.04118](https://arxiv.org/abs/2602.04118).
