"""predict-parameters: how many numbers does an adapter of SmolLM2-135M train?

SmolLM2-135M has 30 layers of width 576, with 9 heads for queries and 3 heads for keys and values,
each of width 64. LoRA with r = 8 is applied to q_proj and v_proj of each layer, without biases.
Predict before you run anything: how many numbers are trained? Write into REASON the shapes of A
and B of both projections, and what happens to the number if r is doubled and α is not.
"""


def observe(answer):
    """Return whether the number is right, or else the number: a failing check must not say it."""
    return "the right number" if answer == trained_parameters() else f"{float(answer):.0f}"


def property_both_factors_of_both_projections(function):
    """it is more than the two A have, and less than if v_proj had as many outputs as q_proj"""
    assert 2 * 30 * 8 * 576 < function() < 4 * 30 * 8 * 576


def trained_parameters():
    """Return the predicted number of trained parameters, a whole number."""
    layers, r, width, of_values = 30, 8, 576, 3 * 64
    q = r * (width + width)
    v = r * (width + of_values)
    return layers * (q + v)
