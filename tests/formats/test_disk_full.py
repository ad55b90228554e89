"""A disk that is full at any moment of a save gives a one-line error and keeps the old files."""

import resource
import subprocess
import sys

import pytest

# The largest file that a process may write simulates the space that is left on a disk: the
# system fails the write that would exceed it. (SIGXFSZ is ignored by Python, so EFBIG is raised.)
SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from minilora.config import InputError, TrainConfig
from minilora.formats.checkpoint import save_state
from minilora.training import start

path = Path(sys.argv[1])
rng, most = np.random.default_rng(1), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
state = start({"a": {"lora_A": rng.standard_normal((8, 1000)).astype("f4")}}, TrainConfig())

def save(limit, step):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    moments = state.moments | {"step": step}
    save_state(path, state._replace(moments=moments), {"settings": {}})

save(10**9, 2)
good = path.read_bytes()
size = len(good)
for limit in [0, 1, 4096, size // 2, *range(size - 9000, size, 1000), size - 1]:
    try:
        save(limit, 3)
        print("saved", limit)
    except InputError as error:
        print(error)
    assert path.read_bytes() == good and [p.name for p in path.parent.iterdir()] == [path.name]
save(size, 3)
assert path.read_bytes() != good
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on a file's size")
def test_no_limit_replaces_a_good_checkpoint_by_a_shorter_one(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    command = [sys.executable, "-c", SCRIPT, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    way = "check the permission and the free space on its disk, or choose another folder"
    line = f"{path} cannot be written: File too large: {way}"
    assert done.stdout.splitlines() == [line] * 14
