# %% [markdown]
# # 17. Pitfalls
#
# **The question.** How does each common mistake look from outside, and what mends it?
#
# Six mistakes, each made on purpose. A mistake has a symptom, which is what you will see, a mend
# that works, and often a mend that seems right and does nothing. Two of the six turn out to be
# less dangerous here than they are said to be.
#
# ![A decision tree for a run that goes wrong: is the training loss finite, does it fall, does the
# held-out loss fall as well, and does the text that the model generates
# agree.](../figures/drawings/symptoms.svg)
#
# Time: three quarters of a minute. You need: lesson 0.

# %%
import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace

import numpy as np
from common import QUICK, figure, short, table

import minilora
from minilora import LoraConfig, TrainConfig, data, lora
from minilora.evaluation import plot
from minilora.methods.registry import also_train
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, num_parameters, unflatten

SEED = 0
STEPS = short(120, 12)
config, base, words = minilora.load("micro")
questions, held_out = (data.load_rows("questions", split) for split in ("train", "valid"))
settings = TrainConfig(
    iters=STEPS, batch_size=16, learning_rate=1e-2, mask_prompt=True, seed=SEED,
    steps_per_eval=short(20, 6),
)  # fmt: skip
valid, _ = data.encode_rows(held_out[:100], words, settings)
ALL = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))


class Outcome:
    """A run: its trees, the training loss of its end, its held-out loss and exact match."""

    def __init__(self, adapter=ALL, rows=questions, also=(), scheme="none", watch=False, **changes):
        rng, now = np.random.default_rng(SEED), replace(settings, **changes)
        adapters, self.frozen = lora.init(minilora.quantize(base, scheme), adapter, rng)
        adapters = also_train(adapters, base, also)
        examples, _ = data.encode_rows(rows, words, now)
        silent = io.StringIO()  # a bar a run would be too many
        with redirect_stderr(silent), redirect_stdout(silent):
            trained = minilora.train(
                adapters, self.frozen, examples, config, now, valid if watch else ()
            )
        self.adapters, self.history = trained
        self.losses = [row["loss"] for row in self.history if "loss" in row]
        self.train = float(np.mean(self.losses[-10:]))
        self.loss, self.exact = scores(self.adapters, self.frozen)

    def row(self, name):
        return [name, num_parameters(self.adapters), f"{self.train:.4f}", f"{self.loss:.4f}",
                f"{100 * self.exact:.0f} %"]  # fmt: skip


def scores(adapters, frozen, now=config):
    """(loss, exact match) on held-out questions."""
    score = minilora.evaluate(adapters, frozen, valid, now)
    return score["loss"], score["exact_match"]


def show(**outcomes):
    """A table of runs."""
    rows = [outcome.row(name.replace("_", " ")) for name, outcome in outcomes.items()]
    table(["run", "trained", "train loss", "held-out loss", "exact"], rows)


sound = Outcome()
show(sound=sound)
if not QUICK:
    assert sound.loss < 0.05 and sound.exact > 0.8

# %% [markdown]
# That is a sound run: rank 8 on all projections, rate 1e-2. Now we spoil one thing at a time.
#
# ## 1. Too little capacity
#
# Rank 1 on `q_proj` alone. **Predict:** will training and held-out loss differ? Does a higher rate
# help?

# %%
narrow = LoraConfig(r=1, lora_alpha=2, target_modules=("q_proj",))
small, small_fast = Outcome(narrow), Outcome(narrow, learning_rate=5e-2)
show(rank_1_on_q=small, the_same_at_five_times_the_rate=small_fast, mend_rank_8_on_all=sound)
assert 0.7 < small.train / small.loss < 1.4
if not QUICK:
    assert min(small.loss, small_fast.loss) > 5 * sound.loss

# %% [markdown]
# **Symptom:** training loss and held-out loss agree, and both are high. It cannot even learn its
# rows. **No mend:** the rate. **Mend:** more rank, and more places for it.
#
# ## 2. Too much on little data
#
# The sound adapter and 24 rows. **Predict:** will the held-out loss fall and then rise, so that
# stopping early would save the run?

# %%
little = Outcome(rows=questions[:24], watch=True)
more = Outcome(rows=questions[:400])
watched = [row for row in little.history if "eval_loss" in row]
best = min(row["eval_loss"] for row in watched)
show(rows_24=little, mend_rows_400=more)
print(f"the lowest held-out loss on the way with 24 rows: {best:.4f}")
if not QUICK:
    assert little.train < little.loss / 5  # what it knows by heart, and what it understood
    assert more.loss < best / 3

# %% [markdown]
# **Symptom:** a gap. It knows its rows by heart and fails on new ones. **No mend:** early stopping.
# Its best step is far worse than what 400 rows give in as many steps; the textbook's rising curve
# is faint or missing, because the gap was there from the start. **Mend:** more rows.
#
# ## 3. Wrong targets
#
# The same number of parameters, all in the feed-forward layers. **Predict:** where must a model
# change that is to copy words from its prompt?

