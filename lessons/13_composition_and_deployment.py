# %% [markdown]
# # 13. Composition and deployment
#
# **The question.** The adapter is trained. How does it go into use: apart, swapped, merged, merged
# into four bits, averaged with another, or stacked upon one? What does each way change, and by how
# much?
#
# Time: about a minute. You need: lesson 0, and what quantizing to NF4 does (lessons 5 and 6).

# %%
import time

import numpy as np
from common import QUICK, figure, finetune, interference, of, read_sweep, short, table
from sweeps import combining, merging
from sweeps.combining import backwards, fit, forwards, held_out
from sweeps.pretraining import random_params

import minilora
from minilora import LoraConfig, lora, nf4
from minilora.config import ModelConfig
from minilora.evaluation import plot
from minilora.evaluation.memory import nbytes
from minilora.kernels.nf4 import matvec
from minilora.methods import compose
from minilora.optim import round_to
from minilora.tree import flatten, named_leaves, tree_map

ITERS = short(100, 10)
rng = np.random.default_rng(0)
config, base, words = minilora.load("micro")


def loss(pair, examples):
    return minilora.evaluate(*pair, examples, config)["loss"]


# %% [markdown]
# ## Several adapters, one base
#
# Two adapters: one answers "Who, what, where?", the other "Where, what, who?". An adapter is a pair
# of trees, and both frozen trees hold the *same* arrays of the base.
#
# **Predict:** how many bytes does the second adapter add, and what does it take to switch?

# %%
one, turned = fit(base, forwards, 0, iters=ITERS), fit(base, backwards, 100, iters=ITERS)
tasks = {"there": held_out(forwards), "back": held_out(backwards)}
before = {path: w.tobytes() for path, w in named_leaves(base)}
began = time.perf_counter()
scores = {name: loss(pair, tasks[name]) for name, pair in (("there", one), ("back", turned))}
took = time.perf_counter() - began
print(
    f"two tasks scored in turn in {took:.1f} s; losses {scores['there']:.3f}, {scores['back']:.3f}"
)
print(f"base {nbytes(base):,} bytes, each adapter {nbytes(one[0]):,}")
shared = flatten(turned[1])
assert all(shared[path] is w for path, w in named_leaves(base))  # the same objects, no copies
assert all(before[path] == w.tobytes() for path, w in named_leaves(base))  # and unchanged
if not QUICK:
    assert all(scores[name] < loss(({}, base), tasks[name]) / 4 for name in tasks)

# %% [markdown]
# To switch is to pass another pair: no byte moves. It goes further: each *row* of a batch may have
# its own adapter, or none. The factors are gathered per row, A (B, r, in), and one product with the
# base serves all rows.

# %%
pairs = [one, turned, ({}, base)]
batch = np.array([example.tokens[:40] for example in tasks["there"][:6]])
rows = [0, 1, 2, 1, 0, 2]
mixed = minilora.forward(*compose.per_row(pairs, rows), batch, config)
alone = [minilora.forward(*pairs[i], batch[b : b + 1], config)[0] for b, i in enumerate(rows)]
difference = np.abs(mixed - alone).max() / np.abs(mixed).max()
print(f"six rows, three adapters, one call: off by {difference:.1e} of the largest logit")
assert difference < 21 * 128 * 2**-24  # 21 projections of at most 128 terms, each rounded once
wrong = minilora.forward(*compose.per_row(pairs, rows[::-1]), batch, config)
assert np.abs(wrong - alone).max() / np.abs(mixed).max() > 0.01  # the rows do differ

# %% [markdown]
# ## Merging, undoing it, and the type of the weights
#
# W' = W + ΔW and W = W' − ΔW are exact on paper (LoRA, Sec. 4). A weight in b bits of significand
# rounds: what is added below half its last place is lost. A server that swaps by merging and
# unmerging rounds twice a swap.
#
# ![Number lines of what can be stored near a weight. A small update moves the weight in float32
# and in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays the
# same.](../figures/drawings/merging_precision.svg)
#
# **Predict:** an update of 1 % of the weight. What share of it does a bfloat16 weight lose? After
# ten swaps, is the drift ten times that of one?

# %%
n = short(512, 256)
W = 0.02 * rng.standard_normal((n, n), np.float32)


def update_of(size):
    """A ΔW of rank 8 with ‖ΔW‖ = size·‖W‖."""
    d = rng.standard_normal((n, 8), np.float32) @ rng.standard_normal((8, n), np.float32)
    return d * np.float32(size * np.linalg.norm(W) / np.linalg.norm(d))


