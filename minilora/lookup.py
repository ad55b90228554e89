"""What codes stand for, looked up: sixteen at a time in a register, or two in a table.

The code book of a 4-bit scheme fits into one register of a processor with AVX-512. Its instruction
vpermps takes sixteen numbers from a register of sixteen, each by four bits of its own: that is
dequantizing itself (`registers.look_up`). Where there is no such instruction, or not sixteen codes,
a table gives the two numbers of each byte.

The tensor is one flat row, and `start` the number of an element in it. `values` (16,) is the book,
`table` (256,) the two float32 of every byte as one uint64; `codes` and the rest as `nf4.Quantized`.
"""

import numpy as np

from .ahead import AHEAD, ahead
from .kernels import fast_jit, inlined, jit
from .panels import times_rows
from .registers import AVX512, load, look_up, multiply, multiply_add, spread, store, total

STRIP = 192  # rows of a weight that are dequantized at a time, an even number


@jit
def decode(start, codes, absmax, values, table, block_size, out):
    """out = the elements of the flat tensor from `start` on, which is even."""
    done = decode_sixteens(start, codes, absmax, values, block_size, out)
    start, out = start + done, out[done:]
    if out.size == 0:
        return
    packed, pairs = codes[start // 2 :], out[: out.size // 2 * 2].view(np.uint64)
    for i in range(pairs.size):
        pairs[i] = table[packed[i]]
    if out.size % 2:
        out[out.size - 1] = table[packed[pairs.size] :].view(np.float32)[0]
    for b in range(start // block_size, (start + out.size - 1) // block_size + 1):
        block, scale = out[max(b * block_size - start, 0) : (b + 1) * block_size - start], absmax[b]
        for i in range(block.size):
            block[i] *= scale


@fast_jit
def dot_rows(lo, hi, codes, absmax, values, table, block_size, x, y):
    """Rows lo..hi of y = W x; what sixteens leave over of a row goes through a buffer."""
    buffer = np.empty(x.size + 1, np.float32)
    for i in range(lo, hi):
        start = i * x.size
        done, total = dot_sixteens(start, codes, absmax, values, block_size, x)
        rest, odd = x[done:], (start + done) % 2  # it may begin in the middle of a byte
        if rest.size:
            some = buffer[: odd + rest.size]
            decode(start + done - odd, codes, absmax, values, table, block_size, some)
            for j in range(rest.size):
                total += some[odd + j] * rest[j]
        y[i] = total


@jit
def strip_rows(lo, hi, codes, absmax, values, table, block_size, x, across, y):
    """Rows lo..hi of y = x Wᵀ if `across`, else of x W, by strips of rows of W."""
    rows, width = (y.shape[1], x.shape[1]) if across else (x.shape[1], y.shape[1])
    buffer = np.empty((STRIP, width), np.float32)
    for i in range(0, rows, STRIP):
        strip = buffer[: min(STRIP, rows - i)]
        decode(i * width, codes, absmax, values, table, block_size, strip.reshape(-1))
        if across:
            times_rows(lo, hi, x, strip, across, y[:, i : i + STRIP], False)
        else:
            times_rows(lo, hi, x[:, i : i + STRIP], strip, across, y, i > 0)


# ------------------------------------------------------------------------- sixteen at a time


@inlined  # a call a row would take as long as the row
def _sixteens(start, n, block_size):
    """(how many of n elements can be taken by sixteens, the first block, where of n it ends).

    A block is a multiple of sixteen elements too, so sixteen from such a start have one scale.
    """
    done = n // 16 * 16 if start % 16 == 0 else 0
    return done, start // block_size, block_size - start % block_size


@jit
def decode_sixteens(start, codes, absmax, values, block_size, out):
    """As `decode` for the first elements of `out`; returns how many they are."""
    i, book = 0, load(values, 0)
    done, b, end = _sixteens(start, out.size, block_size)
    while i < done:
        scale = spread(absmax[b])
        for j in range(i, min(end, done), 16):
            ahead(out, j + AHEAD)
            found = look_up(book, codes, (start + j) // 2)
            store(out, j, multiply(found, scale))
        i, b, end = end, b + 1, end + block_size
    return done


@jit
def dot_sixteens(start, codes, absmax, values, block_size, x):
    """The sum of the first elements from `start` on, times those of x: (how many, sum).

    The products of a block are summed before its scale multiplies them, once.
    """
    i, dot, book = 0, np.float32(0), load(values, 0)
    done, b, end = _sixteens(start, x.size, block_size)
    while i < done:
        part = spread(np.float32(0))
        for j in range(i, min(end, done), 16):
            ahead(codes, (start + j) // 2 + AHEAD)
            part = multiply_add(look_up(book, codes, (start + j) // 2), load(x, j), part)
        dot += absmax[b] * total(part)
        i, b, end = end, b + 1, end + block_size
    return done, dot


@jit
def _none_decoded(start, codes, absmax, values, block_size, out):
    return 0


@jit
def _none_added(start, codes, absmax, values, block_size, x):
    return 0, np.float32(0)


if not AVX512:
    decode_sixteens, dot_sixteens = _none_decoded, _none_added
