"""VeRA (Kopiczko et al. 2024): random A and B shared by all layers, and two trained vectors."""

import autograd.numpy as np

from ..layers import Hook
from ..tree import arrays, flatten, named_leaves, unflatten, without
from .method import Method, projections, uniform

TARGETS = ("q_proj", "v_proj")
B, D = "vera_lambda_b", "vera_lambda_d"  # trained: b (out,) and d (r,)
SHARED = "vera_projections"  # (A, B), (r, in) and (largest out, r), which are not trained
SHARED_NAMES = ("base_model.vera_A", "base_model.vera_B")


def init(base, config, rng):
    """Create A and B from U(−√(6/in), √(6/in)) and U(−√(6/r), √(6/r)), d = 0.1, b = 0."""
    r = config.vera_r
    shapes = projections(base, TARGETS)
    m, n = map(max, zip(*shapes.values()))
    shared = uniform(rng, (r, n), (6 / n) ** 0.5), uniform(rng, (m, r), (6 / r) ** 0.5)  # as PEFT
    nodes = {
        path: {B: np.zeros(out_features, "f4"), D: np.full(r, 0.1, "f4"), SHARED: shared}
        for path, (out_features, _) in shapes.items()
    }
    return unflatten(nodes)


def apply(inner, x, node, rng):
    """Add the update of VeRA to the output of a projection."""
    # h = W₀x + Λ_b B Λ_d Ax   (VeRA, Eq. 2)
    a, b = node[SHARED]
    return inner(x, node, rng) + node[B] * ((node[D] * (x @ a.T)) @ b[: len(node[B])].T)


def merge(inner, node):
    """Add Λ_b B Λ_d A to the weight."""
    a, b = node[SHARED]
    merged = inner(without(node, B, D, SHARED))
    b = node[B][:, None] * b[: len(node[B])]
    merged["weight"] = merged["weight"] + b @ (node[D][:, None] * a)
    return merged


def pack(adapters):
    """Return the tensors of PEFT's file: the vectors, and A and B once."""
    shared = next(leaf for path, leaf in named_leaves(adapters) if path.endswith(SHARED))
    return flatten(arrays(adapters)) | dict(zip(SHARED_NAMES, shared))


def unpack(tensors, base, config):
    """Return the adapter in the tensors of a file."""
    shared = tuple(tensors.pop(name) for name in SHARED_NAMES)
    nodes = {path.rpartition(".")[0] for path in tensors}
    return unflatten(tensors | {f"{node}.{SHARED}": shared for node in nodes})


METHOD = Method(
    "vera",
    init,
    hooks=(Hook((SHARED, B, D), apply, merge),),
    size="vera_r",
    peft_size="r",
    pack=pack,
    unpack=unpack,
    float32=SHARED_NAMES,
    extra_floats={B: len, D: len},  # what the vector multiplies
    peft_fields={
        "peft_type": "VERA",
        "target_modules": list(TARGETS),
        "save_projection": True,
        "bias": "none",
    },
    free_fields=("projection_prng_key", "d_initial", "init_weights"),
)
