# %% [markdown]
# # Packing
#
# **The question.** Short examples leave padding in a batch. What is gained by packing several
# examples into one row, and what must be done so that they do not see each other?
#
# **Continues:** [lesson 5](../../05_the_llama_block.py).
#
# **Time:** a few seconds to run, eight minutes to read. **You need:** lessons 0 and 5.

# %%
from types import SimpleNamespace

import numpy as np

import minilora
from minilora import TrainConfig, data, layers
from minilora.lessons.helpers.common import batch_of, table
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

# %%
single = [[example] for example in examples]
filled, scores_per_token, cells = {}, {}, []
for length, size in ((None, 16), (longest, 16), (512, 8)):
    sequences = data.pack_examples(examples, length) if length else single
    masks = [data.collate(data.batch_at(sequences, i, size, 0))["mask"] for i in range(20)]
    filled[length] = float(np.mean([mask.mean() for mask in masks]))
    # each token is scored against all tokens of its row, visible or not
    scored = sum(mask.size * mask.shape[1] for mask in masks)
    scores_per_token[length] = scored / sum(mask.sum() for mask in masks)
    name = f"{size} rows of {length}" if length else f"{size} examples"
    cells.append([name, f"{filled[length]:.2f}", int(scores_per_token[length])])
table(["batch", "text", "scores per token"], cells)

# %% [markdown]
# **Answer.** About 0.6 is text. Where each position costs the same, packing saves most of the other
# 0.4. Attention is another matter. There, each token is scored against its whole row: rows as long
# as the longest example need fewer scores per token than no packing, rows of 512 need more. So
# begin with rows as long as the longest example. Note that a step sees more examples then, so an
# epoch has fewer steps: the same `batch_size` is a different run.
#
# ## Neighbours in a row
#
# With a causal mask, a token sees everything before it, also the other examples of its row.
# `collate` therefore stores in `segment_starts` where each token's example begins. It is used
# twice: attention sees nothing before it, and positions are counted from it.
#
# **Predict.** Which of the two is needed, so that a packed example gets the logits that it gets
# alone?


# %%
def variant(mask, restart):
    """Return the model with another attention mask or other positions.

    mask: whether attention is limited to a token's example. restart: whether positions are counted
    from its start.
    """

    def attention(q, k, v, rope, starts, cache, window):
        if not restart:
            rope = layers.rope_cos_sin(np.arange(q.shape[1])[None], model.config)
        return layers.attention(q, k, v, rope, starts if mask else 0 * starts)

    return model._replace(ops=SimpleNamespace(**{**vars(layers), "attention": attention}))


def logits_of(batch, changed):
    """Return the logits of a batch."""
    return logits(hidden_states(changed, batch["tokens"], batch["segment_starts"]), changed)


packed = max(data.pack_examples(examples[:200], 256), key=len)
batch = data.collate([packed])
alone = [logits_of(batch_of([example]), model)[0] for example in packed]  # one example per row
alone = np.concatenate(alone)
differences, losses, cells = {}, {}, []
for mask, name in ((True, "block mask"), (False, "causal mask")):
    for restart, positions in ((True, "restart"), (False, "continue")):
        changed = variant(mask, restart)
        difference = np.abs(logits_of(batch, changed)[0, : len(alone)] - alone).max()
        loss = minilora.loss({}, changed, batch)
        differences[mask, restart], losses[mask, restart] = difference, loss
        cells.append([f"{name}, positions {positions}", f"{difference:.1e}", f"{loss:.3f}"])
table(["", "logits differ from those alone by", "loss of this row"], cells)

# %% [markdown]
# **Answer.** Only the mask. Rotary attention sees the *distance* between two tokens (RoFormer, Su
# et al. 2021), and distances within an example do not depend on where it begins. Without the mask,
# there is no error message. But the logits differ, and the loss of this row is higher: by more than
# 1 nat per token if positions restart.
#
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

# %%
# Checks
assert 0.55 < filled[None] < 0.65, "without packing, about 0.6 of a batch is text"
assert min(filled[longest], filled[512]) > 0.9, "with packing, more than 0.9"
assert scores_per_token[longest] < 0.8 * scores_per_token[None], "rows of the longest: fewer scores"
assert scores_per_token[512] > 1.5 * scores_per_token[None], "rows of 512: many more"
for restart in (True, False):
    assert differences[True, restart] < 1e-3, f"block mask, {restart}: the same logits as alone"
    assert differences[False, restart] > 1, f"causal mask, {restart}: other logits"
    assert losses[False, restart] > losses[True, restart] + 0.3, "a higher loss without the mask"
assert losses[False, True] > losses[True, True] + 1, "by more than 1 nat"