def kept_in(kind):
    """The function that stores a weight as `kind` and reads it back."""
    if kind.startswith("nf4"):
        return lambda w: nf4.quantize(w, double_quant=kind == "nf4-dq").dequantize()
    return lambda w: round_to({"w": w}, kind)["w"]


d, drift = update_of(0.01), {}
size_of = np.linalg.norm
for kind in ("float32", "float16", "bfloat16", "nf4", "nf4-dq"):
    store = kept_in(kind)
    start = w = store(W)
    lost = size_of(store(start + d) - (np.float64(start) + d)) / size_of(d)
    swaps = []
    for _ in range(10):
        w = store(store(w + d) - d)
        swaps.append(size_of(w - start) / size_of(d))
    drift[kind] = lost, swaps[0], swaps[9]
table(
    ("weight as", "merged: off by, of ‖ΔW‖", "after a swap", "after ten"),
    [(kind, *(f"{x:.1e}" for x in row)) for kind, row in drift.items()],
)
assert drift["float32"][0] < 1e-4 and 0.01 < drift["float16"][0] < 0.04
assert 0.1 < drift["bfloat16"][0] < 0.25 and drift["nf4-dq"][0] > 0.9
for kind in ("float32", "float16", "bfloat16"):
    assert drift[kind][2] < 1.5 * drift[kind][1]  # no growth
assert all(drift[kind][2] > 3 * drift[kind][1] for kind in ("nf4", "nf4-dq"))  # growth

# %% [markdown]
# A bfloat16 weight loses a sixth of such an update at the merge. Yet **the drift of floats does not
# grow**: the first swap rounds, and the next one finds its own rounded numbers and gives them back.
# In four bits it grows with every swap, though no code ever moves. Why? A block's largest element
# is stored exactly, as a code of ±1. Where a second element is near enough to have that code, too,
# one or the other is made larger by +ΔW, and one or the other by −ΔW, and the new absmax is the
# larger of them, both times. It is a ratchet.

# %%
first = nf4.quantize(W)
ends = np.isin(nf4.unpack(first.codes), (0, 15)).reshape(-1, 64).sum(axis=1)  # codes of −1 and 1
d, w = update_of(0.01), first.dequantize()
for _ in range(10):
    last = nf4.quantize(nf4.quantize(w + d).dequantize() - d)
    w = last.dequantize()
growth = last.absmax / first.absmax - 1
print(f"{(ends > 1).mean():.0%} of the blocks have two such elements")
print(f"growth: {growth[ends > 1].mean():.1%} with two, {growth[ends == 1].mean():.1%} with one")
assert (nf4.unpack(last.codes) == nf4.unpack(first.codes)).mean() > 0.999
assert growth[ends > 1].mean() > 0.03 and np.abs(growth[ends == 1]).max() < 1e-5

# %% [markdown]
# So keep the base and the adapter, and make merged weights anew each time: it costs one addition.
#
# ## Merging into four bits: the dead zone
#
# A QLoRA adapter was trained beside dequantized weights Ŵ. Three things are done with it:
#
# 1. Ŵ + ΔW, dense: what was trained. Exact.
# 2. quantize(Ŵ + ΔW): four bits again. An element moves to another code only if ΔW carries it over
#    half the gap between two codes; what is smaller is rounded away.
# 3. W + ΔW with the original 16-bit W: it adds back W − Ŵ, the quantization error of the base, some
#    9 % of ‖W‖ in NF4, which the adapter was trained *against*.
#
# **Predict:** at which ‖ΔW‖/‖W‖ does the second way keep half of the update?

# %%
frozen_w = nf4.quantize(W, double_quant=True)
W_hat = frozen_w.dequantize()
assert abs(size_of(W - W_hat) / size_of(W) - 0.092) < 0.005
sizes = (0.003, 0.01, 0.03, 0.1, 0.3)
cells, kept, off = [], {}, {"again": [], "original": [], "bfloat16": []}
for size in sizes:
    d = update_of(size)
    again = nf4.quantize(W_hat + d, double_quant=True)
    results = {"again": again.dequantize(), "original": W + d,
               "bfloat16": kept_in("bfloat16")(W_hat + d)}  # fmt: skip
    for way, w in results.items():
        off[way].append(size_of(w - (W_hat + d)) / size_of(d))
    moved = (nf4.unpack(again.codes) != nf4.unpack(frozen_w.codes)).mean()
    kept[size] = np.vdot(results["again"] - W_hat, d) / np.vdot(d, d)  # along ΔW itself
    cells.append((f"{size}", *(f"{off[way][-1]:.2f}" for way in off), "0.00", f"{moved:.2%}",
                  f"{kept[size]:.0%}"))  # fmt: skip
