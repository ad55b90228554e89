# %% [markdown]
# # 3. Where to apply it
#
# **The question.** A layer of a Llama has seven matrices. Which of them deserve an adapter, and of
# what rank?
#
# ![One layer of a Llama: the attention sublayer above, the MLP below. A pair A, B can sit on each
# of the seven projections. Other methods train norms, prefixes, scalings or
# bottlenecks.](../figures/drawings/llama_block.svg)
#
# Four experiments of the LoRA paper's section 7 in miniature: its Table 5 (one budget, which
# matrices), Table 6 (which rank), Eq. 4 (do two runs find the same directions) and Table 7 (what
# an update has to do with the weight it is added to). GPT-3 has a width of 12,288 and `micro` one
# of 48: what depends on that will come out differently, and we shall see what.
#
# Time: about half a minute. You need: lesson 0, and what a singular vector is.

# %%
import sys

import numpy as np
from common import QUICK, SWEEPS, figure, finetune, read_sweep, short, table

import minilora
from minilora import LoraConfig, lora
from minilora.evaluation import plot
from minilora.tree import get

sys.path.insert(0, str(SWEEPS))
import targets  # the sweep's own configurations: no second copy of them here

config, base, _ = minilora.load("micro")
sweep = read_sweep("targets")


def losses(part, name, rate=None):
    """The held-out losses of a row of the sweep, one a seed."""
    some = [row for row in sweep if (row["part"], row["name"]) == (part, name)]
    return np.array([row["loss"] for row in some if rate in (None, row["rate"])])


# %% [markdown]
# ## One budget
#
# Each row spends 10,944 parameters, or within 2 % of that: on one matrix at r = 38, on two at
# r = 19, on all seven at r = 4. Three seeds each, at the best of three learning rates (seed 0 chose
# it; one rate for all would favour whom it suits). The paper's Table 5 for GPT-3 on WikiSQL:
# q 70.4, k 70.0, v 73.0, o 73.2, q and k 71.4, q and v 73.7, all four of attention 73.7 %.
#
# **Predict:** the task here is to repeat words of the prompt in another order. Will q or v be the
# better place for a single large adapter?

# %%
budget = {name: losses("budget", name, targets.BEST[name]) for name in targets.SPENT}
sizes = {row["name"]: int(row["trained"]) for row in sweep if row["part"] == "budget"}


def cells(loss):
    """The mean over the seeds, then each seed."""
    return f"{loss.mean():.3f}", " ".join(f"{x:.3f}" for x in loss)


table(
    ("spent on", "trained", "rate", "held-out loss", "of seeds"),
    [(name, sizes[name], f"{targets.BEST[name]:g}", *cells(loss)) for name, loss in budget.items()],
)
assert all(abs(n / targets.BUDGET - 1) < 0.02 for n in sizes.values())

one_each = np.concatenate([budget[name] for name in ("q", "k", "v", "o", "down")])
assert budget["q k v o"].max() < 0.75 * one_each.min()
assert budget["all"].max() < 0.6 * one_each.min()
assert budget["all"].mean() < 0.8 * budget["q k v o"].mean()
assert budget["q v"].max() > budget["q"].min()  # seeds overlap: no verdict on q v against q
assert budget["v"].min() > 1.5 * max(budget["q"].max(), budget["k"].max())  # not as for GPT-3

title = "One budget of 10,944 parameters, a dot a seed"
with figure("budget", "held-out loss (nats a target token)", "", title) as axes:
    for height, loss in enumerate(reversed(budget.values())):
        axes.plot(loss, [height] * len(loss), marker="o", linestyle="", color=plot.INK, alpha=0.6)
    labels = [f"{name}, r = {max(targets.SPENT[name].values())}" for name in reversed(budget)]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    axes.set_xticks(ticks, map(str, ticks))