# %%
MLP = ("gate_proj", "up_proj", "down_proj")
wrong = Outcome(LoraConfig(r=14, lora_alpha=28, target_modules=MLP))
wrong_wide = Outcome(LoraConfig(r=42, lora_alpha=84, target_modules=MLP))
show(feed_forward=wrong, feed_forward_three_times_the_rank=wrong_wide, mend_all=sound)
assert abs(num_parameters(wrong.adapters) / num_parameters(sound.adapters) - 1) < 0.02
if not QUICK:
    assert min(wrong.loss, wrong_wide.loss) > 4 * sound.loss

# %% [markdown]
# **Symptom:** that of too little capacity, with capacity to spare: both losses agree, and after as
# many steps both are several times the sound run's. **No mend:** more rank in the
# same place. **Mend:** all projections, or those that the task needs. That is why QLoRA's advice
# (all linear layers) is a good first choice: it does not have to know.
#
# ## 4. A learning rate that is too high
#
# Four times the sound rate. **Predict:** does the loss go to infinity?

# %%
fast = Outcome(learning_rate=4e-2)
show(rate_4e_2=fast, mend_rate_1e_2=sound)
print(f"worst step: {max(fast.losses):.2f}, first step: {fast.losses[0]:.2f}")
if not QUICK:
    assert fast.loss > 10 * sound.loss
    assert np.isfinite(fast.losses).all()

# %% [markdown]
# **Symptom:** the loss falls at first, then stays high. It does not explode: Adam's steps are
# bounded, so a rate that is too high looks like a model that is too small, and is mistaken for it.
# **Mend:** the rate. Try it before the rank.

# %% [markdown]
# ## 5. Norms
#
# The gains of RMSNorm are often unfrozen beside the adapters, and the advice is to give them a
# smaller rate (`also_train_lr_scale`, 0.1 by default), as each of them scales a whole channel.
#
# **Predict:** what happens at the adapters' full rate? At ten times that?

# %%
SCALES = (0.1, 1.0, 10.0)
norms = {scale: Outcome(also=["norm"], also_train_lr_scale=scale) for scale in SCALES}
show(**{f"norms_at_{scale}_of_the_rate": outcome for scale, outcome in norms.items()})
without = unflatten({p: w for p, w in flatten(norms[1.0].adapters).items() if "norm" not in p})
lost, lost_exact = scores(without, norms[1.0].frozen)
print(f"trained norms left out of the file: {lost:.4f}, {100 * lost_exact:.0f} %")
other_eps = {}
for eps in (1e-6, 1e-3, 1e-1):
    now = replace(config, rms_norm_eps=eps)
    other_eps[eps], exact = scores(norms[1.0].adapters, norms[1.0].frozen, now)
    print(f"rms_norm_eps {eps:g} in place of 1e-05: {other_eps[eps]:.4f}, {100 * exact:.0f} %")
if not QUICK:
    assert norms[1.0].loss < 1.3 * norms[0.1].loss  # the full rate is no mistake here
    assert norms[10.0].loss > 2 * norms[1.0].loss
    assert lost > 1.2 * norms[1.0].loss
    assert other_eps[1e-3] < 1.2 * norms[1.0].loss and other_eps[1e-1] > 1

# %% [markdown]
# **Not confirmed here.** At the adapters' full rate the norms do no harm; at ten times that they
# do. The small scale is a margin for a rate that is chosen blindly, not a necessity.
#
# Two quirks are real. Norms that were trained and not saved: the run's own scores are right, and
# the loaded adapter is worse. It is a small loss here, and small losses are not noticed. **Mend:**
# save every trained leaf (minilora does; in PEFT that is `modules_to_save`). And an ε from another
# model: a hundred times too large is hardly seen, ten thousand times destroys everything.
# **Mend:** read it from the config, and compare logits with the original once.
#
# ## 6. Quantization
#
# A block keeps one absmax, and its codes are shares of it. So one outlier makes all its neighbours
# coarse, and the larger the block, the more of them. We plant one weight of ten standard
# deviations in each projection and quantize the base.
#
# **Predict:** how much worse are blocks of 4096 than blocks of 64 without an outlier? And with?

# %%
notes, _ = data.encode_rows(data.load_rows("notes", "valid"), words, TrainConfig())
BLOCKS = (16, 64, 256, 1024, 4096)


def planted(size):
    """The base with a weight of `size` standard deviations in each projection."""
    leaves, rng = flatten(base), np.random.default_rng(SEED)
    for path, w in leaves.items():
        if is_projection(path):
            leaves[path] = w = w.copy()
            w[rng.integers(w.shape[0]), rng.integers(w.shape[1])] = size * w.std()
    return unflatten(leaves)


def notes_loss(tree):
    return minilora.evaluate({}, tree, notes, config)["loss"]


blocks = {}
for name, tree in (("as it is", base), ("with outliers", planted(10))):
    dense = notes_loss(tree)
    blocks[name] = [notes_loss(minilora.quantize(tree, "nf4", size)) - dense for size in BLOCKS]
    eight = notes_loss(minilora.quantize(tree, "int8")) - dense
    cells = [f"{cost:+.4f}" for cost in (*blocks[name], eight)]
    table([name, *(f"NF4, {size}" for size in BLOCKS), "int8"], [[f"{dense:.4f}", *cells]])
    assert abs(eight) < 0.01
