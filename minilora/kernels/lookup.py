"""Decoding of 4-bit codes: sixteen codes by one AVX-512 instruction, or two codes by a table.

The sixteen values of a 4-bit code fill one AVX-512 register. The instruction vpermps reads sixteen
numbers from such a register by 4-bit indices. numba cannot express it, so `look_up_16` is written
in LLVM's intermediate representation. On other processors, and for the last codes of a tensor, a
table has the two values of each byte.
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .loops import has_feature, jit

AVX512 = has_feature("avx512f")


@jit
def decode_by_table(start, parts, out):
    """Write the elements from `start` on of a flat tensor of N elements to out (n,) float32.

    parts: codes (⌈N/2⌉,) uint8, absmax (⌈N/2ᵏ⌉,), the sixteen values by code, the two values of
    each byte (256,) uint64, and k; a block has 2ᵏ elements, at least 16. The caller guarantees that
    16 divides start, and that start + n ≤ N.
    """
    codes, absmax, values, table, k = parts
    if out.size == 0:
        return
    packed = codes[start // 2 :]
    pairs = out[: out.size // 2 * 2].view(np.uint64)
    for i in range(pairs.size):
        pairs[i] = table[packed[i]]
    if out.size % 2:
        out[out.size - 1] = values[packed[pairs.size] >> 4]
    for b in range(start >> k, (start + out.size - 1 >> k) + 1):
        block = out[max((b << k) - start, 0) : (b + 1 << k) - start]
        scale = absmax[b]
        for i in range(block.size):
            block[i] *= scale


@jit
def decode_by_sixteens(start, parts, out):
    """Do the same as `decode_by_table`, by sixteen elements; the rest one by one."""
    codes, absmax, values, _, k = parts
    whole = out.size // 16 * 16
    first_code = codes.ctypes.data + start // 2
    for i in range(0, whole, 16):
        scale = absmax[(start + i) >> k]
        to = out.ctypes.data + 4 * i
        look_up_16(values.ctypes.data, first_code + i // 2, scale, to)  # type: ignore[call-arg]
    for i in range(whole, out.size):
        two = codes[(start + i) // 2]
        code = two % 16 if i % 2 else two // 16
        out[i] = values[code] * absmax[(start + i) >> k]


@intrinsic
def look_up_16(typingctx, values, codes, scale, out):
    """Compute values[c]·scale for sixteen codes c; values, codes and out are addresses."""
    # `decode_by_sixteens` guarantees that eight bytes are at codes, and sixteen numbers at out
    number = ir.IntType(32)
    numbers = ir.VectorType(number, 16)
    floats = ir.VectorType(ir.FloatType(), 16)
    eight_bytes = ir.VectorType(ir.IntType(8), 8)

    def generate(context, builder, signature, arguments):
        values, codes, scale, out = arguments
        eight = builder.load(builder.inttoptr(codes, eight_bytes.as_pointer()), align=1)
        # b₀ b₁ … → b₀ b₀ b₁ b₁ … → b₀»4 b₀ b₁»4 b₁ …: the instruction reads the low four bits
        twice = builder.shuffle_vector(eight, eight, numbers([i // 2 for i in range(16)]))
        index = builder.lshr(builder.zext(twice, numbers), numbers([4, 0] * 8))
        kind = ir.FunctionType(floats, [floats, numbers])
        vpermps = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
        table = builder.load(builder.inttoptr(values, floats.as_pointer()), align=4)
        found = builder.call(vpermps, [table, index])
        one = builder.insert_element(found, scale, number(0))
        scales = builder.shuffle_vector(one, one, numbers([0] * 16))
        product = builder.fmul(found, scales)
        builder.store(product, builder.inttoptr(out, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


decode_4bit = decode_by_sixteens if AVX512 else decode_by_table
