# %% [markdown]
# # 10. Freezing and normalization
#
# **The question.** What happens when norms and biases are trained, or when they are not and move
# all the same?
#
# A frozen model is one whose function does not change. That is less simple than it sounds: batch
# normalization computes with numbers that no gradient ever touches. We look at the two small
# groups of parameters that people unfreeze, at rates that differ from layer to layer, and at the
# statistics of batches, on letters drawn from matplotlib's own typefaces.
#
# Time: about half a minute. You need: lesson 0, and what a mean and a variance are.

# %%
import convnet
import numpy as np
import pictures
from autograd import grad
from common import QUICK, figure, of, read_sweep, short, spread, table
from sweeps import compare, freezing, unfreezing

import minilora
from minilora import TrainConfig
from minilora.evaluation import plot
from minilora.methods.registry import METHODS
from minilora.optim import global_norm
from minilora.training import rates
from minilora.tree import named_leaves, num_parameters, tree_map, unflatten

config, micro, tokenizer = minilora.load("micro")
SEED = 0

# %% [markdown]
# ## Few parameters, large steps
#
# BitFit (Ben Zaken et al. 2022) trains the biases alone. Norms are said to be delicate, and are
# often unfrozen at a tenth of the rate. The best rates below come from the sweep behind
# `sweeps/compare.py`, where each group learns alone.
#
# **Predict:** do norms and biases learn best below LoRA's rate, at it, or above it?

# %%
STEPS, best = short(40, 20), {m: entry.rate for m, entry in compare.TABLE.items()}
sizes, rows = {}, []
for method, group in (("lora", "lora"), ("norm", "norm"), ("bitfit", "bias")):
    adapters, _ = METHODS[method](micro, freezing.LORA, np.random.default_rng(0))
    losses = [freezing.run((group, rate, 1.0, 1.0, SEED), STEPS)["loss"] for rate in (1e-2, 1e-1)]
    sizes[method] = num_parameters(adapters)
    rows.append([group, sizes[method], f"{best[method]:g}", *(f"{x:.2f}" for x in losses)])
    if method != "lora":
        assert best[method] == 10 * best["lora"]
        assert QUICK or losses[1] < losses[0] - 0.08
table(["alone", "parameters", "best rate", f"loss after {STEPS} steps at 0.01", "at 0.1"], rows)
assert sizes["norm"] < sizes["bitfit"] < sizes["lora"] < num_parameters(micro) / 15

# %% [markdown]
# Alone they want ten times LoRA's rate, not a tenth of it. Adam moves each parameter by about the
# rate in a step, however small the gradient is. Where there are few of them, each must go far.
#
# Beside LoRA it could be otherwise: there `also_train_lr_scale` is 0.1 unless told.
#
# **Predict:** with LoRA at its best rate, which scale is best for what is trained beside it, and
# is LoRA alone beaten? (`sweeps/freezing.py`, three seeds)

# %%
sweep = read_sweep("freezing")
at = {"decay": 1.0, "rate": 1e-2}
alone = {c: of(sweep, c, trains="lora", **at) for c in ("loss", "notes")}
rows = [["LoRA alone", spread(alone["loss"], 3), spread(alone["notes"])]]
for group in ("norm", "bias"):
    for scale in freezing.SCALES:
        loss, notes = (of(sweep, c, trains=f"lora+{group}", scale=scale, **at) for c in alone)
        rows.append([f"and {group}, {scale:g} of the rate", spread(loss, 3), spread(notes)])
        if scale == 0.1:  # a difference, but half of that between two seeds
            gap = abs(np.mean(loss) - np.mean(alone["loss"]))
            assert gap < (max(alone["loss"]) - min(alone["loss"])) / 2
        elif scale == 10:
            assert np.mean(loss) > 1.5 * np.mean(alone["loss"])
            assert min(notes) > max(alone["notes"]) + 0.2
table(["150 steps, three seeds", "held-out loss", "loss on own text"], rows)

if not QUICK:  # one row again; on another machine a run rounds, and ends, a little differently
    again = freezing.run(("lora+norm", 1e-2, 0.1, 1.0, 0))["loss"]
    assert abs(again - of(sweep, "loss", trains="lora+norm", scale=0.1, seed=0.0)[0]) < 0.03

