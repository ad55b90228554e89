# %% [markdown]
# # Reading a rank-1 adapter
#
# **The question.** At r = 1, an adapter computes one number per projection and token, A·x. What
# does this number say, and which part of it does the model need?
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lessons 1 and 5.

# %%
import numpy as np

import minilora
from minilora.config import ALL_LINEAR
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import QUICK, claim, of, short, spread, table
from minilora.lessons.studies.lora import rank1_sweep as rank1

sweep = common.read_sweep("rank1")
valid = [of(sweep, "valid_loss", rate=rate) for rate in rank1.RATES]
RATE, _ = common.best_rates(rank1.RATES, valid)
rows = [row for row in sweep if row["rate"] == RATE]  # of five seeds


def column(name):
    """Return a column of the sweep at the best rate, one number per seed."""
    return np.array([row[name] for row in rows])


# %% [markdown]
# ## One number per projection and token
#
# At r = 1, A is one row and B is one column: h = W₀x + (α/r)·B·(A·x). B is a fixed direction, and
# the number z = A·x says how far the output moves along it, for this token. With 21 projections,
# all that the adapter adds to `micro` (0.1 million parameters) is 21 numbers per token.
#
# Ward et al. (2025) train such an adapter on Qwen2.5-32B for reasoning. They report that it
# recovers 73 to 90 % of the reasoning performance of full fine-tuning, and that its numbers are as
# interpretable as the neurons of the MLP. Soligo et al. (2025) read 9 rank-1 adapters.
#
# The task here: " Who, what, where?" asks for a name, a colour, a thing and a place that the prompt
# has named. Below, `+` and `-` mark the bytes where z of a query is more than one standard
# deviation from its mean.

# %%
run = common.finetune(rank1.LORA, seed=0, learning_rate=RATE, iters=short(200, 20))
batch = rank1.test_batch(short(64, 8))
loss, scalars = rank1.loss_and_scalars(run.adapters, run.model, batch, {})
print(f"{'':18}{bytes(batch['tokens'][0].tolist()).decode()}")
for layer in rank1.LAYERS:
    z = scalars[f"model.layers.{layer}.self_attn.q_proj"]
    standard = (z[0] - z.mean()) / z.std()
    marks = ["+" if x > 1 else "-" if x < -1 else "." for x in standard]
    print(f"layer {layer}, q_proj   {''.join(marks)}")

# %% [markdown]
# ## Switched off, one at a time
#
# The marks look like a meaning. But does the number matter? Each projection's update is switched
# off alone (z = 0), and the loss on test rows is compared.
#
# **Predict.** This task is to find words and copy them. Which projections matter most? For the
# adapter of Ward et al., summaries of the paper name those of the MLP.

# %%
# Table
each = np.array([rank1.each_off(row) - row["loss"] for row in rows])  # (seeds, layers, projections)
cells = [[f"layer {i}", *(f"{x:.3f}" for x in each.mean(axis=0)[i])] for i in rank1.LAYERS]
table(["rise of the loss, five seeds", *ALL_LINEAR], cells)
share = each.sum(axis=(1, 2)) / (column("off") - column("loss"))
print(f"the 21 rises add up to {spread(share)} of what was learned")
queries_keys, others = each[..., :2].mean(axis=(1, 2)), each[..., 2:].mean(axis=(1, 2))
one_more = each[..., 4:].sum(axis=(1, 2)) - each[..., :4].sum(axis=(1, 2))
all_more = column("off_mlp") - column("off_attention")
first = claim("a q or k against another", np.log(queries_keys / others), times=True, digits=1)
alone = claim("one at a time, the MLP's sum − attention's", one_more)
together = claim("all together, the MLP − attention", all_more)

# %% [markdown]
# **Answer.** Queries and keys. A possible reason: they decide where attention looks. That the MLP
# matters more **does not hold here** if one projection is off at a time.
#
# But one at a time is not all together: the 21 rises add up to less than half of what the adapter
# has learned (mean of the seeds). If all projections of a group are off, it is **not shown either
# way** whether the MLP or attention matters more. So if one projection of the MLP is off, others
# seem to do its work: switching off one hides what they do together.
#
# ## What of the number is needed
#
# All rows of this task have the same length: the byte at a place always has the same role, such as
# "the space before the colour, in the answer". So z can be replaced in all 21 projections by
#
# - 0: the adapter is off;
# - a constant, its mean over all tokens: the update is a bias;
# - its mean at this place over all rows: z says where we are, and nothing of which words these are.
#
# **Predict.** The answer consists of the row's own words. How much of what the adapter learned is
# left with a constant, and with the mean at the place?

