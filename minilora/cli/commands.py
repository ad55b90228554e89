"""Run the commands: load, compute, print."""

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from .. import generation, lora
from ..config import InputError
from ..evaluation import memory, metrics
from ..formats import fetch as fetching
from ..formats.checkpoint import CONFIG
from ..formats.files import require_new
from ..formats.pretrained import load, save_pretrained
from ..formats.quantized_file import save_quantized
from ..methods.compose import generate_batch
from ..methods.registry import operations
from ..quant.schemes import error_report, is_projection
from ..tree import named_leaves
from .examples import compare_with_run, exact_match_of, load_examples
from .loading import (
    LoadedModel,
    load_with_adapter,
    read_run,
    refuse_unused_block_size,
    warn,
    warn_of_another_base,
)
from .run import fine_tune

train = fine_tune


def load_model(args, path, load=load):
    """Return the LoadedModel that the flags name; path: the folder of its adapter, or None."""
    if path and not Path(path).is_dir():
        raise InputError(f"{path} is not the folder of an adapter")
    folder = Path(path or "")
    if path and (folder / "config.json").exists() and not (folder / CONFIG).exists():
        raise InputError(f"{path} is the folder of a model: give it to --model")
    run = read_run(path) if path else ({}, {})
    settings = run[0]
    name = args.model or settings.get("model") or ("" if path else "tiny")
    if not name:
        way = "give --model and --quantize, or use train --resume if it is an interrupted run"
        raise InputError(f"{path} has no train_config.toml that names its base: {way}")
    scheme = args.quantize or settings.get("quantize", "none")
    refuse_unused_block_size(args, scheme)
    block_size = args.block_size or settings.get("block_size", 64)
    if not path:
        loaded = LoadedModel(*load(name, scheme, block_size, True))
        return loaded._replace(name=name, scheme=scheme)
    warn_of_another_base(path, run, name, scheme, block_size)
    loaded = load_with_adapter(path, name, scheme, block_size, load)
    tokenizer = replace(loaded.tokenizer, chat_date=settings.get("chat_date"))
    return loaded._replace(tokenizer=tokenizer, run=run, name=name, scheme=scheme)


def generate(args):
    """Print the continuation of a prompt token by token, or those of a batch of prompts."""
    texts = [read_prompt() if text == "-" else text for text in args.prompt]
    paths = args.adapter_path or [None]
    paths = paths * len(texts) if len(paths) == 1 else paths
    if len(paths) != len(texts):
        one_each = f"{len(texts)} prompts need one --adapter-path or {len(texts)}, got {len(paths)}"
        raise InputError(f"{one_each}: write `none` for a prompt without an adapter")
    once = cache(load)
    folders = [path for path in dict.fromkeys(paths) if path != "none"]
    models = {path: load_model(args, path, once) for path in folders}
    first = next(iter(models.values()), None) or load_model(args, None)
    chosen = [models.get(path, first._replace(adapters={})) for path in paths]
    prompts = [prompt_ids(args, loaded.tokenizer, text) for loaded, text in zip(chosen, texts)]
    warn_of_length(args, first.model_config, prompts)
    if len(texts) == 1:
        print_answer(chosen[0], prompts[0], sampling(args))
        return
    if any(loaded.base is not first.base for loaded in chosen):
        raise InputError("the adapters have different bases: give --model and --quantize")
    adapters = [loaded.adapters for loaded in chosen]
    found = generate_batch(adapters, first.base, prompts, first.model_config, **sampling(args))
    for path, text, ids in zip(paths, texts, found):
        print(f"--- {text!r}" + (f", adapter {path}" if path else ""))
        print(first.tokenizer.decode(ids))


