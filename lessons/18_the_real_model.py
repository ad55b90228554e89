# %% [markdown]
# # 18. The real model
#
# **The question.** Can a language model that people use learn something useful on a small device?
#
# SmolLM2-135M-Instruct has 1,400 times the parameters of `micro`. It learns to answer a request in
# plain English with one line of JSON that names a tool and its arguments. Nothing here is new: the
# calls are those of lesson 0, the loop is the same loop. What is new is that memory and time count.
#
# ![A request in English goes through the model and becomes one line of JSON, which is parsed and
# compared with the right call.](../figures/drawings/tool_call.svg)
#
# Time: some 7 minutes of one core's time, less on two; with `MINILORA_QUICK=1` half a minute. A
# gigabyte of memory, two where PEFT is compared. You need: lessons 0, 6 and 7.
#
# If the first cell stops with an error, run `minilora fetch smollm2` once: it brings 93 MB.

# %%
import importlib.util
import json
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
from common import FIGURES, QUICK, short, table

import minilora
from minilora import LoraConfig, TrainConfig, data, lora
from minilora.evaluation import metrics, plot
from minilora.evaluation.memory import (
    format_estimate,
    memory_estimate,
    nbytes,
    peak_rss_mb,
    print_trainable_parameters,
)
from minilora.tree import num_parameters

config, base, tokenizer = minilora.load("smollm2", "nf4-dq")
LENGTH = short(48, 12)  # tokens of an answer

# %% [markdown]
# ## What lies on the table
#
# **Predict:** how many of its parameters will be trained, at r = 8 on all seven projections? What
# will the frozen base take in memory, which in float32 is half a gigabyte?

# %%
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
adapters, frozen = lora.init(base, lora_config, np.random.default_rng(0))
print_trainable_parameters(adapters, frozen)
L, d, f = config.num_hidden_layers, config.hidden_size, config.intermediate_size
k = config.num_key_value_heads * config.head_dim
# A is (r, in) and B is (out, r): r·(in + out) for each of seven projections, in L layers
assert num_parameters(adapters) == L * lora_config.r * (9 * d + 2 * k + 3 * f) == 2_442_240
assert 0.018 < num_parameters(adapters) / num_parameters(base) < 0.019
assert 1_400 < num_parameters(base) / num_parameters(minilora.load("micro")[1]) < 1_410

settings = TrainConfig(
    iters=short(150, 2), batch_size=4, learning_rate=1e-3, mask_prompt=True, steps_per_eval=50,
    val_batches=4,
)  # fmt: skip
rows = {split: data.load_rows("toolcalls", split) for split in ("train", "valid", "test")}
examples = {split: data.encode_rows(some, tokenizer, settings)[0] for split, some in rows.items()}
tokens = settings.batch_size * max(len(e.tokens) - 1 for e in examples["train"])
parts = memory_estimate(adapters, frozen, config, tokens)
print(f"a step over at most {tokens} tokens:\n{format_estimate(parts)}")

# Full fine-tuning holds each weight, its gradient and Adam's two moments, in float32.
FULL_MB = 16 * num_parameters(base) / 1e6
print(f"full fine-tuning, before any activation: {FULL_MB:,.0f} MB")
assert 6 < 4 * num_parameters(base) / nbytes(frozen) < 6.5
assert sum(parts.values()) / 1e6 < FULL_MB / 4

# %% [markdown]
# The frozen base is a sixth of its float32 size, not an eighth: the embedding stays in 8 bits, as
# its file has it (`low_precision.py`). The largest part of the estimate is now the activations.
# They do not shrink with the weights; `gradient_checkpointing` makes them small (lesson 7).
#
# An honest word about this base: its file is 4-bit already (Q4_1). What quantizing costs a model
# shows on the embedded bases, which never were quantized, and not here.
#
# ## What the loss sees
#
# **Predict:** which tokens of this row count? Can a test row be answered from memory?

