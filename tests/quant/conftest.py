"""What the tests of this folder share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def small_weights_as_large_ones(compiled_for_small_weights):
    """Small weights use the loops of large ones."""
