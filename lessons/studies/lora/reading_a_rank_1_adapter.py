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
from minilora.lessons.helpers.common import QUICK, claim, of, spread, table
from minilora.lessons.studies.lora import rank1_sweep as rank1

sweep = common.read_sweep("rank1")
valid = [of(sweep, "valid_loss", rate=rate) for rate in rank1.RATES]
RATE, _ = common.best_rates(rank1.RATES, valid)

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
# has named. Below, `+` and `-` mark the bytes where z is more than one standard deviation from its
# mean, in the projections that matter most (the next section says how this is found).

# %%
iters, n = common.short((200, 64), (20, 8))
run = common.finetune(rank1.LORA, seed=0, learning_rate=RATE, iters=iters)
batch = rank1.test_batch(n)
loss, scalars = rank1.loss_and_scalars(run.adapters, run.model, batch)
rise = {}
for path in scalars:
    off, _ = rank1.loss_and_scalars(run.adapters, run.model, batch, {path: 0.0})
    rise[path] = off - loss
print(f"rate {RATE}, seed 0: loss {loss:.4f} on test rows")
print(f"{'':18}{bytes(batch['tokens'][0].tolist()).decode()}")
for path in sorted(rise, key=rise.get)[:-4:-1]:
    z = scalars[path]
    standard = (z[0] - z.mean()) / z.std()
    marks = "".join("+" if x > 1 else "-" if x < -1 else "." for x in standard)
    _, _, layer, _, name = path.split(".")
    print(f"{f'layer {layer}, {name}':<18}{marks}")

# %% [markdown]
# ## Switched off, one at a time
#
# The marks look like a meaning. But does the number matter? Each projection's update is switched
# off alone (z = 0), and the loss on test rows is compared.
#
# **Predict.** Which projections matter most? For the adapter of Ward et al., summaries of the paper
# name those of the MLP, above all in later layers.
#
# <details><summary>Answer</summary>
# Here, queries and keys. A possible reason: they decide where attention looks, and this task is to
# find words and copy them. ("The MLP" is tempting: it has more of the parameters.)
# </details>

# %%
rows = [row for row in sweep if row["rate"] == RATE]
each = np.array([rank1.each_off(row) - row["loss"] for row in rows])  # (seeds, layers, projections)
cells = [[f"layer {i}", *(f"{x:.3f}" for x in each.mean(axis=0)[i])] for i in rank1.LAYERS]
table(["rise of the loss, five seeds", *ALL_LINEAR], cells)
largest = [ALL_LINEAR[x.argmax() % len(ALL_LINEAR)] for x in each.reshape(len(each), -1)]
learned = np.array(of(sweep, "off", rate=RATE)) - of(sweep, "loss", rate=RATE)
print(f"the largest rise, seed by seed: {', '.join(largest)}")
print(f"the 21 rises add up to {spread(each.sum(axis=(1, 2)) / learned)} of what was learned")

queries_keys, others = each[..., :2].mean(axis=(1, 2)), each[..., 2:].mean(axis=(1, 2))
alone_attention, alone_mlp = each[..., :4].sum(axis=(1, 2)), each[..., 4:].sum(axis=(1, 2))
together = {name: np.array(of(sweep, f"off_{name}", rate=RATE)) for name in rank1.GROUPS}
for name, losses in together.items():
    print(f"{name} off together: the loss is {spread(losses)}")
verdicts = {
    "q, k": claim("a q or k against another", np.log(queries_keys / others), times=True, digits=1),
    "alone": claim("one at a time, the MLP's sum − attention's", alone_mlp - alone_attention),
    "together": claim("all together, the MLP − attention", together["mlp"] - together["attention"]),
    "later": claim("layer 2 off − layer 0 off", together["layer_2"] - together["layer_0"]),
}

# %% [markdown]
# Which query or key matters most differs from seed to seed. And one at a time is not all together:
# the 21 rises add up to less than half of what the adapter has learned (mean of the seeds). Without
# all twelve projections of attention, the mean loss is about as high as without all nine of the
# MLP. So if one projection of the MLP is off, others seem to do its work: switching off one hides
# what they do together.

