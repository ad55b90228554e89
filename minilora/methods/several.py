"""Several adapters on one base: stacked on each other, or one per row of a batch.

To switch adapters, use another tree; to disable the adapter, use {}.
"""

import autograd.numpy as np

from .. import lora
from ..config import InputError
from ..layers import LORA, Hook, dense, lora_delta, lora_matmul
from ..model import Model, Source, with_adapters
from ..tree import Tree, get, named_leaves, overlay, set_leaf, without

STACKED = "lora_stack"  # {"0": the frozen adapter below, …}
ROWS = ("rows_A", "rows_B", "rows_scaling")  # (B, r, in), (B, out, r), (B, 1, 1)


def stack(adapters: Tree, model: Model) -> Model:
    """Return the model of another adapter: `model` with this LoRA adapter frozen in its base.

    Factors and scalings are put under `lora_stack`; trained norms, biases and weights replace those
    of the base. The other adapter is saved without the stack, and must be loaded onto the same one:
    the source of the returned model is unknown.
    """
    with_adapters(adapters, model)  # checks them
    below: dict = {}
    for path, leaf in named_leaves(adapters):
        node, _, name = path.rpartition(".")
        if name in LORA:
            number = len(get(model.base, node).get(STACKED, ()))
            path = f"{node}.{STACKED}.{number}.{name}"
        elif name not in ("weight", "bias"):
            raise InputError(f"{path} cannot be stacked: merge that adapter instead")
        set_leaf(below, path, leaf)
    return model._replace(base=overlay(model.base, below), source=Source())


def per_row(adapters, rows):
    """Return one tree that applies adapters[rows[b]] to row b of a batch; {} is no adapter.

    rows: B indices. Smaller ranks are padded with zeros. There is no dropout.
    """
    n = len(adapters)
    for row in rows:
        if isinstance(row, bool | np.bool_) or row not in range(n):
            raise InputError(f"`rows` has {row}: give numbers of adapters, 0 to {n - 1}")
    rows = np.array(rows, int)
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


def check_any_order(adapters):
    """Raise InputError for adapters of `per_row`: training and evaluation order the rows anew."""
    if any(path.endswith(ROWS) for path, _ in named_leaves(adapters)):
        raise InputError("adapters of `per_row` are for one batch: give each adapter alone")


def factors(adapters):
    """Return {path: [(number, scaling, A, B) of each adapter on it]}."""
    found: dict = {}
    for number, tree in enumerate(adapters):
        for path, _ in named_leaves(tree):
            if not path.endswith(LORA):
                raise InputError(f"{path} is no low-rank factor: combine only LoRA adapters")
            if path.endswith("lora_start"):
                raise InputError(f"{path}: PiSSA and LoftQ have a base of their own: merge instead")
        for path in lora.adapted_paths(tree):
            node = get(tree, path)
            parts = number, node["lora_scaling"], node["lora_A"], node["lora_B"]
            found.setdefault(path, []).append(parts)
    return found


def apply_rows(inner, x, node, rng):
    """Add the update of each row's own adapter."""
    if len(x) != len(node["rows_A"]):
        raise InputError(f"`rows` has {len(node['rows_A'])} numbers for a batch of {len(x)} rows")
    h = inner(x, without(node, "bias"), rng)
    z = node["rows_scaling"] * (x @ node["rows_A"].swapaxes(1, 2))
    h = h + z @ node["rows_B"].swapaxes(1, 2)
    return h + node["bias"] if "bias" in node else h


def apply_stack(inner, x, node, rng):
    """Add the updates of the frozen adapters below."""
    h = inner(x, without(node, "bias"), rng)
    for below in node[STACKED].values():
        h = h + lora_matmul(x, below["lora_A"], below["lora_B"], below["lora_scaling"])
    return h + node["bias"] if "bias" in node else h


def merge_stack(inner, node):
    """Merge the adapters below first."""
    weight = node["weight"]
    for below in node[STACKED].values():
        weight = dense(weight) + lora_delta(below)
    return inner(without(node, STACKED) | {"weight": weight})


HOOKS = (Hook(ROWS, apply_rows), Hook((STACKED,), apply_stack, merge_stack))
