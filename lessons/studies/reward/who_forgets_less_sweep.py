"""The same reward, reached by reinforcement and by imitating three forms of answers.

About seven minutes of one core. A run is at most 120 steps of 32 answers on `micro`, with LoRA of
r = 8 on all projections. It is scored every five steps, and ends when its expected reward is at
least GOAL. The runs of the split "valid" choose the learning rates; those of the split "test" are
the result.
"""

from autograd.tracer import getval

import minilora
from minilora import TrainConfig
from minilora.layers import np
from minilora.lessons.helpers import echoes, rollouts
from minilora.lessons.helpers.common import of
from minilora.lessons.studies.reward.rank_for_reward_sweep import in_five_digits, start_of

STEPS, EVERY = 120, 5
GOAL = 0.8
WAYS = {
    "reward": "reinforcement", "own": "imitation, own form", "near": "imitation, near form",
    "foreign": "imitation, foreign form",
}  # fmt: skip
SMALL, LARGE = (1.25e-4, 2.5e-4), (5e-4, 1e-3, 2e-3, 4e-3)
RATES = {
    "reward": SMALL + LARGE, "own": SMALL + LARGE, "near": LARGE, "foreign": LARGE,
    "weighted": (2e-3, 4e-3, 8e-3, 1.6e-2),  # imitation of the near form with `weighted_loss`
}  # fmt: skip
SEEDS = (0, 1, 2, 3, 4)
MORE = {"near": (7, 8, 9), "weighted": (7, 8, 9)}  # these two are compared with eight seeds
TUNING_SEEDS = (5, 6)
JOBS = [(way, rate, "valid", seed) for way in RATES for rate in RATES[way] for seed in TUNING_SEEDS]


def more(rows):
    """Return the jobs of the split "test": each way at its best rate."""
    seeds = {way: (*SEEDS, *MORE.get(way, ())) for way in RATES}
    return [(way, best_rate(rows, way), "test", seed) for way in RATES for seed in seeds[way]]


def best_rate(rows, way):
    """Return the rate that forgot least on "valid", of those that always reached the goal."""
    means = {}
    for rate in RATES[way]:
        case = {"way": way, "rate": rate, "split": "valid"}
        if min(of(rows, "reward", **case)) >= GOAL:
            means[rate] = np.mean(of(rows, "forgotten", **case))
    return min(means, key=means.get)


def weighted_loss(adapters, model, batch):
    """Compute the loss with each token's part times its probability, as a constant (DFT, Eq. 9)."""
    # L = −Σ p·log p / n, where p has no gradient   (Wu et al. 2025)
    log_p = rollouts.log_probabilities(adapters, model, batch)
    b, t = np.indices(batch["targets"].shape)
    log_p = log_p[b, t, batch["targets"]]
    p = np.exp(getval(log_p))
    return -np.sum(batch["mask"] * p * log_p) / np.sum(batch["mask"])


def run(job, steps=STEPS):
    """Return the row of a run: its first scores with a reward of at least GOAL, or its last ones.

    forward: KL(base‖trained), reverse: KL(trained‖base), in nats per answer on new sentences.
    forgotten: the loss on the base's own text minus that of the base, in nats per byte.
    """
    way, rate, split, seed = job
    model, _ = minilora.load("micro")
    held_out = echoes.rows(split, 64)
    notes = {"valid": 2, "test": 1}[split]
    before = echoes.own_loss({}, model, notes)
    row = dict(zip(("way", "rate", "split", "seed"), job))

    def stop(step, adapters):
        if step % EVERY:
            return False
        reward = echoes.expected_reward(adapters, model, held_out)
        if reward < GOAL and step < steps:
            return False
        row.update(
            steps=step, reward=reward,
            forward=echoes.divergence({}, adapters, model, held_out),
            reverse=echoes.divergence(adapters, {}, model, held_out),
            forgotten=echoes.own_loss(adapters, model, notes) - before,
        )  # fmt: skip
        return True

    settings = TrainConfig(iters=steps, batch_size=32, learning_rate=rate, seed=seed)
    adapters, rows = start_of(model, "8", seed), echoes.rows("train", 2000, seed)
    if way == "reward":
        rollouts.reinforce(adapters, model, rows, echoes.reward, settings, on_step=stop)
    else:
        examples = echoes.examples(rows, echoes.FORMS["near" if way == "weighted" else way])
        loss = weighted_loss if way == "weighted" else minilora.loss
        for state in rollouts.steps(loss, adapters, model, examples, settings):
            if stop(state.step, state.adapters):
                break
    return in_five_digits(row)
