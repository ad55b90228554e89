# %% [markdown]
# # 11. Little data
#
# **The question.** With five examples of a class, or 64 questions, what keeps an adapter from
# learning them by heart? And what does packing do, where examples are short?
#
# The usual list is dropout, early stopping, a lower rank and augmentation. We try each on pictures
# (a reader of Sans meets an italic), on sounds (a listener to whistles meets a reed) and on text
# (`micro` and its questions). They do not agree.
#
# Time: about half a minute. You need: lessons 0 and 10.

# %%
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import sounds
from common import QUICK, figure, of, read_sweep, short, spread, table
from sweeps import little

import minilora
from minilora import TrainConfig, data, kernels, layers, model
from minilora.evaluation import plot

# %% [markdown]
# ## Sounds are pictures
#
# A sound is played here as a gesture (steady, rising, a warble, …) on an instrument, which is a
# row of overtones. Its spectrogram is a picture of 16 bands by 16 columns, so the network of lesson
# 10 hears as well as it reads. Augmentation moves a picture by a pixel; in a spectrogram it hides a
# band of frequencies and a stretch of time (SpecAugment, Park et al. 2019).
#
# **Predict:** how much of a spectrogram do masks of up to 4 bands and up to 4 columns hide?

# %%
heard, _ = sounds.play("reed", 400, 0)
masked = sounds.masked(heard, np.random.default_rng(0))
hidden = float((masked != heard).mean())
print(f"hidden: {hidden:.3f} of a spectrogram on average")
# a mask of 0 to 4 of 16 hides 1/8 on average, two of them 1 − (1 − 1/8)²
assert abs(hidden - (1 - (7 / 8) ** 2)) < 0.03

# %% [markdown]
# ## Watch it overfit
#
# Five examples a class, LoRA at r = 8, batches of 32, 200 steps, plain and augmented. "Test" are
# other drawings of the same italic, other sounds of the same reed.
#
# **Predict:** where will the test loss turn, and does the accuracy turn with it?

# %%
STEPS = short(200, 75)
KINDS = short(("pictures", "sounds"), ("sounds",))
curves = {
    (kind, augmented): little.small(kind, 8, 0.0, augmented, 0, STEPS)
    for kind in KINDS
    for augmented in (False, True)
}
ylabels = ["loss (nats), logarithmic", ""]
with figure(
    "little", "optimizer step", ylabels[: len(KINDS)], [*KINDS], columns=len(KINDS), width=8.8
) as panels:
    for kind, axes in zip(KINDS, np.atleast_1d(panels)):
        lines = iter(zip(plot.LINES, "os^D"))
        for augmented, word in ((False, "plain"), (True, "augmented")):
            for part in ("train", "test"):
                scores, (style, marker) = curves[kind, augmented], next(lines)
                y = [max(score[part], 1e-5) for score in scores]
                x = [score["step"] for score in scores]
                axes.plot(x, y, marker=marker, markersize=4, label=f"{word}, {part}", **style)
        axes.set_yscale("log")
        axes.set_ylim(top=60)
        axes.legend(frameon=False, loc="upper center", fontsize=8, ncols=2)

sweep = read_sweep("little")
for kind in KINDS:
    first, last = curves[kind, False][0], curves[kind, False][-1]
    print(f"{kind}: test loss {first['test']:.2f} at step {first['step']}, {last['test']:.2f} at "
          f"{last['step']}; accuracy {first['right']:.2f}, {last['right']:.2f}")  # fmt: skip
    assert last["train"] < first["train"] and last["train"] < 0.05
    assert last["test"] > 5 * last["train"]
    if not QUICK:
        assert last["test"] > first["test"] and abs(last["right"] - first["right"]) < 0.04
        written = of(sweep, "right", kind=kind, r=8.0, dropout=0.0, augmented=0.0, seed=0.0)[0]
        assert abs(last["right"] - written) < 0.06  # the sweep's row, on any machine

