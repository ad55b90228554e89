# %% [markdown]
# # 14. LoRA or full fine-tuning
#
# **The question.** When is a low-rank update enough, when does full fine-tuning win, and what do
# the last few per cent cost?
#
# ![A matrix is a sum of rank-one matrices, each with a singular value. Keeping the largest three
# gives the best matrix of rank three; the rest is the
# error.](../figures/drawings/singular_values.svg)
#
# The common answer has two halves: LoRA matches full fine-tuning if it is on all layers (QLoRA,
# Dettmers et al. 2023, Sec. 4); LoRA learns less and forgets less (Biderman et al. 2024). Both are
# answers to one question: how far is it from what the base knows to what it is to learn?
#
# Time: three quarters of a minute. You need: lesson 0, and what a rank is.

# %%
import sys

import numpy as np
from common import QUICK, SWEEPS, figure, held_out_notes, read_sweep, short, table

import minilora
from minilora import TrainConfig, data
from minilora.data import tasks
from minilora.evaluation import plot
from minilora.evaluation.memory import memory_estimate
from minilora.methods import registry
from minilora.tree import flatten, num_parameters, set_leaf, tree_map

sys.path.insert(0, str(SWEEPS))
from lora_or_full import cipher, run_one, start

config, base, words = minilora.load("micro")
settings = TrainConfig()

# %% [markdown]
# ## Two shifts, one small and one large
#
# The small shift is our usual task: a question about a sentence that the base could have written.
# The large one is a new language: the same notes, written in permuted letters.

# %%
plain = tasks.notes(200, seed=100)[0]
strange = [{"text": cipher(row["text"])} for row in plain]
print(tasks.questions("train", 1, 0)[0])
print(strange[0])


def score(tree, rows):
    """The loss of a base without adapters on text rows, in nats a byte."""
    return minilora.evaluate({}, tree, data.encode_rows(rows, words, settings)[0], config)["loss"]


known, unknown = score(base, plain), score(base, strange)
_, floor = held_out_notes(words, settings)
print(f"the base: {known:.3f} nats a byte on its own notes, {unknown:.2f} on the new language")
print(f"the entropy of either: {floor:.3f}")
assert known < floor + 0.02 and unknown > 10 * known

# %% [markdown]
# How far is that, in weights? One exact answer is known. Permute the rows of the embedding as the
# letters are permuted (head and embedding are one matrix here), and the base reads the new language
# as it read the old one.
#
# **Predict:** what rank has the change of the embedding, out of 48? And which adapter can make it?

# %%
shifted = np.array(base["model"]["embed_tokens"]["weight"])
for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
    shifted[ord(cipher(letter))] = base["model"]["embed_tokens"]["weight"][ord(letter)]
translated = tree_map(lambda w: w, base)
set_leaf(translated, "model.embed_tokens.weight", shifted)
print(f"with its embedding permuted, the base is at {score(translated, strange):.6f}")
assert abs(score(translated, strange) - known) < 1e-4

change = shifted - base["model"]["embed_tokens"]["weight"]
energy = np.cumsum(np.linalg.svd(change, compute_uv=False) ** 2)
held = energy / energy[-1]
rank = int(np.searchsorted(held, 0.9)) + 1
print(f"of the change, rank 1 holds {100 * held[0]:.0f} %, rank 8 {100 * held[7]:.0f} %;")
print(f"90 % needs rank {rank}")
assert rank > 8

# %% [markdown]
# So there is a solution, full fine-tuning can reach it, and LoRA on the projections cannot: none of
# its factors touches the embedding. It must find another way, in the layers.
#
# ## The curve
#
# All runs: `micro`, 200 steps of 16 rows, the best rate of each method, three seeds, scored on
# held-out rows (`sweeps/lora_or_full.csv`). First, as much data as the steps can use.
#
# **Predict:** on which shift does rank 1 do? Does full fine-tuning win on the small one as well?

# %%
sweep = read_sweep("lora_or_full")


def cell(column, shift, rows, noise, size):
    """The column of a cell of the sweep, a number a seed."""
    wanted = (shift, rows, noise, size)
    found = [r for r in sweep if (r["shift"], r["rows"], r["noise"], r["size"]) == wanted]
    assert len(found) == 3, wanted
    return np.array([row[column] for row in found])


