# %% [markdown]
# # One base, many adapters
#
# **The question.** What is stored per task, and what changes in memory when the task changes?
#
# **Continues:** [lesson 6](../../06_where_the_memory_goes.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 6.

# %%
import pickle
import tempfile
from pathlib import Path

import minilora
from minilora import LoraConfig, data
from minilora.evaluation.memory import nbytes
from minilora.lessons.helpers.common import finetune
from minilora.lessons.helpers.compare import file_bytes

ALL = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))

# %% [markdown]
# ## What is stored
#
# The LoRA paper (Sec. 4.2) says that a checkpoint of GPT-3, with r = 4 on q and v, shrinks about
# 10,000 times, from 350 GB to 35 MB. An adapter on one matrix has r·(in + out) numbers, and GPT-3
# has 96 layers of width 12,288.
#
# **Predict.** By what factor does a checkpoint of our small base `tiny` shrink, with r = 8 on all
# projections?

# %%
gpt3 = 96 * 2 * 4 * (12288 + 12288)  # layers, matrices, r, in + out
in_16_bits = 2 * gpt3
print(f"GPT-3: {gpt3:,} parameters, {in_16_bits / 2**20:.1f} MiB in 16 bits,", end=" ")
print(f"{350e9 / in_16_bits:,.0f} times less than 350 GB")

tiny = minilora.load("tiny").model
tiny_adapters, _ = minilora.get_peft_model(tiny, ALL, 0)
# file_bytes saves the adapter to a temporary folder and returns the size of its file
size = file_bytes(tiny_adapters, tiny, ALL)
whole = nbytes(tiny.base)
print(f"tiny: the file has {size:,} bytes, {whole / size:.0f} times less than the base")

# %% [markdown]
# **Answer.** Eleven times. With the same r, the saving grows with the width: r·(in + out)/(in·out)
# is larger for small matrices.
#
# In 16 bits, GPT-3's adapter has 36 MiB. The paper's "35 MB" equals 350 GB divided by 10,000.
#
# ## What is swapped
#
# Two tasks share one base. The first is to answer with name, object and place. The second has the
# same prompts, but wants only the place. `finetune` (in `common.py`) loads `micro`, and trains a
# LoRA adapter on `rows`.
#
# **Predict.** Both adapters are trained. Then the same prompt is answered with the first adapter,
# the second, and the first again. What has to be written in memory each time?

# %%
rows = data.load_rows("questions", "train")
places = [{**row, "completion": " " + row["completion"].rpartition(", ")[2]} for row in rows]
model, tokenizer = minilora.load("micro")
before = pickle.dumps(model.base)
loaded = {}
with tempfile.TemporaryDirectory() as folder:
    for name, task in {"whole": rows, "place": places}.items():
        run = finetune(ALL, rows=task, iters=100)
        minilora.save_adapter(Path(folder) / name, run.adapters, run.model, ALL)
        loaded[name] = minilora.load_adapter(Path(folder) / name, model)  # onto the one base

prompt = tokenizer.encode(rows[0]["prompt"])
answers = []
for name in ("whole", "place", "whole"):
    tokens = list(minilora.generate(loaded[name].adapters, model, prompt, max_tokens=24))
    answers.append(tokenizer.decode(tokens))
    print(f"{name:<6}", repr(answers[-1]))

# %% [markdown]
# **Answer.** Nothing. The other tree is passed as the first argument, and no byte of the base is
# copied or written. So a server can hold one base and many adapters. (If the adapters were merged
# into the base, as in lesson 4, all its projections would be written.)
#
# ## What was shown
#
# A task costs r·(in + out) numbers per matrix, and no byte of the base is copied or written.
#
# **What to try.**
#
# 1. `LoraConfig(r=8, ...)`: use r = 1. How large is the file? Is the second task still learned?
# 2. `rpartition(", ")[2]` in `places`: ask for the name instead, with `partition(",")[0]`.
# 3. `("whole", "place", "whole")`: generate with `{}` in between. Does the base answer?
#
# **Where to stop with a debugger.** `model.with_adapters`: `model.base` is the same for both
# adapters, and the returned model has the leaves of one of them in addition.
#
# **Exercises.** lora-count.
#
# **Further reading.** LoRA: [arXiv:2106.09685](https://arxiv.org/abs/2106.09685). Sheng et al.
# 2023, *S-LoRA*, serve thousands of adapters: [arXiv:2311.03285](https://arxiv.org/abs/2311.03285).

# %%
# Checks
assert gpt3 == 18_874_368, "r·(in + out) for q and v in 96 layers"
assert in_16_bits == 36 * 2**20, "36 MiB in 16 bits"
assert 9_250 < 350e9 / in_16_bits < 9_300, "some 9,300 times less"
assert 10.5 < whole / size < 11.5, "a checkpoint of tiny must shrink eleven times"
assert answers[0] == answers[2], "swapping back must give the first answer again"
assert answers[0].count(",") == 2 and answers[1].count(",") == 0, "three parts, and the place"
for name, adapter in loaded.items():
    assert adapter.model.base is model.base, f"{name} copies the base"
assert pickle.dumps(model.base) == before, "the base was written"
