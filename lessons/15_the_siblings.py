# %% [markdown]
# # 15. The siblings
#
# **The question.** LoRA is one way to train little beside a frozen model. What do the others train,
# what do they learn and forget at one budget, and why do some of them learn nothing here?
#
# Adapters (bottlenecks), prefix, prompt, P-tuning, BitFit, IA³ and DoRA all fit the sentence of
# lesson 0: a method is the names of its leaves, how they start, and the one line that reads them.
#
# ![Eight ways to adapt a layer: what each trains, and the equation. LoRA, DoRA, IA3, bottleneck,
# prefix, prompt, BitFit and full fine-tuning.](../figures/drawings/methods.svg)
#
# Time: half a minute. You need: lessons 0 and 2; for the reason in the middle, attention.

# %%
import numpy as np
from common import QUICK, figure, read_sweep, short, table
from sweeps import compare
from sweeps import virtual_tokens as sweep

import minilora
from minilora import data, layers
from minilora.data import tasks
from minilora.evaluation import metrics, plot
from minilora.methods.operations import Prefix
from minilora.tree import flatten, num_parameters

config, base, tokenizer = minilora.load("micro")
tokens = np.array([tokenizer.encode("Ada keeps a pink kite in the barn. Who, what, where?")])

# %% [markdown]
# ## One budget
#
# `compare.TABLE` has a row for each method. Where a method has a size, the size is the one whose
# count is nearest to 5,472, which is LoRA on all projections at r = 2.
#
# **Predict:** which of them compute the base's function, bit for bit, before the first step? Which
# cannot, however they start?

# %%
L, V = config.num_hidden_layers, config.vocab_size
d, f = config.hidden_size, config.intermediate_size
k = config.num_key_value_heads * config.head_dim
COUNTS = {  # the method's size (r, virtual tokens, width) -> trained parameters
    "lora": lambda r: L * r * (9 * d + 2 * k + 3 * f),  # r(in + out), seven projections
    "dora": lambda r: L * r * (9 * d + 2 * k + 3 * f) + L * (3 * d + 2 * k + 2 * f),
    "bottleneck": lambda m: 2 * L * (2 * d * m + m + d),
    "prefix": lambda n: 2 * L * n * k,
    "prompt": lambda n: n * d,
    "p-tuning": lambda n: n * d + 3 * d * d + 3 * d,
    "ia3": lambda _: L * (2 * k + f),
    "bitfit": lambda _: L * (3 * d + 2 * k + 2 * f),
    "norm": lambda _: (2 * L + 1) * d,
    "head": lambda _: V * d,
    "full": lambda _: V * d + L * (2 * d * d + 2 * k * d + 3 * d * f) + (2 * L + 1) * d,
}
bare = minilora.forward({}, base, tokens, config)
lines, away = [], {}
for name, entry in compare.TABLE.items():
    method = compare.sized(entry, base, compare.BUDGET)
    adapters, frozen = compare.start(entry, base, method)
    size = getattr(method, entry.size or "num_virtual_tokens")
    assert num_parameters(adapters) == COUNTS[entry.method](size), name
    logits = minilora.forward(adapters, frozen, tokens, config)
    away[name] = np.abs(logits - bare).max() / np.abs(bare).max()
    leaf = next(iter(flatten(adapters))).replace("prompt_encoder", "prompt_encoder ").split()[0]
    lines.append([name, num_parameters(adapters), f"{away[name]:.1e}", leaf.rpartition(".")[2]])
table(["method", "trained", "from the base", "a leaf"], lines)

virtual = {"prefix", "prompt", "p-tuning"}
assert {name for name, x in away.items() if x > 0} == virtual | {"pissa"}
assert away["pissa"] < 1e-5 and min(away[name] for name in virtual) > 0.1

# %% [markdown]
# A zero (LoRA's B, the bottleneck's second matrix, BitFit's biases) or a one (IA³; DoRA's m/‖W‖ at
# first) gives the base exactly. PiSSA takes W apart and adds it up again: the base, but for
# rounding. Virtual tokens are there from the start, and every token attends to them: with any rows
# that a draw gives, it is another function. They start by disturbing.
#
# ## What they learn, and what they forget
#
# Each method at the best rate of a sweep of its own, 200 steps, three seeds; "own text" is the loss
# on the base's own notes (0.205 before). The runs are in `sweeps/siblings.csv`.
#
# **Predict:** who forgets most? Does a method that learns less forget less?

