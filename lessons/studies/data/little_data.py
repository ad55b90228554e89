# %% [markdown]
# # Little data
#
# **The question.** There are five training examples per class. What happens to the losses and to
# the share of right answers?
#
# The study [Little data](little_data.py) compares the usual remedies. The study
# [Packing](packing.py) is about packing short examples into one row.
#
# The data are pictures (a network that reads Sans gets an italic, the study [Batch statistics:
# frozen, and yet it changes](../training/batch_statistics.py)) and sounds (a network that knows a
# whistle gets a reed).
#
# **Continues:** [lesson 10](../../10_is_it_good.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** lesson 0 and the study [Batch
# statistics: frozen, and yet it changes](../training/batch_statistics.py).

# %%
import numpy as np

from lessons.helpers import convnet, sounds
from lessons.helpers.common import QUICK, agrees, figure, of, read_sweep, short
from lessons.studies.data import little_sweep as little
from minilora import TrainConfig
from minilora.evaluation import plot

# %% [markdown]
# ## Sounds are pictures
#
# A sound is a gesture (steady, rising, a warble, …) on an instrument. An instrument is a list of
# overtones. The spectrogram of a sound is a picture of 16 frequency bands by 16 columns of time, so
# the network of the study [Batch statistics: frozen, and yet it
# changes](../training/batch_statistics.py) can read it.
#
# Augmentation moves a picture by up to a pixel. In a spectrogram it hides some bands and some
# columns (SpecAugment, Park et al. 2019).
#
# **Predict.** Masks hide 0 to 4 of 16 bands, and 0 to 4 of 16 columns. Which share of a spectrogram
# do they hide on average?
#
# <details><summary>Answer</summary>
# One mask hides 2 of 16 on average, 1/8. Two of them hide 1 − (1 − 1/8)² = 0.234.
# </details>

# %%
heard, _ = sounds.play("reed", 400, 0)
masked = sounds.masked(heard, np.random.default_rng(0))
hidden = float((masked != heard).mean())
print(f"hidden: {hidden:.3f} of a spectrogram on average, expected {1 - (7 / 8) ** 2:.3f}")

titles = ["a sound", "with masks"]
size = {"columns": 2, "width": 6.4, "height": 3.2}
with figure("spectrogram", "time", ["frequency", ""], titles, **size) as panels:
    for axes, picture in zip(panels, (heard[4], masked[4])):
        axes.imshow(picture, origin="lower", cmap="viridis", aspect="auto")
        axes.grid(False)

# %% [markdown]
# ![The spectrogram of a sound, and the same with a band and a stretch of time
# hidden](../../../figures/spectrogram.png)

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
# At step 75 or before. From step 25 to 200, the accuracy changes by less than 0.04.
# </details>

# %%
STEPS = short(200, 75)
KINDS = short(("pictures", "sounds"), ("sounds",))
SEED, R = 0, 8


def confidence(logits):
    """Return the mean probability of the likeliest class."""
    z = logits - logits.max(axis=1, keepdims=True)  # now the likeliest class has the logit 0
    return float(np.mean(1 / np.exp(z).sum(axis=1)))


def curve(kind, augmented):
    """Train LoRA on five examples per class; return the scores after every 25 steps."""
    base, train, _, test, augment = little.task(kind, SEED)
    adapters, base = convnet.low_rank(base, R, 2 * R, np.random.default_rng(SEED))
    settings = TrainConfig(iters=STEPS, batch_size=32, learning_rate=1e-2, seed=SEED)
    scores = []

    def on_step(step, adapters):
        if step % 25 == 0:
            own = convnet.statistics(adapters, base, train[0])
            of_train = convnet.evaluate(adapters, base, train, own)
            of_test = convnet.evaluate(adapters, base, test, own)
            row = {"step": step, "train": of_train["loss"], "test": of_test["loss"]}
            logits, _ = convnet.forward(adapters, base, test[0], own)
            scores.append({**row, "right": of_test["accuracy"], "sure": confidence(logits)})

    augment = augment if augmented else None
    convnet.fit(adapters, base, train, settings, augment=augment, on_step=on_step)
    return scores


curves = {}
for kind in KINDS:
    for name, augmented in (("plain", False), ("augmented", True)):
        curves[kind, name] = curve(kind, augmented)
for (kind, name), scores in curves.items():
    first, last = scores[0], scores[-1]
    print(f"{kind}, {name}: test loss {first['test']:.2f} at step {first['step']}", end=", ")
    print(f"{last['test']:.2f} at {last['step']}", end="; ")
    print(f"accuracy {first['right']:.2f}, {last['right']:.2f}", end="; ")
    print(f"mean confidence {first['sure']:.2f}, {last['sure']:.2f}")

# %%
xlabel, ylabels = "optimizer step", ["loss (nats), logarithmic", ""][: len(KINDS)]
size = {"columns": len(KINDS), "width": 8.8}
with figure("little", xlabel, ylabels, list(KINDS), **size) as panels:
    for kind, axes in zip(KINDS, np.atleast_1d(panels)):
        lines = iter(zip(plot.LINES, "os^D"))
        for name in ("plain", "augmented"):
            scores = curves[kind, name]
            steps = [score["step"] for score in scores]
            for part in ("train", "test"):
                style, marker = next(lines)
                losses = [max(score[part], 1e-5) for score in scores]
                label = f"{name}, {part}"
                axes.plot(steps, losses, marker=marker, markersize=4, label=label, **style)
        axes.set_yscale("log")
        axes.set_ylim(top=60)
        axes.legend(frameon=False, loc="upper center", fontsize=8, ncols=2)

# %% [markdown]
# ![Loss over steps, in training and on test rows, plain and augmented](../../../figures/little.png)
#
# The plain runs memorize their examples. From step 25 to 200 the test loss rises and the network
# becomes surer of its answers, while the share of right answers hardly changes. So in these runs
# (one seed, a network of 0.04 million parameters) a higher test loss goes with "too sure", not with
# "more wrong".

# %%
# Checks
sweep = read_sweep("little")
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
        in_sweep = {}
        for score in ("test", "right"):
            in_sweep[score] = of(sweep, score, kind=kind, r=8, dropout=0, augmented=0)
            again = last[score]
            assert agrees(again, in_sweep[score]), f"{kind}: {score} {again}, not {in_sweep[score]}"
        if kind == "pictures":  # augmented, the losses are told apart
            again = curves[kind, "augmented"][-1]["test"]
            augmented = of(sweep, "test", kind=kind, r=8, dropout=0, augmented=1)
            assert agrees(again, augmented, in_sweep["test"]), f"{again}, not {augmented}"

# %% [markdown]
# ## What was shown
#
# With five examples per class, in one plain run of each kind, the training loss falls below 0.05,
# and the test loss rises. The share of right answers hardly changes, and the model becomes surer.
#
# **What to try.**
#
# 1. `SEED, R = 0, 8`: use r = 1. Does the test loss still rise?
# 2. `STEPS = short(200, 75)`: 1,000 steps. Does the accuracy fall in the end?
# 3. `learning_rate=1e-2`: use 1e-3. When does the test loss begin to rise?
#
# **Where to stop with a debugger.** `on_step` in `curve`: `of_train` and `of_test`.
#
# **Exercises.** cross-entropy, prompt-mask.
#
# **Further reading.** Park et al. 2019, *SpecAugment*:
# [arXiv:1904.08779](https://arxiv.org/abs/1904.08779). Guo et al. 2017 show how networks become too
# sure while they overfit: [arXiv:1706.04599](https://arxiv.org/abs/1706.04599).
