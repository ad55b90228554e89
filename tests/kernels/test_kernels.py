"""The helpers of the fused operations: an exponential, and rows on several threads."""

import math
import runpy
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
from models import bits, compiled_only
from numba.core import config
from test_fused import NAMES, traceable, value_and_gradients
from threadpoolctl import threadpool_info

from minilora import kernels
from minilora.kernels import bfloat16, loops, threads
from minilora.rounding import to_bfloat16

# ------------------------------------------------------------------------------ exponential


@loops.fast_jit
def _exp_of(lo, hi, x, y):
    for i in range(lo, hi):
        y[i] = loops.exp(x[i])


def exp_in_kernel(x):
    y = np.empty_like(x)
    _exp_of(0, x.size, x, y)
    return y


@compiled_only
def test_exp_is_within_two_units_of_the_last_place():
    x = np.float32(np.linspace(-87, 88, 500_001))
    # and both neighbours of every (n + ½)·ln 2, where the number of halvings changes
    edges = np.float32((np.arange(-125, 126) + 0.5) * math.log(2))
    x = np.concatenate([x, edges, *(np.nextafter(edges, np.float32(s)) for s in (-99, 99))])
    exact = np.exp(np.float64(x))
    last_place = np.float64(np.spacing(np.float32(exact)))
    assert (np.abs(exp_in_kernel(x) - exact) <= 2 * last_place).all()
    assert exp_in_kernel(np.float32([0])) == 1


@compiled_only
def test_exp_at_and_beyond_its_ends():
    # It is constant there: at e⁻⁸⁷ = 1.6e-38, negligible next to the 1 of a softmax's largest; and
    # at e⁸⁸, so that no infinity arises where SwiGLU divides by it.
    y = exp_in_kernel(np.float32([-np.inf, -1e30, -88, -87, 88, 89, 1e30, np.inf]))
    assert (y[:4] == y[3]).all() and 0 < y[3] < 2e-38
    assert (y[4:] == y[4]).all() and 1e38 < y[4] < np.inf
    assert np.isnan(exp_in_kernel(np.float32([np.nan] * 9))).all()
    assert (exp_in_kernel(np.float64([-800, 0, 1])) == np.exp([-800.0, 0, 1])).all()


# ---------------------------------------------------------------------------------- threads


@loops.jit
def _count(lo, hi, times):
    for i in range(lo, hi):
        times[i] += 1


def all_operations():
    """The bytes of every fused operation's value and gradients, and of products in bfloat16."""
    rng = np.random.default_rng(0)
    x, w, g = (np.float32(rng.standard_normal(s)) for s in ((25, 65), (321, 65), (25, 321)))
    matrix, out = to_bfloat16(w), np.empty_like(g)
    bfloat16.matmul(x, matrix, out)
    results = [bits(out), bits(bfloat16.matmul_transposed(g, matrix))]
    for name in NAMES:
        f, args = traceable(name)
        results += map(bits, value_and_gradients(f, args, np.ones_like(f(*args))))
    return results


def test_the_same_bits_on_any_number_of_threads_alone_and_from_several_threads_at_once(monkeypatch):
    # numba's `workqueue` layer aborts the whole process here; one thread's rows must not end in
    # another's either.
    alone = all_operations()
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)
    with ThreadPoolExecutor(4) as pool:
        for cpus in (2, 3, 5):
            monkeypatch.setattr(threads, "THREADS", cpus)
            assert all_operations() == alone
            at_once = [pool.submit(all_operations) for _ in range(8)]
            assert all(result.result() == alone for result in at_once)


