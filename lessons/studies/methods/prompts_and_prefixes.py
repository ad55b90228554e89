# %% [markdown]
# # Prompts and prefixes
#
# **The question.** Prompt and prefix tuning end near one loss with every seed, with no right
# answer. What have they learned, and what can a prompt teach?
#
# ![Prompt tuning: trained vectors before the embeddings. Prefix tuning: trained keys and values in
# every layer](../../../figures/drawings/virtual_tokens.svg)
#
# **Continues:** [lesson 3](../../03_two_small_matrices.py).
#
# **Time:** a quarter of a minute to run, ten minutes to read. **You need:** the study [Other
# methods than LoRA](the_siblings.py).

# %%
import numpy as np

import minilora
from lessons.helpers.common import QUICK, agrees, figure, of, read_sweep, short, table
from minilora import LoraConfig, MethodConfig, TrainConfig, data, model
from minilora.data import tasks
from minilora.evaluation import metrics, plot
from minilora.tree import num_parameters

config, base, tokenizer = minilora.load("micro")
siblings, by_tokens = read_sweep("siblings"), read_sweep("virtual_tokens")
questions = {split: data.load_rows("questions", split) for split in ("train", "valid")}

# %% [markdown]
# ## The loss of knowing only the form
#
# Imagine a model that knows perfectly what an answer looks like, but not which name, colour, thing
# and place it is about. Each of them is a fair draw from a list (`tasks.py`): 24 names, 8 colours,
# 24 things and 8 places. An answer has 22 letters and an end, which makes 23 tokens.
#
# **Predict.** What is the loss of this model, in nats per token?
#
# <details><summary>Answer</summary>
# H = (ln 24 + ln 8 + ln 24 + ln 8) / 23 = 10.5 / 23 = 0.457.
# </details>

# %%
lists = (tasks.NAMES, tasks.COLOURS, tasks.THINGS, tasks.PLACES)
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
# nats.
# </details>


# %%
def train(method, size, rows):
    """Train LoRA at r = size, or a prompt of that many tokens; return (adapters, losses)."""
    steps, rate = short(200, 8), {"lora": 1e-2, "prompt": 1e-1}[method]
    settings = TrainConfig(iters=steps, batch_size=16, learning_rate=rate, mask_prompt=True)
    method_config = MethodConfig(method, num_virtual_tokens=size)
    if method == "lora":
        method_config = LoraConfig(r=size, lora_alpha=2 * size, target_modules="all-linear")
    adapters, _ = minilora.get_peft_model(base, method_config, rng=0)
    examples, _ = data.encode_rows(rows, tokenizer, settings)
    adapters, history = minilora.train(adapters, base, examples, config, settings)
    return adapters, [row["loss"] for row in history]


def encoded(rows):
    """Return the examples of rows, with the loss on the answers only."""
    return data.encode_rows(rows, tokenizer, TrainConfig(mask_prompt=True))[0]


def nats_per_token(adapters):
    """Return the mean loss at each token of an answer, (23,)."""
    ops = minilora.operations(adapters, base)
    params = model.parameters(adapters, base, ops)
    nll = metrics.token_scores(params, encoded(questions["valid"]), config, ops)["nll"]
    return nll.reshape(-1, tokens_per_answer).mean(axis=0)


ids = np.array([tokenizer.encode(questions["valid"][0]["prompt"])])
bare = minilora.forward({}, base, ids, config)
runs = {
    "LoRA, r = 2": train("lora", 2, questions["train"]),
    "prompt, 64 tokens": train("prompt", 64, questions["train"]),
    "prompt, 16 tokens": train("prompt", 16, questions["train"]),
}
is_form = np.array([letter in " ,.|" for letter in answer + "|"])  # | is the end
form, content, rows = {}, {}, []
for name, (adapters, _) in runs.items():
    nats = nats_per_token(adapters)
    form[name], content[name] = nats[is_form].sum(), nats[~is_form].sum()
    rows.append([name, f"{form[name]:.2f}", f"{content[name]:.2f}", f"{tokens_per_answer * H:.2f}"])
table(["nats per answer", "form", "content", "a guess of the content"], rows)

