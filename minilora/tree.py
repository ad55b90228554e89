"""Trees of arrays: nested dicts whose paths are Hugging Face's parameter names.

The flat dict of part 1 of `lessons/00_qlora_in_one_file.py` becomes a tree here. The path of W in
`{"model": {"layers": {"0": {"self_attn": {"q_proj": {"weight": W}}}}}}` is
`model.layers.0.self_attn.q_proj.weight`. A leaf is an array, a quantized weight (it has a `shape`),
or a float, such as `lora_scaling`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

from .config import InputError

Array = Any  # a NumPy array; while autograd records, its box (a wrapper) of one
Tree = dict[str, Any]


def named_leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, leaf) of each leaf, in the order of the keys."""
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else key
        if is_node(value):
            yield from named_leaves(value, path)
        else:
            yield path, value


def flatten(tree: Tree) -> Tree:
    """Return {dotted path: leaf}.

    >>> flatten({"model": {"norm": {"weight": 1.0}}})
    {'model.norm.weight': 1.0}
    """
    return dict(named_leaves(tree))


def unflatten(leaves: Tree) -> Tree:
    """Return the tree of the leaves {dotted path: leaf}, the inverse of `flatten`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        set_leaf(tree, path, leaf)
    return tree


def set_leaf(tree: Tree, path: str, leaf: Any) -> None:
    """Set the leaf at `path` in place, and create missing nodes."""
    *nodes, name = path.split(".")
    for key in nodes:
        tree = tree.setdefault(key, {})
    tree[name] = leaf


def get(tree: Tree, path: str) -> Any:
    """Return the node or leaf at `path`; raise KeyError if there is none."""
    node: Any = tree
    for key in path.split("."):
        node = node[key]
    return node


def layer_of(path: str) -> int:
    """Return the layer number of a leaf, −1 for the embedding, the last norm and the head."""
    return int(path.split(".")[2]) if path.startswith("model.layers.") else -1


def is_node(value: Any) -> bool:
    """Return whether a value of a tree is a node and not a leaf."""
    return hasattr(value, "items")  # a dict, or its box if it is given to autograd's value_and_grad


def overlay(lower: Tree, upper: Tree, place: str = "") -> Tree:
    """Return `lower` with the leaves of `upper`, each added or in the place of the leaf of `lower`.

    Only nodes on the way to a new leaf are copied; the arrays are shared. Raises InputError if one
    tree has a leaf where the other has a node.

    >>> overlay({"q_proj": {"weight": 1.0}}, {"q_proj": {"lora_A": 2.0}})
    {'q_proj': {'weight': 1.0, 'lora_A': 2.0}}
    """
    merged = dict(lower)
    for name, value in upper.items():
        path = f"{place}.{name}" if place else name
        if name in lower and is_node(lower[name]) != is_node(value):
            raise InputError(f"{path} is a node in one tree and a leaf in the other")
        merged[name] = overlay(lower.get(name, {}), value, path) if is_node(value) else value
    return merged


def arrays(tree: Tree) -> Tree:
    """Return the tree without its settings, such as `lora_scaling`."""
    return unflatten({path: leaf for path, leaf in named_leaves(tree) if hasattr(leaf, "shape")})


def without(node: Tree, *names: str) -> Tree:
    """Return a copy of the node without the entries of these names."""
    return {name: value for name, value in node.items() if name not in names}


def tree_map(f: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree of f(leaf, *leaves of the others at its path); they may have more leaves."""
    if not isinstance(tree, dict):
        return f(tree, *others)
    return {key: tree_map(f, node, *(other[key] for other in others)) for key, node in tree.items()}


def num_parameters(tree: Tree) -> int:
    """Count the elements of all arrays and quantized weights, not the stored bytes."""
    return sum(math.prod(leaf.shape) for _, leaf in named_leaves(tree) if hasattr(leaf, "shape"))
