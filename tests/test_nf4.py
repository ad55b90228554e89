"""NF4, FP4 and double quantization: properties that hold for every array."""

import zlib
from bisect import bisect_left
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from statistics import NormalDist
from unittest.mock import patch

import numpy as np
import pytest
from arrays import KINDS, SHAPES, weights
from hypothesis import example, given
from hypothesis import strategies as st
from models import U32, seeds
from numpy.testing import assert_allclose, assert_array_equal
from outcomes import refused

from minilora import double_quant, nf4
from minilora.kernels import lookup
from minilora.kernels import nf4 as compiled
from minilora.kernels import weights as weights_

pytestmark = pytest.mark.usefixtures("compiled_for_small_weights")

kinds = st.sampled_from(KINDS)
shapes = st.sampled_from(SHAPES) | st.tuples(st.integers(1, 40), st.integers(1, 200))
block_sizes = st.sampled_from([16, 64, 256, 4096])
codes = st.sampled_from(["nf4", "fp4"])


# ------------------------------------------------------------------------------- the codes


def test_nf4_values_are_quantiles_of_a_normal_distribution():
    # Eight positive and seven negative values at evenly spaced probabilities, and zero. The
    # outermost probability is the mean of 1 - 1/32 and 1 - 1/30, half a bin of 16 and of 15, and
    # was taken with seven digits.
    outer = round(1 - (1 / 32 + 1 / 30) / 2, 7)
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(outer, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(outer, 0.5, 8)[:-1]]
    values = np.sort([*positive, 0.0, *negative]) / max(positive)
    # The literals were computed in float32: a rounded quantile over a rounded quantile.
    assert_allclose(nf4.NF4, values, rtol=0, atol=2**-23)


def test_fp4_has_two_zeros_and_a_smallest_value_that_no_e2m1_has():
    magnitudes = nf4.FP4[:8]
    assert_array_equal(nf4.FP4[8:], -magnitudes)
    e2m1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / np.float32(6)
    e2m1[1] = 1 / 192  # of bitsandbytes, in the place of 1/12
    assert_array_equal(np.sort(magnitudes), e2m1)


@given(seeds, kinds, shapes, block_sizes, codes)
def test_every_block_by_itself(seed, kind, shape, size, code):
    """The value nearest to each element, and the lower one at a tie."""
    w = weights(kind, shape, seed)
    q, w, n = nf4.quantize(w, size, quant_type=code), w.ravel(), w.size
    values, tiny = nf4.CODEBOOKS[code].values, np.float32(1e-38)
    by_value = np.array(sorted(range(16), key=lambda i: values[i]))  # of FP4's zeros, +0 is first
    edges = (values[by_value[:-1]] + values[by_value[1:]]) / np.float32(2)
    got, back = nf4.unpack_4bit(q.codes), q.dequantize().ravel()
    assert q.shape == shape
    for start, absmax in zip(range(0, n, size), q.absmax, strict=True):
        block = w[start : start + size]
        largest = max(np.abs(block).max(), tiny)
        if len(block) == size:
            assert absmax == np.abs(block).max()
            x = block * (np.float32(1) / largest)
        else:  # a short last block, as bitsandbytes has it
            assert absmax == largest
            x = block / largest
        expected = by_value[(edges < x[:, None]).sum(axis=1)]
        here = slice(start, start + len(block))
        assert_array_equal(got[here], expected)
        assert_array_equal(back[here], values[expected] * absmax)
    assert n % 2 == 0 or got[n] == by_value[(edges < 0).sum()]  # a zero


@given(seeds, kinds, shapes, block_sizes, codes)
def test_error_is_at_most_half_the_widest_gap_times_absmax(seed, kind, shape, block_size, code):
    w = weights(kind, shape, seed)
    q = nf4.quantize(w, block_size, quant_type=code)
    gap = np.diff(np.sort(nf4.CODEBOOKS[code].values)).max()
    absmax = np.repeat(np.float64(q.absmax), block_size)[: w.size].reshape(shape)
    # 1/absmax and its product with w are rounded before the search, value · absmax after it.
    assert (np.abs(np.float64(q.dequantize()) - w) <= (gap / 2 + 3 * U32) * absmax).all()


