# %% [markdown]
# # Products in bfloat16
#
# **The question.** QLoRA stores weights in 4 bits and multiplies them in bfloat16. What do products
# in bfloat16 change: one product, a gradient, twenty steps, a whole run?
#
# With `compute_dtype="bfloat16"`, both operands of a product with a frozen weight are rounded to
# bfloat16, and the sum is in float32. Everything else is in float32: the activations between the
# products, the norms, softmax, the loss, and LoRA's A and B.
#
# **Continues:** [lesson 3](../../03_training_through_four_bits.py).
#
# **Time:** 10 seconds to run, 15 minutes to read. **You need:** lessons 1, 2 and 3.

# %%
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data, nf4
from minilora.layers import value_and_grad
from minilora.lessons.helpers.codes import rms
from minilora.lessons.helpers.common import HOLDS, OPEN, claim, finetune, of, read_sweep, table
from minilora.quant.schemes import quantize, with_compute_dtype
from minilora.rounding import nearest
from minilora.tree import arrays, named_leaves

# %% [markdown]
# ## One product
#
# bfloat16 has 8 significant bits. From 1 to 2, its numbers are 2⁻⁷ apart. So rounding to the
# nearest is off by at most 2⁻⁸, and the root of the mean square (RMS) of the error is 2⁻⁸/√3.
# Relative to a number near 1, this is 2⁻⁸/√3; relative to one near 2, it is half of that. In
# y = Σ xᵢwᵢ, both operands are rounded. Their errors are independent, so the squares of their
# relative sizes add:
#
# $$\frac{\mathrm{RMS}(\hat y - y)}{\mathrm{RMS}(y)} \approx \sqrt{\varepsilon_x^2 +
#   \varepsilon_w^2}, \qquad \frac{2^{-9}}{\sqrt 3} \le \varepsilon \le \frac{2^{-8}}{\sqrt 3}$$
#
# **Predict.** A sum of 4,096 terms has 64 times as many rounded operands as one of 64 terms. How
# much larger is the relative error of its result? How does it compare with that of NF4?
#
# <details><summary>Answer</summary>
# It is as large: 0.24 % of the RMS of y. (More is tempting. The error grows with the square root of
# the number of terms, but the sum of random terms grows so, too.) The error of NF4 is 9 %, about
# forty times as large, and that of float32 is a five-thousandth of bfloat16's or less.
# </details>

# %%
LENGTHS = (64, 576, 4096)


