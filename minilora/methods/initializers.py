"""Starts of LoRA's factors that change the frozen weight as well: PiSSA and LoftQ.

Both need the dense weight W, so both come before quantization, and again when the adapter is
loaded: a file holds A and B, and what they are added to follows from W alone.

Letters: s the scaling α/r, Q the frozen weight as it is stored, σ a singular value.
"""

from dataclasses import replace

import numpy as np

from .. import lora
from ..config import require
from ..kernels import dense, quantize_4bit
from ..quant.schemes import is_projection, quantize_leaf
from ..tree import get, named_leaves, set_leaf, tree_map
from .operations import row_norms

LOFTQ_STEPS = 5  # the most that the paper tries


def init(base, config, rng, scheme="none", block_size=64):
    """Return (adapters, frozen) as `lora.init` does, of a dense base, projections in `scheme`.

    `config.init_lora_weights` is `pissa` or `loftq`. Neither is the base bit for bit at first:
    PiSSA's (W − s·BA) + s·BA is W up to rounding, and up to the quantization of the residual;
    LoftQ's Q + s·BA is nearer to W than the quantized W is.
    """
    name = config.init_lora_weights
    start = {"pissa": pissa, "loftq": loftq}[name]
    require(
        name != "loftq" or scheme != "none",
        "loftq makes up for what quantization takes away: give --quantize a scheme, or take pissa",
    )
    adapters, frozen = lora.init(base, replace(config, init_lora_weights=True, use_dora=False), rng)
    adapted = lora.adapted_paths(adapters)
    stored = tree_map(lambda w: w, frozen)
    for path, w in named_leaves(frozen):
        if is_projection(path):
            require(isinstance(w, np.ndarray), f"{path} is quantized: {name} needs it dense")

            def store(w, path=path):
                return quantize_leaf(path, w, scheme, block_size, quantize_4bit)

            node = path.removesuffix(".weight")
            if node in adapted:
                scaling = config.rank_and_scaling(node)[1]
                set_leaf(stored, path, start(w, get(adapters, node), scaling, store))
            else:
                set_leaf(stored, path, store(w))
    for path in adapted if config.use_dora else ():
        norms = row_norms(get(adapters, path), get(stored, path))
        set_leaf(adapters, f"{path}.lora_magnitude_vector", norms)
    return lora.PeftModel(adapters, stored)


def pissa(w, node, scaling, store):
    """Give A and B the principal part, freeze the rest (Meng et al. 2024, Eqs. 2 to 4)."""
    return store(without_principal(w, w, node, scaling))


def loftq(w, node, scaling, store):
    """Quantize what A and B leave, give them the error, and repeat (Li et al. 2023, Alg. 1)."""
    rest = w
    for _ in range(LOFTQ_STEPS):
        q = store(rest)
        rest = without_principal(w, w - dense(q), node, scaling)
    return q


def without_principal(w, part, node, scaling):
    """Set s·BA to the principal part of `part` in place, and return W − s·BA."""
    a, b = principal(part, len(node["lora_A"]), scaling)
    node["lora_A"][: len(a)] = a  # beyond the rank of `part`, A stays and B is zero
    node["lora_B"][:] = 0
    node["lora_B"][:, : len(a)] = b
    return w - lora.delta(node, {"lora_scaling": scaling})


def principal(w, r, scaling):
    """Return A and B of rank r, or W's if that is less, so that s·BA is nearest to W."""
    if w.shape[0] > w.shape[1]:
        a, b = principal(w.T, r, scaling)  # (BA)ᵀ = AᵀBᵀ
        return b.T, a.T
    # eigenvectors of WWᵀ, in float64, take a tenth of the time of the whole decomposition
    w = w.astype(np.float64)
    u = np.linalg.eigh(w @ w.T)[1][:, ::-1][:, :r]
    sv = u.T @ w  # σVᵀ
    sigma = np.linalg.norm(sv, axis=1)
    u, sv, sigma = u[:, sigma > 0], sv[sigma > 0], sigma[sigma > 0]
    # A = √(σ/s)·Vᵀ, B = U·√(σ/s)
    return sv / np.sqrt(sigma * scaling)[:, None], u * np.sqrt(sigma / scaling)
