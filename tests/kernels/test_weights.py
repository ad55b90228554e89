"""Frozen weights in a storage that the kernels do not know: they need only `dequantize`."""

import numpy as np
from models import TINY, adapted, fingerprint, random_base, random_batch

import minilora
from minilora import Model, kernels
from minilora.layers import value_and_grad
from minilora.quant.schemes import is_projection
from minilora.tree import flatten, unflatten


class Halves:
    """A matrix of float16."""

    def __init__(self, w):
        self.halves, self.shape = w.astype("f2"), w.shape

    def dequantize(self):
        return self.halves.astype(np.float32)


def test_another_storage_needs_only_dequantize():
    """Forward pass, gradient, generation and merging equal those of the dequantized base."""
    leaves = flatten(random_base())
    stored = {p: Halves(w) for p, w in leaves.items() if is_projection(p)}
    dense = {path: w.dequantize() for path, w in stored.items()}

    def found(projections):
        adapters, model = adapted(Model(TINY, unflatten(leaves | projections), kernels.ops))
        loss, grads = value_and_grad(minilora.loss)(adapters, model, random_batch())
        merged = minilora.merge(adapters, model).base
        ids = list(minilora.generate(adapters, model, [1, 2], max_tokens=4))
        return float(loss), ids, fingerprint(grads), fingerprint(merged)

    assert found(stored) == found(dense)
