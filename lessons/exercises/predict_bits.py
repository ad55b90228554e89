"""predict-bits: how many bits does a weight of a small matrix need?

A projection with weights of shape (32, 64) is stored in NF4 with double quantization: blocks of 64
weights, groups of 256 absmax values, and everything that is needed to dequantize it (lesson 2).
Predict before you run anything: how many bits per weight are stored? Give three digits
after the point. Write into REASON which arrays are stored, with their bytes, and why the number
is not the 4.127 of a large matrix.
"""


def observe(answer):
    """Return whether the number is right, or else the number: a failing check must not say it.

    A number that was rounded to three digits is right. A missing offset changes it by 0.016.
    """
    is_right = abs(answer - bits_per_weight()) <= 0.002
    return "the right number" if is_right else f"{float(answer):.2f}"


def property_more_than_a_large_matrix(function):
    """it needs more bits than a weight of a large matrix, and fewer than with a float32 absmax"""
    assert 4.128 < function() < 4.5


def bits_per_weight():
    """Return the predicted bits per weight, a float."""
    codes, absmax_codes, nested_absmax, offset = 1024, 32, 4, 4  # bytes
    return 8 * (codes + absmax_codes + nested_absmax + offset) / (32 * 64)