# %% [markdown]
# ![Held-out loss of ten ways to spend one budget](../figures/budget.png)
#
# **What it shows.** The paper's conclusion holds; the order of its columns does not.
#
# - *Spread it.* Every seed of q, k, v, o beats every seed of any single matrix, and all seven at
#   r = 4 are better still. Rank 38 of a width of 48 is nearly the whole matrix: what is missing
#   there is not rank but a second place. (q and v against q alone: the seeds overlap.)
# - *v before q and k* is no law. v alone is the worst place here. One reading: the base knows how
#   to copy a word, its own language does it; the questions need it to look at other places, and
#   where a head looks is a matter of q and k.
#
# ## When a task underfits
#
# A usual ladder: begin with q and v, add o, then the MLP of some layers, then everything. The sign
# that it is time to climb is a training loss as high as the held-out one: nothing is being
# memorized, the adapter just cannot do the task. r = 8 on each rung, three seeds.
#
# **Predict:** which rung brings most? Does it matter which layer's MLP is added?

# %%
climb = {name: losses("climb", name) for name in targets.CLIMB}
rungs = [row for row in sweep if row["part"] == "climb"]
parameters = {row["name"]: int(row["trained"]) for row in rungs}
trains = {x: np.mean([row["train_loss"] for row in rungs if row["name"] == x]) for x in climb}
table(
    ("rung", "trained", "training loss", "held-out loss", "of seeds"),
    [(name, parameters[name], f"{trains[name]:.3f}", *cells(loss)) for name, loss in climb.items()],
)
bottom, with_o, top = (climb[name] for name in ("q v", "q v o", "all seven"))
assert 0.75 < bottom.mean() / trains["q v"] < 1.25  # it underfits
assert with_o.mean() < 0.6 * bottom.mean() and top.mean() < 0.5 * with_o.mean()
one_layer = [climb[f"q v o, MLP of layer {i}"] for i in range(3)]
assert max(loss.min() for loss in one_layer) < min(loss.max() for loss in one_layer)  # they overlap

# %% [markdown]
# **What it shows.** o more than halves the loss, all seven more than halve it again. Which layer's
# MLP is added first does not matter here: the three overlap seed by seed. The middle rungs save
# parameters and cost quality; with an adapter this small, begin with all seven (QLoRA, Dettmers et
# al. 2023, found the same on LLaMA: all linear layers are what matches full fine-tuning).
#
# ## Rank
#
# Table 6 of the paper: from r = 1 to 64 on q and v of GPT-3, WikiSQL moves between 73.3 and 73.8.
#
# **Predict:** is r = 1 enough here? And can r = 64 be worse than r = 32?

# %%
sweep_of_r = read_sweep("rank")
RANKS = (1, 2, 4, 8, 16, 32, 64)


def by_rank(where, rate):
    """{r: the held-out losses of its seeds}."""
    some = [row for row in sweep_of_r if (row["targets"], row["rate"]) == (where, rate)]
    return {r: np.array([row["loss"] for row in some if row["r"] == r]) for r in RANKS}


two, seven, slower = by_rank("q v", 1e-2), by_rank("all", 1e-2), by_rank("all", 4e-3)
table(
    ("r", "q v, rate 0.01", "all, rate 0.01", "all, rate 0.004"),
    [(str(r), *(f"{some[r].mean():.3f}" for some in (two, seven, slower))) for r in RANKS],
)
assert two[1].min() > 4 * two[16].max() and seven[1].min() > 4 * seven[4].max()  # r = 1: too little
flat = np.array([seven[r].mean() for r in (4, 8, 16, 32)])
assert flat.max() < 2.5 * flat.min()
assert seven[64].min() > 5 * seven[32].max()  # too much, at this rate
assert slower[64].max() < 0.1 * seven[64].min()  # the rate was it, not the rank

