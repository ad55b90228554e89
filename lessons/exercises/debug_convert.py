"""debug-convert: an adapter that has the right shapes, and answers wrongly.

`convert` reads adapters of MLX, which stores both factors transposed, and returns them as PEFT
stores them. Most converted adapters answer as before. One loads without an error, like the others,
all its shapes are right, and its answers are fluent and wrong. Find the fault and repair it, in one
line.
"""

import numpy as np

from minilora.course.outcome import close

CASES = {"width": range(2, 5), "rows": range(2, 5), "r": range(2, 5)}
HIDDEN = {"width": range(4, 8), "rows": range(4, 8), "r": range(4, 8)}


def arguments(rng, width, rows, r):
    shapes = {}
    for path in ("up_proj", "gate_proj"):
        shapes |= {f"{path}.lora_A": (r, width), f"{path}.lora_B": (rows, r)}
    factors = {name: rng.uniform(-1, 1, shape[::-1]) for name, shape in shapes.items()}
    return shapes, factors


def tolerance(*_):
    """float64, sums of at most 8 products of numbers of at most 8, two of them: 2⁻⁵³ each."""
    return 2.0**-44


def property_the_update_is_the_same(function, shapes, factors):
    """BA of the converted adapter is the update (ab)ᵀ of the file, a (in, r) and b (r, out)"""
    converted = function(shapes, factors)
    for path in ("up_proj", "gate_proj"):
        a, b = factors[f"{path}.lora_A"], factors[f"{path}.lora_B"]
        A, B = converted[f"{path}.lora_A"], converted[f"{path}.lora_B"]
        close(np.matmul(B, A), (a @ b).T, tolerance())


def property_a_square_factor(function, shapes, factors):
    """a factor with as many rows as columns is transposed like any other"""
    n = len(factors["up_proj.lora_B"])
    square = np.arange(n * n, dtype=float).reshape(n, n)
    converted = function({"q_proj.lora_A": (n, n)}, {"q_proj.lora_A": square})
    close(converted["q_proj.lora_A"], square.T)


def convert(shapes, factors):
    """Return the factors {name: array} of an adapter as PEFT stores them.

    shapes: {name: shape}, those that the model expects: (r, in) for A and (out, r) for B. factors:
    {name: array} as MLX stores them: (in, r) for A and (r, out) for B.
    """
    converted = {}
    for name in shapes:
        converted[name] = factors[name].T
    return converted
