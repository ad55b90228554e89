"""The product whose sums stay in registers, against the same product in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minilora import kernels, panels
from minilora.panels import DEPTH, ROWS, RUN, WIDE, times
from minilora.registers import AVX512

EPS = 2.0**-24
seeds = st.integers(0, 2**32 - 1)
rows = st.integers(2, 5 * ROWS)
depths = st.integers(1, 70)
widths = st.integers(1, 3 * WIDE)


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    """Small matrices go by registers too; how many times they did."""
    calls = []
    monkeypatch.setattr(panels, "NARROW", 0)
    monkeypatch.setattr(panels, "FEW", 2)
    monkeypatch.setattr(panels, "share_rows", lambda *a, **k: calls.append(a) or kernel_of(*a, **k))
    kernel_of = kernels.share_rows
    return calls


def laid_out(rng, shape, layout):
    """A matrix of this shape in memory by rows, by columns, or (of x only) with gaps."""
    if layout == "columns":
        return rng.standard_normal(shape[::-1], dtype=np.float32).T
    if layout == "gaps":
        return rng.standard_normal((shape[0], 2 * shape[1] + 3), dtype=np.float32)[:, 1:-2:2]
    return rng.standard_normal(shape, dtype=np.float32)


def bound(x, m):
    """Of each sum: k products and k additions, fused to k roundings, and one that adds y.

    |fl(Σ) − Σ| ≤ (k + 1)·u·Σ|x||m| up to u²; NumPy's order of the sum has the same bound with 2k.
    """
    return 2 * (x.shape[1] + 1) * EPS * (np.abs(x).astype(float) @ np.abs(m).astype(float)) + 1e-30


layouts = st.sampled_from(["rows", "columns", "gaps"])


@given(seeds, rows, depths, widths, layouts, st.sampled_from(["rows", "columns"]), st.booleans())
@example(0, 2 * ROWS, DEPTH + 5, WIDE + 1, "rows", "rows", False)
@example(1, 2 * ROWS + 1, DEPTH + 5, WIDE - 1, "rows", "columns", True)
@example(2, 3 * ROWS, 2 * DEPTH, 2 * WIDE, "gaps", "columns", False)
def test_the_product(seed, n, k, width, of_x, of_m, add):
    rng = np.random.default_rng(seed)
    x, m = laid_out(rng, (n, k), of_x), laid_out(rng, (k, width), of_m)
    y = rng.standard_normal((n, width), dtype=np.float32) if add else None
    exact = x.astype(float) @ m.astype(float) + (y if add else 0)
    error = bound(x, m) + (2 * EPS * np.abs(y) if add else 0)
    result = times(x, m, y)
    assert result is y or not add
    assert (np.abs(result - exact) <= error).all()


def test_registers_are_used_where_there_are_some(however_small):
    times(np.ones((16, 3), np.float32), np.ones((3, 5), np.float32))
    assert len(however_small) == AVX512


@pytest.mark.skipif(not AVX512, reason="NumPy's own product promises no such thing")
@pytest.mark.parametrize("k", [RUN + 1, 3 * RUN, DEPTH + 2 * RUN + 5])
def test_sums_are_made_in_runs(k):
    """2²⁴ + 1 rounds to 2²⁴: one after the other, the ones are all lost; in runs, the first's are.

    The ones of every other run are summed among themselves, and their sum is even, or lost by one.
    """
    m = np.ones((k, 2), np.float32)
    m[0] = 2**24
    lost = RUN - 1 + k % RUN % 2
    assert (times(np.ones((8, k), np.float32), m) == 2**24 + k - 1 - lost).all()


@pytest.mark.skipif(not AVX512, reason="NumPy's own product promises no such thing")
@given(seeds, rows, depths, widths, st.booleans(), st.integers(0, 7))
def test_a_row_does_not_depend_on_the_rows_beside_it(seed, n, k, width, across, skipped):
    rng = np.random.default_rng(seed)
    x = laid_out(rng, (n + skipped, k), "rows")
    m = laid_out(rng, (k, width), "columns" if across else "rows")
    assert times(x, m)[skipped:].tobytes() == times(x[skipped:], m).tobytes()


@pytest.mark.parametrize("across", [False, True])
def test_nothing_beside_y_is_written(across):
    """Rows and columns around y, which a tile that reaches beyond it would overwrite."""
    around = np.full((3 * ROWS + 1, 2 * WIDE), 7, np.float32)
    y = around[1 : 2 * ROWS + 6, 3 : WIDE + 8]
    m = np.ones((5, WIDE + 5), np.float32)
    m = np.asfortranarray(m) if across else m
    times(np.ones((len(y), 5), np.float32), m, y)
    assert (y == 12).all()
    y[:] = 7
    assert (around == 7).all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_number_that_is_none_is_seen(number):
    """In the row or column that it stands in, and nowhere else, though tiles are filled up."""
    x, m = np.ones((19, 20), np.float32), np.ones((20, 50), np.float32)
    x[-1, 3] = number
    assert np.isfinite(times(x, m)[:-1]).all() and not np.isfinite(times(x, m)[-1]).any()
    x[-1, 3], m[4, -1] = 1, number
    assert np.isfinite(times(x, m)[:, :-1]).all() and not np.isfinite(times(x, m)[:, -1]).any()


def test_float64_few_rows_and_an_m_with_gaps_are_numpys(however_small):
    x, m = np.ones((16, 3)), np.ones((3, 5))
    assert times(x, m).dtype == np.float64
    few = np.ones((1, 3), np.float32)
    assert times(few, m.astype(np.float32)).dtype == np.float32
    parted = np.ones((3, 10), np.float32)[:, ::2]
    assert (times(x.astype(np.float32), parted) == 3).all()
    y = np.ones((16, 5))
    assert times(x, m, y) is y and (y == 4).all()
    some = x.astype(np.float32), m.astype(np.float32)
    assert times(*some, y) is y and (y == 7).all()
    assert not however_small


def test_a_processor_without_the_registers_has_numpys_product(tmp_path):
    script = (
        "import numpy as np; from minilora import panels\n"
        "x, m = np.random.default_rng(0).standard_normal((2, 300, 300), np.float32)\n"
        "assert panels.times(x, m).tobytes() == (x @ m).tobytes()\n"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
