"""guess: a number.

Predict it.
"""


def bits():
    """Return the bits per weight."""
    return 4.5