def operands(length):
    """Return x (64, length) and w (256, length) of random numbers."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((rows, length)).astype(np.float32) for rows in (64, 256))


def product_errors(length):
    """Return the error of x wᵀ relative to its RMS: of each type, and as predicted."""
    x, w = operands(length)
    x_rounded, w_rounded = nearest(x, "bfloat16"), nearest(w, "bfloat16")
    exact = np.float64(x) @ np.float64(w).T
    errors = {
        "float32": x @ w.T,
        "bfloat16": x_rounded @ w_rounded.T,  # float32 sums of rounded operands
        "w in NF4": x @ nf4.quantize(w).dequantize().T,
    }
    errors = {name: rms(y - exact) / rms(exact) for name, y in errors.items()}
    of_x, of_w = rms(x_rounded - x) / rms(x), rms(w_rounded - w) / rms(w)
    return errors | {"predicted": np.hypot(of_x, of_w)}


products = {length: product_errors(length) for length in LENGTHS}
header = ["terms of a sum", *products[64]]
table(header, [[n, *(f"{e:.2e}" for e in row.values())] for n, row in products.items()])

# %%
# Checks
for length, row in products.items():
    low, high = np.sqrt(2) * 2.0**-9 / np.sqrt(3), np.sqrt(2) * 2.0**-8 / np.sqrt(3)
    assert low < row["predicted"] < high, f"{length} terms: √2 times 2⁻⁹/√3 to 2⁻⁸/√3"
    assert abs(row["bfloat16"] / row["predicted"] - 1) < 0.03, f"{length} terms: squares must add"
    assert row["float32"] < row["bfloat16"] / 5000, f"{length} terms: float32 must be exact"
    assert 30 < row["w in NF4"] / row["bfloat16"] < 50, f"{length} terms: NF4, forty times"

# %% [markdown]
# ## Why the sum stays in float32
#
# The instructions of processors for bfloat16 round the operands only. What if the sum were in
# bfloat16, too, rounded after each term?
#
# **Predict.** A thousand ones are added in bfloat16. What is the sum? And what is the sum of a
# thousand tenths?
#
# <details><summary>Answer</summary>
# 256 and 32. From 256 on, the numbers of bfloat16 are 2 apart: 257 is halfway between 256 and 258,
# and ties go to the even one. The numbers from 32 on are 0.25 apart, and 0.1 is less than half of
# that. (1,000 is tempting, because bfloat16 has a number close to it.)
# </details>
#
# A sum of equal terms stops at the first power of two that is at least 256 terms. A sum of terms
# with random signs does not stop, but its error grows with its length.


# %%
def bfloat16_sum(terms):
    """Return the sum of arrays, rounded to bfloat16 after each term."""
    total = np.float32(0)
    for term in terms:
        total = nearest(total + term, "bfloat16")
    return total


equal = {term: bfloat16_sum(np.full((1000, 1), term, np.float32))[0] for term in (0.1, 0.7, 1, 3)}
print("1,000 times", ", ".join(f"{term}: {total:g}" for term, total in equal.items()))


def error_of_sum(length):
    """Return the error of x wᵀ relative to its RMS, with operands and sums in bfloat16."""
    x, w = operands(length)
    columns = zip(nearest(x, "bfloat16").T, nearest(w, "bfloat16").T)
    exact = np.float64(x) @ np.float64(w).T
    return rms(bfloat16_sum(np.outer(*pair) for pair in columns) - exact) / rms(exact)


summed = {length: error_of_sum(length) for length in LENGTHS}
rows = [[n, f"{products[n]['bfloat16']:.2%}", f"{error:.2%}"] for n, error in summed.items()]
table(["terms of a sum", "sum in float32", "sum in bfloat16"], rows)

# %%
# Checks
for term, total in equal.items():
    assert total == 2 ** np.ceil(np.log2(256 * term)), f"1,000 times {term} stops at {total}"
    assert total < 0.52 * 1000 * term, f"{total} must be about half of 1,000 times {term} or less"
assert summed[64] > 3 * products[64]["bfloat16"], "a bfloat16 sum is worse from 64 terms on"
assert 2 < summed[4096] / summed[576] < 3.5, "the error must grow like √(4096/576) = 2.7"
assert summed[4096] > 0.05, "and nearly reach that of NF4"

# %% [markdown]
# ## A gradient, and twenty steps
#
# `micro`, a model of 0.1 million parameters, is stored in NF4 and trained for twenty steps: with
# products in float32, in bfloat16, and in float32 with the next seed. Gradients are those at the
# adapter of the first run, on its first 16 rows.
#
# **Predict.** How far is the gradient in bfloat16 from that in float32, relative to its norm? And
# how far is the gradient on other rows?
#
# <details><summary>Answer</summary>
# 3 % and more than 100 %. One product is off by 0.2 %, and a gradient passes through dozens of
# them. (3 % seems much, but the gradient of 16 rows is itself only an estimate of that of all
# rows.) After twenty steps, the adapters are 2 % apart, relative to how far they moved.
# </details>

# %%
CONFIG = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
BASES = {"dense": minilora.load("micro").model}
BASES["NF4"] = quantize(BASES["dense"], "nf4-dq")
BASES["NF4, bfloat16"] = with_compute_dtype(BASES["NF4"], "bfloat16")


def twenty_steps(base, seed=0):
    """Return (adapters, loss of each step, vector of how far each number moved)."""
    start, model = minilora.get_peft_model(BASES[base], CONFIG, seed)
    run = finetune(start=(start, model), iters=20, seed=seed)
    moved = vector(run.adapters) - vector(start)
    return run.adapters, np.array([record["loss"] for record in run.history]), moved


def vector(tree):
    """Return all numbers of adapters or of a gradient as one vector."""
    return np.concatenate([np.ravel(w) for _, w in named_leaves(arrays(tree))])


def distance(a, b):
    """Return ‖a − b‖ / ‖b‖."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


adapters, losses, moved = twenty_steps("NF4")
_, bfloat16_losses, bfloat16_moved = twenty_steps("NF4, bfloat16")
_, other_losses, _ = twenty_steps("NF4", seed=1)
tokenizer = minilora.load("micro").tokenizer
examples, _ = data.encode_rows(
    data.load_rows("questions", "train")[:32], tokenizer, TrainConfig(mask_prompt=True)
)


def gradient(base, rows):
    """Return the gradient at the trained adapters as a vector."""
    batch = data.collate([[example] for example in rows])
    return vector(value_and_grad(minilora.loss)(adapters, BASES[base], batch)[1])


g = gradient("NF4", examples[:16])
far = {
    "bfloat16 instead of float32": distance(gradient("NF4, bfloat16", examples[:16]), g),
    "dense instead of NF4": distance(gradient("dense", examples[:16]), g),
    "sixteen other rows": distance(gradient("NF4", examples[16:]), g),
}
for what, value in far.items():
    print(f"gradient, {what}: {value:.1%} away")
off = distance(bfloat16_moved, moved)
print(f"adapter after twenty steps, bfloat16 instead of float32: {off:.0%} away")
largest = np.abs(bfloat16_losses - losses).max()
other = np.abs(other_losses - losses).max()
print(f"largest difference of the twenty losses: {largest:.4f} nats per token; seed 1: {other:.2f}")

