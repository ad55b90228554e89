# %% [markdown]
# # Prompts and prefixes
#
# **The question.** Prompt and prefix tuning end near one loss with every seed, with no right
# answer. What have they learned, what can they teach, and what can a prefix not change?
#
# ![Prompt tuning: trained vectors before the embeddings. Prefix tuning: trained keys and values in
# every layer](../../../figures/drawings/virtual_tokens.svg)
#
# **Continues:** [lesson 1](../../01_two_small_matrices.py).
#
# **Time:** a quarter of a minute to run, fifteen minutes to read. **You need:** the study [Other
# methods than LoRA](the_siblings.py), and attention.

# %%
import numpy as np

import minilora
from minilora import TrainConfig, data, layers
from minilora.data import tasks
from minilora.evaluation.metrics import token_scores
from minilora.lessons.helpers.common import QUICK, agrees, of, read_sweep, scores_of, short, table
from minilora.lessons.studies.methods import virtual_tokens_sweep as virtual_tokens
from minilora.lessons.studies.methods.virtual_tokens_sweep import Job
from minilora.model import with_adapters
from minilora.tree import get, num_parameters

model, tokenizer = minilora.load("micro")
config = model.config
siblings, sweep = read_sweep("siblings"), read_sweep("virtual_tokens")

# %% [markdown]
# ## The loss of knowing only the form
#
# Imagine a model that knows perfectly what an answer looks like, but not which name, colour, thing
# and place it is about. Each of them is a fair draw from a list (`tasks.py`): 24 names, 8 colours,
# 24 things and 8 places. An answer has 22 letters and an end, which makes 23 tokens.
#
# **Predict.** A model knows the form of an answer, but not the name, colour, thing and place (24,
# 8, 24 and 8 choices). An answer has 23 tokens. What is its loss, in nats per token?
#
# <details><summary>Answer</summary>
# H = (ln 24 + ln 8 + ln 24 + ln 8) / 23 = 10.5 / 23 = 0.457. (10.5 is tempting, but it is per
# answer.)
# </details>

# %%
lists = (tasks.FIRST_NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)
answer = " Ada, pink kite, barn."
tokens_per_answer = len(answer) + 1  # the end is a token
H = sum(np.log(len(words)) for words in lists) / tokens_per_answer
print(f"form known, content guessed: {H:.3f} nats per token")
losses = {name: np.array(of(siblings, "loss", method=name)) for name in ("prompt", "prefix")}
for name, of_seeds in losses.items():
    print(f"{name}, five seeds of the study `the_siblings`:", *(f"{loss:.3f}" for loss in of_seeds))

# %%
# Checks
sentence = tasks.ANSWER.format(name="Ada", colour="pink", thing="kite", place="barn")
assert len(sentence) + 1 == tokens_per_answer == 23, "an answer must have 23 tokens"
assert [len(words) for words in lists] == [24, 8, 24, 8], "the sizes of the lists"
assert abs(H - 0.457) < 1e-3, "the loss of knowing only the form"
assert np.abs(losses["prompt"] - H).max() < 0.04, "prompts must end near this loss"
assert np.abs(losses["prefix"] - H).max() < 0.1, "prefixes must end near this loss"

# %% [markdown]
# ## Token by token
#
# Now score the form (punctuation and the end of an answer) and the content (the words) separately.
#
# **Predict.** How many nats per answer does a prompt spend on the form, how many on the content?
#
# <details><summary>Answer</summary>
# With 64 tokens, less than 1 nat on the form. On the content it is within a fifth of a guess, 10.5
# nats. (Two equal shares are tempting; but the form is the same in every row.)
# </details>


# %%
def nats_per_token(adapters):
    """Return the mean loss at each token of an answer, (23,)."""
    rows = data.load_rows("questions", "valid")
    examples, _ = data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))
    nll = token_scores(with_adapters(adapters, model), examples)["nll"]
    return nll.reshape(-1, tokens_per_answer).mean(axis=0)