table(("‖ΔW‖/‖W‖", "4 bits again", "original W", "Ŵ + ΔW in bf16", "Ŵ + ΔW in f32",
       "codes moved", "of ΔW kept"), cells)  # fmt: skip
again, original = (dict(zip(sizes, off[way])) for way in ("again", "original"))
# the field's table (512 × 512, NF4 with double quantization): 1.09, 1.08, 0.79, 0.32 and
# 9.3, 3.2, 0.95, 0.31
for size, a, o in ((0.01, 1.09, 9.3), (0.03, 1.08, 3.2), (0.1, 0.79, 0.95), (0.3, 0.32, 0.31)):
    assert abs(again[size] / a - 1) < 0.1 and abs(original[size] / o - 1) < 0.1
assert min(again[0.01], again[0.03]) > 1.02 and kept[0.03] < 0.2 < 0.6 < kept[0.1]

with figure("dead_zone", "‖ΔW‖/‖W‖", "error / ‖ΔW‖",
            "below 3 % of the weight, four bits lose the update") as axes:  # fmt: skip
    labels = {"again": "4 bits again", "original": "on the original W", "bfloat16": "in bfloat16"}
    for style, marker, (way, values) in zip(plot.LINES, "os^", off.items()):
        axes.plot(sizes, values, label=labels[way], marker=marker, **style)
    axes.axhline(1, color=plot.GREY, linewidth=0.8)
    axes.text(0.3, 1.15, "nothing left of ΔW", fontsize=8, ha="right")
    axes.set(xscale="log", yscale="log", xlim=(0.0027, 0.33))
    axes.legend(frameon=False, loc="upper right")

# %% [markdown]
# ![Error of three ways to merge over the size of the update](../figures/dead_zone.png)
#
# An error of 1 is what throwing the adapter away would give; at 1 % and 3 %, going back into four
# bits is *worse* than throwing it away, because the scales move as well. The original W is worse
# still, measured against the model that was trained. But does the task care?
#
# **Predict:** four merged models of one QLoRA run, from best to worst.

# %%
sweep = read_sweep("merging")


def column(name, **where):
    return np.array(of(sweep, name, **where))


WAYS = {"apart": "adapter apart", "dequantized": "Ŵ + ΔW", "dequantized_4bit": "… in 4 bits again",
        "original": "W + ΔW", "original_4bit": "… in 4 bits"}  # fmt: skip
for rate in merging.RATES:
    print(f"rate {rate}, median ‖ΔW‖/‖W‖ {column('size', rate=rate).mean():.2f}, five seeds")
    table(
        ("", "held-out loss", "exact match"),
        [
            (text, f"{x.mean():.4f} ± {x.std(ddof=1):.4f}", f"{exact.mean():.0%}")
            for way, text in WAYS.items()
            for x, exact in [(column(way, rate=rate), column(f"exact_{way}", rate=rate))]
        ],
    )
    apart = column("apart", rate=rate)
    assert np.abs(column("dequantized", rate=rate) / apart - 1).max() < 1e-3
    for way in ("dequantized_4bit", "original", "original_4bit"):
        assert (column(way, rate=rate) > 1.05 * apart).all()

gentle, fast = ({way: column(way, rate=rate) for way in WAYS} for rate in merging.RATES)
assert (gentle["original"] < gentle["dequantized_4bit"]).all()
lost = [some["dequantized_4bit"] - some["apart"] for some in (gentle, fast)]
assert lost[0].min() > 3 * lost[1].max()
assert 1.6 < column("size", rate=4e-3).mean() / column("size", rate=1e-3).mean() < 2.5

run = finetune(scheme="nf4-dq", iters=short(200, 20))
live = merging.scored(run, 4e-3, 0)
print({way: round(live[way], 4) for way in WAYS})
if not QUICK:
    for way in WAYS:
        assert abs(live[way] / column(way, rate=4e-3, seed=0.0)[0] - 1) < 0.3

