"""Double quantization: the scales of a 4-bit weight, in eight bits themselves.

Part 2 of `lessons/00_qlora_in_one_file.py`, made general: any number of blocks, and compiled loops.

The idea (QLoRA, Dettmers et al. 2023, Sec. 3). One float32 absmax for every 64 weights is half a
bit a weight. The absmax are all of one sign and much alike, so their mean, the offset, is taken
off first; what is left is cut into blocks of 256, divided by the block's own absmax, and rounded
to one of 256 values that stand closer together the nearer they are to zero (a "dynamic" map:
Dettmers 2016, 8-Bit Approximations for Parallelism in Deep Learning). That leaves an eighth of a
bit a weight, and 32/(64·256) for the second absmax.

Codes, offset and absmax have the bits that bitsandbytes gives on a CPU. Letter: m absmax.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .config import require
from .tree import Array

BLOCK = 256  # absmax in a block


@dataclass(frozen=True, eq=False)
class DoubleQuantized:
    """m absmax in eight bits each: absmaxᵢ ≈ map[codeᵢ] · absmax of its block + offset."""

    codes: Array  # (m,) uint8
    absmax: Array  # (⌈m/256⌉,) float32
    offset: np.float32

    @property
    def nbytes(self) -> int:
        return int(self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes)


def dynamic_map() -> Array:
    """The 256 values of the second level, ascending, float32.

    0 and 1, and for each decade i = 0 … 6 the middles of 2ⁱ equal steps from 0.1 to 1, times
    10^(i-6), with both signs.
    """
    values = [np.array([0, 1], np.float32)]
    for i in range(7):
        edges = _linspace(2**i + 1)
        middles = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [middles, -middles]
    return np.sort(np.concatenate(values))


def _linspace(n: int) -> Array:
    """n points from 0.1 to 1, each counted from the nearer end and rounded once, as torch does."""
    start, k = np.float32(0.1), np.arange(n, dtype=np.float64)
    step = np.float64((1 - start) / np.float32(n - 1))
    return np.where(k < n // 2, start + step * k, 1 - step * k[::-1]).astype(np.float32)


DYNAMIC_MAP = dynamic_map()


def double_quantize(absmax: Array, offset: np.float32 | None = None) -> DoubleQuantized:
    """Quantize the absmax (m,) float32 of a tensor's blocks, around their mean if not another.

    Raises InputError if their sum overflows.
    """
    if offset is None:
        with np.errstate(over="ignore"):
            offset = mean(absmax)
    require(np.isfinite(offset), "holds weights too large for double quantization: use nf4")
    m = absmax.size
    blocks = np.pad(absmax - offset, (0, -m % BLOCK)).reshape(-1, BLOCK)
    absmax = np.abs(blocks).max(axis=1)
    with np.errstate(all="ignore"):  # a block of zeros is 0 · ∞, which becomes -1, and code 0
        x = np.fmin(np.fmax(blocks * (1 / absmax)[:, None], -1), 1)
    # bitsandbytes does not look for the value nearest to x, but to x rounded to one of 65,536
    # equal steps: one code in a thousand is not the nearest, and the more often the nearer to zero.
    step = (x + 1) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)
    return DoubleQuantized(_code_of_step()[step.astype(np.uint16)].ravel()[:m], absmax, offset)


@cache
def _code_of_step() -> Array:
    """The code nearest to each of 65,536 equal steps from -1 to 1; halfway, the lower one."""
    steps = np.arange(65536, dtype=np.float32) * np.float32(2) / np.float32(65535) - 1
    midpoints = (DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / np.float32(2)
    return np.searchsorted(midpoints, steps, side="left").astype(np.uint8)


def double_dequantize(q: DoubleQuantized) -> Array:
    """Compute the absmax (m,) float32 that a DoubleQuantized represents."""
    scale = np.repeat(q.absmax, BLOCK)[: q.codes.size]
    return DYNAMIC_MAP[q.codes] * scale + q.offset


def mean(x: Array) -> Any:
    """Mean of x (n,) float32, with the bits of torch's mean on one thread.

    A float32 sum depends on the order of its terms. This is torch's: vectors of eight numbers,
    four running sums side by side, and at the end what fills no four vectors, the four sums, what
    fills no vector, the eight numbers. (From 32,768 numbers on, torch also splits the sum over its
    threads; its last bit then depends on the machine.)
    """
    width = 8 if x.size >= 8 else 1
    vectors = x[: x.size // width * width].reshape(-1, width)
    fours = len(vectors) // 4 * 4
    sums = _cascade(vectors[:fours].reshape(-1, 4 * width)).reshape(4, width)
    sums[0] = sum(vectors[fours:], start=sums[0])
    return sum(sum(sums), start=sum(x[vectors.size :])) / np.float32(x.size)


def _cascade(rows: Array) -> Any:
    """Sum of the rows (k, c): of groups of rows, of groups of such sums, and so on.

    Only numbers of like size are added, so the error grows with log k and not with k.
    """
    group = 2 ** max(4, (len(rows) - 1).bit_length() // 4)
    sums = list(rows)
    while len(sums) > group:
        sums = [sum(sums[i : i + group]) for i in range(0, len(sums), group)]
    return sum(sums, start=np.zeros(rows.shape[1], np.float32))
