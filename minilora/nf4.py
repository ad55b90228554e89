"""NF4: a weight in four bits.

Part 2 of `lessons/00_qlora_in_one_file.py`, made general: other block sizes, short last blocks,
FP4, and compiled loops.

The idea (QLoRA, Dettmers et al. 2023, Sec. 2 and 3). A tensor is read as one long row of n
elements and cut into blocks of B. A block keeps its largest magnitude, the absmax, and for every
element the number of the nearest of sixteen values in [-1, 1]:

    w ≈ value[code] · absmax

The values are quantiles of a normal distribution, close together near zero, because trained
weights are. The m = ⌈n/B⌉ absmax may in turn be quantized to eight bits: see nested.py.

The functions that end in `_plain` are the text. The loops that run stand at the end and give the
same bits, and these are the bits that bitsandbytes gives on a CPU.
"""

import math
from dataclasses import dataclass

import numpy as np

from .config import require
from .kernels import jit, share_rows
from .lookup import decode, dot_rows, strip_rows
from .nested import Nested, nest, unnest, unnest_plain

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
SPAN = 4096  # elements that are dequantized at a time: they stay in the nearest cache


def pack(codes):
    """Two 4-bit codes a byte, the first in the high half: (2k,) -> (k,) uint8."""
    return (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)


def unpack(packed):
    """The inverse of `pack`: (k,) -> (2k,)."""
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()


@dataclass(frozen=True, eq=False)
class Code:
    """Sixteen values, and what searching and reading them needs."""

    values: np.ndarray  # (16,) float32, by code
    order: np.ndarray  # (16,) uint8, the codes by rising value: NF4's are 0 … 15
    midpoints: np.ndarray  # (15,) float32, halfway between neighbours in that order
    byte_values: np.ndarray  # (256,) for every byte its two float32 values, as one uint64

    @classmethod
    def of(cls, values):
        order = np.argsort(values, kind="stable").astype(np.uint8)
        midpoints = (values[order][:-1] + values[order][1:]) / np.float32(2)
        return cls(values, order, midpoints, values[unpack(np.arange(256))].view(np.uint64))

    @property
    def tables(self):
        """What codes are looked up in, sixteen at a time and two."""
        return self.values, self.byte_values


CODES = {"nf4": Code.of(NF4), "fp4": Code.of(FP4)}


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor in four bits an element."""

    codes: np.ndarray  # (⌈n/2⌉,) uint8
    scales: np.ndarray | Nested  # absmax (m,) float32, or quantized once more
    shape: tuple[int, ...]  # of the tensor that it stands for
    block_size: int
    code: str  # "nf4" or "fp4"

    @property
    def absmax(self):
        """(m,) float32, as it dequantizes."""
        return unnest(self.scales) if isinstance(self.scales, Nested) else self.scales

    @property
    def nbytes(self):
        """All bytes that are stored."""
        return self.codes.nbytes + self.scales.nbytes

    def dequantize(self, out=None):
        return dequantize(self, out)

    def matvec(self, x):
        return matvec(self, x)

    def times(self, x, across):
        return times(self, x, across)


# --- the text ---


def quantize_plain(w, block_size=64, double_quant=False, code="nf4"):
    """`quantize`, in NumPy."""
    x, absmax = normalize(w.ravel(), block_size)
    x = np.pad(x, (0, x.size % 2))  # an odd tensor gets one element more, a zero
    codes = pack(nearest(x, CODES[code]))
    return Quantized(codes, nest(absmax) if double_quant else absmax, w.shape, block_size, code)


def normalize(w, block_size):
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


def nearest(x, code):
    """The codes of the values nearest to x, between `code.midpoints`; on one, the lower value's."""
    return code.order[np.searchsorted(code.midpoints, x, side="left")]


def dequantize_plain(q):
    """`dequantize`, in NumPy."""
    n = math.prod(q.shape)
    values = CODES[q.code].values[unpack(q.codes)[:n]]
    absmax = unnest_plain(q.scales) if isinstance(q.scales, Nested) else q.scales
    # ŵ = value[code] · absmax of its block
    return (values * np.repeat(absmax, q.block_size)[:n]).reshape(q.shape)


# --- what to call ---


