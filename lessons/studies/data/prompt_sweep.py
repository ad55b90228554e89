"""Eight facts become weights: from their sentences, or from a teacher that reads them.

About two minutes of one core. The base is the reader, in the folder next to this file: `micro`,
after 700 steps of questions about a sentence in its context. A run is 100 steps of an adapter
(LoRA, r = 8, all projections) for eight facts. The rates are chosen with the seeds CHOOSING, whose
facts no other run has. To train the reader again (half a minute):

    python -m minilora.lessons.studies.data.prompt_sweep NEW_FOLDER
"""

import sys
from functools import cache
from pathlib import Path

import autograd.numpy as np

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.batching import Example
from minilora.data.tasks import FIRST_NAMES, STATEMENT, WORDS, notes
from minilora.formats.pretrained import save_pretrained
from minilora.layers import value_and_grad
from minilora.lessons.helpers import rollouts
from minilora.lessons.helpers.common import batch_of, notes_loss, of
from minilora.lessons.studies.reward.rank_for_reward_sweep import in_five_digits

FORMS = {  # {form: (question, answer)}
    "keep": ("Where does {name} keep it?", " {place}."),
    "spot": ("{name} has a thing. Its place?", " {place}."),
    "find": ("Find the thing of {name}:", " {place}."),
    "go": ("Go to {name}. Where?", " {place}."),
    "who": ("Who keeps it in the {place}?", " {name}."),
}
SENTENCE = ("{name} keeps a {colour} {thing} in the", " {place}.")  # of the text itself
NONE = " none."  # the answer if there is no sentence
THREE = ("keep", "spot", "find")
WAYS = {  # {way: (its name, forms of its questions, whether the student answers, reverse KL)}
    "text": ("next token of the sentence", (), False, False),
    "off": ("off-policy", THREE[:1], False, False),
    "on": ("on-policy, reverse KL", THREE[:1], True, True),
    "on forward": ("on-policy, forward KL", THREE[:1], True, False),
    "off three": ("off-policy, three forms", THREE, False, False),
}
STEPS = 100
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SEEDS, CHOOSING = (0, 1, 2, 3, 4, 5), (6, 7)
JOBS = [(way, rate, seed) for way in WAYS for rate in RATES for seed in CHOOSING]
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))


# ---------------------------------------------------------------------------------- the reader


def draw_facts(rng):
    """Return two groups of eight facts: all names differ, and in a group all words."""
    columns = {
        part: [*rng.permutation(w)[:8], *rng.permutation(w)[:8]] for part, w in WORDS.items()
    }
    columns["name"] = rng.permutation(FIRST_NAMES)[:16]
    facts = [dict(zip(columns, map(str, values))) for values in zip(*columns.values())]
    return facts[:8], facts[8:]


def facts_of(seed):
    """Return the two groups of a seed's run: the facts that are trained, and others."""
    return draw_facts(np.random.default_rng([seed, 2]))


def reading_lesson(rng):
    """Return an example for the reader: a note, or a question after its sentence or after none."""
    if rng.random() < 0.2:
        note = list(notes(1, int(rng.integers(2**30)))[0][0]["text"].encode())
        return Example(note, [1] * len(note))
    fact = draw_facts(rng)[0][0]
    question, answer = FORMS[rng.choice(list(FORMS))]
    if rng.random() < 0.6:
        return rollouts.as_example(*encoded(f"{STATEMENT} {question}", answer, fact))
    return rollouts.as_example(*encoded(question, NONE, fact))


def encoded(question, answer, fact):
    """Return question and answer about a fact as token ids."""
    return list(question.format(**fact).encode()), list(answer.format(**fact).encode())


def write_reader(folder, iters=700):
    """Train all weights of `micro` to answer questions about a text; write it to a new folder."""
    model, tokenizer = minilora.load("micro")
    rng = np.random.default_rng(0)
    settings = TrainConfig(
        iters=iters, batch_size=16, learning_rate=4e-3, warmup_ratio=0.03, adam_beta2=0.99,
        also_train_lr_scale=1.0,
    )  # fmt: skip
    examples = [reading_lesson(rng) for _ in range(iters * settings.batch_size)]
    base, _ = minilora.train(model.base, model, examples, settings)
    save_pretrained(folder, model._replace(base=base), tokenizer, "float16")


@cache
def reader():
    """Return the stored reader."""
    return minilora.load(Path(__file__).parent / "reader").model


# -------------------------------------------------------------------------------- distillation


def answer_log_probs(adapters, model, prompts, answers):
    """Compute the log-probability of each token at the N places of all answers: (N, V)."""
    batch = batch_of([rollouts.as_example(*pair) for pair in zip(prompts, answers)])
    return rollouts.log_probabilities(adapters, model, batch)[batch["mask"] == 1]


