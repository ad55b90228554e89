# %% [markdown]
# # DPO with one model in memory
#
# **The question.** DPO (*direct preference optimization*) learns from pairs of a chosen and a
# rejected answer, and compares the trained model with a frozen reference. Does the reference need a
# second model in memory? And do the chosen answers become more likely?
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** a quarter of a minute to run, fifteen minutes to read. **You need:** lessons 1 and 4.

# %%
import time

import numpy as np

import minilora
from minilora.data.tasks import ECHOES
from minilora.evaluation.memory import nbytes
from minilora.layers import value_and_grad
from minilora.lessons.helpers import preference
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    best_rates,
    of,
    read_sweep,
    short,
    spread,
    table,
)
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
# the same?
#
# <details><summary>Answer</summary>
# Yes. LoRA trains only A and B, so the base without adapters is the same before and after training,
# bit for bit. ("No, it would drift" is tempting, because that is true for full fine-tuning.)
# </details>

# %%
sweep = read_sweep("dpo")
valid = [of(sweep, "valid_loss", labels="noisy", rate=rate) for rate in dpo.RATES]
RATE, _ = best_rates(dpo.RATES, valid)
model, tokenizer = minilora.load("micro")
adapters, model = minilora.get_peft_model(model, dpo.LORA, rng=0)
batch = preference.batch_of(dpo.labelled_pairs("noisy", seed=0)[:16])
reference = preference.answer_log_probs({}, model, batch)  # the base without adapters
first = preference.dpo_loss(adapters, model, batch, reference, dpo.BETA)
trained = {labels: dpo.train(labels, RATE, 0, short(100, 8)) for labels in dpo.LABELS}
same = np.array_equal(reference, preference.answer_log_probs({}, model, batch))
print(f"first loss {first:.4f}, log 2 = {np.log(2):.4f}; the reference is unchanged: {same}")

times = []
for _ in range(5):
    start = time.perf_counter()
    preference.answer_log_probs({}, model, batch)
    middle = time.perf_counter()
    value_and_grad(preference.dpo_loss)(adapters, model, batch, reference, dpo.BETA)
    times.append((middle - start, time.perf_counter() - middle))
share = np.min(times, axis=0)[0] / np.min(times, axis=0).sum()
print(f"the forward pass of the reference takes {share:.0%} of a step")

tiny, _ = minilora.load("tiny")
weights, codes = nbytes(tiny.base), nbytes(minilora.quantize(tiny, "nf4-dq").base)
factors = nbytes(minilora.get_peft_model(tiny, dpo.LORA, 0).adapters)
memory = {  # trained parameters have a gradient and two moments of Adam
    "full fine-tuning, and a reference": weights + 4 * weights,
    "LoRA, and a second model": 2 * weights + 4 * factors,
    "LoRA, one model": weights + 4 * factors,
    "LoRA, one model in NF4": codes + 4 * factors,
}
table(["tiny, without activations", "MB"], [[k, f"{v / 1e6:.1f}"] for k, v in memory.items()])

# %% [markdown]
# One model saves the memory of a second model, but no time: the reference still needs its forward
# pass, or the stored results of an earlier one. There is one trap. If DPO continues an adapter that
# was trained by imitation, the reference is the base *with* this adapter, as it was at the start:

# %%
old = trained["noisy"]
firsts = {}
for name, reference_adapters in (("the base alone", {}), ("with the adapter", old)):
    log_probs = preference.answer_log_probs(reference_adapters, model, batch)
    firsts[name] = preference.dpo_loss(old, model, batch, log_probs, dpo.BETA)
    print(f"continue an adapter, reference {name}: first loss {firsts[name]:.4f}")

# %%
# Checks
assert abs(first - np.log(2)) < 1e-6, "B = 0: model and reference are the same, and m = 0"
assert same, "the reference may not change"
assert share < 0.5, "a forward pass must take less time than a forward and a backward pass"
path = "model.layers.0.self_attn.q_proj"
weights = [get(m.base, path)["weight"] for m in (model, with_adapters(adapters, model))]
assert weights[0] is weights[1], "the reference and the trained model must share one array"
assert abs(firsts["with the adapter"] - np.log(2)) < 1e-6
assert QUICK or abs(firsts["the base alone"] - np.log(2)) > 0.01

# %% [markdown]
# ## The optimum is known
#
# `micro` (0.1 million parameters) continues "Ada keeps a pink kite in the barn." in one of three
# ways, each about as often: " Who? Ada.", " What? The kite, a pink one." or " In the barn." We give
# them the rewards 0.5, 0 and 1. A label is drawn as in the model of Bradley and Terry: the better
# answer is the chosen one with probability σ(r(w) − r(l)), so labels are *noisy*. With β = 0.5, Eq.
# 4 says where DPO ends, and the smallest possible loss is the entropy of the labels.
#
# **Predict.** What is the share of " In the barn." at the optimum: 1/3, 67 % or 100 %?
#
# <details><summary>Answer</summary>
# 67 %: e² : e¹ : e⁰ is about 7.4 : 2.7 : 1. (100 % is tempting, as it has the highest reward. But
# β weighs the reward against the distance from the reference.)
# </details>

