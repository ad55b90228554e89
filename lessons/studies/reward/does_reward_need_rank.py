# %% [markdown]
# # Does a reward need rank?
#
# **The question.** In reinforcement learning, a model sees no right answers: it learns how good its
# own answers are. Is an adapter of rank 1 enough for that, and does the noise of a 4-bit base help?
#
# *LoRA Without Regret* (Schulman et al. 2025) reports that rank 1 matches full fine-tuning in
# reinforcement learning with policy gradients, on mathematical problems. Its reason: an answer has
# one reward, which is about one bit. Later attempts differ. One found the same with two seeds
# ([open-rl, pull request 208](https://github.com/gke-labs/open-rl/pull/208)); in the curves of
# another, full fine-tuning moves ahead
# ([Kaitchup](https://kaitchup.substack.com/p/tiny-recursive-models-for-very-specific)).
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** a quarter of a minute to run, ten minutes to read. **You need:** lesson 1, what a rank
# is, and what sampling from a model is.

# %%
import numpy as np

import minilora
from minilora.lessons.helpers import common, echoes, rollouts
from minilora.lessons.helpers.common import HOLDS, OPEN, QUICK, belongs, claim, short
from minilora.lessons.studies.reward import rank_for_reward_sweep as experiment

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

# %%
GROUP = 8
group = echoes.rows("test", 1) * GROUP
answers = rollouts.sample({}, model, [row.prompt for row in group], seed=1)
rewards = [echoes.reward(row, answer) for row, answer in zip(group, answers)]
advantages = rollouts.group_advantages(rewards, GROUP)
print(tokenizer.decode(group[0].prompt))
for answer, reward, advantage in zip(answers, rewards, advantages):
    print(f"{tokenizer.decode(answer):16} reward {reward:.0f}, advantage {advantage:+.3f}")

print("advantages if all rewards are 1:", rollouts.group_advantages([1.0] * GROUP, GROUP))

# %% [markdown]
# **Answer.** Zero: no answer is better than the others, so each advantage is zero, and each term of
# the mean. The same holds if all are wrong. A group teaches something only if its rewards differ.
#
# ## Rank 1, rank 8, all weights
#
# `rank_for_reward_sweep.py` trains `micro` (0.1 million parameters) for 40 steps of 32 answers.
# Their rewards have at most 40 · 32 = 1,280 bits. Rank 1 on all projections has 2,736 parameters,
# and adapters of rank 1 memorize 0.6 bits per parameter or more (the study [How much fits into an
# adapter](../since_2023/how_much_fits_into_an_adapter.py)). So capacity is not the limit here. Each
# size has its own learning rate: the best of four on other sentences, with two further seeds. The
# *expected reward* is the probability of three answers that name the place (`FORMS` in
# `echoes.py`), on sentences on which no run was trained.
#
# **Predict.** Which size has the highest reward after 40 steps? And which size forgets least of the
# base's own text?

# %%
# Picture
sweep = common.read_sweep("rank_for_reward")


def end(found):
    """Return the expected reward of the runs after the last step, one number per seed."""
    return np.array([row[f"reward_{experiment.STEPS}"] for row in found])


of_size, reward_of, forgotten = {}, {}, {}
for size in experiment.SIZES:
    name = size if size == "full" else f"r = {size}"
    of_size[name] = experiment.runs(sweep, "usual", "dense", size)
    reward_of[name] = end(of_size[name])
    forgotten[name] = np.array([row["own_loss"] - row["own_loss_before"] for row in of_size[name]])

titles = ["Expected reward", "Forgotten, nats per byte of its own text"]
with common.figure("reward", ["optimizer step", ""], "", titles, width=7.5, columns=2) as panels:
    for line, (name, found) in enumerate(of_size.items()):
        curves = [[row[f"reward_{step}"] for row in found] for step in experiment.POINTS]
        common.curve_of_seeds(panels[0], experiment.POINTS, curves, name, line)
        panels[1].plot([name] * len(found), forgotten[name], "ko", alpha=0.5)

# %%
# Table
near = {}
for name in ("r = 1", "r = 8"):
    difference = reward_of[name] - reward_of["full"]
    near[name] = claim(f"{name} is within 0.05 of full fine-tuning", difference, -0.05, 0.05)
forgets = claim("full fine-tuning forgets more than r = 1", forgotten["full"] - forgotten["r = 1"])

