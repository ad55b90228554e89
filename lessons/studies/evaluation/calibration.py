# %% [markdown]
# # Calibration
#
# **The question.** A model gives each answer with a probability. Are as many answers right as these
# probabilities say?
#
# **Continues:** [lesson 10](../../10_is_it_good.py).
#
# **Time:** a quarter of a minute to run, ten minutes to read. **You need:** lesson 10.

# %%
import numpy as np

import minilora
from lessons.helpers.common import (
    QUICK,
    agrees,
    figure,
    finetune,
    held_out_notes,
    of,
    read_sweep,
    short,
    table,
)
from lessons.studies.evaluation.confidence_sweep import answers
from minilora import TrainConfig, data
from minilora.data import tasks
from minilora.evaluation import plot
from minilora.evaluation.metrics import calibration_error

PER_ANSWER = 23  # target tokens: 22 letters and the end
config, base, words = minilora.load("micro")
valid, _ = data.encode_rows(
    data.load_rows("questions", "valid"), words, TrainConfig(mask_prompt=True)
)
notes, entropy = held_out_notes(words, TrainConfig(), short(256, 64))
iters = short(200, 20)
few = finetune(rows=tasks.questions("train", 32, seed=0), iters=iters)
many = finetune(rows=tasks.questions("train", 4000, seed=0), iters=iters)

# %% [markdown]
# ## Confidence by token
#
# The confidence of a token is its probability p. A model is [*calibrated*](../../guide/glossary.md)
# if, of the tokens that it gives with confidence p, a share p is right. Two numbers measure this,
# over N tokens (or answers) with the outcome y: 1 if right, 0 if wrong. The ECE sorts them into 15
# bins B by confidence, from (0, 1/15] to (14/15, 1]:
#
# $$\mathrm{ECE} = \sum_B \frac{|B|}{N}\,\bigl|\mathrm{accuracy}(B) - \mathrm{confidence}(B)\bigr|
#   \qquad \text{(Guo et al. 2017, Eq. 3)}$$
#
# $$\mathrm{Brier} = \frac{1}{N} \sum (p - y)^2 \qquad \text{(Brier 1950)}$$
#
# **Predict.** Order these by their ECE per token: the base on its own notes, the base on the
# questions, the run on 32 rows, the run on 4,000 rows.
#
# <details><summary>Answer</summary>
# The base on its own notes is best (it almost reaches their entropy), then the run on 4,000 rows,
# then the one on 32. The base on the questions is far off. (`micro`, 0.1 million parameters, one
# seed.)
# </details>

# %%
scores = {
    "base, its own notes": minilora.evaluate({}, base, notes, config),
    "base, questions": minilora.evaluate({}, base, valid, config),
    "32 rows, questions": few.scores,
    "4,000 rows, questions": many.scores,
}
cells = []
for name, score in scores.items():
    cells.append([name, *(f"{score[key]:.3f}" for key in ("ece", "brier", "loss"))])
table(["per token", "ECE", "Brier", "loss"], cells)

# %%
# Checks
assert scores["base, its own notes"]["ece"] < 0.02, "the base must be calibrated on its own text"
assert scores["base, questions"]["ece"] > 0.3, "and far off on the questions"
if not QUICK:
    assert many.scores["ece"] < 0.02, "the run on 4,000 rows must be calibrated per token"
    of_notes = scores["base, its own notes"]
    assert of_notes["ece"] < many.scores["ece"] < few.scores["ece"] < 0.1, "the order"
    assert of_notes["loss"] < entropy + 0.02, "the base must almost reach the entropy"

# %% [markdown]
# ## Confidence by answer
#
# The confidence of an answer is the product of the probabilities of its tokens, by the chain rule:
#
# $$p(\mathrm{answer}) = \prod_t p_t$$
#
# **Predict.** The run on 4,000 rows has an ECE per token below 0.02. What is its ECE per answer?
#
# <details><summary>Answer</summary>
# 0.15 to 0.26 with the five seeds of the study [Calibration](calibration.py). In this run, more
# than 85 % of the answers are right, and the mean confidence is lower than this share by more than
# 0.08.
# </details>


# %%
def confidence(logits):
    """Return p(answer) (N,) of greedy answers; logits (N, T, V): N answers of T tokens."""
    logits = np.float64(logits)
    logits -= logits.max(axis=-1, keepdims=True)  # now the likeliest token has the logit 0
    log_p = -np.log(np.exp(logits).sum(axis=-1))  # (N, T): log softmax of the likeliest token
    return np.exp(log_p.sum(axis=1))


test_rows = tasks.questions("test", short(1000, 200), 1)
judged = {}
for n, run in ((32, few), (4000, many)):
    logits, hit = answers(run.adapters, run.base, test_rows)
    p = confidence(logits)
    judged[n] = p, hit
    ece = calibration_error(p, hit)
    print(f"{n:,} rows: ECE {ece:.3f}, confidence {p.mean():.3f}, right {hit.mean():.3f}")
