# %% [markdown]
# # MERGE 12d. Temperature and decisions
#
# **The question.** Can one number correct a model's confidence? And what is that worth, if a person
# can answer in place of the model?
#
# **Continues:** [lesson 10](../../10_is_it_good.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** lesson 10 and the study
# [Calibration](calibration.py).

# %%
import numpy as np

from lessons.helpers.common import QUICK, agrees, finetune, of, read_sweep, short, table
from lessons.studies.evaluation import confidence_sweep
from lessons.studies.evaluation.confidence_sweep import answers, confidence
from minilora.data import tasks

sweep = read_sweep("confidence")
ROWS = sorted({int(row["n"]) for row in sweep})  # numbers of training rows


def over_seeds(name, n):
    """Return a column of the sweep for n training rows, one number per seed."""
    return np.array(of(sweep, name, n=n))


# %% [markdown]
# ## One number corrects the confidence
#
# **Temperature scaling** divides all logits by one number τ, fitted on held-out answers (Guo et al.
# 2017, Sec. 4.2, Eq. 9). The likeliest token stays the likeliest, so no greedy answer changes. Only
# the confidence does: τ > 1 lowers it, τ < 1 raises it.
#
# **Predict.** Is τ above 1 for 16 training rows? Is it for 4,000?
#
# <details><summary>Answer</summary>
# Above 1 for 16 and 32 rows, below 1 from 128 rows on, with every seed.
# </details>


# %%
def fitted(logits, hit):
    """Return the temperature with the lowest −Σ log p(outcome) on these answers."""
    losses = []
    for temperature in confidence_sweep.TEMPERATURES:
        p = np.clip(confidence(logits, temperature), 1e-9, 1 - 1e-9)
        losses.append(-np.log(np.where(hit, p, 1 - p)).mean())
    return float(confidence_sweep.TEMPERATURES[np.argmin(losses)])


names = ["accuracy", "temperature", "confidence_raw", "ece_raw", "confidence_mended", "ece_mended"]
cells = []
for n in ROWS:
    cells.append([n, *(f"{over_seeds(name, n).mean():.3f}" for name in names)])
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
    gap, temperature = over_seeds("confidence_raw", n) - over_seeds("accuracy", n), names[1]
    if n <= 32:
        assert (gap > 0.03).all(), f"{n} rows: every seed must be too sure"
        memorized = over_seeds("train_loss", n) < over_seeds("loss", n) / 10
        assert memorized.all(), f"{n} rows: every seed must have memorized its rows"
        assert (over_seeds(temperature, n) > 1.05).all(), f"{n} rows: τ must be above 1"
    if n >= 128:
        assert (gap < -0.08).all(), f"{n} rows: no seed may be sure enough"
        assert (over_seeds(temperature, n) < 0.9).all(), f"{n} rows: τ must be below 1"
    raw, scaled = over_seeds("ece_raw", n).mean(), over_seeds("ece_mended", n).mean()
    assert scaled < raw / 2, f"{n} rows: τ must halve the ECE"
    raw, scaled = over_seeds("brier_raw", n).mean(), over_seeds("brier_mended", n).mean()
    assert scaled < raw, f"{n} rows: τ must lower the Brier score"
assert over_seeds("token_ece", 4000).max() < 0.02, "calibrated per token"
assert over_seeds("ece_raw", 4000).min() > 0.08, "and not per answer"

# %% [markdown]
# Two runs, bin by bin:

# %%
valid_rows = tasks.questions("valid", short(600, 100), 1)
test_rows = tasks.questions("test", short(1000, 200), 1)
tau, judged = {}, {}
for n in (32, 4000):
    run = finetune(rows=tasks.questions("train", n, seed=0), iters=short(200, 20))
    valid_answers = answers(run.adapters, run.base, valid_rows)
    tau[n] = fitted(*valid_answers)
    judged[n] = answers(run.adapters, run.base, test_rows)
    print(f"{n:,} training rows: τ = {tau[n]:.2f}")

# Left: the answers of the run on 32 rows in bins. Right: all runs of the sweep.
confidence_sweep.draw_calibration(*judged[32], tau[32], sweep)

# %% [markdown]
# ![Reliability diagram; confidence minus accuracy over rows](../../../figures/calibration.png)
#
# Left: bins with at least ten answers. Right: the mean, least and most of five seeds.
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
# **Predict.** Can this rule be worse than no model? Which of the two runs asks a person although
# its answer is right, and at which c?
#
# <details><summary>Answer</summary>
# Yes, if the model is too sure: with 16 rows and c = 0.5, in every seed. At c = 0.05, the run on
# 4,000 rows asks a person for more than nine of ten questions, although more than 85 % of its
# answers are right.
# </details>


# %%
def cost(p, hit, person):
    """Return the mean cost if the model answers where 1 − p < person, and a person elsewhere."""
    return float(np.where(1 - p < person, ~hit, person).mean())


