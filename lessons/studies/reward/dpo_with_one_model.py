# %% [markdown]
# # DPO with one model in memory
#
# **The question.** DPO (*direct preference optimization*) learns from pairs of a chosen and a
# rejected answer, and compares the trained model with a frozen reference. Does the reference need a
# second model in memory? And do the chosen answers become more likely?
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 10 seconds to run, fifteen minutes to read. **You need:** lessons 1 and 4.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.data.tasks import ECHOES
from minilora.lessons.helpers import common, preference
from minilora.lessons.helpers.common import QUICK, agrees, of, short, spread, table
from minilora.lessons.studies.reward import dpo_sweep as dpo
from minilora.model import with_adapters
from minilora.tree import get

# %% [markdown]
# ## The loss
#
# Let x be a prompt, y an answer, π the trained model and π_ref the reference. Rafailov et al.
# (2023) begin with what reinforcement learning from human feedback maximizes (Eq. 3):
#
# $$\mathbb{E}_{y \sim \pi}[r(x, y)] - \beta\, \mathrm{KL}(\pi \,\Vert\, \pi_\mathrm{ref})$$
#
# A higher reward r is better, and the second term keeps π near the reference. This is the same as
# −β·KL(π ‖ π\*) plus a constant, for the distribution π\* below. So π\* is the best π (Eq. 4):
#
# $$\pi^*(y|x) = \frac{\pi_\mathrm{ref}(y|x)\, e^{r(x, y)/\beta}}{Z(x)}, \qquad
# r(x, y) = \beta \log \frac{\pi^*(y|x)}{\pi_\mathrm{ref}(y|x)} + \beta \log Z(x)$$
#
# The second equation is the first one, solved for r. People do not give rewards: they choose. In
# the model of Bradley and Terry, they prefer answer w to answer l with probability σ(r(w) − r(l)),
# where σ is the logistic function. In this difference, β log Z(x) cancels. What remains is the
# *margin* m, and the loss is the cross-entropy of the choices (Eq. 7):
#
# $$m = \beta \log \frac{\pi(w|x)}{\pi_\mathrm{ref}(w|x)} - \beta \log
# \frac{\pi(l|x)}{\pi_\mathrm{ref}(l|x)}, \qquad L = -\log \sigma(m)$$
#
# No reward model is trained and no answer is sampled. The gradient is −β·σ(−m)·(∇log π(w) −
# ∇log π(l)). Loss and gradients are equal to those of the paper's formula in PyTorch, and to TRL's,
# up to rounding (`tests/peers/test_dpo.py`).
#
# ## One model is enough
#
# The reference is usually the model before training. In
# [trl#624](https://github.com/huggingface/trl/issues/624), a user asked whether one model in memory
# is enough with LoRA. Today, TRL switches the adapter off for the reference.
#
# **Predict.** The trained model changes at each step. Can a reference that shares its weights stay
# the same? And what is the loss before the first step?

# %%
sweep = common.read_sweep("dpo")
valid = [of(sweep, "valid_loss", labels="noisy", rate=rate) for rate in dpo.RATES]
RATE, _ = common.best_rates(dpo.RATES, valid)
model, _ = minilora.load("micro")
untrained, _ = minilora.get_peft_model(model, dpo.LORA, 0)
batch = preference.batch_of(dpo.labelled_pairs("certain", seed=0)[:16])
reference = preference.answer_log_probs({}, model, batch)  # the base without adapters
trained = dpo.train("certain", RATE, 0, short(100, 8))
same = np.array_equal(reference, preference.answer_log_probs({}, model, batch))
print(f"the reference is the same before and after training: {same}")


def first_loss(adapters, reference_adapters):
    """Return the loss before the first step of `adapters`."""
    log_probs = preference.answer_log_probs(reference_adapters, model, batch)
    return preference.dpo_loss(adapters, model, batch, log_probs, dpo.BETA)


