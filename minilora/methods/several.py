"""Several adapters on one base: stacked on each other, or one per row of a batch.

To switch adapters, use another tree; to disable the adapter, use {}.
"""

import autograd.numpy as np

from .. import lora
from ..config import ALL_LINEAR, InputError
from ..layers import LORA, dense, lora_delta, lora_matmul
from ..tree import flatten, get, named_leaves, overlay, set_leaf, without
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
        if name in ("weight", "bias"):
            set_leaf(below, path, leaf)
        elif name not in LORA:
            raise InputError(f"{path} cannot be stacked: merge that adapter instead")
        elif name != "lora_dropout":
            number = len(get(base, node).get(STACKED, ()))
            set_leaf(below, f"{node}.{STACKED}.{number}.{name}", leaf)
    return overlay(base, below)


def stacked_linear(linear, x, node, rng=None):
    """Add the updates of the frozen adapters below."""
    if STACKED not in node:
        return linear(x, node, rng)
    h = linear(x, without(node, "bias"), rng)
    for below in node[STACKED].values():
        h = h + lora_matmul(x, below["lora_A"], below["lora_B"], below["lora_scaling"])
    return h + node["bias"] if "bias" in node else h


def merge_stacked(merge, node):
    """Merge the adapters below first."""
    weight = node["weight"]
    for below in node.get(STACKED, {}).values():
        weight = dense(weight) + lora_delta(below)
    return merge({**without(node, STACKED), "weight": weight})


def per_row(adapters, rows):
    """Return one tree that applies adapters[rows[b]] to row b of a batch; {} is no adapter.

    rows: B indices. Smaller ranks are padded with zeros. There is no dropout.
    """
    batch: dict = {}
    for path, parts in factors(adapters).items():
        scalings, As, Bs = zip(*parts)
        r = max(map(len, As))
        wide = [np.pad(A, ((0, r - len(A)), (0, 0))) for A in As]
        tall = [np.pad(B, ((0, 0), (0, r - B.shape[1]))) for B in Bs]
        set_leaf(batch, f"{path}.rows_A", np.stack(wide)[rows])
        set_leaf(batch, f"{path}.rows_B", np.stack(tall)[rows])
        set_leaf(batch, f"{path}.rows_scaling", np.array(scalings, "f4")[rows][:, None, None])
    return batch


def rows_linear(linear, x, node, rng=None):
    """Add the update of each row's own adapter."""
    if "rows_A" not in node:
        return linear(x, node, rng)
    h = linear(x, without(node, "bias"), rng)
    A, B = np.swapaxes(node["rows_A"], -1, -2), np.swapaxes(node["rows_B"], -1, -2)
    h = h + (node["rows_scaling"] * (x @ A)) @ B
    return h + node["bias"] if "bias" in node else h


def factors(adapters):
    """Return {path: [(scaling, A, B) of each adapter]}, with rank 0 if one does not adapt it."""
    trees = [flatten(tree) for tree in adapters]
    for path in (path for tree in trees for path in tree):
        if not path.endswith(LORA):
            raise InputError(f"{path} is no low-rank factor: combine only LoRA adapters")
    found: dict = {}
    for path in dict.fromkeys(path for tree in adapters for path in lora.adapted_paths(tree)):
        names = [f"{path}.{name}" for name in ("lora_scaling", "lora_A", "lora_B")]
        _, A, B = next([tree[name] for name in names] for tree in trees if names[1] in tree)
        absent = dict(zip(names, (0.0, A[:0], B[:, :0])))
        found[path] = [[(absent | tree)[name] for name in names] for tree in trees]
    return found


STACK = Method(
    "stack", stack,
    entries=dict.fromkeys(ALL_LINEAR, (STACKED,)),
    wraps={"linear": stacked_linear, "merge_projection": merge_stacked},
)  # fmt: skip
PER_ROW = Method(
    "per_row", per_row, entries=dict.fromkeys(ALL_LINEAR, ROWS), wraps={"linear": rows_linear}
)
