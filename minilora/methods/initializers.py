"""Initializations of LoRA that also modify the frozen weight: PiSSA and LoftQ.

Both are computed from the dense weight W, before quantization, and again when an adapter is loaded:
the file has only A and B, and the modified frozen weight follows from W.

Letters: s the scaling α/r, Q the stored frozen weight, σ a singular value.
"""

import hashlib
from dataclasses import replace
from functools import partial

import numpy as np

from .. import kernels, lora
from ..config import InputError
from ..layers import lora_delta
from ..quant import schemes
from ..tree import flatten, get, unflatten
from . import dora


def init(model, config, rng, scheme, block_size):
    """Create an adapter on a dense model as `lora.init` does; return (adapters, model in `scheme`).

    config.init_lora_weights: `pissa` or `loftq`. At first, PiSSA's (W − s·BA) + s·BA is W up to
    rounding and the quantization of W − s·BA; LoftQ's Q + s·BA is nearer to W than a quantized W.
    """
    check_whole(model)
    with_loftq = config.init_lora_weights == "loftq"
    if with_loftq and scheme == "none":
        raise InputError("loftq reduces the error of quantization: give a `scheme`, or use pissa")
    plain = replace(config, init_lora_weights=True, use_dora=False)
    adapters = lora.init(model.base, plain, rng)
    leaves = flatten(model.base)
    nodes = lora.adapted_paths(adapters)
    ranks = {node: len(get(adapters, node)["lora_A"]) for node in nodes}
    # the files have other weights, so an adapter of theirs does not fit this model
    digest = f"{start_text(config, ranks, scheme, block_size)}:{model.source.digest}"
    for node in nodes:
        path = f"{node}.weight"
        w = leaves[path]
        if not isinstance(w, np.ndarray):
            raise InputError(
                f"{path} is not float32: {config.init_lora_weights} needs a dense base"
            )
        factors = get(adapters, node)
        factors["lora_start"] = digest
        if with_loftq:
            store = partial(schemes.quantize_leaf, path, scheme=scheme, block_size=block_size)
            leaves[path] = loftq(w, factors, store)
        else:
            # PiSSA: the rest is frozen (Meng et al. 2024, Eqs. 2 to 4)
            leaves[path] = without_principal(w, w, factors)
    source = model.source._replace(digest=digest)
    model = model._replace(base=unflatten(leaves), source=source)
    model = schemes.quantize(model, scheme, block_size)
    if config.use_dora:
        dora.add_magnitudes(adapters, model.base)
    return adapters, model


def check_whole(model):
    """Raise InputError if PiSSA or LoftQ has moved a part of the frozen weights to an adapter."""
    start = model.source.init_lora_weights
    if start is not True:
        what = f"`model` has the frozen weights that {start} left for its own adapter"
        raise InputError(f"{what}: give the model as it was loaded")


def start_text(config, ranks, scheme, block_size):
    """Return "pissa-" or "loftq-" and a digest of the settings of the frozen weights."""
    facts: tuple = config.init_lora_weights, ranks
    if config.init_lora_weights == "loftq":  # PiSSA's W − s·BA is the same in every storage
        facts += scheme, block_size or 64
    return f"{config.init_lora_weights}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def refuse_storage(scheme, block_size):
    """Raise InputError for a storage that is given to an adapter that leaves the frozen weight."""
    if (scheme, block_size) != (None, None):
        raise InputError(
            "`scheme` and `block_size` are for PiSSA and LoftQ: call minilora.quantize on the model"
        )


def loftq(w, node, store):
    """Quantize w − s·BA to q, fit A and B to w − q, and repeat (Li et al. 2023, Alg. 1).

    Returns the w − s·BA whose quantization is the last q.
    """
    rest = w
    for _ in range(5):  # the largest number in the paper
        last = rest
        rest = without_principal(w, w - kernels.ops.dense(store(last)), node)
    return last


def without_principal(w, part, node):
    """Set s·BA in place to the principal part of `part`; return W − s·BA."""
    a, b = principal(part, len(node["lora_A"]), node["lora_scaling"])
    node["lora_A"][: len(a)] = a  # in rows beyond the rank of `part`, A stays and B is zero
    node["lora_B"][:] = 0
    node["lora_B"][:, : len(a)] = b
    return w - lora_delta(node)


def principal(w, r, scaling):
    """Return (A, B) of the s·BA nearest to w, of rank r, or of the rank of w if that is smaller."""
    if w.shape[0] > w.shape[1]:
        a, b = principal(w.T, r, scaling)  # (BA)ᵀ = AᵀBᵀ
        return b.T, a.T
    # the eigenvectors of WWᵀ, in float64, take a tenth of the time of a full decomposition
    w = w.astype(np.float64)
    u = np.linalg.eigh(w @ w.T)[1][:, ::-1][:, :r]
    sv = u.T @ w  # σVᵀ
    sigma = np.linalg.norm(sv, axis=1)
    u = u[:, sigma > 0]
    sv = sv[sigma > 0]
    sigma = sigma[sigma > 0]
    # A = √(σ/s)·Vᵀ, B = U·√(σ/s)
    return sv / np.sqrt(sigma * scaling)[:, None], u * np.sqrt(sigma / scaling)