# %%
# Checks
in_bfloat16, *others = far.values()
assert 0.005 < in_bfloat16 < 0.06, f"a gradient in bfloat16 must be some percent off: {in_bfloat16}"
assert min(others) > 10 * in_bfloat16, "NF4 and other rows must change it ten times as much"
assert 0.005 < off < 0.06, f"the adapter must be some percent off after twenty steps: {off}"
assert largest < 0.03 < other, "the losses must differ far less than those of another seed"

# %% [markdown]
# ## A whole run
#
# `compute_dtypes_sweep.py` trains `micro` in NF4 for 200 steps, with eight seeds, and measures the
# loss on held-out rows with products in float32. A third run of each seed has products in float32
# and an A whose last bit is another.
#
# **Predict.** Is the loss after 200 steps higher with products in bfloat16 than with float32? By
# how much does it differ if only the last bit of A does?
#
# <details><summary>Answer</summary>
# A difference of the means is not shown, and one of more than 5 % is excluded. Single seeds differ
# by up to 7 %, in both directions. With another last bit, the losses differ by less than 0.01 %.
# (Much more is tempting, because training magnifies differences. But the last bit of float32 is
# 2⁻¹⁶ of that of bfloat16.)
# </details>

# %%
sweep = read_sweep("compute_dtypes")


def after(products, model="micro", scored="float32"):
    """Return the held-out loss of each seed; scored: the products of the evaluation."""
    return np.array(of(sweep, f"loss_{scored}", model=model, products=products))


ratios = np.log(after("bfloat16") / after("float32"))  # of each seed
nudged = np.log(after("float32, nudged") / after("float32"))
seeds = np.std(np.log(after("float32")), ddof=1)
worse = claim("products in bfloat16 give a higher loss", ratios, times=True)
same = claim("0.95 to 1.05 times the loss", ratios, np.log(0.95), np.log(1.05), times=True)
paired, last_bit = np.std(ratios, ddof=1), np.std(nudged, ddof=1)
print(
    f"standard deviation over seeds: {seeds:.0%} of the loss; of the paired differences:", end=" "
)
print(f"{paired:.1%} with bfloat16, {last_bit:.4%} with another last bit")
served = np.log(after("float32", scored="bfloat16") / after("float32"))
print(f"trained in float32 and evaluated in bfloat16: a loss at most {abs(served).max():.1%} away")
small, large = (after(dtype, "smollm2")[0] for dtype in ("bfloat16", "float32"))
print(f"SmolLM2, 20 steps, one seed: {small:.4f} in bfloat16, {large:.4f} in float32")

# %% [markdown]
# On this model of 0.1 million parameters, the mean loss with products in bfloat16 is that with
# float32, to 5 % (eight seeds). An adapter that was trained with one kind of products computes
# nearly the same with the other. On SmolLM2 (135 million parameters), which learns 16 tool calls in
# 20 steps, the losses on these rows differ by less than 0.5 % (one seed).

# %%
# Checks
assert len(ratios) == len(nudged) == 8, "eight seeds"
assert worse == OPEN and same == HOLDS, "not shown to be worse, and within 5 %"
assert ratios.min() < 0 < ratios.max() and abs(ratios).max() < 0.075, "single seeds: up to 7 %"
assert abs(nudged).max() < 1e-4, "another last bit must change the loss by less than 0.01 %"
assert abs(ratios).mean() < seeds / 5, "and other seeds by much more than bfloat16"
assert abs(served).max() < 0.01, "an adapter must compute the same with the other products, to 1 %"
assert abs(small / large - 1) < 0.005, "SmolLM2: the losses must agree to half a percent"

# %% [markdown]
# ## What was shown
#
# Rounding both operands to bfloat16 costs 0.24 % per product of random numbers, whatever the length
# of its sum: a fortieth of the error of NF4. The sum has to stay in float32: in bfloat16, a sum of
# ones stops at 256. On `micro`, a gradient is 3 % off, and the mean loss after 200 steps is the
# same, to 5 %.
#
# **What to try.**
#
# 1. `rng.standard_normal((rows, length))`: use `rng.random`. Why is the error of the product
#    smaller now, and that of a sum in bfloat16 larger?
# 2. `np.full((1000, 1), term, np.float32)`: use `np.full((40, 1), 25 * term, np.float32)`, sums of
#    25 terms each. How near to 1,000 is the sum of ones now?
# 3. `iters=20`: use 5 and 80. Does the distance of the adapters grow?
# 4. `with_compute_dtype(BASES["NF4"], "bfloat16")`: use the dense base, whose weights are then
#    rounded once. How far is the gradient from `gradient("dense", examples[:16])`?
#
# **Where to stop with a debugger.** `layers.matmul` (`operand`), `rounding.to_bfloat16`,
# `bfloat16.matmul` in `minilora/kernels/bfloat16.py`.
#
# **Further reading.** Dettmers et al. 2023, *QLoRA*, Sec. 3:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Kalamkar et al. 2019, *A Study of BFLOAT16
# for Deep Learning Training*: [arXiv:1905.12322](https://arxiv.org/abs/1905.12322).