# %%
# Checks
assert (queries_keys > 2 * others).all(), "in every seed, q and k matter at least twice as much"
assert set(largest) <= {"q_proj", "k_proj"}, "the largest rise must be that of a q or a k"
assert verdicts["q, k"] == common.HOLDS and verdicts["alone"] == common.FAILS
assert verdicts["together"] == verdicts["later"] == common.OPEN
assert (each.sum(axis=(1, 2)) < 0.6 * learned).all(), "the rises do not add up to all"

# %% [markdown]
# ## What of the number is needed
#
# All rows of this task have the same length: the byte at a place always has the same role, such as
# "the space before the colour, in the answer". So z can be replaced in all 21 projections by
#
# - 0: the adapter is off;
# - a constant, its mean over all tokens: the update is a bias;
# - its mean at this place over all rows: z says where we are, and nothing of which words these are.
#
# **Predict.** How much of what the adapter learned is left with a constant, and with the mean at
# the place?
#
# <details><summary>Answer</summary>
# With the mean at the place, about nine tenths of the gain in loss, and with a constant, a fifth.
# ("Little" is tempting for the place, as the answer is made of the row's own words. But the base
# can copy words already. It lacks the information when to copy which one.)
# </details>

# %%
kinds = {"off": "0", "constant": "a constant", "place": "the mean of its place", "loss": "z itself"}
found = {kind: np.array(of(sweep, kind, rate=RATE)) for kind in kinds}
gain = {kind: (found["off"] - x) / (found["off"] - found["loss"]) for kind, x in found.items()}
cells = [[kinds[kind], spread(found[kind], 3), spread(gain[kind])] for kind in kinds]
table(["z is replaced by", "loss, five seeds", "share of the gain"], cells)

# %%
# Checks
assert (gain["place"] > 0.8).all() and (gain["constant"] < 0.5).all()
assert (found["place"] > 4 * found["loss"]).all(), "the words are needed, too"
again = rank1.reading(run.adapters, run.model, 0, n)  # a run of the sweep again
for kind, other in (("loss", "place"), ("place", "constant")):
    agree = QUICK or common.agrees(again[kind], found[kind], found[other])
    assert agree, f"{kind}: {again[kind]}, not {found[kind]}"
plain = minilora.loss(run.adapters, run.model, batch)
assert abs(plain - loss) < 1e-5, "without a replacement, the model is as it was"

# %% [markdown]
# ## Looks are not enough
#
# z depends on the place. Is that something that the adapter has learned?
#
# **Predict.** The place explains three quarters of the variance of z. How much is it for an adapter
# that was never trained, with a random A?
#
# <details><summary>Answer</summary>
# Almost as much. ("Nothing" is tempting, because a random A has learned nothing. But the input x
# depends on the place already, so a random direction of it does, too.)
# </details>

# %%
trained, untrained = (
    np.array(of(sweep, f"share_{x}", rate=RATE)) for x in ("trained", "untrained")
)
print(f"the place explains {spread(trained)} of the variance of z, untrained {spread(untrained)}")
verdict = claim("trained − untrained", trained - untrained)

# %%
# Checks
assert verdict == common.HOLDS, "training must add a little"
assert (trained - untrained).max() < 0.15 and untrained.min() > 0.6, "but most was there before"

# %% [markdown]
# So a readable pattern in z shows what x contains. Replacing z shows what the model needs.
#
# ## What was shown
#
# On `micro` (0.1 million parameters), one template and five seeds, z mostly says where in the row a
# token is: its mean per place keeps nine tenths of the gain. Queries and keys matter most if one
# projection is switched off at a time. That the MLP matters more does not hold here in this way of
# switching off. If all projections of a group are off together, it is not shown either way. Ward et
# al. train a model of 32 billion parameters for reasoning. To test their claim, one needs such a
# model and both ways of switching off.
#
# **What to try.**
#
# 1. `{path: 0.0}`: use the mean of z instead. Is a projection switched off by 0 or by its mean?
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
