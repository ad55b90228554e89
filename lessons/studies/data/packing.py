# %% [markdown]
# # Packing
#
# **The question.** Short examples leave padding in a batch. What is gained by packing several
# examples into one row, and what must be done so that they do not see each other?
#
# **Continues:** [lesson 5](../../05_the_llama_block.py).
#
# **Time:** a few seconds to run, ten minutes to read. **You need:** lessons 0 and 5.

# %%
from types import SimpleNamespace

import numpy as np

import minilora
from minilora import TrainConfig, data, layers
from minilora.lessons.helpers.common import table
from minilora.model import hidden_states, logits

model, tokenizer = minilora.load("micro")
examples, _ = data.encode_rows(data.load_rows("notes", "train"), tokenizer, TrainConfig())
longest = max(len(example.tokens) for example in examples)

# %% [markdown]
# ## Padding and packing
#
# Texts have different lengths, and a batch is as long as its longest text. With
# [packing](../../guide/glossary.md), several examples share a row, and there is little padding.
#
# ![Three attention masks of ten tokens. Causal: each token sees itself and all before it. Packed:
# it sees only its own example. Window: it sees at most four
# tokens.](../../../figures/drawings/masks.svg)
#
# **Predict.** Which share of a batch of notes is text? Does packing save the rest in every part of
# the model?
#
# <details><summary>Answer</summary>
# About 0.6 is text. Where each position costs the same, packing saves most of the other 0.4.
# Attention is another matter. There, each token is scored against its whole row: rows as long as
# the longest example need fewer scores per token than no packing, rows of 512 need more. (Yes is
# tempting, because padding is what packing removes. But longer rows cost more per token.)
# </details>

# %%
filled, scores_per_token, cells = {}, {}, []
for length, size in ((None, 16), (longest, 16), (512, 8)):
    alone = [[example] for example in examples]
    sequences = data.pack_examples(examples, length) if length else alone
    masks = [data.collate(data.batch_at(sequences, i, size, 0))["mask"] for i in range(20)]
    filled[length] = float(np.mean([mask.mean() for mask in masks]))
    # Each token is scored against all tokens of its row, visible or not.
    scored = sum(mask.size * mask.shape[1] for mask in masks)
    scores_per_token[length] = scored / sum(mask.sum() for mask in masks)
    name = f"{size} rows of {length}" if length else f"{size} examples"
    per_step = round(size * len(examples) / len(sequences))
    cells.append([name, f"{filled[length]:.2f}", per_step, int(scores_per_token[length])])
table(["batch", "text", "examples per step", "scores per token"], cells)

# %% [markdown]
# Begin with rows as long as the longest example. Note that a step sees more examples then, so an
# epoch has fewer steps: the same `batch_size` is a different run.

# %%
# Checks
assert 0.55 < filled[None] < 0.65, "without packing, about 0.6 of a batch is text"
assert min(filled[longest], filled[512]) > 0.9, "with packing, more than 0.9"
assert scores_per_token[longest] < 0.8 * scores_per_token[None], "rows of the longest: fewer scores"
assert scores_per_token[512] > 1.5 * scores_per_token[None], "rows of 512: many more"

# %% [markdown]
# ## Neighbours in a row
#
# With a causal mask, a token sees everything before it, also the other examples of its row.
# `collate` therefore stores in `segment_starts` where each token's example begins. It is used
# twice: attention sees nothing before it, and positions are counted from it.
#
# **Predict.** In a row of several examples, attention can be cut at the start of each example, and
# positions can be counted from it. Which of the two is needed, so that a packed example gets the
# logits that it gets alone?
#
# <details><summary>Answer</summary>
# Only the mask. (Both is tempting, because the starts are used twice.) Rotary attention sees the
# *distance* between two tokens (RoFormer, Su et al. 2021), and distances within an example do not
# depend on where it begins.
# </details>


# %%
def variant(mask=True, restart=True):
    """Return the model with another attention mask or other positions.

    mask: whether attention is limited to a token's example. restart: whether positions are counted
    from its start.
    """

    def attention(q, k, v, rope, starts, cache, window):
        if not restart:
            rope = layers.rope_cos_sin(np.arange(q.shape[1])[None], model.config)
        return layers.attention(q, k, v, rope, starts if mask else 0 * starts)

    return model._replace(ops=SimpleNamespace(**{**vars(layers), "attention": attention}))


def logits_of(rows, *settings):
    """Return the logits of a batch of packed rows."""
    batch, changed = data.collate(rows), variant(*settings)
    return logits(hidden_states(changed, batch["tokens"], batch["segment_starts"]), changed)


packed = max(data.pack_examples(examples[:200], 256), key=len)
alone = np.concatenate([logits_of([[example]])[0] for example in packed])  # one example per row
differences, cells = {}, []
for mask, name in ((True, "block mask"), (False, "causal mask")):
    for restart, positions in ((True, "restart"), (False, "continue")):
        difference = np.abs(logits_of([packed], mask, restart)[0, : len(alone)] - alone).max()
        differences[mask, restart] = difference
        cells.append([f"{name}, positions {positions}", f"{difference:.1e}"])
table(["", "logits differ from those alone by"], cells)

batch = data.collate([packed])
masked, unmasked = (minilora.loss({}, variant(mask), batch) for mask in (True, False))
print(f"loss of this row: {masked:.3f} with the block mask, {unmasked:.3f} without")

# %% [markdown]
# The mask hides neighbours exactly: if the first example of this row is changed, the logits of the
# others stay the same, bit for bit. Without the mask, there is no error. But the logits differ, and
# the loss of this row is higher by more than 1 nat per token.

# %%
# Checks
for restart in (True, False):
    assert differences[True, restart] < 1e-3, f"block mask, {restart}: the same logits as alone"
    assert differences[False, restart] > 1, f"causal mask, {restart}: other logits"
first = len(packed[0].tokens) - 1
other = [data.Example(packed[0].tokens[::-1], packed[0].mask), *packed[1:]]
for mask in (True, False):
    before, after = (logits_of([row], mask)[0, first:] for row in (packed, other))
    assert np.array_equal(before, after) == mask, "equal bits if and only if there is a block mask"
assert unmasked > masked + 1, "without the mask the loss must be higher"

# %% [markdown]
# ## What was shown
#
# Packing fills more than 0.9 of the batches with text, in place of about 0.6. The attention mask
# must then hide the neighbours. With rotary positions, counting from each example's start is not
# needed.
#
# **What to try.**
#
# 1. `(512, 8)`: use (1024, 4). How many scores per token are there?
# 2. `examples[:200]`: pack only two examples. How much higher is the loss without the mask?
# 3. `0 * starts`: use `np.maximum(0, starts - 1)`. What do tokens see, and what is the loss?
#
# **Where to stop with a debugger.** `batching.collate` (`batch["segment_starts"]`),
# `layers.attention_mask` (print it as 0 and 1).
#
# **Exercises.** one-file-attention, one-file-apply-rope, prompt-mask.
#
# **Further reading.** RoFormer: [arXiv:2104.09864](https://arxiv.org/abs/2104.09864). Krell et al.
# 2021, *Efficient Sequence Packing without Cross-contamination*:
# [arXiv:2107.02027](https://arxiv.org/abs/2107.02027).