# %% [markdown]
# **What it shows.** "Rank hardly matters" has a beginning and an end. On all seven matrices it is
# true from r = 4 to 32. r = 1 is too little, and on q and v more rank helps up to 32: GPT-3 has 96
# layers of rank one, this base has three. And r = 64 fails at a rate that suits r = 32, while at
# 0.4 of that rate it is the best of its column: with alpha = 2r, more rank is also a longer step.
# Lesson 8 says why. (A product of rank 64 cannot have more than 48 here, the width.)

# %% [markdown]
# ## Do two runs find the same directions?
#
# Eq. 4 compares the subspaces that the first i singular vectors of one matrix and the first j of
# another span. It is 1 when one lies within the other, 0 when they are orthogonal:
#
#     φ(i, j) = ‖UᵢᵀUⱼ‖²_F / min(i, j)
#
# ![Two runs find two subspaces of the same space. The angle between their directions says how much
# they agree: φ is one for the same directions, r over n for random
# ones.](../figures/drawings/subspaces.svg)
#
# What would chance give? For a random i-dimensional subspace of d dimensions the projection Pᵢ has
# the expectation (i/d)·1, so E‖UᵢᵀUⱼ‖² = tr(E[Pᵢ]·Pⱼ) = i·j/d, and E φ = max(i, j)/d.
#
# **Predict:** the paper finds more than 0.5 for the leading direction of A, between r = 8 and
# r = 64. At a width of 48, how far is that from chance?


# %%
def phi(u, v, i, j):
    """φ between the first i rows of u and the first j of v, each orthonormal (LoRA, Eq. 4)."""
    return float(np.sum((u[:i] @ v[:j].T) ** 2)) / min(i, j)


def directions(matrix):
    """Right singular vectors as rows, the largest singular value first."""
    return np.linalg.svd(matrix, full_matrices=False)[2]


rng = np.random.default_rng(0)
for d, i, j in ((48, 1, 1), (48, 4, 8), (128, 8, 8)):
    draws = [directions(rng.standard_normal((8, d))) for _ in range(400)]
    chance = np.mean([phi(u, v, i, j) for u, v in zip(draws[::2], draws[1::2])])
    print(f"random subspaces, d = {d}, i = {i}, j = {j}: φ = {chance:.3f}, {max(i, j) / d:.3f}")
    assert abs(chance / (max(i, j) / d) - 1) < 0.35  # 200 draws: i = j = 1 scatters by √(2/200)
print(f"GPT-3, d = 12,288, i = j = 1: {1 / 12288:.1e}")

# %% [markdown]
# Runs of all seven matrices, each from a start of its own: r = 8 twice, r = 32, and r = 4 for
# later: a slice of the sweep above. ΔW = s·BA has two sides. Its right singular vectors are
# directions of the *input* (rows of A span them), its left ones of the *output* (columns of B). The
# paper looks at A.
#
# **Predict:** which side will two runs share more, the input's or the output's?

# %%
steps = short(200, 40)
RUNS = ((4, 0), (8, 0), (8, 1), (32, 2))  # r and seed


def train(r, seed):
    """An adapter as the sweep of r trains it, at rate 0.004; fewer steps in a quick run."""
    lora_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=("all-linear",))
    return finetune(lora_config, seed=seed, learning_rate=4e-3, batch_size=8, iters=steps)


trained = {pair: train(*pair) for pair in RUNS}
for (r, seed), run in trained.items():
    before = slower[r][seed]
    print(f"r = {r}, seed {seed}: loss {run.scores['loss']:.4f}, in the sweep {before:.4f}")
    # Equal where the sweep was made. Another BLAS rounds differently, which training magnifies:
    # half or double is the same run, and r = 1 or 2 would not pass for it.
    assert QUICK or 0.5 < run.scores["loss"] / before < 2
paths = lora.adapted_paths(trained[8, 0].adapters)


