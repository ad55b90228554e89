"""Starts of LoRA's factors that change the frozen weight as well: PiSSA and LoftQ.

Both need the dense weight W, so both come before quantization, and both come again whenever the
adapter is loaded: a file holds A and B, and what they are added to follows from W alone.

Letters: s the scaling α/r, Q the frozen weight as it is stored, σ a singular value.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from .. import lora
from ..config import require
from ..kernels import nf4
from ..kernels.weights import dense
from ..quant.quantize import is_projection, quantize_leaf
from ..tree import get, put, tree_map, walk
from .siblings import row_norms

LOFTQ_STEPS = 5  # the most that the paper tries


def init(base, config, rng, scheme="none", block_size=64):
    """(adapters, frozen) as from `lora.init`, of a dense base; its projections end up in `scheme`.

    `config.init_lora_weights` is `pissa` or `loftq`. Neither is the base bit for bit at first:
    PiSSA's (W − s·BA) + s·BA is W up to rounding, and up to the quantization of the residual;
    LoftQ's Q + s·BA is nearer to W than the quantized W is. Raises InputError for a base that is
    quantized already, and for LoftQ without a scheme.
    """
    name = config.init_lora_weights
    require(
        name != "loftq" or scheme != "none",
        "loftq makes up for what quantization takes away: give --quantize a scheme, or take pissa",
    )
    adapters, frozen = lora.init(base, replace(config, init_lora_weights=True), rng)
    adapted = lora.adapted(adapters)
    stored = tree_map(lambda w: w, frozen)
    for path, w in walk(frozen):
        if is_projection(path):
            require(isinstance(w, np.ndarray), f"{path} is quantized: {name} needs it dense")
            store = partial(quantize_leaf, path, scheme=scheme, block_size=block_size,
                            quantize_4bit=nf4.quantize)  # fmt: skip
            node = path.removesuffix(".weight")
            args = (get(adapters, node), config.at(node)[1]) if node in adapted else None
            put(stored, path, START[name](w, *args, store) if args else store(w))
    for path in adapted if config.use_dora else ():
        norms = row_norms(get(adapters, path), get(stored, path))
        put(adapters, f"{path}.lora_magnitude_vector", norms)
    return adapters, stored


def pissa(w, node, scaling, store):
    """The principal part goes to A and B, the rest stays frozen (Meng et al. 2024, Eqs. 2 to 4)."""
    put_factors(node, *principal(w, len(node["lora_A"]), scaling))
    return store(w - lora.delta(node, {"lora_scaling": scaling}))


def loftq(w, node, scaling, store):
    """Quantize what A and B leave over, give them what that takes away, and so on (Li et al. 2023,
    Alg. 1)."""
    rest = w
    for _ in range(LOFTQ_STEPS):
        q = store(rest)
        put_factors(node, *principal(w - dense(q), len(node["lora_A"]), scaling))
        rest = w - lora.delta(node, {"lora_scaling": scaling})
    return q


START = {"pissa": pissa, "loftq": loftq}


def put_factors(node, a, b):
    """Set A and B in place; where their rank exceeds that of a and b, A stays and B is zero."""
    node["lora_A"][: len(a)] = a
    node["lora_B"][:] = 0
    node["lora_B"][:, : len(a)] = b


def principal(w, r, scaling):
    """A and B of rank r, or W's if that is less, so that s·BA is nearest to W (Eckart and Young).

    The singular vectors are the eigenvectors of the smaller of WWᵀ and WᵀW, in float64, which
    takes a tenth of the time of the whole decomposition.
    """
    if w.shape[0] > w.shape[1]:
        a, b = principal(w.T, r, scaling)  # (BA)ᵀ = AᵀBᵀ
        return b.T, a.T
    w = w.astype(np.float64)
    u = np.linalg.eigh(w @ w.T)[1][:, ::-1][:, :r]
    sv = u.T @ w  # σVᵀ
    sigma = np.linalg.norm(sv, axis=1)
    u, sv, sigma = u[:, sigma > 0], sv[sigma > 0], sigma[sigma > 0]
    # A = √(σ/s)·Vᵀ, B = U·√(σ/s)
    return sv / np.sqrt(sigma * scaling)[:, None], u * np.sqrt(sigma / scaling)