# %% [markdown]
# ![Loss over steps, in training and on test rows, plain and augmented](../figures/little.png)
#
# The plain runs know their examples within a few dozen steps, and from there the test loss rises:
# the network becomes surer, of right and wrong answers alike. The share of right
# answers hardly moves. A rising loss says "too sure" before it says "wrong".
#
# ## The list, item by item
#
# `sweeps/little.py` has each remedy on pictures and sounds (four seeds) and questions (64 of them,
# three seeds).
#
# **Predict:** rank the remedies. Will the ranking be the same for the three?


# %%
def scores(kind, r=8, dropout=0.0, augmented=0, what="right"):
    """A column of the sweep, a value a seed."""
    return np.array(of(sweep, what, kind=kind, r=r, dropout=dropout, augmented=augmented))


remedies = {
    "plain, r = 8": {}, "r = 1": {"r": 1}, "r = 32": {"r": 32}, "dropout 0.3": {"dropout": 0.3},
    "augmented": {"augmented": 1}, "augmented, dropout 0.3": {"augmented": 1, "dropout": 0.3},
}  # fmt: skip
for kind in ("pictures", "sounds", "questions"):
    rows = [
        [name, *(spread(scores(kind, **how, what=w)) for w in ("right", "test", "best_test"))]
        for name, how in remedies.items()
        if kind != "questions" or (how.get("r") != 32 and "augmented" not in how)
    ]
    table([kind, "right", "test loss", "stopped early"], rows)
    print()

# %% [markdown]
# **Augmentation** is the strongest for pictures: in every seed about half as many letters again
# are read.
# Moving a letter makes more of what the test has, since the test moves letters, too. For sounds the
# masks lower the loss in three seeds of four, and no more sounds are named: hiding a band makes no
# sound that a reed could play. Augmentation helps where it knows a truth about the data.

# %%
gain = scores("pictures", augmented=1) - scores("pictures")
assert gain.min() > 0.1 and scores("pictures", augmented=1).mean() > 1.4 * scores("pictures").mean()
lower = scores("sounds", augmented=1, what="test") < scores("sounds", what="test")
assert lower.sum() == 3
assert scores("sounds", augmented=1).mean() < scores("sounds").mean() + 0.01

# %% [markdown]
# **Dropout** is on the adapter's input alone, and is mild. By itself it never hurts here: the loss
# falls in every seed of all three, by a quarter or less on average, with a few more right answers.
# On top of augmentation it adds nothing certain.

# %%
for kind in ("pictures", "sounds", "questions"):
    plain, dropped = (scores(kind, dropout=p, what="test") for p in (0.0, 0.3))
    assert (dropped < plain).all() and dropped.mean() > 0.75 * plain.mean()
    assert (scores(kind, dropout=0.3) > scores(kind)).all()
for kind in ("pictures", "sounds"):
    both, one = (scores(kind, augmented=1, dropout=p, what="test") for p in (0.3, 0.0))
    assert (both > one).any() and (both < one).any()

# %% [markdown]
# **A lower rank** is said to be right for little data. For sounds it is: r = 1 ends with the lowest
# loss of all, r = 32 with the highest. For pictures r = 1 reads *fewer* letters than r = 8 in every
# seed, and for the questions it is worst by far. 64 questions are enough for r = 8, and r = 1 has
# not even learned its own. Too little capacity and too little data are two different troubles; the
# training loss tells them apart.

# %%
assert (scores("sounds", r=1, what="test") < scores("sounds", what="test")).all()
means = {name: scores("sounds", **how, what="test").mean() for name, how in remedies.items()}
assert min(means, key=means.get) == "r = 1" and max(means, key=means.get) == "r = 32"
assert (scores("sounds", r=32, what="test") > scores("sounds", what="test")).all()
assert (scores("pictures", r=1) < scores("pictures")).all()
assert scores("questions", r=1, what="test").mean() > 2 * scores("questions", what="test").mean()
assert scores("questions", r=1, what="train").min() > 5 * scores("questions", what="train").max()