def chat(args):
    """Answer the lines of standard input; with a chat template, they are one conversation."""
    loaded = load_model(args, args.adapter_path)
    tokenizer = loaded.tokenizer
    has_template = tokenizer.has_chat_template
    messages = first_messages(args, tokenizer, has_template)
    if not has_template:
        text = "this model has no chat template: each line is a prompt of its own"
        print(text, file=sys.stderr)
    options = sampling(args)
    try:
        for line in typed_lines():
            messages.append({"role": "user", "content": line})
            prompt = encode_chat(tokenizer, messages) if has_template else tokenizer.encode(line)
            warn_of_length(args, loaded.model_config, [prompt])
            answer = print_answer(loaded, prompt, options)
            messages.append({"role": "assistant", "content": answer})
    except KeyboardInterrupt:
        print()


def typed_lines():
    """Yield the lines of standard input, up to its end or a line `exit`; skip empty lines."""
    with standard_input() as stdin:
        prompt = "> " if stdin.isatty() else ""
        while True:
            try:
                line = input(prompt)
            except EOFError:
                if prompt:
                    print()  # so that the shell's prompt begins a new line
                return
            if line.strip() == "exit":
                return
            if line.strip():
                yield line


def read_prompt():
    """Return the text of standard input, without a line break at its end."""
    with standard_input() as stdin:
        return stdin.read().removesuffix("\n")


@contextmanager
def standard_input():
    """Yield standard input; raise InputError if it is closed or has bytes that are not text."""
    if not sys.stdin:
        raise InputError("standard input is closed: redirect a file to it, or use a terminal")
    try:
        yield sys.stdin
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not {error.encoding}: convert the text") from error


def sampling(args):
    """Return the options of `generation.generate` that the flags choose."""
    if args.temp == 0 and 0 < args.top_p < 1:
        warn("--top-p has no effect with --temp 0, which always takes the likeliest token")
    rng = np.random.default_rng(args.seed)
    return {"max_tokens": args.max_tokens, "temp": args.temp, "top_p": args.top_p, "rng": rng}


def prompt_ids(args, tokenizer, text):
    """Return the token ids of a prompt, with the chat template unless --raw is given."""
    if not text:
        raise InputError("the prompt is empty: give --prompt some text")
    has_template = tokenizer.has_chat_template and not args.raw
    messages = first_messages(args, tokenizer, has_template)
    if not has_template:
        return tokenizer.encode(text)
    return encode_chat(tokenizer, [*messages, {"role": "user", "content": text}])


def encode_chat(tokenizer, messages):
    """Return the token ids of a conversation, up to the beginning of the next answer."""
    return tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True))


def first_messages(args, tokenizer, has_template):
    """Return the messages before those of the user: the one of --system-prompt, or none."""
    system = args.system_prompt
    if system is None:
        return []
    way = "put its text into the prompt"
    if not has_template:
        raise InputError(f"--system-prompt needs a chat template, and none is used here: {way}")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "a"}]
    shown = tokenizer.render(messages)
    if shown == tokenizer.render(messages[1:]) and system.strip() not in shown:
        raise InputError(f"the chat template of this model does not show --system-prompt: {way}")
    return messages[:1]


def warn_of_length(args, model_config, prompts):
    """Warn of a text that is longer than the model is made for."""
    n = args.max_tokens
    longest = max(map(len, prompts))
    known = model_config.max_position_embeddings
    if longest + n > known:
        long = f"the prompt ({longest} tokens) and --max-tokens {n}"
        warn(f"{long} exceed the {known} tokens of the model: the text after them can be nonsense")


def print_answer(loaded, prompt, options):
    """Print the continuation of a prompt token by token; return its text."""
    adapters, base, tokenizer = loaded.adapters, loaded.base, loaded.tokenizer
    ops = operations(adapters, base)
    ids = []
    printed = ""
    for token in generation.generate(adapters, base, prompt, loaded.model_config, ops, **options):
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an incomplete character
            print(text[len(printed) :], end="", flush=True)
            printed = text
    text = tokenizer.decode(ids)
    print(text[len(printed) :])
    return text