first = first_loss(untrained, {})
wrong, right = first_loss(trained, {}), first_loss(trained, trained)
print(f"first loss {first:.4f}, log 2 = {np.log(2):.4f}")
print(f"DPO continues an adapter, the reference is the base alone: first loss {wrong:.4f}")
print(f"DPO continues an adapter, the reference is the base with it: first loss {right:.4f}")

# %% [markdown]
# **Answer.** Yes, bit for bit: LoRA trains only A and B, and the reference is the base without
# them. (With full fine-tuning, the shared weights would drift.) A second model would need the
# memory of all weights once more. B = 0 at the start, so model and reference are equal, m = 0, and
# the loss is log 2.
#
# There is one trap. If DPO continues an adapter that was trained by imitation, the reference is the
# base *with* this adapter, as it was at the start. A first loss of log 2 shows that it is right.
#
# ## The optimum is known
#
# `micro` (0.1 million parameters) continues "Ada keeps a pink kite in the barn." in one of three
# ways, each about as often: " Who? Ada.", " What? The kite, a pink one." or " In the barn." We give
# them the rewards 0.5, 0 and 1. A label is drawn as in the model of Bradley and Terry: the better
# answer is the chosen one with probability σ(r(w) − r(l)), so labels are *noisy*. With β = 0.5, Eq.
# 4 says where DPO ends, and the smallest possible loss is the entropy of the labels.
#
# **Predict.** What is the share of " In the barn." at the optimum: 1/3, 67 % or 100 %?

# %%
p = dpo.win_probability("noisy")
entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
best = dpo.optimum(dpo.all_log_probs({}, model, "test", 200)).mean(axis=0)
shares, read = (
    [of(sweep, f"{column}_{name}", labels="noisy", rate=RATE) for name in dpo.NAMES]
    for column in ("share", "reward")
)
cells = []
for i, echo in enumerate(ECHOES):
    found = spread(shares[i]), str(dpo.REWARDS[i]), spread(read[i])
    cells.append([echo, f"{best[i]:.2f}", *found])
table(["answer", "optimum", "share, five seeds", "reward", "reward, read"], cells)
noisy_loss = of(sweep, "loss", labels="noisy", rate=RATE)
print(f"rate {RATE}: loss {spread(noisy_loss, 3)} on test rows, entropy {entropy:.3f}")

# %% [markdown]
# **Answer.** 67 %: e² : e¹ : e⁰ is about 7.4 : 2.7 : 1. Not 100 %, because β weighs the reward
# against the distance from the reference. The trained shares are near the optimum. And
# β·log(π/π_ref) is about the reward, up to a constant per prompt (here, that of the second answer):
# the paper's title says "secretly a reward model".
#
# ## When the labels are certain
#
# Now the better answer is *always* the chosen one, as in a data set where each pair is labelled
# once by the same rule. Azar et al. (2023) say that β then hardly keeps the model near the
# reference. Pal et al. and Razin et al. (2024) report that chosen answers can become *less* likely.
#
# **Predict.** After training, DPO's loss is below 0.01. How likely is a chosen answer?

# %%
# Picture
_, panels = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True, layout="constrained")
for labels, axes in zip(dpo.LABELS, panels):
    for line, side in enumerate(("chosen", "rejected")):
        curves = [of(sweep, f"{side}_{step}", labels=labels, rate=RATE) for step in dpo.STEPS]
        common.curve_of_seeds(axes, dpo.STEPS, curves, side, line)
    axes.set(xlabel="optimizer step", title=f"{labels} labels, five seeds")
panels[0].set_ylabel("log p of held-out answers")
panels[0].legend(frameon=False)
plt.show()

# %%
# Table
certain = {
    name: [of(sweep, name, labels="certain", rate=rate) for rate in dpo.RATES]
    for name in ("loss", "chosen", "mass")
}
cells = [
    [str(rate), spread(loss, 4), spread(mass, 3)]
    for rate, loss, mass in zip(dpo.RATES, certain["loss"], certain["mass"])
]
table(["certain labels, rate", "loss", "p of the three answers"], cells)

