"""A base of two layers and twenty rows, and short runs with them."""

import json

import numpy as np

from lessons.helpers.pretraining import llama, random_params
from minilora import cli
from minilora.data.tokenizer import ByteTokenizer
from minilora.formats.pretrained import save_pretrained
from minilora.formats.safetensors_file import read_header
from minilora.model import Model

FEW_STEPS = "--iters 4 --batch-size 2 --save-every 2 --steps-per-eval 2 --learning-rate 0.01"


def write_base(folder, seed=0):
    """Write a random byte-level Llama of two layers into the new folder."""
    config = llama(16, 24, 2, 2, 1)
    model = Model(config, random_params(config, np.random.default_rng(seed)))
    save_pretrained(folder, model, ByteTokenizer())
    return folder


def write_rows(path, rows=None):
    """Write rows into a JSON Lines file; the default is twenty sums."""
    rows = rows or [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words):
    """Return the exit status of `minilora` with these arguments (a string is split at spaces)."""
    argv = [str(a) for word in words for a in (word.split() if isinstance(word, str) else [word])]
    return cli.main(argv)


def train(base, data, out, *more):
    return run("train --model", base, "--data", data, "--adapter-path", out, FEW_STEPS, *more)


def at(folder):
    return "--adapter-path", folder


def error_of(capsys, status):
    """Return the single line on standard error of a command that failed."""
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def files(folder):
    """{name: bytes} of everything below a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def metrics(folder):
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def history(path):
    """The bytes of the records in a checkpoint."""
    return read_header(path)["history"].read().tobytes()


def tensors(path):
    """{name: bytes} of the tensors of a file, without the history, which has timings."""
    found = {name: entry.read().tobytes() for name, entry in read_header(path).items()}
    found.pop("history", None)
    return found
