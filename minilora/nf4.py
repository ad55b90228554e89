"""NF4: weights in four bits.

This file generalizes part 2 of `lessons/00_qlora_in_one_file.py` to other block sizes, short last
blocks and FP4.

The idea (QLoRA, Dettmers et al. 2023, Sec. 2 and 3). A tensor of n elements is flattened and
divided into blocks of b elements. A block stores its largest magnitude, the absmax, and per element
a code: the index of the nearest of sixteen values in [-1, 1].

    w ≈ value[code] · absmax

The values are quantiles of a normal distribution: like trained weights, they are closer together
near zero. The m = ⌈n/b⌉ absmax can be quantized to eight bits as well: see double_quant.py.

The results have the same bits as those of bitsandbytes on a CPU, and those of `kernels/nf4.py`.
"""

import math
from dataclasses import dataclass

import numpy as np

from .config import InputError
from .double_quant import DoubleQuantized, Stored, double_dequantize, double_quantize
from .tree import Array

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip

# bitsandbytes' FP4: the codes 0 to 7 are eight magnitudes, and 8 to 15 are their negatives
_MAGNITUDES = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
FP4 = np.concatenate([_MAGNITUDES, 0 - _MAGNITUDES])  # 0 − 0 is +0, not −0

MIN_BLOCK_ABSMAX = np.float32(1e-38)  # a smaller absmax is replaced: it is a divisor


@dataclass(frozen=True, eq=False)
class Codebook:
    """The sixteen values of a 4-bit type, with the midpoints that are used to find the nearest."""

    values: Array  # (16,) float32, by code
    order: Array  # (16,) uint8, the codes in ascending order of value: 0 … 15 for NF4
    midpoints: Array  # (15,) float32, between neighbours in that order

    @classmethod
    def from_values(cls, values: Array) -> "Codebook":
        """Create the Codebook of sixteen values (16,) float32."""
        order = np.argsort(values, kind="stable").astype(np.uint8)
        midpoints = (values[order][:-1] + values[order][1:]) / np.float32(2)
        return cls(values, order, midpoints)


CODEBOOKS = {"nf4": Codebook.from_values(NF4), "fp4": Codebook.from_values(FP4)}


@dataclass(frozen=True, eq=False)
class Quantized(Stored):
    """A tensor of n elements, 4 bits each, in m = ⌈n/b⌉ blocks."""

    codes: Array  # (⌈n/2⌉,) uint8
    stored_absmax: Array | DoubleQuantized  # (m,) float32, or 8 bits each
    shape: tuple[int, ...]  # of the tensor
    block_size: int
    quant_type: str  # "nf4" or "fp4"
    compute_dtype: str = "float32"

    @property
    def absmax(self) -> Array:
        """Absmax (m,) float32, dequantized if they are stored in 8 bits."""
        stored = self.stored_absmax
        return double_dequantize(stored) if isinstance(stored, DoubleQuantized) else stored

    def dequantize(self) -> Array:
        """Return the dense tensor, float32; see `dequantize`."""
        return dequantize(self)


def quantize(
    w: Array, block_size: int = 64, double_quant: bool = False, quant_type: str = "nf4"
) -> Quantized:
    """Quantize w (any shape, converted to float32) to four bits per element.

    block_size: elements per absmax, a power of two from 16 to 65,536. double_quant: quantize the
    absmax to eight bits. quant_type: "nf4" or "fp4". Raises InputError for other values, and if
    an element is not finite.
    """
    check_4bit(block_size, quant_type)
    w = np.asarray(w, np.float32)
    require_finite(w)
    x, absmax = normalize(w.ravel(), block_size)
    x = np.pad(x, (0, x.size % 2))  # if n is odd, one zero more
    codes = pack_4bit(nearest(x, CODEBOOKS[quant_type]))
    stored_absmax = double_quantize(absmax) if double_quant else absmax
    return Quantized(codes, stored_absmax, w.shape, int(block_size), quant_type)


def normalize(w: Array, block_size: int) -> tuple[Array, Array]:
    """Divide w (n,) by the absmax of each block; return x (n,) in [-1, 1] and the absmax (m,)."""
    whole = w.size // block_size * block_size
    blocks = w[:whole].reshape(-1, block_size)
    rest = w[whole:]
    absmax = np.abs(blocks).max(axis=1)
    # x = w · (1/absmax)
    x = (blocks * (1 / np.maximum(absmax, MIN_BLOCK_ABSMAX))[:, None]).ravel()
    if rest.size:
        # as bitsandbytes: a short last block is divided by its absmax, which can change the last
        # bit, and its absmax is at least MIN_BLOCK_ABSMAX
        last = np.maximum(np.abs(rest).max(), MIN_BLOCK_ABSMAX)
        x = np.append(x, rest / last)
        absmax = np.append(absmax, last)
    return x, absmax


def nearest(x: Array, codebook: Codebook) -> Array:
    """Return the codes of the values nearest to x, in the shape of x; at a tie, the lower value.

    >>> nearest(np.array([-1, 0.1, 0.9], np.float32), CODEBOOKS["nf4"])
    array([ 0,  8, 15], dtype=uint8)
    """
    return codebook.order[np.searchsorted(codebook.midpoints, x, side="left")]


def dequantize(q: Quantized) -> Array:
    """Compute the dense tensor of q, of shape `q.shape`, float32."""
    n = math.prod(q.shape)
    values = CODEBOOKS[q.quant_type].values[unpack_4bit(q.codes)[:n]]
    # ŵ = value[code] · absmax of its block
    return (values * np.repeat(q.absmax, q.block_size)[:n]).reshape(q.shape)


def pack_4bit(codes: Array) -> Array:
    """Pack two 4-bit codes per byte, the first in the high half: (2k,) -> (k,) uint8.

    >>> pack_4bit(np.array([1, 2, 15, 0]))
    array([ 18, 240], dtype=uint8)
    """
    return (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)


def unpack_4bit(packed: Array) -> Array:
    """Unpack the two 4-bit codes of each byte, the inverse of `pack_4bit`: (k,) -> (2k,)."""
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()


def check_4bit(block_size: int, quant_type: str) -> None:
    """Raise InputError unless weights can be quantized with this block size and type."""
    whole = isinstance(block_size, int | np.integer)
    if not (whole and 16 <= block_size <= 65536 and block_size & (block_size - 1) == 0):
        raise InputError(f"a block size of {block_size} is not a power of two from 16 to 65,536")
    if quant_type not in CODEBOOKS:
        raise InputError(f"there is no 4-bit type {quant_type!r}: use nf4 or fp4")


def require_finite(*arrays: Array) -> None:
    """Raise InputError if an array contains a NaN or an infinity."""
    if not all(np.isfinite(w).all() for w in arrays):
        raise InputError("a weight has a NaN or an infinity: use an undamaged copy of the file")