def sides(run):
    """{side: {path: its directions}}: of ΔW's input, of its output, of an A that never trained."""
    updates = {p: lora.delta(get(run.adapters, p), get(run.frozen, p)) for p in paths}
    fresh = {p: rng.uniform(-1, 1, get(run.adapters, p)["lora_A"].shape) for p in paths}
    return {
        "output": {p: directions(w.T) for p, w in updates.items()},
        "input": {p: directions(w) for p, w in updates.items()},
        "untrained A": {p: directions(a) for p, a in fresh.items()},
    }


found = {pair: sides(run) for pair, run in trained.items()}


def shared(one, other, side, i, j):
    """φ between two runs, the mean over the 21 matrices."""
    return np.mean([phi(found[one][side][p], found[other][side][p], i, j) for p in paths])


PAIRS = {"r = 8, two seeds": ((8, 0), (8, 1)), "r = 8 and r = 32": ((8, 0), (32, 2))}
AT = ((1, 1), (1, 8), (4, 4), (8, 8))
table(
    ("mean of 21 matrices", "side", *(f"φ{pair}" for pair in AT)),
    [(name, side, *(f"{shared(*pair, side, i, j):.3f}" for i, j in AT))
     for name, pair in PAIRS.items() for side in ("output", "input", "untrained A")],
)  # fmt: skip
# of the input; the output's is lower, for two of the seven matrices have 128 outputs
one_over_d = np.mean([1 / get(base, p)["weight"].shape[1] for p in paths])
chance = {(i, j): max(i, j) * one_over_d for i, j in AT}
print("chance:", ", ".join(f"{value:.3f}" for value in chance.values()))
for pair in PAIRS.values():
    assert abs(shared(*pair, "untrained A", 8, 8) / chance[8, 8] - 1) < 0.15
    if not QUICK:
        assert shared(*pair, "output", 1, 1) > 4 * chance[1, 1]
        assert shared(*pair, "output", 8, 8) > 1.5 * chance[8, 8]
        assert shared(*pair, "output", 8, 8) > 1.25 * shared(*pair, "input", 8, 8)
        assert 2 * chance[1, 1] < shared(*pair, "input", 1, 1) < 0.5

title = "Directions that r = 8 and r = 32 share, mean of 21 matrices"
at = range(1, 9)
with figure("subspaces", "leading directions compared, i = j", "φ(i, j)", title) as axes:
    for side, marker, style in zip(("output", "input", "untrained A"), "os^", plot.LINES):
        values = [shared((8, 0), (32, 2), side, i, i) for i in at]
        axes.plot(at, values, marker=marker, markersize=4, label=side, **style)
    axes.plot(at, [i * one_over_d for i in at], label="chance (input), i/d", **plot.LINES[3])
    axes.set_ylim(0, 0.4)
    axes.legend(frameon=False, loc="upper left", ncols=2)

# %% [markdown]
# ![The output side is shared well above chance, the input side hardly](../figures/subspaces.png)
#
# **What it shows.** Two runs do find the same directions, far above chance, but mostly on the
# output's side, and never the more than 0.5 of the paper's A. The start explains the sides. B = 0,
# so the first gradients are ∂L/∂B = s·G·Aᵀ, with G = ∂L/∂W, and ∂L/∂A = s·Bᵀ·G = 0: the columns of
# B come from G, which every run shares. The rows of A begin at random, and a run turns them by
# about half of their length: at r = 8 they start from 8 of 48 directions of the input, whichever.
# Chance is no detail either: with d = 48, φ(8, 8) of 0.19 is next to nothing; with GPT-3's 12,288
# it would be a discovery.

# %%
for r, seed in RUNS:
    seven_of_r = LoraConfig(r=r, target_modules=("all-linear",))
    fresh, _ = lora.init(base, seven_of_r, np.random.default_rng(seed))
    starts = [get(fresh, p)["lora_A"] for p in paths]
    ends = [get(trained[r, seed].adapters, p)["lora_A"] for p in paths]
    moved = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(starts, ends)]
    print(f"r = {r}, seed {seed}: A has moved by {np.mean(moved):.2f} of its length")
    assert np.mean(moved) < 0.8