# %%
first = examples["train"][0]
print(repr(tokenizer.decode([t for t, m in zip(*first) if not m])))
print(repr(tokenizer.decode([t for t, m in zip(*first) if m])))
counted = np.mean([np.mean(e.mask) for e in examples["train"]])
print(f"{100 * counted:.0f} % of the tokens count")
answers = {split: {row["messages"][-1]["content"] for row in some} for split, some in rows.items()}
assert tokenizer.decode([t for t, m in zip(*first) if m][:-1]) in answers["train"]
assert 0.3 < counted < 0.5
assert not answers["train"] & answers["test"] and not answers["train"] & answers["valid"]

# %% [markdown]
# Only the line of JSON and the end of the answer count. And no call of a test row, a tool with its
# arguments, is ever asked for in training; the test rows have phrasings of their own, too.
#
# ## Before
#
# **Predict:** what does a chat model say to such a request, without a word about tools?


# %%
def say(adapters, base, request, length=LENGTH):
    """The greedy answer to a request in plain English."""
    turn = [{"role": "user", "content": request}]
    ids = tokenizer.encode(tokenizer.render(turn, add_generation_prompt=True))
    return tokenizer.decode(list(minilora.generate(adapters, base, ids, config, max_tokens=length)))


test = examples["test"][: short(96, 4)]
request, right = (turn["content"] for turn in rows["test"][0]["messages"])
print(f"asked: {request}\nsays:  {say(adapters, frozen, request)}\nright: {right}")
before = minilora.evaluate(adapters, frozen, test[:48], config)
print(f"loss {before['loss']:.3f} nats a token, exact match {before['exact_match']:.3f}")
assert before["exact_match"] == 0 and before["loss"] > 2

# %% [markdown]
# ## The run
#
# **Predict:** four rows a step, 150 steps: 600 of the 1,600 rows, each seen once. Enough for what
# share of unseen calls in unseen words, every character right?

# %%
valid = examples["valid"][: settings.val_batches * settings.batch_size]
adapters, history = minilora.train(
    adapters, frozen, examples["train"], config, settings, valid if not QUICK else ()
)
seconds = [row["seconds"] for row in history if "loss" in row]
peak = peak_rss_mb()
print(f"a step took {np.median(seconds):.2f} s; the process needed {peak or 0:,.0f} MB at most")
if peak:  # the platform counts it
    assert peak < FULL_MB / 2
plot.curve(
    (Path(gettempdir()) if QUICK else FIGURES) / "real-model.png",
    history,
    "SmolLM2-135M in NF4 learns tool calls",
)

# %% [markdown]
# ![Loss falls and exact match rises over the steps](../figures/real-model.png)
#
# The squares are of 16 rows, so that a row is six per cent of them. The test has more.
#
# ## After

# %%
after = minilora.evaluate(adapters, frozen, test, config)
names = ("loss", "exact_match", "ece", "brier")
table(["", *names], [[when, *(f"{score[name]:.4f}" for name in names)]
                     for when, score in (("before", before), ("after", after))])  # fmt: skip
print("says: ", say(adapters, frozen, request))
if not QUICK:
    assert after["loss"] < 0.2 < before["loss"] / 10
    assert after["exact_match"] > 0.35

# %% [markdown]
# **Predict:** where it errs, is it the form, the tool, or a value?

# %%
some = data.collate([[example] for example in test[:24]])
ops = minilora.operations(adapters, frozen)
exact = metrics.token_scores(adapters, frozen, some, config, ops)["exact"]
said = []
for i in np.flatnonzero(~exact)[: short(6, 0)]:
    asked, expected = (turn["content"] for turn in rows["test"][i]["messages"])
    said.append((say(adapters, frozen, asked, 64), expected))
    print(f"asked: {asked}\nsays:  {said[-1][0]}\nright: {expected}\n")


def tool_of(line):
    """The tool that a line of JSON calls; None if it is no call."""
    try:
        call = json.loads(line)
        return call["tool"] if list(call) == ["tool", "arguments"] else None
    except (ValueError, TypeError, KeyError):
        return None


