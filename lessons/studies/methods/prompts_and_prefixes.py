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
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import QUICK, agrees, of, scores_of, short
from minilora.lessons.helpers.rollouts import log_softmax
from minilora.lessons.studies.methods import virtual_tokens_sweep as virtual_tokens
from minilora.lessons.studies.methods.virtual_tokens_sweep import Job
from minilora.model import with_adapters
from minilora.tree import get, num_parameters

model, tokenizer = minilora.load("micro")
config = model.config
siblings, sweep = common.read_sweep("siblings"), common.read_sweep("virtual_tokens")

# %% [markdown]
# ## The loss of knowing only the form
#
# Imagine a model that knows perfectly what an answer looks like, but not which name, colour, thing
# and place it is about. Each of them is a fair draw from a list (`tasks.py`).
#
# **Predict.** The lists have 24 names, 8 colours, 24 things and 8 places. An answer has 22 letters
# and an end, which makes 23 tokens. What is the loss of this model, in nats per token?

# %%
lists = (tasks.FIRST_NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)
answer = " Ada, pink kite, barn."
guess = sum(np.log(len(words)) for words in lists)  # nats per answer
H = guess / (len(answer) + 1)  # the end is a token
print(f"form known, content guessed: {guess:.1f} nats per answer, {H:.3f} per token")
losses = {name: np.array(of(siblings, "loss", method=name)) for name in ("prompt", "prefix")}
for name, found in losses.items():
    print(f"{name}, five seeds of the study `the_siblings`:", *(f"{nats:.3f}" for nats in found))

# %% [markdown]
# **Answer.** H = (ln 24 + ln 8 + ln 24 + ln 8) / 23 = 10.5 / 23 = 0.457. Prompts and prefixes end
# near it.
#
# ## Token by token
#
# Now score the form (punctuation and the end of an answer) and the content (the words) separately.
#
# **Predict.** How many nats per answer does a prompt spend on the form, how many on the content?

# %%
trained = virtual_tokens.trained(Job("prompt", 64, short(200, 8)))
settings = TrainConfig(mask_prompt=True)
examples, _ = data.encode_rows(data.load_rows("questions", "valid"), tokenizer, settings)
nll = token_scores(with_adapters(trained.adapters, model), examples)["nll"]
per_token = nll.reshape(-1, len(answer) + 1).mean(axis=0)  # of an answer, (23,)
is_form = np.array([letter in " ,.|" for letter in answer + "|"])  # | ends it
form, content = per_token[is_form].sum(), per_token[~is_form].sum()
print(f"a prompt of 64 tokens, nats per answer: form {form:.2f}, content {content:.2f}")

# %% [markdown]
# **Answer.** Less than 1 nat on the form, which is the same in every row. On the content, it is
# within a fifth of a guess, 10.5 nats.
#
# ## A skill that the base has
#
# Can a prompt select what the base can do already? In the base's language, "Who? Ada." follows a
# sentence with probability 1/3, and the text ends there with probability 1/3: 2·ln 3 / 11 nats per
# token. Now train a prompt so that it always says this (`rows` in `virtual_tokens_sweep.py`).
#
# **Predict.** A prompt of 16 virtual tokens is trained for 200 steps, so that the base always gives
# the short answer that it gives in one of nine cases. Will the name be right, although a prompt
# only guessed the words of a new form of answer?

# %%
who = virtual_tokens.trained(Job("prompt", 16, short(200, 8), "who"))
before = scores_of({}, model, virtual_tokens.rows("who", "valid"))
for name, score in (("base", before), ("prompt", who.scores)):
    print(f"{name}: {score['loss']:.3f} nats per token, exact match {score['exact_match']:.2f}")

# %% [markdown]
# **Answer.** Yes, in more than four of five rows. 768 numbers could not teach the words of a new
# form. But here they only select what the base says in one of nine cases.
#
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
# Below is the first head of `micro`, without its mask and its rotary positions.
#
# **Predict.** Divide the attention weights on the text with a prefix by those without it. What is
# the same for all letters of the text? Is it also so for LoRA on q?

# %%
text = "Ada keeps a pink kite in the barn."
layer = model.base["model"]["layers"]["0"]
x = layers.embed(np.array(tokenizer.encode(text)), model.base["model"], config)
h = layers.rms_norm(x, layer["input_layernorm"]["weight"], config.rms_norm_eps)
head = slice(config.head_dim)  # the first one
q, keys = (layers.linear(h, layer["self_attn"][name])[:, head] for name in ("q_proj", "k_proj"))
prefix = np.random.default_rng(0).standard_normal((8, config.head_dim))
with_lora = with_adapters(common.lora_adapters(model, b=1), model).base  # random A and B
q_lora = layers.linear(h, get(with_lora, "model.layers.0.self_attn.q_proj"))[:, head]


def attention_weights(q, keys):
    """Return the weight of each key for each token, (T, S)."""
    return np.exp(log_softmax(q @ keys.T / np.sqrt(config.head_dim)))


def variation(weights):
    """Return by how much weights over plain weights vary over the letters, the largest."""
    ratio = weights / attention_weights(q, keys)
    return np.max(ratio.max(axis=-1) / ratio.min(axis=-1)) - 1


