# %% [markdown]
# # Averaging and stacking adapters
#
# **The question.** Two adapters have been trained. Can their average, or their sum, do the work of
# both?
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 1 and 4.

# %%
import numpy as np

from minilora.lessons.helpers.common import QUICK, agrees, deviation, of, read_sweep, short, table
from minilora.lessons.studies.serving import combining_sweep
from minilora.methods import compose

# %% [markdown]
# ## Averaging two adapters of one task
#
# The sum of two updates has low rank, too. Concatenate the factors (`cat`), and the ranks add up:
#
# $$\Delta W_1 + \Delta W_2 = [B_1\; B_2] \begin{bmatrix} A_1 \\ A_2 \end{bmatrix}$$
#
# The mean of the factors is something else. It contains products of B of one adapter with A of the
# other:
#
# $$\tfrac{1}{2}(B_1 + B_2) \cdot \tfrac{1}{2}(A_1 + A_2) =
#   \tfrac{1}{4}(B_1A_1 + B_2A_2 + B_1A_2 + B_2A_1)$$
#
# PEFT's `linear` with weights ½, ½ is (Σ √½·Bᵢ)(Σ √½·Aᵢ).
#
# **Predict.** Two adapters of one task were trained from different starts of A, or from the same
# start with the rows in another order. In which case is the mean of the factors near the mean of
# the updates? And what does `linear` make of two *equal* adapters?

# %%
trained = combining_sweep.train(0, short(100, 10))  # the adapters of seed 0
first, second = trained["one"], trained["turned"]  # who, what, where? and where, what, who?
_, doubled = compose.combine([first, first], [0.5, 0.5], "linear")
print(f"linear of two equal adapters is off by {max(doubled.values()):.2f} of their update")

# %%
# Table
sweep = read_sweep("combining")
seeds = {name: np.array(of(sweep, name)) for name in sweep[0]}  # one number per seed
HOW = {"cat": "cat (exact)", "factors": "mean of factors", "linear": "linear"}
KINDS = {"other": "different starts", "sibling": "the same start"}
for kind, text in KINDS.items():
    best = np.minimum(seeds["one"], seeds[kind])
    cells = [["the better one alone", "", deviation(best, 2)]]
    for key, name in HOW.items():
        error = seeds[f"off_{kind}_{key}"].mean()
        cells.append([name, f"{error:.2f}", deviation(seeds[f"{kind}_{key}"], 2)])
    table([f"{text}, five seeds", "error of ΔW", "held-out loss"], cells)

# %% [markdown]
# **Answer.** With the same start: the error is about a tenth of the mean update, and with different
# starts two thirds. So "never average A and B" is too general. Of two equal adapters, `linear`
# makes twice the update: (2√½)² = 2. Here, its error is above 0.8.
#
# `cat` is exact. But on `micro` (0.1 million parameters), the exact mean has a higher loss than the
# better of the two adapters alone, with every seed.
#
# ## Adding two tasks, stacking two adapters
#
# Now the adapters of two tasks: "Who, what, where?" and "Where, what, who?". They are added, or the
# second one is trained on top of the first, which is frozen (a *stack*).
#
# **Predict.** The two updates have a cosine below 0.1, so they are almost orthogonal. After adding
# them, does each adapter still do its task? And after stacking?

# %%
_, errors = compose.combine([first, second], [1.0, 1.0])
print(f"error of the sum {max(errors.values()):.0e}", end=", ")
print(f"cosine of the updates {combining_sweep.cosine(first, second):.2f}")

# %%
# Table
WAYS = {
    "alone": ("one", "turned"),
    "added": ("there_1.0", "back_1.0"),
    "second on top of first": ("stack_there", "stack_back"),
}
cells = [[way, *(deviation(seeds[name], 2) for name in names)] for way, names in WAYS.items()]
table(["held-out loss, five seeds", "who, what, where?", "where, what, who?"], cells)

# %% [markdown]
# **Answer.** No: both losses are more than four times as high. **Almost orthogonal updates are not
# independent tasks**: both adapters change the same layers, and act on the same inputs. In the
# stack, the loss of the first task is more than three times as high. That of the second is less
# than 1.5 times, because the second adapter was trained with the first one in place.
#
# So measure the loss of each task. If a batch needs both, use one adapter per row (lesson 4).
#
# ## What was shown
#
# Concatenation adds updates exactly. On `micro` (0.1 million parameters, five seeds), the mean of
# factors is near the mean of updates for adapters with the same start, and not for different
# starts. Adding the adapters of two tasks raises both losses, although the updates are almost
# orthogonal.
#
# **What to try.**
#
# 1. `"turned"` in `train`: add `start=seed`, so that both tasks start from the same A.
# 2. `[1.0, 1.0]` in `combine`: add "svd", which cuts the sum to rank 4. How large is the error?
# 3. `"upon"` in `train`: stack in the other order. Which task works then?
#
# **Where to stop with a debugger.** `compose.linear` (the roots of the weights).
#
# **Exercises.** combine-exact, one-file-linear.
#
# **Further reading.** Wortsman et al. 2022, *Model soups*, average weights with the same start:
# [arXiv:2203.05482](https://arxiv.org/abs/2203.05482). Huang et al. 2023, *LoraHub*:
# [arXiv:2307.13269](https://arxiv.org/abs/2307.13269).

# %%
# Checks
assert all(abs(error - 1) < 1e-4 for error in doubled.values()), "linear must double the update"
assert max(errors.values()) < 1e-5, "the sum itself must be exact"
assert 0.6 < seeds["off_other_factors"].mean() < 0.7, "different starts: off by two thirds"
assert 0.07 < seeds["off_sibling_factors"].mean() < 0.12, "the same start: by a tenth"
assert (seeds["other_factors"] > 2 * seeds["other_cat"]).all(), "different starts: a high loss"
assert (seeds["sibling_factors"] < 1.5 * seeds["sibling_cat"]).all(), "the same start: a low one"
for kind in KINDS:
    best = np.minimum(seeds["one"], seeds[kind])
    assert (seeds[f"{kind}_cat"] > best).all(), "a mean is worse than the better one, every seed"
    assert seeds[f"off_{kind}_linear"].min() > 0.8, "linear must be far off"
assert np.abs(seeds["cosine_turned"]).max() < 0.1, "the updates must be almost orthogonal"
for task, alone in (("there", "one"), ("back", "turned")):
    assert (seeds[f"{task}_1.0"] > 4 * seeds[alone]).all(), "added: four times the loss"
assert (seeds["stack_back"] < 1.5 * seeds["turned"]).all(), "stack: the second task must work"
assert (seeds["stack_there"] > 3 * seeds["one"]).all(), "stack: the first task may not"
again = combining_sweep.scored(0, trained)  # seed 0, each result told apart from another one
for name, other in (
    ("off_other_factors", "off_sibling_factors"),
    ("off_sibling_factors", "off_other_factors"),
    ("there_1.0", "one"),
    ("stack_back", "back_1.0"),
):
    same = agrees(again[name], seeds[name], seeds[other])
    assert QUICK or same, f"{name}: {again[name]}, in the sweep {seeds[name]}"
