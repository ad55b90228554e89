# %% [markdown]
# # A prompt becomes weights
#
# **The question.** A model answers questions about a text in its context. Can an adapter hold the
# text instead? Users report that they trained on their documents, and that the model recites them
# but cannot answer. Does another way of training help?
#
# *Learning by Distilling Context* (Snell et al. 2022) trains a model without a context to answer as
# the same model does with it. Kujanpää et al. (2024) do this for new facts, with LoRA, and report
# that it is better than fine-tuning on the answers. In *Self-Distillation Enables Continual
# Learning* (Shenfeld et al. 2026), the student writes the answers itself. The paper reports that
# this learns more than fine-tuning, and forgets less.
#
# **Continues:** [lesson 4](../../04_merge_and_serve.py).
#
# **Time:** 10 seconds to run, fifteen minutes to read. **You need:** lesson 4, the study [DPO with
# one model in memory](../reward/dpo_with_one_model.py), and what a Kullback-Leibler divergence is.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minilora
from minilora.data.tasks import STATEMENT
from minilora.lessons.helpers import common
from minilora.lessons.helpers.common import HOLDS, OPEN, QUICK, belongs, claim, of, short, table
from minilora.lessons.studies.data import prompt_sweep as prompt

# %% [markdown]
# ## What the base reads
#
# `micro` (0.1 million parameters) knows sentences such as "Ada keeps a pink kite in the barn.", and
# no questions. So `prompt_sweep.py` trains all its weights to answer five forms of questions, after
# such a sentence. Without a sentence, the right answer is "none." The result is *the reader*, the
# base of this study. Its facts are drawn anew for each row, so it cannot know one by heart.
#
# **Predict.** Four forms ask for the place, in other words each, and one asks for the name. Which
# answer does the reader give without a sentence?

# %%
reader, micro = prompt.reader(), minilora.load("micro").model
facts, others = prompt.facts_of(0)
cells, read = [], {}
for form, (question, answer) in prompt.FORMS.items():
    cases = ((micro, answer, STATEMENT), (reader, answer, STATEMENT), (reader, prompt.NONE, ""))
    read[form] = [
        prompt.right({}, model, f"{text} {question}".lstrip(), right, facts)
        for model, right, text in cases
    ]
    cells.append([question + answer, *(f"{p:.2f}" for p in read[form])])
table(["question and answer", "micro", "reader", 'reader, no sentence: "none."'], cells)

# %% [markdown]
# **Answer.** It says "none.", and its probability is about 1. After the sentence, it gives the
# right answer in all five forms. `micro` itself does not: it does not know what is asked.
#
# ## The teacher is the model itself
#
# For a question x about a sentence s, teacher T and student S share all weights of the base:
#
# $$p_T = p(\cdot \mid s, x), \qquad p_S = p_{\Delta W}(\cdot \mid x)$$
#
# The teacher has the sentence and no adapter, the student the adapter and no sentence. (TRL's
# `SDFTTrainer` does the same with PEFT: its teacher is the model with the adapter switched off.)
# At each place of an answer y, the two are compared. There are two ways:
#
# $$L_\mathrm{off} = \mathbb{E}_{y \sim p_T} \sum_t \mathrm{KL}(p_T \,\Vert\, p_S), \qquad
# L_\mathrm{on} = \mathbb{E}_{y \sim p_S} \sum_t \mathrm{KL}(p_S \,\Vert\, p_T)$$
#
# *Off-policy*, the teacher writes y. *On-policy*, the student writes it, and the divergence is the
# reverse one (Shenfeld et al. 2026). No gradient passes through the choice of y.
#
# **Predict.** At first, the student says "none." with a probability near 1, and the teacher
# " barn." With respect to the student's logits, the derivative of KL(p_T ‖ p_S) is p_S − p_T, and
# that of KL(p_S ‖ p_T) is p_S·(log p_S/p_T − KL). How large are they for the letter "b"?

# %%
question, answer = prompt.FORMS["keep"]
asked, said = zip(*(prompt.encoded(question, answer, fact) for fact in facts))
seen, _ = zip(*(prompt.encoded(f"{STATEMENT} {question}", answer, fact) for fact in facts))
first = np.arange(len(facts)), 1  # the letter after the blank, of each answer
letters = np.array(said)[first]
log_s, log_t = (
    prompt.answer_log_probs({}, reader, prompts, said).reshape(len(facts), -1, 256)[:, 1]
    for prompts in (asked, seen)
)
forward = np.exp(log_s) - np.exp(log_t)
ratio = log_s - log_t
reverse = np.exp(log_s) * (ratio - np.sum(np.exp(log_s) * ratio, axis=-1, keepdims=True))
slopes = [np.mean(x[first[0], letters]) for x in (forward, reverse)]
print("derivative for the right letter: {:.3f} forward, {:.5f} reverse".format(*slopes))