# %%
rows = read_sweep("siblings")
by_method = {name: [row for row in rows if row["method"] == name] for name in compare.TABLE}


def values(method, name):
    """The numbers of a method's seeds."""
    return np.array([row[name] for row in by_method[method]])


def spread(x, digits):
    """Their mean and deviation."""
    return f"{x.mean():.{digits}f} ± {x.std(ddof=1):.{digits}f}"


table(
    ["method", "trained", "held-out loss", "exact, %", "own text"],
    [[name, int(values(name, "trained")[0]), spread(values(name, "loss"), 3),
      spread(100 * values(name, "exact_match"), 0), spread(values(name, "notes_after"), 2)]
     for name in by_method],
)  # fmt: skip

low_rank = ("lora", "lora+", "pissa", "dora")
worst = max(values(x, "loss").max() for x in low_rank)  # of any seed
for name in set(compare.TABLE) - {*low_rank, "full"}:
    assert values(name, "loss").mean() > worst and values(name, "exact_match").mean() < 0.3
assert all(values(name, "exact_match").max() == 0 for name in virtual)
forgot = {x: values(x, "notes_after") - values(x, "notes_before") for x in ("full", "lora")}
assert 2.5 < forgot["full"].mean() / forgot["lora"].mean() < 4
assert forgot["full"].min() > 2 * forgot["lora"].max()
assert values("prefix", "notes_after").min() > values("bottleneck", "notes_after").max() + 1

# %% [markdown]
# Three things to take from it, and one to leave.
#
# - At this size low-rank updates learn the task, a bottleneck begins to, and the others are far.
#   Among themselves three seeds do not order the low-rank ones: DoRA alone goes from a third to
#   nearly all right.
# - Full fine-tuning learns best and forgets about three times as much as LoRA.
# - To leave: "what learns less forgets less". The prefix gets no answer right and is the farthest
#   from the base's own text. Forgetting is a matter of how far the function is moved, and a row of
#   N(0, 1) in every layer, trained at a rate of 0.5, moves it far.
#
# And "forgets" is a strong word for what an argument does: leave the adapter out, and the base is
# there, bit for bit (checked below; PiSSA changes the frozen tree, so there take the base itself).
#
# A slice of the sweep, live:

# %%
live = compare.run_one(compare.Job("lora", seed=0, iters=short(200, 5)))
if not QUICK:
    saved = by_method["lora"][0]
    # other processors round otherwise, and 200 steps magnify it: within the seeds' range
    assert abs(live["loss"] - saved["loss"]) < 0.03
    assert abs(live["exact_match"] - saved["exact_match"]) < 0.25

# %% [markdown]
# ## Why do virtual tokens learn nothing here?
#
# Prompt and prefix end at 0.43 nats a token, in every seed, at no exact match at all. That number
# is not just any.
#
# **Predict:** what is the loss of a model that knows perfectly what an answer looks like, and has
# no idea which name, colour, thing and place this one is about?
#
#     H = (ln 24 + ln 8 + ln 24 + ln 8) / 23 = 10.5 / 23     nats, over 23 tokens
#
# since each is a fair draw from so many (`tasks.py`), and an answer has 22 letters and an end.

# %%
draws = (tasks.NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)
answer = len(tasks.ANSWER.format(name="Ada", colour="pink", thing="kite", place="barn")) + 1
H = sum(np.log(len(words)) for words in draws) / answer
print(f"form known, content guessed: {H:.3f} nats a token")
print("prompt", values("prompt", "loss"), "prefix", values("prefix", "loss"))
assert answer == 23 and abs(H - 0.457) < 1e-3
assert np.abs(values("prompt", "loss") - H).max() < 0.04
assert np.abs(values("prefix", "loss") - H).max() < 0.1

# %% [markdown]
# They have learnt the form and nothing else. Token by token, beside LoRA:

# %%
STEPS = short(200, 8)
runs = {
    "LoRA, r = 2": sweep.Job("lora", 2, STEPS),
    "prompt, 64 tokens": sweep.Job("prompt", 64, STEPS),
    "prompt, 16 tokens": sweep.Job("prompt", 16, STEPS),
}
found = {name: sweep.train(job) for name, job in runs.items()}
for run in found.values():  # nothing was forgotten for good
    assert np.array_equal(minilora.forward({}, run[1], tokens, config), bare)