# %%
# Table
kinds = {"off": "0", "constant": "a constant", "place": "the mean of its place", "loss": "z itself"}
gain, cells = {}, []
for kind, name in kinds.items():
    gain[kind] = (column("off") - column(kind)) / (column("off") - column("loss"))
    cells.append([name, spread(column(kind), 3), spread(gain[kind])])
table(["z is replaced by", "loss, five seeds", "share of the gain"], cells)

# %% [markdown]
# **Answer.** With the mean at the place, about nine tenths of the gain in loss, and with a
# constant, a fifth. The base can copy words already. It lacks the information when to copy which
# one. (The words matter, too: with the mean, the loss is more than four times that with z.)
#
# ## Looks are not enough
#
# z depends on the place. Is that something that the adapter has learned?
#
# **Predict.** The place explains three quarters of the variance of z. How much is it for an adapter
# that was never trained, with a random A?

# %%
# Table
trained, untrained = column("share_trained"), column("share_untrained")
print(f"the place explains {spread(trained)} of the variance of z, untrained {spread(untrained)}")
added = claim("trained − untrained", trained - untrained)

# %% [markdown]
# **Answer.** Almost as much: the input x depends on the place already, so a random direction of it
# does, too. A readable pattern in z shows what x contains. Replacing z shows what the model needs.
#
# ## What was shown
#
# On `micro` (0.1 million parameters), one template and five seeds, z mostly says where in the row a
# token is: its mean per place keeps nine tenths of the gain. Queries and keys matter most if one
# projection is switched off at a time. If all projections of a group are off, it is not shown which
# group matters more. Ward et al. train a model of 32 billion parameters for reasoning. To test
# their claim, one needs such a model and both ways of switching off.
#
# **What to try.**
#
# 1. `each_off` in `rank1_sweep.py`: replace z by its mean instead of 0. Which is the better "off"?
# 2. `GROUPS` in `rank1_sweep.py`: add all queries and keys together.
# 3. `LORA` in `rank1_sweep.py`: train only q and k. How low is the loss?
#
# **Where to stop with a debugger.** `rank1_sweep.loss_and_scalars`: z of each projection.
#
# **Exercises.** one-file-init-lora, one-file-linear.
#
# **Further reading.** Ward et al. 2025, *Rank-1 LoRAs Encode Interpretable Reasoning Signals*:
# [arXiv:2511.06739](https://arxiv.org/abs/2511.06739). Soligo et al. 2025, *Convergent Linear
# Representations of Emergent Misalignment*: [arXiv:2506.11618](https://arxiv.org/abs/2506.11618).

# %%
# Checks
plain = minilora.loss(run.adapters, run.model, batch)
assert abs(plain - loss) < 1e-5, "without a replacement, the model is as it was"
assert (queries_keys > 2 * others).all(), "in every seed, q and k matter at least twice as much"
assert first == common.HOLDS and alone == common.FAILS and together == common.OPEN
assert share.mean() < 0.5, "the rises do not add up to all"
assert (gain["place"] > 0.8).all() and (gain["constant"] < 0.5).all()
assert abs(gain["place"].mean() - 0.9) < 0.05 and abs(gain["constant"].mean() - 0.2) < 0.05
assert (column("place") > 4 * column("loss")).all(), "the words are needed, too"
assert abs(trained.mean() - 0.75) < 0.05, "three quarters"
assert added == common.HOLDS, "training must add a little"
assert (trained - untrained).max() < 0.15 and untrained.min() > 0.6, "but most was there before"
if not QUICK:  # a run of the sweep again
    again = rank1.reading(run.adapters, run.model, 0, batch)
    for kind, other in (("loss", "place"), ("place", "constant")):
        agree = common.agrees(again[kind], column(kind), column(other))
        assert agree, f"{kind}: {again[kind]}, not {column(kind)}"
