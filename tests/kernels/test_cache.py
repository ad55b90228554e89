"""Compiled code on the disk is used again only if no source of the kernels has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from models import compiled_only

import minilora

RUN = """
import json, numpy as np
from minilora.kernels import attention, nf4, weights
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