def blas_threads():
    """The threads of NumPy's BLAS; other libraries that a test has loaded do not count."""
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_calls_on_cores_of_their_own(monkeypatch, cores):
    monkeypatch.setattr(threads, "THREADS", cores)
    monkeypatch.setattr(threads, "SERIAL_BELOW", 0)
    before = blas_threads()

    def call(i):
        barrier.wait(30)  # all of them run at the same time, or this raises
        times = np.zeros(100, np.int64)
        threads.parallel_rows(_count, (100, 1), times)  # in use: one thread, no deadlock
        inner = threads.parallel_map(lambda k: k, [1, 2])
        return threading.get_ident(), 10 * i, blas_threads(), times.tolist(), inner

    for n in range(cores + 2):
        together = 1 < n <= cores
        barrier = threading.Barrier(n if together else 1)
        found = threads.parallel_map(call, list(range(n)))
        assert len({thread for thread, *_ in found}) == (n if together else min(n, 1))
        blas = {1} if together else before
        assert [result for _, *result in found] == [
            [10 * i, blas, [1] * 100, [1, 2]] for i in range(n)
        ]
        assert blas_threads() == before


@pytest.mark.parametrize("value, expected", [("3", 3), ("9", 4), (" 2,8", 2), ("0", 4), ("two", 4)])
def test_omp_num_threads_bounds_the_threads(monkeypatch, value, expected):
    """Here, numba may use four threads."""
    monkeypatch.setattr(config, "NUMBA_NUM_THREADS", 4)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert runpy.run_path(threads.__file__)["THREADS"] == expected


def test_a_fork_starts_new_threads(monkeypatch):
    """A fork copies the pool, but not its threads: a call would wait for them forever."""
    monkeypatch.setattr(threads, "THREADS", 2)

    def other_thread():
        return threads.parallel_map(lambda _: threading.get_ident(), [0, 1])[1]

    parent = other_thread()
    assert other_thread() == parent
    monkeypatch.setattr(threads.os, "getpid", lambda: -1)
    assert other_thread() != parent


@pytest.mark.parametrize("disable_jit", [0, 1])
def test_a_feature_is_used_if_the_processor_has_it_and_loops_are_compiled(monkeypatch, disable_jit):
    monkeypatch.setitem(vars(config), "DISABLE_JIT", disable_jit)
    target = Mock()
    of_processor = target.target_context.codegen.return_value.magic_tuple
    of_processor.return_value = "", "", "+avx2,-avx512f,+avx512bf16"
    monkeypatch.setattr(loops, "cpu_target", target)
    found = [loops.has_feature(name) for name in ("avx2", "avx512f", "avx512", "avx512bf16")]
    assert found == [not disable_jit, False, False, not disable_jit]


@pytest.mark.parametrize("error", [ImportError, RuntimeError, ValueError, AttributeError])
def test_what_cannot_be_imported_is_replaced_by_the_reference(monkeypatch, error):
    class Broken:
        def find_spec(self, *_):
            raise error("no loops")

    monkeypatch.delenv("MINILORA_PLAIN", raising=False)
    monkeypatch.delitem(sys.modules, bfloat16.__name__)
    monkeypatch.delattr(kernels, "bfloat16")
    monkeypatch.setattr(sys, "meta_path", [Broken()])
    with pytest.warns(UserWarning, match=r"^no loops: minilora computes without numba, which"):
        assert kernels.load() is kernels.PLAIN


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_a_call_raises_comes_back_when_all_are_done(monkeypatch, bad):
    monkeypatch.setattr(threads, "THREADS", 3)
    done = []

    def call(i):
        if i == bad:
            raise KeyError(i)
        time.sleep(0.01)
        done.append(i)

    for _ in range(2):  # the helpers survive it
        done.clear()
        with pytest.raises(KeyError, match=str(bad)):
            threads.parallel_map(call, [0, 1, 2])
        assert sorted(done) == [i for i in range(3) if i != bad]


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc's allocator is set")
def test_freed_memory_is_used_again():
    """With glibc's own settings, each call takes all pages from the system again."""
    import resource  # Windows has none

    assert kernels.ops  # loads the kernels

    def new_pages():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def use_32_mib():
        return [np.ones(2**19, np.float32) for _ in range(16)]

    use_32_mib()
    before = new_pages()
    for _ in range(8):
        use_32_mib()
    pages_of_all_calls = 8 * 2**25 // resource.getpagesize()
    # other objects can lie in the freed memory, so some calls can need new pages
    assert new_pages() - before < pages_of_all_calls / 2
