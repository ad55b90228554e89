"""test-nibbles: test packing; right functions must pass, and usual mistakes must fail.

Call `pack` on codes of your choice, and compare the bytes with the right ones.
"""

import numpy as np

from minilora.nf4 import unpack


def check(pack):
    """Raise an error if `pack(codes)` is wrong.

    codes is (2k,) uint8 from 0 to 15. `pack` is `minilora.nf4.pack` or a copy of it with a mistake.
    Each byte has two codes, the first one in the high half; `minilora.nf4.unpack` is right.
    """
    codes = np.random.default_rng(0).integers(0, 16, 64).astype(np.uint8)
    packed = pack(codes)
    assert packed.shape == (32,) and packed.dtype == np.uint8
    assert np.array_equal(unpack(packed), codes)
    # the codes of 1, −1, 0.5 (rounded to 0.44), −0.25 (to −0.28), as bitsandbytes stores them
    assert pack(np.array([15, 0, 12, 4], np.uint8)).tobytes() == b"\xf0\xc4"