def by_token(adapters, frozen, valid):
    """The mean loss at each of an answer's tokens, (23,), in nats."""
    batch = data.collate([[example] for example in valid])
    ops = minilora.operations(adapters, frozen)
    nll = metrics.token_scores(adapters, frozen, batch, config, ops)["nll"]
    return nll.reshape(-1, answer).mean(axis=0)


form = np.array([letter in " ,.|" for letter in " Ada, pink kite, barn.|"])  # | is the end
at = {name: by_token(run[0], run[1], run[3]) for name, run in found.items()}
table(
    ["nats an answer", "form", "content", "a guess"],
    [[name, f"{x[form].sum():.2f}", f"{x[~form].sum():.2f}", f"{answer * H:.2f}"]
     for name, x in at.items()],
)  # fmt: skip
if not QUICK:
    prompted, lora = at["prompt, 64 tokens"], at["LoRA, r = 2"]
    assert prompted[form].sum() < 1 and prompted[~form].sum() > 0.8 * answer * H
    assert lora[~form].sum() < 0.3 * answer * H
    saved = next(r for r in read_sweep("virtual_tokens") if r["tokens"] == 64)
    assert abs(prompted.mean() - saved["loss"]) < 0.05  # the slice, and the CSV's first such row

# %% [markdown]
# Is it the form alone that a prompt can teach? No: what the base can do already, a prompt can call
# for. After a sentence, the base says "Who? Ada." a third of the time, and after it stops a third
# of the time, which makes 2·ln 3 / 11 nats a token. Ask a prompt to make it say always that:
#
# **Predict:** 16 virtual tokens, 200 steps. Will the name be right, as no prompt got it above?

# %%
who = sweep.train(sweep.Job("prompt", 16, short(200, 8), task="who"))
before = minilora.evaluate({}, base, who[3], config)
after = minilora.evaluate(who[0], who[1], who[3], config)
print(f"bare base: {before['loss']:.3f} nats, exact match {before['exact_match']:.2f}")
print(f"prompted:  {after['loss']:.3f} nats, exact match {after['exact_match']:.2f}")
assert abs(before["loss"] - 2 * np.log(3) / 11) < 0.02 and before["exact_match"] < 0.05
if not QUICK:
    assert after["exact_match"] > 0.8 and after["loss"] < 0.8 * before["loss"]

with figure(
    "virtual-tokens", "optimizer step", "training loss (nats a target token)",
    ["a new question", "what the base does already"], columns=2, width=8.4,
) as panels:  # fmt: skip
    for (name, run), style in zip(found.items(), plot.LINES):
        losses = [row["loss"] for row in run[2]]
        panels[0].plot(range(1, len(losses) + 1), plot.smooth(losses, 8), label=name, **style)
    losses = [row["loss"] for row in who[2]]
    steps = range(1, len(losses) + 1)
    panels[1].plot(steps, plot.smooth(losses, 8), label="prompt, 16 tokens", **plot.LINES[2])
    for axes, level, label in zip(
        panels, (H, before["loss"]), ("form known, content guessed", "the base without a prompt")
    ):
        axes.axhline(level, color=plot.GREY, linewidth=1.5, linestyle=(0, (1, 1)), label=label)
        axes.set_yscale("log")
        axes.legend(frameon=False, loc="upper right", fontsize=8)

# %% [markdown]
# ![Prompts stop where the form is known; LoRA goes on](../figures/virtual-tokens.png)
#
# Two hundred steps are enough to call for a skill, name and all, and not to build one. Attention
# says why it is hard. With keys and values (P_k, P_v) before those of the text,
#
#     softmax(q [P_k; K]ᵀ) [P_v; V] = (1 − λ(q)) · softmax(q Kᵀ) V + λ(q) · softmax(q P_kᵀ) P_v
#
# (He et al. 2022, Sec. 3.1): in its own layer a prefix takes a share λ of each token's attention
# and adds something of its own. How a token shares out the rest among the words of the text does
# not change (Petrov et al. 2024). Copying a thing to where it is asked for *is* such a sharing-out.
#
# **Predict:** divide the attention weights with a prefix by those without. What is constant?

# %%
T = 16  # as many tokens as a head is wide, so that values of one token each read the weights out
node = base["model"]["layers"]["0"]
x = base["model"]["embed_tokens"]["weight"][tokens[:, :T]]
h = layers.rms_norm(x, node["input_layernorm"]["weight"], config.rms_norm_eps)
q, key = (layers.linear(h, {}, node["self_attn"][name]) for name in ("q_proj", "k_proj"))
starts = np.zeros((1, T), int)
angles = layers.rope_cos_sin(np.arange(T)[None], config)
identity = np.tile(np.eye(T, dtype="f4"), config.num_attention_heads)[None]  # (1, T, H·hd)