# %% [markdown]
# Here the caution is right. At ten times the rate the loss is about twice as high, and in every
# seed more of the base's own text is forgotten. At a tenth nothing breaks, and nothing certain is
# won: the difference is smaller than that between two seeds of LoRA alone.
#
# ## A convolution is a linear layer on patches
#
# Now the pictures. The network (`convnet.py`) hands the 3 × 3 patches of a picture to
# `layers.linear`, so `lora_A` and `lora_B` adapt a convolution without a new line of code. We hold
# one output against the sum that defines it, and the backward pass against a finite difference.

# %%
rng = np.random.default_rng(0)
image, nudge, kernel = (rng.standard_normal(s) for s in ((1, 16, 16, 2), (1, 16, 16, 2), (5, 18)))
probe = rng.standard_normal((1, 8, 8, 5))


def convolved(x):
    return convnet.layers.matmul(convnet.patches(x, 3, 2, 1), kernel)


def probed(x):
    return (probe * convolved(x)).sum()


# y[i, j] = Σ W[a, b, c] · x[2i + a − 1, 2j + b − 1, c], at i = 4, j = 6
by_hand = (kernel.reshape(5, 3, 3, 2) * image[0, 7:10, 11:14]).sum(axis=(1, 2, 3))
assert np.allclose(convolved(image)[0, 4, 6], by_hand, rtol=0, atol=1e-13)
slope = (probed(image + nudge) - probed(image - nudge)) / 2  # exact: the function is linear
assert np.isclose((grad(probed)(image) * nudge).sum(), slope, rtol=1e-10)

# %% [markdown]
# ## Frozen, and yet it moves
#
# The base reads DejaVu Sans. We take no gradient, and only let bold letters pass through in
# training mode: each batch is normalized with its own mean and variance, and the running
# statistics move a tenth of the way towards them.
#
#     y = γ·(x − μ)/√(σ² + ε) + β       (Ioffe and Szegedy 2015, Alg. 1)
#
# **Predict:** not a single parameter changes. Does the accuracy?

# %%
N = short(1040, 260)
base, running = pictures.reader(SEED, *short((), (200,)))
bold, bold_test = pictures.draw("bold", N, SEED), pictures.draw("bold", N, 99)
sans_test = pictures.draw("sans", N, 99)
drifted = running
for i in range(30):
    _, moments = convnet.forward({}, base, bold[0][32 * i % (N - 32) :][:32])
    drifted = tree_map(lambda old, new: 0.9 * old + 0.1 * new, drifted, moments)

rows = []
for face, test, sign in (("sans", sans_test, -1), ("bold", bold_test, 1)):
    before, after = (convnet.evaluate({}, base, test, m)["accuracy"] for m in (running, drifted))
    rows.append([face, f"{before:.2f}", f"{after:.2f}"])
    assert sign * (after - before) > 0.12
table(["accuracy, all weights frozen", "before", "after 30 batches of bold"], rows)

# %% [markdown]
# Bold becomes readable without any training (Li et al. 2016 call it adaptive batch normalization),
# and the old typeface is lost. "No gradient" is not "frozen": whoever freezes such a network also
# decides which statistics it uses, and whoever saves an adapter must save them, too.
#
# A Llama has no such state. RMSNorm looks at one token's own vector, so a row's logits do not
# depend on the rows beside it. A picture's do:
#
# ![BatchNorm divides by statistics of the batch and updates running statistics in each forward
# pass, without a gradient. RMSNorm has no such state: only its weight could be
# trained.](../figures/drawings/norms.svg)

# %%
tokens = np.array([tokenizer.encode("Ada keeps a pink kite in the barn. Who?")] * 2)
tokens[1] = tokens[1][::-1]
apart, together = (minilora.forward({}, micro, t, config)[0] for t in (tokens[:1], tokens))
assert np.allclose(apart, together, rtol=0, atol=1e-4)
one, other = (convnet.forward({}, base, bold_test[0][i : i + 8])[0] for i in (0, 4))
difference = np.abs(one[4:] - other[:4]).max()
print(f"the same pictures in two batches of 8: logits differ by up to {difference:.1f}")
assert difference > 1

# %% [markdown]
# ## Train with one set of statistics, validate with another
#
# LoRA on bold letters. A step may normalize with the base's statistics or with its batch's;
# validation may use the base's, or new ones, of the training pictures under the adapted weights.
#
# **Predict:** which of the four is broken, and will its training loss tell you?

