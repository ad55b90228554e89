"""accumulation: one large batch from several small ones."""

from minilora.course.outcome import close

CASES = {"parts": (1, 4), "size": (1, 3), "alike": [False, True]}


def arguments(rng, parts, size, alike):
    counts = [7.0] * parts if alike else [float(n) for n in rng.integers(1, 9, parts)]
    some = [
        (n, float(rng.uniform(0, 4)), {"lora_B": rng.uniform(-1, 1, (size, 2)).astype("f4")})
        for n in counts
    ]
    return some, sum(counts)


def tolerance(*_):
    """float32 gradients of at most 1: four products and three sums, 2⁻²⁴ each."""
    return 8 * 2.0**-24


def property_every_token_counts_alike(function, parts, total):
    """a part of n tokens is worth n parts of one token that have its loss and gradient"""
    single = [(1.0, loss, grads) for n, loss, grads in parts for _ in range(int(n))]
    loss, grads = function(parts, total)
    one_by_one = function(single, total)
    # up to 32 sums of float32 numbers of at most 1
    close((loss, grads), one_by_one, 64 * 2.0**-24)


def property_a_mean(function, parts, total):
    """where all parts agree, so does the whole"""
    _, loss, grads = parts[0]
    close(function([(n, loss, grads) for n, *_ in parts], total), (loss, grads), tolerance())