assert max(blocks["as it is"]) < 0.01
assert blocks["with outliers"][-1] > 2 * blocks["with outliers"][1] > 0.02

# %% [markdown]
# **Symptom:** with outliers, blocks of 4096 cost several times what blocks of 64 cost.
# **Mend:** a smaller block, or eight bits for that weight. **Not confirmed:** that a large block is
# bad as such. Without outliers all sizes cost this base next to nothing.
#
# The other artefact comes at the end. W + ΔW may go back into 4 bits, and the grid there is coarser
# than much of ΔW.
#
# **Predict:** which of these three merges gives the adapter's scores?

# %%
# Not the setting of the other runs: after 120 steps at 1e-2 this seed is still half-learnt (0.126),
# and 4 bits cost it a seventh only. What is lost in merging shows once there is something to lose.
qlora = Outcome(scheme="nf4-dq", iters=short(200, 12), learning_rate=4e-3)
merged = lora.merge(qlora.adapters, qlora.frozen)
ways = {"adapter kept apart": (qlora.loss, qlora.exact), "merged, dense": scores({}, merged)}
for scheme in ("int8", "nf4-dq"):
    ways[f"merged into {scheme}"] = scores({}, minilora.quantize(merged, scheme))
rows = [[name, f"{loss:.4f}", f"{100 * exact:.0f} %"] for name, (loss, exact) in ways.items()]
table(["QLoRA run", "held-out loss", "exact"], rows)
assert abs(ways["merged, dense"][0] / qlora.loss - 1) < 1e-3
assert abs(ways["merged into int8"][0] / qlora.loss - 1) < 0.05
if not QUICK:
    assert ways["merged into nf4-dq"][0] > 1.3 * qlora.loss

# %% [markdown]
# **Symptom:** good in the run, worse after the merge, and no error anywhere. **Mend:** keep the
# adapter apart, merge into a dense tree, or into 8 bits.

# %%
titles = [
    "1. capacity: both curves high",
    "2. little data: a gap",
    "3. wrong targets: as if too small",
    "4. rate too high: it stays high",
    "5. norms: harm from 10 times",
    "6. NF4 and outliers",
]
xlabels = ["optimizer step"] * 4 + [
    "norms' rate, in units of the adapters'",
    "block size (weights)",
]
ylabels = ["loss (nats a token)"] * 4 + ["held-out loss (nats a token)", "added loss (nats a byte)"]
pairs = [(small, "rank 1 on q", "rank 8 on all", sound), (little, "24 rows", "400 rows", more),
         (wrong, "feed-forward only", "all projections", sound),
         (fast, "rate 4e-2", "rate 1e-2", sound)]  # fmt: skip
with figure("pitfalls", xlabels, ylabels, titles, width=10.2, height=6, columns=3, rows=2) as axes:
    for panel, (spoilt, name, mend, mended) in zip(axes, pairs):
        for outcome, label, style in ((spoilt, name, plot.LINES[1]), (mended, mend, plot.LINES[0])):
            panel.plot(plot.smooth(outcome.losses, 5), label=label, **style)
            panel.plot(STEPS, outcome.loss, "o", color=style["color"], clip_on=False)
        panel.plot([], [], "o", color=plot.GREY, label="held out")
        panel.set(yscale="log", ylim=(0.003, 8))
    at = [row["step"] for row in watched]
    losses = [row["eval_loss"] for row in watched]
    axes[1].plot(at, losses, "o", markersize=3, color=plot.LINES[1]["color"])
    axes[4].plot(SCALES, [norms[s].loss for s in SCALES], marker="o", **plot.LINES[1])
    axes[4].axhline(sound.loss, label="norms frozen", **plot.LINES[0])
    axes[4].set(xscale="log", yscale="log", ylim=(0.003, 1))
    for (name, costs), style, marker in zip(blocks.items(), plot.LINES, "so"):
        axes[5].plot(BLOCKS, costs, marker=marker, label=name, **style)
    axes[5].set(xscale="log", xticks=BLOCKS, xticklabels=BLOCKS)
    axes[5].minorticks_off()
    for i, place in enumerate(["lower left"] * 4 + ["upper left"] * 2):
        axes[i].legend(frameon=False, loc=place, fontsize=7.5)

# %% [markdown]
# ![Six panels: each mistake and its mend](../figures/pitfalls.png)
#
# **What this showed.** Look at training and held-out loss together. Both high: capacity, targets or
# rate, and the rate is the cheapest to try. Only one high: data. Good in the run and bad after it:
# what was saved, or how it was merged.
#
# **Where to stop with a debugger.** `lora.target_paths` (which paths come back), `training.rates`,
# its inner `rate_of` (the rate of a norm), `nf4.normalize` (`absmax` of the block with the
# outlier).
#
# **Exercises.** rms-norm, absmax-blocks, nearest-code, lora-merge, prompt-mask, test-merge.
