"""A matrix product whose sums never leave the registers.

    Y = X M        y[i, j] = Σ_k x[i, k]·m[k, j]

What bounds a training step is its products, and a library's are made for matrices that are large on
every side; here M is a weight and X a few hundred tokens. So M is cut into panels of 64 columns,
four registers wide. A panel is copied so that its rows lie one after the other, and stays in the
core's cache while all of X goes by, six rows at a time (Goto and van de Geijn 2008, Sec. 4):

             ┌────────────┐
             │  panel     │      For each k, four registers hold the panel's row k, and one after
             │  m[k, j…]  │      the other of six rows' x[i, k] multiplies them. The tile of Y is
    ┌─────┐  ├────────────┤      24 registers, and y + x·m one instruction, rounded once.
    │ x[i]│  │ tile y[i,j]│
    └─────┘  └────────────┘

What is summed is first RUN terms and then such sums, so that rounding grows with RUN + k/RUN and
not with k. A row of Y is the same sum whatever rows are beside it. Registers of sixteen floats are
AVX-512's. Elsewhere, in float64, and where M is narrow or X short, the product is NumPy's.
"""

import numpy as np
from numba import literal_unroll

from .ahead import ahead
from .kernels import inlined, jit, share_rows
from .registers import AVX512, load, multiply_add, spread, store, transposed

ROWS, WIDE = 6, 64  # of a tile
DEPTH = 1536  # rows of a panel, at most: it takes a third of a core's cache
RUN = 192  # terms that are summed one by one; the sums of such runs are summed in turn
FEW, NARROW = 32, 64  # rows of X, and either side of M, below which NumPy's product is as fast