# %% [markdown]
# ## Amplification
#
# What has ΔW to do with W? Table 7 takes U and V from the singular vectors of ΔW and measures how
# much of W lies there, ‖UᵀWV‖. Against it stand W's own leading directions, and random ones. For
# random U and V with r columns, E‖UᵀWV‖² = ‖W‖²·r²/(m·n), so about ‖W‖·r/√(mn).
#
# **Predict:** the amplification ‖ΔW‖/‖UᵀWV‖ is 21.5 in the paper, for r = 4. Here?


# %%
def portion(w, delta, r):
    """(‖ΔW‖, then ‖UᵀWV‖ with r directions of ΔW, of W, and of chance)."""

    def inside(matrix):
        u, _, vt = np.linalg.svd(matrix, full_matrices=False)
        return np.linalg.norm(u[:, :r].T @ w @ vt[:r].T)

    chance = np.mean([inside(rng.standard_normal(w.shape)) for _ in range(5)])
    return np.linalg.norm(delta), inside(delta), inside(w), chance


# the paper's own column of random directions: ‖W_q‖ = 61.95, and 0.02 and 0.33 at r = 4 and 64
assert round(61.95 * 4 / 12288, 2) == 0.02 and abs(61.95 * 64 / 12288 - 0.33) < 0.01

rows, ratios = [], {}
for r, seed in ((4, 0), (8, 0), (32, 2)):
    run = trained[r, seed]
    nodes = [(get(base, p)["weight"], get(run.adapters, p), get(run.frozen, p)) for p in paths]
    each = np.array([portion(w, lora.delta(a, f), r) for w, a, f in nodes])
    expected = np.mean([np.linalg.norm(w) * r / np.sqrt(w.size) for w, *_ in nodes])
    size, mine, own, random = each.mean(axis=0)
    ratios[r] = np.median(each[:, 0] / each[:, 1])
    rows.append((f"here, r = {r}", *(f"{x:.2f}" for x in (size, mine, own, random, ratios[r]))))
    assert abs(random / expected - 1) < 0.1
    assert mine < 0.7 * own  # ΔW does not repeat what is large in W
    assert 0.9 < mine / random < 2  # it lies where any direction might, or little more
rows.append(("GPT-3, r = 4", "6.91", "0.32", "21.67", "0.02", f"{6.91 / 0.32:.1f}"))
rows.append(("GPT-3, r = 64", "3.57", "1.90", "37.71", "0.33", f"{3.57 / 1.9:.1f}"))
table(("mean of 21 matrices", "‖ΔW‖", "of ΔW", "of W", "random", "amplification (median)"), rows)
if not QUICK:
    assert ratios[4] > 1.4 * ratios[8] and ratios[8] > 1.7 * ratios[32]
    assert ratios[4] < 21.5 / 3

# %% [markdown]
# **What it shows.** Two claims of the paper hold. ΔW does not repeat W's leading directions: it
# takes up a small part of them. And the factor falls as r grows, here from r = 4 to 32, there from
# 21.5 to 1.9. The third, that ΔW picks directions which W has *more* than chance, is hardly to be
# seen: a little above chance here, 16 times chance in GPT-3. Nor is 21.5 a number to look for in
# another model: for directions without any relation to W it is ‖ΔW‖/‖W‖·√(mn)/r, which grows with
# the width by itself.
#
# **Where to stop with a debugger.** `lora.target_paths` (how a name, or a layer's name, picks
# matrices), `LoraConfig.rank_and_scaling` in `config.py` (of one path, exceptions included),
# `layers.linear` under `MINILORA_PLAIN=1` (which of the seven has a `lora_A`).
#
# **Exercises.** lora-count, lora-init, lowrank-product, lowrank-gradient.