calls = [(tool_of(line), tool_of(expected)) for line, expected in said]
print(f"{sum(tool is not None for tool, _ in calls)} of {len(calls)} wrong answers are calls,")
print(f"{sum(tool == of for tool, of in calls)} of them of the right tool")
assert sum(tool is not None for tool, _ in calls) >= len(calls) - 1
assert sum(tool == of for tool, of in calls) >= len(calls) / 2

# %% [markdown]
# The form has come first, and stays: wrong answers are calls, too, and most of them call the right
# tool. What is wrong are values: an argument invented, left out, or copied from the wrong place. It
# is the order in which `micro` learns its questions (lesson 15): first what every answer shares,
# then what has to be read from the request.
#
# ## Merge
#
# An adapter is a file of ten megabytes beside a base of ninety. To ship one model instead, merge.
# **Predict:** is the merged model of the size of the base that it came from?

# %%
ids = np.array([examples["test"][0].tokens])
ours = minilora.forward(adapters, frozen, ids, config)
dense = lora.merge(adapters, frozen)
merged = minilora.forward({}, dense, ids, config)
size = np.abs(ours).max()
print(f"merged and apart differ by {np.abs(merged - ours).max() / size:.1e} of the largest logit")
print(f"{nbytes(frozen) + nbytes(adapters):,} bytes apart, {nbytes(dense):,} merged")
# Rounding at another place in each of 7·30 products, where a logit's error is that of a state
# after 30 layers; float32 against float64 is 6e-6 here (guide/proofs.md), and an adapter that was
# lost or doubled is far above.
assert 0 < np.abs(merged - ours).max() / size < 2e-4
assert np.abs(minilora.forward({}, frozen, ids, config) - ours).max() / size > (0 if QUICK else 0.1)
assert nbytes(dense) > 5 * (nbytes(frozen) + nbytes(adapters))
del merged, dense

# %% [markdown]
# Merging made it five times as large: the sum of a 4-bit weight and an update is no longer one of
# sixteen values times a scale. Rounding it back to 4 bits is a step of its own, and loses much of
# the update (lesson 13). On a small device, keep base and adapter apart.
#
# ## To PEFT
#
# The folder that `save_adapter` writes is PEFT's. So the same adapter, on the same base, must give
# the same logits there. Scaling, names, transposes, the rotation: one mistake in any of them would
# show. **Predict:** how many digits will agree?

# %%
if not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")):
    print("peft, transformers or torch is not installed: the comparison is skipped")
else:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with TemporaryDirectory() as folder:
        minilora.save_pretrained(f"{folder}/base", config, base, tokenizer)
        minilora.save_adapter(f"{folder}/adapter", adapters, frozen, lora_config, "smollm2")
        print({p.name: p.stat().st_size for p in Path(folder, "adapter").iterdir()})
        theirs = AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(theirs, f"{folder}/adapter").eval()
    with torch.no_grad():
        logits = theirs(torch.from_numpy(ids)).logits.numpy()
        with theirs.disable_adapter():
            bare = theirs(torch.from_numpy(ids)).logits.numpy()
    print(f"PEFT's logits differ by {np.abs(logits - ours).max() / size:.1e} of the largest")
    assert np.abs(logits - ours).max() / size < 1e-4  # ten times guide/proofs.md's
    assert np.abs(bare - ours).max() / size > (0 if QUICK else 0.1)

# %% [markdown]
# **What this showed.** A model of 135 million parameters learned a task with a hundredth of them in
# argument 0, in less memory than its own float32 weights with their gradients would take, in some
# minutes on a CPU; and what came out is a folder that another library reads to the last digits.
#
# On the command line, the same in a longer run:
#
#     minilora train --model smollm2 --data toolcalls --adapter-path tools --dry-run
#     minilora train --model smollm2 --data toolcalls --adapter-path tools
#     minilora evaluate --adapter-path tools
#     minilora merge --adapter-path tools --out merged
#
# **Where to stop with a debugger.** `nf4.Quantized.dequantize` (once a projection forward and once
# backward: count the calls of one step), `data.encode` (where the mask is cut: look at `head` and
# `tail`), `checkpoint.save_adapter` (the names in `sources`).
#
# **Exercises.** prompt-mask, linear-4bit, memory-estimate, lora-merge, accumulation.
