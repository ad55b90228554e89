"""Several adapters on one base: in turn, one upon another, one for each row, or summed.

An adapter is the pair (adapters, frozen) that `lora.init`, `train` and `load_adapter` deal in. The
frozen trees of all adapters on a base share the base's arrays, so another adapter costs its own
factors and nothing else; to switch is to pass another pair, and to disable is to pass {}.

Letters: i counts adapters, wᵢ is the weight of one, sᵢ its scaling α/r, ΔWᵢ = sᵢ·BᵢAᵢ.
"""

import numpy as np

from ..config import LoraConfig, require
from ..lora import adapted
from ..tree import flatten, get, put, tree_map, unflatten, walk

FACTORS, FIXED = ("lora_A", "lora_B"), ("lora_scaling", "lora_dropout")
REPLACED = ("weight", "bias")


def stack(adapters, frozen):
    """The frozen tree with this adapter frozen into it, for another to be trained upon.

    Each adapted projection gets its factors and scaling under `lora_stack`, where `nn.linear` adds
    them without a gradient and `lora.merge` finds them; trained norms, biases and weights take the
    base's place. Nothing is copied. An adapter trained upon a stack is saved without it, and loaded
    onto the same stack again. Raises InputError for leaves that cannot be stacked.
    """
    new = tree_map(lambda w: w, frozen)
    for path, w in walk(adapters):
        name = path.rpartition(".")[2]
        require(name in FACTORS + REPLACED, f"{path} cannot be stacked: merge that adapter instead")
        if name in REPLACED:
            put(new, path, w)
    for path in adapted(adapters):
        node = get(new, path)
        factors = {name: get(adapters, path)[name] for name in FACTORS}
        below = node.setdefault("lora_stack", {})
        below[str(len(below))] = factors | {"lora_scaling": node.pop("lora_scaling")}
        del node["lora_dropout"]
    return new


def per_row(pairs, rows):
    """The pair (adapters, frozen) under which row b of a batch is adapted by pairs[rows[b]] alone.

    rows: B indices; ({}, base) among the pairs is a row without an adapter. The leaves are
    `lora_A` (B, r, in), `lora_B` (B, out, r) and a scaling (B, 1, 1), r being the largest rank on
    that projection: smaller ones are filled up with zeros. Raises InputError when the adapters
    stand on different bases or train more than low-rank factors.
    """
    adapters: dict = {}
    frozen = common_base(pairs)
    for path in _paths(pairs):
        scalings, As, Bs = zip(*(_factors(pair, path) for pair in pairs))
        r = max(map(len, As))
        wide = [np.pad(A, ((0, r - len(A)), (0, 0))) for A in As]
        tall = [np.pad(B, ((0, 0), (0, r - B.shape[1]))) for B in Bs]
        put(adapters, f"{path}.lora_A", np.stack(wide)[rows])
        put(adapters, f"{path}.lora_B", np.stack(tall)[rows])
        put(frozen, f"{path}.lora_scaling", np.array(scalings, "f4")[rows][:, None, None])
        put(frozen, f"{path}.lora_dropout", 0.0)
    return adapters, frozen


def combine(pairs, weights, how="cat", r=None):
    """(adapters, frozen, errors): one adapter in place of several, ΔW = Σ wᵢ·ΔWᵢ.

    how: "cat" is exact and has the sum of the ranks; "svd" is the nearest update of rank `r`
    (default: the largest of the ranks); "linear" averages A and B apart, which is something else.
    The scaling of the result is 1. errors: {path: ‖ΔW − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖}, Frobenius.
    (PEFT's add_weighted_adapter has the same three.) Raises InputError as `per_row` does.
    """
    require(how in HOW, f"adapters are combined by {', '.join(HOW)}, not {how!r}")
    require(len(weights) == len(pairs), f"{len(pairs)} adapters need as many weights")
    adapters: dict = {}
    frozen, errors = common_base(pairs), {}
    for path in _paths(pairs):
        parts = [(w * s, A, B) for w, (s, A, B) in zip(weights, (_factors(p, path) for p in pairs))]
        parts = [part for part in parts if len(part[1])]
        rank = r or max(len(A) for _, A, _ in parts)
        A, B = (factor.astype("f4") for factor in HOW[how](parts, rank))
        put(adapters, f"{path}.lora_A", A)
        put(adapters, f"{path}.lora_B", B)
        put(frozen, f"{path}.lora_scaling", 1.0)
        put(frozen, f"{path}.lora_dropout", 0.0)
        exact = sum(ws * (np.float64(b) @ a) for ws, a, b in parts)
        off = np.linalg.norm(np.float64(B) @ A - exact)
        errors[path] = float(off / (np.linalg.norm(exact) or 1.0))
    return adapters, frozen, errors


