# %% [markdown]
# # Little data
#
# **The question.** There are five training examples per class. What happens to the losses and to
# the share of right answers? And which of the usual remedies for overfitting help: dropout, a lower
# rank, augmentation, early stopping?
#
# The data are pictures (a network that reads Sans gets an italic), sounds (a network that knows a
# whistle gets a reed), and 64 questions for `micro`.
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** half a minute to run, fifteen minutes to read. **You need:** lesson 9. The study [Batch
# statistics: frozen, and yet it changes](../training/batch_statistics.py) introduces the network.

# %%
import numpy as np

from minilora import LoraConfig, data
from minilora.evaluation import plot
from minilora.lessons.helpers import sounds
from minilora.lessons.helpers.common import (
    QUICK,
    agrees,
    figure,
    finetune,
    of,
    read_sweep,
    short,
    spread,
    table,
)
from minilora.lessons.studies.data import little_sweep as little

sweep = read_sweep("little")
PLAIN = little.PLAIN


def scores(kind, column, remedy=PLAIN):
    """Return a column of the sweep, one number per seed."""
    settings = dict(zip(little.SETTINGS, (kind, *little.VARIANTS[remedy])))
    return np.array(of(sweep, column, **settings))


# %% [markdown]
# ## Sounds are pictures
#
# A sound is a gesture (steady, rising, a warble, …) on an instrument. An instrument is a list of
# overtones. The spectrogram of a sound is a picture of 16 frequency bands by 16 columns of time. So
# the network that reads pictures can read it.
#
# Augmentation moves a picture by up to a pixel. In a spectrogram it hides some bands and some
# columns (SpecAugment, Park et al. 2019).
#
# **Predict.** Masks hide 0 to 4 of 16 bands, and 0 to 4 of 16 columns. Which share of a spectrogram
# do they hide on average?
#
# <details><summary>Answer</summary>
# One mask hides 2 of 16 on average, 1/8. Two of them hide 1 − (1 − 1/8)² = 0.234. (The sum, 0.25,
# is tempting: it counts twice what both masks hide.)
# </details>

# %%
heard, _ = sounds.play("reed", 400, 0)
masked = sounds.masked(heard, np.random.default_rng(0))
hidden = (masked != heard).mean()
print(f"hidden: {hidden:.3f} of a spectrogram on average, expected {1 - (7 / 8) ** 2:.3f}")

# %%
# Checks
assert abs(hidden - (1 - (7 / 8) ** 2)) < 0.03, "two masks of up to 4 of 16"

# %% [markdown]
# ## Watch it overfit
#
# Five examples per class, LoRA at r = 8, batches of 32, 200 steps, plain and augmented. The test
# rows are other drawings of the same italic, and other sounds of the same reed.
#
# **Predict.** When is the test loss of a plain run lowest? Does the accuracy fall then?
#
# <details><summary>Answer</summary>
# At step 75 or before. From step 25 to 200, the accuracy changes by less than 0.04. (It is tempting
# to expect a fall, because the loss rises. But a higher loss can also mean wrong answers with a
# higher confidence.)
# </details>

# %%
STEPS = short(200, 75)
KINDS = short(("pictures", "sounds"), ("sounds",))
WAYS = {"plain": PLAIN, "augmented": "augmented"}
SEED = 0

curves, cells = {}, []
for kind in KINDS:
    for name, remedy in WAYS.items():
        curves[kind, name] = little.small(kind, *little.VARIANTS[remedy], SEED, STEPS)
        first, *_, last = curves[kind, name]
        lowest = min(curves[kind, name], key=lambda score: score["test"])
        for score in (first, lowest, last):
            numbers = [f"{score[column]:.2f}" for column in ("train", "test", "right", "sure")]
            cells.append([f"{kind}, {name}", score["step"], *numbers])
table(["run", "step", "training loss", "test loss", "accuracy", "confidence"], cells)

curve = curves["sounds", "plain"]
title = "Five sounds per class, plain: the test loss rises"
with figure("little", "optimizer step", "loss (nats)", title) as axes:
    for part, style in zip(("train", "test"), plot.LINES):
        axes.semilogy(
            [row["step"] for row in curve], [row[part] for row in curve], label=part, **style
        )
    axes.legend(frameon=False)

# %% [markdown]
# ![Training loss and test loss of a plain run, over its steps](../../../figures/little.png)
#
# In the table, each run has three rows: its first evaluation, the one with the lowest test loss,
# and the last.
#
# The plain runs memorize their examples. From step 25 to 200, the test loss rises and the network
# becomes surer of its answers, while the share of right answers hardly changes. So in these runs
# (one seed, a network of 0.04 million parameters) a higher test loss goes with "too sure", not with
# "more wrong".

# %%
# Checks
for kind in KINDS:
    first, last = curves[kind, "plain"][0], curves[kind, "plain"][-1]
    assert last["train"] < first["train"] and last["train"] < 0.05, f"{kind}: it must memorize"
    assert last["test"] > 5 * last["train"], f"{kind}: the test loss must be far higher"
    if not QUICK:
        assert last["test"] > first["test"], f"{kind}: the test loss must rise"
        lowest = min(curves[kind, "plain"], key=lambda score: score["test"])["step"]
        assert lowest <= 75, f"{kind}: after a few dozen steps, not {lowest}"
        assert abs(last["right"] - first["right"]) < 0.04, f"{kind}: accuracy hardly changes"
        assert last["sure"] > first["sure"] > first["right"], f"{kind}: too sure, then more so"
        for column in ("test", "right"):
            again, own = last[column], scores(kind, column)
            assert agrees(again, own), f"{kind}: {column} {again}, in the sweep {own}"

# %% [markdown]
# ## The remedies
#
# The sweep has each remedy on pictures and on sounds (five examples per class, four seeds, a
# network of 0.04 million parameters), and on 64 questions for `micro` (three seeds, 0.1 million).
# All runs have a learning rate of 0.01. "Stopped early" is the test loss of the step with the
# lowest loss on held-out rows.
#
# **Predict.** Order the remedies from best to worst. Is the order the same for all three?
#
# <details><summary>Answer</summary>
# It is not. For pictures, augmentation gives more right answers than all remedies without it. For
# sounds, r = 1 has the lowest mean loss. For the questions, its mean loss is more than twice that
# of r = 8. (One order is tempting, because all three overfit. But they do not lack the same.)
# </details>

# %%
ALL_KINDS = (*little.KINDS, "questions")
for kind in ALL_KINDS:
    cells = []
    for name in little.FOR_QUESTIONS if kind == "questions" else little.VARIANTS:
        columns = [scores(kind, column, name) for column in ("right", "test", "best_test")]
        cells.append([name, *map(spread, columns)])
    table([kind, "right", "test loss", "stopped early"], cells)
    print()

# %% [markdown]
# **Augmentation** helps for pictures: in every seed, about half as many letters again are read. For
# sounds, the masks lower the loss in three seeds of four, and on average no more sounds are
# recognized. (A reason may be that a reed never plays a sound with a band missing.)
#
# **Dropout** acts on the adapter's input only. Alone, it gives more right answers and a lower loss
# in every seed of all three kinds; the mean loss falls by a quarter or less. Together with
# augmentation, it lowers the loss in some seeds and raises it in others.
#
# **A lower rank** is said to be right for little data. For sounds it is: r = 1 ends with the lowest
# mean loss of all, r = 32 with the highest. For pictures, r = 1 reads *fewer* letters than r = 8 in
# every seed. For the questions, its mean loss is more than twice that of r = 8. Its training loss
# is more than five times as high, so this is not overfitting. (It has the rate of r = 8; no other
# was tried.)
#
# **Early stopping** lowers the test loss of the plain runs on pictures and sounds in every seed. It
# changes the mean share of right answers by less than 0.04. For the questions, the last evaluation
# is the best in two seeds of three. Early stopping also needs held-out rows.

# %%
# Checks
right, of_sounds, test = (
    {name: scores(kind, column, name) for name in little.VARIANTS}
    for kind, column in (("pictures", "right"), ("sounds", "right"), ("sounds", "test"))
)
gain = right["augmented"] / right[PLAIN]
assert (right["augmented"] - right[PLAIN]).min() > 0.1, "pictures: augmentation must help"
assert ((gain > 1.4) & (gain < 1.6)).all(), "half as many letters again"
others = [values for name, values in right.items() if "augmented" not in name]
assert (right["augmented"] > np.max(others, axis=0)).all(), "pictures: better than all without it"
assert (right["r = 1"] < right[PLAIN]).all(), "pictures: r = 1 must read fewer"
more = of_sounds["augmented"].mean() - of_sounds[PLAIN].mean()
assert more < 0.01, "sounds: augmented, no more are right"
assert (of_sounds["r = 1"] > of_sounds[PLAIN]).all(), "sounds: r = 1 must recognize more"
lower = test["augmented"] < test[PLAIN]
assert lower.sum() == 3, "sounds: the masks lower the loss in three seeds of four"
by_rank = [test[name] for name in ("r = 1", PLAIN, "r = 32")]
assert (np.diff(by_rank, axis=0) > 0).all(), "sounds: the lower the rank, the lower the loss"
order = sorted(test, key=lambda name: test[name].mean())
assert order[0] == "r = 1", "sounds: r = 1 must be the best of all"
assert order[-1] == "r = 32", "sounds: r = 32 must be the worst of all"
for kind in ALL_KINDS:
    (right, plain), (more_right, dropped) = (
        [scores(kind, column, name) for column in ("right", "test")]
        for name in (PLAIN, "dropout 0.3")
    )
    assert (dropped < plain).all(), f"{kind}: dropout must lower the loss in every seed"
    assert dropped.mean() > 0.75 * plain.mean(), f"{kind}: by a quarter or less"
    assert (more_right > right).all(), f"{kind}: a few more are right"
    if kind != "questions":
        more = scores(kind, "test", "augmented, dropout 0.3") - scores(kind, "test", "augmented")
        assert more.min() < 0 < more.max(), f"{kind}: dropout adds nothing certain"
        assert (scores(kind, "best_test") < plain).all(), f"{kind}: a lower loss"
        more = abs(scores(kind, "best_right").mean() - right.mean())
        assert more < 0.04, f"{kind}: hardly more right answers"
test, train, best_step = (scores("questions", name) for name in ("test", "train", "best_step"))
r1_test, r1_train = (scores("questions", name, "r = 1") for name in ("test", "train"))
assert r1_test.mean() > 2 * test.mean(), "questions: r = 1 must be worst"
assert r1_train.min() > 5 * train.max(), "questions: r = 1 has not learned its training rows"
assert (best_step == 200).sum() == 2, "questions: in two seeds the last step is the best"
if not QUICK:  # runs of the sweep again, each told apart from another remedy
    live = {("pictures", name): curves["pictures", way][-1] for way, name in WAYS.items()}
    for kind, name in (("sounds", "r = 32"), ("questions", PLAIN)):
        live[kind, name] = little.run((kind, *little.VARIANTS[name], SEED))
    for kind, column, name, other in (
        ("pictures", "train", PLAIN, "augmented"),
        ("pictures", "test", "augmented", PLAIN),
        ("pictures", "right", "augmented", PLAIN),
        ("sounds", "test", "r = 32", "r = 1"),
        ("questions", "train", PLAIN, "r = 1"),
    ):
        own, others = (scores(kind, column, remedy) for remedy in (name, other))
        again = live[kind, name][column]
        assert agrees(again, own, others), f"{kind}, {name}: {again}, in the sweep {own}"

# %% [markdown]
# ## Early stopping in `train`
#
# `early_stopping_patience` ends a run after this many evaluations without a better held-out loss.
# `train` then returns the best adapter, not the last. Here, four questions are trained at a high
# learning rate.
#
# **Predict.** Four questions are trained at a high learning rate. The run may have 400 steps, and
# it is evaluated every 5 steps. With a patience of 3: does it reach step 200?
#
# <details><summary>Answer</summary>
# No. With four questions the held-out loss soon rises, and the run ends three evaluations after the
# lowest one. (200 is a tempting guess, because other runs of this study have 200 steps. They have
# more rows and a lower rate.)
# </details>

# %%
few, held_out = (data.load_rows("questions", split) for split in ("train", "valid"))
stopped = finetune(
    LoraConfig(r=8, target_modules=("all-linear",)), rows=few[:4], held_out=held_out[:40],
    iters=400, batch_size=4, learning_rate=3e-2, steps_per_eval=5, early_stopping_patience=3,
)  # fmt: skip
losses = [row["eval_loss"] for row in stopped.history if "eval_loss" in row]

# %%
# Checks
assert len(losses) < 40, "the run must end early"
assert int(np.argmin(losses)) == len(losses) - 4, "three evaluations after the best"
assert abs(stopped.scores["loss"] - min(losses)) < 1e-6, (
    "the best adapter must be returned, not the last"
)

# %% [markdown]
# ## What was shown
#
# With five examples per class, in one plain run of each kind, the training loss falls below 0.05
# and the test loss rises. The share of right answers hardly changes, and the model becomes surer.
# The order of the remedies differs between the kinds of data. Augmentation gave more right answers
# for pictures, not for sounds; r = 1 gave more for sounds, not for pictures. Early stopping lowered
# the loss of plain runs on pictures and sounds, and gave hardly more right answers.
#
# **What to try.**
#
# 1. `WAYS`: add `"rank 1": "r = 1"`. Does its test loss still rise?
# 2. `STEPS = short(200, 75)`: use 1,000 steps. Does the accuracy fall in the end?
# 3. `early_stopping_patience=3`: use 1. Is another adapter returned?
# 4. `few[:4]`: use 64 questions, and `batch_size=16`. Does the run still end early?
#
# **Where to stop with a debugger.** `on_step` in `studies/data/little_sweep.py` (`found`: the
# scores of the three splits). `loop.better`: what is kept, and when?
#
# **Exercises.** one-file-loss, prompt-mask.
#
# **Further reading.** Park et al. 2019, *SpecAugment*:
# [arXiv:1904.08779](https://arxiv.org/abs/1904.08779). Guo et al. 2017 show how networks become too
# sure while they overfit: [arXiv:1706.04599](https://arxiv.org/abs/1706.04599). The study [Dropout,
# and what a wrong choice costs](../training/dropout_and_wrong_choices.py), on dropout with more
# data. Prechelt 1998, *Early Stopping – But When?*:
# [doi:10.1007/3-540-49430-8_3](https://doi.org/10.1007/3-540-49430-8_3).
