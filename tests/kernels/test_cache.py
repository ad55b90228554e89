"""Compiled code on the disk is used again only if no source of the kernels has changed."""

import hashlib
import sys
from pathlib import Path

import numba
import numpy as np
from models import compiled_only

from minilora import double_quant, nf4
from minilora.kernels import fused, loops


def times_two(x):
    return 2 * x


def is_read():
    """Tell whether a new dispatcher, as in a new process, reads its code from the disk."""
    kernel = loops.jit(times_two)
    assert kernel(1.5) == 3
    return bool(kernel.stats.cache_hits)


@compiled_only
def test_code_is_read_from_the_disk_if_all_sources_are_as_they_were(monkeypatch, tmp_path):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert [is_read(), is_read()] == [False, True]
    contents = b"".join(path.read_bytes() for path in loops.SOURCES)
    assert loops.CONTENTS.digest() == hashlib.sha256(contents).digest()
    changed = contents.replace(b"* power", b"* power * 2")
    monkeypatch.setattr(loops, "CONTENTS", hashlib.sha256(changed))
    assert [is_read(), is_read()] == [False, True]


@compiled_only
def test_a_kernel_releases_the_lock_of_python():
    assert loops.jit(times_two).targetoptions["nogil"]


def test_every_module_that_a_kernel_can_contain_counts():
    kernels = [m for name, m in sys.modules.items() if name.startswith(f"{fused.__package__}.")]
    files = {Path(module.__file__) for module in (*kernels, nf4, double_quant)}
    assert len(kernels) > 10 and files <= {*loops.SOURCES}


@compiled_only
def test_two_processes_that_compile_at_once_do_not_mix_their_code(monkeypatch, tmp_path):
    """For two types: the second writes its files between the index and the code of the first."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def size(x):
        return x.itemsize

    first, second, third = (loops.jit(size) for _ in range(3))
    file = first._cache._cache_file
    write = file._save_data
    monkeypatch.setattr(second._cache._cache_file, "_load_index", dict)

    def late(name, code):
        assert second(np.zeros(1)) == 8
        write(name, code)

    monkeypatch.setattr(file, "_save_data", late)
    assert first(np.zeros(1, np.float32)) == 4
    types = (numba.typeof(np.zeros(1)),)
    assert third._cache.load_overload(types, third.targetctx).signature.args == types
