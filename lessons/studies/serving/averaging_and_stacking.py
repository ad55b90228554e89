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

import minilora
from minilora.lessons.helpers.common import QUICK, agrees, of, read_sweep, short, table
from minilora.lessons.studies.serving import combining_sweep
from minilora.methods import compose, several

model, _ = minilora.load("micro")
trained = combining_sweep.train(0, short(100, 10))
first, second = trained["one"], trained["turned"]  # who, what, where? and where, what, who?
live = combining_sweep.scored(0, trained)  # one row of the sweep
sweep = read_sweep("combining")


def column(name):
    """Return a column of the sweep, one number per seed."""
    return np.array(of(sweep, name))


def show(name):
    """Return the mean and the standard deviation of a column as a text."""
    return f"{column(name).mean():.2f} ± {column(name).std(ddof=1):.2f}"


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
# The functions `train` and `scored` of `combining_sweep.py` train the adapters of one seed and
# score them. The function `off` is the error of ΔW against the mean of the updates. PEFT's `linear`
# with weights ½, ½ is (Σ √½·Bᵢ)(Σ √½·Aᵢ). `svd` cuts the exact sum to rank r.
#
# **Predict.** Two adapters of one task were trained from different starts of A, or from the same
# start with the rows in another order. In which case is the mean of the factors near the mean of
# the updates? And what does `linear` make of two *equal* adapters?
#
# <details><summary>Answer</summary>
# With the same start. Of two equal adapters, `linear` makes twice the update: (2√½)² = 2. "The same
# update" is tempting, because the weights add up to 1.
# </details>


# %%
_, doubled = compose.combine([first, first], [0.5, 0.5], "linear")
mean = combining_sweep.mean_of_factors(first, first)
of_itself = combining_sweep.off(mean, first, first)
print("an adapter, averaged with itself: error of linear", end=" ")
print(f"{np.mean(list(doubled.values())):.2f}, of the factors {of_itself:.2f}")

HOW = {"cat": "cat (exact)", "svd": "svd, rank 4", "factors": "mean of factors", "linear": "linear"}
KINDS = {"other": "different starts", "sibling": "the same start"}
for kind, text in KINDS.items():
    alone = f"{column('one').mean():.2f} and {column(kind).mean():.2f}"
    print(f"{text}: cosine {column(f'cosine_{kind}').mean():.2f}, losses of one alone {alone}")
    cells = []
    for key, name in HOW.items():
        error = column(f"off_{kind}_{key}").mean()
        cells.append([name, f"{error:.2f}", show(f"{kind}_{key}")])
    table(["five seeds, weights ½", "error of ΔW", "held-out loss"], cells)

# %% [markdown]
# "Never average A and B" is too general. On average, the error of the mean of the factors is about
# a tenth with the same start, and two thirds with different starts. `linear` makes *twice* the
# update of two equal adapters, and here its error is above 0.8. `cat` is exact. But here, on
# `micro`, the exact mean has a higher loss than the better of the two adapters alone, with every
# seed.

# %%
# Checks
assert all(abs(error - 1) < 1e-4 for error in doubled.values()), "linear must double the update"
assert of_itself < 1e-5, "the mean of two equal factors must be exact"
assert 0.6 < column("off_other_factors").mean() < 0.7, "different starts: off by two thirds"
assert 0.07 < column("off_sibling_factors").mean() < 0.12, "the same start: by a tenth"
assert (column("other_factors") > 2 * column("other_cat")).all(), "different starts: a high loss"
assert (column("sibling_factors") < 1.5 * column("sibling_cat")).all(), "the same start: a low one"
for kind, other in (("other", "sibling"), ("sibling", "other")):
    again, own = live[f"off_{kind}_factors"], column(f"off_{kind}_factors")
    others = column(f"off_{other}_factors")
    assert QUICK or agrees(again, own, others), f"{kind}: {again}, in the sweep {own}"
    best = np.minimum(column("one"), column(kind))
    assert (column(f"{kind}_cat") > best).all(), "a mean is worse than the better one, every seed"