# %%
found, rows = {}, []
for size in (32, 4):
    for used, moments in (("base", running), ("batch", None)):
        adapters, frozen = convnet.low_rank(base, 4, 8, np.random.default_rng(SEED))
        settings = TrainConfig(short(150, 60), size, learning_rate=1e-2, seed=SEED)
        adapters, losses = convnet.fit(adapters, frozen, bold, settings, moments)
        new = convnet.statistics(adapters, frozen, bold[0])
        scores = [
            convnet.evaluate(adapters, frozen, test, m)
            for test, m in ((bold_test, running), (bold_test, new), (sans_test, running))
        ]
        numbers = [np.mean(losses[-20:]), scores[0]["loss"], scores[1]["loss"]]
        numbers += [score["accuracy"] for score in scores]
        found[size, used] = dict(zip(("train", "old", "new", "bold", "bold new", "sans"), numbers))
        rows.append([f"{size} a step, of the {used}", *(f"{x:.2f}" for x in numbers)])
losses = ["train loss", "bold: old", "new"]
table(["normalized in training", *losses, "accuracy: bold, old", "new", "sans, old"], rows)

sound, broken, noisy = found[32, "base"], found[32, "batch"], found[4, "batch"]
assert broken["old"] > 1.6 * broken["new"] and broken["old"] > 2 * broken["train"]
assert noisy["train"] > 1.5 * noisy["new"]
if not QUICK:
    assert sound["old"] < 0.6 * broken["old"] and broken["sans"] > sound["sans"] + 0.07

# %% [markdown]
# The second row is the trap: trained with its batches' statistics, validated with the base's
# ("old"). The training loss is low, the validation loss several times as high, and it looks like
# overfitting. It is not: with new statistics the same weights do well. Two ways are sound, the
# base's statistics in both places or new ones in both.
#
# With four pictures a step the gap has the other sign. The training loss is far *worse* than the
# validation loss, because the mean and variance of four pictures are noise, and validation's not.
#
# The last column is a gift. Weights trained with the batch's statistics still read Sans, if its
# old statistics are put back: the typefaces share the weights, and each has its own 224 numbers.
#
# And a bias in front of a batch normalization is taken away again with the mean.
#
# **Predict:** what is the gradient of such a bias, with the batch's moments and with running ones?

# %%
nodes = {f"model.layers.{i}.linear.bias": np.zeros(convnet.LAYERS[i][3], "f4") for i in range(3)}
some = bold[0][:64], bold[1][:64]
slopes = [
    global_norm(grad(convnet.loss)(unflatten(nodes), base, some, moments))
    for moments in (None, running)
]
print(f"gradient of the biases: {slopes[0]:.0e} with the batch's, {slopes[1]:.0e} with running")
assert slopes[0] < 1e-4 * slopes[1] and sum(leaf.size for _, leaf in named_leaves(running)) == 224

# %% [markdown]
# BitFit's biases do nothing there in training; it is the normalization's β that has to be trained.
#
# ## The smaller rate that vision wants
#
# Vision models are said to want smaller rates than language models. Our reader of Sans meets an
# italic, 1,040 pictures of it (`sweeps/unfreezing.py`: four groups, six rates, three seeds).
#
# **Predict:** LoRA's best rate on `micro` is 0.01, full fine-tuning's 0.005. And here?

# %%
seen, rows, curves = read_sweep("unfreezing"), [], {}
kinds = {"lora": "LoRA, r = 4", "norm": "γ and β", "head": "head", "full": "everything"}
for kind, name in kinds.items():
    loss, new, old = (
        np.array([of(seen, c, trains=kind, rate=r, decay=1.0) for r in unfreezing.RATES])
        for c in ("loss", "accuracy", "old_accuracy")
    )
    i, curves[kind] = int(loss.mean(axis=1).argmin()), (new, old)
    rate, trained = unfreezing.RATES[i], int(of(seen, "trained", trains=kind)[0])
    rows.append([name, trained, f"{rate:g}", f"{best[kind]:g}", spread(new[i]), spread(old[i])])
    assert rate > best[kind] or kind in ("norm", "head")
table(["", "trained", "best rate", "on micro", "accuracy, italic", "sans"], rows)
forgotten = curves["full"][1].mean(axis=1)
assert (np.diff(forgotten) < 0).all()  # the larger the rate, the less of Sans is left

if not QUICK:  # one row again, as above
    again = unfreezing.run(("lora", 1e-2, 1.0, 0))["accuracy"]
    assert abs(again - of(seen, "accuracy", trains="lora", rate=1e-2, decay=1.0)[0]) < 0.05

