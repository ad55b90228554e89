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

# %% [markdown]
# **Answer.** Ten, although each of these settings is in some recipe. The recipe of the study [The
# lines of PEFT](../serving/the_lines_of_peft.py) raises none.
#
# ## Three of the mistakes, tried
#
# - `--max-seq-length 74`: each row has 75 tokens, so the last token of each row is cut.
# - `--no-mask-prompt`: the loss counts the prompts, too.
# - `--learning-rate 5e-5`: 80 times smaller than the recipe's.
#
# **Predict.** What is lost if the last token of each row is cut? Which costs more exact answers, a
# rate that is 80 times smaller or counting the prompts in the loss?

# %%
valid = data.load_rows("questions", "valid")
CHANGES = {
    "the recipe": {},
    "--max-seq-length 74": {"max_seq_length": 74},
    "--no-mask-prompt": {"mask_prompt": False},
    "--learning-rate 5e-5": {"learning_rate": 5e-5},
}
runs = {name: finetune(iters=recipe.iters, **changes) for name, changes in CHANGES.items()}
scores, outputs, cells = [], [], []
for name, run in runs.items():
    found = scores_of(run.adapters, model, valid)  # whole rows, and only their answers count
    ids = tokenizer.encode(valid[0]["prompt"])
    output = tokenizer.decode(list(minilora.generate(run.adapters, model, ids, max_tokens=40)))
    scores.append(found["exact_match"])
    outputs.append(output)
    cells.append([name, f"{found['loss']:.3f}", f"{scores[-1]:.1%}", repr(output)])
table(["run", "loss of the answers", "exact match", "output"], cells)

# %% [markdown]
# **Answer.** The last of the 75 tokens is the end of the answer: the model gives the right answer
# and does not stop, and fewer than a tenth of the answers count as exact. The small rate costs more
# than the prompts: after 200 steps, fewer than a tenth of the answers are right. If the prompts
# count, fewer than half are. None of these runs failed with an error. (`micro`, 0.1 million
# parameters, one seed.)
#
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

# %%
# Checks
assert of_recipe == [], "the recipe must be sound"
assert len(asked) == 10, "the minimal QLoRA must raise ten questions"
examples, _ = data.encode_rows(valid, tokenizer, recipe)
assert {len(row.tokens) for row in examples} == {75}, "every row must have 75 tokens"
assert {row.tokens[-1] for row in examples} <= set(model.config.eos_token_id), "the end is last"
if not QUICK:
    sound, endless, prompts, slow = scores
    answer = valid[0]["completion"]
    assert sound > 0.9 and outputs[0] == answer, "the recipe must give the right answer"
    assert endless < 0.1, "a cut run must give no exact answer"
    assert outputs[1].startswith(answer) and outputs[1] != answer, "it must answer and not stop"
    assert slow < 0.1 and slow < prompts < 0.5, "the small rate must cost more than the prompts"