def quantize(w, block_size=64, double_quant=False, code="nf4"):
    """w, of any shape and taken as float32, in four bits -> Quantized.

    `block_size` is a power of two from 16, `code` is "nf4" or "fp4"; `double_quant` quantizes the
    absmax too. InputError if one of them is something else, or if a weight is not finite.
    """
    require(
        block_size >= 16 and block_size & (block_size - 1) == 0,
        f"a block size of {block_size} is not a power of two from 16: use 64",
    )
    require(code in CODES, f"there is no 4-bit code {code!r}: use one of {', '.join(CODES)}")
    w = np.ascontiguousarray(w, np.float32)
    codes, absmax = _quantize(w.reshape(-1), block_size, code)
    return Quantized(codes, nest(absmax) if double_quant else absmax, w.shape, block_size, code)


def _quantize(w, block_size, code):
    """(packed codes, absmax) of w (n,): whole blocks in the loop, a short last one in NumPy."""
    whole = w.size // block_size
    rest = w[whole * block_size :]
    codes = np.empty((w.size + 1) // 2, np.uint8)
    absmax = np.empty(whole + (rest.size > 0), np.float32)
    midpoints, order = CODES[code].midpoints, CODES[code].order
    a = (w, midpoints, block_size, codes, absmax)
    share_rows(_encode, whole, *a, width=2 * block_size)  # an element is 15 comparisons
    finite = np.isfinite(absmax[:whole]).all() and np.isfinite(rest).all()
    require(finite, "holds a NaN or an infinity: take a sound copy of the file")
    if code != "nf4":  # the loop wrote ranks by value, which only for NF4 are the codes
        codes = pack(order[unpack(np.arange(256))])[codes]
    if rest.size:
        last = quantize_plain(rest, block_size, code=code)
        codes[whole * block_size // 2 :], absmax[whole:] = last.codes, last.absmax
    return codes, absmax


def dequantize(q, out=None):
    """The tensor (q.shape, float32) that q stands for, written to `out`, C-contiguous, if given."""
    out = np.empty(q.shape, np.float32) if out is None else out
    assert out.flags.c_contiguous and out.shape == q.shape and out.dtype == np.float32
    a = (q.codes, q.absmax, *CODES[q.code].tables, q.block_size, out.reshape(-1))
    share_rows(_dequantize, -(-out.size // SPAN), *a, width=SPAN)
    return out


def matvec(q, x):
    """y = W x for the W (out, in) that q stands for and x (in,), without W in memory: (out,)."""
    rows, width = q.shape
    x, y = np.ascontiguousarray(x, np.float32), np.empty(rows, np.float32)
    assert x.shape == (width,)
    a = (q.codes, q.absmax, *CODES[q.code].tables, q.block_size, x, y)
    share_rows(dot_rows, rows, *a, width=width)
    return y


def times(q, x, across):
    """x Wᵀ if `across`, else x W, by dequantized strips of W; float32 x (n, k) -> (n, width)."""
    y = np.empty((len(x), q.shape[0 if across else 1]), np.float32)
    a = (q.codes, q.absmax, *CODES[q.code].tables, q.block_size, x, across, y)
    share_rows(strip_rows, len(x), *a, width=math.prod(q.shape) // 16)
    return y


# --- the loops that run ---


@jit
def _encode(lo, hi, w, midpoints, block_size, codes, absmax):
    """Blocks lo..hi: the absmax, and two ranks among the sixteen values a byte.

    All ranks of a block first, then two of them read as one number: both loops then run in whole
    vectors. The first of the two is the low half, as on every processor that numba knows.
    """
    half, absmax_bits = block_size // 2, absmax.view(np.uint32)
    ranks = np.empty(block_size, np.int32)
    pairs = ranks.view(np.uint64)
    for b in range(lo, hi):
        block = w[b * block_size : (b + 1) * block_size]
        # Without the sign bit, floats compare as whole numbers do, and NaN is the largest.
        bits, largest = block.view(np.uint32), np.uint32(0)
        for i in range(block_size):
            largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
        absmax_bits[b] = largest
        scale = np.float32(1) / max(absmax[b], TINY)
        for i in range(block_size):
            ranks[i] = _rank(block[i] * scale, midpoints)
        packed = codes[b * half : (b + 1) * half]
        for i in range(half):
            packed[i] = (pairs[i] << np.uint64(4) | pairs[i] >> np.uint64(32)) & np.uint64(255)


@jit
def _rank(x, midpoints):
    """How many midpoints lie below x. Counting beats searching: it needs no branches."""
    rank = np.int32(0)
    for i in range(15):
        rank += x > midpoints[i]
    return rank


@jit
def _dequantize(lo, hi, codes, absmax, values, table, block_size, out):
    """Spans lo..hi of the flat tensor."""
    for start in range(lo * SPAN, min(hi * SPAN, out.size), SPAN):
        decode(start, codes, absmax, values, table, block_size, out[start : start + SPAN])
