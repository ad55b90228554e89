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
from minilora import TrainConfig, data
from minilora.data import tasks
from minilora.evaluation import plot
from minilora.evaluation.metrics import BINS, calibration_error
from minilora.lessons.helpers.common import (
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
from minilora.lessons.studies.evaluation.confidence_sweep import (
    COSTS,
    answers,
    confidence,
    fitted,
    scored,
)

PER_ANSWER = 23  # target tokens: 22 letters and the end
model, words = minilora.load("micro")
rows = data.load_rows("questions", "valid")
valid, _ = data.encode_rows(rows, words, TrainConfig(mask_prompt=True))
notes, entropy = held_out_notes(words, TrainConfig(), short(256, 64))
runs = {}  # by the number of training rows; both are seed 0 of the sweep
for n in (32, 4000):
    runs[n] = finetune(rows=tasks.questions("train", n, seed=0), iters=short(200, 20))

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
# seed.) To put the run on 4,000 rows first is tempting, because it has the lowest loss. But
# calibration is not accuracy: the base often cannot know the next token of a note, and its
# probabilities say so.
# </details>

# %%
few, many = (run.scores for run in runs.values())
of_notes, bare = (minilora.evaluate({}, model, examples) for examples in (notes, valid))
names = ["base, its own notes", "base, questions", "32 rows, questions", "4,000 rows, questions"]
cells = []
for name, score in zip(names, (of_notes, bare, few, many)):
    cells.append([name, *(f"{score[key]:.3f}" for key in ("ece", "brier", "loss"))])
table(["per token", "ECE", "Brier", "loss"], cells)

# %%
# Checks
assert of_notes["ece"] < 0.02, "the base must be calibrated on its own text"
assert bare["ece"] > 0.3, "and far off on the questions"
if not QUICK:
    assert many["ece"] < 0.02, "the run on 4,000 rows must be calibrated per token"
    assert of_notes["ece"] < many["ece"] < few["ece"] < 0.1, "the order"
    assert of_notes["loss"] < entropy + 0.02, "the base must almost reach the entropy"

# %% [markdown]
# ## Confidence by answer
#
# The confidence of an answer is the product of the probabilities of its tokens, by the chain rule:
#
# $$p(\mathrm{answer}) = \prod_t p_t$$
#
# The function `confidence` of `confidence_sweep.py` computes it from the logits of a greedy answer.
#
# **Predict.** The run on 4,000 rows has an ECE per token below 0.02. What is its ECE per answer?
#
# <details><summary>Answer</summary>
# 0.15 to 0.26 with five seeds. To expect a small ECE is tempting, because each token has one. But
# each token is a little less sure than right, and the product of 23 tokens is much less sure.
# </details>

# %%
test_rows = tasks.questions("test", short(1000, 200), 1)
judged = {n: answers(run.adapters, run.model, test_rows) for n, run in runs.items()}
live = {n: scored(run, n, 0) for n, run in runs.items()}  # two rows of the sweep
title = "too sure after 32 rows, not sure enough after 4,000"
labels = "confidence of the answer", "share of answers that are right"
with figure("calibration", *labels, title) as axes:
    axes.plot([0, 1], [0, 1], color=plot.GREY, linewidth=0.8)
    for style, marker, (n, (logits, hit)) in zip(plot.LINES, "os", judged.items()):
        p = confidence(logits)
        print(f"{n:,} rows: ECE {calibration_error(p, hit):.3f}", end=", ")
        print(f"confidence {p.mean():.3f}, right {hit.mean():.3f}")
        which = np.searchsorted(np.arange(1, BINS) / BINS, p)
        filled = [b for b in range(BINS) if (which == b).sum() >= 10]
        points = [[x[which == b].mean() for b in filled] for x in (p, hit)]
        axes.plot(*points, label=f"{n:,} training rows", marker=marker, **style)
    axes.legend(frameon=False)
print(f"0.993 to the power of {PER_ANSWER}: {0.993**PER_ANSWER:.2f}")

# %% [markdown]
# ![Reliability diagram: the share of right answers over their confidence, for the runs on 32 and on
# 4,000 rows](../../../figures/calibration.png)
#
# (Bins with at least ten answers.) The run on 4,000 rows is less sure than right. This does not
# contradict its low ECE per token. If a token is certainly right and has probability 0.993, it is
# off by 0.007. For 23 such tokens the product is 0.85. **Measure the event on which you decide.**

# %%
# Checks
sweep = read_sweep("confidence")
ROWS = sorted({int(row["n"]) for row in sweep})  # numbers of training rows


def over_seeds(name, n):
    """Return a column of the sweep for n training rows, one number per seed."""
    return np.array(of(sweep, name, n=n))


assert abs(0.993**PER_ANSWER - 0.85) < 0.005, "0.993 to the power of 23"
for n, said in ((32, ["0.08", "0.22"]), (4000, ["0.15", "0.26"])):
    own = over_seeds("ece_raw", n)
    assert [f"{x:.2f}" for x in (own.min(), own.max())] == said, f"{n} rows: ECE of five seeds"
    ece = live[n]["ece_raw"]
    assert QUICK or agrees(ece, own), f"the run on {n} rows is not the sweep's: {ece}, seeds {own}"
if not QUICK:
    assert ece > 0.1, f"per answer, it is not calibrated: {ece}"
    assert live[4000]["accuracy"] > 0.85, "its answers must be right (in the sweep: 88 to 100 %)"

# %% [markdown]
# ## How large is an ECE by chance?
#
# Also a calibrated model shows an ECE above 0. The number of right answers in a bin varies by
# chance, and the absolute values add up. So draw outcomes from the model's own confidences: these
# are calibrated by construction.
#
# **Predict.** The ECE of the run on 32 rows is about 0.08 (0.08 to 0.22 with five seeds). How much
# of it is chance?
#
# <details><summary>Answer</summary>
# A calibrated model would show about 0.04, and 0.06 or more in less than one of 20 samples. So
# chance alone rarely gives 0.08. To say "none, there are 1,000 answers" is tempting, but a bin has
# only a part of them.
# </details>

# %%
rng = np.random.default_rng(0)
p = confidence(judged[32][0])
by_chance = [calibration_error(p, rng.random(len(p)) < p) for _ in range(200)]
usual, rare = np.mean(by_chance), np.quantile(by_chance, 0.95)
print(f"if the run on 32 rows were calibrated: ECE {usual:.3f} on average", end=", ")
print(f"at most {rare:.3f} in 19 of 20 samples")

# %%
# Checks
if not QUICK:
    assert min(by_chance) > 0, "chance alone gives an ECE above 0"
    assert 0.03 < usual < 0.05, "about 0.04 by chance"
    assert rare < 0.06, "and hardly ever 0.06"
    own = over_seeds("ece_raw", 32)
    assert f"{own[0]:.2f}" == "0.08", "seed 0"
    assert min(own) > rare, "with every seed, it must be more than chance"

# %% [markdown]
# ## One number corrects the confidence
#
# **Temperature scaling** divides all logits by one number τ, fitted on held-out answers (Guo et al.
# 2017, Sec. 4.2, Eq. 9). The likeliest token stays the likeliest, so no greedy answer changes. Only
# the confidence does: τ > 1 lowers it, τ < 1 raises it. The function `fitted` of
# `confidence_sweep.py` tries 81 values and takes the one with the lowest −Σ log p(outcome).
#
# **Predict.** Is τ above 1 for 16 training rows? Is it for 4,000?
#
# <details><summary>Answer</summary>
# Above 1 for 16 and 32 rows, below 1 from 128 rows on, with every seed. "Always above 1" is
# tempting, because networks are often said to be too sure. Here only those of few rows are.
# </details>

# %%
names = ["accuracy", "temperature", "confidence_raw", "ece_raw", "confidence_scaled", "ece_scaled"]
cells = [[n, *(f"{over_seeds(name, n).mean():.3f}" for name in names)] for n in ROWS]
table(["rows", "accuracy", "τ", "confidence", "ECE", "confidence with τ", "ECE with τ"], cells)

# %% [markdown]
# **Here, models of few rows are too sure, and models of many rows are not sure enough** (`micro`,
# 0.1 million parameters, five seeds). The models of 16 and 32 rows have memorized their rows, and
# every seed is too sure. From 128 rows on, no seed is sure enough. τ more than halves the mean ECE
# at each number of rows. (Where no validation answer was wrong, τ goes to the end of its range,
# 0.25.)

# %%
# Checks
for n in ROWS:
    gap = over_seeds("confidence_raw", n) - over_seeds("accuracy", n)
    if n <= 32:
        assert (gap > 0.03).all(), f"{n} rows: every seed must be too sure"
        memorized = over_seeds("train_loss", n) < over_seeds("loss", n) / 10
        assert memorized.all(), f"{n} rows: every seed must have memorized its rows"
        assert (over_seeds("temperature", n) > 1.05).all(), f"{n} rows: τ must be above 1"
    if n >= 128:
        assert (gap < -0.08).all(), f"{n} rows: no seed may be sure enough"
        assert (over_seeds("temperature", n) < 0.9).all(), f"{n} rows: τ must be below 1"
    for name, most in (("ece", 0.5), ("brier", 1)):
        before, after = (over_seeds(f"{name}_{way}", n).mean() for way in ("raw", "scaled"))
        assert after < most * before, f"{n} rows: τ must halve the ECE and lower the Brier score"
assert over_seeds("token_ece", 4000).max() < 0.02, "calibrated per token"
assert over_seeds("ece_raw", 4000).min() > 0.08, "and not per answer"
logits, hit = judged[4000]
if hit.any():
    end_of_range = fitted(logits[hit], hit[hit])
    assert end_of_range == 0.25, "without a wrong answer, τ must go to the end of its range"
if not QUICK:
    for n, other in ((32, 4000), (4000, 32)):
        for name in ("confidence_raw", "accuracy", "temperature"):
            again, own = live[n][name], over_seeds(name, n)
            assert agrees(again, own, over_seeds(name, other)), f"{n} rows: {name} {again}, {own}"
        gap = live[n]["confidence_raw"] - live[n]["accuracy"]
        assert gap > 0.03 if n == 32 else gap < -0.08, f"{n} rows: too sure, or not sure enough"

# %% [markdown]
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
# **Predict.** A wrong answer costs 1 and a person costs c. So a model with the confidence p asks a
# person where 1 − p > c. Can this rule be worse than no model? Which run asks a person although its
# answer is right, that on 16 rows or that on 4,000, and at which c?
#
# <details><summary>Answer</summary>
# Yes, if the model is too sure: with 16 rows and c = 0.5, in every seed. "No" is tempting, because
# the rule is the best one for a calibrated p. At c = 0.05, the run on 4,000 rows asks a person for
# more than nine of ten questions, although more than 85 % of its answers are right.
# </details>

# %%
asks = 1 - confidence(logits) >= 0.05
paid = [live[4000][f"cost_{way}_0.05"] for way in ("raw", "scaled")]
print(f"4,000 rows, c = 0.05: it asks for {asks.mean():.1%} and is right in {hit.mean():.1%}")
print(f"it pays {paid[0]:.3f} as trained and {paid[1]:.3f} with τ")

# %% [markdown]
# The next table has five seeds. It shows what is paid beyond c; 0 is as good as no model.

# %%
beyond, cells = {}, []
for column, way in (("raw", "as trained"), ("scaled", "with τ")):
    for n in ROWS:
        paid_beyond = [over_seeds(f"cost_{column}_{c}", n) - c for c in COSTS]
        beyond[column, n] = dict(zip(COSTS, paid_beyond))
        cells.append([f"{n:,}, {way}", *(f"{x.min():+.3f} to {x.max():+.3f}" for x in paid_beyond)])
table(["rows", *(f"c = {c}" for c in COSTS)], cells)
changes = np.array([beyond["scaled", n][c] - beyond["raw", n][c] for n in ROWS for c in COSTS])
print(f"τ changes the cost by {changes.min():+.3f} to {changes.max():+.3f}", end=", ")
print(f"{changes.mean():+.3f} on average")

# %% [markdown]
# A model that is too sure can cost more than no model. As trained, no model gains anything at c =
# 0.05. With τ, no run pays as much as c + 0.005. In some runs τ raises the cost, by less than 0.02.

# %%
# Checks
assert (beyond["raw", 16][0.5] > 0.015).all(), "16 rows: worse than no model"
for n in ROWS:
    for c in COSTS:
        assert (beyond["scaled", n][c] < 0.005).all(), f"{n} rows, c = {c}: with τ"
    assert (beyond["raw", n][0.05] > -1e-9).all(), f"{n} rows: nothing gained"
    if n >= 128:
        assert (beyond["scaled", n][0.05] < -0.002).all(), f"{n} rows: τ must gain"
assert changes.mean() < -0.01 and 0 < changes.max() < 0.02, "τ gains, but not in every cell"
if not QUICK:
    assert paid[0] > 0.03 > 0.01 > paid[1], "4,000 rows, c = 0.05: τ must save the person's cost"
    assert asks.mean() > 0.9, "it must ask for nearly every question"

# %% [markdown]
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
# 2. `tasks.questions("valid", 600, 1)` in `scored`: fit τ on 50 answers. How much does it vary?
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