def show(cells):
    """A table of cells: train and held-out loss, exact match, the base's own notes."""
    rows = []
    for shift, n, noise, size in cells:
        at = (shift, n, noise, size)
        loss, train = cell("loss", *at), cell("train_loss", *at).mean()
        exact = f"{100 * cell('exact_match', *at).mean():.0f} %" if shift == "small" else ""
        name = size if isinstance(size, str) else f"r = {size}"
        spread = f"{loss.min():.4f} to {loss.max():.4f}"
        notes = f"{cell('notes', *at).mean():.2f}"
        rows.append([f"{shift}, {n} rows" + f", {100 * noise:.0f} % wrong" * (noise > 0), name,
                     int(cell("trained", *at)[0]), f"{train:.4f}", f"{loss.mean():.4f}", spread,
                     exact, notes])  # fmt: skip
    header = ["shift", "size", "trained", "train loss", "held-out loss", "three seeds", "exact"]
    table([*header, "own notes"], rows)


SIZES = (1, 8, 32, "full")
show([("small", 4000, 0, size) for size in SIZES])
LARGE = (1, 8, 32, "32, half the rate", "8 + embedding", "full")
show([("large", 4000, 0, size) for size in LARGE])
small, large = ({z: cell("loss", shift, 4000, 0, z) for z in SIZES} for shift in ("small", "large"))
assert cell("exact_match", "small", 4000, 0, 8).min() > 0.97  # and so is full's
assert cell("exact_match", "small", 4000, 0, "full").min() > 0.97
assert small["full"].max() < 0.7 * small[8].min()
slower = cell("loss", "large", 4000, 0, "32, half the rate")
assert large["full"].max() < 0.75 * min(large[32].min(), slower.min())
assert (
    min(large[32].mean(), slower.mean()) > 0.8 * large[8].mean()
)  # four times the rank: hardly anything
with_embedding = cell("loss", "large", 4000, 0, "8 + embedding")
gap = large[8].mean() - large["full"].mean()
closed = (large[8].mean() - with_embedding.mean()) / gap
print(f"the embedding closes {100 * closed:.0f} % of the gap between r = 8 and full")
assert closed > 0.6

# %% [markdown]
# - **Small shift.** Rank 8 answers everything, as full fine-tuning does. Full has the lower loss,
#   by more than half, and no more right answers.
# - **Large shift.** Full fine-tuning wins clearly. And **more rank is not the mend**: r = 32 trains
#   nine tenths as many numbers as there are in the model, and ends near r = 8, at half the rate
#   too.
# - What closes most of the gap is the one matrix that the shift needs, trained beside rank 8.
#
# So "LoRA on all layers matches full fine-tuning" holds where the change that the task needs lies
# in those layers. Capacity is not only how many parameters, but where.
#
# ## What it forgets
#
# **Predict:** which size keeps the base's own notes best? Is forgetting a price of learning, or of
# full fine-tuning?


# %%
def notes_of(shift, size):
    """The base's own notes after each seed, with all the data."""
    return cell("notes", shift, 4000, 0, size)


LABELS = {1: "r = 1", 8: "r = 8", 32: "r = 32", "full": "full", "8 + embedding": "8 + emb."}
titles = ["large shift: more rank is not the mend", "forgetting grows with what is trained"]
xlabels = ["trained parameters", "loss on the new task (nats a target token)"]
ylabels = ["held-out loss (nats a target token)", "loss on the base's own notes (nats a byte)"]
with figure("lora_or_full", xlabels, ylabels, titles, width=9.6, columns=2) as (left, right):
    for (shift, marker), style in zip((("small", "o"), ("large", "s")), plot.LINES):
        sizes = SIZES if shift == "small" else (1, 8, 32, "full", "8 + embedding")
        loss = {z: cell("loss", shift, 4000, 0, z) for z in sizes}
        trained = {z: cell("trained", shift, 4000, 0, z)[0] for z in sizes}
        mean = {z: loss[z].mean() for z in sizes}
        line = [z for z in sizes if z in SIZES]
        left.plot([trained[z] for z in line], [mean[z] for z in line], marker=marker,
                  markersize=4, label=f"{shift} shift", **style)  # fmt: skip
        for z in sizes:
            left.plot([trained[z]] * 2, [loss[z].min(), loss[z].max()], color=style["color"])
            right.plot(mean[z], notes_of(shift, z).mean(), marker=marker, color=style["color"])
            right.annotate(LABELS[z], (mean[z], notes_of(shift, z).mean()), (5, 4),
                           textcoords="offset points", fontsize=8)  # fmt: skip
        if shift == "large":
            z = "8 + embedding"
            left.plot(trained[z], mean[z], marker="D", color=style["color"], markersize=5)
            left.annotate("r = 8 and the\nembedding", (trained[z], mean[z]), (-6, -22),
                          textcoords="offset points", fontsize=8, ha="right")  # fmt: skip
    left.set(xscale="log", yscale="log")
    left.legend(frameon=False, loc="lower left")
    right.axhline(known, color=plot.GREY, linewidth=0.8)
    note = "the base before"
    right.annotate(note, (0.05, known), (0, 3), textcoords="offset points", fontsize=8)
    right.set(xscale="log", ylim=(0, 8), xlim=(0.0013, 3))

