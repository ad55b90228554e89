"""The gradients of an operation that is one autograd primitive."""

from autograd.extend import defvjp_argnums


def define_gradients(f, keep, backward):
    """Define the backward pass of the primitive y = f(*args).

    keep(y, *args) returns all that stays in memory between the passes. backward(g, argnums, *kept)
    returns the gradients of the first arguments, from g = ∂L/∂y. argnums: the numbers of the
    arguments whose gradients are used; those of others may be None.
    """

    def vjp(argnums, y, args, kwargs):
        kept = keep(y, *args)

        def gradients(g):
            grads = backward(g, argnums, *kept)
            return tuple(grads[n] for n in argnums)

        return gradients

    defvjp_argnums(f, vjp)
