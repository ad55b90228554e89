# %% [markdown]
# # The checklist
#
# **The question.** What would an experienced reader question in the settings of a run, before it
# starts? And what do three of the common mistakes cost?
#
# **Continues:** [lesson 9](../../09_the_settings.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** the study [The lines of
# PEFT](../serving/the_lines_of_peft.py).

# %%
from dataclasses import replace

import numpy as np

import minilora
from lessons.helpers.checklist import Rows, questions
from lessons.helpers.common import QUICK, figure, finetune, short, table
from minilora import LoraConfig, TrainConfig, data
from minilora.evaluation import plot

config, base, tokenizer = minilora.load("micro")
rows = {split: data.load_rows("questions", split) for split in ("train", "valid")}

# %% [markdown]
# ## Questions about a run
#
# `checklist.questions` looks at the settings of a run and at the number of its rows. It forbids
# nothing. Each sentence says what is unusual and which lesson explains it.
#
# **Predict.** The second pair of settings below is a "minimal QLoRA". How many questions does it
# raise?
#
# <details><summary>Answer</summary>
# Ten. The first pair, the recipe of the study [The lines of PEFT](../serving/the_lines_of_peft.py),
# raises none.
# </details>

# %%
recipe_lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
recipe = TrainConfig(iters=200, batch_size=16, learning_rate=4e-3, mask_prompt=True)
facts = Rows(train=4000, held_out=200)
print(len(questions(recipe_lora, recipe, "nf4-dq", config, facts)), "questions about the recipe")

found_lora = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=("q_proj", "v_proj"))
found_run = TrainConfig(iters=200, batch_size=16, learning_rate=5e-5, warmup_ratio=0.2)
found_facts = Rows(train=4000, held_out=0, cut=12)
asked = questions(found_lora, found_run, "fp4", config, found_facts)
print(*asked, sep="\n")

# %%
# Checks
assert questions(recipe_lora, recipe, "nf4-dq", config, facts) == [], "the recipe must be sound"
assert len(asked) == 10, "the minimal QLoRA must raise ten questions"
for line in asked:
    assert "lesson" in line, f"this question names no lesson: {line}"

# %% [markdown]
# ## Three of the mistakes, tried
#
# - `--max-seq-length 74`: each row has 75 tokens, so the last token of each row is cut.
# - `--no-mask-prompt`: the loss counts the prompts, too.
# - `--learning-rate 5e-5`: 80 times smaller than the recipe's.
#
# **Predict.** What is lost with the last token? Which costs more exact answers, the small rate or
# counting the prompts?
#
# <details><summary>Answer</summary>
# The last token is the end of the answer: the model gives the answer below and does not stop. The
# small rate costs more: after 200 steps, fewer than a tenth of the answers are right.
# </details>

# %%
settings = replace(recipe, iters=short(200, 15))
examples, _ = data.encode_rows(rows["train"], tokenizer, settings)
shorter, cut = data.encode_rows(rows["train"], tokenizer, replace(settings, max_seq_length=74))
counted = np.mean([np.mean(example.mask) for example in examples])
print(f"{cut} of {len(rows['train'])} rows are cut")
print(f"the answers are {counted:.0%} of all tokens")

RUNS = {
    "the recipe": {},
    "--max-seq-length 74": {"max_seq_length": 74},
    "--no-mask-prompt": {"mask_prompt": False},
    "--learning-rate 5e-5": {"learning_rate": 5e-5},
}
# the rows that score a run are whole, and only their answers count
valid, _ = data.encode_rows(rows["valid"], tokenizer, settings)
prompt, answer = rows["valid"][0]["prompt"], rows["valid"][0]["completion"]
scores, said, cells = {}, {}, []
for name, changes in RUNS.items():
    run = finetune(iters=settings.iters, **changes)
    scores[name] = minilora.evaluate(run.adapters, run.base, valid, config)
    ids = minilora.generate(run.adapters, run.base, tokenizer.encode(prompt), config, max_tokens=40)
    said[name] = tokenizer.decode(list(ids))
    loss, exact = scores[name]["loss"], scores[name]["exact_match"]
    cells.append([name, f"{loss:.3f}", f"{exact:.1%}", repr(said[name])])
table(["run", "loss of the answers", "exact match", "output"], cells)

# %%
xlabel, title = "right held-out answers (%)", "What each mistake costs"
with figure("checklist", xlabel, "", title, height=2.4) as axes:
    names = list(RUNS)[::-1]
    right = [100 * scores[name]["exact_match"] for name in names]
    axes.barh(names, right, color=plot.LINES[0]["color"], zorder=2)
    axes.set(xlim=(0, 100))

# %% [markdown]
# ![Right answers per run: the recipe gets nearly all](../../../figures/checklist.png)
#
# These are runs of `micro` (0.1 million parameters) with one seed. With one token less, the output
# above is right but does not end, and fewer than a tenth of the answers count as exact. With the
# small rate, too, fewer than a tenth are right after 200 steps. If the prompts count, fewer than
# half are right. (Two thirds of the tokens are no answers.) None of these runs failed with an
# error.

# %%
# Checks
assert {len(example.tokens) for example in examples} == {75}, "every row must have 75 tokens"
assert cut == len(shorter), "every row must be cut"
assert 0.3 < counted < 0.32, "the answers must be a third of the tokens"
ends = set(config.eos_token_id)
assert not any(set(example.tokens) & ends for example in shorter), "no cut row may have its end"
if not QUICK:
    sound, endless, prompts, slow = scores.values()
    assert sound["exact_match"] > 0.9 and sound["loss"] < 0.05, "the recipe must learn the task"
    assert said["the recipe"] == answer, "the recipe must give the right answer"
    output = said["--max-seq-length 74"]
    assert endless["exact_match"] < 0.1, "a cut run must give no exact answer"
    assert output.startswith(answer) and output != answer, "it must answer and not stop"
    assert prompts["exact_match"] < 0.5, "counting prompts must cost most of the exact answers"
    assert prompts["loss"] > 3 * sound["loss"], "counting prompts must raise the loss"
    assert slow["exact_match"] < 0.1 and slow["loss"] > 1, "the small rate must learn little"
    assert slow["exact_match"] < prompts["exact_match"], "and cost more than the prompts"

# %% [markdown]
# ## What was shown
#
# Settings can spoil a run without an error. A list of questions can name such settings before the
# run, and the lessons about them.
#
# **What to try.**
#
# 1. `found_run`: change one setting at a time to the recipe's. Which question disappears?
# 2. `"learning_rate": 5e-5`: use 5e-4. How many answers are right?
# 3. `"max_seq_length": 74`: use 60. What does the model say?
#
# **Where to stop with a debugger.** `checklist.questions` (step through the rules with settings of
# your own); `data.encode` (the row is cut here).
#
# **Exercises.** prompt-mask, memory-estimate.
#
# **Further reading.** QLoRA, Sec. 4 and the appendix, has settings that were tuned:
# [arXiv:2305.14314](https://arxiv.org/abs/2305.14314). Biderman et al. 2024, on learning
# rates of LoRA: [arXiv:2405.09673](https://arxiv.org/abs/2405.09673).
