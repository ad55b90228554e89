# %% [markdown]
# # The checklist
#
# **The question.** What would an experienced reader question in the settings of a run, before it
# starts? And what do three of the common mistakes cost?
#
# **Continues:** [lesson 8](../../08_the_settings.py).
#
# **Time:** 20 seconds to run, ten minutes to read. **You need:** the study [The lines of
# PEFT](../serving/the_lines_of_peft.py).

# %%
from dataclasses import replace

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig, data
from minilora.lessons.helpers.checklist import Rows, questions
from minilora.lessons.helpers.common import QUICK, finetune, scores_of, short, table

# %% [markdown]
# ## Questions about a run
#
# `checklist.questions` looks at the settings of a run and at the number of its rows. It forbids
# nothing. Each sentence says what is unusual and which lesson or study explains it. Here it
# looks at the recipe of this course, and at a "minimal QLoRA".
#
# **Predict.** How many questions does the checklist raise about a "minimal QLoRA"?
#
# <details><summary>Answer</summary>
# Ten. (Few are tempting, because each of these settings is in some recipe.) The recipe of the study
# [The lines of PEFT](../serving/the_lines_of_peft.py) raises none.
# </details>

# %%
model, tokenizer = minilora.load("micro")
recipe_lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
recipe = TrainConfig(iters=short(200, 15), batch_size=16, learning_rate=4e-3, mask_prompt=True)
of_recipe = questions(recipe_lora, recipe, "nf4-dq", model.config, Rows(train=4000, held_out=200))
print(len(of_recipe), "questions about the recipe")

found_lora = LoraConfig(r=64, lora_alpha=16, lora_dropout=0.1, target_modules=("q_proj", "v_proj"))
found_run = TrainConfig(iters=200, batch_size=16, learning_rate=5e-5, warmup_ratio=0.2)
asked = questions(found_lora, found_run, "fp4", model.config, Rows(train=4000, held_out=0, cut=12))
print(*asked, sep="\n")

# %%
# Checks
assert of_recipe == [], "the recipe must be sound"
assert len(asked) == 10, "the minimal QLoRA must raise ten questions"
for line in asked:
    assert "(lesson " in line or "(study " in line, f"this question names no lesson: {line}"

# %% [markdown]
# ## Three of the mistakes, tried
#
# - `--max-seq-length 74`: each row has 75 tokens, so the last token of each row is cut.
# - `--no-mask-prompt`: the loss counts the prompts, too.
# - `--learning-rate 5e-5`: 80 times smaller than the recipe's.
#
# **Predict.** What is lost if the last token of each row is cut? Which costs more exact answers, a
# rate that is 80 times smaller or counting the prompts in the loss?
#
# <details><summary>Answer</summary>
# The last token is the end of the answer: the model gives an answer and does not stop. The
# small rate costs more: after 200 steps, fewer than a tenth of the answers are right. (Nothing is
# tempting, because one of 75 tokens seems to be little.)
# </details>

# %%
rows, valid = (data.load_rows("questions", split) for split in ("train", "valid"))
examples, _ = data.encode_rows(rows, tokenizer, recipe)
shorter, cut = data.encode_rows(rows, tokenizer, replace(recipe, max_seq_length=74))
counted = np.mean([np.mean(example.mask) for example in examples])
print(f"{cut} of {len(rows)} rows are cut; the answers are {counted:.0%} of all tokens")

RUNS = {
    "the recipe": {},
    "--max-seq-length 74": {"max_seq_length": 74},
    "--no-mask-prompt": {"mask_prompt": False},
    "--learning-rate 5e-5": {"learning_rate": 5e-5},
}
prompt, answer = valid[0]["prompt"], valid[0]["completion"]
scores, outputs, cells = [], [], []
for name, changes in RUNS.items():
    run = finetune(iters=recipe.iters, **changes)
    found = scores_of(run.adapters, run.model, valid)  # whole rows, and only their answers count
    ids = minilora.generate(run.adapters, run.model, tokenizer.encode(prompt), max_tokens=40)
    scores.append(found)
    outputs.append(tokenizer.decode(list(ids)))
    cells.append([name, f"{found['loss']:.3f}", f"{found['exact_match']:.1%}", repr(outputs[-1])])
table(["run", "loss of the answers", "exact match", "output"], cells)

# %% [markdown]
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
ends = set(model.config.eos_token_id)
assert not any(set(example.tokens) & ends for example in shorter), "no cut row may have its end"
if not QUICK:
    sound, endless, prompts, slow = scores
    assert sound["exact_match"] > 0.9 and sound["loss"] < 0.05, "the recipe must learn the task"
    assert outputs[0] == answer, "the recipe must give the right answer"
    output = outputs[1]
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
# run, and the lesson or study about each.
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