# ---------------------------------------------------------------------- double quantization


def test_the_dynamic_maps_bits():
    # of bitsandbytes.functional.create_dynamic_map(signed=True)
    assert zlib.crc32(double_quant.DYNAMIC_MAP.astype("<f4").tobytes()) == 0x1B137AEB


@given(seeds, kinds, st.integers(1, 600))
def test_double_quantization_one_block_at_a_time(seed, kind, m):
    absmax, one = np.abs(weights(kind, (m,), seed)), np.float32(1)
    second = double_quant.double_quantize(absmax)
    offset, back = double_quant.mean(absmax), double_quant.double_dequantize(second)
    assert second.offset == offset and type(offset) is np.float32
    midpoints = [float((a + b) / np.float32(2)) for a, b in pairwise(double_quant.DYNAMIC_MAP)]
    for start, largest in zip(range(0, m, 256), second.nested_absmax, strict=True):
        here = slice(start, min(start + 256, m))
        rest = absmax[here] - offset
        assert largest == np.abs(rest).max()
        x = (rest * (one / largest)).clip(-one, one) if largest else -np.ones_like(rest)
        steps = ((x + one) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)).astype(int)
        at = np.float32(2 * steps) / np.float32(65535) - one
        codes = [bisect_left(midpoints, number) for number in at.tolist()]
        assert second.codes[here].tolist() == codes
        assert_array_equal(back[here], double_quant.DYNAMIC_MAP[codes] * largest + offset)


def test_differences_too_small_to_divide_by_go_to_the_ends():
    absmax = np.float32([1e-39, 3e-39])  # 1/1e-39 is no float32
    assert double_quant.double_quantize(absmax).codes.tolist() == [0, 255]


def test_mean_has_torchs_bits():
    """Whatever is left over of vectors and groups. Groups have 16 rows, 32 if rows exceed 2¹⁹."""
    # of torch.tensor(numbers[:n]).mean(), on one thread, for each n
    numbers = (np.arange(1, 2**24 + 33) * np.e % 1).astype("<f4")
    sizes = [*range(1, 601), 8191, 8192, 8193, 32767, 2**20 + 33, 2**24, 2**24 + 32]
    means = [double_quant.mean(numbers[:n]) for n in sizes]
    assert zlib.crc32(np.array(means).tobytes()) == 0x7FF60D5D
    # eight numbers are one vector, added from left to right: 1 + 2⁻²⁴ is 1, seven times
    assert double_quant.mean(np.float32([1, *[2**-24] * 7])) == 1 / 8


# ----------------------------------------------------------------------------- compiled loops

# also one that is large enough for several threads, and ends in a short block
every_shape = shapes | st.just((1001, 777))


@given(seeds, kinds, every_shape, block_sizes, codes, st.booleans())
def test_loops_give_the_bits_of_the_reference(seed, kind, shape, block_size, code, double):
    w, arguments = weights(kind, shape, seed), (block_size, double, code)
    q, plain = compiled.quantize(w, *arguments), nf4.quantize(w, *arguments)
    assert_array_equal(q.codes, plain.codes)
    assert weights_.dense(q).tobytes() == plain.dequantize().tobytes()


@given(seeds, block_sizes, codes, st.integers(0, 550), st.integers(1, 5000))
def test_any_part_of_a_tensor(seed, block_size, code, start, size):
    """By the table, and, from a multiple of sixteen on, by the instruction if there is one."""
    w = np.random.default_rng(seed).standard_normal(9000, np.float32)
    q, start = nf4.quantize(w, block_size, quant_type=code), 16 * start
    for decode in (lookup.decode_by_table, lookup.decode_4bit):
        out = np.empty(min(size, w.size - start), np.float32)
        decode(start, compiled.parts(q), out)
        assert out.tobytes() == q.dequantize()[start : start + out.size].tobytes()


