"""debug-switch: answers that depend on who asked before.

`serve` answers requests for different adapters with one weight W. It merges the adapter of a
request and computes one product. The first answer is right. The same request again, after requests
for other adapters, gets another answer, and no error. Find the fault and repair it, in one line.
"""

from minilora.course.outcome import close

CASES = {"rows": range(2, 4), "width": range(4, 6), "r": [2, 3], "number": range(3, 6)}
HIDDEN = {"rows": range(4, 7), "width": range(7, 10), "number": range(6, 9)}


def arguments(rng, rows, width, r, number):
    W = rng.uniform(-1, 1, (rows, width))
    adapters = {}
    for name in ("who", "where"):
        A, B = rng.uniform(-1, 1, (r, width)), rng.uniform(-1, 1, (rows, r))
        adapters[name] = A, B, float(rng.choice([1, 8, 16]))
    names = ["who", None, *rng.choice(["who", "where", None], number - 2)]
    return W, adapters, [(name, rng.uniform(-1, 1, (2, width))) for name in names]


def tolerance(*_):
    """float64: weights of at most 25, sums of some 10 products, in another order."""
    return 10 * 25 * 2.0**-50


def property_no_request_changes_another(function, W, adapters, requests):
    """each request gets the answer that it gets alone, with a copy of W"""
    outputs = function(W.copy(), adapters, requests)
    for request, output in zip(requests, outputs, strict=True):
        close(output, function(W.copy(), adapters, [request])[0], tolerance())
    x = requests[0][1]
    *_, output = function(W.copy(), adapters, [*requests, (None, x)])
    close(output, x @ W.T, tolerance())


def property_of_the_adapter(function, W, adapters, requests):
    """an answer is that of W plus α/r times that of B and A, after any request"""
    for name, (A, B, alpha) in adapters.items():
        x = requests[0][1]
        *_, output = function(W.copy(), adapters, [*requests, (name, x)])
        close(output, x @ W.T + alpha / len(A) * (x @ A.T @ B.T), tolerance())


def serve(W, adapters, requests):
    """Return the outputs of the requests, a list of (name of an adapter or None, x).

    W: (out, in). adapters: {name: (A, B, alpha)}, A (r, in) and B (out, r). x: (rows, in). The
    output of a request is x W'ᵀ, with W' = W + (α/r)·BA of its adapter, or W' = W for None.
    """
    outputs = []
    for name, x in requests:
        merged = W.copy()
        if name is not None:
            A, B, alpha = adapters[name]
            merged += alpha / len(A) * B @ A
        outputs.append(x @ merged.T)
    return outputs
