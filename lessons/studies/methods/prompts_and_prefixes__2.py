# %% [markdown]
# # MERGE 15c. What a prefix cannot do
#
# **The question.** How does a prefix change attention, and do more steps or more virtual tokens
# help?
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** the study [Prompts and
# prefixes](prompts_and_prefixes.py), and attention.

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, figure, of, read_sweep, short, table
from lessons.studies.methods import virtual_tokens_sweep as virtual_tokens
from minilora import LoraConfig, TrainConfig, data, layers
from minilora.data import tasks
from minilora.evaluation import plot
from minilora.tree import get, overlay

config, base, tokenizer = minilora.load("micro")
heads, T = config.num_attention_heads, 16
tokens = np.array([tokenizer.encode("Ada keeps a pink kite in the barn. Who, what, where?")[:T]])

# %% [markdown]
# ## Attention with a prefix
#
# With a prefix, every token also sees n virtual tokens in front of the text: their keys and values
# (P_k, P_v) are before those of the text. Then
#
# $$\mathrm{softmax}\!\left(q\,[P_k; K]^\top\right) [P_v; V] =
#   (1 - \lambda(q)) \cdot \mathrm{softmax}\!\left(q K^\top\right) V
#   + \lambda(q) \cdot \mathrm{softmax}\!\left(q P_k^\top\right) P_v$$
#
# (He et al. 2022, Sec. 3.1). In words: the prefix takes a share λ of each token's attention and
# adds a value of its own.
#
# **Predict.** Divide the attention weights on the text with a prefix by those without it. What is
# the same for all letters of the text? Is it also so for LoRA on q?
#
# <details><summary>Answer</summary>
# The ratio is 1 − λ, the same for all letters that a token sees. LoRA changes q, and its ratios
# differ from letter to letter.
# </details>

# %%
layer = base["model"]["layers"]["0"]
x = base["model"]["embed_tokens"]["weight"][tokens]
h = layers.rms_norm(x, layer["input_layernorm"]["weight"], config.rms_norm_eps)
q = layers.linear(h, layer["self_attn"]["q_proj"])
key = layers.linear(h, layer["self_attn"]["k_proj"])
angles = layers.rope_cos_sin(np.arange(T)[None], config)
# A head is as wide as there are tokens here: with the identity as values, the output of attention
# is the attention weights.
identity = np.tile(np.eye(T, dtype="f4"), heads)[None]  # (1, T, H·hd)


def attention_weights(q, prefix=None):
    """Return the weights of the text, (T, H, S); prefix: keys and values, (n, K·hd) each."""
    cache = layers.LayerCache()
    if prefix is not None:
        cache.extend(*(p.reshape(1, len(p), -1, T) for p in prefix))  # before those of the text
    mixed = layers.attention(q, key, identity, angles, np.zeros((1, T), int), cache)
    return mixed.reshape(T, heads, T)


iters = short(200, 8)
settings = TrainConfig(iters=iters, batch_size=16, learning_rate=1e-2, mask_prompt=True)
lora_config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
adapters, _ = minilora.get_peft_model(base, lora_config, rng=0)
examples, _ = data.encode_rows(data.load_rows("questions", "train"), tokenizer, settings)
adapters, _ = minilora.train(adapters, base, examples, config, settings)
q_proj = get(overlay(base, adapters), "model.layers.0.self_attn.q_proj")

p_k = np.random.default_rng(0).standard_normal((8, key.shape[-1])).astype("f4")
plain = attention_weights(q)
prefixed = attention_weights(q, (p_k, np.zeros_like(p_k)))
adapted = attention_weights(layers.linear(h, q_proj))


def ratios(changed):
    """Return changed over plain weights, (T, H, S); NaN where a token sees nothing."""
    seen = np.tril(np.ones((T, T), bool))[:, None]
    return np.where(seen, changed / np.where(seen, plain, 1), np.nan)


def variation(changed):
    """Return by how much the ratio varies over the letters that a token sees, the largest."""
    ratio = ratios(changed)
    return np.nanmax(np.nanmax(ratio, axis=-1) / np.nanmin(ratio, axis=-1)) - 1


share = 1 - prefixed.sum(axis=-1)  # λ per token and head
print(f"the prefix takes {share.min():.2f} to {share.max():.2f} of the attention")
print(f"ratios vary by {variation(prefixed):.1e} with a prefix, {variation(adapted):.1e} with LoRA")

# %%
head = share[-1].argmax()  # the head in which the prefix takes most
title = "Attention weights of the last token, changed over unchanged"
with figure("prefix_ratio", "letter of the text", "ratio of weights", title) as axes:
    axes.plot(ratios(prefixed)[-1, head], marker="o", label="with a prefix", **plot.LINES[1])
    axes.plot(ratios(adapted)[-1, head], marker="s", label="with LoRA on q", **plot.LINES[0])
    axes.set_xticks(range(T), tokenizer.decode(list(tokens[0])).replace(" ", "_"))
    axes.set(ylim=(0, None))
    axes.legend(frameon=False, loc="upper right")

# %% [markdown]
# ![The ratio is constant with a prefix and differs from letter to letter with
# LoRA](../../../figures/prefix_ratio.png)
#
# So within one layer, a prefix cannot move attention from one letter to another, and LoRA on q can
# (Petrov et al. 2024). This may be a reason why virtual tokens learn slowly. It does not prove that
# they cannot learn the task: the layer above gets another input and may attend elsewhere because of
# it.

# %%
# Checks
# exp and the sums are in float32: an error of a few units in the last place, times scores of ten
assert variation(prefixed) < 1e-4, "with a prefix, the ratio must be one number"
assert 0.1 < share.max() < 1, "the prefix must take a part of the attention"
assert QUICK or variation(adapted) > 0.1, "with LoRA on q, the ratio must differ"

# %% [markdown]
# ## More steps, more tokens, another start
#
# **Predict.** Four times the steps, four times the tokens, or a start from rows of the vocabulary
# instead of N(0, 1) numbers: which of them helps a prompt?
#
# <details><summary>Answer</summary>
# More steps and more tokens together: only with both is the loss below 0.6 times that of a guess.
# The vocabulary is the better start, by the loss (16 tokens, 800 steps).
# </details>

# %%
sweep = read_sweep("virtual_tokens")
KEYS = ("method", "task", "tokens", "iters", "start")
kinds = list(dict.fromkeys(tuple(row[name] for name in KEYS) for row in sweep))


def column(name, *kind):
    """Return a column of the runs of one kind, one number per seed; kind: the values of KEYS."""
    return np.array(of(sweep, name, **dict(zip(KEYS, kind))))


rows = []
for method, task, n, iters, start in kinds:
    kind = (method, task, n, iters, start)
    loss = "  ".join(f"{x:.3f}" for x in column("loss", *kind))
    exact = "  ".join(f"{100 * x:.1f}" for x in column("exact_match", *kind))
    rows.append([method, task, int(n), int(iters), start, loss, exact])
table(["method", "task", "tokens", "steps", "start", "loss, two seeds", "exact (%)"], rows)
H = sum(np.log(len(x)) for x in (tasks.NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)) / 23
print(f"form known, content guessed (the study `prompts_and_prefixes`): {H:.3f}")

# %% [markdown]
# With more steps alone, 16 tokens stay above this loss. With more tokens alone (200 steps), 64 do
# not fall 5 % below it. 64 tokens in 800 steps fall more than 40 % below it and answer about one
# question in eight on average (`micro`, two seeds). LoRA at r = 2 answers more than nine of ten on
# average after 200 steps (the study [Other methods than LoRA](the_siblings.py)).

# %%
# Checks
few, many, normal = (
    ("prompt", "questions", n, 800, start)
    for n, start in ((16, "vocabulary"), (64, "vocabulary"), (16, "normal"))
)
assert column("loss", *few).min() > H, "more steps alone must not be enough"
assert column("loss", "prompt", "questions", 64, 200, "vocabulary").min() > 0.95 * H, "nor tokens"
assert column("loss", *many).max() < 0.6 * H, "more steps and more tokens must help"
assert column("loss", *few).max() < column("loss", *normal).min(), "the vocabulary must be better"
assert abs(column("exact_match", *many).mean() - 1 / 8) < 0.02, "one in eight must be right"
assert np.mean(of(read_sweep("siblings"), "exact_match", method="lora")) > 0.9, "LoRA: nine of ten"
if not QUICK:  # two runs of the sweep again, told apart from each other
    short_runs = [("prompt", "questions", n, 200, "vocabulary") for n in (16, 64)]
    for kind, other in (short_runs, short_runs[::-1]):
        method, task, n, steps, start = kind
        again = virtual_tokens.run(virtual_tokens.Job(method, n, steps, task, start))["loss"]
        own = column("loss", *kind)
        assert agrees(again, own, column("loss", *other)), f"{kind}: {again}, in the sweep {own}"
for kind in kinds:
    if "who" in kind:
        assert (column("exact_match", *kind) == 1).all(), "the base's own skill must be selected"

# %% [markdown]
# ## What was shown
#
# In its layer, a prefix changes all attention weights of a token on the text by one factor. With
# more steps and more tokens, a prompt learned a part of this task.
#
# **What to try.**
#
# 1. `standard_normal((8, ...))`: use 64 keys. Which share do they take?
# 2. `lora_config`: train with `target_modules=["v_proj"]`. How much do the ratios vary then?
# 3. `layers"]["0"]`: take layer 1, with an h that is computed with and without the prefix in
#    layer 0. Is the ratio still constant?
#
# **Where to stop with a debugger.** `prefix.self_attention` at `cache.extend` (the prefix enters
# every layer here); `layers.attention_mask` (every token sees it).
#
# **Exercises.** prefix, attention.
#
# **Further reading.** Li and Liang 2021, *Prefix-Tuning*:
# [arXiv:2101.00190](https://arxiv.org/abs/2101.00190). He et al. 2022:
# [arXiv:2110.04366](https://arxiv.org/abs/2110.04366). Petrov et al. 2024, *When Do Prompting and
# Prefix-Tuning Work?*: [arXiv:2310.19698](https://arxiv.org/abs/2310.19698).
