"""Trees of arrays: nested dicts whose paths are Hugging Face's parameter names.

The flat dict of part 1 of `lessons/00_qlora_in_one_file.py`, as a tree:
`{"model": {"layers": {"0": {"self_attn": {"q_proj": {"weight": W}}}}}}` is the tree that
Hugging Face's flat name `model.layers.0.self_attn.q_proj.weight` spells with dots. A leaf is an
array, a quantized weight (anything with a `shape`), or a plain float that belongs to the node.
"""

import math


def walk(tree, path=""):
    """Yield (dotted path, leaf) in the order of the keys."""
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict):
            yield from walk(value, here)
        else:
            yield here, value


def flatten(tree):
    """{dotted path: leaf}."""
    return dict(walk(tree))


def unflatten(leaves):
    """The tree whose leaves are `leaves`, {dotted path: leaf}."""
    tree: dict = {}
    for path, leaf in leaves.items():
        put(tree, path, leaf)
    return tree


def put(tree, path, leaf):
    """Set the leaf at `path`, making the nodes on the way (in place)."""
    *nodes, name = path.split(".")
    for key in nodes:
        tree = tree.setdefault(key, {})
    tree[name] = leaf


def get(tree, path):
    """The node or leaf at `path`; KeyError if there is none."""
    for key in path.split("."):
        tree = tree[key]
    return tree


def layer_of(path):
    """The number of the layer that a leaf is in; −1 for the embedding, the last norm, the head."""
    return int(path.split(".")[2]) if path.startswith("model.layers.") else -1


def child(node, name):
    """node[name], or an empty node: an adapter tree has only the branches that it trains.

    Asked with `in`, because under autograd's trace a dict is no longer a `dict`.
    """
    return node[name] if name in node else {}  # noqa: SIM401


def leaf(trained, frozen, name):
    """The trained leaf where there is one, else the frozen one."""
    return trained[name] if name in trained else frozen[name]


def tree_map(f, tree, *others):
    """The tree of f(leaf, *leaves at the same place in the others)."""
    return {
        key: tree_map(f, value, *(o[key] for o in others))
        if isinstance(value, dict)
        else f(value, *(o[key] for o in others))
        for key, value in tree.items()
    }


def count(tree):
    """Logical parameters: elements of the weights, however few bytes store them."""
    return sum(math.prod(leaf.shape) for _, leaf in walk(tree) if hasattr(leaf, "shape"))


def nbytes(tree):
    """Bytes that the leaves occupy in memory."""
    return sum(getattr(leaf, "nbytes", 0) for _, leaf in walk(tree))
