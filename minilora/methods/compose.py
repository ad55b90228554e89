"""Several adapters on one base: switched, stacked, one per row of a batch, or combined.

An adapter with its base is a pair (adapters, frozen): the trained tree of one adapter, and the base
with its scalings, as `get_peft_model` and `load_adapter` return them. The frozen trees share the
arrays of the base, so an additional adapter costs only its factors. To switch adapters, use another
pair; to disable the adapter, use {} for `adapters`.

Letters: adapter i has the weight wᵢ and the scaling sᵢ = α/r; ΔWᵢ = sᵢ·BᵢAᵢ.
"""

from itertools import takewhile
from typing import Any

import numpy as np

from .. import model
from ..config import LoraConfig, ModelConfig, require
from ..generation import check_generation, sample
from ..layers import LayerCache
from ..lora import FACTORS, SETTINGS, adapted_paths, check_base
from ..tree import Tree, flatten, get, named_leaves, set_leaf, tree_map, unflatten
from .operations import operations

REPLACED = ("weight", "bias")


def stack(adapters, frozen):
    """Return the frozen tree with this adapter frozen in it, as the base of another adapter.

    Factors and scalings are put under `lora_stack`; trained norms, biases and weights replace the
    frozen ones. The other adapter is saved without the stack, and must be loaded onto the same one.
    """
    check_base(adapters, frozen)
    new = tree_map(lambda w: w, frozen)
    for path, w in named_leaves(adapters):
        name = path.rpartition(".")[2]
        require(name in FACTORS + REPLACED, f"{path} cannot be stacked: merge that adapter instead")
        if name in REPLACED:
            set_leaf(new, path, w)
    for path in adapted_paths(adapters):
        node = get(new, path)
        factors = {name: get(adapters, path)[name] for name in FACTORS}
        below = node.setdefault("lora_stack", {})
        below[str(len(below))] = factors | {"lora_scaling": node.pop("lora_scaling")}
        del node["lora_dropout"], node["lora_r"]
    return new


def per_row(pairs, rows):
    """Return the pair (adapters, frozen) that applies pairs[rows[b]] to row b of a batch.

    rows: B indices. The pair ({}, base) is for rows without an adapter. The leaves are `lora_A`
    (B, r, in), `lora_B` (B, out, r), `lora_scaling` (B, 1, 1); smaller ranks are padded with zeros.
    """
    adapters: dict = {}
    frozen = common_base(pairs)
    for path, parts in _factors(pairs).items():
        scalings, As, Bs = zip(*parts)
        r = max(map(len, As))
        wide = [np.pad(A, ((0, r - len(A)), (0, 0))) for A in As]
        tall = [np.pad(B, ((0, 0), (0, r - B.shape[1]))) for B in Bs]
        set_leaf(adapters, path, {"lora_A": np.stack(wide)[rows], "lora_B": np.stack(tall)[rows]})
        scaling = np.array(scalings, "f4")[rows][:, None, None]
        get(frozen, path).update(lora_scaling=scaling, lora_dropout=0.0, lora_r=r)
    return adapters, frozen


def generate_batch(
    pairs: list[tuple[Tree, Tree]], prompts: list[list[int]], model_config: ModelConfig,
    max_tokens: int = 256, temp: float = 0.0, top_p: float = 1.0, rng: Any = None,
) -> list[list[int]]:  # fmt: skip
    """Return the token ids that continue each of B prompts, computed as one batch.

    pairs: the pair (adapters, base) of each prompt; ({}, base) for no adapter. Different pairs must
    be LoRA. The options are those of `generation.generate`; each prompt has its own child of rng.
    All rows begin at position 0, so there is no padding. The first step reads as many tokens of
    each row as the shortest prompt has; a later step reads or generates one token of each row.
    """
    one_each = f"{len(prompts)} prompts need as many pairs, got {len(pairs)}"
    require(len(pairs) == len(prompts) > 0, one_each)
    check_generation(prompts, max_tokens, temp, top_p, model_config)
    adapters, frozen = pairs[0]
    if any(a is not adapters or base is not frozen for a, base in pairs):
        adapters, frozen = per_row(pairs, list(range(len(pairs))))
    ops, rngs = operations(adapters, frozen), np.random.default_rng(rng).spawn(len(prompts))
    cache = [LayerCache() for _ in range(model_config.num_hidden_layers)]
    rows, read = [list(prompt) for prompt in prompts], min(map(len, prompts))
    tokens, ended = np.array([row[:read] for row in rows]), [False for _ in rows]
    while not all(ended):
        starts = np.zeros_like(tokens)
        x = model.hidden_states(adapters, frozen, tokens, starts, model_config, ops, cache)
        logits = model.logits(x[:, -1], adapters, frozen, ops)
        for i, row in enumerate(rows):
            if len(row) == read:  # the row is read to its end
                row.append(sample(logits[i], temp, top_p, rngs[i]))
                long = len(row) == len(prompts[i]) + max_tokens
                ended[i] = ended[i] or long or row[-1] in model_config.eos_token_id
        tokens, read = np.array([row[read : read + 1] for row in rows]), read + 1
    found = [row[len(p) : len(p) + max_tokens] for row, p in zip(rows, prompts)]
    return [list(takewhile(lambda t: t not in model_config.eos_token_id, ids)) for ids in found]