text = "Ada keeps a pink kite in the barn. Who, what, where?"
bare = minilora.forward({}, model, [tokenizer.encode(text)])
steps, is_form = short(200, 8), np.array([letter in " ,.|" for letter in answer + "|"])  # | ends it
runs, form, content, cells = {}, {}, {}, []
for name, job in {
    "LoRA, r = 2": Job("lora", 2, steps),
    "prompt, 64 tokens": Job("prompt", 64, steps),
    "prompt, 16 tokens": Job("prompt", 16, steps),
}.items():
    runs[name] = virtual_tokens.trained(job)
    nats = nats_per_token(runs[name].adapters)
    form[name], content[name] = nats[is_form].sum(), nats[~is_form].sum()
    cells.append([name, *(f"{x:.2f}" for x in (form[name], content[name], tokens_per_answer * H))])
table(["nats per answer", "form", "content", "a guess of the content"], cells)

# %%
# Checks
after = minilora.forward({}, model, [tokenizer.encode(text)])
assert np.array_equal(after, bare), "without an adapter, the base must be there, bit for bit"
if not QUICK:
    guess = tokens_per_answer * H
    assert form["prompt, 64 tokens"] < 1, "the prompt must know the form"
    assert 0.8 < content["prompt, 64 tokens"] / guess < 1.2, "the prompt must guess the content"
    assert content["LoRA, r = 2"] < 0.3 * guess, "LoRA must know most of the content"
    cases = {"method": "prompt", "iters": 200, "task": "questions"}
    for n, other in ((64, 16), (16, 64)):
        own, others = (of(sweep, "loss", tokens=size, **cases) for size in (n, other))
        again = runs[f"prompt, {n} tokens"].scores["loss"]
        assert agrees(again, own, others), f"{n} tokens: {again}, in the sweep {own}"

# %% [markdown]
# ## A skill that the base has
#
# Can a prompt select what the base can do already? In the base's language, "Who? Ada." follows a
# sentence with probability 1/3, and the text ends there with probability 1/3: 2·ln 3 / 11 nats per
# token. Now train a prompt so that it always says this (`rows` in `virtual_tokens_sweep.py`).
#
# **Predict.** A prompt of 16 virtual tokens is trained for 200 steps, so that the base always gives
# the short answer that it gives in one of nine cases. Will the name be right, although a prompt
# only guessed the words of a new form of answer?
#
# <details><summary>Answer</summary>
# Yes, in more than four of five rows. (No is tempting: 768 numbers could not teach the words of a
# new form. But here they only select what the base says in one of nine cases.)
# </details>

# %%
who = virtual_tokens.trained(Job("prompt", 16, steps, "who"))
before = scores_of({}, model, virtual_tokens.rows("who", "valid"))
for name, score in (("base", before), ("prompt", who.scores)):
    print(f"{name}: {score['loss']:.3f} nats per token, exact match {score['exact_match']:.2f}")

# %%
# Checks
assert num_parameters(who.adapters) == 16 * config.hidden_size == 768, "a prompt of 768 numbers"
assert abs(before["loss"] - 2 * np.log(3) / 11) < 0.02, "the base's loss must be 2·ln 3 / 11"
assert before["exact_match"] < 0.05, "the base alone must rarely say exactly this"
if not QUICK:
    assert who.scores["exact_match"] > 0.8, "the prompt must get nearly every name right"
    assert who.scores["loss"] < 0.8 * before["loss"], "the prompt must lower the loss"
    own = of(sweep, "loss", method="prompt", task="who")
    assert agrees(who.scores["loss"], own), f"{who.scores['loss']}, in the sweep {own}"

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
# differ from letter to letter. (Different ratios are tempting for the prefix, too: its keys answer
# each q differently. But λ depends on q, not on the letter that is seen.)
# </details>

# %%
node = model.base["model"]
layer = node["layers"]["0"]
heads, T = config.num_attention_heads, 16
x = layers.embed(np.array([tokenizer.encode(text)[:T]]), node, config)
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


p_k = np.random.default_rng(0).standard_normal((8, key.shape[-1])).astype("f4")
plain = attention_weights(q)
prefixed = attention_weights(q, (p_k, np.zeros_like(p_k)))
with_lora = with_adapters(runs["LoRA, r = 2"].adapters, model).base
adapted = attention_weights(layers.linear(h, get(with_lora, "model.layers.0.self_attn.q_proj")))


