"""A base of two layers and twenty rows, and short runs with them."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
from models import moved, untimed
from outcomes import arguments, printed, run
from toy_models import CONFIG, tiny, toy_model

from minilora import LoraConfig, cli, get_peft_model, load, save_adapter, save_pretrained
from minilora.cli.arguments import parse
from minilora.data.tokenizer import ByteTokenizer
from minilora.formats.checkpoint import read_metadata
from minilora.formats.safetensors_file import read_header
from minilora.lessons.helpers.pretraining import llama, random_params
from minilora.model import Model

FEW_STEPS = "--iters 4 --batch-size 2 --save-every 2 --steps-per-eval 2 --learning-rate 0.01"


def write_base(folder, seed=0):
    """Write a random byte-level Llama of two layers into the new folder."""
    config = llama(16, 24, 2, 2, 1)
    model = Model(config, random_params(config, np.random.default_rng(seed)))
    save_pretrained(folder, model, ByteTokenizer())
    return folder


def write_chat_base(folder, template):
    """Write a random Llama with a BPE tokenizer and this chat template into the new folder."""
    config = replace(CONFIG, vocab_size=261, eos_token_id=(2,))
    tokenizer = replace(tiny(), chat_template=template)
    save_pretrained(folder, toy_model(config), tokenizer)
    return folder


def sums(numbers):
    """Return the row `n+1=` of each number n."""
    return [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in numbers]


def write_rows(path, rows=None):
    """Write rows into a JSON Lines file; the default is twenty sums."""
    rows = rows or sums(range(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def exit_status(*words):
    """Return the exit status of `minilora` with these arguments."""
    return cli.main(arguments(words))


def parsed(*words):
    """Return the settings that a command has with these arguments."""
    return parse(arguments(words))


def training(base, data, out, *more, steps=FEW_STEPS):
    """Return the arguments of a short `train`; the flags in `more` replace the others."""
    given = arguments(more)
    start = arguments(["--model", base, "--data", data, "--adapter-path", out, steps])
    pairs = zip(start[::2], start[1::2])
    kept = [word for pair in pairs if pair[0] not in given for word in pair]
    return ["train", *kept, *given]


def train(*args, status=0, **options):
    """Run a short `train`, as `run` does; for the arguments see `training`."""
    return printed(training(*args, **options), status)


def resume(folder, *words, status=0):
    """Continue the run in this folder, as `run` does."""
    return run("train --resume", *words, *at(folder), status=status)


def settings_of(folder):
    """Return the settings of the run in this folder."""
    return tomllib.loads(Path(folder, "train_config.toml").read_text())


def changed(adapters):
    """Return adapters that change the outputs, as training leaves them."""
    return moved(adapters, lambda w: w + np.float32(0.1))


def save_changed(folder, model, config):
    """Write an adapter that changes the outputs into the folder, as a Python program does."""
    adapters, model = get_peft_model(model, config)
    save_adapter(folder, changed(adapters), model, config)


def write_adapter(folder, base, **fields):
    """Write an adapter of LoRA that changes the outputs into the folder; return the folder."""
    save_changed(folder, load(base).model, LoraConfig(**fields))
    return folder


def at(folder):
    return "--adapter-path", folder


def metrics(folder):
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


LEFT_BY_A_KILL = (".lock", ".tmp")


def contents(folder):
    """Return {file: something to compare} of the folder of a run, without timings."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if name == "checkpoint.safetensors":
            numbers, facts = read_metadata(path)
            facts.pop("metrics_sha256")  # of records with timings
            rows = untimed(map(json.loads, history(path).splitlines()))
            found[name] = tensors(path), numbers, facts, rows
            assert folder.name == "run" or rows == untimed(metrics(folder))
        elif name == "metrics.jsonl":
            found[name] = untimed(metrics(folder))
        elif not path.is_dir() and not name.endswith(LEFT_BY_A_KILL):
            found[name] = path.read_bytes()
    return found


def history(path):
    """The bytes of the records in a checkpoint."""
    return read_header(path)["history"].read().tobytes()


def tensors(path):
    """{name: bytes} of the tensors of a file, without the history, which has timings."""
    found = {name: entry.read().tobytes() for name, entry in read_header(path).items()}
    found.pop("history", None)
    return found
