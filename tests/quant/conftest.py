"""What the tests of this folder share."""

import pytest

from minilora.kernels import weights


@pytest.fixture(autouse=True, scope="module")
def product_with_a_single_row():
    """Small weights, too, are multiplied with a single row as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "LARGE", 0)
        yield
