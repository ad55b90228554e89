"""Asking memory for a number before it is read.

A loop over a large weight reads each number once, from memory. The processor guesses what will be
read next, but not far enough ahead: half the time of such a loop can be waiting. Here the loop
itself says what it will read.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

AHEAD = 2048  # elements of codes between what a loop is at and what it asks for


def ahead(array, at):
    """Begin to bring element `at`, counted flat, into the cache; past the end it does nothing."""


@overload(ahead)
def _ahead(array, at):
    return lambda array, at: _prefetch(array, at)  # type: ignore[call-arg]


@intrinsic
def _prefetch(typingctx, array, at):
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        prefetch(builder, data, arguments[1])
        return context.get_dummy_value()

    return types.void(array, at), generate


def prefetch(builder, data, at):
    """LLVM's instruction for data[at]: to read, to be kept in every cache, data."""
    kind = ir.FunctionType(ir.VoidType(), [data.type] + [ir.IntType(32)] * 3)
    instruction = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
    builder.call(instruction, [builder.gep(data, [at]), *(ir.IntType(32)(n) for n in (0, 3, 1))])
