"""Decisions of the optimized operations: sizes of chunks, fused or composed. Needs no numba."""

from itertools import pairwise

from ..config import ALL_LINEAR
from ..lora import FACTORS

LOGIT_FLOATS = 2**22  # logits in memory at a time (16 MiB), for any batch size


def chunks(n, floats, most):
    """Split range(n) into as few slices as have about `most` floats, with `floats` per element."""
    pieces = min(n, -(-n * floats // most))
    edges = [n * i // pieces for i in range(pieces + 1)] if n else []
    return [slice(*edge) for edge in pairwise(edges)]


def is_plain_lora(trained, frozen, dropout=True):
    """Return whether a sublayer trains only LoRA factors (and has no dropout, if that matters)."""
    return set(trained) <= set(ALL_LINEAR) and all(
        set(node) <= set(FACTORS) and not (dropout and node and frozen[name]["lora_dropout"])
        for name, node in trained.items()
    )
