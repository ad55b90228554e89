"""What codes stand for, looked up: sixteen at a time in a register, or two in a table.

The code book of a 4-bit scheme fits into one register of a processor with AVX-512. Its instruction
vpermps takes sixteen numbers from a register of sixteen, each by four bits of its own: that is
dequantizing itself. numba reaches it by LLVM's name for it. Where there is no such instruction, or
not sixteen codes, a table gives the two numbers of each byte.

The tensor is one flat row, and `start` the number of an element in it. `values` (16,) is the book,
`table` (256,) the two float32 of every byte as one uint64; `codes` and the rest as `nf4.Quantized`.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .ahead import AHEAD, prefetch
from .kernels import fast_jit, jit

_, _, FEATURES = cpu_target.target_context.codegen().magic_tuple()  # of what numba compiles for
AVX512 = "+avx512f" in FEATURES.split(",") and not vars(config)["DISABLE_JIT"]


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


# ------------------------------------------------------------------------- sixteen at a time


@numba.njit(inline="always")  # a call a row would take as long as the row
def _sixteens(start, n, block_size):
    """(how many of n elements can be taken by sixteens, the first block, where of n it ends).

    A block is a multiple of sixteen elements too, so sixteen from such a start have one scale.
    """
    done = n // 16 * 16 if start % 16 == 0 else 0
    return done, start // block_size, block_size - start % block_size


@jit
def decode_sixteens(start, codes, absmax, values, block_size, out):
    """As `decode` for the first elements of `out`; returns how many they are."""
    i = 0
    done, b, end = _sixteens(start, out.size, block_size)
    while i < done:
        for j in range(i, min(end, done), 16):
            _decode16(values, codes, (start + j) // 2, absmax[b], out, j)  # type: ignore[call-arg]
        i, b, end = end, b + 1, end + block_size
    return done


@jit
def dot_sixteens(start, codes, absmax, values, block_size, x):
    """The sum of the first elements from `start` on, times those of x: (how many, sum).

    The products of a block are summed before its scale multiplies them, once.
    """
    i, total = 0, np.float32(0)
    done, b, end = _sixteens(start, x.size, block_size)
    while i < done:
        n = (min(end, done) - i) // 16
        part = _dot16(values, codes, (start + i) // 2, x, i, n)  # type: ignore[call-arg, var-annotated]
        total += absmax[b] * part
        i, b, end = end, b + 1, end + block_size
    return done, total


@jit
def _none_decoded(start, codes, absmax, values, block_size, out):
    return 0


@jit
def _none_added(start, codes, absmax, values, block_size, x):
    return 0, np.float32(0)


if not AVX512:
    decode_sixteens, dot_sixteens = _none_decoded, _none_added


INT, FLOATS, BYTES = ir.IntType(32), ir.VectorType(ir.FloatType(), 16), ir.IntType(8)


@intrinsic
def _decode16(typingctx, values, codes, at, scale, out, to):
    """out[to : to + 16] = values[codes[at : at + 8]]·scale, two codes a byte, the high half first.

    values (16,) and out float32, codes uint8, all contiguous. Bounds are the caller's to keep.
    """

    def generate(context, builder, signature, arguments):
        values, codes, out = _data(context, builder, signature, arguments, 0, 1, 4)
        prefetch(builder, out, builder.add(arguments[5], arguments[5].type(AHEAD)))
        first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), arguments[3], INT(0))
        scale = builder.shuffle_vector(first, first, _numbers([0] * 16))
        found = builder.fmul(_look_up(builder, values, codes, arguments[2]), scale)
        builder.store(found, _floats(builder, out, arguments[5]), align=4)
        return context.get_dummy_value()

    return types.void(values, codes, at, scale, out, to), generate


@intrinsic
def _dot16(typingctx, values, codes, at, x, i, n):
    """Σ values[codes[at : at + 8n]]∘x[i : i + 16n], a float32; arguments as of `_decode16`."""

    def generate(context, builder, signature, arguments):
        values, codes, x = _data(context, builder, signature, arguments, 0, 1, 3)
        _, _, at, _, i, n = arguments
        sums = cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * 16))
        with cgutils.for_range(builder, n) as loop:
            here = builder.mul(loop.index, at.type(8))
            prefetch(builder, codes, builder.add(at, builder.add(here, at.type(AHEAD))))
            found = _look_up(builder, values, codes, builder.add(at, here))
            some = _floats(builder, x, builder.add(i, builder.add(here, here)))
            term = builder.fmul(found, builder.load(some, align=4), flags=("contract",))
            builder.store(builder.fadd(builder.load(sums), term, flags=("contract",)), sums)
        kind = ir.FunctionType(FLOATS.element, [FLOATS.element, FLOATS])
        add = builder.module.declare_intrinsic("llvm.vector.reduce.fadd.v16f32", fnty=kind)
        zero = ir.Constant(FLOATS.element, 0.0)
        return builder.call(add, [zero, builder.load(sums)], fastmath=("reassoc",))

    return types.float32(values, codes, at, x, i, n), generate


def _data(context, builder, signature, arguments, *which):
    """Where the elements of those arguments that are arrays begin."""
    kinds = [context.make_array(signature.args[n]) for n in which]
    return [kind(context, builder, arguments[n]).data for kind, n in zip(kinds, which)]


def _look_up(builder, values, codes, at):
    """Sixteen floats: what the eight bytes from codes[at] on stand for."""
    book = builder.load(_floats(builder, values, at.type(0)), align=4)
    kind = ir.VectorType(BYTES, 8).as_pointer()
    eight = builder.load(builder.bitcast(builder.gep(codes, [at]), kind), align=1)
    # b₀ b₁ … → b₀ b₀ b₁ b₁ … → b₀»4 b₀ b₁»4 b₁ …: of each the low four bits are the index
    twice = builder.shuffle_vector(eight, eight, _numbers([i // 2 for i in range(16)]))
    index = builder.lshr(builder.zext(twice, ir.VectorType(INT, 16)), _numbers([4, 0] * 8))
    kind = ir.FunctionType(FLOATS, [FLOATS, index.type])
    permute = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
    return builder.call(permute, [book, index])


def _floats(builder, data, at):
    """The sixteen floats from data[at] on, as one to load or store."""
    return builder.bitcast(builder.gep(data, [at]), FLOATS.as_pointer())


def _numbers(some):
    return ir.Constant(ir.VectorType(INT, 16), some)
