"""The table itself: what is not equal counts, and what is no number is not lost in a maximum."""

import numpy as np
import pytest
from comparisons import Comparison, bits, table, unequal

ZERO, NAN = np.zeros(1, np.float32), np.full(1, np.nan, np.float32)


def test_a_row_keeps_the_largest_difference_and_floor():
    row = Comparison(1e-5)
    row.add(np.array([1e-6, 3.14e-6]), 1e-5, [2e-6, 1e-6])
    row.add(np.array([2e-6]), 1e-5, 5e-7)
    assert table({("this", "that"): row})[-1] == "| this | that | 3 | 3.1e-6 | 1e-5 | 2e-6 |"
    with pytest.raises(AssertionError, match="one bound"):
        row.add(np.array([0.0]), 1e-4, None)
    for difference in (np.nan, 1e-6):
        row.add(np.array([difference]), 1e-5, None)
        assert row.cells()[1] == "nan"


@pytest.mark.parametrize(
    "ours, theirs, count",
    [
        (ZERO, -ZERO, 1), (NAN, NAN, 0), (ZERO, ZERO.repeat(3), 3), ("né\0", "né", 4),
    ],
)  # fmt: skip
def test_what_is_not_equal_bit_for_bit_counts(ours, theirs, count):
    assert unequal(bits(ours), bits(theirs)) == count
