# %% [markdown]
# # Calibration
#
# **The question.** A model gives each answer with a probability. Are as many answers right as these
# probabilities say? And if not, can one number correct them?
#
# The answer matters for decisions: if a person can answer in place of the model, the probability
# decides who does.
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 20 seconds to run, twenty minutes to read. **You need:** lesson 9.

# %%
import numpy as np

import minilora
from minilora import data
from minilora.data import tasks
from minilora.evaluation import plot
from minilora.evaluation.metrics import BINS, calibration_error
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    figure,
    finetune,
    of,
    read_sweep,
    scores_of,
    short,
    spread,
    table,
)
from minilora.lessons.studies.evaluation.confidence_sweep import (
    COSTS,
    ROWS,
    answers,
    confidence,
    fitted,
)

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

# %%
model, _ = minilora.load("micro")
runs = {}  # by the number of training rows; both are seed 0 of the sweep
for n in (32, 4000):
    runs[n] = finetune(rows=tasks.questions("train", n, seed=0), iters=short(200, 20))
per_token = {
    "base, its own notes": scores_of({}, model, tasks.notes(256, seed=1)[0]),
    "base, questions": scores_of({}, model, data.load_rows("questions", "valid")),
    "32 rows, questions": runs[32].scores,
    "4,000 rows, questions": runs[4000].scores,
}
names = ("ece", "brier", "loss")
cells = [[case, *(f"{s[name]:.3f}" for name in names)] for case, s in per_token.items()]
table(["per token", "ECE", "Brier", "loss"], cells)

# %% [markdown]
# **Answer.** The base on its own notes is best, then the run on 4,000 rows, then the one on 32. The
# base on the questions is far off. (`micro`, 0.1 million parameters, one seed.) The run on 4,000
# rows has the lowest loss, but calibration is not accuracy: the base often cannot know the next
# token of a note, and its probabilities say so.
#
# ## Confidence by answer
#
# The confidence of an answer is the product of the probabilities of its tokens, by the chain rule:
#
# $$p(\mathrm{answer}) = \prod_t p_t$$
#
# The function `confidence` of `confidence_sweep.py` computes it from the logits of a greedy answer.
#
# **Predict.** The run on 4,000 rows has an ECE per token below 0.02. What is its ECE per answer?

# %%
test_rows = tasks.questions("test", short(1000, 200), 1)
judged, ece = {}, {}
for n, run in runs.items():
    judged[n] = answers(run.adapters, run.model, test_rows)
    logits, hit = judged[n]
    p = confidence(logits)
    ece[n] = calibration_error(p, hit)
    print(f"{n:,} rows: ECE {ece[n]:.3f}, confidence {p.mean():.3f}, right {hit.mean():.3f}")

# %%
# Picture
title = "too sure after 32 rows, not sure enough after 4,000"
labels = "confidence of the answer", "share of answers that are right"
with figure("calibration", *labels, title) as axes:
    axes.plot([0, 1], [0, 1], color=plot.GREY, linewidth=0.8)
    for style, marker, (n, (logits, hit)) in zip(plot.LINES, "os", judged.items()):
        p = confidence(logits)
        which = np.searchsorted(np.arange(1, BINS) / BINS, p)
        filled = [b for b in range(BINS) if (which == b).sum() >= 10]
        points = [[x[which == b].mean() for b in filled] for x in (p, hit)]
        axes.plot(*points, label=f"{n:,} training rows", marker=marker, **style)
    axes.legend(frameon=False)

# %% [markdown]
# ![Reliability diagram: the share of right answers over their confidence, for the runs on 32 and on
# 4,000 rows](../../../figures/calibration.png)
#
# (Bins with at least ten answers.)
#
# **Answer.** 0.15 to 0.26 with five seeds: the run is less sure than right. This does not
# contradict its low ECE per token. If a token is certainly right and has probability 0.993, it is
# off by 0.007. For the 23 tokens of an answer the product is 0.85. **Measure the event on which you
# decide.**
#
# ## How large is an ECE by chance?
#
# Also a calibrated model shows an ECE above 0. The number of right answers in a bin varies by
# chance, and the absolute values add up. So draw outcomes from the model's own confidences: these
# are calibrated by construction.
#
# **Predict.** The ECE of the run on 32 rows is about 0.08 (0.08 to 0.22 with five seeds). How much
# of it is chance?

