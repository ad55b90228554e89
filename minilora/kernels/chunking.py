"""What the optimized operations decide before they compute; nothing here needs numba."""

from itertools import pairwise

from ..config import ALL_LINEAR
from ..lora import FACTORS

LOGIT_FLOATS = 2**22  # logits held at once (16 MiB), however large the batch is


def chunks(n, floats, most):
    """Cut range(n) into as few slices as hold about `most` floats, of nearly equal length.

    floats: how many of them an element of the range needs.
    """
    pieces = min(n, -(-n * floats // most))
    edges = [n * i // pieces for i in range(pieces + 1)] if n else []
    return [slice(*edge) for edge in pairwise(edges)]


def is_plain_lora(trained, frozen, dropout=True):
    """Tell whether a sublayer has nothing trained but two factors on some of its projections.

    trained, frozen: nodes such as `self_attn` or `mlp`. `dropout`: whether a dropout counts.
    """
    return set(trained) <= set(ALL_LINEAR) and all(
        set(node) <= set(FACTORS) and not (dropout and node and frozen[name]["lora_dropout"])
        for name, node in trained.items()
    )
