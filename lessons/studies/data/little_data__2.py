# %% [markdown]
# # MERGE 11b. Remedies for little data
#
# **The question.** Dropout, early stopping, a lower rank and augmentation are the usual remedies
# for overfitting. Which of them help?
#
# **Continues:** [lesson 10](../../10_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** the study [Little
# data](little_data.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, figure, of, read_sweep, spread, table
from lessons.studies.data import little_sweep as little
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation import plot

sweep = read_sweep("little")
KINDS = ("pictures", "sounds", "questions")
REMEDIES = {
    "plain, r = 8": {},
    "r = 1": {"r": 1},
    "r = 32": {"r": 32},
    "dropout 0.3": {"dropout": 0.3},
    "augmented": {"augmented": 1},
    "augmented, dropout 0.3": {"augmented": 1, "dropout": 0.3},
}
FOR_QUESTIONS = ("plain, r = 8", "r = 1", "dropout 0.3")


def scores(kind, column="right", r=8, dropout=0.0, augmented=0):
    """Return a column of the sweep, one number per seed."""
    return np.array(of(sweep, column, kind=kind, r=r, dropout=dropout, augmented=augmented))


# %% [markdown]
# ## The results
#
# The sweep has each remedy on pictures and on sounds (five examples per class, four seeds, a
# network of 0.04 million parameters), and on 64 questions for `micro` (three seeds, 0.1 million).
# All runs have a learning rate of 0.01.
#
# **Predict.** Order the remedies from best to worst. Is the order the same for all three?
#
# <details><summary>Answer</summary>
# It is not. For pictures, augmentation gives more right answers than all remedies without it. For
# sounds, r = 1 has the lowest mean loss. For the questions, its mean loss is more than twice that
# of r = 8.
# </details>

# %%
for kind in KINDS:
    cells = []
    for name, settings in REMEDIES.items():
        if kind != "questions" or name in FOR_QUESTIONS:
            columns = [scores(kind, c, **settings) for c in ("right", "test", "best_test")]
            cells.append([name, *(spread(values) for values in columns)])
    table([kind, "right", "test loss", "stopped early"], cells)
    print()

# %%
with figure("remedies", "share of right answers", "", KINDS, columns=3, width=9.6) as panels:
    for axes, kind, style in zip(panels, KINDS, plot.LINES):
        names = FOR_QUESTIONS if kind == "questions" else tuple(REMEDIES)
        for y, name in enumerate(reversed(names)):
            right = scores(kind, **REMEDIES[name])
            axes.plot(right, [y] * len(right), "o", color=style["color"], markersize=5)
        axes.set_yticks(range(len(names)), reversed(names), fontsize=7)
        axes.set_ylim(-0.5, len(names) - 0.5)

# %% [markdown]
# ![The share of right answers with each remedy, one dot per seed](../../../figures/remedies.png)
#
# **Augmentation** helps for pictures: in every seed, about half as many letters again are read. For
# sounds, the masks lower the loss in three seeds of four, and on average no more sounds are
# recognized. (A reason may be that a reed never plays a sound with a band missing.)
#
# **Dropout** acts on the adapter's input only. Alone, it gives more right answers and a lower loss
# in every seed of all three kinds; the mean loss falls by a quarter or less. Together with
# augmentation, it lowers the loss in some seeds and raises it in others.

# %%
# Checks
plain, augmented = scores("pictures"), scores("pictures", augmented=1)
assert (augmented - plain).min() > 0.1, "pictures: augmentation must help in every seed"
assert ((augmented / plain > 1.4) & (augmented / plain < 1.6)).all(), "half as many letters again"
others = [scores("pictures", **how) for how in REMEDIES.values() if "augmented" not in how]
assert (augmented > np.max(others, axis=0)).all(), "pictures: better than all without it"
lower = scores("sounds", "test", augmented=1) < scores("sounds", "test")
assert lower.sum() == 3, "sounds: the masks lower the loss in three seeds of four"
assert scores("sounds", augmented=1).mean() < scores("sounds").mean() + 0.01, "no more are right"
for kind in KINDS:
    plain, dropped = (scores(kind, "test", dropout=p) for p in (0.0, 0.3))
    assert (dropped < plain).all(), f"{kind}: dropout must lower the loss in every seed"
    assert dropped.mean() > 0.75 * plain.mean(), f"{kind}: by a quarter or less"
    assert (scores(kind, dropout=0.3) > scores(kind)).all(), f"{kind}: a few more are right"
for kind in ("pictures", "sounds"):
    both, one = (scores(kind, "test", augmented=1, dropout=p) for p in (0.3, 0.0))
    assert (both > one).any() and (both < one).any(), f"{kind}: dropout adds nothing certain"

# %% [markdown]
# **A lower rank** is said to be right for little data. For sounds it is: r = 1 ends with the lowest
# mean loss of all, r = 32 with the highest. For pictures, r = 1 reads *fewer* letters than r = 8 in
# every seed. For the questions, its mean loss is more than twice that of r = 8. Its training loss
# is more than five times as high, so this is not overfitting. (It has the rate of r = 8; no other
# was tried.)
#
# **Early stopping** keeps the step with the lowest loss on held-out rows. In the plain runs on
# pictures and sounds it lowers the test loss in every seed, and changes the mean share of right
# answers by less than 0.04. For the questions, the last evaluation is the best in two seeds of
# three. Early stopping also needs held-out rows.

