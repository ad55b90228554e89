"""Products in bfloat16: both operands are rounded to bfloat16, and the sums are in float32.

    x (m, k), w (n, k), g (m, n):    matmul(x, w) = x wᵀ    matmul_transposed(g, w) = g w

The AVX-512 instruction vdpbf16ps adds x₀w₀ + x₁w₁ to each of sixteen sums: twice as many products
as an instruction in float32. numba cannot express it, so `add_tile` is written in LLVM's
intermediate representation. On other processors, NumPy multiplies the rounded operands in float32.

A product is computed by tiles of ROWS × COLUMNS sums, which stay in registers. The first operand is
copied in blocks of ROWS rows. The second one is packed in panels of COLUMNS columns: a word has two
neighbours of a sum, and a row of a panel has the words of all columns (Goto and van de Geijn 2008).
In w (n, k), neighbours of a sum are in one row, so words are transposed for x wᵀ, and not for g w.
"""

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..rounding import from_bfloat16
from .loops import has_feature, jit, rows
from .threads import parallel_rows

HAS_BFLOAT16 = has_feature("avx512bf16")
ROWS = 8  # with three registers of sixteen sums per row, a tile fills 24 of 32 registers
COLUMNS = 48
DEPTH = 640  # terms of a sum in a tile: a panel of so many fits in the second-level cache
LANES = 16  # words, or sums, of a register
# numba computes in 64 bits with a Python number
ONE = np.uint32(1)
SIXTEEN = np.uint32(16)
BELOW_HALF = np.uint32(0x7FFF)
QUIET = np.uint32(0x40)  # the bit of a quiet NaN


def matmul(x, w, out, first=0):
    """Write x wᵀ to the columns of out (m, ·) from `first` on: x (m, k) float32, bits w (n, k)."""
    if HAS_BFLOAT16:
        _multiply(to_bfloat16(x), w, False, out, first)
    else:
        np.matmul(_rounded(x), from_bfloat16(w).T, out=out[:, first : first + len(w)])


def matmul_transposed(g, w):
    """Compute g w (m, k) float32 from g (m, n) float32 and the bits w (n, k)."""
    if not HAS_BFLOAT16:
        return _rounded(g) @ from_bfloat16(w)
    out = np.empty((len(g), w.shape[1]), np.float32)
    _multiply(to_bfloat16(g), w, True, out, 0)
    return out


