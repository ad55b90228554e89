"""Sizes of chunks. Needs no numba."""

from itertools import pairwise

LOGIT_FLOATS = 2**22  # logits in memory at a time (16 MiB), for any batch size


def chunks(n, floats, most):
    """Split range(n) into as few slices as have about `most` floats, with `floats` per element."""
    pieces = min(n, -(-n * floats // most))
    edges = [n * i // pieces for i in range(pieces + 1)] if n else []
    return [slice(*edge) for edge in pairwise(edges)]
