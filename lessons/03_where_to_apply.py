# %% [markdown]
# # 3. Where to apply it
#
# **The question.** A layer of a Llama has seven matrices. Which of them deserve an adapter, and of
# what rank?
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
from minilora import LoraConfig, lora, plot
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
table(
    ("spent on", "trained", "rate", "held-out loss", "of seeds"),
    [(name, sizes[name], f"{targets.BEST[name]:g}", f"{loss.mean():.3f}",
      " ".join(f"{x:.3f}" for x in loss)) for name, loss in budget.items()],
)  # fmt: skip
assert all(abs(n / targets.BUDGET - 1) < 0.02 for n in sizes.values())

one_each = [budget[name].mean() for name in ("q", "k", "v", "o")]
assert budget["q v"].mean() < 0.8 * min(budget["q"].mean(), budget["v"].mean())
assert budget["q k v o"].mean() < 0.6 * min(one_each)
assert budget["all"].mean() < 0.3 * min(one_each)
assert budget["v"].min() > 1.5 * max(budget["q"].max(), budget["k"].max())  # not as for GPT-3

with figure(
    "budget", "held-out loss (nats a target token)", "", "One budget of 10,944 parameters, a dot a seed"
) as axes:  # fmt: skip
    for height, (_, loss) in enumerate(reversed(budget.items())):
        axes.plot(loss, [height] * len(loss), marker="o", linestyle="", color=plot.INK, alpha=0.6)
    labels = [f"{name}, r = {'/'.join(map(str, dict.fromkeys(ranks.values())))}"
              for name, ranks in reversed(targets.SPENT.items())]  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xscale("log")

# %% [markdown]
# ![Held-out loss of ten ways to spend one budget](../figures/budget.png)
#
# **What it shows.** The paper's conclusion holds, and one of its numbers does not.
#
# - *Spread it.* Half the rank on two matrices beats all of it on either, four are better again,
#   and the best is r = 4 everywhere. A rank of 38 on one matrix of width 48 is nearly the whole
#   matrix: what is missing there is not rank but another place.
# - *v before q* is not a law. v alone is the worst place here; q or k alone are the best single
#   ones. The base can copy already (its own language echoes facts), and what the question asks for
#   is to look elsewhere. Where a head looks is a matter of q and k.

# %% [markdown]
# ## When a task underfits
#
# A usual ladder: begin with q and v, add o, then the MLP of some layers, then everything. The sign
# that it is time to climb is a training loss that is as high as the held-out one: the adapter does
# not memorize, it cannot do the task. r = 8 on each rung, three seeds.
#
# **Predict:** which rung brings most? Does it matter which layer's MLP is added?

# %%
climb = {name: losses("climb", name) for name in targets.CLIMB}
train_loss = {row["name"]: row["train_loss"] for row in sweep if row["part"] == "climb"}
parameters = {row["name"]: int(row["trained"]) for row in sweep if row["part"] == "climb"}
table(
    ("rung", "trained", "training loss, a seed", "held-out loss", "of seeds"),
    [(name, parameters[name], f"{train_loss[name]:.3f}", f"{loss.mean():.3f}",
      " ".join(f"{x:.3f}" for x in loss)) for name, loss in climb.items()],
)  # fmt: skip

# %% [markdown]
# ## Do two runs find the same directions?
#
# Eq. 4 compares the subspaces that the first i singular vectors of one matrix and the first j of
# another span. It is 1 when one lies within the other, 0 when they are orthogonal:
#
#     φ(i, j) = ‖UᵢᵀUⱼ‖²_F / min(i, j)
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
# Three runs of all seven matrices, each from a start of its own: r = 8 twice, and r = 32. ΔW = BA
# has two sides. Its right singular vectors are directions of the *input* (rows of A span them), its
# left ones of the *output* (columns of B). The paper looks at A.
#
# **Predict:** which side will two runs share more, the input's or the output's?

# %%
steps = short(200, 40)
RUNS = ((8, 0), (8, 1), (32, 2))  # r and seed


def train(r, seed, rate=4e-3, names=("all-linear",)):
    """An adapter as the sweeps train it; fewer steps in a quick run."""
    lora_config = LoraConfig(r=r, lora_alpha=2 * r, target_modules=names)
    return finetune(lora_config, seed=seed, learning_rate=rate, batch_size=8, iters=steps)


trained = {pair: train(*pair) for pair in RUNS}
paths = lora.adapted(trained[8, 0].adapters)


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
header = ("mean of 21 matrices", "side", "φ(1, 1)", "φ(1, 8)", "φ(4, 4)", "φ(8, 8)")
inputs = np.mean([get(base, p)["weight"].shape[1] for p in paths])
AT = ((1, 1), (1, 8), (4, 4), (8, 8))
table(
    header,
    [(name, side, *(f"{shared(*pair, side, i, j):.3f}" for i, j in AT))
     for name, pair in PAIRS.items() for side in ("output", "input", "untrained A")],
)  # fmt: skip
chance = {
    (i, j): np.mean([max(i, j) / get(base, p)["weight"].shape[1] for p in paths]) for i, j in AT
}
print("chance:", ", ".join(f"{value:.3f}" for value in chance.values()))
for pair in PAIRS.values():
    assert abs(shared(*pair, "untrained A", 8, 8) / chance[8, 8] - 1) < 0.15
    if not QUICK:
        assert shared(*pair, "output", 1, 1) > 4 * chance[1, 1]
        assert shared(*pair, "output", 8, 8) > 1.5 * chance[8, 8]
        assert shared(*pair, "output", 8, 8) > 1.25 * shared(*pair, "input", 8, 8)
        assert shared(*pair, "input", 1, 1) < 0.5

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

    return (
        np.linalg.norm(delta),
        inside(delta),
        inside(w),
        np.mean([inside(rng.standard_normal(w.shape)) for _ in range(5)]),
    )


# the paper's own column of random directions: ‖W_q‖ = 61.95, and 0.02 and 0.33 at r = 4 and 64
assert round(61.95 * 4 / 12288, 2) == 0.02 and abs(61.95 * 64 / 12288 - 0.33) < 0.01

trained[4, 0] = train(4, 0, rate=1e-2)
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
    if not QUICK:
        assert mine < 0.7 * own if r < 32 else mine < own
        assert mine > random
rows.append(("GPT-3, r = 4", "6.91", "0.32", "21.67", "0.02", f"{6.91 / 0.32:.1f}"))
rows.append(("GPT-3, r = 64", "3.57", "1.90", "37.71", "0.33", f"{3.57 / 1.9:.1f}"))
table(("mean of 21 matrices", "‖ΔW‖", "of ΔW", "of W", "random", "amplification"), rows)
