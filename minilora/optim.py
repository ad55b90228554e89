"""AdamW, clipping by global norm, and learning-rate schedules: pure functions over trees.

Part 6 of `lessons/00_qlora_in_one_file.py`, made general: weight decay, other schedules, and a
rate for each parameter.

Only the trained tree is ever handed in, so nothing frozen can be stepped or decayed.
"""

import math

import numpy as np

from .formats.safetensors_file import FORMAT_NAME, decode, encode
from .tree import flatten, tree_map, unflatten, walk


def adamw_init(params):
    """Both moments at zero, no step taken: {"m": tree, "v": tree, "step": 0}."""
    zero = tree_map(np.zeros_like, params)
    return {"m": zero, "v": zero, "step": 0}


def adamw(params, grads, state, rate, config):
    """One step of Adam with decoupled weight decay (Loshchilov and Hutter 2019, Alg. 2).

    rate(path) is the learning rate of a leaf, in units of the parameter per step. Returns new
    (params, state); the arrays handed in stay as they are.
    """
    b1, b2, decay = config.adam_beta1, config.adam_beta2, config.weight_decay
    t = state["step"] + 1
    m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
    v = tree_map(lambda v, g: b2 * v + (1 - b2) * (g * g), state["v"], grads)

    def step(path, p, m, v):
        # θ ← θ − η·λ·θ − η·m̂/(√v̂ + ε),  m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)
        denominator = np.sqrt(v) / math.sqrt(1 - b2**t) + config.adam_eps
        p = p * (1 - rate(path) * decay)
        return p - rate(path) / (1 - b1**t) * m / denominator

    m_flat, v_flat = flatten(m), flatten(v)
    new = {path: step(path, p, m_flat[path], v_flat[path]) for path, p in walk(params)}
    return unflatten(new), {"m": m, "v": v, "step": t}


def global_norm(grads):
    """√Σ g² over all leaves, as a float."""
    return math.sqrt(sum(float(np.vdot(g, g)) for _, g in walk(grads)))


def clip(grads, max_norm):
    """(grads scaled to at most `max_norm`, their norm before) (Pascanu et al. 2013)."""
    norm = global_norm(grads)
    factor = min(1.0, max_norm / (norm + 1e-6))  # the 1e-6 as in torch.nn.utils.clip_grad_norm_
    return (grads if factor == 1.0 else tree_map(lambda g: g * factor, grads)), norm


def learning_rate(step, config):
    """The rate of step 0, 1, …, as transformers' schedulers compute it.

    Linear warm-up over ⌈warmup_ratio·iters⌉ steps, the first at zero; then constant, linear to
    zero, or half a cosine to zero.
    """
    warmup = math.ceil(config.warmup_ratio * config.iters)
    if step < warmup:
        return config.learning_rate * (step / warmup)
    if config.lr_schedule == "constant":
        return config.learning_rate
    rest = max(1, config.iters - warmup)
    if config.lr_schedule == "linear":
        return config.learning_rate * max(0.0, (config.iters - step) / rest)
    done = (step - warmup) / rest
    return config.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def to_dtype(params, dtype):
    """`params` rounded to the float32, float16 or bfloat16 grid, still as float32 arrays.

    Raises InputError naming the leaf that has a number too large for `dtype`.
    """
    name = FORMAT_NAME[dtype]
    if name == "F32":
        return params
    return unflatten({path: decode(encode(p, name, path), name) for path, p in walk(params)})