def variation(changed):
    """Return by how much changed over plain weights varies over the letters seen, the largest."""
    seen = np.tril(np.ones((T, T), bool))[:, None]
    ratio = np.where(seen, changed / np.where(seen, plain, 1), np.nan)
    return np.nanmax(np.nanmax(ratio, axis=-1) / np.nanmin(ratio, axis=-1)) - 1


share = 1 - prefixed.sum(axis=-1)  # λ per token and head
print(f"the prefix takes {share.min():.2f} to {share.max():.2f} of the attention")
print(f"ratios vary by {variation(prefixed):.1e} with a prefix, {variation(adapted):.1e} with LoRA")

# %% [markdown]
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
# The vocabulary is the better start, by the loss (16 tokens, 800 steps). ("More steps" is tempting
# if one thinks that a prompt only learns slowly.)
# </details>

# %%
KEYS = ("method", "task", "tokens", "iters", "start")


def column(name, *kind):
    """Return a column of the runs of one kind, one number per seed; kind: the values of KEYS."""
    return np.array(of(sweep, name, **dict(zip(KEYS, kind))))


cells = []
kinds = list(dict.fromkeys(tuple(row[name] for name in KEYS) for row in sweep))
for method, task, n, iters, start in kinds:
    case = method, task, n, iters, start
    loss = "  ".join(f"{x:.3f}" for x in column("loss", *case))
    exact = "  ".join(f"{100 * x:.1f}" for x in column("exact_match", *case))
    cells.append([method, task, int(n), int(iters), start, loss, exact])
table(["method", "task", "tokens", "steps", "start", "loss, two seeds", "exact (%)"], cells)
print(f"form known, content guessed: {H:.3f}")

# %% [markdown]
# With more steps alone, 16 tokens stay above the loss of a guess. With more tokens alone (200
# steps), 64 do not fall 5 % below it. 64 tokens in 800 steps fall more than 40 % below it and
# answer about one question in eight on average (`micro`, two seeds). LoRA at r = 2 answers more
# than nine of ten on average after 200 steps (the study [Other methods than
# LoRA](the_siblings.py)).

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
assert np.mean(of(siblings, "exact_match", method="lora")) > 0.9, "LoRA: nine of ten"
for kind in kinds:
    if "who" in kind:
        assert (column("exact_match", *kind) == 1).all(), "the base's own skill must be selected"

# %% [markdown]
# ## What was shown
#
# In 200 steps on `micro` (0.1 million parameters), a prompt selected a skill of the base, and did
# not learn to answer a new question. In its layer, a prefix changes all attention weights of a
# token on the text by one factor. With more steps and more tokens, a prompt learned a part of this
# task.
#
# **What to try.**
#
# 1. `is_form`: print `nats_per_token` letter by letter. Which letters are guessed?
# 2. `rows` in `virtual_tokens_sweep.py`: let the answer be " Where? ..." (the place). Is it a skill
#    of the base, too?
# 3. `layers"]["0"]`: take layer 1, with an h that is computed with and without the prefix in
#    layer 0. Is the ratio still constant?
#
# **Where to stop with a debugger.** `model.hidden_states` at `np.concatenate` (a prompt is
# inserted); `layers.with_prefix` at `cache.extend` (the prefix enters every layer here);
# `layers.attention_mask` (every token sees it).
#
# **Exercises.** one-file-loss, one-file-attention, prefix.
#
# **Further reading.** Lester et al. 2021 (prompts):
# [arXiv:2104.08691](https://arxiv.org/abs/2104.08691). Liu et al. 2021 (P-tuning):
# [arXiv:2103.10385](https://arxiv.org/abs/2103.10385). Li and Liang 2021, *Prefix-Tuning*:
# [arXiv:2101.00190](https://arxiv.org/abs/2101.00190). He et al. 2022:
# [arXiv:2110.04366](https://arxiv.org/abs/2110.04366). Petrov et al. 2024, *When Do Prompting and
# Prefix-Tuning Work?*: [arXiv:2310.19698](https://arxiv.org/abs/2310.19698).
