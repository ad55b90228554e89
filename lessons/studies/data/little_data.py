# %% [markdown]
# # Little data
#
# **The question.** There are five training examples per class. What happens to the losses and to
# the share of right answers? And which of the usual remedies for overfitting help: dropout, a lower
# rank, augmentation, early stopping?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 9. The study [Batch
# statistics: frozen, and yet it changes](../training/batch_statistics.py) introduces the network.

# %%
import numpy as np

from minilora import LoraConfig, data
from minilora.evaluation import plot
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

# %% [markdown]
# ## Watch it overfit
#
# There are three kinds of data:
#
# - pictures: a network of 0.04 million parameters that reads Sans gets letters of an italic.
# - sounds: a sound is a gesture (steady, rising, a warble, …) on an instrument. Its spectrogram is
#   a picture of 16 frequency bands by 16 columns of time. So the same network can read it: it knows
#   a whistle, and gets a reed.
# - 64 questions for `micro`, 0.1 million parameters.
#
# First, the network is trained on five pictures or sounds per class: LoRA at r = 8, batches of 32,
# 200 steps. The test rows are other drawings of the same italic, and other sounds of the same reed.
#
# **Predict.** When is the test loss lowest? Does the accuracy fall then?

# %%
SEED = 0
curves, cells = {}, []
for kind in short(("pictures", "sounds"), ("sounds",)):
    curves[kind] = little.small(kind, *little.VARIANTS[little.PLAIN], SEED, short(200, 75))
    for score in curves[kind]:
        numbers = [f"{score[column]:.2f}" for column in ("train", "test", "right", "sure")]
        cells.append([kind, score["step"], *numbers])
table(["run", "step", "training loss", "test loss", "accuracy", "confidence"], cells)

# %%
# Picture
title = "Five sounds per class, plain: the test loss rises"
with figure("little", "optimizer step", "loss (nats)", title) as axes:
    for part, style in zip(("train", "test"), plot.LINES):
        steps, losses = zip(*((score["step"], score[part]) for score in curves["sounds"]))
        axes.semilogy(steps, losses, label=part, **style)
    axes.legend(frameon=False)

# %% [markdown]
# ![Training loss and test loss of a plain run, over its steps](../../../figures/little.png)
#
# **Answer.** At step 75 or before: the runs memorize their examples. From step 25 to 200, the
# network becomes surer of its answers, and the share of right answers changes by less than 0.04. So
# in these runs (one seed, a network of 0.04 million parameters) a higher test loss goes with "too
# sure", not with "more wrong".
#
# ## The remedies
#
# The sweep has each remedy on pictures and on sounds (five examples per class, four seeds), and on
# the questions (three seeds). All runs have a learning rate of 0.01. Augmentation moves a picture
# by up to a pixel. In a spectrogram it hides up to 4 bands and up to 4 columns (SpecAugment, Park
# et al. 2019). "Stopped early" is the test loss of the step with the lowest loss on held-out rows.
#
# **Predict.** Order the remedies from best to worst. Is the order the same for all three?

# %%
# Table
sweep = read_sweep("little")
PLAIN = little.PLAIN


def scores(kind, column, remedy=PLAIN):
    """Return a column of the sweep, one number per seed."""
    settings = dict(zip(little.SETTINGS, (kind, *little.VARIANTS[remedy])))
    return np.array(of(sweep, column, **settings))


KINDS = dict.fromkeys(little.KINDS, little.VARIANTS) | {"questions": little.FOR_QUESTIONS}
for kind, remedies in KINDS.items():
    cells = []
    for name in remedies:
        columns = [scores(kind, column, name) for column in ("right", "test", "best_test")]
        cells.append([name, *map(spread, columns)])
    table([kind, "right", "test loss", "stopped early"], cells)
    print()

