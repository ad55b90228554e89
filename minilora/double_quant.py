"""Double quantization: the absmax values of a 4-bit weight are quantized to eight bits.

This file generalizes part 2 of `lessons/00_qlora_in_one_file.py` to any number of blocks.

The idea (QLoRA, Dettmers et al. 2023, Sec. 3). One float32 absmax per 64 weights costs half a bit
per weight. All absmax values are positive and of similar size. So their mean, the offset, is
subtracted. The differences are divided into blocks of 256, scaled by the absmax of their block, and
rounded to one of 256 values, which are closer together near zero (a "dynamic" map: Dettmers 2016,
8-Bit Approximations for Parallelism in Deep Learning). This costs 8/64 + 32/(64·256) = 0.127 bits
per weight.

Codes, offset and nested absmax have the same bits as those of bitsandbytes on a CPU. Letter: m, the
number of absmax values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import InputError
from .tree import Array

NESTED_BLOCK_SIZE = 256  # absmax values per nested absmax


class Stored:
    """A dataclass of arrays that stands for numbers in more bits."""

    shape: Any  # of these numbers
    # of the products with them: float32 or bfloat16, as bnb_4bit_compute_dtype of transformers
    compute_dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        """Number of stored bytes."""
        return sum(part.nbytes for part in vars(self).values() if hasattr(part, "nbytes"))


@dataclass(frozen=True, eq=False)
class DoubleQuantized(Stored):
    """Absmax of m blocks, 8 bits each: absmaxᵢ ≈ map[codeᵢ] · nested absmax + offset."""

    codes: Array  # (m,) uint8
    nested_absmax: Array  # (⌈m/256⌉,) float32, one per 256 absmax
    offset: np.float32


def dynamic_map() -> Array:
    """Compute the values of the dynamic map, ascending: (256,) float32."""
    # 0, 1, and ± the midpoints of 2ⁱ equal steps from 0.1 to 1, times 10^(i-6), for i = 0 … 6
    values = [np.array([0, 1], np.float32)]
    low = np.float32(0.1)
    width = np.float64(1 - low)
    for i in range(7):
        # as in torch, an edge is computed from the nearer end and rounded once
        k = np.arange(2**i + 1) / 2**i
        edges = np.where(k < 0.5, low + width * k, 1 - width * (1 - k)).astype(np.float32)
        midpoints = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / 2)
        values += [midpoints, -midpoints]
    return np.sort(np.concatenate(values))


DYNAMIC_MAP = dynamic_map()


def double_quantize(absmax: Array, offset: np.float32 | None = None) -> DoubleQuantized:
    """Quantize the absmax (m,) float32 of a tensor's blocks to eight bits each.

    offset: None for their mean, or a mean from elsewhere. Raises InputError if their sum overflows.
    """
    if offset is None:
        with np.errstate(over="ignore"):
            offset = mean(absmax)
    if not np.isfinite(offset):
        raise InputError("the weights are too large for double quantization: quantize without it")
    m = absmax.size
    blocks = np.pad(absmax - offset, (0, -m % NESTED_BLOCK_SIZE)).reshape(-1, NESTED_BLOCK_SIZE)
    nested_absmax = np.abs(blocks).max(axis=1)
    with np.errstate(all="ignore"):  # in a block of zeros, 0·∞ is NaN, and fmax(NaN, -1) is -1
        x = np.fmin(np.fmax(blocks * (1 / nested_absmax)[:, None], -1), 1)
    # bitsandbytes first rounds x to one of 65,536 equal steps, then takes the nearest value: one
    # code in a thousand is not the nearest to x, most of them close to zero.
    step = (x + 1) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)
    rounded = step.astype(np.uint16) * np.float32(2) / np.float32(65535) - 1
    midpoints = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / 2
    codes = np.searchsorted(midpoints, rounded.ravel()[:m]).astype(np.uint8)
    return DoubleQuantized(codes, nested_absmax, offset)


def double_dequantize(q: DoubleQuantized) -> Array:
    """Compute the absmax (m,) float32 that a DoubleQuantized represents."""
    nested_absmax = np.repeat(q.nested_absmax, NESTED_BLOCK_SIZE)[: q.codes.size]
    return DYNAMIC_MAP[q.codes] * nested_absmax + q.offset


def mean(x: Array) -> Any:
    """Compute the mean of x (n,) float32, with the same bits as torch's mean on one thread.

    You may skip this function: up to the last bit, it is `np.mean`. A float32 sum depends on the
    order of its terms. The order of torch is: (1) vectors of eight numbers go in turn to four sums,
    each computed by groups (`_cascade`); (2) the vectors left over are added to the first of the
    four sums; (3) the four sums are added, which gives one vector; (4) its eight numbers are added
    in turn to the sum of the numbers left over. (From 32,768 numbers on, torch also splits the sum
    over its threads; its last bit then depends on the machine.)
    """
    width = 8 if x.size >= 8 else 1  # fewer than eight numbers: four sums of single numbers
    vectors = x[: x.size // width * width].reshape(-1, width)
    fours = len(vectors) // 4 * 4
    sums = _cascade(vectors[:fours].reshape(-1, 4 * width)).reshape(4, width)
    sums[0] = sum(vectors[fours:], start=sums[0])
    return sum(sum(sums), start=sum(x[vectors.size :])) / np.float32(x.size)


def _cascade(rows: Array) -> Any:
    """Return the sum (c,) of rows (k, c) by groups, then of the sums by groups, and so on."""
    # sums of similar size are added, so the error grows with log k and not with k; the group is
    # torch's: a power of two near the fourth root of k, at least 16
    group = 2 ** max(4, (len(rows) - 1).bit_length() // 4)
    sums = list(rows)
    while len(sums) > group:
        sums = [sum(sums[i : i + group]) for i in range(0, len(sums), group)]
    return sum(sums, start=np.zeros(rows.shape[1], np.float32))
