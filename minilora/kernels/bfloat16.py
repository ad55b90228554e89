"""Products in bfloat16: both operands are rounded to bfloat16, and the sums are in float32.

The AVX-512 instruction vdpbf16ps adds x₀y₀ + x₁y₁ to each of sixteen float32 sums: twice as many
products per instruction as in float32. numba cannot express it, so `add_tile` is written in LLVM's
intermediate representation. Other processors round the operands and use NumPy's product.

    x (m, k) and w (n, k):    matmul(x, w) = x wᵀ    matmul_transposed(g, w) = g w, with g (m, n)

Both have the form out += A·B with the depth (the length of the sums) in pairs. The words of 32 bits
hold a pair of numbers: A is packed by panels of ROWS rows, B by panels of COLUMNS columns, and a
tile of ROWS × COLUMNS sums stays in registers while the instruction runs over the pairs.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from ..rounding import from_bfloat16, nearest
from .loops import jit, rows
from .threads import parallel_rows

_, _, FEATURES = cpu_target.target_context.codegen().magic_tuple()  # of the processor
HAS_BF16 = "+avx512bf16" in FEATURES.split(",") and not vars(config)["DISABLE_JIT"]
ROWS = 12  # with two registers of sixteen sums for each row, a tile fills 24 of 32 registers
COLUMNS = 32
ONE = np.uint32(1)
SIXTEEN = np.uint32(16)
HALF = np.uint32(0x7FFF)
QUIET = np.uint32(0x40)
DEPTH = 512  # numbers per sum that are packed at a time: a panel of B fits in the first cache


def matmul(x, w, out, first=0):
    """Write x wᵀ (m, n) to the columns of out from `first` on: x (m, k), out float32; w bits."""
    if HAS_BF16:
        _multiply(to_bfloat16(x), w, False, out, first)
    else:
        out[:, first : first + len(w)] = nearest(x, "bfloat16") @ from_bfloat16(w).T


def matmul_transposed(g, w):
    """Compute g w (m, k) float32 from g (m, n) float32 and the bits of w (n, k)."""
    if not HAS_BF16:
        return nearest(g, "bfloat16") @ from_bfloat16(w)
    out = np.empty((len(g), w.shape[1]), np.float32)
    _multiply(to_bfloat16(g), w, True, out, 0)
    return out


def _multiply(x, w, transposed, out, first):
    panels = -(-w.shape[transposed] // COLUMNS)
    parallel_rows(_fill_panels, (panels, x.size), x, np.ascontiguousarray(w), transposed, out, first)


def to_bfloat16(x):
    """Round x (..., n) float32 to the bits of bfloat16, as `rounding.to_bfloat16`."""
    flat = rows(x)
    out = np.empty(flat.shape, np.uint16)
    parallel_rows(_round, flat.shape, flat, out)
    return out.reshape(x.shape)


@jit
def _round(lo, hi, x, out):
    """Round the rows lo to hi - 1 to the nearest bfloat16, ties to even; NaN stays NaN."""
    for i in range(lo, hi):
        row = x[i]
        bits = row.view(np.uint32)
        for j in range(row.size):
            upper = np.uint32(bits[j] >> SIXTEEN)
            half = np.uint32(HALF + np.uint32(upper & ONE))
            nearest = np.uint32(np.uint32(bits[j] + half) >> SIXTEEN)
            out[i, j] = nearest if row[j] == row[j] else upper | QUIET


@jit
def _fill_panels(lo, hi, x, w, transposed, out, offset):
    """Fill the panels lo to hi - 1 of the columns of out from `offset` on."""
    m, depth = x.shape
    n = w.shape[1] if transposed else w.shape[0]
    part = 2 * -(-depth // (2 * -(-depth // DEPTH)))  # even, and the same for all parts
    a = np.zeros((-(-m // ROWS), ROWS, DEPTH), np.uint16)
    b = np.zeros((DEPTH // 2, COLUMNS), np.uint32)
    edge = np.empty((ROWS, COLUMNS), np.float32)
    stride = 4 * out.shape[1]
    out[:, offset + lo * COLUMNS : min(offset + hi * COLUMNS, offset + n)] = 0
    for first in range(0, depth, part):
        last = min(first + part, depth)
        pairs = (last - first + 1) // 2
        for i in range(m):
            a[i // ROWS, i % ROWS, : last - first] = x[i, first:last]
            a[i // ROWS, i % ROWS, last - first : 2 * pairs] = 0
        for j in range(lo, hi):
            left = j * COLUMNS
            right = min(left + COLUMNS, n)
            if transposed:
                _pack_columns(w[first:last, left:right], b[:pairs])
            else:
                _pack_rows(w[left:right, first:last], b[:pairs])
            for i in range(len(a)):
                to = out[i * ROWS : (i + 1) * ROWS, offset + left : offset + right]
                if to.size == edge.size:
                    add_tile(a[i].ctypes.data, b.ctypes.data, pairs, to.ctypes.data, stride)
                else:
                    edge[:] = 0
                    add_tile(a[i].ctypes.data, b.ctypes.data, pairs, edge.ctypes.data, 4 * COLUMNS)
                    to += edge[: to.shape[0], : to.shape[1]]


@jit
def _pack_rows(w, out):
    """Write out[p, j] = (w[j, 2p], w[j, 2p+1]) for the rows j of w."""
    block = np.empty((COLUMNS, 2 * len(out)), np.uint16)
    block[: w.shape[0], : w.shape[1]] = w
    block[:, w.shape[1] :] = 0
    words = block.view(np.uint32)
    for first in range(0, COLUMNS, 8):  # by eight, which the compiler vectorizes
        for p in range(len(out)):
            for j in range(first, first + 8):
                out[p, j] = words[j, p]


@jit
def _pack_columns(w, out):
    """Write out[p, j] = (w[2p, j], w[2p+1, j]) for the columns j of w."""
    width = w.shape[1]
    for p in range(w.shape[0] // 2):
        low = w[2 * p]
        high = w[2 * p + 1]
        for j in range(width):
            out[p, j] = np.uint32(low[j] | np.uint32(np.uint32(high[j]) << SIXTEEN))
    if w.shape[0] % 2:
        out[len(out) - 1, :width] = w[w.shape[0] - 1]


@intrinsic
def add_tile(typingctx, a, b, pairs, out, stride):
    """Add A·B to a tile of out: addresses, the number of pairs, and the bytes of a row of out."""

    def generate(context, builder, signature, arguments):
        a, b, pairs, out, stride = arguments
        word = ir.IntType(32)
        words = ir.VectorType(word, 16)
        floats = ir.VectorType(ir.FloatType(), 16)
        kind = ir.FunctionType(floats, [floats, words, words])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        vdpbf16ps = builder.module.declare_intrinsic(name, fnty=kind)

        def at(address, offset, kind):
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def number(n):
            return ir.Constant(types_of_address, n)

        types_of_address = a.type
        places = [
            (r, at(out, builder.add(builder.mul(stride, number(r)), number(64 * c)), floats))
            for r in range(ROWS)
            for c in range(COLUMNS // 16)
        ]
        sums = [cgutils.alloca_once(builder, floats) for _ in places]
        for total, (_, place) in zip(sums, places):
            builder.store(builder.load(place, align=4), total)
        with cgutils.for_range(builder, pairs, intp=a.type) as loop:
            here = builder.mul(loop.index, number(4 * COLUMNS))
            columns = [
                builder.load(at(b, builder.add(here, number(64 * c)), words), align=4)
                for c in range(COLUMNS // 16)
            ]
            here = builder.mul(loop.index, number(4))
            for r in range(ROWS):
                pair = builder.load(at(a, builder.add(here, number(2 * DEPTH * r)), word), align=4)
                one = builder.insert_element(words(None), pair, word(0))
                same = builder.shuffle_vector(one, one, words([0] * 16))
                for c, column in enumerate(columns):
                    total = sums[r * len(columns) + c]
                    builder.store(builder.call(vdpbf16ps, [builder.load(total), same, column]), total)
        for total, (_, place) in zip(sums, places):
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp, types.intp), generate