off_linear = [column(f"off_{kind}_linear").min() for kind in ("sibling", "other")]
assert off_linear[0] > 0.9 and off_linear[1] > 0.8, "linear must be far off"
assert (column("sibling_linear") > 4 * column("sibling_cat")).all(), "the loss must show it"

# %% [markdown]
# ## Adding two tasks, stacking two adapters
#
# Now the adapters of two tasks: "Who, what, where?" and "Where, what, who?". They are added, or the
# second one is trained on top of the first, which is frozen (a *stack*).
#
# **Predict.** The two updates have a cosine below 0.1, so they are almost orthogonal. After adding
# them, does each adapter still do its task? And after stacking?
#
# <details><summary>Answer</summary>
# No: both losses are more than four times as high. In the stack, the loss of the first task is more
# than three times as high, and that of the second less than 1.5 times. The second adapter was
# trained with the first one in place. "Yes" is tempting: orthogonal changes seem independent. But
# both adapters change the same layers, and act on the same inputs.
# </details>

# %%
added, errors = compose.combine([first, second], [1.0, 1.0])
print(f"error of the sum {max(errors.values()):.0e}", end=", ")
print(f"cosine of the updates {live['cosine_turned']:.2f}")
with_first = several.stack(first, model)  # the model of the upper adapter
WAYS = {
    "alone": ("one", "turned"),
    "½ and ½": ("there_0.5", "back_0.5"),
    "added": ("there_1.0", "back_1.0"),
    "second on top of first": ("stack_there", "stack_back"),
}
tasks = ["who, what, where?", "where, what, who?"]
table(["held-out loss, five seeds", *tasks], [[way, *map(show, WAYS[way])] for way in WAYS])

# %% [markdown]
# **Almost orthogonal updates are not independent tasks.** Here, a stack keeps the task of the upper
# adapter only. So measure the loss of each task. If a batch needs both, use one adapter per row
# (lesson 4).

# %%
# Checks
merged = minilora.merge(trained["upon"], with_first)  # a stack of two merges like one adapter
back = combining_sweep.held_out(combining_sweep.backwards)
difference = minilora.evaluate({}, merged, back)["loss"] - live["stack_back"]
assert abs(difference) < 1e-3, "a merged stack is the same model"
assert max(errors.values()) < 1e-5, "the sum itself must be exact"
assert np.abs(column("cosine_turned")).max() < 0.1, "the updates must be almost orthogonal"
for ours, alone in (("there_1.0", "one"), ("back_1.0", "turned")):
    assert (column(ours) > 4 * column(alone)).all(), "added: four times the loss, with every seed"
for weight in (1.0, 0.5):
    assert (column(f"there_{weight}") > 2.5 * column("one")).all(), "the first task must suffer"
    assert (column(f"back_{weight}") > 2 * column("turned")).all(), "the second task must suffer"
assert (column("stack_back") < 1.5 * column("turned")).all(), "stack: the second task must work"
assert (column("stack_there") > 3 * column("one")).all(), "stack: the first task may not"
for name, other in (  # seed 0 of the sweep again, each loss told apart from another one
    ("one", "there_1.0"),
    ("turned", "back_1.0"),
    ("there_1.0", "one"),
    ("back_1.0", "turned"),
    ("stack_there", "one"),
    ("stack_back", "back_1.0"),
):
    again, own = live[name], column(name)
    assert QUICK or agrees(again, own, column(other)), f"{name}: {again}, in the sweep {own}"

# %% [markdown]
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
# 2. `[1.0, 1.0]` in `combine`: find weights with which both tasks have the same loss.
# 3. `"upon"` in `train`: stack in the other order. Which task works then?
#
# **Where to stop with a debugger.** `compose.linear` (the roots of the weights).
#
# **Exercises.** combine-exact, one-file-linear.
#
# **Further reading.** Wortsman et al. 2022, *Model soups*, average weights with the same start:
# [arXiv:2203.05482](https://arxiv.org/abs/2203.05482). Huang et al. 2023, *LoraHub*:
# [arXiv:2307.13269](https://arxiv.org/abs/2307.13269).