# %%
rng = np.random.default_rng(0)
p = confidence(judged[32][0])
by_chance = [calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
usual, rare = np.mean(by_chance), np.quantile(by_chance, 0.95)
print(f"if the run on 32 rows were calibrated: ECE {usual:.3f} on average", end=", ")
print(f"at most {rare:.3f} in 19 of 20 samples")

# %% [markdown]
# **Answer.** A calibrated model would show about 0.04, and 0.06 or more in less than one of 20
# samples: there are 1,000 answers, but a bin has only a part of them. So chance alone rarely gives
# 0.08.
#
# ## One number corrects the confidence
#
# **Temperature scaling** divides all logits by one number τ, fitted on held-out answers (Guo et al.
# 2017, Sec. 4.2, Eq. 9). The likeliest token stays the likeliest, so no greedy answer changes. Only
# the confidence does: τ > 1 lowers it, τ < 1 raises it. The function `fitted` of
# `confidence_sweep.py` tries 81 values and takes the one with the lowest −Σ log p(outcome).
#
# **Predict.** Is τ above 1 for 16 training rows? Is it for 4,000?

# %%
temperature = {}
for n, run in runs.items():
    fit_rows = tasks.questions("valid", short(600, 100), 1)
    temperature[n] = fitted(*answers(run.adapters, run.model, fit_rows))
    logits, hit = judged[n]
    after = calibration_error(confidence(logits, temperature[n]), hit)
    print(f"{n:,} rows: τ = {temperature[n]:.2f}, ECE {ece[n]:.3f} before and {after:.3f} after")

# %%
# Table
sweep = read_sweep("confidence")
seeds = {(name, n): np.array(of(sweep, name, n=n)) for name in sweep[0] for n in ROWS}
names = ["accuracy", "confidence_raw", "temperature", "ece_raw", "ece_scaled"]
cells = [[n, *(f"{seeds[name, n].mean():.3f}" for name in names)] for n in ROWS]
table(["rows, five seeds", "accuracy", "confidence", "τ", "ECE", "ECE with τ"], cells)

# %% [markdown]
# **Answer.** Above 1 for 16 and 32 rows, below 1 from 128 rows on, with every seed. **Here, models
# of few rows are too sure, and models of many rows are not sure enough** (`micro`, 0.1 million
# parameters, five seeds). Networks are often said to be too sure, but here only those of few rows
# are. τ more than halves the mean ECE at each number of rows.
#
# ## A decision
#
# A wrong answer costs 1. If a person answers, that costs c. Answering costs 1 − p on average, *if p
# is calibrated*. So answer where
#
# $$1 - p < c$$
#
# (Chow 1970.) This rule promises a mean cost of mean(min(1 − p, c)). If a person answers all
# questions, the cost is c. A rule that costs more than c is worse than no model.
#
# **Predict.** The rule is the best one for a calibrated p. Can it be worse than no model? With 16
# rows or with 4,000, and at which c?

# %%
# Table
cells = []
for way in ("raw", "scaled"):
    for n in ROWS:
        beyond = [seeds[f"cost_{way}_{c}", n] - c for c in COSTS]
        cells.append([f"{n:,}, {way}", *(spread(x, 3) for x in beyond)])
print("paid beyond c, five seeds; 0 is as good as no model")
table(["rows", *(f"c = {c}" for c in COSTS)], cells)

# %% [markdown]
# **Answer.** Yes, if the model is too sure: with 16 rows and c = 0.5, in every seed. With τ, no run
# pays as much as c + 0.005.
#
# ## What was shown
#
# A model can have an ECE below 0.02 per token, and above 0.1 per answer. Compare an ECE with the
# one that a calibrated model of the same confidences would show. One temperature, fitted on
# held-out answers, more than halves the mean ECE at each number of rows. A model that is too sure
# can be worth less than no model.
#
# **What to try.**
#
# 1. `tasks.questions("test", short(1000, 200), 1)`: use 100 rows. How large is an ECE by chance?
# 2. `short(600, 100)`: fit τ on 50 answers. How much does it vary?
# 3. `for n in (32, 4000)`: add 128 rows. How far is its ECE from chance?
# 4. `cost` in `confidence_sweep.py`: a wrong answer costs 3. How must the rule change?
#
# **Where to stop with a debugger.** `metrics.calibration_error` (`gap`, before the absolute value);
# `fitted` in `confidence_sweep.py`: how flat is `nll` where no answer is wrong?
#
# **Exercises.** calibration, one-file-loss.
#
# **Further reading.** Guo et al. 2017, *On Calibration of Modern Neural Networks*:
# [arXiv:1706.04599](https://arxiv.org/abs/1706.04599). Kadavath et al. 2022, *Language Models
# (Mostly) Know What They Know*: [arXiv:2207.05221](https://arxiv.org/abs/2207.05221). Chow 1970,
# *On Optimum Recognition Error and Reject Tradeoff*:
# [doi:10.1109/TIT.1970.1054406](https://doi.org/10.1109/TIT.1970.1054406).

# %%
# Checks
assert abs(0.993**23 - 0.85) < 0.005, "0.993 to the power of 23, the tokens of an answer"
for n, said in ((32, "0.08 to 0.22"), (4000, "0.15 to 0.26")):
    own = seeds["ece_raw", n]
    assert f"{own.min():.2f} to {own.max():.2f}" == said, f"{n} rows: ECE of five seeds"
for n in ROWS:
    gap = seeds["confidence_raw", n] - seeds["accuracy", n]
    if n <= 32:
        assert (gap > 0.03).all(), f"{n} rows: every seed must be too sure"
        assert (seeds["temperature", n] > 1.05).all(), f"{n} rows: τ must be above 1"
    if n >= 128:
        assert (gap < -0.08).all(), f"{n} rows: no seed may be sure enough"
        assert (seeds["temperature", n] < 0.9).all(), f"{n} rows: τ must be below 1"
    ratio = seeds["ece_scaled", n].mean() / seeds["ece_raw", n].mean()
    assert ratio < 0.5, f"{n} rows: τ must halve the ECE"
    for c in COSTS:
        assert (seeds[f"cost_scaled_{c}", n] < c + 0.005).all(), f"{n} rows, c = {c}: with τ"
assert (seeds["cost_raw_0.5", 16] > 0.515).all(), "16 rows: worse than no model"
assert seeds["token_ece", 4000].max() < 0.02, "calibrated per token"
if not QUICK:
    of_notes, bare, few, many = (score["ece"] for score in per_token.values())
    assert of_notes < many < few < 0.1 < 0.3 < bare, "the order"
    assert 0.03 < usual < 0.05 and rare < 0.06, "about 0.04 by chance, and hardly ever 0.06"
    assert min(seeds["ece_raw", 32]) > rare, "with every seed, it must be more than chance"
    for n, other in ((32, 4000), (4000, 32)):  # seed 0 of the sweep again
        assert agrees(ece[n], seeds["ece_raw", n]), f"{n} rows: ECE {ece[n]}"
        own, others = (seeds["temperature", rows] for rows in (n, other))
        assert agrees(temperature[n], own, others), f"{n} rows: τ {temperature[n]}"
