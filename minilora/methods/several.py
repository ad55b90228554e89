"""Several adapters on one base: stacked on each other, or one per row of a batch.

To switch adapters, use another tree; to disable the adapter, use {}.
"""

import autograd.numpy as np

from .. import lora
from ..config import ALL_LINEAR, InputError
from ..layers import LORA, dense, lora_delta, lora_matmul
from ..tree import get, named_leaves, overlay, set_leaf, without
from .method import Method

STACKED = "lora_stack"  # {"0": the frozen adapter below, …}
ROWS = ("rows_A", "rows_B", "rows_scaling")  # (B, r, in), (B, out, r), (B, 1, 1)


def stack(adapters, base):
    """Return the base of another adapter: `base` with this LoRA adapter frozen in it.

    Factors and scalings are put under `lora_stack`; trained norms, biases and weights replace those
    of the base. The other adapter is saved without the stack, and must be loaded onto the same one.
    """
    below: dict = {}
    for path, leaf in named_leaves(adapters):
        node, _, name = path.rpartition(".")
        if name in LORA:
            number = len(get(base, node).get(STACKED, ()))
            path = f"{node}.{STACKED}.{number}.{name}"
        elif name not in ("weight", "bias"):
            raise InputError(f"{path} cannot be stacked: merge that adapter instead")
        set_leaf(below, path, leaf)
    return overlay(base, below)


def per_row(adapters, rows):
    """Return one tree that applies adapters[rows[b]] to row b of a batch; {} is no adapter.

    rows: B indices. Smaller ranks are padded with zeros. There is no dropout.
    """
    n = len(adapters)
    batch: dict = {}
    for path, found in factors(adapters).items():
        *_, A, B = found[0]
        r = max(len(A) for *_, A, _ in found)
        As = np.zeros((n, r, A.shape[1]), A.dtype)
        Bs = np.zeros((n, len(B), r), B.dtype)
        scalings = np.zeros((n, 1, 1), "f4")
        for i, scaling, A, B in found:
            As[i, : len(A)] = A
            Bs[i, :, : len(A)] = B
            scalings[i] = scaling
        set_leaf(batch, path, dict(zip(ROWS, (As[rows], Bs[rows], scalings[rows]))))
    return batch


def factors(adapters):
    """Return {path: [(number, scaling, A, B) of each adapter on it]}."""
    found: dict = {}
    for number, tree in enumerate(adapters):
        for path, _ in named_leaves(tree):
            if not path.endswith(LORA):
                raise InputError(f"{path} is no low-rank factor: combine only LoRA adapters")
        for path in lora.adapted_paths(tree):
            node = get(tree, path)
            parts = number, node["lora_scaling"], node["lora_A"], node["lora_B"]
            found.setdefault(path, []).append(parts)
    return found


def linear(linear, x, node, rng=None):
    """Add the updates of each row's own adapter and of the frozen adapters below."""
    h = linear(x, without(node, "bias"), rng)
    if "rows_A" in node:
        z = node["rows_scaling"] * (x @ node["rows_A"].swapaxes(1, 2))
        h = h + z @ node["rows_B"].swapaxes(1, 2)
    for below in node.get(STACKED, {}).values():
        h = h + lora_matmul(x, below["lora_A"], below["lora_B"], below["lora_scaling"])
    return h + node["bias"] if "bias" in node else h


def merge_projection(merge, node):
    """Merge the adapters below first."""
    weight = node["weight"]
    for below in node.get(STACKED, {}).values():
        weight = dense(weight) + lora_delta(below)
    return merge(without(node, STACKED) | {"weight": weight})


METHOD = Method(
    "several", stack,
    entries=dict.fromkeys(ALL_LINEAR, (STACKED, *ROWS)),
    wraps=(linear, merge_projection),
)  # fmt: skip