# %% [markdown]
# Ŵ + ΔW is the model that was trained, to rounding; the others are worse in every seed. "Which base
# do I merge into?" has one exact answer: **the one it was trained beside, dequantized**. Whoever
# needs four bits again should evaluate *after* that step.
#
# **The error in the weights does not rank the rest.** After the gentle run, by the table above, the
# original W should be worse than four bits again (0.92 of ‖ΔW‖ against 0.77 at a size of 0.1); the
# task says the opposite in every seed, probably because rounding is noise, while W − Ŵ leads back
# to weights that were once trained. And the dead zone is about size: the gentle run, whose updates
# are half as large, loses several times as many nats to four bits as the fast one.
#
# ## Averaging two adapters
#
# ΔW₁ + ΔW₂ = [B₁ B₂]·[A₁; A₂] exactly: concatenate, and the ranks add up. Averaging the factors is
# something else:
#
#     ½(B₁ + B₂)·½(A₁ + A₂) = ¼(B₁A₁ + B₂A₂ + B₁A₂ + B₂A₁)
#
# ![Two adapters are added exactly by placing B1 and B2 side by side and A1 above A2: the rank
# doubles. Averaging the factors also multiplies B1 by A2, and is not the
# same.](../figures/drawings/adapters_combined.svg)
#
# **Predict:** two adapters of one task, trained from different starts of A, or from the same start
# with the rows in another order. For which of the two is the average of the factors near? And what
# does `linear` with weights ½, ½, which is (Σ √½·Bᵢ)(Σ √½·Aᵢ), make of two *equal* adapters?

# %%
twice = compose.combine([one, one], [0.5, 0.5], "linear")[2]
halves = combining.mean_of_factors(one, one)
print(f"linear of an adapter with itself: off by {np.mean(list(twice.values())):.2f}; "
      f"mean of factors: {combining.off(halves, one, one):.2f}")  # fmt: skip
assert all(abs(error - 1) < 1e-4 for error in twice.values())  # twice the adapter
assert combining.off(halves, one, one) < 1e-5

sweep = read_sweep("combining")
HOW = {
    "cat": "cat (exact)",
    "svd": "svd, rank 4",
    "factors": "mean of factors",
    "linear": "linear",
}
header = ("five seeds, weights ½", "ΔW off by", "held-out loss")
for kind, text in (("other", "different starts"), ("sibling", "the same start")):
    cells = [
        (how, f"{column(f'off_{kind}_{key}').mean():.2f}",
         f"{column(f'{kind}_{key}').mean():.2f} ± {column(f'{kind}_{key}').std(ddof=1):.2f}")
        for key, how in HOW.items()
    ]  # fmt: skip
    alone = f"{column('one').mean():.2f}, {column(kind).mean():.2f}"
    print(f"{text}, cosine of the updates {column(f'cosine_{kind}').mean():.2f}, alone {alone}")
    table(header, cells)
assert column("off_other_factors").min() > 0.4 and column("off_sibling_factors").max() < 0.2
assert (column("other_factors") > 2 * column("other_cat")).all()
assert (column("sibling_factors") < 1.5 * column("sibling_cat")).all()
assert column("off_sibling_linear").min() > 0.9 and column("off_other_linear").min() > 0.8
assert (column("sibling_linear") > 4 * column("sibling_cat")).all()
for kind in ("other", "sibling"):  # an exact average is no better than the better of the two
    best = np.minimum(column("one"), column(kind))
    assert column(f"{kind}_cat").mean() > best.mean()

# %% [markdown]
# "Never average A and B" is too short. From one start they stay alike, and the average is off by
# less than a tenth; from different starts it is off by two thirds and useless. `linear` is the
# other way round: the more alike the adapters, the nearer it comes to *twice* the update, since its
# weights enter as roots and the cross terms then count in full. `cat` needs no luck. Nor does an
# exact average have to help: here it is no better than the better of the two alone.
#
# ## Adding two tasks, stacking two adapters
#
# **Predict:** the two tasks' updates have a cosine of about 0.05: almost orthogonal. Added, does
# each adapter still do its task? And when the second is trained *upon* the first, frozen?

# %%
both, summed, errors = compose.combine([one, turned], [1.0, 1.0])
print(f"added: off by {max(errors.values()):.0e}, cosine {combining.cosine(one, turned):.2f}")
for name, score in zip(tasks, interference([one, turned], tasks.values(), config)):
    print(name, {way: round(scores["loss"], 2) for way, scores in score.items()})
upon = fit(compose.stack(*one), backwards, 100, iters=ITERS)
print(
    f"upon the first: {loss(upon, tasks['there']):.2f} there, {loss(upon, tasks['back']):.2f} back"
)
merged = minilora.merge(*upon)  # a stack of two merges like one
assert abs(loss(({}, merged), tasks["back"]) - loss(upon, tasks["back"])) < 1e-3

WAYS = (
    ("alone", "one", "turned"), ("½ and ½", "there_0.5", "back_0.5"),
    ("added", "there_1.0", "back_1.0"), ("second upon first", "stack_there", "stack_back"),
)  # fmt: skip
table(
    ("held-out loss, five seeds", "who, what, where?", "where, what, who?"),
    [(text, *(f"{column(n).mean():.2f} ± {column(n).std(ddof=1):.2f}" for n in names))
     for text, *names in WAYS],
)  # fmt: skip
assert max(errors.values()) < 1e-5  # the sum itself is exact
assert np.abs(column("cosine_turned")).max() < 0.15
for there, back in (("there_1.0", "back_1.0"), ("there_0.5", "back_0.5")):
    assert (column(there) > 2.5 * column("one")).all() and (
        column(back) > 2 * column("turned")
    ).all()