def times(x, m, y=None):
    """x m, added to y if it is given: (n, k), (k, width) -> (n, width).

    x may have any strides; the rows of y are contiguous.
    """
    whole = m.flags.c_contiguous or m.flags.f_contiguous
    floats = m.dtype == np.float32 and (y is None or y.dtype == np.float32)
    if not (suits(x, m.shape) and whole and floats):
        return x @ m if y is None else np.add(y, x @ m, out=y)
    add, y = y is not None, np.empty((len(x), m.shape[1]), np.float32) if y is None else y
    across = not m.flags.c_contiguous
    share_rows(times_rows, len(x), x, m.T if across else m, across, y, add, width=m.size // 16)
    return y


def suits(x, shape):
    """Whether the product of x and a float32 matrix of this shape is made for this way."""
    return AVX512 and len(x) >= FEW and min(shape) >= NARROW and x.dtype == np.float32


@jit
def times_rows(lo, hi, x, w, across, y, add):
    """Rows lo..hi of y (+)= x m, where w is m, or if `across` mᵀ."""
    depth, width = x.shape[1], y.shape[1]
    buffer, edge = np.empty((DEPTH, WIDE), np.float32), np.empty((ROWS, WIDE), np.float32)
    for k in range(0, depth, DEPTH):
        deep = min(DEPTH, depth - k)
        for j in range(0, width, WIDE):
            panel, part, onto = buffer[:deep], y[:, j : j + WIDE], add or k > 0
            if across:
                _copy_across(w, k, j, panel)
                ask, step, turn = (j + WIDE) * depth + k, 16, 16 * deep
            else:
                _copy(w, k, j, panel)
                ask, step, turn = k * width + j + WIDE, width, 16
            _times_panel(lo, hi, x[:, k : k + deep], panel, part, onto, edge, w, ask, step, turn)


@jit
def _times_panel(lo, hi, x, panel, y, add, edge, w, ask, step, turn):
    """Rows lo..hi of y (+)= x panel; a tile that reaches beyond them or beyond y goes by `edge`.

    The last four tiles ask memory for w's next panel, each for a quarter of it.
    """
    for i in range(lo, hi, ROWS):
        some, late = y[i : min(i + ROWS, hi)], i + 4 * ROWS >= hi
        further, whole = step if late else 0, some.shape == edge.shape
        part = edge[: some.shape[0], : some.shape[1]]
        to = some if whole else edge[:, :WIDE]
        if not whole:
            part[:] = some
        for k in range(0, panel.shape[0], RUN):
            run = panel[k : k + RUN]
            _tile(x[:, k : k + RUN], i, hi - 1, run, to, add or k > 0, w, ask + k * step, further)
        if not whole:
            some[:] = part
        ask += turn if late else 0


@jit
def _tile(x, i, last, panel, y, add, w, ask, step):
    """y (+)= x[i : i + 6] panel, where row `last` of x stands for those after it.

    Meanwhile memory is asked for w's elements ask, ask + step, …, counted flat.
    """
    x0, x1, x2 = x[i], x[min(i + 1, last)], x[min(i + 2, last)]
    x3, x4, x5 = x[min(i + 3, last)], x[min(i + 4, last)], x[min(i + 5, last)]
    zero = spread(np.float32(0))
    s0 = s1 = s2 = s3 = s4 = s5 = (zero, zero, zero, zero)
    for k in range(panel.shape[0]):
        ahead(w, ask + k * step)
        m = _four(panel[k])
        s0 = _plus(s0, x0[k], m)
        s1 = _plus(s1, x1[k], m)
        s2 = _plus(s2, x2[k], m)
        s3 = _plus(s3, x3[k], m)
        s4 = _plus(s4, x4[k], m)
        s5 = _plus(s5, x5[k], m)
    _put(y[0], s0, add)
    _put(y[1], s1, add)
    _put(y[2], s2, add)
    _put(y[3], s3, add)
    _put(y[4], s4, add)
    _put(y[5], s5, add)


@inlined
def _four(row):
    return load(row, 0), load(row, 16), load(row, 32), load(row, 48)


@inlined
def _plus(s, x, m):
    """s + x·m, where x is a number."""
    x = spread(x)
    low = multiply_add(x, m[0], s[0]), multiply_add(x, m[1], s[1])
    return low[0], low[1], multiply_add(x, m[2], s[2]), multiply_add(x, m[3], s[3])


@inlined
def _put(y, s, add):
    if add:
        s = _plus(s, np.float32(1), _four(y))
    store(y, 0, s[0])
    store(y, 16, s[1])
    store(y, 32, s[2])
    store(y, 48, s[3])


# --- panels


@jit
def _copy(w, k, j, panel):
    """panel[a, b] = w[k + a, j + b]; beyond the last column of w it may hold anything."""
    columns = min(WIDE, w.shape[1] - j)
    for a in range(panel.shape[0]):
        for b in range(0, columns, 16):
            if b + 16 <= columns:
                store(panel[a], b, load(w[k + a], j + b))
            else:
                for c in range(b, columns):
                    panel[a, c] = w[k + a, j + c]


@jit
def _copy_across(w, k, j, panel):
    """panel[a, b] = w[j + b, k + a]; beyond the last row of w it may hold anything."""
    deep, rows = panel.shape[0], min(WIDE, w.shape[0] - j)
    for b in range(0, rows, 16):
        whole = deep // 16 * 16 if b + 16 <= rows else 0
        for a in range(0, whole, 16):
            _transpose(w[j + b : j + b + 16], k + a, panel[a : a + 16], b)
        for a in range(whole, deep):
            for c in range(b, min(b + 16, rows)):
                panel[a, c] = w[j + c, k + a]


@jit
def _transpose(w, k, panel, b):
    """panel[:, b : b + 16] = w[:, k : k + 16]ᵀ, sixteen rows each."""
    columns = transposed(
        (
            load(w[0], k), load(w[1], k), load(w[2], k), load(w[3], k),
            load(w[4], k), load(w[5], k), load(w[6], k), load(w[7], k),
            load(w[8], k), load(w[9], k), load(w[10], k), load(w[11], k),
            load(w[12], k), load(w[13], k), load(w[14], k), load(w[15], k),
        )
    )  # fmt: skip
    for a, column in enumerate(literal_unroll(columns)):
        store(panel[a], b, column)
