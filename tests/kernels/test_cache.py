"""Compiled code on the disk is used again only if no source of the kernels has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
from models import compiled_only

import minilora
from minilora import double_quant, nf4
from minilora.kernels import fused, loops

RUN = """
import numpy as np
from minilora.kernels import weights
from minilora.quant.low_precision import LowPrecision
one = weights.dense(LowPrecision("F16", np.full((1, 1), 0x3C00, np.uint16)))
print(*weights._read.stats.cache_hits.values(), *one[0])
"""


@compiled_only
def test_a_change_in_a_file_whose_code_another_one_compiles_is_compiled(tmp_path):
    source = Path(minilora.__file__).parent
    shutil.copytree(source, tmp_path / "minilora")  # with Python's bytecode, which saves time
    env = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run():
        return subprocess.run(
            [sys.executable, "-c", RUN], env=env, cwd=tmp_path, check=True, stdout=subprocess.PIPE
        ).stdout.split()

    assert run() == [b"1.0"]
    assert run() == [b"1", b"1.0"], "the same sources are not compiled again"
    path = tmp_path / "minilora" / "kernels" / "low_precision.py"
    path.write_text(path.read_text().replace("* power", "* power * 2"))
    assert run() == [b"2.0"]


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