cells, paid = [], {}
for n, (logits, hit) in judged.items():
    for way, temperature in (("as trained", 1.0), ("with τ", tau[n])):
        p = confidence(logits, temperature)
        for c in confidence_sweep.COSTS:
            paid[n, way, c] = cost(p, hit, c)
            answered, promised = (1 - p < c).mean(), np.minimum(1 - p, c).mean()
            numbers = [f"{answered:.0%}", f"{promised:.3f}", f"{paid[n, way, c]:.3f}"]
            cells.append([f"{n:,} rows, {way}", f"{c}", *numbers])
table(["", "a person costs", "answered", "promised cost", "paid"], cells)

# %% [markdown]
# The next tables have five seeds. They show what is paid beyond c; 0 is as good as no model.

# %%
changes = []
for way, column in (("as trained", "raw"), ("with τ", "mended")):
    cells = []
    for n in ROWS:
        beyond = [over_seeds(f"cost_{column}_{c}", n) - c for c in confidence_sweep.COSTS]
        cells.append([n, *(f"{x.min():+.3f} to {x.max():+.3f}" for x in beyond)])
    table([f"rows, {way}", *(f"c = {c}" for c in confidence_sweep.COSTS)], cells)
for n in ROWS:
    for c in confidence_sweep.COSTS:
        changes.extend(over_seeds(f"cost_mended_{c}", n) - over_seeds(f"cost_raw_{c}", n))
print(f"τ changes the cost by {min(changes):+.3f} to {max(changes):+.3f}", end=", ")
print(f"{np.mean(changes):+.3f} on average")

# %% [markdown]
# A model that is too sure can cost more than no model. As trained, no model gains anything at c =
# 0.05. With τ, no run pays as much as c + 0.005. In some runs τ raises the cost, by less than 0.02.

# %%
# Checks
assert tau[4000] == confidence_sweep.fitted(*valid_answers), "the sweep must fit the same τ"
if valid_answers[1].all():
    assert tau[4000] == 0.25, "without a wrong answer, τ must go to the end of its range"
assert (over_seeds("cost_raw_0.5", 16) > 0.5 + 0.015).all(), "16 rows: worse than no model"
for n in ROWS:
    for c in confidence_sweep.COSTS:
        assert (over_seeds(f"cost_mended_{c}", n) < c + 0.005).all(), f"{n} rows, c = {c}: with τ"
    assert (over_seeds("cost_raw_0.05", n) > 0.05 - 1e-9).all(), f"{n} rows: nothing gained"
    if n >= 128:
        assert (over_seeds("cost_mended_0.05", n) < 0.05 - 0.002).all(), f"{n} rows: τ must gain"
assert np.mean(changes) < -0.01 and 0 < max(changes) < 0.02, "τ gains, but not in every cell"
if not QUICK:
    asked, with_tau = paid[4000, "as trained", 0.05], paid[4000, "with τ", 0.05]
    assert asked > 0.03 > 0.01 > with_tau, "4,000 rows, c = 0.05: τ must save the person's cost"
    logits, hit = judged[4000]
    assert (1 - confidence(logits) < 0.05).mean() < 0.1, "it must ask for nearly every question"
    assert hit.mean() > 0.85, "and nearly all its answers must be right"
    for n, other in ((32, 4000), (4000, 32)):  # the live runs are seed 0 of the sweep
        logits, hit = judged[n]
        live = {"confidence_raw": confidence(logits).mean(), "temperature": tau[n]}
        live["accuracy"] = hit.mean()
        for name, again in live.items():
            own = over_seeds(name, n)
            assert agrees(again, own, over_seeds(name, other)), f"{n} rows: {name} {again}, {own}"
        gap = live["confidence_raw"] - live["accuracy"]
        assert gap > 0.03 if n == 32 else gap < -0.08, f"{n} rows: too sure, or not sure enough"

# %% [markdown]
# ## What was shown
#
# One temperature, fitted on held-out answers, more than halves the mean ECE at each number of rows.
# A model that is too sure can be worth less than no model.
#
# **What to try.**
#
# 1. `tasks.questions("valid", short(600, 100), 1)`: fit τ on 50 answers. How much does it vary?
# 2. `for n in (32, 4000)`: add 128 rows. At which c does τ help most?
# 3. `np.where(1 - p < person, ~hit, person)`: a wrong answer costs 3. How must the rule change?
#
# **Where to stop with a debugger.** `fitted`: how flat is `losses` where no answer is wrong?
#
# **Exercises.** calibration.
#
# **Further reading.** Guo et al. 2017: [arXiv:1706.04599](https://arxiv.org/abs/1706.04599). Chow
# 1970, *On Optimum Recognition Error and Reject Tradeoff*:
# [doi:10.1109/TIT.1970.1054406](https://doi.org/10.1109/TIT.1970.1054406).
