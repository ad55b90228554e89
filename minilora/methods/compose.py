"""Adapters computed together in one batch, or combined into one adapter.

Letters: adapter i has the weight wᵢ and the scaling sᵢ = α/r; ΔWᵢ = sᵢ·BᵢAᵢ.
"""

from typing import Any

import numpy as np

from ..config import FINITE, InputError, LoraConfig, Rule, check_setting
from ..generation import check_generation, sample, warn_of_length
from ..layers import LayerCache
from ..lora import adapted_paths
from ..model import Model, hidden_states, logits, with_adapters
from ..tree import Tree, get, unflatten
from .several import factors, per_row


def generate_batch(
    adapters: list[Tree],
    model: Model,
    prompts: list[list[int]],
    max_tokens: int = 256,
    temp: float = 0.0,
    top_p: float = 1.0,
    rng: Any = None,
) -> list[list[int]]:
    """Return the token ids that continue each of B prompts, computed as one batch.

    adapters: that of each prompt; {} for none. Different adapters must be LoRA. The options are
    those of `generation.generate`; each prompt has its own child of rng. All rows begin at position
    0, so there is no padding. The first step reads as many tokens of each row as the shortest
    prompt has; a later step reads or generates one token of each row.
    """
    if len(adapters) != len(prompts):
        raise InputError(f"{len(prompts)} prompts need as many adapters, got {len(adapters)}")
    if not prompts:
        raise InputError("there is no prompt: give one or more")
    check_generation(prompts, max_tokens, temp, top_p, model.config)
    shared = adapters[0]
    if any(tree is not shared for tree in adapters):
        shared = per_row(adapters, range(len(adapters)))
    model = with_adapters(shared, model)
    rngs = np.random.default_rng(rng).spawn(len(prompts))
    caches = [LayerCache() for _ in range(model.config.num_hidden_layers)]
    rows = [list(prompt) for prompt in prompts]
    ends = [len(row) + max_tokens for row in rows]  # of each row with its answer
    first = 0
    last = min(map(len, prompts))
    while last < max(ends):
        tokens = np.array([row[first:last] for row in rows])
        past = caches[0].length
        x = hidden_states(model, tokens, np.zeros_like(tokens), caches)
        warn_of_length(past, caches[0].length, model.config)
        z = logits(x[:, -1], model)
        for i, row in enumerate(rows):
            if len(row) == last:  # the row is read to its end
                token = sample(z[i], temp, top_p, rngs[i])
                row.append(token)
                if token in model.config.eos_token_id:
                    ends[i] = min(ends[i], last)
        first = last
        last += 1
    return [row[len(prompt) : end] for row, prompt, end in zip(rows, prompts, ends)]


def combine(adapters, weights, combination_type="cat", r=None):
    """Combine adapters into one with ΔW ≈ Σ wᵢ·ΔWᵢ and scaling 1: (adapter, errors).

    combination_type: "cat" is exact, and the ranks add up; "svd" is the nearest update of rank `r`
    (default: the largest rank); "linear" adds the Aᵢ and the Bᵢ separately, each times √|wᵢsᵢ|.
    errors: {path: ‖ΔW − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖}, Frobenius norms. Raises InputError for an `r`
    that is not used or exceeds the sum of the ranks, and for a weight that is not finite.
    """
    if combination_type not in COMBINATION_TYPES:
        raise InputError(
            f"`combination_type` must be one of {', '.join(COMBINATION_TYPES)}, "
            f"not {combination_type!r}"
        )
    if len(weights) != len(adapters):
        raise InputError(f"{len(adapters)} adapters need as many weights, got {len(weights)}")
    for weight in weights:
        check_setting("weights", weight, FINITE)
    every = factors(adapters)
    if not every:
        raise InputError("the adapters have no low-rank factors: there is nothing to combine")
    if r is not None:
        if combination_type != "svd":
            raise InputError(f"leave out `r`, which only svd has, not {combination_type}")
        most = max(sum(len(A) for *_, A, _ in found) for found in every.values())
        text = f"be a whole number from 1 to {most}, the sum of the ranks"
        check_setting("r", r, Rule(text, lambda r: type(r) is int and 1 <= r <= most))
    combined = {}
    errors = {}
    for path, found in every.items():
        parts = [(weights[i] * s, A, B) for i, s, A, B in found]
        rank = r or max(len(A) for _, A, _ in parts)
        A, B = (factor.astype("f4") for factor in COMBINATION_TYPES[combination_type](parts, rank))
        combined[path] = {"lora_A": A, "lora_B": B, "lora_scaling": 1.0, "lora_dropout": 0.0}
        exact = sum(ws * (np.float64(b) @ a) for ws, a, b in parts)
        off = np.linalg.norm(np.float64(B) @ A - exact)
        errors[path] = float(off / (np.linalg.norm(exact) or 1.0))
    return unflatten(combined), errors


def cat(parts, r):
    """Return (A, B) of Σ wᵢ·ΔWᵢ, exactly; parts: (wᵢ·sᵢ, Aᵢ, Bᵢ). The ranks add up."""
    # Σ wᵢ·ΔWᵢ = [w₁s₁B₁ … wₙsₙBₙ]·[A₁; …; Aₙ]
    return np.concatenate([A for _, A, _ in parts]), np.hstack([ws * B for ws, _, B in parts])


def svd(parts, r):
    """Return (A, B) of the nearest rank-r update (Eckart and Young 1936); ΔW is never computed."""
    A, B = cat(parts, r)
    # BA = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ, and the small matrix R_B·R_Aᵀ has the singular values
    (q_a, r_a), (q_b, r_b) = (np.linalg.qr(np.float64(m)) for m in (A.T, B))
    u, sigma, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return vt[:r] @ q_a.T, q_b @ u[:, :r] * sigma[:r]


def linear(parts, r):
    """Return (A, B) as PEFT: the product of sums also has terms BᵢAⱼ with i ≠ j."""
    if len({len(A) for _, A, _ in parts}) != 1:  # NumPy would add a rank of 1 to any other
        raise InputError("linear adds only factors of equal rank: use combination_type cat or svd")
    # B = Σ √|wᵢsᵢ|·Bᵢ, A = Σ ±√|wᵢsᵢ|·Aᵢ
    roots = [abs(ws) ** 0.5 for ws, _, _ in parts]
    A = sum(np.copysign(root, ws) * A for root, (ws, A, _) in zip(roots, parts))
    return A, sum(root * B for root, (_, _, B) in zip(roots, parts))


COMBINATION_TYPES = {"cat": cat, "svd": svd, "linear": linear}


def config_of_combined(adapters):
    """Return the LoraConfig of a result of `combine`, with the rank of each path, for its file."""
    ranks = {path: len(get(adapters, path)["lora_A"]) for path in adapted_paths(adapters)}
    r = max(ranks.values())
    others: dict = {path: rank for path, rank in ranks.items() if rank != r}
    return LoraConfig(  # α = r, because the scaling α/r is 1
        r=r, lora_alpha=r, target_modules=tuple(ranks), rank_pattern=others, alpha_pattern=others
    )
