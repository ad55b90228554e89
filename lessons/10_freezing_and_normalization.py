# %% [markdown]
# # 10. Freezing and normalization
#
# **The question.** What happens when norms and biases are trained, or when they are not and move
# all the same?
#
# A frozen model is one whose function does not change. That is less simple than it sounds: batch
# normalization computes with numbers that no gradient ever touches. We look at the two small
# groups of parameters that people unfreeze (norms, biases), at rates that differ from layer to
# layer, and at what the statistics of a batch do, on letters drawn from matplotlib's typefaces.
#
# Time: under a minute. You need: lesson 0, and what a mean and a variance are.

# %%
import convnet
import numpy as np
import pictures
from autograd import grad
from common import QUICK, figure, read_sweep, short, table
from sweeps import freezing, unfreezing

import minilora
from minilora import LoraConfig, TrainConfig, compare, lora, plot
from minilora.methods import METHODS
from minilora.train import rates
from minilora.tree import count, get, tree_map, walk

config, micro, tokenizer = minilora.load("micro")


def mean(rows, name, **where):
    """Mean of a column of a sweep over the rows that agree with `where`."""
    found = [row[name] for row in rows if all(row[key] == w for key, w in where.items())]
    assert found, where
    return float(np.mean(found))


# %% [markdown]
# ## Few parameters, large steps
#
# Norms and biases are a small part of any model. BitFit trains the biases alone.
#
# **Predict:** norms are said to be delicate, to be unfrozen at a tenth of the rate. Alone, at which
# rate do they learn best: below LoRA's, at it, or above it?

# %%
sizes = {}
for method in ("lora", "norm", "bitfit"):
    adapters, _ = METHODS[method](micro, freezing.LORA, np.random.default_rng(0))
    sizes[method] = count(adapters)
table(
    ["trained alone", "parameters", "best rate"],
    [[method, n, f"{compare.TABLE[method].rate:g}"] for method, n in sizes.items()],
)
assert sizes["norm"] < sizes["bitfit"] < sizes["lora"] < count(micro) / 15
for method in ("norm", "bitfit"):
    assert compare.TABLE[method].rate == 10 * compare.TABLE["lora"].rate

# %% [markdown]
# The rates are those of the sweep behind `minilora compare`. Here is BitFit live, at LoRA's best
# rate and at ten times that.

# %%
STEPS = short(40, 20)
slow, fast = (
    {m: freezing.run((m, rate, 1.0, 1.0, 0), STEPS) for m in ("norm", "bias")}
    for rate in (compare.TABLE["lora"].rate, compare.TABLE["bitfit"].rate)
)
table(
    [f"{STEPS} steps on the questions", "loss at 0.01", "loss at 0.1"],
    [[m, f"{slow[m]['loss']:.3f}", f"{fast[m]['loss']:.3f}"] for m in slow],
)
if not QUICK:
    assert fast["norm"]["loss"] < slow["norm"]["loss"] - 0.3
    assert fast["bias"]["loss"] < slow["bias"]["loss"] - 0.08

# %% [markdown]
# So alone they want a rate ten times LoRA's, not a tenth. Adam moves every parameter by about the
# rate a step, whatever the gradient's size. A gain starts at about 1 and there are 48 in a norm;
# the product BA is fed by many more numbers that move at once. With few knobs, each must turn far.
#
# Beside LoRA it could be otherwise: `also_train_lr_scale` is 0.1 unless told. A sweep over three
# seeds (`sweeps/freezing.py`) has LoRA at r = 2, and norms or biases beside it at a tenth of the
# rate, at the rate, and at ten times the rate.
#
# **Predict:** which scale is best, and does anything beat LoRA alone?
# FREEZING

# %% [markdown]
# ## A convolution is a linear layer on patches
#
# Now the pictures. The network (`convnet.py`) cuts a picture into its 3 × 3 patches and hands
# them to `nn.linear`, so `lora_A` and `lora_B` adapt a convolution without a new line of code.
# We check one output against the sum that defines a convolution, and the backward pass of
# `patches` against finite differences.

# %%
rng = np.random.default_rng(0)
image, kernel = rng.standard_normal((1, 16, 16, 2)), rng.standard_normal((5, 3 * 3 * 2))
wide = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
out = convnet.patches(image, 3, 2, 1) @ kernel.T  # (1, 8, 8, 5)
# y[i, j] = Σ_{a, b, c} W[a, b, c] · x[2i + a, 2j + b, c]
by_hand = sum(
    kernel.reshape(5, 3, 3, 2)[:, a, b, c] * wide[0, 2 * 4 + a, 2 * 6 + b, c]
    for a in range(3) for b in range(3) for c in range(2)
)  # fmt: skip
assert np.allclose(out[0, 4, 6], by_hand, rtol=0, atol=1e-13)

weight = rng.standard_normal(out.shape)


def score(x):
    return (weight * (convnet.nn.matmul(convnet.patches(x, 3, 2, 1), kernel))).sum()


nudge = rng.standard_normal(image.shape)
slope = (score(image + 1e-4 * nudge) - score(image - 1e-4 * nudge)) / 2e-4
assert np.isclose((grad(score)(image) * nudge).sum(), slope, rtol=1e-7)

# %% [markdown]
# ## Frozen, and yet it moves
#
# The base reads DejaVu Sans. We freeze everything, take no gradient, and let bold letters pass
# through in the mode in which batch normalization trains: each batch is normalized with its own
# mean and variance, and the running statistics move a tenth of the way towards them.
#
#     y = γ·(x − μ)/√(σ² + ε) + β       (Ioffe and Szegedy 2015, Alg. 1)
#
# **Predict:** not a single parameter changes. Does the accuracy?

