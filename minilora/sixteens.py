"""Sixteen codes at a time: the code book fits into one register of a processor with AVX-512.

`nf4._decode` looks one byte, two codes, up after the other. The instruction vpermps takes sixteen
numbers from a register of sixteen, each by four bits of its own: that is dequantizing itself.
numba reaches it by LLVM's name for it. Where there is no such instruction, the other loop does all.
"""

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import config, types
from numba.extending import intrinsic

from .kernels import jit

AVX512 = bool(get_host_cpu_features().get("avx512f")) and not vars(config)["DISABLE_JIT"]


@jit
def decode_sixteens(start, codes, absmax, values, block_size, out):
    """As `nf4._decode` for the first elements of `out`; how many they are, a multiple of 16.

    A block is a multiple of sixteen elements too, so sixteen from such a start have one scale.
    """
    done, i = out.size // 16 * 16 if start % 16 == 0 else 0, 0
    while i < done:
        b = (start + i) // block_size
        end = min((b + 1) * block_size - start, done)
        for j in range(i, end, 16):
            _decode16(values, codes, (start + j) // 2, absmax[b], out, j)  # type: ignore[call-arg]
        i = end
    return done


@jit
def _none(start, codes, absmax, values, block_size, out):
    return 0


if not AVX512:
    decode_sixteens = _none


INT, FLOATS, BYTES = ir.IntType(32), ir.VectorType(ir.FloatType(), 16), ir.IntType(8)


@intrinsic
def _decode16(typingctx, values, codes, at, scale, out, to):
    """out[to : to + 16] = values[codes[at : at + 8]]·scale, two codes a byte, the high half first.

    values (16,) and out float32, codes uint8, all contiguous. Bounds are the caller's to keep.
    """

    def generate(context, builder, signature, arguments):
        at, scale, to = (arguments[n] for n in (2, 3, 5))

        def address(n, index, kind):
            array = context.make_array(signature.args[n])(context, builder, arguments[n])
            return builder.bitcast(builder.gep(array.data, [index]), kind.as_pointer())

        def numbers(some):
            return ir.Constant(ir.VectorType(INT, 16), some)

        book = builder.load(address(0, ir.Constant(ir.IntType(64), 0), FLOATS), align=4)
        eight = builder.load(address(1, at, ir.VectorType(BYTES, 8)), align=1)
        # b₀ b₁ … → b₀ b₀ b₁ b₁ … → b₀»4 b₀ b₁»4 b₁ …: of each the low four bits are the index
        twice = builder.shuffle_vector(eight, eight, numbers([i // 2 for i in range(16)]))
        index = builder.lshr(builder.zext(twice, ir.VectorType(INT, 16)), numbers([4, 0] * 8))
        kind = ir.FunctionType(FLOATS, [FLOATS, index.type])
        permute = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
        first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), scale, INT(0))
        scales = builder.shuffle_vector(first, first, numbers([0] * 16))
        found = builder.fmul(builder.call(permute, [book, index]), scales)
        builder.store(found, address(4, to, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(values, codes, at, scale, out, to), generate
