"""NF4: a weight in four bits.

Part 2 of `lessons/00_qlora_in_one_file.py`, made general: other block sizes, short last blocks,
FP4, and compiled loops.

The idea (QLoRA, Dettmers et al. 2023, Sec. 2 and 3). A tensor is read as one long row of n
elements and cut into blocks of B. A block keeps its largest magnitude, the absmax, and for every
element the number of the nearest of sixteen values in [-1, 1]:

    w ≈ value[code] · absmax

The values are quantiles of a normal distribution, close together near zero, because trained
weights are. The m = ⌈n/B⌉ absmax may in turn be quantized to eight bits: see double_quant.py.

All of it is plain NumPy, and its bits are those of bitsandbytes on a CPU. The compiled loops of
`kernels/nf4.py` give the same bits.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import require
from .double_quant import BLOCK, DoubleQuantized, double_dequantize, double_quantize
from .tree import Array

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip

# bitsandbytes' FP4: eight magnitudes, and the same again with the sign bit
_MAGNITUDES = np.array([0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4], np.float32)
FP4 = np.concatenate([_MAGNITUDES, 0 - _MAGNITUDES])

TINY = np.float32(1e-38)  # the smallest absmax that anything is divided by


def pack(codes: Array) -> Array:
    """Two 4-bit codes a byte, the first in the high half: (2k,) -> (k,) uint8."""
    return (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)


def unpack(packed: Array) -> Array:
    """The inverse of `pack`: (k,) -> (2k,)."""
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()


@dataclass(frozen=True, eq=False)
class Code:
    """Sixteen values, and what searching and reading them needs."""

    values: Array  # (16,) float32, by code
    order: Array  # (16,) uint8, the codes by rising value: NF4's are 0 … 15
    midpoints: Array  # (15,) float32, halfway between neighbours in that order

    @classmethod
    def of(cls, values: Array) -> "Code":
        order = np.argsort(values, kind="stable").astype(np.uint8)
        midpoints = (values[order][:-1] + values[order][1:]) / np.float32(2)
        return cls(values, order, midpoints)


CODES = {"nf4": Code.of(NF4), "fp4": Code.of(FP4)}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor of n elements in four bits each, in m = ⌈n/B⌉ blocks.

    Raises InputError unless the sizes fit each other: compiled loops check no bounds.
    """

    codes: Array  # (⌈n/2⌉,) uint8
    scales: Array | DoubleQuantized  # absmax (m,) float32, or quantized once more
    shape: tuple[int, ...]  # of the tensor that it stands for
    block_size: int
    code: str  # "nf4" or "fp4"

    def __post_init__(self) -> None:
        check(self.block_size, self.code)
        n, scales = math.prod(self.shape), self.scales
        m = -(-n // self.block_size)
        parts: list[Any] = [(self.codes, -(-n // 2), np.uint8), (scales, m, np.float32)]
        if isinstance(scales, DoubleQuantized):
            parts[1:] = [(scales.codes, m, np.uint8), (scales.absmax, -(-m // BLOCK), np.float32)]
        for part, size, kind in parts:
            sound = part.shape == (size,) and part.dtype == kind and part.flags.c_contiguous
            require(
                sound,
                f"a 4-bit weight of shape {self.shape} in blocks of {self.block_size} needs {size} "
                f"numbers of type {np.dtype(kind)}, not {part.dtype} of shape {part.shape}",
            )

    @property
    def absmax(self) -> Array:
        """Return the absmax (m,) float32, dequantized if they are quantized themselves."""
        double = isinstance(self.scales, DoubleQuantized)
        return double_dequantize(self.scales) if double else self.scales

    @property
    def nbytes(self) -> int:
        """All bytes that are stored."""
        return int(self.codes.nbytes + self.scales.nbytes)

    def dequantize(self) -> Array:
        return dequantize(self)


def quantize(
    w: Array, block_size: int = 64, double_quant: bool = False, code: str = "nf4"
) -> Quantized:
    """Quantize w, of any shape and taken as float32, to four bits per element -> Quantized.

    `block_size` is a power of two from 16, `code` is "nf4" or "fp4"; `double_quant` quantizes the
    absmax too. InputError if one of them is something else, or if a weight is not finite.
    """
    check(block_size, code)
    w = np.asarray(w, np.float32)
    require_finite(w)
    x, absmax = normalize(w.ravel(), block_size)
    x = np.pad(x, (0, x.size % 2))  # an odd tensor gets one element more, a zero
    codes = pack(nearest(x, CODES[code]))
    scales = double_quantize(absmax) if double_quant else absmax
    return Quantized(codes, scales, w.shape, block_size, code)


def check(block_size: int, code: str) -> None:
    """Raise InputError unless weights can be quantized in blocks of that size with that code."""
    sound = 16 <= block_size <= 65536 and block_size & (block_size - 1) == 0
    require(sound, f"a block size of {block_size} is not a power of two from 16 to 65,536: use 64")
    require(code in CODES, f"there is no 4-bit code {code!r}: use one of {', '.join(CODES)}")


def require_finite(*arrays: Array) -> None:
    """Raise InputError if an array holds a NaN or an infinity."""
    finite = all(np.isfinite(w).all() for w in arrays)
    require(finite, "holds a NaN or an infinity: take a sound copy of the file")


def normalize(w: Array, block_size: int) -> tuple[Array, Array]:
    """w (n,) -> x (n,) in [-1, 1], w over the absmax of its block; and the absmax (m,)."""
    whole = w.size // block_size * block_size
    blocks, rest = w[:whole].reshape(-1, block_size), w[whole:]
    absmax = np.abs(blocks).max(axis=1)
    # x = w · (1/absmax)
    x = (blocks * (1 / np.maximum(absmax, TINY))[:, None]).ravel()
    if rest.size:  # bitsandbytes divides a short last block; the last bit can differ
        last = np.maximum(np.abs(rest).max(), TINY)
        x, absmax = np.append(x, rest / last), np.append(absmax, last)
    return x, absmax


def nearest(x: Array, code: Code) -> Array:
    """The codes of the values nearest to x, between `code.midpoints`; on one, the lower value's."""
    return code.order[np.searchsorted(code.midpoints, x, side="left")]


def dequantize(q: Quantized) -> Array:
    """Compute the tensor (q.shape, float32) that q stands for."""
    n = math.prod(q.shape)
    values = CODES[q.code].values[unpack(q.codes)[:n]]
    # ŵ = value[code] · absmax of its block
    return (values * np.repeat(q.absmax, q.block_size)[:n]).reshape(q.shape)