# %% [markdown]
# **Early stopping** keeps the step that is best on held-out rows. It lowers the loss of pictures
# and sounds in every seed and gives hardly more right answers, as the curves said. For the
# questions there is nothing to stop: in two seeds of three the last evaluation is the best. And it
# has a price that is rarely counted: 520 held-out pictures stopped what was trained on 130.
#
# In `minilora.train` it is `early_stopping_patience`. Here it ends a run that would go on for long:

# %%
for kind in ("pictures", "sounds"):
    assert (scores(kind, what="best_test") < scores(kind, what="test")).all()
    assert abs(scores(kind, what="best_right").mean() - scores(kind).mean()) < 0.04
late = scores("questions", what="best_step") == 200
assert late.sum() == 2

config, base, tokenizer = minilora.load("micro")
settings = TrainConfig(
    400, 4, learning_rate=3e-2, mask_prompt=True, steps_per_eval=5, early_stopping_patience=3
)
texts = data.load_rows("questions", "train")[:4], data.load_rows("questions", "valid")[:40]
few, held_out = (data.encode_rows(rows, tokenizer, settings)[0] for rows in texts)
lora_config = minilora.LoraConfig(r=8, target_modules=("all-linear",))
start, frozen = minilora.lora.init(base, lora_config, np.random.default_rng(0))
kept, history = minilora.train(start, frozen, few, config, settings, valid=held_out)
losses = [row["eval_loss"] for row in history if "eval_loss" in row]
print("held-out loss every 5 steps:", ", ".join(f"{loss:.2f}" for loss in losses))
assert len(losses) < 40 and int(np.argmin(losses)) == len(losses) - 4
found = minilora.evaluate(kept, frozen, held_out, config)["loss"]
assert abs(found - min(losses)) < 1e-6  # what comes back is the best, not the last

# %% [markdown]
# ## Packing
#
# Texts differ in length, and a batch is as long as its longest. `packing` puts several into one
# row instead of padding.
#
# ![Three attention masks of ten tokens. Causal: each token sees itself and all before it. Packed:
# it sees only its own example. Window: it sees at most four
# tokens.](../figures/drawings/masks.svg)
#
# **Predict:** what share of a batch of notes is padding? Is packing faster by what that share says?

# %%
examples, _ = data.encode_rows(data.load_rows("notes", "train"), tokenizer, TrainConfig())
longest = max(len(e.tokens) for e in examples)
rows, filled, pairs = [], {}, {}
for length in (None, longest, 512):
    size = 8 if length == 512 else 16
    bins = data.pack(examples, length) if length else [[e] for e in examples]
    masks = [data.collate(data.batch_at(bins, i, size, 0))["mask"] for i in range(20)]
    filled[length] = float(np.mean([mask.mean() for mask in masks]))
    # each of a row's T tokens is scored against all T, hidden or not
    pairs[length] = sum(mask.size * mask.shape[1] for mask in masks) / sum(m.sum() for m in masks)
    settings = TrainConfig(
        short(12, 3), size, 1, length or longest, learning_rate=1e-3, packing=bool(length)
    )
    began = time.process_time()
    _, history = minilora.train(start, frozen, examples, config, settings)
    speed = sum(row["tokens"] for row in history) / (time.process_time() - began)
    rows.append([
        f"{size} rows of {length}" if length else f"{size} examples", f"{filled[length]:.2f}",
        round(size * len(examples) / len(bins)), int(pairs[length]), f"{speed:,.0f}",
    ])  # fmt: skip
header = ["a step of", "filled", "examples a step", "scores a token", "tokens a CPU second"]
table(header, rows)
assert filled[None] < 0.7 and min(filled[longest], filled[512]) > 0.9
assert pairs[longest] < 0.8 * pairs[None] and pairs[512] > 1.5 * pairs[None]

