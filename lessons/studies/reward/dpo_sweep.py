"""DPO with labels of two kinds, at five learning rates.

About four minutes of one core. A run is 100 steps of 16 pairs on `micro`, with all seven
projections at r = 8. The rewards of the three answers are known, and so is the optimum of DPO.
"""

import numpy as np

import minilora
from minilora import LoraConfig, TrainConfig
from minilora.data.tasks import ECHOES
from minilora.lessons.helpers import echoes, preference

LABELS = ("noisy", "certain")
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SEEDS = (0, 1, 2, 3, 4)
JOBS = [(labels, rate, seed) for labels in LABELS for rate in RATES for seed in SEEDS]
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=("all-linear",))
BETA = 0.5
FORMS = [f" {echo}" for echo in ECHOES]  # of the three answers
NAMES = ("who", "what", "place")  # in the order of ECHOES
REWARDS = np.array([0.5, 0.0, 1.0])
# (better answer, worse answer) of each pair of answers
PAIRS = [(2, 0), (2, 1), (0, 1)]
BETTER, WORSE = np.transpose(PAIRS)
STEPS = (0, 10, 25, 50, 100)  # after which the log-probabilities are stored


def win_probability(labels):
    """Return the probability that the better answer is the chosen one, per pair of PAIRS."""
    if labels == "certain":
        return np.ones(len(PAIRS))
    # p(a is preferred to b) = σ(r(a) − r(b))   (Bradley and Terry 1952)
    return 1 / (1 + np.exp(REWARDS[WORSE] - REWARDS[BETTER]))


def labelled_pairs(labels, seed):
    """Return a pair (prompt, chosen, rejected) for each of 4,000 training rows."""
    rng = np.random.default_rng([seed, 1])
    wins = win_probability(labels)
    pairs = []
    for row in echoes.rows("train", 4000):
        i = rng.integers(len(PAIRS))
        pair = PAIRS[i] if rng.random() < wins[i] else PAIRS[i][::-1]
        chosen, rejected = (row.answer(FORMS[answer]) for answer in pair)
        pairs.append((row.prompt, chosen, rejected))
    return pairs


def all_log_probs(adapters, model, split, n):
    """Return log p of the three answers to n prompts of a split: (n, 3)."""
    rows = echoes.rows(split, n)
    columns = []
    for form in FORMS:
        batch = echoes.batch_of(rows, [row.answer(form) for row in rows])
        columns.append(preference.answer_log_probs(adapters, model, batch))
    return np.stack(columns, axis=1)


def optimum(reference):
    """Return the optimal probabilities (n, 3), given log p of the reference."""
    # π*(y|x) = π_ref(y|x)·exp(r(x, y)/β) / Z(x)   (Rafailov et al. 2023, Eq. 4)
    p = np.exp(reference + REWARDS / BETA)
    return p / p.sum(axis=1, keepdims=True)


def scores(log_probs, reference, labels):
    """Return what a run is judged by: the expected loss, log-probabilities, shares, rewards."""
    wins = win_probability(labels)
    rewards = BETA * (log_probs - reference)
    m = rewards[:, BETTER] - rewards[:, WORSE]
    loss = wins * np.logaddexp(0, -m) + (1 - wins) * np.logaddexp(0, m)
    a, b = log_probs[:, BETTER], log_probs[:, WORSE]
    p = np.exp(log_probs)
    row = {
        "loss": loss.mean(), "mass": p.sum(axis=1).mean(),
        "chosen": (wins * a + (1 - wins) * b).mean(),
        "rejected": (wins * b + (1 - wins) * a).mean(),
    }  # fmt: skip
    # rewards are defined up to a constant per prompt: relative to the answer "what"
    of_answers = {"share": p / p.sum(axis=1, keepdims=True), "p": p}
    of_answers["reward"] = rewards - rewards[:, 1:2]
    for column, values in of_answers.items():
        row |= {f"{column}_{name}": x for name, x in zip(NAMES, values.mean(axis=0))}
    return row


def train(labels, rate, seed, iters=100, on_step=None):
    """Train one adapter, and return it."""
    model, _ = minilora.load("micro")
    adapters, model = minilora.get_peft_model(model, LORA, seed)
    settings = TrainConfig(iters=iters, batch_size=16, learning_rate=rate, seed=seed)
    pairs = labelled_pairs(labels, seed)
    return preference.fit(adapters, model, pairs, settings, BETA, on_step=on_step)


def run(job):
    """Train one adapter; return its row."""
    labels, rate, seed = job
    model, _ = minilora.load("micro")
    reference = {split: all_log_probs({}, model, split, 200) for split in ("valid", "test")}
    curve = {}

    def store(step, adapters):
        if step in STEPS:
            found = all_log_probs(adapters, model, "test", 64)
            seen = scores(found, reference["test"][:64], labels)
            curve.update({f"{name}_{step}": seen[name] for name in ("chosen", "rejected")})

    adapters = train(labels, rate, seed, on_step=store)
    store(STEPS[-1], adapters)
    valid, test = (
        scores(all_log_probs(adapters, model, split, 200), reference[split], labels)
        for split in reference
    )
    row = {"labels": labels, "rate": rate, "seed": seed, "valid_loss": valid["loss"]}
    return row | test | curve
