"""prompt-mask: tokens, their targets, and which of them count."""

import numpy as np

from minilora.batching import Example

CASES = {"bins": (1, 3), "packed": (1, 2), "longest": (2, 6)}


def arguments(rng, bins, packed, longest):
    def example():
        n = int(rng.integers(2, longest + 1))
        prompt = int(rng.integers(0, n))
        tokens = [int(t) for t in rng.permutation(np.arange(10, 60))[:n]]
        return Example(tokens, [0] * prompt + [1] * (n - prompt))

    return ([[example() for _ in range(packed)] for _ in range(bins)],)


def property_every_target_once(function, bins):
    """the targets that count are the tokens that the masks name, but for each example's first"""
    batch = function(bins)
    for row, some in enumerate(bins):
        kept = np.asarray(batch["targets"])[row][np.asarray(batch["mask"])[row] > 0]
        expected = [t for e in some for t, m in zip(e.tokens[1:], e.mask[1:]) if m]
        assert kept.tolist() == expected, f"row {row}: {kept.tolist()} in place of {expected}"


def property_the_next_token(function, bins):
    """within an example, a token's target is the token after it"""
    batch = {name: np.asarray(part) for name, part in function(bins).items()}
    for row, some in enumerate(bins):
        at = 0
        for e in some:
            end = at + len(e.tokens) - 1
            assert batch["tokens"][row, at:end].tolist() == e.tokens[:-1]
            assert batch["targets"][row, at:end].tolist() == e.tokens[1:]
            assert (batch["starts"][row, at:end] == at).all(), "starts: where its example begins"
            at = end