# %% [markdown]
# What was padding now holds text, and one over the filled share is the most that this can give.
# Longer rows take some of it back: attention scores each token against its whole row, neighbours
# that the mask hides included. A row as long as the longest example is the one to begin with.
#
# Mind the examples, too. A step sees more of them, so an epoch has fewer steps: the same
# `batch_size` is another run.
#
# ## Neighbours
#
# A causal mask lets a token see everything before it, its row's other examples included. `collate`
# therefore notes in `segment_starts` where each token's example begins. It is used twice: attention
# sees nothing before it, and positions count from it.
#
# **Predict:** which of the two is needed for a packed example to get the logits that it gets alone?


# %%
def logits(bins, mask=True, restart=True):
    """Logits of a batch of bins: with the block mask or the causal one, positions from each
    example's start or running on."""

    def attention(q, k, v, rope, starts, cache):
        if not restart:
            rope = layers.rope_cos_sin(np.arange(q.shape[1])[None], config)
        return layers.attention(q, k, v, rope, starts if mask else 0 * starts)

    changed = partial(layers.self_attention, attention=attention)
    changed = SimpleNamespace(**{**vars(layers), "self_attention": changed})
    batch, ops = data.collate(bins), kernels.OPS if mask and restart else changed
    x = model.hidden_states({}, base, batch["tokens"], batch["segment_starts"], config, ops)
    return layers.matmul(x, base["model"]["embed_tokens"]["weight"])


some = max(data.pack(examples[:200], 256), key=len)
alone = np.concatenate([logits([[e]])[0] for e in some])  # one example a row, none padded
packed_tokens = [token for e in some for token in e.tokens[:-1]]
for word, how in {
    "block mask, positions restart": {},
    "block mask, positions run on": {"restart": False},
    "causal mask, positions restart": {"mask": False},
    "causal mask, positions run on": {"mask": False, "restart": False},
}.items():
    difference = float(np.abs(logits([some], **how)[0, : len(alone)] - alone).max())
    print(f"{word:<31} logits differ from those alone by {difference:.1e}")
    assert difference < 1e-3 if how.get("mask", True) else difference > 1

# %% [markdown]
# The mask is needed; restarting the positions is not. Rotary attention sees the *distance* between
# two tokens only (RoFormer, Su et al. 2021), and within an example distances are the same wherever
# it stands. With learned absolute positions it would not be so.
#
# And invisible means invisible, bit for bit: change the first example, and the others' logits stay.

# %%
first = len(some[0].tokens) - 1
other = [data.Example(some[0].tokens[::-1], some[0].mask), *some[1:]]
assert np.array_equal(logits([some])[0, first:], logits([other])[0, first:])
assert not np.array_equal(
    logits([some], mask=False)[0, first:], logits([other], mask=False)[0, first:]
)

batch = data.collate([some])
rows = np.arange(len(alone))


def loss(values):
    """Mean −log p of the packed row's targets, nats."""
    logs = values - np.logaddexp.reduce(values, axis=-1, keepdims=True)
    return float(-logs[rows, batch["targets"][0, : len(alone)]].mean())


closed, opened = (loss(logits([some], mask=m)[0, : len(alone)]) for m in (True, False))
print(f"loss of a packed row: {closed:.3f} with the block mask, {opened:.3f} without")
assert opened > closed + 0.1

# %% [markdown]
# Without the mask nothing fails and nothing warns. The loss is only higher, and in training a model
# would learn to live with neighbours that it will not have later.
#
# **Where to stop with a debugger.** `data.collate` (look at `batch["segment_starts"]`).
# `layers.attention_mask` (print one row of it as 0 and 1: the blocks).
# `training.update_early_stopping` (what is kept, and when).
#
# **Exercises.** `attention`, `rotation`, `prompt-mask`, `cross-entropy`.
