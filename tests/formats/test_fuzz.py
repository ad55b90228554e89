"""Every reader on seeded mutations of valid files returns a value or raises one InputError.

The message of the InputError must be one printable line. Any other exception, a warning, more than
10 seconds of processor time for one file, or more than a gigabyte of memory is a failure. Each run
draws some new mutations of every format, from --seed; `--long` draws ten thousand.
"""

import json
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
from models import usual_config
from mutations import mutated, pick
from toy_models import (
    CHAT,
    FACTS,
    FULL,
    GGUF_CONFIG,
    LLAMA3,
    OF_GEMMA,
    SLIDING,
    TRANSFORMERS_5,
    WINDOW,
    folder,
    gguf,
    gguf_metadata,
    gguf_tensors,
    in_shards,
    leaves,
    needs_hf,
    tiny,
    toy_model,
)

from minilora import forward, layers
from minilora.cli.arguments import parse
from minilora.config import ATTENTION, InputError, LoraConfig, TrainConfig
from minilora.data.encoding import encode
from minilora.data.rows import read_rows
from minilora.formats import hf_folder, hf_tokenizer
from minilora.formats.checkpoint import load_adapter, load_state, save_adapter, save_state
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.methods.registry import METHODS, get_peft_model
from minilora.methods.replaced import also_train
from minilora.model import Source
from minilora.quant.schemes import quantize
from minilora.training import Best, start
from minilora.tree import named_leaves

SECONDS, BYTES = 10, 2**30
MODEL = toy_model()


class TooLong(KeyboardInterrupt):
    """An exception that no reader catches."""


@contextmanager
def limits():
    """Bound the processor time of each read in the block, and the memory that the block may add."""

    def stop(number, frame):
        raise TooLong

    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    handler = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def fuzz(request, tries):
    """fuzz(paths, read, few): mutate one of the files and read, many times."""

    def run(paths, read, few=40):
        start = 10_000 * request.config.getoption("--seed")
        contents = {path: path.read_bytes() for path in paths}
        read()  # the valid files, and what is compiled only once
        with limits():
            for seed in range(start, start + tries(few, 10_000)):
                rng = np.random.default_rng([seed, *request.node.name.encode()])
                path = pick(rng, paths)
                path.write_bytes(mutated(rng, path, contents[path]))
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    read()
                except InputError as error:
                    assert str(error).isprintable() and len(str(error)) < 2000, seed
                except BaseException as error:  # a panic of the tokenizers library is no Exception
                    error.add_note(f"{path.name} of seed {seed}")
                    raise
                path.write_bytes(contents[path])

    return run


def use(path):
    """Load and use a model as a user does: text to ids, ids to logits, and back."""
    model, words = load(path)
    check_finite(model.base)
    rows = len(model.base["model"]["embed_tokens"]["weight"])
    ids = words.encode("hel 1 é\N{GRINNING FACE}")
    assert all(0 <= i < rows for i in (*model.config.eos_token_id, words.eos_token_id, *ids))
    words.decode(ids)
    if words.chat_template:
        words.encode(words.render(CHAT, add_generation_prompt=True))
    with np.errstate(all="ignore"):  # of weights that are random numbers
        tokens = [*ids, words.eos_token_id][:4]
        forward({}, model._replace(ops=layers), [tokens])


def check_finite(tree):
    """All numbers of the arrays must be finite."""
    for path, leaf in named_leaves(tree):
        assert not isinstance(leaf, np.ndarray) or np.isfinite(leaf).all(), path


FAMILIES = {  # of config.json
    "llama": {
        "attention_bias": True, "bos_token_id": 1, "rope_parameters": LLAMA3 | {"rope_theta": 5e5},
    },
    "gemma3_text": OF_GEMMA | TRANSFORMERS_5,
    "qwen3": WINDOW | {"max_window_layers": 1, "layer_types": [FULL, SLIDING]},
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_folders(fuzz, tmp_path, kind):
    """Of three families, with the tensors in two files."""
    path = folder(tmp_path, model_type=kind, **FAMILIES[kind])
    config = hf_folder.read_config(path)[0]
    in_shards(path, leaves(config, biased=ATTENTION if kind == "llama" else ()))
    (path / "generation_config.json").write_text('{"eos_token_id": [255, 254]}')
    fuzz(sorted(path.iterdir()), lambda: use(path))


def test_tokenizers(fuzz, tmp_path):
    needs_hf()
    save_pretrained(tmp_path, toy_model(GGUF_CONFIG), tiny())
    files = [tmp_path / name for name in hf_tokenizer.FILES if (tmp_path / name).is_file()]
    fuzz(files, lambda: use(tmp_path))


@pytest.mark.parametrize("scheme", ["nf4-dq", "int8"])
def test_quantized_folders(fuzz, tmp_path, scheme):
    save_quantized(tmp_path, quantize(MODEL, scheme))
    fuzz(sorted(tmp_path.iterdir()), lambda: use(tmp_path))


def test_gguf_files(fuzz, tmp_path):
    needs_hf()
    path = gguf(tmp_path / "m.gguf", gguf_metadata(), gguf_tensors(leaves(GGUF_CONFIG)))
    fuzz([path], lambda: use(path))


@pytest.mark.parametrize("method", METHODS)
def test_adapters(fuzz, tmp_path, method):
    config = usual_config(method)
    adapters, _ = get_peft_model(MODEL, config)
    if method == "lora":
        adapters = also_train(adapters, MODEL.base, ["norm", "bias", "head"])
    model = MODEL._replace(source=Source("tiny", "nf4", 64, "0f"))
    save_adapter(tmp_path, adapters, model, config)

    def read():
        adapters, loaded, _ = load_adapter(tmp_path, MODEL)
        check_finite(adapters)
        with np.errstate(all="ignore"):
            forward(adapters, loaded, [[1, 2]])

    fuzz(sorted(tmp_path.iterdir()), read, few=10)


def test_checkpoints(fuzz, tmp_path):
    adapters, _ = get_peft_model(MODEL, LoraConfig(r=2))
    state = start(adapters, TrainConfig())._replace(best=Best(2.0, 1, adapters))
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, state, FACTS)
    fuzz([path], lambda: load_state(path, adapters))


@pytest.mark.parametrize(
    "row", [{"text": "hello"}, {"prompt": "1+1=", "completion": "2"}, {"messages": CHAT}]
)
def test_rows(fuzz, tmp_path, row):
    path, words = tmp_path / "row.jsonl", tiny()
    path.write_text(json.dumps(row))
    fuzz([path], lambda: [encode(found, words) for found in read_rows(path)], few=15)


def test_settings(fuzz, tmp_path):
    path = tmp_path / "train_config.toml"
    path.write_text('model = "tiny"\niters = 9\nlearning_rate = 1e-3\ntarget_modules = ["q"]\n')
    fuzz([path], lambda: parse(["train", "-c", str(path)]))