# %% [markdown]
# **Answer.** Full fine-tuning has the highest mean reward, but on this model of 0.1 million
# parameters, rank 1 is within 0.05 of it, and rank 1 forgets least. That rank 8 is within 0.05,
# too, is not shown: one of its five seeds ends below 0.65. The two seeds that chose its rate had
# ended above 0.89. Rewards make noisy gradients, and two seeds are too few to see that a rate fails
# in one run of five.
#
# ![Expected reward over the steps, and what is forgotten, for rank 1, rank 8 and all
# weights](../../../figures/reward.png)
#
# Imitation is another matter: there, the larger size learns much more ([LoRA or full
# fine-tuning](../since_2023/lora_or_full.py)).
#
# ## Does the noise of four bits help to explore?
#
# *QeRL* (Huang et al. 2025) quantizes the base to NVFP4 and reports three things: the entropy of
# the answers rises, the reward grows faster than with LoRA on a 16-bit base, and it ends higher.
# The reason given is that the noise makes the model try more.
#
# Noise can only help where a model tries too little. So `model_of` in the sweep makes a "rare"
# base: it names the place in one of sixteen answers, and says who otherwise. It is used dense, in
# NF4, and in E2M1 with blocks of 16, which is NVFP4 except for its scales (float32 here).
#
# **Predict.** Does four-bit noise raise the entropy of the usual base, and of the rare one? On
# which of the three versions of the rare base does an adapter learn the rare answer best?

# %%
FORMATS = ("nf4", "e2m1")
many = echoes.rows("test", short(512, 32))
raised = {}
for kind in ("usual", "rare"):
    dense = echoes.entropies({}, experiment.model_of(kind, "dense"), many)
    for scheme in FORMATS:
        noisy = echoes.entropies({}, experiment.model_of(kind, scheme), many)
        raised[kind, scheme] = common.interval(noisy - dense)
        mean, low, high = raised[kind, scheme]
        print(f"{kind} base, {scheme}: {mean:+.2f} ({low:.2f} to {high:.2f}) nats of entropy")

# %%
# Table
of_base = {
    scheme: end(experiment.runs(sweep, "rare", scheme, "8")) for scheme in experiment.SCHEMES
}
for scheme, seeds in of_base.items():
    print(f"{scheme}: reward after 40 steps, r = 8, five seeds:", *(f"{x:.2f}" for x in seeds))
helps = [
    claim(f"{scheme}: a higher reward than dense", of_base[scheme] - of_base["dense"])
    for scheme in FORMATS
]

# %% [markdown]
# **Answer.** Both formats raise the entropy, on both bases. So the first half of the claim holds
# here. Which version learns best is not shown: the seeds differ too much. Four of the five runs on
# NF4 end below a reward of 0.2, and one on the dense base does. (Entropy alone says little: it also
# counts misspelled words, and those get no reward. Each version has its own best rate, so pairs of
# a base and a rate are compared.)
#
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

# %%
# Checks
assert 0 < sum(rewards) < GROUP, "the base must name the place in some of the answers"
assert abs(advantages.sum()) < 1e-6, "the advantages of a group must sum to zero"
assert not rollouts.group_advantages([1.0] * GROUP, GROUP).any(), "equal rewards: no gradient"
assert of_size["r = 1"][0]["trained"] == 2736, "the parameters of rank 1"
assert near == {"r = 1": HOLDS, "r = 8": OPEN} and forgets == HOLDS
assert max(reward_of, key=lambda name: reward_of[name].mean()) == "full", "the highest reward"
assert (forgotten["r = 8"] > forgotten["r = 1"]).all(), "rank 1 forgets least, in every seed"
assert reward_of["r = 8"].min() < 0.65 < 0.85 < reward_of["r = 1"].min(), "rank 8 fails once"
rate = of_size["r = 8"][0]["rate"]
tuning = experiment.runs(sweep, "usual", "dense", "8", split="valid")
chose = end([row for row in tuning if row["rate"] == rate])
assert chose.min() > 0.89, "the seeds that chose its rate did not fail"
assert QUICK or min(low for _, low, _ in raised.values()) > 0, "noise must raise the entropy"
assert helps == [OPEN, OPEN], "no format is shown to help, and none to harm"
assert [sum(of_base[scheme] < 0.2) for scheme in ("nf4", "dense")] == [4, 1], "runs that fail"
job = ("usual", "dense", "1", of_size["r = 1"][0]["rate"], "test", 0)  # a run of the sweep again
again = experiment.run(job, short(40, 2))
assert QUICK or belongs(again["reward_40"], reward_of["r = 1"], [again["reward_0"]])
