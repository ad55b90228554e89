"""A disk that is full at any moment of a save: an error in one line, and the old files whole."""

import resource
import subprocess
import sys

import pytest

# The largest file that a process may write stands in for the space that is left on a disk: the
# system fails the write that would exceed it. (SIGXFSZ is ignored by Python, so EFBIG is raised.)
SCRIPT = """
import resource, sys
import numpy as np
from minilora.config import InputError
from minilora.formats.checkpoint import load_state, save_state

path, limit = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(1)
tree = {"a": {"lora_A": rng.standard_normal((8, 1000)).astype("f4")}}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_state(path, tree, {"m": tree, "v": tree, "step": 2}, {"settings": {}})
    print("saved")
except InputError as error:
    print(error)
"""


def save(path, limit):
    command = [sys.executable, "-c", SCRIPT, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on a file's size")
def test_no_limit_replaces_a_good_checkpoint_by_a_shorter_one(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    assert save(path, 10**9) == "saved"
    good = path.read_bytes()
    edges = [0, 1, 4096, len(good) // 2, *range(len(good) - 9000, len(good), 1000), len(good) - 1]
    for limit in edges:
        assert save(path, limit) == f"{path} cannot be written: File too large", limit
        assert path.read_bytes() == good
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert save(path, len(good)) == "saved"
