"""The type of the argument `ops`: the operations that a model is computed with.

Each costly operation of parts 3 and 4 of `lessons/00_qlora_in_one_file.py` has two implementations:
`layers` is the reference, and `kernels.fused` is optimized. `minilora.operations` wraps one of them
for other methods, stacked adapters and one adapter per row: then `ENTRIES` also lists the entries
of the method, and the operation that gets the node (`linear` for a projection) reads them. The
functions of the core take `ops` as an argument.
"""

from typing import Any, Protocol

from .layers import Context, LayerCache, Rope, RowRng
from .tree import Array, Tree


class Ops(Protocol):
    """The operations of a decoder. `layers` has their shapes and equations."""

    ENTRIES: dict[
        str, tuple[str, ...]
    ]  # {kind of a node: the entries that are read in it}: see `model.first_unread`

    def embed(self, tokens: Array, node: Tree, ctx: Context) -> tuple[Array, Array, Array]:
        """Look up token ids."""

    def linear(self, x: Array, node: Tree, rng: RowRng | None = None) -> Array:
        """Apply a projection and its adapter."""

    def merge_projection(self, node: Tree) -> Tree:
        """Merge the adapter of a projection into its weight."""

    def attention(
        self, q: Array, k: Array, v: Array, rope: Rope, segment_starts: Array,
        cache: LayerCache | None = None, window: int | None = None,
    ) -> Array:  # fmt: skip
        """Mix the values of the tokens that each token sees."""

    def swiglu(self, gate: Array, up: Array) -> Array:
        """Compute the hidden units of the MLP."""

    def self_attention(self, x: Array, node: Tree, ctx: Context) -> Array:
        """Apply the attention sublayer."""

    def rms_norm(self, x: Array, weight: Array, eps: float) -> Array:
        """Normalize by the root mean square."""

    def cross_entropy(self, hidden: Array, head: Any, targets: Array, mask: Array) -> Any:
        """Compute the mean loss of the target tokens."""