def _multiply(x, w, transposed, out, first):
    depth, n = w.shape if transposed else w.shape[::-1]
    if x.shape != (len(out), depth) or first + n > out.shape[1]:
        raise ValueError(f"shapes {x.shape} and {w.shape} do not fit a result {out.shape}")
    panels = -(-n // COLUMNS)
    w = np.ascontiguousarray(w)
    parallel_rows(_fill_panels, (panels, x.size), x, w, transposed, out, first)


def _rounded(x):
    """Return x (m, k) float32 with numbers that bfloat16 holds."""
    x = np.array(x, np.float32, order="C")
    round_numbers(x.reshape(-1))
    return x


def to_bfloat16(x):
    """Round x (..., n) float32 to the bits of bfloat16, as `rounding.to_bfloat16`."""
    flat = rows(x)
    out = np.empty(flat.shape, np.uint16)
    parallel_rows(_round, flat.shape, flat, out)
    return out.reshape(x.shape)


@jit
def nearest_bits(x, bits):
    """Return the bits (uint32) of a number x rounded to bfloat16, ties to even; NaN stays NaN."""
    upper = np.uint32(bits >> SIXTEEN)
    if x != x:
        return np.uint32(upper | QUIET)
    half = np.uint32(BELOW_HALF + np.uint32(upper & ONE))
    return np.uint32(np.uint32(bits + half) >> SIXTEEN)


@jit
def _round(lo, hi, x, out):
    """Round the rows lo to hi - 1 to bits (uint16)."""
    for i in range(lo, hi):
        row = x[i]
        bits = row.view(np.uint32)
        for j in range(row.size):
            out[i, j] = nearest_bits(row[j], bits[j])


@jit
def round_numbers(x):
    """Round x (n,) float32 to numbers that bfloat16 holds, in place."""
    bits = x.view(np.uint32)
    for i in range(x.size):
        bits[i] = nearest_bits(x[i], bits[i]) << SIXTEEN


@jit
def _fill_panels(lo, hi, x, w, transposed, out, first):
    """Fill panels lo to hi - 1 of the columns of out from `first` on."""
    n = w.shape[1] if transposed else w.shape[0]
    blocks = copy_blocks(x)
    panels = pack_columns(w, lo, hi) if transposed else pack_rows(w, lo, hi)
    pairs = blocks.shape[3] // 2
    edge = np.empty((ROWS, COLUMNS), np.float32)  # a tile that is not wholly in out
    for j in range(lo, hi):
        left = first + j * COLUMNS
        right = first + min((j + 1) * COLUMNS, n)
        for part in range(len(blocks)):
            panel = panels[j - lo, part * pairs : (part + 1) * pairs]
            for i in range(blocks.shape[1]):
                tile = out[i * ROWS : (i + 1) * ROWS, left:right]
                if tile.size == edge.size:
                    multiply(blocks[part, i], panel, tile, part > 0)
                    continue
                if part > 0:
                    copy(tile.shape, tile, edge)
                multiply(blocks[part, i], panel, edge, part > 0)
                copy(tile.shape, edge, tile)


@jit
def copy(shape, source, target):
    """Copy the corner source[:m, :n] to target[:m, :n]; shape: (m, n)."""
    # numba compiles an assignment of a slice for seconds, because of its error message
    m, n = shape
    for i in range(m):
        for j in range(n):
            target[i, j] = source[i, j]


@jit
def copy_blocks(x):
    """Copy x (m, depth) to blocks (parts, ⌈m/ROWS⌉, ROWS, at most DEPTH, even)."""
    m, depth = x.shape
    parts = max(1, -(-depth // DEPTH))
    width = 2 * -(-depth // (2 * parts))
    blocks = np.empty((parts, -(-m // ROWS), ROWS, width), np.uint16)
    for i in range(m):
        row = x[i]
        for part in range(parts):
            block = blocks[part, i // ROWS, i % ROWS]
            terms = row[part * width : (part + 1) * width]
            for k in range(terms.size):  # a loop, because numba's copy of a slice is slower
                block[k] = terms[k]
            block[terms.size :] = 0
    return blocks


@jit
def pack_rows(w, lo, hi):
    """Pack w (n, depth): panels[j - lo, p, i] = (w[48j + i, 2p], w[48j + i, 2p + 1])."""
    squares = -(-w.shape[1] // (2 * LANES))
    panels = np.empty((hi - lo, squares * LANES, COLUMNS), np.uint32)  # zero behind the last pair
    edge = np.empty((LANES, 2 * LANES), np.uint16)  # a square that is not wholly in w
    for row in range(lo * COLUMNS, hi * COLUMNS, LANES):
        panel = panels[row // COLUMNS - lo, :, row % COLUMNS :]
        for p in range(0, len(panel), LANES):
            square = w[row : row + LANES, 2 * p : 2 * (p + LANES)]
            if square.size == edge.size:
                transpose(square, panel[p:])
                continue
            edge[:] = 0
            copy(square.shape, square, edge)
            transpose(edge, panel[p:])
    return panels


@jit
def pack_columns(w, lo, hi):
    """Pack w (depth, n): panels[j - lo, p, i] = (w[2p, 48j + i], w[2p + 1, 48j + i])."""
    depth, n = w.shape
    panels = np.empty((hi - lo, (depth + 1) // 2, COLUMNS), np.uint32)
    none = np.zeros(n, np.uint16)  # behind the last row, if their number is odd
    for p in range(panels.shape[1]):
        low = w[2 * p]
        high = w[2 * p + 1] if 2 * p + 1 < depth else none
        for j in range(lo, hi):
            words = panels[j - lo, p]
            first = low[j * COLUMNS : (j + 1) * COLUMNS]
            second = high[j * COLUMNS : (j + 1) * COLUMNS]
            for i in range(first.size):
                words[i] = np.uint32(first[i] | np.uint32(np.uint32(second[i]) << SIXTEEN))
    return panels


@jit
def transpose(square, panel):
    """Write the words of a square (16, 32) to panel[:16, :16], transposed."""
    a, b = square.ctypes.data, panel.ctypes.data
    transpose_words(a, square.strides[0], b, panel.strides[0])  # type: ignore[call-arg]


@jit
def multiply(block, panel, tile, adds):
    """Write block (ROWS, 2·pairs or more) times panel (pairs, COLUMNS) to tile; `adds`: add it."""
    a, b, c = block.ctypes.data, panel.ctypes.data, tile.ctypes.data
    multiply_tile(a, block.strides[0], b, len(panel), c, tile.strides[0], adds)  # type: ignore[call-arg]


WORDS = ir.VectorType(ir.IntType(32), LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)


def place(builder, start, index, stride, kind):
    """Return the pointer to start + index·stride, in bytes; index: a Python number."""
    offset = builder.mul(stride.type(index), stride)
    return builder.inttoptr(builder.add(start, offset), kind.as_pointer())


@intrinsic
def transpose_words(typingctx, square, row, panel, stride):
    """Compute `transpose` from addresses; row and stride: bytes of a row of square and of panel."""
    # four times, the first half of the registers is interleaved with the second half
    lower = WORDS([i // 2 + LANES * (i % 2) for i in range(LANES)])
    upper = WORDS([i // 2 + LANES * (i % 2) + LANES // 2 for i in range(LANES)])

    def generate(context, builder, signature, arguments):
        square, row, panel, stride = arguments
        places = [place(builder, square, i, row, WORDS) for i in range(LANES)]
        registers = [builder.load(at, align=2) for at in places]
        for _ in range(4):
            halves = zip(registers[: LANES // 2], registers[LANES // 2 :])
            registers = [
                builder.shuffle_vector(*both, to) for both in halves for to in (lower, upper)
            ]
        for i, register in enumerate(registers):
            builder.store(register, place(builder, panel, i, stride, WORDS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), generate


@intrinsic
def multiply_tile(typingctx, block, row, panel, pairs, out, stride, adds):
    """Compute `multiply` from addresses; row and stride: bytes of a row of block and of out."""
    tile = [(r, c) for r in range(ROWS) for c in range(COLUMNS // LANES)]

    def generate(context, builder, signature, arguments):
        block, row, panel, pairs, out, stride, adds = arguments
        kind = ir.FunctionType(FLOATS, [FLOATS, WORDS, WORDS])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        vdpbf16ps = builder.module.declare_intrinsic(name, fnty=kind)
        # bytes of a word, of a register, and of a row of the panel
        word, register, width = (pairs.type(4 * n) for n in (1, LANES, COLUMNS))

        places = []
        for r, c in tile:
            start = builder.add(out, pairs.type(4 * LANES * c))
            places.append(place(builder, start, r, stride, FLOATS))
        sums = [cgutils.alloca_once(builder, FLOATS) for _ in tile]  # LLVM makes them registers
        for total, at in zip(sums, places):
            builder.store(FLOATS([0.0] * LANES), total)
            with builder.if_then(adds):
                builder.store(builder.load(at, align=4), total)
        with cgutils.for_range(builder, pairs, intp=pairs.type) as loop:
            start = builder.add(panel, builder.mul(loop.index, width))
            columns = [
                builder.load(place(builder, start, c, register, WORDS), align=4)
                for c in range(COLUMNS // LANES)
            ]
            start = builder.add(block, builder.mul(loop.index, word))
            for (r, c), total in zip(tile, sums):
                if c == 0:
                    pair = builder.load(place(builder, start, r, row, ir.IntType(32)), align=2)
                    one = builder.insert_element(WORDS(None), pair, ir.IntType(32)(0))
                    same = builder.shuffle_vector(one, one, WORDS([0] * LANES))
                added = builder.call(vdpbf16ps, [builder.load(total), same, columns[c]])
                builder.store(added, total)
        for total, at in zip(sums, places):
            builder.store(builder.load(total), at, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6, types.boolean), generate
