"""Every method works with every command that reads an adapter."""

from itertools import product

import pytest

from minilora import cli
from minilora.methods.registry import METHODS

STORAGE = ("none", "int8", "nf4", "nf4-dq", "fp4")
IN_THE_CORE = ("lora", "bitfit", "norm", "head", "full")
UNMERGEABLE = [
    name
    for name, method in METHODS.items()
    if name not in IN_THE_CORE and "merge_projection" not in method.wraps
]
READING = (
    "evaluate --split valid --json", "generate --prompt Ada --max-tokens 3", "inspect --data notes",
)  # fmt: skip


def combinations():
    """All of methods × storage with --all-combinations; else every method, every storage."""
    every = [(m, s) for m, s in product(METHODS, STORAGE) if m != "full" or s == "none"]
    few = {(m, STORAGE[i % len(STORAGE)] if m != "full" else "none") for i, m in enumerate(METHODS)}
    return [
        pytest.param(*pair, marks=[] if pair in few else [pytest.mark.combinations])
        for pair in every
    ]


def run(words):
    return cli.main(words.split())


@pytest.mark.parametrize(("method", "storage"), combinations())
def test_a_methods_folder_is_read_by_every_command(method, storage, tmp_path, capsys):
    folder, merged = tmp_path / "run", tmp_path / "merged"
    words = f"--model micro --method {method} --quantize {storage} --adapter-path {folder}"
    assert run(f"train {words} --iters 1 --val-batches 1 --batch-size 2") == 0, capsys.readouterr()
    for command in READING:
        assert run(f"{command} --adapter-path {folder}") == 0, (command, capsys.readouterr())
    status = run(f"merge --adapter-path {folder} --out {merged}")
    if method in UNMERGEABLE:
        assert status == 2 and "cannot be merged" in capsys.readouterr().err
    else:
        assert status == 0, capsys.readouterr()
        assert run(f"evaluate --model {merged} --data notes --split valid") == 0
    rest = f"train {words.replace(str(folder), str(tmp_path / 'second'))} --init-adapter {folder}"
    assert run(f"{rest} --iters 1 --val-batches 1 --batch-size 2") == 0, capsys.readouterr()