# %%
N = short(1040, 260)
SEED = 0
base, running = pictures.reader(SEED, iters=short(400, 200))
bold, bold_test = pictures.draw("bold", N, SEED), pictures.draw("bold", N, 99)
sans_test = pictures.draw("sans", N, 99)


def drift(running, batches):
    """The running statistics after the batches, as a framework in training mode leaves them."""
    for batch in batches:
        _, moments = convnet.forward({}, base, batch)
        running = tree_map(lambda old, new: 0.9 * old + 0.1 * new, running, moments)
    return running


drifted = drift(running, (bold[0][i % N : i % N + 32] for i in range(0, 30 * 32, 32)))
accuracy = {
    (face, which): convnet.evaluate({}, base, test, used)["accuracy"]
    for face, test in (("sans", sans_test), ("bold", bold_test))
    for which, used in (("before", running), ("after", drifted))
}
table(
    ["accuracy, all weights frozen", "before", "after 30 batches of bold"],
    [
        [face, f"{accuracy[face, 'before']:.2f}", f"{accuracy[face, 'after']:.2f}"]
        for face in ("sans", "bold")
    ],
)
assert accuracy["bold", "after"] > accuracy["bold", "before"] + 0.1
assert accuracy["sans", "after"] < accuracy["sans", "before"] - 0.15

# %% [markdown]
# It changes by a lot, in both directions: bold becomes readable without any training (this is
# adaptive batch normalization, Li et al. 2016), and the old typeface is lost. "No gradient" is
# therefore not "frozen". Whoever freezes a network with batch normalization must also decide which
# statistics it uses; whoever saves an adapter must save them, too.
#
# A Llama has no such state. RMSNorm looks at one token's own vector, so a row's logits do not
# depend on its company.

# %%
tokens = np.array([tokenizer.encode("Ada keeps a pink kite in the barn. Who?")] * 2)
tokens[1] = tokens[1][::-1]
alone, together = (minilora.forward({}, micro, t, config)[0] for t in (tokens[:1], tokens))
assert np.allclose(alone, together, rtol=0, atol=1e-4)

company = [convnet.forward({}, base, bold_test[0][i : i + 8])[0] for i in (0, 4)]
said = [logits.argmax(axis=-1) for logits in (company[0][4:], company[1][:4])]
difference = np.abs(company[0][4:] - company[1][:4]).max()
print(f"the same pictures in two batches of 8: logits differ by up to {difference:.1f}")
assert difference > 0.3

# %% [markdown]
# ## Train on one set of statistics, validate on another
#
# LoRA on bold letters. A step may normalize with the base's statistics or with its batch's; the
# validation may use the base's statistics or those of the training pictures under the adapted
# weights. Two times two.
#
# **Predict:** which of the four is broken, and will its training loss tell you?

# %%


def adapt(running, batch_size):
    """(adapters, frozen, statistics of the training pictures, last training loss)."""
    adapters, frozen = convnet.low_rank(base, 4, 8, np.random.default_rng(SEED))
    settings = TrainConfig(
        iters=short(150, 60), batch_size=batch_size, learning_rate=1e-2, seed=SEED
    )
    adapters, losses = convnet.fit(adapters, frozen, bold, settings, running)
    own = convnet.statistics(adapters, frozen, bold[0])
    return adapters, frozen, own, float(np.mean(losses[-20:]))


found, rows = {}, []
for size in (32, 4):
    for used, moments in (("base", running), ("batch", None)):
        adapters, frozen, own, train_loss = adapt(moments, size)
        scores = {
            "base": convnet.evaluate(adapters, frozen, bold_test, running),
            "own": convnet.evaluate(adapters, frozen, bold_test, own),
            "sans": convnet.evaluate(adapters, frozen, sans_test, running),
        }
        found[size, used] = {"train": train_loss, **scores}
        cells = [
            train_loss, scores["base"]["loss"], scores["own"]["loss"],
            *(score["accuracy"] for score in scores.values()),
        ]  # fmt: skip
        rows.append([f"{size} a step, of the {used}", *(f"{x:.2f}" for x in cells)])
table(
    ["trained with the statistics", "train", "loss: base's", "new", "accuracy: base's", "new",
     "sans, base's"],
    rows,
)  # fmt: skip
broken, sound = found[32, "batch"], found[32, "base"]
assert broken["base"]["loss"] > 1.6 * broken["own"]["loss"]
assert broken["train"] < broken["base"]["loss"] / 2
assert found[4, "batch"]["train"] > 1.5 * found[4, "batch"]["own"]["loss"]
if not QUICK:
    assert sound["base"]["loss"] < 0.6 * broken["base"]["loss"]
    assert broken["sans"]["accuracy"] > sound["sans"]["accuracy"] + 0.07

# %% [markdown]
# The second row is the trap. It learns with its batches' statistics and is validated with the
# base's: the training loss is low and says nothing, the validation loss is several times as high,
# and it looks like overfitting. It is not: with the statistics of the new letters (column "new")
# the same weights are among the best. Two ways out are sound: the base's statistics in both
# places (first row), or new statistics in both.
#
# With four pictures a step the same gap has the other sign: the training loss is far *worse* than
# the validation loss, because the mean and variance of four pictures are noise. Here the base's
# statistics, which have no noise, are the better choice to train with.
#
# The last column is a gift that we did not ask for. Weights that were trained with the batch's
# statistics still read the old typeface, if its old statistics are put back. The typefaces share
# the weights, and each has its own 224 numbers of mean and variance.
# SPLIT
