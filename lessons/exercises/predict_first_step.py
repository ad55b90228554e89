"""predict-first-step: how does the first update depend on the rank?

Two LoRA runs have the same learning rate η and the same α = 16. One has r = 8, the other r = 32. A
is uniform between ±1/√in, B is zero, and the optimizer is AdamW without weight decay. Its first
step moves each entry of B by η, whatever the size of its gradient is (lesson 7 shows why), and does
not move A. ΔW = (α/r)·BA, and its size is ‖ΔW‖, the root of the sum of the squares, over all
projections of the model `micro`. Predict before you run anything: by which factor does ‖ΔW‖ after
the first step of r = 32 differ from that of r = 8? Return the quotient, r = 32 divided by r = 8.
Two digits after the point are enough. Write into REASON of how many terms an entry of BA is the
sum, how its size grows with this number, and what α/r does.
"""


def observe(answer):
    """Return whether the number is right, or else the number: a failing check must not say it.

    ‖ΔW‖ shrinks about as 1/√r, to 0.5. On `micro`, it is 0.55 to 0.57 with three seeds.
    """
    return "in the right range" if 0.4 <= answer <= 0.65 else f"{float(answer):.2f}"


def property_the_first_update_shrinks(function):
    """with α/r, the first update is smaller for the larger rank"""
    assert 0 < function() < 1


def quotient():
    """Return the predicted ‖ΔW‖ of r = 32 divided by that of r = 8, a float."""
    return (8 / 32) * (32 / 8) ** 0.5