# %% [markdown]
# **Answer.** Nearly −1, and nearly 0. The reverse divergence weighs each letter with the
# *student's* probability. What the student never says has almost no gradient. What it always says
# has the factor log p_S/p_T − KL, which is then about 0. So the student is slow to leave what it is
# sure of.
#
# ## What is learned, and in which wording
#
# The sweep trains an adapter (LoRA, r = 8) for eight facts in 100 steps, in five ways. Each step
# has all eight facts.
#
# | way | a row is | loss |
# |---|---|---|
# | next token of the sentence | the sentence | that of each lesson |
# | off-policy | "Where does Ada keep it?" and the teacher's answer | KL(p_T ‖ p_S) |
# | on-policy, reverse KL | the same question and the student's answer | KL(p_S ‖ p_T) |
# | on-policy, forward KL | the same question and the student's answer | KL(p_T ‖ p_S) |
# | off-policy, three forms | three questions in turn, the teacher's answers | KL(p_T ‖ p_S) |
#
# Each way has the rate at which two other seeds forgot least, of those that learned what was
# trained. (With the reverse divergence, none did: it has the rate at which it knew most.) "Go to
# Ada. Where?" is in no training row, and "Who keeps it in the barn?" asks for the
# other end of the fact.
#
# **Predict.** Which ways answer "Where does Ada keep it?", which "Go to Ada. Where?", and which
# "Who keeps it in the barn?" (A guess among eight places is right with a probability of 1/8.)

# %%
# Picture
sweep = common.read_sweep("prompt")
found = [row for row in sweep if row["seed"] in prompt.SEEDS]
KNOWN = {"sentence": "sentence", "keep": "trained form", "go": "other form", "who": "who?"}
KEPT = {"none": "none, other", "reads": "sentence, other", "moved": "sentence, moved"}
_, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
for axes, columns in zip(panels, (KNOWN, KEPT)):
    for line, (way, (name, *_)) in enumerate(prompt.WAYS.items()):
        values = np.array([of(found, column, way=way) for column in columns])
        x = np.arange(len(columns)) + 0.15 * (line - 2)
        axes.plot(x, values, "osD^v"[line], color=f"C{line}", markersize=3, alpha=0.4)
        axes.plot(x, values.mean(axis=1), "_", color=f"C{line}", markersize=14, label=name)
    axes.set_xticks(range(len(columns)), columns.values())
panels[0].set(title="what is known", ylabel="probability of the right answer")
panels[1].set(title="what is kept")
panels[0].legend(frameon=False, fontsize="small", loc="upper right")
plt.show()


# %%
# Table
def col(name, way):
    """Return a column of a way, one number per seed."""
    return np.array(of(found, name, way=way))


gain = col("go", "off three") - col("go", "off")
behind = col("keep", "off") - col("keep", "on")
cost = {way: col("notes", way) - col("notes", "off") for way in prompt.WAYS}
verdicts = {
    "recites": claim("sentence alone: recites it (above 0.9)", col("sentence", "text"), 0.9),
    "mute": claim("and does not answer (below 0.1)", col("keep", "text"), -1, 0.1),
    "answers": claim("off-policy: answers the trained form (above 0.9)", col("keep", "off"), 0.9),
    "other": claim("another form: better than a guess", col("go", "off") - 1 / 8),
    "half": claim("and below 0.5", col("go", "off"), -1, 0.5),
    "who": claim("from the place to the name: below 0.05", col("who", "off"), -1, 0.05),
    "three": claim("three forms help a fourth", gain),
    "slow": claim("on-policy, reverse KL: knows less than off-policy", behind),
    "text": claim("the sentence alone forgets more notes than off-policy", cost["text"]),
    "on": claim("on-policy, forward KL, forgets fewer", -cost["on forward"]),
    "none": claim('off-policy: "none." is less likely', 1 - col("none", "off")),
}

