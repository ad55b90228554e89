"""Sixteen floats in one register: what AVX-512 has, and no loop that is written in Python.

`panels.py` and `lookup.py` are made of these. To numba a register is a value like any other, that
a variable can hold; each function here is an `intrinsic`, which writes LLVM's name of an
instruction into the place where it is called. Bounds are the caller's to keep.
"""

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import config, types
from numba.core.datamodel import models
from numba.core.registry import cpu_target

_, _, FEATURES = cpu_target.target_context.codegen().magic_tuple()  # of what numba compiles for
AVX512 = "+avx512f" in FEATURES.split(",") and not vars(config)["DISABLE_JIT"]

intrinsic: Any = extending.intrinsic  # it is called without its first argument, the compiler's
INT, FLOATS = ir.IntType(32), ir.VectorType(ir.FloatType(), 16)


class Register(types.Type):
    """The type of such a value, as numba sees it."""


REGISTER = Register("float32x16")


@extending.register_model(Register)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


@intrinsic
def load(typingctx, row, at):
    """row[at : at + 16], a contiguous row of float32."""

    def generate(context, builder, signature, arguments):
        return builder.load(_sixteen(context, builder, signature, arguments), align=4)

    return REGISTER(row, types.intp), generate


@intrinsic
def store(typingctx, row, at, register):
    """row[at : at + 16] = register"""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _sixteen(context, builder, signature, arguments), align=4)
        return context.get_dummy_value()

    return types.void(row, types.intp, register), generate


def _sixteen(context, builder, signature, arguments):
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), FLOATS.as_pointer())


@intrinsic
def spread(typingctx, number):
    """The number, sixteen times."""

    def generate(context, builder, signature, arguments):
        first = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), arguments[0], INT(0))
        return builder.shuffle_vector(first, first, _numbers([0] * 16))

    return REGISTER(types.float32), generate


@intrinsic
def multiply(typingctx, a, b):
    """a∘b"""

    def generate(context, builder, signature, arguments):
        return builder.fmul(*arguments)

    return REGISTER(a, b), generate


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a∘b + c, rounded once."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
        fused = builder.module.declare_intrinsic("llvm.fma.v16f32", fnty=kind)
        return builder.call(fused, arguments)

    return REGISTER(a, b, c), generate


@intrinsic
def total(typingctx, register):
    """The sum of the sixteen, in any order."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(FLOATS.element, [FLOATS.element, FLOATS])
        add = builder.module.declare_intrinsic("llvm.vector.reduce.fadd.v16f32", fnty=kind)
        zero = ir.Constant(FLOATS.element, 0.0)
        return builder.call(add, [zero, *arguments], fastmath=("reassoc",))

    return types.float32(register), generate


@intrinsic
def look_up(typingctx, book, codes, at):
    """What the sixteen codes in codes[at : at + 8] stand for: book[code], the high half first."""

    def generate(context, builder, signature, arguments):
        book, _, at = arguments
        codes = context.make_array(signature.args[1])(context, builder, arguments[1]).data
        kind = ir.VectorType(codes.type.pointee, 8).as_pointer()
        eight = builder.load(builder.bitcast(builder.gep(codes, [at]), kind), align=1)
        # b₀ b₁ … → b₀ b₀ b₁ b₁ … → b₀»4 b₀ b₁»4 b₁ …: of each the low four bits are the index
        twice = builder.shuffle_vector(eight, eight, _numbers([i // 2 for i in range(16)]))
        index = builder.lshr(builder.zext(twice, ir.VectorType(INT, 16)), _numbers([4, 0] * 8))
        kind = ir.FunctionType(FLOATS, [FLOATS, index.type])
        permute = builder.module.declare_intrinsic("llvm.x86.avx512.permvar.sf.512", fnty=kind)
        return builder.call(permute, [book, index])

    return REGISTER(book, codes, types.intp), generate


@intrinsic
def transposed(typingctx, rows):
    """Sixteen registers that hold the columns of a matrix, whose rows are these sixteen.

    A matrix of four quarters is transposed by exchanging two of them and transposing each: here for
    all quarters of one size at once, of 8 × 8, 4 × 4, 2 × 2 and 1 × 1 numbers.
    """

    def generate(context, builder, signature, arguments):
        rows = [builder.extract_value(arguments[0], r) for r in range(16)]
        for half in (8, 4, 2, 1):
            upper = _numbers([n if n & half == 0 else 16 + n - half for n in range(16)])
            lower = _numbers([n + half if n & half == 0 else 16 + n for n in range(16)])
            for r in (r for r in range(16) if r & half == 0):
                a, b = rows[r], rows[r + half]
                rows[r] = builder.shuffle_vector(a, b, upper)
                rows[r + half] = builder.shuffle_vector(a, b, lower)
        return context.make_tuple(builder, signature.return_type, rows)

    return rows(rows), generate


def _numbers(some):
    return ir.Constant(ir.VectorType(INT, 16), some)
