"""What is not equal bit for bit counts. test_proofs_page.py has the table that this fills."""

import numpy as np
import pytest
from comparisons import bits, unequal

ZERO, NAN = np.zeros(1, np.float32), np.full(1, np.nan, np.float32)


@pytest.mark.parametrize(
    "ours, theirs, count",
    [
        (ZERO, -ZERO, 1), (NAN, NAN, 0), (ZERO, ZERO.repeat(3), 3), ("né\0", "né", 4),
    ],
)  # fmt: skip
def test_what_is_not_equal_bit_for_bit_counts(ours, theirs, count):
    assert unequal(bits(ours), bits(theirs)) == count