# %%
# Checks
r1, r8, r32 = (scores("sounds", "test", r=r) for r in (1, 8, 32))
assert (r1 < r8).all() and (r32 > r8).all(), "sounds: the lower the rank, the lower the loss"
means = {name: scores("sounds", "test", **how).mean() for name, how in REMEDIES.items()}
assert min(means, key=means.get) == "r = 1", "sounds: r = 1 must be the best of all"
assert max(means, key=means.get) == "r = 32", "sounds: r = 32 must be the worst of all"
assert (scores("sounds", r=1) > scores("sounds")).all(), "sounds: r = 1 must recognize more"
assert (scores("pictures", r=1) < scores("pictures")).all(), "pictures: r = 1 must read fewer"
r1, r8 = (scores("questions", "test", r=r).mean() for r in (1, 8))
assert r1 > 2 * r8, "questions: r = 1 must be worst"
r1, r8 = (scores("questions", "train", r=r) for r in (1, 8))
assert r1.min() > 5 * r8.max(), "questions: r = 1 has not learned its training rows"
for kind in ("pictures", "sounds"):
    assert (scores(kind, "best_test") < scores(kind, "test")).all(), f"{kind}: a lower loss"
    more = abs(scores(kind, "best_right").mean() - scores(kind).mean())
    assert more < 0.04, f"{kind}: hardly more right answers"
if not QUICK:  # runs of the sweep again, each told apart from another remedy
    for kind, column, remedy, other in (
        ("pictures", "train", "plain, r = 8", "augmented"),
        ("pictures", "right", "augmented", "plain, r = 8"),
        ("sounds", "test", "r = 32", "r = 1"),
        ("questions", "train", "plain, r = 8", "r = 1"),
    ):
        settings = {"r": 8, "dropout": 0.0, "augmented": 0, **REMEDIES[remedy]}
        again = little.run((kind, *settings.values(), 0))[column]
        own, others = (scores(kind, column, **REMEDIES[name]) for name in (remedy, other))
        assert agrees(again, own, others), f"{kind}, {remedy}: {again}, in the sweep {own}"
late = scores("questions", "best_step") == 200
assert late.sum() == 2, "questions: in two seeds of three the last step is the best"

# %% [markdown]
# ## Early stopping in `train`
#
# `early_stopping_patience` ends a run after this many evaluations without a better held-out loss.
# `train` then returns the best adapter, not the last. Here, four questions are trained at a high
# learning rate.
#
# **Predict.** The run may have 400 steps, and it is evaluated every 5 steps. With a patience of 3:
# does it reach step 200?
#
# <details><summary>Answer</summary>
# No. With four questions the held-out loss soon rises, and the run ends three evaluations after the
# lowest one.
# </details>

# %%
config, base, tokenizer = minilora.load("micro")
settings = TrainConfig(
    iters=400,
    batch_size=4,
    learning_rate=3e-2,
    mask_prompt=True,
    steps_per_eval=5,
    early_stopping_patience=3,
)
few, _ = data.encode_rows(data.load_rows("questions", "train")[:4], tokenizer, settings)
held_out, _ = data.encode_rows(data.load_rows("questions", "valid")[:40], tokenizer, settings)
lora_config = LoraConfig(r=8, target_modules=("all-linear",))
start, base = minilora.get_peft_model(base, lora_config, 0)
kept, history = minilora.train(start, base, few, config, settings, valid=held_out)
losses = [row["eval_loss"] for row in history if "eval_loss" in row]
of_kept = minilora.evaluate(kept, base, held_out, config)["loss"]
print("held-out loss every 5 steps:", ", ".join(f"{loss:.2f}" for loss in losses))
print(f"held-out loss of the adapter that train returned: {of_kept:.2f}")

# %%
# Checks
assert len(losses) < 40, "the run must end early"
assert int(np.argmin(losses)) == len(losses) - 4, "three evaluations after the best"
assert abs(of_kept - min(losses)) < 1e-6, "the best adapter must be returned, not the last"

# %% [markdown]
# ## What was shown
#
# The order of the remedies differs between the kinds of data. Augmentation gave more right answers
# for pictures, not for sounds; r = 1 gave more for sounds, not for pictures. Early stopping lowered
# the loss of plain runs on pictures and sounds, and gave hardly more right answers.
#
# **What to try.**
#
# 1. `early_stopping_patience=3`: use 1. Is another adapter returned?
# 2. `[:4]` questions: use 64, and `batch_size=16`. Does the run still end early?
# 3. `scores(kind, "best_test", ...)` in the table: show `valid`, too. Is it lower than `test`?
#
# **Where to stop with a debugger.** `callbacks.update_best`: what is kept, and when?
#
# **Exercises.** cross-entropy.
#
# **Further reading.** The study [Dropout, and what a wrong choice
# costs](../training/dropout_and_wrong_choices.py), on dropout with more data. Prechelt 1998, *Early
# Stopping – But When?*: [doi:10.1007/3-540-49430-8_3](https://doi.org/10.1007/3-540-49430-8_3).