prefixed = attention_weights(q, np.concatenate([prefix, keys]))[:, len(prefix) :]
adapted = attention_weights(q_lora, keys)
share = 1 - prefixed.sum(axis=-1)  # λ per token
print(f"the prefix takes {share.min():.2f} to {share.max():.2f} of the attention")
print(f"ratios vary by {variation(prefixed):.1e} with a prefix, {variation(adapted):.1e} with LoRA")

# %% [markdown]
# **Answer.** The ratio is 1 − λ, the same for all letters that a token sees: λ depends on q, not on
# the letter that is seen. LoRA changes q, and its ratios differ from letter to letter.
#
# So within one layer, a prefix cannot move attention from one letter to another, and LoRA on q can
# (Petrov et al. 2024). This may be a reason why virtual tokens learn slowly. It does not prove that
# they cannot learn the task: the layer above gets another input and may attend elsewhere because of
# it.
#
# ## More steps, more tokens, another start
#
# **Predict.** Four times the steps, four times the tokens, or a start from rows of the vocabulary
# instead of N(0, 1) numbers: which of them helps a prompt?

# %%
# Table
loss = {}
for row in sweep:
    if (row["method"], row["task"]) == ("prompt", "questions"):
        case = int(row["tokens"]), int(row["iters"]), row["start"]
        loss.setdefault(case, []).append(row["loss"])
cells = [[*map(str, case), *(f"{x:.3f}" for x in seeds)] for case, seeds in loss.items()]
common.table(["virtual tokens", "steps", "start", "loss, seed 0", "seed 1"], cells)

# %% [markdown]
# **Answer.** More steps and more tokens together. With more steps alone, 16 tokens stay above the
# loss of a guess, 0.457. With more tokens alone, 64 do not fall 5 % below it. With both, the loss
# is below 0.6 times that of a guess, and about one question in eight is answered (`micro`, 0.1
# million parameters, two seeds). The vocabulary is the better start, by the loss.
#
# ## What was shown
#
# In 200 steps on `micro` (0.1 million parameters), a prompt selected a skill of the base, and did
# not learn to answer a new question. In its layer, a prefix changes all attention weights of a
# token on the text by one factor. With more steps and more tokens, a prompt learned a part of this
# task.
#
# **What to try.**
#
# 1. `per_token`: print it letter by letter. Which letters are guessed?
# 2. `rows` in `virtual_tokens_sweep.py`: let the answer be " Where? ..." (the place). Is it a skill
#    of the base, too?
# 3. `prefix`: multiply it by 10. How large is λ, and is the ratio still constant?
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

# %%
# Checks
sentence = tasks.ANSWER.format(name="Ada", colour="pink", thing="kite", place="barn")
assert sentence == answer and len(answer) + 1 == 23, "an answer must have 23 tokens"
assert [len(words) for words in lists] == [24, 8, 24, 8], "the sizes of the lists"
assert abs(H - 0.457) < 1e-3, "the loss of knowing only the form"
assert np.abs(losses["prompt"] - H).max() < 0.04, "prompts must end near this loss"
assert np.abs(losses["prefix"] - H).max() < 0.1, "prefixes must end near this loss"
assert num_parameters(who.adapters) == 16 * config.hidden_size == 768, "a prompt of 768 numbers"
assert abs(before["loss"] - 2 * np.log(3) / 11) < 0.02, "the base's loss must be 2·ln 3 / 11"
# exp and the sums are in float32: an error of a few units in the last place, times scores of ten
assert variation(prefixed) < 1e-4, "with a prefix, the ratio must be one number"
assert 0.1 < share.max() < 1, "the prefix must take a part of the attention"
assert variation(adapted) > 0.1, "with LoRA on q, the ratio must differ"
few, normal = loss[16, 800, "vocabulary"], loss[16, 800, "normal"]
assert min(few) > H, "more steps alone must not be enough"
assert min(loss[64, 200, "vocabulary"]) > 0.95 * H, "nor more tokens alone"
assert max(loss[64, 800, "vocabulary"]) < 0.6 * H, "more steps and more tokens must help"
assert max(few) < min(normal), "the vocabulary must be better"
exact = of(sweep, "exact_match", method="prompt", tokens=64, iters=800)
assert abs(np.mean(exact) - 1 / 8) < 0.02, "one in eight must be right"
if not QUICK:
    assert form < 1, "the prompt must know the form"
    assert 0.8 < content / guess < 1.2, "the prompt must guess the content"
    assert who.scores["exact_match"] > 0.8, "the prompt must get nearly every name right"
    cases = {"method": "prompt", "iters": 200}  # two runs of the sweep again
    own = of(sweep, "loss", tokens=64, task="questions", **cases)
    other = of(sweep, "loss", tokens=16, task="questions", **cases)
    assert agrees(trained.scores["loss"], own, other), f"{trained.scores['loss']}, not {own}"
    own = of(sweep, "loss", task="who", **cases)
    assert agrees(who.scores["loss"], own), f"{who.scores['loss']}, in the sweep {own}"