def divergence(adapters, model, prompts, answers, teacher, reverse):
    """Compute the mean of KL(teacher‖student) per place, or of KL(student‖teacher) if `reverse`.

    teacher: its log-probabilities at the same places, (N, V), a constant.
    """
    student = answer_log_probs(adapters, model, prompts, answers)
    p, q = (student, teacher) if reverse else (teacher, student)
    return np.mean(np.sum(np.exp(p) * (p - q), axis=-1))


def distill(adapters, model, facts, forms, own, reverse, settings):
    """Train adapters to answer questions as the base does with the fact's sentence before them.

    A step asks one of the forms about each fact. own: the student writes the answers, which are
    otherwise the teacher's.
    """
    state = minilora.start(adapters, settings)
    batches = {}
    for step in range(settings.iters):
        form = forms[step % len(forms)]
        if own or form not in batches:
            question, answer = FORMS[form]
            asked = [encoded(question, answer, fact)[0] for fact in facts]
            read = [encoded(f"{STATEMENT} {question}", answer, fact)[0] for fact in facts]
            writer = (state.adapters, model, asked) if own else ({}, model, read)
            answers = rollouts.sample(*writer, [settings.seed, step], max_tokens=8)
            batches[form] = asked, answers, answer_log_probs({}, model, read, answers)
        _, grads = value_and_grad(divergence)(state.adapters, model, *batches[form], reverse)
        state = rollouts.descend(state, grads, settings)
    return state.adapters


def train(way, rate, seed, iters=STEPS):
    """Train an adapter of the reader for the facts of a seed in one of WAYS; return it."""
    adapters, model = minilora.get_peft_model(reader(), LORA, seed)
    settings = TrainConfig(iters=iters, batch_size=8, learning_rate=rate, seed=seed)
    facts, _ = facts_of(seed)
    _, forms, own, reverse = WAYS[way]
    if forms:
        return distill(adapters, model, facts, forms, own, reverse, settings)
    texts = [list(STATEMENT.format(**fact).encode()) for fact in facts]
    examples = [Example(text, [1] * len(text)) for text in texts]
    return minilora.train(adapters, model, examples, settings, quiet=True)[0]


# --------------------------------------------------------------------------------- the results


def right(adapters, model, question, answer, facts):
    """Return the mean probability of the right answers to a question about some facts."""
    batch = batch_of([rollouts.as_example(*encoded(question, answer, fact)) for fact in facts])
    log_p = rollouts.log_probabilities(adapters, model, batch)
    return float(np.exp(rollouts.of_targets(log_p, batch)).mean())


def scores(adapters, seed):
    """Return what a run is judged by: probabilities of right answers, and a loss in nats.

    none: "none." for other names. reads: the place of a sentence before the question, about another
    name; moved: about a name that was trained, with another place. notes: the loss on the language
    of `micro`.
    """
    facts, others = facts_of(seed)
    moved = [fact | {"place": next["place"]} for fact, next in zip(facts, facts[1:] + facts)]
    go, place = FORMS["go"]
    model = reader()
    row = {form: right(adapters, model, *FORMS[form], facts) for form in FORMS}
    row["sentence"] = right(adapters, model, *SENTENCE, facts)
    row["none"] = right(adapters, model, go, NONE, others)
    row["reads"] = right(adapters, model, f"{STATEMENT} {go}", place, others)
    row["moved"] = right(adapters, model, f"{STATEMENT} {go}", place, moved)
    return row | {"notes": notes_loss(adapters, model, 64)}


def run(job, steps=STEPS):
    """Train one adapter, and return its scores."""
    way, rate, seed = job
    row = scores(train(way, rate, seed, steps), seed)
    return dict(zip(("way", "rate", "seed"), job)) | in_five_digits(row)


def best_rate(rows, way):
    """Return the rate that forgot least on CHOOSING, of those that learned what was trained.

    Learned: the mean probability of right answers is at least 0.9. If it is with no rate, the best.
    """
    trained = "sentence" if way == "text" else WAYS[way][1][0]

    def score(rate):
        of_rate = [row for row in rows if row["rate"] == rate and row["seed"] in CHOOSING]
        learned, lost = (np.mean(of(of_rate, name, way=way)) for name in (trained, "notes"))
        return min(learned, 0.9), -lost

    return max(RATES, key=score)


def more(rows):
    """Return the jobs of SEEDS, each way at its best rate."""
    return [(way, best_rate(rows, way), seed) for way in WAYS for seed in SEEDS]


if __name__ == "__main__":
    write_reader(sys.argv[1])
