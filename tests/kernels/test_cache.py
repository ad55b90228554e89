"""Compiled code on the disk is used again only if no source of the kernels has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
from models import compiled_only

import minilora
from minilora.kernels.loops import jit

RUN = """
import json, numpy as np
from minilora import nf4
from minilora.kernels import attention, weights
from minilora.quant.low_precision import LowPrecision
half = weights.dense(LowPrecision("F16", np.full((1, 1), 0x3C00, np.uint16)))
four = weights.dense(nf4.quantize(np.ones((1, 16)), 16))
scores = np.array([[0, -4]], np.float32)
attention._softmax(0, 1, scores, np.zeros((1, 2), np.int64), 1, 1)
hits = [sum(f.stats.cache_hits.values()) for f in (weights._read, attention._softmax)]
print(json.dumps([hits, half.item(0), four.item(0), bool(scores[0, 0] > 1 / 2)]))
"""
CHANGES = {  # a change of what each of these files computes, which another file compiles
    "low_precision.py": ("* power", "* power * 2"),
    "lookup.py": ("scale = absmax[", "scale = 2 * absmax["),
    "loops.py": ("LOWEST = np.float32(-87)", "LOWEST = np.float32(0)"),
}


@compiled_only
def test_a_change_in_any_file_of_the_kernels_is_compiled(tmp_path):
    source = Path(minilora.__file__).parent
    shutil.copytree(source, tmp_path / "minilora", ignore=shutil.ignore_patterns("__pycache__"))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run():
        output = subprocess.run(
            [sys.executable, "-c", RUN], env=env, cwd=tmp_path, check=True, stdout=subprocess.PIPE
        ).stdout
        return json.loads(output)

    assert run() == [[0, 0], 1.0, 1.0, True]
    assert run() == [[2, 1], 1.0, 1.0, True], "the same sources are not compiled again"
    for name, change in CHANGES.items():
        path = tmp_path / "minilora" / "kernels" / name
        path.write_text(path.read_text().replace(*change))
    assert run() == [[0, 0], 2.0, 2.0, False]


@compiled_only
def test_two_processes_that_compile_at_once_do_not_mix_their_code(monkeypatch, tmp_path):
    """For two types: the second writes its files between the index and the code of the first."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def size(x):
        return x.itemsize

    first, second, third = (jit(size) for _ in range(3))
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