# %%
p = dpo.win_probability("noisy")
entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
reference = dpo.all_log_probs({}, model, "test", 200)
best, before = dpo.optimum(reference).mean(axis=0), np.exp(reference)
before = (before / before.sum(axis=1, keepdims=True)).mean(axis=0)


def noisy(column):
    """Return a column of the runs with noisy labels at the best rate, one number per seed."""
    return of(sweep, column, labels="noisy", rate=RATE)


cells = []
rewards = dict(zip(dpo.NAMES, dpo.REWARDS))
for i, name in enumerate(dpo.NAMES):
    shares, found = spread(noisy(f"share_{name}")), spread(noisy(f"reward_{name}"))
    cells.append([ECHOES[i], f"{before[i]:.2f}", f"{best[i]:.2f}", shares, rewards[name], found])
table(["answer", "before", "optimum", "share, five seeds", "reward", "reward, read"], cells)
print(f"rate {RATE}: loss {spread(noisy('loss'), 3)} on test rows, entropy {entropy:.3f}")

# %% [markdown]
# The trained shares are near the optimum. And β·log(π/π_ref) is about the reward, up to a constant
# per prompt (here, that of the second answer): the paper's title says "secretly a reward model".

# %%
# Checks
assert np.mean(noisy("loss")) - entropy < 0.01, "the loss must be near the entropy"
for name, share, old in zip(dpo.NAMES, best, before):
    found = noisy(f"share_{name}")
    assert abs(np.mean(found) - share) < 0.03, f"{name}: {found}, not {share}"
    assert not min(found) < old < max(found), f"{name}: in every seed, the share must have changed"
    assert abs(np.mean(noisy(f"reward_{name}")) - rewards[name]) < 0.1, f"{name}: the reward, read"

# %% [markdown]
# ## When the labels are certain
#
# Now the better answer is *always* the chosen one, as in a data set where each pair is labelled
# once by the same rule. Azar et al. (2023) say that β then hardly keeps the model near the
# reference. Pal et al. and Razin et al. (2024) report that chosen answers can become *less* likely.
#
# **Predict.** After training, DPO's loss is below 0.01. How likely is a chosen answer?
#
# <details><summary>Answer</summary>
# Less likely than before training. ("Near 1" is tempting, as the loss is nearly zero. But it sees
# only a difference of two log-ratios: both may fall, if that of the rejected answer falls faster.)
# </details>

# %%
cells = []
for step in dpo.STEPS:
    columns = [(labels, side) for labels in dpo.LABELS for side in ("chosen", "rejected")]
    found = [of(sweep, f"{side}_{step}", labels=labels, rate=RATE) for labels, side in columns]
    cells.append([str(step), *map(spread, found)])
print(f"log p of held-out answers, rate {RATE}, five seeds:")
table(["step", *(f"{side}, {labels}" for labels, side in columns)], cells)
cells = []
for rate in dpo.RATES:
    found = [of(sweep, name, labels="certain", rate=rate) for name in ("loss", "chosen", "mass")]
    cells.append([f"{rate}", *(spread(x, digits) for x, digits in zip(found, (4, 1, 3)))])
table(["certain labels, rate", "loss", "log p of chosen", "p of the three answers"], cells)
prompt, _ = dpo.prompts_and_answers("test", 1)[0]
for labels, tree in trained.items():
    answer = minilora.generate(tree, model, prompt, max_tokens=24)
    print(f"{labels}: {tokenizer.decode(prompt + list(answer))!r}")

# %% [markdown]
# With noisy labels, the margin has an optimum. With certain labels, a larger margin always has a
# lower loss. At the rate 0.0005, the chosen answers first become more likely, then less. At this
# rate and all larger ones, most of the probability goes to texts that are in no pair. The loss does
# not show this. It falls with each larger rate, so it cannot choose a rate either. Watch log p of
# the chosen answers.

# %%
# Checks
at_first = np.mean(of(sweep, "chosen_0", labels="certain"))
for rate in dpo.RATES:
    ends = of(sweep, "chosen", labels="certain", rate=rate)
    assert max(ends) < at_first, f"{rate}: chosen answers must end less likely, in every seed"
    if rate >= RATE:
        assert max(of(sweep, "loss", labels="certain", rate=rate)) < 0.01
        assert max(of(sweep, "mass", labels="certain", rate=rate)) < 0.25
assert min(noisy("mass")) > 0.9, "with noisy labels, the three answers keep their probability"
assert min(of(sweep, "chosen_10", labels="certain", rate=RATE)) > at_first, "first more likely"
for labels, other in (dpo.LABELS, dpo.LABELS[::-1]):  # the runs of seed 0, again
    log_probs = dpo.all_log_probs(trained[labels], model, "test", 200)
    again = -dpo.scores(log_probs, reference, labels)["chosen"]
    own, others = (-np.array(of(sweep, "chosen", labels=x, rate=RATE)) for x in (labels, other))
    assert QUICK or agrees(again, own, others), f"{labels}: {again}, not {own}"

# %% [markdown]
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
