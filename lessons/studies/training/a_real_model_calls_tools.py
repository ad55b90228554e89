# %% [markdown]
# # A real model calls tools
#
# **The question.** Can a language model that people use learn something useful on a small device?
#
# SmolLM2-135M-Instruct has 1,400 times the parameters of `micro`. It learns to answer a request in
# plain English with one line of JSON, which names a tool and its arguments. The study [The memory
# of a step](../memory/the_memory_of_a_step.py) counts parameters and bytes.
#
# **Continues:** [lesson 10](../../10_your_own_text.py).
#
# **Time:** 5 minutes to run (half a minute with `MINILORA_QUICK=1`), ten minutes to read. It
# needs 1 GB of memory, and `minilora fetch smollm2` once (93 MB). **You need:** lessons 0, 2 and 3.

# %%
import json

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation import plot
from minilora.evaluation.memory import peak_rss_mb
from minilora.lessons.helpers import toolcalls
from minilora.lessons.helpers.common import FIGURES, QUICK, short
from minilora.tree import num_parameters

model, tokenizer = minilora.load("smollm2", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
adapters, model = minilora.get_peft_model(model, lora_config, rng=0)
minilora.print_trainable_parameters(adapters, model)
settings = TrainConfig(
    short(150, 2), batch_size=4, learning_rate=1e-3, mask_prompt=True, steps_per_eval=50,
    val_batches=100,
)  # fmt: skip

# %% [markdown]
# ## The data
#
# **Predict.** Which tokens of a row count in the loss? Can a test row be answered from memory?

# %%
rows = {split: toolcalls.rows(split) for split in ("train", "valid", "test")}
examples = {split: data.encode_rows(some, tokenizer, settings)[0] for split, some in rows.items()}
first = examples["train"][0]
counted = [token for token, mask in zip(first.tokens, first.mask) if mask]
for name, tokens in (("a row", first.tokens), ("in the loss", counted)):
    print(f"{name}: {tokenizer.decode(tokens)!r}")

# %% [markdown]
# **Answer.** Only the line of JSON and the end of the answer. All splits have the same tools, but
# no call of a test row is in the training rows, and the test rows use other phrasings.
#
# ## Before training
#
# **Predict.** What does a chat model answer to a request that needs a tool, without a word about
# tools?


# %%
def generate(adapters, request):
    """Return the greedy answer to a request."""
    turn = [{"role": "user", "content": request}]
    text = tokenizer.render(turn, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)  # the template writes them
    answer = minilora.generate(adapters, model, ids, max_tokens=short(64, 12))
    return tokenizer.decode(list(answer))


test = examples["test"][: short(96, 4)]
request, right = (turn["content"] for turn in rows["test"][0]["messages"])
print(f"request: {request}\noutput:  {generate(adapters, request)}\nright:   {right}")
before = minilora.evaluate(adapters, model, test[:48])

# %% [markdown]
# **Answer.** Not the right call: of 48 answers, none is right. This model is small, and nothing
# tells it the tools or the format.
#
# ## The run
#
# **Predict.** 150 steps of four rows use 600 of the 1,600 training rows once. Which share of the
# test rows is then answered right, every character?

# %%
valid = examples["valid"][: short(16, 0)]
adapters, history = minilora.train(adapters, model, examples["train"], settings, valid)
if not QUICK:
    plot.curve(FIGURES / "real-model.png", history, "SmolLM2-135M in NF4 learns tool calls")
after = minilora.evaluate(adapters, model, test)
for when, scores in (("before", before), ("after", after)):
    print(f"{when}: loss {scores['loss']:.3f}, exact match {scores['exact_match']:.1%}")

# %% [markdown]
# ![The loss falls over the steps; exact match on 16 held-out rows after 50, 100 and 150 of
# them](../../../figures/real-model.png)
#
# **Answer.** More than a third: each row is seen once, but the rules are the same in all rows. (The
# squares are scores of 16 rows.)
#
# **Predict.** Where the model is wrong: is it the form, the tool, or a value?


# %%
def tool_of(line):
    """Return the tool that a line of JSON calls, or None if it is not a call."""
    try:
        return json.loads(line)["tool"]
    except (ValueError, TypeError, KeyError):
        return None


wrong = []  # pairs: an output, and the right line
for row in rows["test"][: short(24, 1)]:
    asked, expected = (turn["content"] for turn in row["messages"])
    output = generate(adapters, asked)
    if output != expected:
        wrong.append((output, expected))
        print(f"request: {asked}\noutput:  {output}\nright:   {expected}\n")
    if len(wrong) == 6:
        break

# %% [markdown]
# **Answer.** At most one of these wrong answers is not a call, and at least half call the right
# tool. In those, the tool is not the mistake.
#
# ## What was shown
#
# A model of 135 million parameters learned to answer more than a third of the test requests. Less
# than 2 % as many parameters were trained, on a CPU, in less than half the memory that full
# fine-tuning needs for its weights and their state. On the command line:
#
# ```sh
# python -m minilora.lessons.helpers.toolcalls toolcalls    # train.jsonl, valid.jsonl, test.jsonl
# minilora train --model smollm2 --data toolcalls --mask-prompt --target-modules all-linear \
#     --iters 260 --batch-size 4 --learning-rate 1e-3 --adapter-path tools
# minilora evaluate --adapter-path tools
# ```
#
# **What to try.**
#
# 1. `short(150, 2)`: train for 400 steps. How many answers are right?
# 2. `"all-linear"`: train `["q_proj", "v_proj"]`. Which kind of mistake remains?
# 3. `request`: write a request of your own. Does it become a call?
#
# **Where to stop with a debugger.** `nf4.Quantized.dequantize`: how often per step?
#
# **Exercises.** prompt-mask, linear-4bit, accumulation.
#
# **Further reading.** Allal et al. 2025, *SmolLM2*:
# [arXiv:2502.02737](https://arxiv.org/abs/2502.02737). QLoRA:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314).

# %%
# Checks
answers = {split: {row["messages"][-1]["content"] for row in some} for split, some in rows.items()}
assert tokenizer.decode(counted[:-1]) in answers["train"], "the answer and its end must count"
assert len(rows["train"]) == 1600, "600 of 1,600 rows are used"
assert not answers["train"] & answers["test"], "no call of test may be in the training rows"
assert before["exact_match"] == 0, "before training, no answer may be right"
parameters = num_parameters(model.base)
assert num_parameters(adapters) < 0.02 * parameters, "few parameters are trained"
# full fine-tuning has four numbers of four bytes: weight, gradient, two moments
assert (peak_rss_mb() or 0) < 16 * parameters / 2e6, "less than half of it must be needed"
if not QUICK:
    tools = [(tool_of(output), tool_of(expected)) for output, expected in wrong]
    calls = sum(tool is not None for tool, _ in tools)
    assert calls >= len(tools) - 1, "wrong answers must be calls, but for one"
    right_tools = sum(tool == expected for tool, expected in tools)
    assert right_tools >= len(tools) / 2, "half of the wrong answers must call the right tool"
    assert after["exact_match"] > 0.35, "more than a third of the answers must be right"
