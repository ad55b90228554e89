# %% [markdown]
# # A new head for classes
#
# **The question.** The answer is one of eight classes. Is a new head on the frozen model enough, or
# must the model itself be trained, too? And which score shows the difference?
#
# **Continues:** [lesson 9](../../09_is_it_good.py).
#
# **Time:** 10 seconds to run, ten minutes to read. **You need:** lesson 1 and the study
# [Calibration](calibration.py).

# %%
import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.data import tasks
from minilora.evaluation.metrics import calibration_error
from minilora.lessons.helpers.class_head import class_logits, fit, probabilities
from minilora.lessons.helpers.common import short, table

ITERS, ROWS = short(150, 10), (24, 400)
model, words = minilora.load("micro")

# %% [markdown]
# ## The head
#
# A language model computes a state h for each token. Its own head compares h with all tokens. A
# head for classes has one row per class. It reads only the **last** token's state, because only
# this token has seen the whole text:
#
# $$p = \mathrm{softmax}(W h_{\text{last}}), \qquad W \text{ of shape } (C, D)$$
#
# PEFT has the same head: `task_type="SEQ_CLS"` adds the matrix `score` and saves it with the
# adapter. A test compares our logits with PEFT's. The code is in
# [`class_head.py`](../../helpers/class_head.py); this is its main line:
#
# ```python
# layers.matmul(last_states(trained, model, texts), trained["score"]["weight"])
# ```
#
# The classes are the eight places of the small models' language. In its notes, a sentence may be
# followed by " In the" and its place again. So the head reads a sentence with one of two ends: as
# it is, or with " In the" after it.

# %%
ENDS = {"the note": "", 'the note, then " In the"': " In the"}


def texts_of(split, n, end):
    """Return (n lists of token ids, their classes (n,)): notes and the numbers of their places."""
    rows = tasks.questions(split, n, seed=0)
    texts = [words.encode(row["prompt"].replace(tasks.QUESTION, ENDS[end])) for row in rows]
    places = [row["completion"].rpartition(", ")[2].strip(".") for row in rows]
    return texts, np.array([tasks.PLACES.index(place) for place in places])


for end in ENDS:
    texts, classes = texts_of("train", 1, end)
    print(f"class {classes[0]} ({tasks.PLACES[classes[0]]}): {words.decode(texts[0])!r}")

# %% [markdown]
# ## Alone, and with LoRA
#
# **Predict.** W starts at zero. What is the loss of the first step? The head is trained alone on
# 400 notes. With which end does it find the place? And what can LoRA learn from 24 notes, about
# three per class?


# %%
def run(trains, end, n):
    """Train a head, alone or with LoRA, on n notes: return (its scores, its losses)."""
    rate, trained = 5e-2, {}
    if trains == "head and LoRA":
        lora_config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        trained, _ = minilora.get_peft_model(model, lora_config, 0)
        rate = 4e-3
    weight = np.zeros((len(tasks.PLACES), model.config.hidden_size), np.float32)
    trained = {**trained, "score": {"weight": weight}}
    settings = TrainConfig(iters=ITERS, batch_size=16, learning_rate=rate, also_train_lr_scale=1.0)
    trained, losses = fit(trained, model, *texts_of("train", n, end), settings)
    texts, classes = texts_of("test", short(400, 40), end)
    p = probabilities(class_logits(trained, model, texts))
    sure, hit = p.max(axis=1), p.argmax(axis=1) == classes
    ece = calibration_error(sure, hit)
    return {"accuracy": hit.mean(), "confidence": sure.mean(), "ECE": ece}, losses


CASES = [("head alone", end) for end in ENDS] + [("head and LoRA", "the note")]
runs = {(*case, n): run(*case, n) for case in CASES for n in ROWS}
cells = [[*case, *(f"{x:.3f}" for x in scores.values())] for case, (scores, _) in runs.items()]
table(["trained", "text", "rows", "accuracy", "confidence", "ECE"], cells)

# %% [markdown]
# **Answer.** The first loss is log 8 = 2.08 nats: all classes are equally likely. Alone, the head
# finds the place only with " In the", because it is linear, and reads one state. With LoRA, 24
# notes are enough for more than 85 %.
#
# (`micro`, 0.1 million parameters, one seed, and one learning rate for the head and one for LoRA.)
#
# - **The end of the text matters for the head alone.** At the end of the note fewer than three of
#   ten are right, also with 400 rows. After " In the", more than 95 % are, also with 24 rows.
# - **The accuracy does not show everything.** After " In the" the head alone is right in more than
#   95 %, and its mean confidence is below 0.8. The ECE shows it. (A reason may be that W, after 150
#   steps from zero, is still too small for large logits.)
#
# ## What was shown
#
# A head for classes is one matrix on the last token's state. At the end of a note, it finds the
# place with LoRA and not alone. A head with a high accuracy can have a high ECE.
#
# **What to try.**
#
# 1. `ITERS, ROWS = short(150, 10), ...`: 1,000 steps. Does the ECE of the head alone fall?
# 2. `tasks.PLACES`: classify the colour, the second word after "keeps". Which end would help?
# 3. `target_modules="all-linear"`: only q_proj and v_proj. Are 24 rows still enough?
#
# **Where to stop with a debugger.** `last_states` in `class_head.py`: `last`, and the shape of x.
#
# **Exercises.** calibration, one-file-loss.
#
# **Further reading.** Howard and Ruder 2018, *Universal Language Model Fine-tuning for Text
# Classification*: [arXiv:1801.06146](https://arxiv.org/abs/1801.06146). Alain and Bengio 2016, on
# linear heads as probes: [arXiv:1610.01644](https://arxiv.org/abs/1610.01644).

# %%
# Checks
_, losses = runs["head and LoRA", "the note", 24]
assert abs(losses[0] - np.log(8)) < 1e-5, "a head of zeros must guess"
for n in short(ROWS, ()):
    plain, asked, adapted = (runs[(*case, n)][0] for case in CASES)
    assert plain["accuracy"] < 0.3, f"{n} rows: the head alone must not find the place"
    assert asked["accuracy"] > 0.95, f"{n} rows: after In the, the head alone must find it"
    assert asked["confidence"] < 0.8, f"{n} rows: it must be unsure"
    assert asked["ECE"] > 0.1 > 0.06 > adapted["ECE"], f"{n} rows: the ECE must tell them apart"
    assert adapted["accuracy"] > 0.85, f"{n} rows: LoRA must find the place"
