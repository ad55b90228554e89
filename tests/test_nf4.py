"""NF4, FP4 and double quantization: properties that hold for every array."""

import math
import os
import subprocess
import sys
import zlib
from bisect import bisect_left
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from arrays import KINDS, SHAPES, weights
from hypothesis import given
from hypothesis import strategies as st

from minilora import double_quant, nf4
from minilora.config import InputError
from minilora.kernels import lookup
from minilora.kernels import nf4 as compiled
from minilora.kernels import weights as weights_

EPS = 2.0**-24  # the largest relative error of one float32 operation

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)
shapes = st.sampled_from(SHAPES) | st.tuples(st.integers(1, 40), st.integers(1, 200))
block_sizes = st.sampled_from([16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
codes = st.sampled_from(["nf4", "fp4"])


def by_element(per_block, q):
    """(m,) -> q.shape: what belongs to its block, for each element."""
    return np.repeat(per_block, q.block_size)[: math.prod(q.shape)].reshape(q.shape)


def half_widest_gap(code):
    return np.diff(np.sort(nf4.CODEBOOKS[code].values)).max() / 2


# --- the codes ---


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
    np.testing.assert_allclose(nf4.NF4, values, rtol=0, atol=2**-23)
    assert half_widest_gap("nf4") == pytest.approx(0.1519036, abs=1e-7)


def test_fp4_has_two_zeros_and_a_smallest_value_that_no_e2m1_has():
    magnitudes = nf4.FP4[:8]
    np.testing.assert_array_equal(nf4.FP4[8:], -magnitudes)
    e2m1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / np.float32(6)
    assert set(np.sort(magnitudes).tolist()) ^ set(e2m1.tolist()) == {
        float(np.float32(1 / 192)),  # bitsandbytes has this
        float(np.float32(1 / 12)),  # in the place of this
    }


@given(st.binary(min_size=1))
def test_packing_is_reversible_and_puts_the_first_code_in_the_high_half(data):
    packed = np.frombuffer(data, np.uint8)
    codes = nf4.unpack_4bit(packed)
    assert codes.size == 2 * packed.size and codes.max() < 16
    assert codes[0] == packed[0] // 16 and codes[1] == packed[0] % 16
    np.testing.assert_array_equal(nf4.pack_4bit(codes), packed)


def test_golden_bytes():
    w = np.zeros(64, np.float32)
    w[:4] = 1, -1, 0.5, -0.25
    q = nf4.quantize(w)
    assert bytes(q.codes) == bytes([0xF0, 0xC4]) + bytes([0x77]) * 30
    assert q.absmax.tolist() == [1.0]
    for shape, packed, blocks in (((3, 5), 8, 1), ((7, 64), 224, 7), ((1, 1), 1, 1)):
        q = nf4.quantize(weights("normal", shape))
        assert (q.codes.size, q.absmax.size) == (packed, blocks)
        assert q.shape == q.dequantize().shape == shape


def test_a_tie_goes_to_the_lower_code():
    midpoints = nf4.CODEBOOKS["nf4"].midpoints
    w = np.zeros(16, np.float32)
    w[:15], w[15] = midpoints, 1
    assert nf4.unpack_4bit(nf4.quantize(w, 16).codes).tolist() == list(range(16))
    w[:15] = np.nextafter(midpoints, np.float32(2))
    assert nf4.unpack_4bit(nf4.quantize(w, 16).codes).tolist() == [*range(1, 16), 15]


def test_zeros():
    q = nf4.quantize(np.zeros(64 + 16, np.float32))
    assert set(nf4.unpack_4bit(q.codes)) == {7}
    # as in bitsandbytes, only a short last block never has an absmax of 0
    assert q.absmax.tolist() == [0, float(nf4.TINY)]
    assert not q.dequantize().any()


@given(seeds, kinds, st.integers(1, 100), codes)
def test_every_element_by_itself(seed, kind, n, code):
    """Blocks of 16, one element at a time: the nearest value, and the lower one at a tie."""
    w = weights(kind, (n,), seed)
    q = nf4.quantize(w, 16, quant_type=code)
    values = nf4.CODEBOOKS[code].values
    by_value = sorted(range(16), key=lambda i: values[i])  # of FP4's two zeros, +0 comes first
    edges = [(values[a] + values[b]) / np.float32(2) for a, b in pairwise(by_value)]
    got, back = nf4.unpack_4bit(q.codes), q.dequantize()
    for i, x in enumerate(w):
        block = w[i // 16 * 16 : i // 16 * 16 + 16]
        largest, tiny = max(abs(block)), np.float32(1e-38)
        if len(block) == 16:
            assert q.absmax[i // 16] == largest
            x = x * (np.float32(1) / max(largest, tiny))
        else:  # a short last block, as bitsandbytes has it
            assert q.absmax[i // 16] == max(largest, tiny)
            x = x / max(largest, tiny)
        assert got[i] == by_value[sum(bool(edge < x) for edge in edges)]
        assert back[i] == values[got[i]] * q.absmax[i // 16]
    assert n % 2 == 0 or got[n] == by_value[sum(bool(edge < 0) for edge in edges)]  # a zero


def test_the_tables_of_a_code():
    for name, code in nf4.CODEBOOKS.items():
        assert code.values is {"nf4": nf4.NF4, "fp4": nf4.FP4}[name]
        assert code.order.dtype == np.uint8 and sorted(code.order.tolist()) == [*range(16)]
        rising = code.values[code.order]
        assert (np.diff(rising) >= 0).all() and code.midpoints.dtype == np.float32
        halves = [(float(a) + float(b)) / 2 for a, b in pairwise(rising)]
        assert code.midpoints.tolist() == [float(np.float32(h)) for h in halves]
        pairs = compiled.BYTE_VALUES[name].view(np.float32).reshape(256, 2)
        for byte in range(256):
            assert pairs[byte].tolist() == [code.values[byte // 16], code.values[byte % 16]]
    assert nf4.CODEBOOKS["nf4"].order.tolist() == [*range(16)]
    # equal values keep the order of their codes: FP4's zeros are 0 and 8
    order = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3]
    assert nf4.CODEBOOKS["fp4"].order.tolist() == order


# --- single quantization ---


@given(seeds, kinds, shapes, block_sizes, codes)
def test_error_is_at_most_half_the_widest_gap_times_absmax(seed, kind, shape, block_size, code):
    w = weights(kind, shape, seed)
    q = nf4.quantize(w, block_size, quant_type=code)
    error = np.abs(q.dequantize().astype(np.float64) - w)
    # 1/absmax and its product with w are rounded before the search, value · absmax after it.
    bound = (half_widest_gap(code) + 3 * EPS) * by_element(q.absmax.astype(np.float64), q)
    assert (error <= bound).all()


@given(seeds, kinds, shapes, block_sizes, codes)
def test_quantizing_what_was_dequantized_changes_nothing(seed, kind, shape, block_size, code):
    q = nf4.quantize(weights(kind, shape, seed), block_size, quant_type=code)
    again = nf4.quantize(q.dequantize(), block_size, quant_type=code)
    np.testing.assert_array_equal(again.absmax, q.absmax)
    np.testing.assert_array_equal(again.dequantize(), q.dequantize())
    if code == "nf4":  # FP4 has two codes for zero
        np.testing.assert_array_equal(again.codes, q.codes)


@given(seeds, kinds, shapes, block_sizes, codes)
def test_the_largest_of_a_block_is_kept_exactly(seed, kind, shape, block_size, code):
    w = weights(kind, shape, seed)
    q = nf4.quantize(w, block_size, quant_type=code)
    largest = (np.abs(w) == by_element(q.absmax, q)) & (w != 0)
    np.testing.assert_array_equal(q.dequantize()[largest], w[largest])


@pytest.mark.parametrize(
    ("code", "block_size", "mean_error", "rmse"),
    [
        ("nf4", 32, 0.067746, None),
        ("nf4", 64, 0.072798, 0.0920),
        ("nf4", 128, 0.076831, None),
        ("nf4", 256, 0.080337, None),
        ("nf4", 4096, 0.092547, None),
        ("fp4", 64, None, 0.1220),
    ],
)
def test_expected_error_on_normal_weights(code, block_size, mean_error, rmse):
    w = weights("normal", (1 << 20,))
    error = np.abs(nf4.quantize(w, block_size, quant_type=code).dequantize() - w)
    blocks = error.reshape(-1, block_size).astype(np.float64)

    def agrees(of_blocks, expected):  # blocks are independent: five standard errors of their mean
        bound = 5 * of_blocks.std() / math.sqrt(of_blocks.size)
        return abs(of_blocks.mean() - expected) <= bound

    if mean_error:
        assert agrees(blocks.mean(axis=1), mean_error)
    if rmse:  # known to four digits
        assert np.sqrt(np.mean(blocks**2)) == pytest.approx(rmse, abs=1e-4)


def test_the_sixteen_bins_are_not_equally_filled():
    q = nf4.quantize(weights("normal", (1 << 20,)))
    share = np.bincount(nf4.unpack_4bit(q.codes), minlength=16) / (1 << 20)
    # one share's standard error is at most √(0.1 · 0.9 / 2²⁰) = 0.0003
    assert share.min() == pytest.approx(0.017, abs=0.001)
    assert share.max() == pytest.approx(0.093, abs=0.001)


# --- double quantization ---


def test_the_dynamic_map():
    assert double_quant.DYNAMIC_MAP.dtype == np.float32 and double_quant.DYNAMIC_MAP.size == 256
    assert (np.diff(double_quant.DYNAMIC_MAP) > 0).all()
    assert double_quant.DYNAMIC_MAP[[0, 126, 127, 128, 255]].tolist() == pytest.approx(
        [-0.99296874, -5.5e-7, 0, 5.5e-7, 1], rel=1e-6
    )


def test_the_dynamic_maps_bits():
    # of bitsandbytes.functional.create_dynamic_map(signed=True)
    assert zlib.crc32(double_quant.DYNAMIC_MAP.astype("<f4").tobytes()) == 0x1B137AEB


def test_the_code_of_every_step():
    values = double_quant.DYNAMIC_MAP
    midpoints = [float((a + b) / np.float32(2)) for a, b in pairwise(values)]
    n = 65535  # steps from -1 to 1, as float32 has them
    steps = [float(np.float32(2 * k) / np.float32(n) - np.float32(1)) for k in range(n + 1)]
    expected = [bisect_left(midpoints, x) for x in steps]
    # one block whose offset is zero and whose absmax is one: it stores the codes of steps
    for k in range(0, n + 1, 255):
        x = np.float32([1, *steps[k : k + 255]])
        second = double_quant.double_quantize(x, np.float32(0))
        assert second.nested_absmax.tolist() == [1] and second.codes[0] == 255
        # x is the nearest float32 to its step and comes back to it: the grid is 2⁻¹⁵, not 2⁻²⁴
        assert second.codes[1:].tolist() == expected[k : k + 255]


@given(seeds, kinds, st.integers(1, 600))
def test_double_quantization_one_absmax_at_a_time(seed, kind, m):
    absmax, one = np.abs(weights(kind, (m,), seed)), np.float32(1)
    second = double_quant.double_quantize(absmax)
    offset, back = double_quant.mean(absmax), double_quant.double_dequantize(second)
    assert second.offset == offset and type(second.offset) is np.float32
    assert second.codes.dtype == np.uint8 and second.codes.shape == (m,)
    assert second.nested_absmax.dtype == back.dtype == np.float32
    assert second.nested_absmax.shape == (-(-m // 256),)
    midpoints = [float((a + b) / np.float32(2)) for a, b in pairwise(double_quant.DYNAMIC_MAP)]
    for start in range(0, m, 256):
        rest = [a - offset for a in absmax[start : start + 256]]
        largest = max(abs(a) for a in rest)
        assert second.nested_absmax[start // 256] == largest
        for i, a in enumerate(rest, start):
            x = -one if largest == 0 else min(max(a * (one / largest), -one), one)
            step = int((x + one) * np.float32(0.5) * np.float32(65535) + np.float32(0.5))
            at = np.float32(2 * step) / np.float32(65535) - one
            assert second.codes[i] == bisect_left(midpoints, float(at))
            assert back[i] == double_quant.DYNAMIC_MAP[second.codes[i]] * largest + offset


def test_differences_too_small_to_divide_by_go_to_the_ends():
    absmax = np.float32([1e-39, 3e-39])  # 1/1e-39 is no float32
    assert double_quant.double_quantize(absmax).codes.tolist() == [0, 255]


def nesting_bound(absmax, second):
    """How far absmax may move: derived, per block.

    absmax - offset is divided by its own block's absmax, moved to a grid of 65,536 points from -1
    to 1 (half a step is 1/65535), and from there to the nearest of the map's values, of which the
    widest gap is 0.9/64, and -1 lies half such a gap below the lowest. In addition, float32
    rounds the difference, quotient and grid point, and on the way back the product and the sum.
    """
    scale = np.repeat(second.nested_absmax, double_quant.NESTED_BLOCK_SIZE)[: absmax.size].astype(
        np.float64
    )
    rounding = 2 * EPS * (np.abs(absmax) + abs(second.offset) + scale)
    return scale * (0.9 / 128 + 1 / 65535 + 8 * EPS) + rounding


@given(seeds, kinds, st.integers(1, 2000))
def test_double_quantization_moves_absmax_by_no_more_than_the_map_allows(seed, kind, m):
    absmax = np.abs(weights(kind, (m,), seed))
    second = double_quant.double_quantize(absmax)
    moved = np.abs(double_quant.double_dequantize(second).astype(np.float64) - absmax)
    assert (moved <= nesting_bound(absmax, second)).all()


@given(seeds, kinds, shapes, block_sizes, codes)
def test_error_of_double_quantization(seed, kind, shape, block_size, code):
    w = weights(kind, shape, seed)
    single, double = (nf4.quantize(w, block_size, dq, code) for dq in (False, True))
    np.testing.assert_array_equal(single.codes, double.codes)
    error = np.abs(double.dequantize().astype(np.float64) - w)
    # No value is larger than 1, so what the absmax moves by is all that is added.
    absmax = single.absmax.astype(np.float64)
    bound = absmax * (half_widest_gap(code) + 3 * EPS)
    bound += nesting_bound(absmax, double.stored_absmax) * (1 + EPS)
    assert (error <= by_element(bound, double)).all()


def test_what_does_not_hold_for_double_quantization():
    # One block is a million times the others: their absmax lies far below the offset, so that
    # what is stored is mostly the offset, and can even come out negative.
    w = np.full((300, 64), 1e-3, np.float32)
    w[0] *= 1e6
    q = nf4.quantize(w, double_quant=True)
    assert q.absmax[1] < 0
    assert np.abs(q.dequantize() - w)[1].max() > 100 * half_widest_gap("nf4") * 1e-3
    again = nf4.quantize(q.dequantize(), double_quant=True)
    assert (again.codes != q.codes).any()


def test_equal_absmax_are_all_offset():
    second = double_quant.double_quantize(np.full(300, 0.5, np.float32))  # sums of halves are exact
    assert second.nested_absmax.tolist() == [0, 0] and not second.codes.any()
    np.testing.assert_array_equal(
        double_quant.double_dequantize(second), np.full(300, second.offset)
    )


def test_one_code_in_a_thousand_is_not_the_nearest():
    absmax = np.abs(weights("normal", (1 << 18,))) + 3
    second = double_quant.double_quantize(absmax)
    x = (absmax - second.offset).reshape(-1, double_quant.NESTED_BLOCK_SIZE) / second.nested_absmax[
        :, None
    ]
    midpoints = (double_quant.DYNAMIC_MAP[:-1] + double_quant.DYNAMIC_MAP[1:]) / 2
    nearest = np.searchsorted(midpoints, x).ravel()
    assert 0.0005 < (nearest != second.codes).mean() < 0.003
    # but it is as near as a step of the grid allows, and one rounding of each side
    distance, least = (
        abs(double_quant.DYNAMIC_MAP[c] - x.ravel()) for c in (second.codes, nearest)
    )
    assert (distance <= least + 2 / 65535 + 4 * EPS).all()


@pytest.mark.parametrize(
    ("n", "expected"),  # torch.tensor(x).mean() of the first n terms of 1, 1/2, 1/3, …
    [
        (5, "0x1.d3a06cp-2"),
        (100, "0x1.a8f334p-5"),
        (1000, "0x1.ea915cp-8"),
        (32767, "0x1.5f3116p-12"),
    ],
)
def test_mean_adds_in_torchs_order(n, expected):
    x = (1 / np.arange(1, n + 1)).astype(np.float32)
    assert float(double_quant.mean(x)) == float.fromhex(expected)


def spread_out(n):
    """n numbers in [0, 1): the parts of multiples of the golden ratio after the point."""
    return (np.arange(1, n + 1) * 0.6180339887498949 % 1).astype(np.float32)


def test_mean_has_torchs_bits_whatever_is_left_over():
    # torch.tensor(spread_out(n)).mean(), on one thread, for each n
    means = np.array([double_quant.mean(spread_out(n)) for n in range(1, 601)], "<f4")
    assert zlib.crc32(means.tobytes()) == 0xF9861C79
    # eight numbers are one vector, added from left to right: 1 + 2⁻²⁴ is 1, seven times
    assert double_quant.mean(np.float32([1, *[2**-24] * 7])) == 1 / 8


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (8191, "0x1.0007b6p-1"), (8192, "0x1.000eaap-1"), (8193, "0x1.000f82p-1"),
        (32767, "0x1.fffe8cp-2"), (2**20 + 33, "0x1.ffffecp-2"),
    ],
)  # fmt: skip
def test_mean_adds_in_groups_of_groups(n, expected):
    mean = double_quant.mean(spread_out(n))
    assert type(mean) is np.float32 and float(mean) == float.fromhex(expected)


@pytest.mark.parametrize(
    ("rows", "group"), [(1, 16), (16, 16), (17, 16), (256, 16), (2**19, 16), (2**19 + 1, 32)]
)
def test_the_groups_grow_with_the_number_of_rows(rows, group):
    """16 rows at a time, and 32 if there are more than 2¹⁹, as in torch."""
    expected = x = spread_out(rows * 8).reshape(rows, 8)
    while len(expected) > group:
        padded = np.pad(expected, ((0, -len(expected) % group), (0, 0)))
        groups = padded.reshape(-1, group, 8)
        # one after the other in each group; zeros at the end change nothing
        expected = sum(groups[:, i] for i in range(group))
    assert double_quant._cascade(x).tolist() == sum(expected).tolist()


@given(seeds, st.integers(1, 5000))
def test_mean_is_the_mean(seed, n):
    x = np.abs(weights("normal", (n,), seed))
    # terms of one sign, and no sum is longer than 16 + 16 + 16 + n/32/4096 + 4 + 8 < 64 additions
    assert double_quant.mean(x) == pytest.approx(x.astype(np.float64).mean(), rel=64 * EPS)


# --- the loops and the text ---


def assert_same(q, plain):
    np.testing.assert_array_equal(q.codes, plain.codes)
    ours, theirs = compiled.absmax(q), plain.absmax
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))
    ours, theirs = compiled.dequantize(q), plain.dequantize()
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@given(seeds, kinds, shapes, block_sizes, codes, st.booleans())
def test_loops_give_the_bits_of_the_reference(seed, kind, shape, block_size, code, double_quant):
    w = weights(kind, shape, seed)
    arguments = block_size, double_quant, code
    assert_same(compiled.quantize(w, *arguments), nf4.quantize(w, *arguments))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double_quant", [False, True])
def test_loops_give_the_bits_of_the_reference_on_several_threads(kind, double_quant):
    w = weights(kind, (1001, 777))  # large enough for several threads, ends in a short block
    assert_same(compiled.quantize(w, 64, double_quant), nf4.quantize(w, 64, double_quant))


@given(seeds, kinds, shapes, st.booleans())
def test_compiled_dequantize_gives_the_bits_of_the_reference(seed, kind, shape, double_quant):
    q = nf4.quantize(weights(kind, shape, seed), double_quant=double_quant)
    np.testing.assert_array_equal(compiled.dequantize(q), q.dequantize())


@given(
    seeds,
    st.integers(1, 40),
    st.integers(1, 300) | st.sampled_from([576, 1536, 4112]),
    st.sampled_from([16, 64, 1024, 4096]),
    codes,
    st.booleans(),
)
def test_matvec_is_the_product(seed, rows, columns, block_size, code, double_quant):
    q = nf4.quantize(weights("normal", (rows, columns), seed), block_size, double_quant, code)
    x = weights("normal", (columns,), seed + 1)
    w = q.dequantize().astype(np.float64)
    # n products and n - 1 sums, in whatever order, each rounded once; the scale, a factor of a
    # block's sum there, was rounded into each element of w here
    bound = (columns + 2) * EPS * (np.abs(w) @ np.abs(x))
    assert (np.abs(compiled.matvec(q, x) - w @ x) <= bound).all()


# --- what is stored, and what is refused ---


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
def test_bits_per_parameter(block_size):
    n = double_quant.NESTED_BLOCK_SIZE * block_size
    single, double = (nf4.quantize(np.ones(n), block_size, dq) for dq in (False, True))
    assert 8 * single.nbytes / n == 4 + 32 / block_size
    # the offset is one float32 for the whole tensor
    assert 8 * double.nbytes / n == 4 + 8 / block_size + 32 / (256 * block_size) + 32 / n


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 63, 64 * 5 + 3])  # the last is in the short block
def test_a_weight_that_is_not_finite_is_refused(value, position):
    w = weights("normal", (64 * 5 + 20,))
    w[position] = value
    with pytest.raises(InputError, match="NaN or an infinity"):
        nf4.quantize(w)


@given(
    seeds, st.booleans(), st.sampled_from([16, 64, 4096]),
    st.sampled_from(["codes", "scales", "absmax", "dtype", "shape", "block_size"]),
    st.sampled_from([-1, 1, 300]),
)  # fmt: skip
def test_sizes_that_do_not_fit_each_other_are_refused(seed, double, block_size, what, by):
    """Compiled loops check no bounds, so a weight with wrong sizes cannot be created."""
    q = nf4.quantize(weights("normal", (40, 64 * 33), seed), block_size, double)
    codes, scales, shape = q.codes, q.stored_absmax, q.shape

    def resized(x):
        return np.resize(x, max(0, x.size + by))

    if what == "codes":
        codes = resized(codes)
    elif what == "dtype":
        codes = codes.astype(np.int64)
    elif what == "shape":
        shape = (shape[0], shape[1] + 2 * by)
    elif what == "block_size":
        block_size = {16: 32, 64: 17, 4096: 2**63}[block_size]
    elif not double:
        scales = resized(scales)
    elif what == "scales":
        scales = replace(scales, codes=resized(scales.codes))
    else:
        scales = replace(scales, nested_absmax=resized(scales.nested_absmax))
    with pytest.raises(InputError):
        nf4.Quantized(codes, scales, shape, block_size, "nf4")


@pytest.mark.parametrize("double", [False, True])
def test_every_part_of_a_weight_is_checked(double):
    q = nf4.quantize(weights("normal", (257, 16)), 16, double)
    parts = {"codes": q.codes, "scales": q.stored_absmax}
    if double:
        assert q.stored_absmax.codes.shape == (257,) and q.stored_absmax.nested_absmax.shape == (2,)
        whole = q.stored_absmax
        parts = {"codes": q.codes, "absmax codes": whole.codes}
        parts["absmax nested_absmax"] = whole.nested_absmax
    for name, part in parts.items():
        one_more = np.append(part, part[:1])
        for bad in (
            part[:-1], one_more, part[None], part.astype(np.float64), part.astype(np.int8),
            np.repeat(part, 2)[::2],
        ):  # fmt: skip
            codes, scales = (bad, q.stored_absmax) if name == "codes" else (q.codes, bad)
            if name.startswith("absmax "):
                scales = replace(whole, **{name.split()[1]: bad})
            with pytest.raises(InputError, match=r"a 4-bit weight of shape \(257, 16\)"):
                nf4.Quantized(codes, scales, (257, 16), 16, "nf4")
    assert nf4.Quantized(q.codes, q.stored_absmax, (257, 16), 16, "fp4").shape == (257, 16)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 31, 33, 200])
@pytest.mark.parametrize("double", [False, True])
def test_a_weight_of_any_length_has_the_parts_that_it_needs(n, double):
    q = nf4.quantize(np.ones(n), 16, double)
    assert q.codes.size == -(-n // 2) and q.absmax.size == -(-n // 16)
    assert q.nbytes == q.codes.size + (q.absmax.size + 4 + 4 if double else 4 * q.absmax.size)
    again = nf4.Quantized(q.codes, q.stored_absmax, (n,), 16, "nf4")
    np.testing.assert_array_equal(again.dequantize(), np.ones(n, np.float32))


def test_a_weight_never_changes_and_is_equal_to_itself_alone():
    """Arrays have no single truth value, so a comparison of two weights would raise."""
    one, two = (nf4.quantize(np.ones(40), 16, double_quant=True) for _ in range(2))
    codes = nf4.Codebook.from_values(nf4.NF4), nf4.Codebook.from_values(nf4.NF4)
    for a, b in ((one, two), (one.stored_absmax, two.stored_absmax), codes):
        assert a == a and a != b and len({a, b}) == 2
        with pytest.raises(FrozenInstanceError):
            setattr(a, next(iter(vars(a))), None)


@pytest.mark.parametrize("block_size", [2**k for k in range(4, 17)])
def test_every_power_of_two_from_16_to_65536_is_a_block_size(block_size):
    q = nf4.quantize(np.arange(1, 4), block_size)
    assert q.block_size == block_size and q.absmax.tolist() == [3]


@pytest.mark.parametrize("block_size", [0, -64, 1, 8, 15, 17, 48, 65, 65535, 65537, 131072])
def test_a_block_size_that_is_no_power_of_two_from_16_is_refused(block_size):
    with pytest.raises(InputError, match=f"block size of {block_size} "):
        nf4.quantize(np.ones(128), block_size)


def test_absmax_whose_sum_overflows_have_no_mean_to_be_nested_around():
    w = np.full((8, 64), 1e38, np.float32)
    assert nf4.quantize(w).dequantize().max() == np.float32(1e38)
    with pytest.raises(InputError, match="too large for double quantization"):
        nf4.quantize(w, double_quant=True)


def test_an_unknown_code_is_refused():
    with pytest.raises(InputError, match="'nf3'"):
        nf4.quantize(np.ones(64), quant_type="nf3")


some_blocks = st.sampled_from([16, 64, 256, 4096])


@given(seeds, some_blocks, codes, st.integers(0, 4400), st.integers(1, 5000))
def test_any_part_of_a_tensor(seed, block_size, code, start, size):
    """By the table, and, from a multiple of sixteen on, by the instruction if there is one."""
    w = np.random.default_rng(seed).standard_normal(9000, np.float32)
    q, start = nf4.quantize(w, block_size, quant_type=code), 2 * start
    for decode in (lookup.decode_by_table, lookup.decode):
        out = np.empty(min(size, w.size - start), np.float32)
        decode(start, *compiled.parts(q), out)
        assert out.tobytes() == q.dequantize()[start : start + out.size].tobytes()


def test_a_processor_without_the_instruction_gives_the_same_bits(tmp_path):
    """Compiled for the most basic processor of this kind, the loops do not use the instruction."""
    script = (
        "import numpy as np\n"
        "from minilora.kernels import lookup, nf4\n"
        "w = np.random.default_rng(0).standard_normal((5, 96), np.float32); q = nf4.quantize(w)\n"
        "assert lookup.decode is lookup.decode_by_table\n"
        "assert nf4.dequantize(q).tobytes() == q.dequantize().tobytes()\n"
        "w, x = q.dequantize().astype(np.float64), w[0]\n"  # the bound: test_matvec_is_the_product
        "assert (abs(nf4.matvec(q, x) - w @ x) <= 98 * 2.0**-24 * (abs(w) @ abs(x))).all()\n"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


@given(
    seeds, some_blocks, codes, st.booleans(), st.booleans(),
    st.integers(1, 20), st.integers(1, 50), st.integers(1, 70), st.sampled_from([2, 6, 512]),
)  # fmt: skip
def test_products_by_tiles(seed, block_size, code, double, back, n, out, width, tile):
    """x Wᵀ and g W, whatever the tiles, blocks and rows end at."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((out, width), dtype=np.float32)
    q = nf4.quantize(w, block_size, double, code)
    x = rng.standard_normal((n, out if back else width), dtype=np.float32)
    m = q.dequantize().astype(np.float64)
    m = m if back else m.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_.tiles, "__defaults__", (tile,))
        y = (weights_.tiled_matmul_backward if back else weights_.matmul)(x, q)
    # k products and k - 1 sums, in whatever order, each rounded once
    error = 2 * (len(m) + 1) * EPS * (np.abs(x) @ np.abs(m)) + 1e-30
    assert (np.abs(y - x @ m) <= error).all()


def test_products_of_many_rows_never_hold_the_dense_weight(monkeypatch):
    q = nf4.quantize(np.random.default_rng(0).standard_normal((1500, 128), np.float32))
    x = np.random.default_rng(1).standard_normal((2, 40, 128), np.float32)
    dense = q.dequantize().astype(np.float64)
    read, sizes = compiled.read_rows, []
    monkeypatch.setattr(
        compiled, "read_rows", lambda q, i, out: sizes.append(len(out)) or read(q, i, out)
    )
    y = weights_.matmul(x, q)
    error = 2 * 1501 * EPS * (np.abs(x) @ np.abs(dense).T)
    assert y.shape == (2, 40, 1500) and (np.abs(y - x @ dense.T) <= error).all()
    error = 2 * 1501 * EPS * (np.abs(y) @ np.abs(dense))
    assert (np.abs(weights_.tiled_matmul_backward(y, q) - y @ dense) <= error).all()
    assert sizes == [weights_.TILE, 1500 - weights_.TILE] * 2