def evaluate(args):
    """Print the scores on a split of the data, and which rows they are about."""
    loaded = load_model(args, args.adapter_path)
    data, facts = load_examples(args, loaded, args.split)
    facts |= compare_with_run(data, loaded)
    facts |= {"model": loaded.name, "quantize": loaded.scheme}
    score = metrics.evaluate(loaded.adapters, loaded.base, data.examples, loaded.model_config)
    if args.json:
        print(json.dumps({**score, **facts}))
        return
    which = facts["data"]
    used = facts.get("held_out_by_the_run")
    if used:
        share = "which" if used == len(data.rows) else f"{used} of which"
        stopping = loaded.run[0].get("early_stopping_patience")
        purposes = "its curve and for early stopping" if stopping else "its curve"
        which += f", {share} the run used for {purposes}"
    print(data.summary(f", {which}"))
    print(f"loss of {facts['loss_of']}, exact match of {exact_match_of(data.rows)}")
    print(f"base: {loaded.name}, stored as {loaded.scheme}")
    for name, value in score.items():
        print(f"{name:<12}{value:>12,}" if name == "tokens" else f"{name:<12}{value:>12.6f}")


def merge(args):
    """Write W₀ + (α/r)·BA as a dense folder; W₀ is the base as --quantize stores it."""
    loaded = load_model(args, args.adapter_path)
    if not loaded.adapters:
        raise InputError("there is no adapter to merge: give --adapter-path")
    require_new(args.out)
    ops = operations(loaded.adapters, loaded.base)
    dense = lora.merge(loaded.adapters, loaded.base, ops)
    save_pretrained(args.out, loaded.model_config, dense, loaded.tokenizer, args.dtype)
    print(f"merged model written to {args.out}")


def quantize(args):
    """Write the quantized base, and print the error of each weight."""
    if args.quantize == "none":
        raise InputError("--quantize none does not quantize: choose another scheme")
    refuse_unused_block_size(args, args.quantize)
    require_new(args.out)
    name = args.model
    config, base, tokenizer = load(name)
    if not all(isinstance(w, np.ndarray) for path, w in named_leaves(base) if is_projection(path)):
        raise InputError(f"{name} is quantized already: give the folder of the dense model")
    quantized = load(name, args.quantize, args.block_size)[1]
    save_quantized(args.out, config, quantized, tokenizer)
    print(f"{'weight':<52}{'RMSE':>10}{'relative':>10}{'bits':>8}")
    for path, rmse, relative, bits in error_report(base, quantized):
        print(f"{path:<52}{rmse:>10.6f}{relative:>10.4f}{bits:>8.3f}")
    print(f"{memory.bits_per_weight(quantized):.3f} bits per weight, written to {args.out}")


def inspect(args):
    """Print the tree, the trained parameters, the memory of a step, and the tokens of a row."""
    if not args.data and (args.max_seq_length or args.columns or args.mask_prompt is not None):
        flags = "--max-seq-length, --columns and --mask-prompt"
        raise InputError(f"{flags} are for rows: give --data, too")
    loaded = load_model(args, args.adapter_path)
    for path, leaf in [*named_leaves(loaded.base), *named_leaves(loaded.adapters)]:
        if hasattr(leaf, "shape"):
            kind = getattr(leaf, "dtype", getattr(leaf, "kind", type(leaf).__name__))
            print(f"{path:<56}{'×'.join(map(str, leaf.shape)):>14}  {kind}")
    memory.print_trainable_parameters(loaded.adapters, loaded.base)
    parts = memory.memory_estimate(loaded.adapters, loaded.base, loaded.model_config, args.tokens)
    print(f"a step over {args.tokens} tokens:\n{memory.format_estimate(parts)}")
    if args.data:
        data, facts = load_examples(args, loaded, "train")
        print(data.summary(f", {facts['data']}"))
        example = data.examples[0]
        print("the first of these rows, one token per line; the loss counts the tokens with *:")
        for token, counts in zip(example.tokens, [0, *example.mask[1:]]):
            print(f"{'*' if counts else ' '} {token:>6}  {loaded.tokenizer.decode([token])!r}")


def fetch(args):
    """Download the real model and print its path."""
    print(fetching.fetch(args.model, args.source))
