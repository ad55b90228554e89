# %% [markdown]
# # 10. Your own text, and a real model
#
# **The question.** You have a file of your own rows, and a model that people use. Which steps lead
# to a folder that transformers opens, and what has the model learned?
#
# [SmolLM2-135M-Instruct](guide/data-and-models.md#the-real-model) answers requests in English. The
# file [`10_your_own_text.jsonl`](10_your_own_text.jsonl) has 60 notes, each with the line that we
# want for it. Put your own rows into such a file, and follow the same steps.
#
# The downloaded model is already quantized, to another 4-bit type (Q4_1), with an 8-bit embedding.
# `load` quantizes the projections once more, to NF4, and leaves the embedding in 8 bits.
#
# **Time:** a minute to run, ten minutes to read. It needs `minilora fetch smollm2` once
# (93 MB), and 1 GB of memory, or 3 GB if PEFT is installed. **You need:** lessons 3, 4 and 9.

# %%
import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers.common import LESSONS, QUICK, short, table

model, tokenizer = minilora.load("smollm2", "nf4-dq")
settings = TrainConfig(iters=short(40, 2), batch_size=4, learning_rate=1e-3, mask_prompt=True)

# %% [markdown]
# ## The rows
#
# A line of the file is a JSON object with a prompt and a completion. Every tenth row is held out:
# the model does not train on it.
#
# **Predict.** The tokenizer puts the chat template (markers of who speaks) around a row. Which
# tokens should count in the loss?
#
# <details><summary>Answer</summary>
# Those of the completion, and the token that ends an answer. ("Those of the completion" is
# tempting, but then the model does not learn to stop.)
# </details>

# %%
file = str(LESSONS / "10_your_own_text.jsonl")
rows = {split: minilora.load_rows(file, split) for split in ("train", "valid")}
examples = {
    split: minilora.encode_rows(some, tokenizer, settings)[0] for split, some in rows.items()
}
first = examples["train"][0]
print(rows["train"][0])
print("counts:", [tokenizer.decode([t]) for t, m in zip(first.tokens, first.mask) if m])
print(f"{len(examples['train'])} rows to train on, {len(examples['valid'])} held out")

# %%
# Checks
counted = tokenizer.decode([t for t, m in zip(first.tokens, first.mask) if m][:-1])
assert counted.strip() == rows["train"][0]["completion"], "the completion and its end must count"
assert len(rows["train"]) == 54 and len(rows["valid"]) == 6, "every tenth row is held out"

# %% [markdown]
# ## The run
#
# **Predict.** The loop sees 160 rows: each of the 54 about three times. Is that enough for the form
# of the line? And for its words?
#
# <details><summary>Answer</summary>
# For the form, yes: each held-out answer has the three parts. Some words differ from ours. ("No" is
# tempting, because 54 rows are few. But the model has read English before. It learns here only what
# we want from it.)
# </details>


# %%
def answer(adapters, prompt):
    """Return the greedy answer to a prompt."""
    turn = [{"role": "user", "content": prompt}]
    ids = tokenizer.encode(tokenizer.render(turn, add_generation_prompt=True))
    found = minilora.generate(adapters, model, ids, max_tokens=short(24, 4))
    return tokenizer.decode(list(found))


# task_type is for PEFT, which reads it from the file of the adapter
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
adapters, _ = minilora.get_peft_model(model, lora_config, rng=0)
before = minilora.evaluate(adapters, model, examples["valid"])["loss"]
print("before:", repr(answer(adapters, rows["valid"][0]["prompt"])))
adapters, _ = minilora.train(adapters, model, examples["train"], settings)
after = minilora.evaluate(adapters, model, examples["valid"])["loss"]
print(f"held-out loss: {before:.2f} before, {after:.2f} after")
answers = [answer(adapters, row["prompt"]) for row in rows["valid"]]
for row, said in zip(rows["valid"], answers):
    print(f"{row['prompt']}\n    says  {said}\n    ours  {row['completion']}")

# %%
# Checks
if not QUICK:
    assert after < before / 8, "the held-out loss must fall"
    assert all(said.count(" | ") == 2 for said in answers), "every answer must have three parts"

# %% [markdown]
# ## Merging
#
# The adapter has ten megabytes, and the base has 87. A program that knows nothing about adapters
# needs one dense model: merge.
#
# **Predict.** How many times larger than base and adapter together is the merged model?
#
# <details><summary>Answer</summary>
# Between five and six times: it is in float32, because the sum of a 4-bit weight and an update is
# in general none of the sixteen values times a scale (lesson 4). ("Eight times", 32 bits for 4, is
# tempting. But the embedding had 8 bits, and the adapter had 32.)
# </details>

# %%
ids = np.array([examples["valid"][0].tokens])
ours = minilora.forward(adapters, model, ids)
bare = minilora.forward({}, model, ids)


