"""Sampled answers, their probabilities, and the policy gradient of a reward.

Letters: B rows, T tokens of a row, V vocabulary.
"""

import autograd.numpy as np
import numpy as onp

from minilora.batching import Example, batch_at, collate
from minilora.config import InputError, TrainConfig
from minilora.layers import LayerCache, value_and_grad
from minilora.model import hidden_states, logits, with_adapters
from minilora.optim import clip, get_lr
from minilora.training import start, update
from minilora.tree import named_leaves

STOP = ord(".")  # the last byte of an answer in the language of the embedded models
# the settings of a run that the loops here do not read
OF_THE_LOOP = (
    "grad_accumulation_steps",
    "gradient_checkpointing",
    "steps_per_eval",
    "val_batches",
    "early_stopping_patience",
    "keep_best",
)
OF_ROWS = ("max_seq_length", "mask_prompt", "packing")


def sample(adapters, model, prompts, seed, max_tokens=14):
    """Sample an answer to each of B prompts of equal length, at temperature 1: B lists of ids.

    An answer ends with STOP, or after max_tokens tokens. The random numbers of row i depend only on
    the seed (an integer or several) and on i, so its answer does not depend on the other rows.
    """
    model = with_adapters(adapters, model)
    caches = [LayerCache() for _ in range(model.config.num_hidden_layers)]
    seeds = [[*onp.atleast_1d(seed), i] for i in range(len(prompts))]
    draws = [onp.random.default_rng(seed).random(max_tokens) for seed in seeds]
    tokens = onp.array(prompts)  # autograd's `array` would look at each number of a list
    answers = []
    for u in onp.transpose(draws):
        x = hidden_states(model, tokens, np.zeros_like(tokens), caches)
        p = np.exp(log_softmax(np.float64(logits(x[:, -1], model))))
        # the first token whose cumulative probability exceeds u, a uniform number of [0, 1)
        below = np.cumsum(p, axis=-1) <= u[:, None]
        tokens = np.minimum(below.sum(axis=-1, keepdims=True), p.shape[-1] - 1)
        answers.append(tokens[:, 0])
        if (onp.array(answers) == STOP).any(axis=0).all():
            break
    return [until_stop(answer) for answer in onp.transpose(answers).tolist()]


def until_stop(answer):
    """Return the tokens of an answer up to the first STOP."""
    return answer[: answer.index(STOP) + 1] if STOP in answer else answer


def log_softmax(z):
    """Compute log softmax(z) over the last axis."""
    z = z - np.max(z, axis=-1, keepdims=True)
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


def as_example(prompt, answer):
    """Return prompt + answer as an Example whose targets are the tokens of the answer."""
    if not prompt:
        what = "a prompt is empty, so nothing predicts the first token of its answer"
        raise InputError(f"{what}: begin the prompt with a BOS token")
    return Example(prompt + answer, [0] * len(prompt) + [1] * len(answer))


def log_probabilities(adapters, model, batch):
    """Compute the log-probability of each possible next token of a batch: (B, T, V), in nats."""
    model = with_adapters(adapters, model)
    x = hidden_states(model, batch["tokens"], batch["segment_starts"])
    return log_softmax(logits(x, model))


def of_targets(log_p, batch):
    """Return the log-probability of each row's answer, the sum over its targets: (B,)."""
    b, t = np.indices(batch["targets"].shape)
    return np.sum(batch["mask"] * log_p[b, t, batch["targets"]], axis=-1)


def expected(log_p, log_q, batch):
    """Return Σ p·log q over the vocabulary, summed over the targets of a row: (B,)."""
    return np.sum(batch["mask"] * np.sum(np.exp(log_p) * log_q, axis=-1), axis=-1)


def policy_loss(adapters, model, batch, advantages):
    """Compute the loss of the policy gradient; its gradient is REINFORCE's (Williams 1992)."""
    # L = −mean(advantage·log p(answer))
    log_p = log_probabilities(adapters, model, batch)
    return -np.mean(advantages * of_targets(log_p, batch))


def group_advantages(rewards, group):
    """Subtract from each reward the mean of its group: `group` answers to the same prompt."""
    rewards = np.reshape(rewards, (-1, group))
    return np.ravel(rewards - rewards.mean(axis=1, keepdims=True))


def begin(adapters, train_config, rows_are_given=False):
    """Return the state before the first step of a loop.

    Raises InputError for dropout, and for each other setting without an effect. rows_are_given: the
    caller has encoded the examples, so the settings of rows had their effect there.
    """
    for path, value in named_leaves(adapters):
        if path.endswith("lora_dropout") and value:
            raise InputError(f"{path} {value} has no effect here: set `lora_dropout` to 0")
    refuse_unused(train_config, OF_THE_LOOP if rows_are_given else OF_THE_LOOP + OF_ROWS)
    return start(adapters, train_config)


def refuse_unused(train_config, names=OF_THE_LOOP + OF_ROWS):
    """Raise InputError for a setting of these names that is not the default."""
    for name in names:
        default = getattr(TrainConfig, name)
        if getattr(train_config, name) != default:
            raise InputError(f"`{name}` has no effect here: leave it at {default}")


def descend(state, grads, train_config):
    """Clip the gradients and take a step of the optimizer; return the new state.

    Raises InputError if the gradient is not finite.
    """
    grads, norm = clip(grads, train_config.max_grad_norm)
    if not np.isfinite(norm):
        raise InputError(f"the gradient norm is {norm:g}: lower `learning_rate`")
    return update(state, grads, get_lr(state.step, train_config), train_config)


def steps(loss, adapters, model, examples, train_config):
    """Yield the state after each step of training with `loss(adapters, model, batch)`."""
    state = begin(adapters, train_config, rows_are_given=True)
    for step in range(train_config.iters):
        rows = batch_at(examples, step, train_config.batch_size, train_config.seed)
        batch = collate([row if train_config.packing else [row] for row in rows])
        _, grads = value_and_grad(loss)(state.adapters, model, batch)
        state = descend(state, grads, train_config)
        yield state


def reinforce(adapters, model, rows, reward, train_config, group=8, on_step=None):
    """Train adapters with a reward and a group baseline; return them.

    rows: each has a `prompt`, token ids of the same length; each step uses batch_size/group rows.
    reward: a function of (row, answer). on_step: called as on_step(step, adapters) after each step;
    training ends if it returns true.
    """
    size = train_config.batch_size
    if size % group:
        answers = f"the {group} answers of a group"
        raise InputError(f"`batch_size` must be a multiple of {answers}, got {size}")
    state = begin(adapters, train_config)
    for step in range(train_config.iters):
        chosen = batch_at(rows, step, size // group, train_config.seed)
        chosen = [row for row in chosen for _ in range(group)]
        prompts = [row.prompt for row in chosen]
        answers = sample(state.adapters, model, prompts, seed=[train_config.seed, step])
        rewards = onp.array([reward(row, answer) for row, answer in zip(chosen, answers)], "f4")
        for answer, r in zip(answers, rewards):
            if not np.isfinite(r):
                raise InputError(f"the reward of the answer {answer} is {r}: it must be finite")
        batch = collate([[as_example(p, answer)] for p, answer in zip(prompts, answers)])
        advantages = group_advantages(rewards, group)
        _, grads = value_and_grad(policy_loss)(state.adapters, model, batch, advantages)
        state = descend(state, grads, train_config)
        if on_step and on_step(step + 1, state.adapters):
            break
    return state.adapters
