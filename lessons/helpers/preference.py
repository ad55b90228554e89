"""Direct preference optimization (DPO, Rafailov et al. 2023) of an adapter.

The reference of DPO is the base without the adapter, so one model in memory serves as both. PiSSA
and LoftQ change the base: their reference is the adapter before training. A pair is (prompt,
chosen, rejected), three lists of token ids.

Letters: N pairs, T tokens.
"""

import autograd.numpy as np

from minilora.batching import batch_at, collate
from minilora.config import InputError
from minilora.layers import value_and_grad
from minilora.lessons.helpers.rollouts import (
    as_example,
    begin,
    descend,
    log_probabilities,
    of_targets,
)
from minilora.tree import named_leaves


def batch_of(pairs):
    """Return the batch (2N, T) of N pairs: first all chosen answers, then all rejected ones."""
    chosen = [as_example(prompt, answer) for prompt, answer, _ in pairs]
    rejected = [as_example(prompt, answer) for prompt, _, answer in pairs]
    return collate([[example] for example in chosen + rejected])


def answer_log_probs(adapters, model, batch):
    """Compute log p(answer | prompt) of each row, the sum over the tokens of its answer: (2N,)."""
    return of_targets(log_probabilities(adapters, model, batch), batch)


def margins(log_probs, reference, beta):
    """Compute β·(log-ratio of the chosen answer − log-ratio of the rejected one) per pair: (N,).

    log_probs, reference: log p of the model and of the reference, chosen first, (2N,) each.
    """
    chosen, rejected = np.split(log_probs - reference, 2)
    return beta * (chosen - rejected)


def dpo_loss(adapters, model, batch, reference, beta):
    """Compute the mean DPO loss of a batch, in nats per pair; reference (2N,) is a constant."""
    m = margins(answer_log_probs(adapters, model, batch), reference, beta)
    # L = −log σ(m) = log(1 + e^−m)   (Rafailov et al. 2023, Eq. 7)
    return np.mean(np.logaddexp(0, -m))


def fit(adapters, model, pairs, settings, beta, reference_adapters=None, on_step=None):
    """Train the adapters on pairs; return them.

    settings: a TrainConfig. reference_adapters: those of the reference; None for the base without
    adapters, which PiSSA and LoftQ refuse. on_step: called as on_step(step, adapters) before each
    step.
    """
    changed = [path for path, _ in named_leaves(adapters) if path.endswith("lora_start")]
    if changed and not reference_adapters:
        raise InputError(f"{changed[0]}: the model alone is not the base: give reference_adapters")
    state = begin(adapters, settings)
    for step in range(settings.iters):
        if on_step:
            on_step(step, state.adapters)
        batch = batch_of(batch_at(pairs, step, settings.batch_size, settings.seed))
        reference = answer_log_probs(reference_adapters or {}, model, batch)
        _, grads = value_and_grad(dpo_loss)(state.adapters, model, batch, reference, beta)
        state = descend(state, grads, settings)
    return state.adapters
