"""What the peer tests have compared: the rows of the table that `pytest tests/peers` ends with.

A row gathers the cases of one comparison (what is ours, and whose it is held against) with the
largest difference seen, the bound that the tests assert, and, where rounding decides, the noise
floor: the same quantity between float32 and float64 here. A difference below the floor means
nothing; one far above it is not rounding.
"""

from dataclasses import dataclass

import numpy as np

import minilora
from minilora.layers import dense
from minilora.tree import tree_map

HEAD = ("here", "against", "cases", "largest difference", "bound", "noise floor")


@dataclass
class Comparison:
    """Bound 0: equal bit for bit, and the differences count numbers that are not."""

    bound: float
    cases: int = 0
    largest: float = 0.0
    floor: float | None = None

    def add(self, differences, bound, floor):
        assert bound == self.bound, "a row has one bound"
        self.cases += differences.size
        self.largest = float(np.max(differences, initial=self.largest))  # and NaN stays NaN
        if floor is not None:
            self.floor = float(np.max(floor, initial=self.floor or 0.0))

    def cells(self):
        floor = "" if self.floor is None else number(self.floor)
        seen, bound = number(self.largest), number(self.bound)
        if self.bound == 0:
            seen, bound = "equal" if self.largest == 0 else f"{seen} numbers", "equal"
        return f"{self.cases:,}", seen, bound, floor


def number(x):
    """1.9e-6 rather than 1.9e-06."""
    return f"{x:g}" if x == 0 or x >= 1 else f"{x:.1e}".replace(".0e", "e").replace("e-0", "e-")


def table(rows):
    """Lines of Markdown for rows {(what, against): Comparison}."""
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [(what, against, *row.cells()) for (what, against), row in rows.items()]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def rows_of_page(text):
    """Return {(what, against): (cases, largest difference, bound)} of a page's table, as cells."""
    lines = text.split(f"| {' | '.join(HEAD)} |\n", 1)[1].split("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {(what, against): tuple(numbers[:3]) for what, against, *numbers in cells}


def bits(x):
    """An array that is equal to another's exactly when the floats, whole numbers or texts are."""
    x = np.asarray(list(x.encode()) if isinstance(x, str) else x)
    return x.view(f"u{x.itemsize}") if x.dtype.kind == "f" else x


def unequal(ours, theirs):
    """How many numbers of two arrays of bits are not the same; all of them if the shapes differ."""
    if ours.shape != theirs.shape:
        return max(ours.size, theirs.size, 1)
    return int(np.count_nonzero(ours != theirs))


def relative(a, b):
    """The largest difference, as a share of the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


def in_float64(tree):
    """The same numbers in float64, a quantized weight's being those that it stands for.

    All that is computed from them is then float64's, but for the rotary angles, which are rounded
    to float32 as checkpoints are trained with them. tree: of a base or an adapter, or a Model.
    """
    if isinstance(tree, minilora.Model):
        return tree._replace(base=in_float64(tree.base))

    def precise(leaf):
        if isinstance(leaf, tuple):  # VeRA's A and B
            return tuple(map(np.float64, leaf))
        return np.float64(dense(leaf)) if hasattr(leaf, "shape") else leaf

    return tree_map(precise, tree)


def forward(adapters, model, tokens):
    """Our logits as they are, and in float64."""
    precise = minilora.forward(in_float64(adapters), in_float64(model), tokens)
    return minilora.forward(adapters, model, tokens), precise


def loss_of(logits, tokens):
    """Mean cross-entropy of the next tokens, in float64, so that only the logits count."""
    logits = np.float64(logits[:, :-1])
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -float(np.take_along_axis(log_p, tokens[:, 1:, None], -1).mean())