@given(
    seeds, block_sizes, codes, st.booleans(), st.booleans(),
    st.just(1) | st.integers(1, 20), st.integers(1, 50),
    st.integers(1, 70) | st.sampled_from([576, 4112]), st.sampled_from([16, 32, 512]),
)  # fmt: skip
@example(0, 64, "nf4", False, False, 1, 3, 4112, 16)  # a row longer than what is decoded at a time
def test_products_by_tiles(seed, block_size, code, double, back, n, out, width, tile):
    """x Wᵀ and g W, whatever the tiles, blocks and rows end at; W is never whole.

    A row alone is multiplied with the codes.
    """
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((out, width), dtype=np.float32)
    q = nf4.quantize(w, block_size, double, code)
    x = rng.standard_normal((n, out if back else width), dtype=np.float32)
    m = q.dequantize().astype(np.float64)
    m = m if back else m.T
    sizes, read = [], weights_.read

    def read_rows(shape, parts, rows):
        sizes.append(rows.stop - rows.start)
        return read(shape, parts, rows)

    with patch.multiple(weights_, TILE=tile, read=read_rows):
        y = (weights_.tiled_matmul_backward if back else weights_.matmul)(x, q)
    # k products and k - 1 sums, in whatever order, each rounded once
    error = 2 * (len(m) + 1) * U32 * (np.abs(x) @ np.abs(m)) + 1e-30
    assert (np.abs(y - x @ m) <= error).all()
    assert sizes == [min(tile, out - i) for i in range(0, out, tile)] or (n == 1 and not back)


# ------------------------------------------------------- what is stored, and what is refused


@pytest.mark.parametrize("quantize", [nf4.quantize, compiled.quantize])
@pytest.mark.parametrize("block_size", [16, np.int64(64)])
def test_bits_per_parameter(quantize, block_size):
    """The offset is one float32 for the whole tensor; the block size is a number of Python."""
    n = 256 * block_size
    single, double = (quantize(np.ones(n), block_size, dq) for dq in (False, True))
    assert 8 * single.nbytes / n == 4 + 32 / block_size
    assert 8 * double.nbytes / n == 4 + 8 / block_size + 32 / (256 * block_size) + 32 / n
    assert nf4.quantize(np.arange(1, 4), np.int64(65536)).absmax == 3  # the largest block size


def test_loops_refuse_a_weight_with_too_few_parts():
    """They check no bounds, so they would read memory of others."""
    w, x = weights("normal", (275, 15)), np.ones(15, np.float32)
    one, two = (nf4.quantize(w, 16, double) for double in (False, True))

    def short(stored, name):
        return replace(stored, **{name: getattr(stored, name)[:-1]})

    nested = (short(two.stored_absmax, name) for name in ("codes", "nested_absmax"))
    for wrong in (
        short(one, "codes"), short(one, "stored_absmax"), replace(one, block_size=17),
        replace(one, codes=one.codes.astype(int)),
        *(replace(two, stored_absmax=stored) for stored in nested),
    ):  # fmt: skip
        for loop in (weights_.dense, lambda q: weights_.matvec(q, x)):
            with refused(r"weight of shape|block size of 17"):
                loop(wrong)


def test_a_weight_never_changes_and_is_equal_to_itself_alone():
    """Arrays have no single truth value, so a comparison of two weights would raise."""
    one, two = (nf4.quantize(np.ones(40), 16, double_quant=True) for _ in range(2))
    codebooks = nf4.Codebook.from_values(nf4.NF4), nf4.Codebook.from_values(nf4.NF4)
    for a, b in ((one, two), (one.stored_absmax, two.stored_absmax), codebooks):
        assert a == a and a != b
        with pytest.raises(FrozenInstanceError):
            setattr(a, next(iter(vars(a))), None)


# of loops that are not compiled
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("quantize", [nf4.quantize, compiled.quantize])
@pytest.mark.parametrize(
    "w, arguments, message",
    [
        *(
            (np.ones(128), {"block_size": size}, f"block size of {size} ")
            for size in (8, 48, 131072, 64.0)
        ),
        (np.ones(64), {"quant_type": "nf3"}, "'nf3'"),
        (np.append(np.ones(127), np.nan), {}, "NaN or an inf"),
        (np.full(64, 1e39), {}, "NaN or an inf"),  # in float32
        # the sum of the absmax overflows: they have no mean
        (np.full(512, 1e38), {"double_quant": True}, "too large for double quantization"),
    ],
)
def test_what_cannot_be_quantized_is_refused(quantize, w, arguments, message):
    with refused(message):
        quantize(w, **arguments)