def combine(pairs, weights, combination_type="cat", r=None):
    """Combine adapters into one with ΔW ≈ Σ wᵢ·ΔWᵢ and scaling 1: (adapters, frozen, errors).

    combination_type: "cat" is exact, and the ranks add up; "svd" is the nearest update of rank `r`
    (default: the largest rank); "linear" adds the Aᵢ and the Bᵢ separately, each times √|wᵢsᵢ|.
    errors: {path: ‖ΔW − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖}, Frobenius norms.
    """
    known = f"combination_type must be one of {', '.join(COMBINATION_TYPES)}"
    require(combination_type in COMBINATION_TYPES, f"{known}, not {combination_type!r}")
    one_each = f"{len(pairs)} adapters need as many weights, got {len(weights)}"
    require(len(weights) == len(pairs), one_each)
    adapters: dict = {}
    frozen, errors = common_base(pairs), {}
    for path, factors in _factors(pairs).items():
        parts = [(w * s, A, B) for w, (s, A, B) in zip(weights, factors) if len(A)]
        rank = r or max(len(A) for _, A, _ in parts)
        A, B = (factor.astype("f4") for factor in COMBINATION_TYPES[combination_type](parts, rank))
        set_leaf(adapters, path, {"lora_A": A, "lora_B": B})
        get(frozen, path).update(lora_scaling=1.0, lora_dropout=0.0, lora_r=len(A))
        exact = sum(ws * (np.float64(b) @ a) for ws, a, b in parts)
        off = np.linalg.norm(np.float64(B) @ A - exact)
        errors[path] = float(off / (np.linalg.norm(exact) or 1.0))
    return adapters, frozen, errors


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
    equal = len({len(A) for _, A, _ in parts}) == 1
    require(equal, "linear adds only factors of equal rank: use combination_type cat or svd")
    # B = Σ √|wᵢsᵢ|·Bᵢ, A = Σ ±√|wᵢsᵢ|·Aᵢ
    roots = [abs(ws) ** 0.5 for ws, _, _ in parts]
    A = sum(np.copysign(root, ws) * A for root, (ws, A, _) in zip(roots, parts))
    return A, sum(root * B for root, (_, _, B) in zip(roots, parts))


COMBINATION_TYPES = {"cat": cat, "svd": svd, "linear": linear}


def config_of_adapter(adapters, frozen):
    """Return the LoraConfig of an adapter, with the rank and α of each path, for `save_adapter`."""
    ranks = {path: len(get(adapters, path)["lora_A"]) for path in adapted_paths(adapters)}
    alphas = {path: r * get(frozen, path)["lora_scaling"] for path, r in ranks.items()}
    r, alpha = max(ranks.values()), max(alphas.values())
    return LoraConfig(
        r=r, lora_alpha=alpha, target_modules=tuple(ranks),
        rank_pattern={path: n for path, n in ranks.items() if n != r},
        alpha_pattern={path: a for path, a in alphas.items() if a != alpha},
    )  # fmt: skip


def common_base(pairs):
    """Return the base of all pairs, without scalings; raise InputError if the bases differ."""
    first, *others = (
        {p: w for p, w in named_leaves(frozen) if not p.endswith(SETTINGS) or ".lora_stack." in p}
        for _, frozen in pairs
    )
    for other in others:
        same = first.keys() == other.keys() and all(other[p] is w for p, w in first.items())
        way = "load the base once, and use it for all (commands: give --model and --quantize)"
        require(same, f"the adapters have different bases: {way}")
    return unflatten(first)


def _factors(pairs):
    """Return {path: [(scaling, A, B) of each pair]}, with rank 0 if a pair does not adapt it."""
    for pair in pairs:
        check_base(*pair)
    trees = [flatten(adapters) for adapters, _ in pairs]
    paths = [path for tree in trees for path in tree]
    for path in paths:
        require(path.endswith(FACTORS), f"{path} is no low-rank factor: combine only LoRA adapters")
    found: dict = {path.rpartition(".")[0]: [] for path in paths}
    for path, parts in found.items():
        for tree, (_, frozen) in zip(trees, pairs):
            node = get(frozen, path)
            out_features, in_features = node["weight"].shape
            A = tree.get(f"{path}.lora_A", np.zeros((0, in_features), "f4"))
            B = tree.get(f"{path}.lora_B", np.zeros((out_features, 0), "f4"))
            parts.append((node.get("lora_scaling", 0.0), A, B))
    return found