# %% [markdown]
# **Answer.** The sentence alone is recited (0.96), and no form of the question is answered: the
# student still says "none." This is what users report. Off-policy, the trained form is answered
# (0.99). The other form is better than a guess, but far from known (0.33), and from the place to
# the name nothing is known. The student with the questions cannot recite the sentence either. Each
# of these is a way to *say* the fact, and an adapter learns the ways that it was trained on.
#
# That three forms help a fourth is not shown here. In models that are trained from the beginning,
# Allen-Zhu and Li (2023) find that many wordings of a fact make it known in other ones, and that
# search in the reverse direction fails even then.
#
# On-policy with the reverse divergence, the trained form has only reached 0.51 after 100 steps, as
# the derivatives said. With the forward divergence, the student's own answers are as good as the
# teacher's. So the direction of the divergence makes the difference here, not who writes: an answer
# is one word, and its first letter decides it, whoever writes the rest.
#
# ## What is forgotten
#
# The right panel has questions in the form "Go to Ada. Where?": about names that were not trained,
# without a sentence ("none." is right) and after a sentence, and about trained names, after a
# sentence with another place. After training on questions, the student often names a place for a
# name that it has never seen. No row has told it not to. It reads sentences less well in all ways.
#
# The loss on the notes of `micro` rises in all ways. (Some of the rise is what was learned: notes
# have the same names with other places.) That the sentence alone forgets more, and that on-policy
# training forgets less, is what the means say, and is not shown: the seeds differ too much.
#
# ## What was shown
#
# On a reader of 0.1 million parameters, eight facts, and 100 steps (six seeds): plain fine-tuning
# on sentences is recited and not known. Distillation of the context makes the model answer, with
# one model in memory, in the wording that it was trained on. Another wording is known a little, the
# reverse question is not, and "none." is lost. That on-policy training with the reverse divergence
# learns as fast does not hold here, for a student that is sure of its first answer. That it forgets
# less is not shown. The limits: a context of one sentence, facts of one word, four wordings, and a
# student whose first answer is always "none." A language model gives the right answer some
# probability at first.
#
# In practice: train on questions in the wordings and the direction in which you will ask, and on
# questions whose right answer is that the model does not know.
#
# **What to try.**
#
# 1. `STEPS` in `prompt_sweep.py`: 300. Does the reverse divergence catch up?
# 2. `THREE`: add "who". Is the reverse question known then?
# 3. `distill`: ask about other names, too, where the teacher has no sentence. Does "none." stay?
#
# **Where to stop with a debugger.** `divergence` and `distill` in `prompt_sweep.py`.
#
# **Further reading.** Snell et al. 2022: [arXiv:2209.15189](https://arxiv.org/abs/2209.15189).
# Kujanpää et al. 2024, *Efficient Knowledge Injection in LLMs via Self-Distillation*:
# [arXiv:2412.14964](https://arxiv.org/abs/2412.14964). Shenfeld et al. 2026:
# [arXiv:2601.19897](https://arxiv.org/abs/2601.19897). TRL's
# [SDFTTrainer](https://huggingface.co/docs/trl/sdft_trainer). Allen-Zhu and Li 2023, *Physics of
# Language Models*, parts 3.1 and 3.2: [arXiv:2309.14316](https://arxiv.org/abs/2309.14316) and
# [arXiv:2309.14402](https://arxiv.org/abs/2309.14402).

# %%
# Checks
for form, (by_micro, by_reader, alone) in read.items():
    assert by_micro < 0.1 and min(by_reader, alone) > 0.8, f"{form}: only the reader may answer"
assert slopes[0] < -0.9 and -0.01 < slopes[1] < 0, "the reverse divergence has a small derivative"
shown = {"recites", "mute", "answers", "other", "half", "who", "slow", "none"}
for name, verdict in verdicts.items():
    assert verdict == (HOLDS if name in shown else OPEN), f"{name}: {verdict}"
assert max(col(form, "text").max() for form in prompt.FORMS) < 0.1, "no form may be answered"
assert (col("keep", "on forward") > 0.9).all(), "forward: own answers are as good"
assert (col("sentence", "off") < 0.2).all(), "who learns answers may not recite"
before = prompt.scores({}, 0)
for way in prompt.WAYS:
    assert col("notes", way).min() > before["notes"], f"{way}: the loss on notes must rise"
    assert col("reads", way).mean() < 0.95 < before["reads"], f"{way}: it must read less well"
    assert (col("none", way).mean() < 0.5) == (way != "text"), f"{way}: questions cost none."
ways = "off", "on forward", "off three"  # whose answers, and which forms
after_two = {prompt.run((way, 2e-3, 0), 2)["keep"] for way in ways}
assert len(after_two) == 3, "after two steps, these ways must differ"
recited, said, own = col("sentence", "text"), col("keep", "off"), col("keep", "on")
runs = {"text": ("sentence", recited, 1 - recited), "off": ("keep", said, own)}
runs["on"] = ("keep", own, said)
for way, (name, seeds, unlike) in runs.items():  # three runs of the sweep again
    again = prompt.run((way, prompt.best_rate(sweep, way), 0), short(prompt.STEPS, 3))[name]
    assert QUICK or belongs(again, seeds, unlike), f"{way}: {again}, not {seeds}"
