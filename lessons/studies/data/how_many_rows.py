# %% [markdown]
# # How many rows, how many epochs
#
# **The question.** How many rows does a task need, and when does a second epoch help?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, eight minutes to read. **You need:** lesson 9, and the study [A row
# seen twice](a_row_seen_twice.py).

# %%
import numpy as np

from minilora.lessons.helpers.common import (
    HOLDS,
    QUICK,
    agrees,
    claim,
    interval,
    of,
    read_sweep,
    show_losses,
)
from minilora.lessons.studies.data import rows_sweep

# %% [markdown]
# ## How many rows does the task need?
#
# The sweep trains `micro` (0.1 million parameters) on N questions, in batches of 16 rows, for 800,
# 1,600 or 3,200 *views*: a row counts once each time it is seen. Each case is a complete run with
# its own schedule, at the best of five rates, chosen on validation rows with two seeds. The picture
# shows five other seeds, on test rows.
#
# **Predict.** With 3,200 views, how many different rows are needed to answer nine of ten questions
# exactly: 3,200, 1,600, 400 or 100?

# %%
# Picture
sweep = read_sweep("rows")
fresh = [row for row in sweep if row["seed"] in rows_sweep.FRESH]
test, exact = (
    {case: np.array(of(fresh, name, rows=case[0], views=case[1])) for case in rows_sweep.CASES}
    for name in ("test", "exact")
)
curves = {}
for rows in (100, 200, 400, 800):
    curves[f"{rows} rows"] = [test[rows, views] for views in rows_sweep.VIEWS]
show_losses(curves, rows_sweep.VIEWS, "views", "Test loss, and its range over five seeds")
right = {case: seeds.mean() for case, seeds in exact.items()}
for (rows, views), share in right.items():
    print(f"{rows:,} rows, {views:,} views: {share:.0%} of the answers are right")

# %% [markdown]
# **Answer.** 100 are enough: seen 32 times, they lead to more than 94 % of right answers. With 200
# rows seen 16 times, it is more than 99 %. Here the number of *steps* is the limit: after 800
# views, no case has learned the task, however many different rows it has seen.
#
# ## When does a second epoch help?
#
# Muennighoff et al. 2023 train language models of up to 9 billion parameters from scratch: at equal
# compute, up to four epochs of the same data cost almost nothing against new data, and many more
# epochs add nothing.
#
# **Predict.** Do twice as many epochs lower the test loss, with many rows and with few? And which
# is better: 800 rows seen four times, or 3,200 rows seen once?


# %%
# Table
def ratio(case, other):
    """Return log(test loss of a case / test loss of another case), one per seed."""
    return np.log(test[case] / test[other])


verdicts = []
print("test loss after twice the views / before")
for rows, views in ((100, 1600), (800, 1600), (200, 3200), (800, 3200), (1600, 3200)):
    sentence = f"{rows:,} rows: epoch {views / rows:g} / epoch {views / 2 / rows:g}"
    twice = ratio((rows, views), (rows, views // 2))
    verdicts.append(claim(sentence, twice, -np.inf, np.log(0.5), times=True))
print("test loss of 3,200 views / that of 3,200 rows seen once")
within = {}
for rows in (1600, 800, 400, 200, 100):
    sentence = f"{rows:,} rows, {3200 // rows} epochs, within 1.5 times"
    repeated = ratio((rows, 3200), (3200, 3200))
    within[rows] = claim(sentence, repeated, -np.log(1.5), np.log(1.5), times=True)

# %% [markdown]
# **Answer.** They at least halve the loss, with few rows as with many. At
# 3,200 views, 200 to 1,600 rows seen several times are as good as 3,200 rows, within a factor of
# 1.5. 100 rows have a higher loss.
#
# So here, seeing a row again is worth as much as a new row, up to sixteen epochs. Muennighoff et
# al. found four epochs for pretraining, where each row contains far more that is new. To test their
# claim itself, one needs a model and a text as large as theirs.
#
# For your own task, train on half of your rows for twice the epochs. If the held-out loss is the
# same, more rows will not help much, but more steps may. If it is higher, collect more rows.
#
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
# 3. `("test", "exact")`: use "train" in place of "test". Which cases overfit?
#
# **Where to stop with a debugger.** `rows_sweep.run`, and `batching.batch_at`.
#
# **Exercises.** one-file-loss, prompt-mask.
#
# **Further reading.** Muennighoff et al. 2023, *Scaling Data-Constrained Language Models*:
# [arXiv:2305.16264](https://arxiv.org/abs/2305.16264).

# %%
# Checks
assert max(right[case] for case in right if case[1] == 800) < 0.1, "800 views are too few"
assert right[100, 3200] > 0.94, "100 rows: more than 94 %"
assert min(right[rows, 3200] for rows in (200, 400, 800, 1600, 3200)) > 0.99, "from 200 rows on"
assert set(verdicts) == {HOLDS}, "twice the views must at least halve the loss"
assert [within[rows] for rows in (1600, 800, 400, 200)] == [HOLDS] * 4, "as good as new rows"
assert interval(ratio((100, 3200), (3200, 3200))).low > 0, "a hundred rows are too few"
for case in rows_sweep.CASES:
    best = rows_sweep.best_rate(sweep, case)
    assert best not in (rows_sweep.RATES[0], rows_sweep.RATES[-1]), f"{case}: inside the grid"
if not QUICK:  # a run of the sweep again, told apart from half of its views
    again = rows_sweep.run((200, 3200, rows_sweep.best_rate(sweep, (200, 3200)), 0))["test"]
    assert agrees(again, test[200, 3200], test[200, 1600]), f"{again}, not {test[200, 3200]}"
