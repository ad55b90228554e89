"""Train LoRA through the merge: the forward pass computes with quantize(W + s·BA).

    model = through_merge.through(adapters, model, "nf4-dq")
    adapters, history = minilora.train(adapters, model, examples, train_config)

The base is dense, or quantized (then W is its dequantized weight). The model that is trained is the
model that `minilora.quantize(minilora.merge(adapters, model), scheme)` returns. This needs LoRA on
all seven projections of each layer, without dropout, and no other adapter on them. Norms, biases
and the head may be trained as well.
"""

from functools import partial
from types import SimpleNamespace

from autograd.extend import defvjp, notrace_primitive, primitive

from minilora import kernels
from minilora.config import InputError
from minilora.layers import LORA, matmul, merge_lora
from minilora.model import with_adapters
from minilora.quant.schemes import is_projection, quantize_leaf
from minilora.tree import flatten, get, without


def through(adapters, model, scheme):
    """Return `model` with other operations: adapted projections compute with `scheme`.

    Raises InputError unless each projection has LoRA without dropout and no other adapter, and for
    products in bfloat16.
    """
    if model.source.compute_dtype != "float32":
        raise InputError("training through the merge needs `compute_dtype` float32, as merge gives")
    base = with_adapters(adapters, model).base
    for path in filter(is_projection, flatten(base)):
        node = get(base, path.removesuffix(".weight"))
        others = without(node, "weight", "bias", *LORA)
        if "lora_A" not in node or node["lora_dropout"] or others:
            needed = "LoRA on all-linear, without dropout, DoRA or another adapter"
            raise InputError(f"{path}: training through the merge needs {needed}")
    linear_through = partial(linear, scheme)
    return model._replace(ops=SimpleNamespace(**vars(kernels.ops) | {"linear": linear_through}))


def linear(scheme, x, node, rng=None):
    """Apply a projection; with an adapter, its weight is quantize(W + s·BA). Without dropout."""
    if "lora_A" not in node:
        return kernels.ops.linear(x, node, rng)
    a, b, scaling = node["lora_A"], node["lora_B"], node["lora_scaling"]
    y = straight_through(x, a, b, scaling, merged(scheme, node["weight"], a, b, scaling))
    return y + node["bias"] if "bias" in node else y


@notrace_primitive
def merged(scheme, w, a, b, scaling):
    """Return quantize(W + s·BA), with the bits of `minilora.merge` and `minilora.quantize`."""
    node = {"weight": w, "lora_A": a, "lora_B": b, "lora_scaling": scaling}
    return quantize_leaf("weight", merge_lora(node)["weight"], scheme)


@primitive
def straight_through(x, a, b, scaling, q):
    """Compute x Qᵀ, where Q = quantize(W + s·BA) and the gradient takes quantize as the identity.

    x (..., in), a (r, in), b (out, r), q (out, in).
    """
    return kernels.ops.linear(x, {"weight": q})


def rows(x):
    """Return x (..., n) as a matrix (rows, n)."""
    return x.reshape(-1, x.shape[-1])


# With W' = W + s·BA and the straight-through ∂L/∂W' = ∂L/∂Q = gᵀx, which is never computed:
#   ∂L/∂x = gQ    ∂L/∂A = s·Bᵀ(gᵀx) = s·(gB)ᵀx    ∂L/∂B = s·(gᵀx)Aᵀ = s·gᵀ(xAᵀ)
# These are LoRA's gradients of A and B; only x and g come from the quantized model.
defvjp(
    straight_through,
    lambda y, x, a, b, scaling, q: lambda g: matmul(g, kernels.ops.dense(q).T),
    lambda y, x, a, b, scaling, q: lambda g: rows(scaling * matmul(g, b.T)).T @ rows(x),
    lambda y, x, a, b, scaling, q: lambda g: rows(g).T @ rows(scaling * matmul(x, a)),
    argnums=(0, 1, 2),
)
