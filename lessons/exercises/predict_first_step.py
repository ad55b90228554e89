"""predict-first-step: how does the first update depend on the rank?

Two LoRA runs have the same learning rate and the same α = 16. One has r = 8, the other r = 32. A is
uniform between ±1/√in, B is zero, and the optimizer is AdamW without weight decay. ΔW = (α/r)·BA,
and its size is ‖ΔW‖, the root of the sum of the squares, over all projections of the model `micro`.
Predict before you run anything: by which factor does ‖ΔW‖ after the first step of r = 32 differ
from that of r = 8? Return the quotient, r = 32 divided by r = 8. A number within 0.1 is right.
Write into REASON how large an entry of B is after this step, of how many terms an entry of BA is
the sum, and what α/r does.
"""


def tolerance():
    """‖ΔW‖ shrinks as 1/√r, so the quotient is near 0.5: on `micro` between 0.45 and 0.55."""
    return 0.1


def property_the_first_update_shrinks(function):
    """with α/r, the first update is smaller for the larger rank"""
    assert 0 < function() < 1


def quotient():
    """Return the predicted ‖ΔW‖ of r = 32 divided by that of r = 8, a float."""
    return (8 / 32) * (32 / 8) ** 0.5
