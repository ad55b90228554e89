# %% [markdown]
# # 12. Your own text, and a real model
#
# **The question.** How large is a merged model? And does PEFT compute the same logits with an
# adapter of minilora?
#
# **Time:** half a minute to run, ten minutes to read. It needs more memory if PEFT is installed.
# **You need:** the study [A real model calls tools](studies/training/a_real_model_calls_tools.py),
# and `minilora fetch smollm2`.

# %%
import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import minilora
from lessons.helpers import toolcalls
from lessons.helpers.common import QUICK, short, table
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation.memory import nbytes

config, base, tokenizer = minilora.load("smollm2", "nf4-dq")
lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
adapters, _ = minilora.get_peft_model(base, lora_config, rng=0)

# %% [markdown]
# ## A short run
#
# Twenty steps are enough for this lesson: the adapter must change the logits, not be good.

# %%
iters = short(20, 2)
settings = TrainConfig(iters=iters, batch_size=4, learning_rate=1e-3, mask_prompt=True)
rows = toolcalls.rows("train")
examples, _ = data.encode_rows(rows, tokenizer, settings)
adapters, _ = minilora.train(adapters, base, examples, config, settings)

test_rows, _ = data.encode_rows(toolcalls.rows("test"), tokenizer, settings)
ids = np.array([test_rows[0].tokens])
ours = minilora.forward(adapters, base, ids, config)
bare = minilora.forward({}, base, ids, config)
largest = np.abs(ours).max()


def distance(logits):
    """Return the largest difference from our logits, as a share of the largest logit."""
    return np.abs(logits - ours).max() / largest


print(f"the adapter changes the logits by {distance(bare):.2f} of the largest")

# %%
# Checks
assert distance(bare) > (0 if QUICK else 0.1), "the adapter must change the logits"

# %% [markdown]
# ## Merging
#
# The adapter has ten megabytes, and the base has 87. To ship a single model, merge.
#
# ![Number lines of what can be stored near a weight. A small update moves the weight in float32
# and in bfloat16. In NF4 it is less than half of a gap, and the nearest value stays the
# same.](../figures/drawings/merging_precision.svg)
#
# **Predict.** Is the merged model as large as the base?
#
# <details><summary>Answer</summary>
# No, more than five times as large as base and adapter together: it is in float32.
# </details>

# %%
dense = minilora.merge(adapters, base)
merged = distance(minilora.forward({}, dense, ids, config))
separate_bytes, merged_bytes = nbytes(base) + nbytes(adapters), nbytes(dense)
print(f"merged and separate logits differ by {merged:.1e} of the largest")
table(["", "bytes"], [["base and adapter", separate_bytes], ["merged", merged_bytes]])
del dense

# %% [markdown]
# The sum of a 4-bit weight and an update is in general no longer one of sixteen values times a
# scale. Quantizing it to 4 bits again can lose the update (the study [Three ways to serve an
# adapter in 4 bits](studies/serving/three_ways_to_serve.py)).

# %%
# Checks
# Each of 7·30 products rounds in another place, and a logit has the error of 30 layers. Between
# float32 and float64 the difference is 6e-6 (guide/proofs.md). A lost adapter is far above.
assert 0 < merged < 2e-4, "the merged model must compute the same, up to rounding"
assert merged_bytes > 5 * separate_bytes, "the merged model must be five times as large"
assert 9.7e6 < nbytes(adapters) < 9.8e6 and 86e6 < nbytes(base) < 88e6, "10 MB and 87 MB"

# %% [markdown]
# ## The same adapter in PEFT
#
# `save_adapter` writes the files of PEFT. So PEFT must compute the same logits with this adapter on
# the same base.
#
# **Predict.** How many digits agree?
#
# <details><summary>Answer</summary>
# The largest difference is less than 1e-4 of the largest logit. Both compute in float32.
# </details>


# %%
def logits_of_peft(folder):
    """Return PEFT's logits with the adapter and without it; the folder gets base and adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    minilora.save_pretrained(f"{folder}/base", config, base, tokenizer)
    minilora.save_adapter(f"{folder}/adapter", adapters, base, lora_config, "smollm2")
    for path in sorted(Path(folder, "adapter").iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, f"{folder}/adapter").eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits.numpy()
        with model.disable_adapter():
            return logits, model(torch.from_numpy(ids)).logits.numpy()


installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))
if installed:
    with TemporaryDirectory() as folder:
        theirs, theirs_bare = logits_of_peft(folder)
    print(f"PEFT's logits differ by {distance(theirs):.1e} of the largest")
else:
    print("peft, transformers or torch is not installed: the comparison is skipped")

# %%
# Checks
if installed:
    assert distance(theirs) < 1e-4, (
        "PEFT must compute the same logits (ten times guide/proofs.md's)"
    )
    assert distance(theirs_bare) > (0 if QUICK else 0.1), "and others without the adapter"

# %% [markdown]
# ## What was shown
#
# A merged model is dense, and much larger than a 4-bit base with its adapter. PEFT loads the folder
# that minilora writes, and computes the same logits to 1e-4 of the largest (checked if PEFT is
# installed). On the command line:
#
# ```sh
# minilora merge --adapter-path tools --out merged
# ```
#
# **What to try.**
#
# 1. `lora_config`: add `use_rslora=True`. Does PEFT still agree?
# 2. `del dense`: before it, quantize `dense` to "nf4-dq" and compute the logits. How far are they?
# 3. `lora_config` in `save_adapter`: pass one with `lora_alpha=32`. What does PEFT compute?
#
# **Where to stop with a debugger.** `checkpoint.save_adapter` (the names in `tensors`).
#
# **Exercises.** lora-merge, test-merge.
#
# **Further reading.** LoRA, Sec. 4.1, on merging:
# [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). [From PEFT to minilora](guide/peft.md).
