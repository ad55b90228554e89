# %% [markdown]
# # How many rows, how many epochs
#
# **The question.** How many rows does a task need, and when does a second epoch help?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 9, and the study [A row
# seen twice](a_row_seen_twice.py).

# %%
import numpy as np

from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import HOLDS, QUICK, claim, interval, of, spread, table
from minilora.lessons.studies.data import rows_sweep

# %% [markdown]
# ## How many rows does the task need?
#
# The sweep trains `micro` (0.1 million parameters) on N questions, in batches of 16 rows, for 800,
# 1,600 or 3,200 *views*: a row counts once each time it is seen. Each case is a complete run with
# its own schedule, at the best of five rates, chosen on validation rows with two seeds. The tables
# show five other seeds, on test rows.
#
# **Predict.** With 3,200 views, how many different rows are needed to answer nine of ten questions
# exactly: 3,200, 1,600, 400 or 100?
#
# <details><summary>Answer</summary>
# 100 are enough: seen 32 times, they lead to 94 % of right answers. With 200 rows seen 16 times, it
# is more than 99 %. "1,600" is tempting, because a repeated row seems to be worth little. But here
# the number of *steps* is the limit: after 800 views, no case has learned the task, however many
# different rows it has seen.
# </details>

# %%
sweep = common.read_sweep("rows")


def column(name, rows, views):
    """Return a column of a case at its best rate, one number per seed."""
    chosen = [row for row in sweep if row["seed"] in rows_sweep.FRESH]
    return np.array(of(chosen, name, rows=rows, views=views))


SIZES = sorted({rows for rows, _ in rows_sweep.CASES})
for views in rows_sweep.VIEWS:
    cells = []
    for rows in SIZES:
        if (rows, views) in rows_sweep.CASES:
            losses, exact = column("test", rows, views), column("exact", rows, views)
            rate = rows_sweep.best_rate(sweep, (rows, views))
            cells.append(
                [rows, f"{views / rows:g}", f"{rate:g}", spread(losses, 3), f"{exact.mean():.0%}"]
            )
    table([f"rows, {views:,} views", "epochs", "rate", "test loss", "exact match"], cells)
    print()

# %% [markdown]
# ## When does a second epoch help?
#
# Muennighoff et al. 2023 train language models of up to 9 billion parameters from scratch: at equal
# compute, up to four epochs of the same data cost almost nothing against new data, and many more
# epochs add nothing.
#
# **Predict.** Do twice as many epochs lower the test loss, with many rows and with few? And which
# is better: 800 rows seen four times, or 3,200 rows seen once?
#
# <details><summary>Answer</summary>
# They lower the loss to less than a fifth in the mean, with few rows as with many. At 3,200 views,
# 200 to 1,600 rows seen several times are as good as 3,200 rows, within a factor of 1.5. 100 rows
# have a higher loss. "New rows are better" is tempting, because each shows something new. Here,
# this is so only against 100 rows.
# </details>

# %%
verdicts = []


def ratio(case, other):
    """Return log(test loss of a case / test loss of another case), one per seed."""
    return np.log(column("test", *case) / column("test", *other))


print("test loss after twice the views / before")
for rows, views in ((100, 1600), (800, 1600), (200, 3200), (800, 3200), (1600, 3200)):
    sentence = f"{rows:,} rows: epoch {views / rows:g} / epoch {views / 2 / rows:g}"
    again = ratio((rows, views), (rows, views // 2))
    verdicts.append(claim(sentence, again, -np.inf, np.log(0.5), times=True))
print("test loss of 3,200 views / that of 3,200 rows seen once")
within = {}
for rows in (1600, 800, 400, 200, 100):
    sentence = f"{rows:,} rows, {3200 // rows} epochs, within 1.5 times"
    differences = ratio((rows, 3200), (3200, 3200))
    within[rows] = claim(sentence, differences, -np.log(1.5), np.log(1.5), times=True)

# %% [markdown]
# So here, seeing a row again is worth as much as a new row, within 1.5 times and up to sixteen
# epochs. Muennighoff et al. found four epochs for pretraining, where each row contains far more
# that is new. To test their claim itself, one needs a model and a text as large as theirs.
#
# For your own task, train on half of your rows for twice the epochs. If the held-out loss is the
# same, more rows will not help much, but more steps may. If it is higher, collect more rows.

# %%
# Checks
assert set(verdicts) == {HOLDS}, "twice the views must at least halve the loss"
assert [within[rows] for rows in (1600, 800, 400, 200)] == [HOLDS] * 4, "as good as new rows"
assert interval(ratio((100, 3200), (3200, 3200))).low > 0, "a hundred rows are too few"
for case in rows_sweep.CASES:
    best = rows_sweep.best_rate(sweep, case)
    assert best not in (rows_sweep.RATES[0], rows_sweep.RATES[-1]), f"{case}: inside the grid"
exact = {case: column("exact", *case).mean() for case in rows_sweep.CASES}
assert max(exact[case] for case in exact if case[1] == 800) < 0.1, "800 views are too few"
assert exact[100, 3200] > 0.9 and min(exact[n, 3200] for n in SIZES[1:]) > 0.99
if not QUICK:  # a run of the sweep again, told apart from half of its views
    again = rows_sweep.run((200, 3200, rows_sweep.best_rate(sweep, (200, 3200)), 0))["test"]
    own, other = column("test", 200, 3200), column("test", 200, 1600)
    assert common.agrees(again, own, other), f"{again}, not {own}"

# %% [markdown]
# ## What was shown
#
# On `micro` (0.1 million parameters, five seeds), 200 rows and 3,200 views are enough for the task
# of the questions. Up to sixteen epochs are as good as new rows, within 1.5 times. After 32 epochs
# of 100 rows, the loss is higher.
#
# **What to try.**
#
# 1. `CASES` in `rows_sweep.py`: add 50 rows. How many answers are right after 3,200 views?
# 2. `VIEWS`: add 6,400. Do 100 rows catch up?
# 3. `column("test", …)`: use `"train"`. Which cases overfit?
#
# **Where to stop with a debugger.** `rows_sweep.run`, and `batching.batch_at`.
#
# **Exercises.** one-file-loss, prompt-mask.
#
# **Further reading.** Muennighoff et al. 2023, *Scaling Data-Constrained Language Models*:
# [arXiv:2305.16264](https://arxiv.org/abs/2305.16264).
