"""What a model computes with, as a type: the meaning of the argument `ops` everywhere.

Parts 3 and 4 of `lessons/00_qlora_in_one_file.py` have one version of these; here there are two.
`layers` is the reference, in NumPy and autograd. `kernels.fused` computes the same faster, with the
same signatures. `methods.operations` wraps either of them for methods other than LoRA. A function
that computes takes `ops` as an argument and never chooses it.
"""

from typing import Any, Protocol

from .layers import Function, LayerCache, Rope, RowRng
from .tree import Array, Tree


class Ops(Protocol):
    """The operations of a decoder; `layers` explains each, with its shapes and its equation."""

    def embed(
        self, trained: Tree, frozen: Tree, tokens: Array, segment_starts: Array, past: int = 0
    ) -> tuple[Array, Array, Array]: ...

    def linear(self, x: Array, trained: Tree, frozen: Tree, rng: RowRng | None = None) -> Array: ...

    def self_attention(
        self, x: Array, trained: Tree, frozen: Tree, rope: Rope, segment_starts: Array,
        cache: LayerCache | None = None, rng: RowRng | None = None, linear: Function = ...,
    ) -> Array: ...  # fmt: skip

    def mlp(
        self, x: Array, trained: Tree, frozen: Tree, rng: RowRng | None = None,
        linear: Function = ...,
    ) -> Array: ...  # fmt: skip

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array: ...

    def cross_entropy(self, hidden: Array, head: Any, targets: Array, mask: Array) -> Any: ...

    def checkpoint(self, f: Function, trained: Tree, x: Array) -> Array: ...

    def value_and_grad(self, f: Function) -> Function: ...
