"""Every reader on seeded mutations of valid files returns a value or raises one InputError.

A reader may return what it read, or raise an InputError whose message is one printable line. Any
other exception, a warning, more than 10 seconds of processor time for one file, or more than a
gigabyte of memory is a failure. Each run draws forty new mutations of every format, from --seed;
`--long` draws ten thousand.
"""

import json
import math
import shutil
import signal
import traceback
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mutations
import numpy as np
import pytest
from toy_models import (
    CHAT,
    CONFIG,
    GGUF_CONFIG,
    folder,
    gguf,
    gguf_metadata,
    gguf_tensors,
    leaves,
    needs_hf,
    tiny,
)

from minilora import layers, model
from minilora.cli.arguments import parse, toml_settings
from minilora.cli.loading import make_adapter_config
from minilora.cli.run_folder import as_toml, check_same_run, metadata, read_metrics, resume
from minilora.config import ATTENTION, InputError, LoraConfig, TrainConfig
from minilora.data.rows import encode, read_usable
from minilora.data.tokenizer import ByteTokenizer
from minilora.evaluation.callbacks import init_state, should_stop
from minilora.formats import hf_folder, hf_tokenizer, safetensors_file
from minilora.formats.checkpoint import load_adapter, needs_dense_base, save_adapter, save_state
from minilora.formats.pretrained import load, save_pretrained
from minilora.formats.quantized_file import save_quantized
from minilora.methods import initializers
from minilora.methods.registry import METHODS, get_peft_model, operations
from minilora.methods.replaced import also_train
from minilora.quant.schemes import quantize
from minilora.tree import arrays, named_leaves, tree_map, unflatten

SECONDS, BYTES = 10, 2**30
METHOD_NAMES = (*METHODS, "pissa")


class TooLong(KeyboardInterrupt):
    """An exception that no reader catches."""


@contextmanager
def limits():
    """Bound the processor time of the block, and the memory that it may add, where POSIX can."""
    resource = pytest.importorskip("resource")

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


def fuzz(request, capfd, name, files, read):
    """Mutate one of the files, {path: mutation(rng, bytes)}, and read; many times.

    Fails with every different kind of failure, the seed of its first mutation and how many had it.
    """
    n = 10_000 if request.config.getoption("--long") else 40
    start = 10_000 * request.config.getoption("--seed")
    sound = {path: path.read_bytes() for path in files}
    read()  # the sound files, and what is compiled only once
    refused, failures = 0, {}
    paths = list(files)
    with warnings.catch_warnings(), limits():
        warnings.simplefilter("error", RuntimeWarning)
        for seed in range(start, start + n):
            rng = np.random.default_rng([seed, len(name), *name.encode()])
            path = mutations.pick(rng, paths)
            path.write_bytes(files[path](rng, sound[path]))
            try:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                read()
            except InputError as error:
                refused += 1
                if not str(error).isprintable() or len(str(error)) > 2000:
                    failures.setdefault("no printable line", []).append((seed, error))
            except BaseException as error:  # a panic of the tokenizers library is no Exception
                if type(error) is KeyboardInterrupt:
                    raise
                failures.setdefault(place_of(error), []).append((seed, error))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                path.write_bytes(sound[path])
    with capfd.disabled():
        if request.config.getoption("--long"):
            print(f"\n{name}: {n} mutations, {refused} refused, {n - refused} read")
    listed = [
        f"{len(found)} times, seed {found[0][0]}: {what}: {str(found[0][1])[:150]!r}"
        for what, found in failures.items()
    ]
    assert not failures, f"{name}\n" + "\n".join(listed)


