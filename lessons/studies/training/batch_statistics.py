# %% [markdown]
# # Batch statistics: frozen, and yet it changes
#
# **The question.** A network with batch normalization has all weights frozen. Can it still change?
#
# The study [Batch statistics: frozen, and yet it changes](batch_statistics.py) trains such a
# network, with the right and the wrong statistics.
#
# **Continues:** [lesson 4](../../04_the_gradient.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** the study [Norms and
# biases](norms_and_biases.py), and what a mean and a variance are.

# %%
import numpy as np
from autograd import grad

import minilora
from lessons.helpers import convnet, pictures
from lessons.helpers.common import QUICK, figure, short
from minilora.evaluation import plot
from minilora.tree import named_leaves, num_parameters, tree_map

SEED = 0
rng = np.random.default_rng(SEED)

# %% [markdown]
# ## A convolution is a linear layer on patches
#
# The data are pictures of letters, drawn in the typefaces of matplotlib. The network
# (`convnet.py`) gives the 3 × 3 patches of a picture to `layers.linear`. So `lora_A` and `lora_B`
# adapt a convolution as they adapt a linear layer. The outputs at one place are compared with the
# sum that defines them, and the backward pass with a finite difference.

# %%
x, nudge = rng.standard_normal((2, 1, 16, 16, 2))
kernel = rng.standard_normal((5, 18))  # 5 outputs, 3 · 3 · 2 inputs
probe = rng.standard_normal((1, 8, 8, 5))


def convolved(x):
    """Convolve x (N, 16, 16, 2) with the kernel; stride 2, padding 1."""
    return convnet.layers.matmul(convnet.patches(x, 3, 2, 1), kernel)


def probed(x):
    """Return one number that depends on all outputs, linearly."""
    return (probe * convolved(x)).sum()


# y[i, j] = Σ W[a, b, c] · x[2i + a − 1, 2j + b − 1, c], at i = 4, j = 6
by_hand = (kernel.reshape(5, 3, 3, 2) * x[0, 7:10, 11:14]).sum(axis=(1, 2, 3))
slope = (probed(x + nudge) - probed(x - nudge)) / 2  # exact, because the function is linear
print("one output:", convolved(x)[0, 4, 6].round(4), "\nby hand:   ", by_hand.round(4))
print(f"slope {slope:.6f}, by the backward pass {(grad(probed)(x) * nudge).sum():.6f}")

# %%
# Checks
assert np.allclose(convolved(x)[0, 4, 6], by_hand, rtol=0, atol=1e-13), "the convolution's sum"
assert np.isclose((grad(probed)(x) * nudge).sum(), slope, rtol=1e-10), "its backward pass"

# %% [markdown]
# ## Frozen, and yet it changes
#
# Batch normalization subtracts a mean μ and divides by a standard deviation (Ioffe and Szegedy
# 2015, Alg. 1):
#
# $$y = \gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta$$
#
# In training, μ and σ² are those of the batch. *Running statistics* move towards them in each
# forward pass (here, a tenth of the way), and are used in validation. No gradient is involved.
#
# A network was trained to read DejaVu Sans. Thirty batches of bold letters pass through it. Only
# the running statistics change.
#
# **Predict.** No parameter changes. Does the accuracy?
#
# <details><summary>Answer</summary>
# Yes. On bold it rises to more than 0.85 (Li et al. 2016 call this adaptive batch normalization),
# and on Sans it falls by more than 0.3.
# </details>

# %%
N = short(1040, 260)
base, running = pictures.reader(SEED, *short((), (200,)))
bold, bold_test = pictures.draw("bold", N, SEED), pictures.draw("bold", N, 99)
sans_test = pictures.draw("sans", N, 99)


def accuracies(statistics):
    """Return the accuracy on letters in Sans and in bold."""
    tests = sans_test, bold_test
    return [convnet.evaluate({}, base, test, statistics)["accuracy"] for test in tests]


drifted, seen = running, [accuracies(running)]
for i in range(30):
    _, moments = convnet.forward({}, base, bold[0][32 * i % (N - 32) :][:32])
    drifted = tree_map(lambda old, new: 0.9 * old + 0.1 * new, drifted, moments)
    seen.append(accuracies(drifted))
with figure("drift", "batches of bold letters", "accuracy", "All weights are frozen") as axes:
    for name, values, style in zip(("Sans", "bold"), zip(*seen), plot.LINES):
        axes.plot(values, label=name, **style)
    axes.legend(frameon=False)

config, micro, tokenizer = minilora.load("micro")
tokens = np.array([tokenizer.encode("Ada keeps a pink kite in the barn. Who?")] * 2)
tokens[1] = tokens[1][::-1]
apart, together = (minilora.forward({}, micro, t, config)[0] for t in (tokens[:1], tokens))
one, other = (convnet.forward({}, base, bold_test[0][i : i + 8])[0] for i in (0, 4))
in_two_batches = np.abs(one[4:] - other[:4]).max()
numbers = sum(leaf.size for _, leaf in named_leaves(running))
print(f"running statistics: {numbers} numbers; accuracy on Sans {seen[0][0]:.2f}, then", end=" ")
print(f"{seen[-1][0]:.2f}; on bold {seen[0][1]:.2f}, then {seen[-1][1]:.2f}")
print(f"the same pictures in two batches: logits differ by up to {in_two_batches:.1f}")
print(f"a Llama's row in two batches: logits differ by up to {np.abs(apart - together).max():.0e}")

# %% [markdown]
# ![Accuracy on Sans falls and on bold rises over thirty batches](../../../figures/drift.png)
#
# (One network of 0.04 million parameters, one seed.) "No gradient" does not mean "frozen". If you
# freeze such a network, also decide which statistics it uses. If you save an adapter for it, save
# them, too. A Llama has no such state: RMSNorm normalizes each token's own vector. Up to rounding,
# the logits of a row of `micro` do not depend on the other row.

# %%
# Checks
assert seen[0][0] - seen[-1][0] > (0.12 if QUICK else 0.3), "Sans must be read far worse"
assert seen[-1][1] - seen[0][1] > 0.12, "bold must become readable"
assert QUICK or seen[-1][1] > 0.85, "nearly all of it"
assert 35_000 < num_parameters(base) < 45_000, "0.04 million parameters"
assert np.allclose(apart, together, rtol=0, atol=1e-4), "a Llama's row must not see other rows"
assert numbers == 224, "a mean and a variance for each of 16 + 32 + 64 channels"
assert in_two_batches > 1, "a picture's logits must depend on its batch"

# %% [markdown]
# ## What was shown
#
# The running statistics of batch normalization change without a gradient, and so does the accuracy
# of the network. RMSNorm has no such statistics.
#
# **What to try.**
#
# 1. `0.9 * old + 0.1 * new`: use 0.99 and 0.01. How many batches does the change take?
# 2. `pictures.draw("bold", ...)`: use "italic". Are new statistics enough?
# 3. `bold[0][32 * i % (N - 32) :][:32]`: use batches of 4 pictures. How does the curve change?
#
# **Where to stop with a debugger.** `convnet.forward`: `used`, with `running` given and with None.
#
# **Exercises.** rms-norm, test-frozen.
#
# **Further reading.** Ioffe and Szegedy 2015: [arXiv:1502.03167](https://arxiv.org/abs/1502.03167).
# Li et al. 2016: [arXiv:1603.04779](https://arxiv.org/abs/1603.04779).