def weights(q, prefix=None):
    """The attention weights on the text: (T, H, S)."""
    cache = None if prefix is None else Prefix(*prefix)  # its keys come before those of the tokens
    mixed = layers.attention(q, key, identity, angles, starts, cache)
    return mixed.reshape(T, config.num_attention_heads, T)


rng = np.random.default_rng(0)
p_k = rng.standard_normal((8, k)).astype("f4")
plain, prefixed = weights(q), weights(q, (p_k, np.zeros_like(p_k)))
adapters, frozen = found["LoRA, r = 2"][:2]
self_attn = [tree["model"]["layers"]["0"]["self_attn"]["q_proj"] for tree in (adapters, frozen)]
adapted = weights(layers.linear(h, *self_attn))


def scatter(changed):
    """How much the ratio to the plain weights varies over the words that a token sees."""
    seen = np.tril(np.ones((T, T)))[:, None] * np.ones_like(plain) > 0
    ratio = np.where(seen, changed / np.where(seen, plain, 1), np.nan)
    return np.nanmax(np.nanmax(ratio, -1) / np.nanmin(ratio, -1)) - 1


share = 1 - prefixed.sum(-1)  # λ of each token and head
print(f"the prefix takes {share.min():.2f} to {share.max():.2f} of the attention")
print(f"ratios vary by {scatter(prefixed):.1e} with it, by {scatter(adapted):.1e} with LoRA on q")
# exp and sums in float32: a few units in the last place each, times scores of size ten
assert scatter(prefixed) < 1e-4 and 0.1 < share.max() < 1
if not QUICK:
    assert scatter(adapted) > 0.1

# %% [markdown]
# So a prefix cannot look elsewhere, and LoRA on q can. That is a statement about one layer, though:
# the layer above gets another input, and may attend to something else because of it. It is a reason
# why virtual tokens are slow, no proof that they cannot. The rest of the sweep says how slow.
#
# **Predict:** four times the steps, four times the tokens, rows of the vocabulary or N(0, 1) to
# start from: which of them helps?

# %%
groups: dict = {}
for row in read_sweep("virtual_tokens"):
    key_of = tuple(row[name] for name in ("method", "task", "tokens", "iters", "start"))
    groups.setdefault(key_of, []).append((row["loss"], row["exact_match"]))
table(
    ["method", "task", "tokens", "steps", "start", "loss, two seeds", "exact, %"],
    [[m, task, int(n), int(i), start, "  ".join(f"{loss:.3f}" for loss, _ in some),
      "  ".join(f"{100 * exact:.1f}" for _, exact in some)]
     for (m, task, n, i, start), some in groups.items()],
)  # fmt: skip


def losses_of(*of):
    """The losses of a group's seeds."""
    return np.array([loss for loss, _ in groups[of]])


few, many = (losses_of("prompt", "questions", n, 800, "vocabulary") for n in (16, 64))
assert few.min() > H and many.max() < 0.6 * H  # more steps alone do not leave the plateau
assert few.max() < losses_of("prompt", "questions", 16, 800, "normal").min()
assert max(exact for _, exact in groups["prompt", "questions", 64, 800, "vocabulary"]) < 0.3
assert all(exact == 1 for of in groups if "who" in of for _, exact in groups[of])

# %% [markdown]
# Steps alone do not bring 16 tokens below the plateau; 64 tokens in 800 steps do leave it, and get
# one answer in eight right. The vocabulary is the better start, by little. It is slow, then, not
# impossible: a budget of 200 steps, which LoRA needs for the whole task, ends on the plateau.
#
# The rule of the field, that prompt tuning is for large models (Lester et al. 2021), has this in
# it: a large model has more skills that a prompt can call for. On `micro` it has one, and there a
# prompt of 768 numbers is right every time.
#
# **Where to stop with a debugger.** `MethodOps` in `methods/operations.py`: `linear` (DoRA, IA³
# and the bottleneck are an `if` of it: look at `list(trained)`), `embed` at `np.concatenate` (a
# prompt's rows go in; watch `starts`), and `Prefix.extend` at the same word (the prefix, in every
# layer; `layers.attention_mask` lets every token see it).
#
# **Exercises.** ia3, prefix, dora-norm, lora-count, attention.