# %% [markdown]
# **Answer.** Less likely than before training. The loss sees only a difference of two log-ratios:
# both may fall, if that of the rejected answer falls faster. At this rate, the chosen answers first
# become more likely, then less.
#
# With noisy labels, the margin has an optimum. With certain labels, a larger margin always has a
# lower loss. At this rate and all larger ones, most of the probability goes to texts that are in no
# pair. The loss does not show this. It falls with each larger rate, so it cannot choose a rate
# either. Watch log p of the chosen answers.
#
# ## What was shown
#
# The frozen base is the reference, and it stays the same bit for bit. On `micro` (0.1 million
# parameters), with rewards that we know, DPO ends near the optimum of its derivation if labels are
# noisy. With certain labels, chosen answers end less likely in all 25 runs. To test this on answers
# of many sentences, one needs a model that people use, and its preference data.
#
# **What to try.**
#
# 1. `BETA = 0.5` in `dpo_sweep.py`: with 0.1, where is the optimum?
# 2. `dpo_loss`: subtract 0.1 times the mean log p of the chosen answers. Do they stay likely?
# 3. `short(100, 8)`: stop after 25 steps. How much of the preference is learned, and what is lost?
#
# **Where to stop with a debugger.** `dpo_loss` in `preference.py`: at the first step, m is zero.
#
# **Further reading.** Rafailov et al. 2023, *Direct Preference Optimization*:
# [arXiv:2305.18290](https://arxiv.org/abs/2305.18290). Azar et al. 2023, *A General Theoretical
# Paradigm to Understand Learning from Human Preferences*:
# [arXiv:2310.12036](https://arxiv.org/abs/2310.12036). Pal et al. 2024, *Smaug*:
# [arXiv:2402.13228](https://arxiv.org/abs/2402.13228). Razin et al. 2024, *Unintentional
# Unalignment*: [arXiv:2410.08847](https://arxiv.org/abs/2410.08847).

# %%
# Checks
assert same, "the reference may not change"
path = "model.layers.0.self_attn.q_proj"
weights = [get(m.base, path)["weight"] for m in (model, with_adapters(trained, model))]
assert weights[0] is weights[1], "the reference and the trained model must share one array"
assert max(abs(first - np.log(2)), abs(right - np.log(2))) < 1e-6, "equal models: m = 0"
assert QUICK or abs(wrong - np.log(2)) > 0.01, "another reference: another first loss"
assert abs(best[2] - 0.67) < 0.01, "the optimum of the best answer"
assert np.mean(noisy_loss) - entropy < 0.01, "the loss must be near the entropy"
for found, expected in zip(shares, best):
    assert abs(np.mean(found) - expected) < 0.03, f"shares {found}, not {expected}"
for found, expected in zip(read, dpo.REWARDS):
    assert abs(np.mean(found) - expected) < 0.1, f"rewards {found}, not {expected}"
before = np.mean(of(sweep, "chosen_0", labels="certain"))
assert np.max(certain["chosen"]) < before, "at each rate and seed, less likely at the end"
assert min(of(sweep, "chosen_10", labels="certain", rate=RATE)) > before, "first more likely"
larger = dpo.RATES.index(RATE)  # this rate and all larger ones
assert np.max(certain["loss"][larger:]) < 0.01 and np.max(certain["mass"][larger:]) < 0.25
assert (np.diff(np.mean(certain["loss"], axis=1)) < 0).all(), "the loss falls with the rate"
assert min(of(sweep, "mass", labels="noisy", rate=RATE)) > 0.9, "noisy: they keep their probability"
log_probs = dpo.all_log_probs(trained, model, "test", 200)  # a run of the sweep again
again = dpo.scores(log_probs, log_probs, "certain")["chosen"]  # needs no reference
seeds, others = (-np.array(of(sweep, "chosen", labels=x, rate=RATE)) for x in ("certain", "noisy"))
assert QUICK or agrees(-again, seeds, others), f"{again}, not {-seeds}"
