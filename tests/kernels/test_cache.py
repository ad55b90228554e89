"""Compiled code on the disk is used again only if no source of the kernels has changed."""

import hashlib
import sys
from pathlib import Path

import numba
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
    # no code is written over other code, whose index a second process may have just read
    assert len([*tmp_path.rglob("*.nbc")]) == 2


@compiled_only
def test_a_kernel_releases_the_lock_of_python():
    assert loops.jit(times_two).targetoptions["nogil"]


def test_every_module_that_a_kernel_can_contain_counts():
    kernels = [m for name, m in sys.modules.items() if name.startswith(f"{fused.__package__}.")]
    files = {Path(module.__file__) for module in (*kernels, nf4, double_quant)}
    assert len(kernels) > 10 and files <= {*loops.SOURCES}