# %% [markdown]
# **Answer.** It is not: all three overfit, but they do not lack the same.
#
# **Augmentation** gives more right answers for pictures than all remedies without it, in every
# seed. For sounds, on average no more are recognized. (A reason may be that a reed never plays a
# sound with a band missing.)
#
# **Dropout** acts on the adapter's input only. Alone, it gives more right answers and a lower loss
# in every seed of all three kinds; the mean loss falls by a quarter or less.
#
# **A lower rank** is said to be right for little data. For sounds it is: r = 1 has the lowest mean
# loss of all. For pictures, r = 1 reads *fewer* letters than r = 8 in every seed. For the
# questions, its mean loss is more than twice that of r = 8. (It has the rate of r = 8; no other was
# tried.)
#
# **Early stopping** lowers the test loss of the plain runs on pictures and sounds in every seed. It
# changes the mean share of right answers by less than 0.04. It also needs held-out rows.
#
# ## Early stopping in `train`
#
# `early_stopping_patience` ends a run after this many evaluations without a better held-out loss.
# `train` then returns the best adapter, not the last.
#
# **Predict.** Four questions are trained at a high learning rate. The run may have 400 steps, and
# it is evaluated every 5 steps. With a patience of 3: does it reach step 200?

# %%
few, held_out = (data.load_rows("questions", split) for split in ("train", "valid"))
run = finetune(
    LoraConfig(r=8, target_modules=("all-linear",)), rows=few[:4], held_out=held_out[:40],
    iters=400, batch_size=4, learning_rate=3e-2, steps_per_eval=5, early_stopping_patience=3,
)  # fmt: skip
evaluated = [row["eval_loss"] for row in run.history if "eval_loss" in row]
print("held-out losses:", np.round(evaluated, 2), f"returned: {run.scores['loss']:.2f}")

# %% [markdown]
# **Answer.** No. With four questions the held-out loss soon rises, and the run ends three
# evaluations after the lowest one.
#
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
# 1. `little.VARIANTS[little.PLAIN]`: use "r = 1". Does its test loss still rise?
# 2. `short(200, 75)`: use 1,000 steps. Does the accuracy fall in the end?
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

# %%
# Checks
for kind, curve in curves.items():
    first, last = curve[0], curve[-1]
    assert last["train"] < min(0.05, first["train"]), f"{kind}: it must memorize"
    if not QUICK:
        best_step = min(curve, key=lambda score: score["test"])["step"]
        assert best_step <= 75 and last["test"] > first["test"], f"{kind}: the test loss must rise"
        assert abs(last["right"] - first["right"]) < 0.04, f"{kind}: accuracy hardly changes"
        assert last["sure"] > first["sure"] > first["right"], f"{kind}: too sure, then more so"
        own, other = scores(kind, "test"), scores(kind, "test", "augmented")
        assert agrees(last["test"], own, other), f"{kind}: {last['test']}, in the sweep {own}"
augmented = scores("pictures", "right", "augmented")
for name in (PLAIN, "r = 1", "r = 32", "dropout 0.3"):
    assert (augmented > scores("pictures", "right", name)).all(), f"pictures: better than {name}"
more = scores("sounds", "right", "augmented").mean() - scores("sounds", "right").mean()
assert more < 0.01, "sounds: augmented, no more are right"
for kind in KINDS:
    plain, dropped = scores(kind, "test"), scores(kind, "test", "dropout 0.3")
    assert (dropped < plain).all(), f"{kind}: dropout must lower the loss in every seed"
    assert dropped.mean() > 0.75 * plain.mean(), f"{kind}: by a quarter or less"
    more = scores(kind, "right", "dropout 0.3") - scores(kind, "right")
    assert (more > 0).all(), f"{kind}: a few more are right"
fewer = scores("pictures", "right", "r = 1") < scores("pictures", "right")
assert fewer.all(), "pictures: r = 1 must read fewer"
more = scores("sounds", "right", "r = 1") > scores("sounds", "right")
assert more.all(), "sounds: r = 1 must recognize more"
order = sorted(little.VARIANTS, key=lambda name: scores("sounds", "test", name).mean())
assert order[0] == "r = 1", "sounds: r = 1 must be the best of all"
ratio = scores("questions", "test", "r = 1").mean() / scores("questions", "test").mean()
assert ratio > 2, "questions: r = 1 must be worse"
for kind in little.KINDS:
    assert (scores(kind, "best_test") < scores(kind, "test")).all(), f"{kind}: a lower loss"
    change = scores(kind, "best_right").mean() - scores(kind, "right").mean()
    assert abs(change) < 0.04, f"{kind}: hardly more right answers"
assert len(evaluated) < 40 and np.argmin(evaluated) == len(evaluated) - 4, "three after the best"
assert abs(run.scores["loss"] - min(evaluated)) < 1e-6, "the best adapter, not the last"
