"""The type of the argument `ops`: the operations that a model is computed with.

Each costly operation of parts 3 and 4 of `lessons/00_qlora_in_one_file.py` has two implementations:
`layers` is the reference, and `kernels.fused` is optimized. `methods.operations` wraps one of them
for other methods, stacked adapters and one adapter per row. The functions of the core take `ops` as
an argument.
"""

from typing import Any, Protocol

from .layers import Function, LayerCache, Rope, RowRng
from .tree import Array, Tree


class Ops(Protocol):
    """The operations of a decoder. `layers` has their shapes and equations."""

    def embed(
        self, trained: Tree, frozen: Tree, tokens: Array, segment_starts: Array, past: int = 0
    ) -> tuple[Array, Array, Array]:
        """Look up token ids."""

    def linear(self, x: Array, trained: Tree, frozen: Tree, rng: RowRng | None = None) -> Array:
        """Apply a projection and its adapter."""

    def self_attention(
        self, x: Array, trained: Tree, frozen: Tree, rope: Rope, segment_starts: Array,
        cache: LayerCache | None = None, rng: RowRng | None = None, eps: float = ...,
        window: int | None = None, linear: Function = ...,
    ) -> Array:  # fmt: skip
        """Apply the attention sublayer."""

    def mlp(
        self, x: Array, trained: Tree, frozen: Tree, rng: RowRng | None = None,
        linear: Function = ...,
    ) -> Array:  # fmt: skip
        """Apply the feed-forward sublayer."""

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Normalize by the root mean square."""

    def cross_entropy(self, hidden: Array, head: Any, targets: Array, mask: Array) -> Any:
        """Compute the mean loss of the target tokens."""

    def checkpoint(self, f: Function, x: Array, trained: Tree) -> Array:
        """Compute f, and recompute it in the backward pass."""

    def value_and_grad(self, f: Function) -> Function:
        """Return a function that computes f and its gradient."""