def cat(parts, r):
    """Σ wᵢ·ΔWᵢ = [w₁s₁B₁ … wₙsₙBₙ]·[A₁; …; Aₙ]: ranks add up, and no term meets another's."""
    return np.concatenate([A for _, A, _ in parts]), np.hstack([ws * B for ws, _, B in parts])


def svd(parts, r):
    """The nearest matrix of rank r (Eckart and Young 1936), never forming an (out, in) one."""
    A, B = cat(parts, r)
    # BA = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ, and the bracket, as small as the ranks, has the singular values
    (q_a, r_a), (q_b, r_b) = (np.linalg.qr(np.float64(m)) for m in (A.T, B))
    u, sigma, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return vt[:r] @ q_a.T, q_b @ u[:, :r] * sigma[:r]


def linear(parts, r):
    """(Σ √|wᵢsᵢ|·Bᵢ)(Σ ±√|wᵢsᵢ|·Aᵢ): its terms i ≠ j belong to no adapter. Here to be measured.

    Even a sign makes two of it: PEFT's stands with A, and so does ours.
    """
    require(len({len(A) for _, A, _ in parts}) == 1, "only equal ranks can be averaged")
    roots = [abs(ws) ** 0.5 for ws, _, _ in parts]
    A = sum(np.copysign(root, ws) * A for root, (ws, A, _) in zip(roots, parts))
    return A, sum(root * B for root, (_, _, B) in zip(roots, parts))


HOW = {"cat": cat, "svd": svd, "linear": linear}


def described(adapters, frozen):
    """The LoraConfig that describes an adapter, path by path, as `save_adapter` wants it."""
    ranks = {path: len(get(adapters, path)["lora_A"]) for path in adapted(adapters)}
    alphas = {path: r * get(frozen, path)["lora_scaling"] for path, r in ranks.items()}
    r, alpha = max(ranks.values()), max(alphas.values())
    return LoraConfig(
        r=r, lora_alpha=alpha, target_modules=tuple(ranks),
        rank_pattern={path: n for path, n in ranks.items() if n != r},
        alpha_pattern={path: a for path, a in alphas.items() if a != alpha},
    )  # fmt: skip


def common_base(pairs):
    """The one base under all the pairs, without their scalings. InputError if there are two."""
    first, *others = (_bare(frozen) for _, frozen in pairs)
    for other in others:
        same = first.keys() == other.keys() and all(other[p] is w for p, w in first.items())
        require(same, "the adapters stand on different bases: load the base once, for all of them")
    return unflatten(first)


def _bare(frozen):
    def fixed(path):
        return path.endswith(FIXED) and ".lora_stack." not in path

    return {path: w for path, w in walk(frozen) if not fixed(path)}


def _paths(pairs):
    """The projections that any of the adapters is on."""
    for adapters, _ in pairs:
        for path, _ in walk(adapters):
            require(path.endswith(FACTORS), f"{path} is no low-rank factor: only those combine")
    return list(dict.fromkeys(path for adapters, _ in pairs for path in adapted(adapters)))


def _factors(pair, path):
    """(scaling, A, B) of one adapter at `path`; of rank 0 where it has none."""
    adapters, frozen = pair
    trained, node = flatten(adapters), get(frozen, path)
    if f"{path}.lora_A" in trained:
        return node["lora_scaling"], trained[f"{path}.lora_A"], trained[f"{path}.lora_B"]
    out_features, in_features = node["weight"].shape
    return 0.0, np.zeros((0, in_features), "f4"), np.zeros((out_features, 0), "f4")
