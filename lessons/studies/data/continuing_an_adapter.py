# %% [markdown]
# # Continuing an adapter
#
# **The question.** An adapter has learned some rows, and now there are others. Do you continue to
# train the same adapter, merge it and train a new one, or stack a new one on it? And is what was
# learned from the first rows kept?
#
# Users ask this in many places ([LoRA](https://github.com/microsoft/LoRA/issues/166),
# [litgpt](https://github.com/Lightning-AI/litgpt/issues/1464),
# [mlx](https://github.com/ml-explore/mlx-examples/issues/606)). The answers there have no numbers.
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** lesson 4, and the study
# [Averaging and stacking adapters](../serving/averaging_and_stacking.py).

# %%
import numpy as np

from minilora.lessons.helpers.common import (
    OPEN,
    QUICK,
    agrees,
    claim,
    finetune,
    of,
    read_sweep,
    spread,
    table,
)
from minilora.lessons.studies.data import continuing_sweep as continuing

# %% [markdown]
# ## Merged and stacked are the same function
#
# The first adapter of `micro` (0.1 million parameters) answers "Who, what, where?" after 200 steps.
# The second task asks "Where, what, who?", and the answer has this order. There are three ways to
# begin the second run:
#
# | way | frozen | trained |
# |---|---|---|
# | same | W | the first A and B, further |
# | merged | W + ΔW, dense | a new A and B = 0 |
# | stacked | W, and the first A and B | a new A and B = 0 |
#
# **Predict.** All three ways begin with the same outputs. Which have the same first gradient?

# %%
begin = {}
rows = continuing.mixed(0, 0)
for way in ("same", "merged", "stacked"):
    run = finetune(
        start=continuing.start(way, 0), rows=rows, held_out=rows[:1], iters=1, learning_rate=1e-9,
        warmup_ratio=0.0,
    )  # fmt: skip
    begin[way] = [run.history[0][name] for name in ("loss", "grad_norm")]
    print("{}: loss {:.5f}, norm of its gradient {:.5f}".format(way, *begin[way]))

# %% [markdown]
# **Answer.** Merged and stacked, to float32 rounding: in both, the new factors are added to the
# same W + ΔW. So the two learn and forget the same, and differ in what is stored: one dense model,
# or a base (also a 4-bit one) and two adapters. "Same" has another gradient, because its B is not
# zero.
#
# ## What is learned, and what is left of the first task
#
# The sweep has five ways: same and merged, each without and with **replay** (2 of the 16 rows of
# each step are of the first task, drawn from its training rows), and a *new* adapter on the base
# that has never seen the first task. The second run has 200 steps. Its rate is the best of five,
# chosen with two seeds on validation rows: of the second task, and with replay of both tasks. The
# table shows five other seeds, on test rows.
#
# **Predict.** Which of these ways keeps the first task? And what does replay cost the second one?

# %%
# Table
sweep = read_sweep("continuing")
fresh = [row for row in sweep if row["seed"] in continuing.FRESH]


def column(name, case):
    """Return a column of a case, (way, replay), at its best rate: one number per seed."""
    return np.array(of(fresh, name, way=case[0], replay=case[1]))


old, new, right, cells = {}, {}, {}, []
for case in continuing.CASES:
    old[case], new[case] = (column(f"test_{task}", case) for task in ("old", "new"))
    right[case] = column("test_exact_old", case)
    exact = (right[case], column("test_exact_new", case))
    numbers = [spread(losses, 3) for losses in (old[case], new[case])]
    shares = [f"{share.mean():.0%}" for share in exact]
    cells.append(["{}, replay {} of 16".format(*case), *numbers, *shares])
table(["way", "first task: loss", "second: loss", "first: exact", "second: exact"], cells)
verdicts = []
for sentence, losses, case, other in (
    ("second task, same: replay costs", new, ("same", 2), ("same", 0)),
    ("second task, merged: replay costs", new, ("merged", 2), ("merged", 0)),
    ("second task: a new adapter is worse than the same", new, ("new", 0), ("same", 0)),
    ("first task, replay: the same is worse than merged", old, ("same", 2), ("merged", 2)),
):
    verdicts.append(claim(sentence, np.log(losses[case] / losses[other]), times=True))

# %% [markdown]
# **Answer.** Without replay, none: no answer of the first task is right any more, in any seed. With
# replay, nine answers of ten are right in the mean, and no cost for the second task is shown.
#
# **Frozen weights do not protect a task.** The frozen part is only a summand of the weights: the
# new part can undo what it does. Merged (or stacked) forgets less than the same adapter, in each
# seed. But after 200 steps, both have lost the first task. (These two tasks disturb each other: the
# order of the answer is reversed, and only the question says so. Other tasks may need less replay.)
#
# Three differences are not shown, and the intervals are wide: a cost of replay for the second task,
# a gain for it from the first adapter, and one between same and merged with replay. So if the first
# rows no longer matter, you can begin anew. If they matter, keep them, and mix some in. Then the
# choice between the same adapter and a merged one is one of storage. The same adapter stays one
# small file. Merging needs a dense model. Stacking keeps a 4-bit base, and computes two adapters.
#
# ## What was shown
#
# On `micro` (0.1 million parameters, five seeds), a new adapter on merged weights and one stacked
# on the first begin with the same gradient. Trained on the second task alone, each way loses the
# first task completely. With one row in eight of the first task, nine answers of ten stay right in
# the mean. This is one pair of tasks, with answers in reverse order. A larger model, tasks that
# share more, or a shorter second run may forget less.
#
# **What to try.**
#
# 1. `REPLAYED = (0, 2)` in `continuing_sweep.py`: use 1. Is one row in sixteen enough?
# 2. `STEPS`: use 50. What is forgotten first?
# 3. `LORA`: use r = 1. Does a smaller adapter forget less?
#
# **Where to stop with a debugger.** `continuing_sweep.start`, and `several.stack`.
#
# **Exercises.** one-file-init-lora, combine-exact.
#
# **Further reading.** Robins 1995, *Catastrophic Forgetting, Rehearsal and Pseudorehearsal*
# (Connection Science 7, 123–146). The study [Intruder
# dimensions](../since_2023/intruder_dimensions.py) is about what full fine-tuning forgets.

# %%
# Checks
np.testing.assert_allclose(begin["merged"], begin["stacked"], rtol=1e-4)
np.testing.assert_allclose(begin["same"][0], begin["stacked"][0], rtol=1e-4)
assert abs(begin["same"][1] / begin["stacked"][1] - 1) > 0.02, "B = 0 has another gradient"
for way in ("same", "merged"):
    assert right[way, 0].max() == 0, f"{way}: the first task must be lost"
    assert (old[way, 2] < 0.2 * old[way, 0]).all(), f"{way}: replay must keep it, in every seed"
    assert right[way, 2].mean() > 0.9, f"{way}: nine answers of ten"
assert (old["merged", 0] < old["same", 0]).all(), "merged must forget less, in every seed"
assert set(verdicts) == {OPEN}, "no difference is shown"
for case in continuing.CASES:
    rate = continuing.best_rate(sweep, case)
    assert rate not in (continuing.RATES[0], continuing.RATES[-1]), f"{case}: inside the grid"
if not QUICK:  # a run of the sweep again
    again = continuing.run(("same", 2, continuing.best_rate(sweep, ("same", 2)), 0))["test_old"]
    assert agrees(again, old["same", 2], old["same", 0]), f"{again}, not {old['same', 2]}"