def place_of(error):
    """Return the kind of an exception and the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"


def use(config, base, words):
    """Use a model as a user does: text to ids, ids to logits, and back."""
    for path, leaf in named_leaves(base):
        assert not isinstance(leaf, np.ndarray) or mutations.finite(leaf), path
    rows = base["model"]["embed_tokens"]["weight"].shape[0]
    assert all(0 <= i < rows for i in (*config.eos_token_id, words.eos_token_id))
    ids = words.encode("hel 1 é\N{GRINNING FACE}")
    assert all(0 <= i < rows for i in ids)
    words.decode(ids)
    if words.has_chat_template:
        words.encode(words.render(CHAT, add_generation_prompt=True))
    with np.errstate(all="ignore"):  # of weights that are random numbers
        model.forward({}, base, np.array([[*ids, words.eos_token_id][:4]]), config, layers)


def test_safetensors_files(request, capfd, tmp_path):
    path = tmp_path / "model.safetensors"
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    entries = {f: safetensors_file.entry(f, w) for f in safetensors_file.FLOATS}
    entries["U8"] = safetensors_file.entry("U8", w.astype(np.uint8))
    safetensors_file.write(path, entries, {"format": "pt"})

    def read():
        for entry in safetensors_file.read_header(path).values():
            assert entry.read().shape == entry.shape
            if entry.read_low_precision:
                entry.read_low_precision()

    fuzz(request, capfd, "safetensors", {path: mutations.mutated_safetensors}, read)


def test_folders(request, capfd, tmp_path):
    tensors = leaves(biased=ATTENTION)
    path = folder(tmp_path, tensors, attention_bias=True, bos_token_id=1, rope_parameters={
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    })  # fmt: skip
    (path / "generation_config.json").write_text('{"eos_token_id": [255, 254]}')
    changes = {
        path / "config.json": mutations.mutated_json,
        path / "generation_config.json": mutations.mutated_json,
        path / "model.safetensors": mutations.mutated_safetensors,
    }
    fuzz(request, capfd, "folder", changes, lambda: use(*load(path)))


FAMILIES = {  # fields of config.json
    "gemma3_text": {
        "hidden_act": "gelu_pytorch_tanh", "sliding_window": 3, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"], "attn_logit_softcapping": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "qwen3": {
        "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_configs_of_families(request, capfd, tmp_path, kind):
    fields = {"model_type": kind, **FAMILIES[kind]}
    path = folder(tmp_path, **fields)
    config, _ = hf_folder.read_config(path)
    (path / "model.safetensors").unlink()
    save_pretrained(tmp_path / "written", config, unflatten(leaves(config)))
    shutil.copy(tmp_path / "written" / "model.safetensors", path)
    changes = {path / "config.json": mutations.mutated_json}
    fuzz(request, capfd, f"config of {kind}", changes, lambda: use(*load(path)))


def test_shards(request, capfd, tmp_path):
    path, w = folder(tmp_path), leaves()
    (path / "model.safetensors").unlink()
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(w))}
    for shard in set(where.values()):
        entries = {n: safetensors_file.entry("F32", w[n]) for n in w if where[n] == shard}
        safetensors_file.write(path / shard, entries)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shard = path / "model-0.safetensors"
    changes = {index: mutations.mutated_json, shard: mutations.mutated_safetensors}
    fuzz(request, capfd, "shards", changes, lambda: use(*load(path)))


PARTS = {  # parts of a tokenizer.json that the toy tokenizers lack
    "normalizer": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}, {"type": "Lowercase"},
                   {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
                   {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": "x"}],
    "pre_tokenizer": [{"type": "FixedLength", "length": 0}, {"type": "Whitespace"},
                      {"type": "Metaspace", "replacement": "", "prepend_scheme": "first"},
                      {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated"},
                      {"type": "Punctuation"}, {"type": "CharDelimiterSplit", "delimiter": ""}],
    "post_processor": [
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}}],
         "pair": [], "special_tokens": {"a": {"id": "a", "ids": [n], "tokens": ["a"]}}}
        for n in (5, 99_999, 2**31)
    ] + [{"type": "BertProcessing", "sep": ["[SEP]", 7_000], "cls": ["[CLS]", 3]}],
    "decoder": [{"type": "ByteFallback"}, {"type": "Strip", "content": " ", "start": 9, "stop": 9},
                {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}],
    "model": [
        {"type": "WordLevel", "vocab": {"a": 0, "b": 9999}, "unk_token": "<unk>"},
        {"type": "WordLevel", "vocab": {"<|im_end|>": 2}, "unk_token": ""},
        {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": None},
        {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 0, "byte_fallback": True},
        {"type": "Unigram", "vocab": [], "unk_id": None},
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]",
         "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        {"type": "BPE", "vocab": {"a": 0, "<|im_end|>": 2}, "merges": [], "unk_token": "<unk>"},
    ],
    "added_tokens": [[{"id": i, "content": "<|im_end|>", "single_word": False, "lstrip": False,
                       "rstrip": False, "normalized": False, "special": True}]
                     for i in (2, 300, 10_000_000)] + [[]],
    "truncation": [{"direction": "Right", "max_length": 0, "strategy": "LongestFirst",
                    "stride": 5}],
}  # fmt: skip


def mutated_tokenizer(rng, text):
    """A tokenizer.json with a changed or exchanged part."""
    if rng.random() < 0.5:
        return mutations.mutated_json(rng, text)
    raw, part = json.loads(text), mutations.pick(rng, list(PARTS))
    raw[part] = mutations.pick(rng, PARTS[part])
    text = json.dumps(raw).encode()
    return mutations.mutated_json(rng, text) if rng.random() < 0.3 else text


def test_tokenizers(request, capfd, tmp_path):
    needs_hf()
    words, path = tiny(), tmp_path / "words"
    path.mkdir()
    hf_tokenizer.save(words, path)
    base = unflatten(leaves(GGUF_CONFIG))
    save_pretrained(tmp_path / "model", GGUF_CONFIG, base)
    shutil.copytree(path, tmp_path / "model", dirs_exist_ok=True)
    path = tmp_path / "model"
    changes = {
        path / "tokenizer.json": mutated_tokenizer,
        path / "tokenizer_config.json": mutations.mutated_json,
        path / "chat_template.jinja": mutations.random_bytes,
    }
    fuzz(request, capfd, "tokenizer", changes, lambda: use(*load(path)))


@pytest.mark.parametrize("scheme", ["nf4", "nf4-dq", "int8"])
def test_quantized_folders(request, capfd, tmp_path, scheme):
    path = tmp_path / "q"
    save_quantized(path, CONFIG, quantize(unflatten(leaves()), scheme))
    changes = {
        path / "config.json": mutations.mutated_json,
        path / "model.safetensors": mutations.mutated_safetensors,
    }
    fuzz(request, capfd, f"quantized folder, {scheme}", changes, lambda: use(*load(path)))


def test_gguf_files(request, capfd, tmp_path):
    needs_hf()
    metadata, tensors = gguf_metadata(), gguf_tensors(leaves(GGUF_CONFIG))
    path = gguf(tmp_path / "m.gguf", metadata, tensors)

    def change(rng, data):
        return mutations.mutated_gguf(rng, data, metadata, tensors)

    fuzz(request, capfd, "GGUF", {path: change}, lambda: use(*load(path)))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_adapters(request, capfd, tmp_path, method):
    base = unflatten(leaves())
    args = parse(["train", "--model", "none", "--data", "notes"])
    args.method = "lora" if method == "pissa" else method
    args.target_modules = ["q_proj", "down_proj"]
    args.init_lora_weights = "pissa" if method == "pissa" else None
    config = make_adapter_config(args)
    if method == "pissa":
        adapters, changed = initializers.init(base, config, np.random.default_rng(0))
    else:
        adapters, changed = get_peft_model(base, config)
    if method == "lora":
        adapters = also_train(adapters, base, ["norm", "bias", "head"])
    path = tmp_path / "adapter"
    save_adapter(path, adapters, changed, config, "base")

    def read():
        needs_dense_base(path)
        adapters, loaded, _ = load_adapter(path, base)
        for _, leaf in named_leaves(arrays(adapters)):
            assert mutations.finite(leaf)
        with np.errstate(all="ignore"):
            ops = operations(adapters, loaded, layers)
            model.forward(adapters, loaded, np.array([[1, 2]]), CONFIG, ops)

    changes = {
        path / "adapter_config.json": mutations.mutated_json,
        path / "adapter_model.safetensors": mutations.mutated_safetensors,
    }
    fuzz(request, capfd, f"adapter, {method}", changes, read)


def test_checkpoints(request, capfd, tmp_path):
    adapters, _ = get_peft_model(unflatten(leaves()), LoraConfig(r=2))
    args = parse(["train", "--data", "notes"])
    then = metadata(args) | {"threads": 2, "rows": [{"step": 1, "loss": 2.5}]}
    now = then | {"settings": {"iters": args.iters, "optimizer": "adamw"}, "digests": {}}
    state = init_state(adapters, TrainConfig()) | {"best": adapters}
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, adapters, state, then)
    shape = tree_map(np.shape, arrays(adapters))

    def read():
        parse(["train", "--resume", "--adapter-path", str(tmp_path)])
        check_same_run(tmp_path, now)
        found, state = resume(tmp_path, now, adapters)
        for tree in (found, state["m"], state["v"], state.get("best", found)):
            assert tree_map(np.shape, arrays(tree)) == shape
        should_stop(state, args.early_stopping_patience)
        state["best_loss"] < 1.0 and range(state["step"])

    fuzz(request, capfd, "checkpoint", {path: mutations.mutated_safetensors}, read)


def test_rows(request, capfd, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"text": "hello"},
        {"prompt": "1+1=", "completion": "2"},
        {"messages": [{"role": "system", "content": "é"}, *CHAT]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words, with_template = ByteTokenizer(), tiny()

    def read():
        for row in read_usable(path)[0]:
            encode(row, with_template)
            if "messages" not in row:
                encode(row, words)

    fuzz(request, capfd, "rows", {path: mutations.mutated_jsonl}, read)


def test_settings(request, capfd, tmp_path):
    path = tmp_path / "train_config.toml"
    path.write_text(
        as_toml(metadata(parse(["train"]))["settings"] | {"layers_to_transform": [0, 1]})
    )

    def read():
        args = parse(["train", "-c", str(path)])
        assert type(args.block_size) is int and type(args.model) is str
        settings = toml_settings(path)
        assert type(settings.get("block_size", 64)) is int
        assert all("\0" not in str(value) for value in settings.values())

    fuzz(request, capfd, "settings", {path: mutations.mutated_toml}, read)


def test_metrics(request, capfd, tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = {"step": 1, "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 9,
           "seconds": 0.1, "peak_rss_mb": 300.5}  # fmt: skip
    rows = [row, row | {"step": 2}, {"step": 2, "eval_loss": 1.5, "eval_exact_match": 0.25}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(last=math.inf):
        rows = read_metrics(tmp_path, last)
        [row["loss"] + 0.0 for row in rows if "loss" in row]
        [row["eval_loss"] + row["eval_exact_match"] for row in rows if "eval_loss" in row]

    fuzz(request, capfd, "metrics", {path: mutations.mutated_jsonl}, read)
    fuzz(request, capfd, "metrics", {path: mutations.mutated_jsonl}, partial(read, 1))
