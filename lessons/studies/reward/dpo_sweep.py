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
NAMES = ("who", "what", "place")  # of the three answers, in the order of ECHOES
REWARDS = np.array([0.5, 0.0, 1.0])
# (better answer, worse answer) of each pair of answers
PAIRS = [(2, 0), (2, 1), (0, 1)]
STEPS = (0, 10, 25, 50, 100)  # after which the log-probabilities are stored


def win_probability(labels):
    """Return the probability that the better answer is the chosen one, per pair of PAIRS."""
    if labels == "certain":
        return np.ones(len(PAIRS))
    # p(a is preferred to b) = σ(r(a) − r(b))   (Bradley and Terry 1952)
    return np.array([1 / (1 + np.exp(REWARDS[b] - REWARDS[a])) for a, b in PAIRS])


def prompts_and_answers(split, n):
    """Return n times (prompt, [its three answers]) as token ids, for the questions' split."""
    forms = [f" {echo}" for echo in ECHOES]
    return [(row.prompt, list(map(row.answer, forms))) for row in echoes.rows(split, n)]


def labelled_pairs(labels, seed):
    """Return a pair (prompt, chosen, rejected) for each of 4,000 training rows."""
    rng = np.random.default_rng([seed, 1])
    wins = win_probability(labels)
    pairs = []
    for prompt, answers in prompts_and_answers("train", 4000):
        i = rng.integers(len(PAIRS))
        better, worse = PAIRS[i]
        chosen, rejected = (better, worse) if rng.random() < wins[i] else (worse, better)
        pairs.append((prompt, answers[chosen], answers[rejected]))
    return pairs


def all_log_probs(adapters, model, split, n):
    """Return log p of the three answers to n prompts of a split: (n, 3)."""
    rows = prompts_and_answers(split, n)
    columns = []
    for i in range(len(NAMES)):
        batch = preference.batch_of([(prompt, answers[i], answers[i]) for prompt, answers in rows])
        half = {name: x[:n] for name, x in batch.items()}  # chosen and rejected are the same
        columns.append(preference.answer_log_probs(adapters, model, half))
    return np.stack(columns, axis=1)


def optimum(reference):
    """Return the optimal probabilities (n, 3), given log p of the reference."""
    # π*(y|x) = π_ref(y|x)·exp(r(x, y)/β) / Z(x)   (Rafailov et al. 2023, Eq. 4)
    p = np.exp(reference + REWARDS / BETA)
    return p / p.sum(axis=1, keepdims=True)


def scores(log_probs, reference, labels):
    """Return what a run is judged by: the expected loss, log-probabilities, shares, rewards."""
    wins = win_probability(labels)
    better, worse = np.transpose(PAIRS)
    rewards = BETA * (log_probs - reference)
    m = rewards[:, better] - rewards[:, worse]
    loss = wins * np.logaddexp(0, -m) + (1 - wins) * np.logaddexp(0, m)
    a, b = log_probs[:, better], log_probs[:, worse]
    p = np.exp(log_probs)
    row = {"loss": loss.mean(), "mass": p.sum(axis=1).mean()}
    row |= {"chosen": (wins * a + (1 - wins) * b).mean()}
    row |= {"rejected": (wins * b + (1 - wins) * a).mean()}
    share = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
    row |= {f"share_{name}": x for name, x in zip(NAMES, share)}
    row |= {f"p_{name}": x for name, x in zip(NAMES, p.mean(axis=0))}
    # rewards are defined up to a constant per prompt: relative to the answer "what"
    row |= {f"reward_{name}": x for name, x in zip(NAMES, (rewards - rewards[:, 1:2]).mean(axis=0))}
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
    references = {split: all_log_probs({}, model, split, 200) for split in ("valid", "test")}
    row = {"labels": labels, "rate": rate, "seed": seed}

    def store(step, adapters):
        if step in STEPS:
            found = all_log_probs(adapters, model, "test", 64)
            seen = scores(found, references["test"][:64], labels)
            curve.update({f"{name}_{step}": seen[name] for name in ("chosen", "rejected")})

    curve = {}
    adapters = train(labels, rate, seed, on_step=store)
    store(STEPS[-1], adapters)
    for split, reference in references.items():
        found = scores(all_log_probs(adapters, model, split, 200), reference, labels)
        row |= {"valid_loss": found["loss"]} if split == "valid" else found
    return row | curve
