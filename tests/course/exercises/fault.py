"""fault: a sum that is too small.

Repair it.
"""

CASES = {"n": range(2, 5)}


def arguments(rng, n):
    return (rng.uniform(1, 2, n),)


def property_all_count(function, numbers):
    """the sum is at least the number of numbers"""
    assert function(numbers) >= numbers.size


def total(numbers):
    """Add numbers."""
    result = 0.0
    for n in numbers:
        result += n
    return result