titles = ["four of the typefaces", "accuracy over rate, three seeds"]
labels = ["", "learning rate"], ["", "accuracy on italic letters"]
with figure("unfreezing", *labels, titles, columns=2, width=8.8) as (letters, axes):
    shown = ("sans", "bold", "italic", "slanted")
    drawn = [np.hstack(pictures.draw(face, 26, 5)[0][:10]) for face in shown]
    letters.imshow(np.vstack(drawn), cmap="gray_r", vmin=0, vmax=1)
    letters.set(xticks=[], yticks=[8 + 16 * i for i in range(4)], yticklabels=shown)
    letters.grid(False)
    for (kind, name), style, marker in zip(kinds.items(), plot.LINES, "os^D"):
        x, y = unfreezing.RATES, curves[kind][0]
        axes.plot(x, y.mean(axis=1), marker=marker, markersize=4, label=name, **style)
        axes.vlines(x, y.min(axis=1), y.max(axis=1), color=style["color"])
    axes.set(xscale="log", ylim=(0, 0.95))
    axes.legend(frameon=False, loc="upper left", ncols=2)

# %% [markdown]
# ![Typefaces, and accuracy over learning rate](../figures/unfreezing.png)
#
# The advice does not hold here. LoRA's best rate is no smaller than on `micro`, that of full
# fine-tuning six times as large; only the head's is smaller. The best rate belongs to the group
# that is trained and to the distance to go, more than to vision. What a small rate does buy is
# memory of the old typeface.
#
# ## Rates that differ from layer to layer
#
# Discriminative fine-tuning (Howard and Ruder 2018, Sec. 3.2) gives each layer the rate of the one
# above it, divided by 2.6: lower layers are said to be general. `layer_lr_decay` is that factor.
#
# **Predict:** does a decay of 0.4 keep Sans better than a smaller rate for all layers?

# %%
settings = TrainConfig(layer_lr_decay=0.4)
shares = [rates(1.0, settings, base)(f"model.layers.{i}.linear.weight") for i in range(4)]
print("shares of the rate, from the bottom:", ", ".join(f"{share:.3f}" for share in shares))
assert np.allclose(shares, [0.4**3, 0.4**2, 0.4, 1])

rows, means = [], {}
for rate, decay in ((1e-2, 1.0), (3e-2, 0.4), (3e-2, 1.0)):
    where = {"trains": "full", "rate": rate, "decay": decay}
    columns = [of(seen, c, **where) for c in ("accuracy", "old_accuracy")]
    rows.append([f"{rate:g}, decay {decay:g}", *map(spread, columns)])
    means[rate, decay] = [np.mean(column) for column in columns]
table(["pictures, everything trained", "accuracy, italic", "sans"], rows)
assert all(small > decayed for small, decayed in zip(means[1e-2, 1.0], means[3e-2, 0.4]))

rows, means = [], {}
for rate, decay in ((1e-2, 1.0), (2e-2, 0.4), (2e-2, 0.7), (2e-2, 1.0)):
    where = {"trains": "lora", "rate": rate, "decay": decay}
    columns = [of(sweep, c, **where) for c in ("loss", "exact_match", "notes")]
    rows.append([f"{rate:g}, decay {decay:g}", *map(spread, columns)])
    means[rate, decay] = [np.mean(column) for column in columns]
table(["micro, LoRA at r = 2", "held-out loss", "exact match", "loss on own text"], rows)
losses, _, notes = zip(*(means[2e-2, decay] for decay in (0.4, 0.7, 1.0)))
assert list(losses) == sorted(losses, reverse=True) and list(notes) == sorted(notes)

# %% [markdown]
# On the pictures it does not: a smaller rate for all reads the italic better and keeps Sans better.
# A new typeface changes strokes, which is what the *lower* layers see, so holding them back is the
# wrong way round. On `micro` a decay learns less and forgets less, which is also what a smaller
# rate does; 0.7 at 0.02 is a fair point between the two. Measure before you believe it.
#
# **Where to stop with a debugger.** `convnet.forward` (look at `used` with `running` given and
# with None). `training.rates`, function `rate_of` (which layer gets which rate).
# `tree.trained_or_frozen` (a trained gain takes the frozen one's place).
#
# **Exercises.** `rms-norm`, `test-frozen`, `adamw`, `lora-count`.
