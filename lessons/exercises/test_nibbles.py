"""test-nibbles: test packing; right functions must pass, and usual mistakes must fail.

Call `pack_4bit` on codes of your choice, and compare the bytes with the right ones.
"""

import numpy as np

from minilora.nf4 import unpack_4bit


def check(pack_4bit):
    """Raise an error if `pack_4bit(codes)` is wrong.

    codes is (2k,) uint8 from 0 to 15. `pack_4bit` is that of `minilora.nf4` or a copy of it with a
    mistake.
    Each byte has two codes, the first one in the high half; `minilora.nf4.unpack_4bit` is right.
    """
    codes = np.random.default_rng(0).integers(0, 16, 64).astype(np.uint8)
    packed = pack_4bit(codes)
    assert packed.shape == (32,) and packed.dtype == np.uint8
    assert np.array_equal(unpack_4bit(packed), codes)
    # the codes of 1, −1, 0.5 (rounded to 0.44), −0.25 (to −0.28), as bitsandbytes stores them
    assert pack_4bit(np.array([15, 0, 12, 4], np.uint8)).tobytes() == b"\xf0\xc4"