assert notes_of("small", 8).max() < 0.7 * notes_of("small", "full").min()
assert notes_of("small", 1).mean() < notes_of("small", 8).mean() < notes_of("small", 32).mean()
assert notes_of("large", 8).min() > 2 * notes_of("small", 8).max()

# %% [markdown]
# ![Loss over trained parameters, and forgetting over learning](../figures/lora_or_full.png)
#
# "Forgets less" is visible, and it is a property of the rank, not of the method's name: r = 32
# forgets nearly what full fine-tuning does. On the large shift nothing is kept by anybody, since
# the new language gives the same letters another meaning. The rates differ too (1e-2 for LoRA,
# 5e-3 for full, each its own best), so this compares recipes rather than ranks alone.
#
# ## Little data, wrong answers
#
# **Predict:** with 64 rows, which of the two overfits? Does a small rank protect against wrong
# answers, a quarter of them here?

# %%
show([(shift, 64, 0, size) for shift in ("small", "large") for size in (8, "full")])
show([("small", rows, 0.25, size) for rows in (64, 4000) for size in (8, "full")])
for size in (8, "full"):  # both learn the rows by heart
    assert (cell("train_loss", "small", 64, 0, size) < cell("loss", "small", 64, 0, size) / 4).all()
assert cell("loss", "small", 64, 0, 8).mean() < 0.8 * cell("loss", "small", 64, 0, "full").mean()
assert cell("loss", "large", 64, 0, "full").max() < cell("loss", "large", 64, 0, 8).min()
quarter = {size: cell("loss", "small", 4000, 0.25, size) for size in (8, "full")}
assert 0.75 < quarter[8].mean() / quarter["full"].mean() < 1.33
assert cell("exact_match", "small", 4000, 0.25, 8).min() > 0.8
assert cell("exact_match", "small", 64, 0.25, 8).max() < 0.5

# %% [markdown]
# - Little data, small shift: both know their 64 rows by heart; LoRA's held-out loss is lower, by a
#   mean over seeds that scatter.
# - Little data, large shift: full fine-tuning is better even there, though it overfits far more.
#   A method that cannot make the change cannot be saved by its modesty.
# - Wrong answers, much data: no difference in loss. **"A low rank ignores noise" is not seen
#   here.** What protects is the amount of data: with 4,000 rows nine of ten answers are right
#   although a quarter of what was taught was wrong, with 64 rows two of ten.
#
# ## What the last few per cent cost
#
# **Predict:** how many bytes of training state does full fine-tuning need beside rank 8?

# %%
costs = []
for size in SIZES:
    adapters, frozen = start(base, size, 0)
    parts = memory_estimate(adapters, frozen, config, tokens=0)
    state = sum(parts[k] for k in ("trained weights", "their gradients", "Adam's two moments"))
    exact = 100 * cell("exact_match", "small", 4000, 0, size).mean()
    costs.append([f"r = {size}" if size != "full" else size, num_parameters(adapters), state,
                  f"{exact:.0f} %", f"{small[size].mean():.4f}"])  # fmt: skip
table(["small shift", "trained", "bytes of state", "exact", "held-out loss"], costs)
lora_state, full_state = costs[1][2], costs[3][2]
assert full_state > 4 * lora_state
whole = registry.full(base, None, None)[0]
assert num_parameters(whole) == sum(w.size for w in flatten(base).values())

# %% [markdown]
# On the small shift the way from r = 8 to full costs over four times the training state, a file as
# large as the model for each task, and the base's own language. It buys a lower loss, no answer.
# On a real model the ratio is some hundreds, since r stays small while the matrices grow.
#
# ## A slice, live
#
# One run of each method on the large shift, and does it agree with the sweep?

# %%
for size in (8, "full"):
    row = run_one(("large", 4000, 0.0, size, 0), iters=short(200, 15))
    there = large[size][0]
    print(f"{size}: {row['loss']:.4f} here after {short(200, 15)} steps, {there:.4f} in the sweep")
    assert row["loss"] < unknown / 2
    if not QUICK:
        assert abs(row["loss"] / there - 1) < 0.1

# %% [markdown]
# **What this showed.** The size of the shift decides, and its place. Ask what must change in the
# model; if it lies in matrices that you adapt, a small rank does. If it does not (new symbols, a
# new alphabet), train those leaves too, or everything.
#
# **Where to stop with a debugger.** `registry.full` (the whole tree is argument 0),
# `tree.trained_or_frozen` (where a trained embedding takes the frozen one's place),
# `sweeps/lora_or_full.py`, `start`.
#
# **Exercises.** lowrank-product, lora-count, memory-estimate, cross-entropy.