def distance(logits):
    """Return the largest difference from our logits, as a share of the largest logit."""
    return np.abs(logits - ours).max() / np.abs(ours).max()


dense = minilora.merge(adapters, model)
merged = distance(minilora.forward({}, dense, ids))
separate_bytes, merged_bytes = nbytes(model.base) + nbytes(adapters), nbytes(dense.base)
print(f"merged and separate logits differ by {merged:.1e} of the largest")
print(f"with and without the adapter by {distance(bare):.2f}")
table(["", "bytes"], [["base and adapter", separate_bytes], ["merged", merged_bytes]])

# %%
# Checks
# Each of 7·30 products rounds in another place, and a logit has the error of 30 layers.
# Between float32 and float64 the difference is 6e-6 (guide/proofs.md). A lost adapter is far above.
assert 0 < merged < 2e-4, "the merged model must compute the same, up to rounding"
assert distance(bare) > (0 if QUICK else 0.1), "the adapter must change the logits"
assert 5 < merged_bytes / separate_bytes < 6, "the merged model must be 5 to 6 times as large"
assert 9.7e6 < nbytes(adapters) < 9.8e6 and 86e6 < nbytes(model.base) < 88e6, "10 MB and 87 MB"

# %% [markdown]
# ## transformers and PEFT open what was written
#
# `save_pretrained` writes the folder that transformers reads. `save_adapter` writes the files that
# PEFT reads. It must apply them to this base, not to the one on the Hugging Face Hub, whose weights
# differ.
#
# **Predict.** How far are the logits of transformers, with the merged folder, and those of PEFT,
# with base and adapter, from ours?
#
# <details><summary>Answer</summary>
# The largest difference is less than 1e-4 of the largest logit for PEFT, and less than 2e-4 for the
# merged folder. ("Zero" is tempting, because the weights are the same. But float32 sums in another
# order round differently.)
# </details>


# %%
def opened(folder):
    """Write the folders; return the logits of the merged one, and PEFT's with and without ours."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    minilora.save_pretrained(f"{folder}/merged", dense, tokenizer)
    minilora.save_pretrained(f"{folder}/base", model, tokenizer)
    minilora.save_adapter(f"{folder}/adapter", adapters, model, lora_config)
    for path in sorted(Path(folder).glob("[am]*/*")):
        print(f"{path.parent.name}/{path.name}: {path.stat().st_size:,} bytes")
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(f"{folder}/merged", dtype=torch.float32)
        of_merged = theirs(tokens).logits.numpy()
        theirs = AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(theirs, f"{folder}/adapter").eval()
        with_adapter = theirs(tokens).logits.numpy()
        with theirs.disable_adapter():
            return of_merged, with_adapter, theirs(tokens).logits.numpy()


installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))
if installed:
    with TemporaryDirectory() as folder:
        of_merged, of_peft, without = opened(folder)
    print(f"transformers, merged: {distance(of_merged):.1e}; PEFT: {distance(of_peft):.1e}")
else:
    print("peft, transformers or torch is not installed: the comparison is skipped")

# %%
# Checks
if installed:
    assert distance(of_merged) < 2e-4, "transformers must compute the same logits"
    assert distance(of_peft) < 1e-4, "so must PEFT (ten times the bound of guide/proofs.md)"
    assert distance(without) > (0 if QUICK else 0.1), "and others without the adapter"

# %% [markdown]
# ## What was shown
#
# 54 rows of one's own and 40 steps teach a small real model the form of an answer. The merged
# folder is dense, and transformers computes with it what minilora computes with base and adapter.
# The same on the command line, with your file in place of this one:
#
# ```sh
# minilora train --model smollm2 --data lessons/10_your_own_text.jsonl --mask-prompt \
#     --target-modules all-linear --iters 40 --batch-size 4 --learning-rate 1e-3 \
#     --adapter-path notes
# minilora chat --adapter-path notes
# minilora merge --adapter-path notes --out notes-merged
# ```
#
# **What to try.**
#
# 1. `10_your_own_text.jsonl`: replace it by 60 rows of your own. What does the model get wrong?
# 2. `iters=short(40, 2)`: train for 160 steps. Does the held-out loss rise again?
# 3. `lora_config` in `save_adapter`: pass one with `lora_alpha=32`. What does PEFT compute?
#
# **Where to stop with a debugger.** `checkpoint.write_adapter` (the names in `tensors`).
#
# **Exercises.** lora-merge, test-merge, prompt-mask.
#
# **Further reading.** The study [A real model calls
# tools](studies/training/a_real_model_calls_tools.py) trains on more rows, and looks at mistakes.
# [From PEFT to minilora](guide/peft.md). Allal et al. 2025, *SmolLM2*:
# [arXiv:2502.02737](https://arxiv.org/abs/2502.02737).
