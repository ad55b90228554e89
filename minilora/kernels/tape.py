"""What autograd's tape records: a leaf and not its branches, a layer and not its insides.

Neither function changes a value or a gradient. The first saves time, the second memory.
"""

from functools import partial

from autograd import make_vjp
from autograd.extend import SparseObject, defvjp, defvjp_argnums, primitive, vspace
from autograd.tracer import getval, isbox

from ..tree import flatten, get, put, unflatten, walk


def opened(tree):
    """A tree that autograd follows, as plain dicts whose leaves it follows; any other as it is.

    autograd boxes the dict at the root, and then each look at a branch is a step on its tape, with
    a tree of zeros in the backward pass. Here a leaf is one step, whatever its depth.
    """
    if not isbox(tree):
        return tree
    values = getval(tree)
    space = vspace(values)
    return unflatten({path: _leaf_at(tree, path, space) for path, _ in walk(values)})


@primitive
def _leaf_at(tree, path, space):
    return get(tree, path)


def _leaf_at_vjp(leaf, tree, path, space):
    def add(g, total):
        here = get(total, path)
        here += g
        put(total, path, here)
        return total

    return lambda g: SparseObject(space, partial(add, g))


defvjp(_leaf_at, _leaf_at_vjp)


def recomputed(step, trained, x):
    """step(trained, x), keeping only its arguments: the backward pass runs the step once more.

    (Chen et al. 2016.) Memory grows by one block's input per layer.
    """
    leaves = flatten(opened(trained))

    def of_arrays(x, *arrays):
        return step(unflatten(dict(zip(leaves, arrays))), x)

    return _recomputed(of_arrays, x, *leaves.values())


@primitive
def _recomputed(step, *arrays):
    return step(*arrays)


def _recomputed_vjp(argnums, ans, args, kwargs):
    step, *inputs = args  # argnums need not hold 1: x is not followed below the first adapted layer

    def of_followed(followed):
        full = list(inputs)
        for n, value in zip(argnums, followed):
            full[n - 1] = value
        return step(*full)

    return lambda g: make_vjp(of_followed)(tuple(inputs[n - 1] for n in argnums))[0](g)


defvjp_argnums(_recomputed, _recomputed_vjp)