print(f"0.993 to the power of {PER_ANSWER}: {0.993**PER_ANSWER:.2f}")

# %%
titles = [f"{n:,} training rows" for n in judged]
size = {"columns": 2, "width": 8.8, "height": 3.4}
with figure("confidence", "confidence of the answer", ["answers", ""], titles, **size) as panels:
    for axes, (p, hit) in zip(panels, judged.values()):
        colors = [plot.LINES[0]["color"], plot.LINES[1]["color"]]
        bins = np.linspace(0, 1, 11)
        axes.hist([p[hit], p[~hit]], bins, stacked=True, color=colors, label=["right", "wrong"])
        axes.legend(frameon=False)

# %% [markdown]
# ![Histograms of the confidence of right and wrong answers of two
# runs](../../../figures/confidence.png)
#
# The run on 4,000 rows is less sure than right. This does not contradict its low ECE per token. If
# a token is certainly right and has probability 0.993, it is off by 0.007. For 23 such tokens the
# product is 0.85. **Measure the event on which you decide.**

# %%
# Checks
assert abs(0.993**PER_ANSWER - 0.85) < 0.005, "0.993 to the power of 23"
if not QUICK:
    p, hit = judged[4000]
    own = of(read_sweep("confidence"), "ece_raw", n=4000)  # the sweep of the study `calibration`
    ece = calibration_error(p, hit)
    assert agrees(ece, own) and ece > 0.1, f"per answer, it is not calibrated: {ece}, seeds {own}"
    assert [f"{x:.2f}" for x in (min(own), max(own))] == ["0.15", "0.26"], "ECE of five seeds"
    assert hit.mean() > 0.85, "its answers must be right (in the sweep: 88 to 100 %)"
    assert p.mean() < hit.mean() - 0.08, "and it must be less sure than right"

# %% [markdown]
# ## How large is an ECE by chance?
#
# Also a calibrated model shows an ECE above 0. The number of right answers in a bin varies by
# chance, and the absolute values add up. So draw outcomes from the model's own confidences: these
# are calibrated by construction.
#
# **Predict.** The ECE of the run on 32 rows is about 0.08 (0.08 to 0.22 with the five seeds of
# the study [Calibration](calibration.py)). How much of it is chance?
#
# <details><summary>Answer</summary>
# A calibrated model would show about 0.04, and 0.06 or more in less than one of 20 samples. So
# chance alone rarely gives 0.08.
# </details>

# %%
rng = np.random.default_rng(0)
p, hit = judged[32]
ece = calibration_error(p, hit)
by_chance = [calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
print(f"ECE of the run on 32 rows: {ece:.3f}")
print(f"if it were calibrated: {np.mean(by_chance):.3f} on average", end=", ")
print(f"at most {np.quantile(by_chance, 0.95):.3f} in 19 of 20 samples")

# %%
# Checks
if not QUICK:
    assert min(by_chance) > 0, "chance alone gives an ECE above 0"
    assert 0.03 < np.mean(by_chance) < 0.05, "about 0.04 by chance"
    assert np.quantile(by_chance, 0.95) < 0.06, "and hardly ever 0.06"
    own = of(read_sweep("confidence"), "ece_raw", n=32)
    assert agrees(ece, own), f"the run on 32 rows is not the sweep's: {ece}, seeds {own}"
    assert [f"{x:.2f}" for x in (own[0], min(own), max(own))] == ["0.08", "0.08", "0.22"]
    assert min(own) > np.quantile(by_chance, 0.95), "with every seed, it must be more than chance"

# %% [markdown]
# ## What was shown
#
# A model can have an ECE below 0.02 per token, and above 0.1 per answer. Compare an ECE with the
# one that a calibrated model of the same confidences would show.
#
# **What to try.**
#
# 1. `tasks.questions("test", short(1000, 200), 1)`: use 100 rows. How large is an ECE by chance?
# 2. `tasks.questions("train", 32, seed=0)`: use 128 rows. Is the model too sure, or not enough?
# 3. `log_p.sum(axis=1)` in `confidence`: use the mean of the logarithms. Is that better calibrated?
#
# **Where to stop with a debugger.** `metrics._scores` (one pass gives loss, hits, confidence and
# Brier), `metrics.calibration_error` (`gap`, before the absolute value).
#
# **Exercises.** calibration, cross-entropy.
#
# **Further reading.** Guo et al. 2017, *On Calibration of Modern Neural Networks*:
# [arXiv:1706.04599](https://arxiv.org/abs/1706.04599). Kadavath et al. 2022, *Language Models
# (Mostly) Know What They Know*: [arXiv:2207.05221](https://arxiv.org/abs/2207.05221).