# %%
# Checks
after = minilora.forward({}, base, ids, config)
assert np.array_equal(after, bare), "without an adapter, the base must be there, bit for bit"
if not QUICK:
    prompt, guess = "prompt, 64 tokens", tokens_per_answer * H
    assert form[prompt] < 1, "the prompt must know the form"
    assert 0.8 < content[prompt] / guess < 1.2, "the prompt must guess the content"
    assert content["LoRA, r = 2"] < 0.3 * guess, "LoRA must know most of the content"
    cases = {"method": "prompt", "iters": 200, "task": "questions"}
    for n, other in ((64, 16), (16, 64)):
        name = f"prompt, {n} tokens"
        loss = (form[name] + content[name]) / tokens_per_answer
        own, others = (of(by_tokens, "loss", tokens=size, **cases) for size in (n, other))
        assert agrees(loss, own, others), f"{name}: {loss}, in the sweep {own}"

# %% [markdown]
# ## A skill that the base has
#
# Can a prompt select what the base can do already? In the base's language, "Who? Ada." follows a
# sentence with probability 1/3, and the text ends there with probability 1/3: 2·ln 3 / 11 nats per
# token. Now train a prompt so that it always says this.
#
# **Predict.** 16 virtual tokens, 200 steps. Will the name be right, although a prompt only guessed
# the words above?
#
# <details><summary>Answer</summary>
# Yes, in more than four of five rows.
# </details>


# %%
def who_only(rows):
    """Return the same sentences, to be continued by " Who? {name}."."""
    found = []
    for row in rows:
        sentence, name = row["prompt"].partition(" Who,")[0], row["prompt"].split()[0]
        found.append({"prompt": sentence, "completion": f" Who? {name}."})
    return found


who, losses_of_who = train("prompt", 16, who_only(questions["train"]))
held_out = encoded(who_only(questions["valid"]))
before = minilora.evaluate({}, base, held_out, config)
after = minilora.evaluate(who, base, held_out, config)
for name, score in (("base", before), ("prompt", after)):
    print(f"{name}: {score['loss']:.3f} nats per token, exact match {score['exact_match']:.2f}")

# %%
titles = ["a new question", "a skill of the base"]
xlabel, ylabel = "optimizer step", ["training loss (nats per token)", ""]
with figure("virtual-tokens", xlabel, ylabel, titles, columns=2, width=8.4) as (new, old):
    for (name, (_, losses_of)), style in zip(runs.items(), plot.LINES):
        new.plot(plot.smooth(losses_of, 8), label=name, **style)
    old.plot(plot.smooth(losses_of_who, 8), label="prompt, 16 tokens", **plot.LINES[2])
    for axes, level, name in ((new, H, "form known"), (old, before["loss"], "the base, no prompt")):
        axes.axhline(level, color=plot.GREY, linestyle=(0, (1, 1)), label=name)
        axes.set_yscale("log")
        axes.legend(frameon=False, loc="upper right", fontsize=8)

# %% [markdown]
# ![Prompts stop where the form is known, and LoRA goes on](../../../figures/virtual-tokens.png)

# %%
# Checks
assert num_parameters(who) == 16 * config.hidden_size == 768, "a prompt of 768 numbers"
assert abs(before["loss"] - 2 * np.log(3) / 11) < 0.02, "the base's loss must be 2·ln 3 / 11"
assert before["exact_match"] < 0.05, "the base alone must rarely say exactly this"
if not QUICK:
    assert after["exact_match"] > 0.8, "the prompt must get nearly every name right"
    assert after["loss"] < 0.8 * before["loss"], "the prompt must lower the loss"
    own = of(by_tokens, "loss", method="prompt", task="who")
    assert agrees(after["loss"], own), f"{after['loss']}, in the sweep {own}"

# %% [markdown]
# ## What was shown
#
# In 200 steps on `micro` (0.1 million parameters), a prompt selected a skill of the base, and did
# not learn to answer a new question.
#
# **What to try.**
#
# 1. `short(200, 8)`: train 800 steps. Does the loss fall below H?
# 2. `who_only`: let the answer be " Where? ..." (the place). Is it a skill of the base, too?
# 3. `is_form`: print `nats_per_token` letter by letter. Which letters are guessed?
#
# **Where to stop with a debugger.** `prompt.embed` at `np.concatenate` (a prompt is inserted).
#
# **Exercises.** cross-entropy, attention.
#
# **Further reading.** Lester et al. 2021 (prompts):
# [arXiv:2104.08691](https://arxiv.org/abs/2104.08691). Liu et al. 2021 (P-tuning):
# [arXiv:2103.10385](https://arxiv.org/abs/2103.10385).
