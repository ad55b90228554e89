"""The gradients of an operation that is one autograd primitive."""

from autograd.extend import defvjp_argnums


def define_gradients(f, backward):
    """Make backward(g, argnums, y, *args) the backward pass of the primitive y = f(*args).

    It returns the gradients of the first arguments, from g = ∂L/∂y. argnums: the numbers of the
    arguments whose gradients are used; those of others may be None.
    """

    def vjp(argnums, y, args, kwargs):
        def gradients(g):
            grads = backward(g, argnums, y, *args)
            return tuple(grads[n] for n in argnums)

        return gradients

    defvjp_argnums(f, vjp)
