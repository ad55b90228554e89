"""Asking memory for a number before the loop comes to it.

A loop over a large weight meets each number once, in memory. The processor guesses what comes next
and fetches it, but not far enough ahead: half the time of such a loop can be waiting. Here the loop
itself says it, and early.
"""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

AHEAD = 2048  # items of an array between what a loop is at and what it asks for


def ahead(array, at):
    """Begin to bring element `at`, counted flat, into the cache; past the end it does nothing."""


@overload(ahead)
def _ahead(array, at):
    return lambda array, at: _prefetch(array, at)  # type: ignore[call-arg]


@intrinsic
def _prefetch(typingctx, array, at):
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        where = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        # to be read, and kept in every cache; data, not code
        builder.call(prefetch, [where, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, at), generate