assert (column("stack_back") < 1.5 * column("turned")).all()
assert (column("stack_there") > 3 * column("one")).all()
if not QUICK:
    for name, value in (("one", scores["there"]), ("turned", scores["back"])):
        assert abs(value - column(name, seed=0.0)[0]) < 0.5 * value

# %% [markdown]
# **Nearly orthogonal updates are not independent tasks.** A cosine over all weights says nothing of
# the few inputs that both adapters act on: what one adds there, the other has never seen. A stack
# mends it for the upper one, which was trained beside the lower, and for it alone. Measure with
# `common.interference`, do not infer from angles; where a batch needs both, take one a row.
#
# ## What serving costs
#
# A model of 12.7 million random parameters, in five ways, one token after the other. Token by
# token, a 4-bit weight is multiplied straight from its codes (`kernels.nf4.matvec`). For
# a prompt of several tokens, each weight is dequantized first.
#
# **Predict:** the 4-bit model has a seventh of the bytes to read. Is it faster? What does an
# adapter cost in operations, and what in time?

# %%
shape = ModelConfig(
    vocab_size=256, hidden_size=512, intermediate_size=1536, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=4, head_dim=64,
)  # fmt: skip
large = random_params(shape, rng)
codes = minilora.quantize(large, "nf4-dq")
every = LoraConfig(r=8, target_modules=("all-linear",))
adapters, apart = lora.init(large, every, rng)
adapters = tree_map(lambda w: 0.01 * rng.standard_normal(w.shape, np.float32), adapters)
_, codes_apart = lora.init(codes, every, rng)
served = {"dense": ({}, large), "dense, adapter apart": (adapters, apart),
          "merged": ({}, lora.merge(adapters, apart)), "nf4": ({}, codes),
          "nf4, adapter apart": (adapters, codes_apart)}  # fmt: skip


def speed(pair, tokens):
    """(ms to the first of `tokens` tokens after a prompt of 32, tokens/s from there on)."""
    times, prompt = [time.perf_counter()], list(range(32))
    for _ in minilora.generate(*pair, prompt, shape, max_tokens=tokens):
        times.append(time.perf_counter())
    return 1e3 * (times[1] - times[0]), (len(times) - 2) / (times[-1] - times[1])


cells = []
for name, pair in served.items():
    runs = [speed(pair, short(48, 8)) for _ in range(3)]
    first, rate = min(r[0] for r in runs), max(r[1] for r in runs)
    cells.append((name, sum(map(nbytes, pair)), f"{first:.0f}", f"{rate:.0f}"))
table(("", "bytes", "first token, ms", "tokens/s"), cells)
assert nbytes(large) > 6 * nbytes(codes)
x = rng.standard_normal(512, np.float32)
q = codes["model"]["layers"]["0"]["mlp"]["gate_proj"]["weight"]
terms = np.abs(q.dequantize()) @ np.abs(x)
assert (np.abs(matvec(q, x) - q.dequantize() @ x) <= 512 * 2**-24 * terms).all()
per_token = sum(w.size for path, w in named_leaves(large) if "proj" in path)
assert sum(w.size for _, w in named_leaves(adapters)) < 0.04 * per_token

# %% [markdown]
# The rates are those of your machine, and on a busy machine they vary by a third. **A seventh of
# the bytes is not a seventh of the time:** each code has to be decoded. How fast that is depends on
# the processor. With AVX-512, one instruction decodes sixteen codes, and the 4-bit model can be
# several times as fast as the dense one; without, it can be slower. The adapter needs less than 4 %
# of the multiplications, but its two small products per projection have a fixed cost. A merged
# adapter costs nothing (LoRA, Sec. 4).
#
# **What this showed.** Apart is exact, swaps for nothing, and costs a little time. Merged dense,
# onto what it was trained beside, is exact too. Everything else changes the model: say which it
# was, and evaluate what you ship.
#
# **Where to stop with a debugger.** `compose.per_row` (shapes of the gathered factors),
# `compose.linear` (the roots), `lora.merge`, and `kernels.weights.frozen_matmul` (one row is
# multiplied straight from the codes, for many the weight is dequantized).
#
# **Exercises.** lora-merge, test-merge, combine-exact, linear-4bit, nearest-code.
