"""Run the commands: load, compute, print."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from .. import generation
from ..config import require
from ..evaluation import memory, metrics
from ..formats import fetch as fetching
from ..formats.files import require_new
from ..formats.pretrained import load, save_pretrained
from ..formats.quantized_file import save_quantized
from ..methods.compose import generate_batch
from ..methods.merging import merge as merge_adapter
from ..methods.operations import operations
from ..quant.schemes import error_report, is_projection
from ..tree import named_leaves
from .examples import compare_with_run, exact_match_of, load_examples
from .loading import LoadedModel, load_with_adapter, run_settings, warn_of_another_base
from .run import fine_tune, physical_memory

train = fine_tune


def load_model(args, path, load=load):
    """Return the LoadedModel that the flags name; path: the folder of its adapter, or None."""
    require(not path or Path(path).is_dir(), f"{path} is not the folder of an adapter")
    settings = run_settings(path) if path else {}
    name = args.model or settings.get("model") or ("" if path else "tiny")
    way = "give --model and --quantize, or use train --resume if it is an interrupted run"
    require(name, f"{path} has no train_config.toml that names its base: {way}")
    scheme = args.quantize or settings.get("quantize", "none")
    block_size = args.block_size or settings.get("block_size", 64)
    if not path:
        return LoadedModel(*load(name, scheme, block_size, True))
    warn_of_another_base(path, settings, scheme, block_size)
    loaded = load_with_adapter(path, name, scheme, block_size, load)
    tokenizer = replace(loaded.tokenizer, chat_date=settings.get("chat_date"))
    return loaded._replace(tokenizer=tokenizer, settings=settings)


def generate(args):
    """Print the continuation of a prompt token by token, or those of a batch of prompts."""
    texts, paths = args.prompt, args.adapter_path or [None]
    paths = paths * len(texts) if len(paths) == 1 else paths
    one_each = f"{len(texts)} prompts need one --adapter-path or {len(texts)}, got {len(paths)}"
    require(len(paths) == len(texts), f"{one_each}: write `none` for a prompt without an adapter")
    once = cache(load)
    folders = [path for path in dict.fromkeys(paths) if path != "none"]
    models = {path: load_model(args, path, once) for path in folders}
    first = next(iter(models.values()), None) or load_model(args, None)
    chosen = [models.get(path, first._replace(adapters={})) for path in paths]
    model, n = first.model_config, args.max_tokens
    numbers = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * n
    much = f"--max-tokens {n}: keys and values of so many tokens do not fit into memory; lower it"
    require(4 * numbers * len(texts) < physical_memory(), much)
    prompts = [prompt_ids(args, loaded.tokenizer, text) for loaded, text in zip(chosen, texts)]
    rng, pairs = np.random.default_rng(args.seed), [(m.adapters, m.base) for m in chosen]
    sampling = {"max_tokens": n, "temp": args.temp, "top_p": args.top_p, "rng": rng}
    if len(texts) > 1:
        found = generate_batch(pairs, prompts, model, **sampling)
        for path, text, ids in zip(paths, texts, found):
            print(f"--- {text!r}" + (f", adapter {path}" if path else ""))
            print(first.tokenizer.decode(ids))
        return
    ids, printed, ops = [], "", operations(*pairs[0])
    for token in generation.generate(*pairs[0], prompts[0], model, ops, **sampling):
        ids.append(token)
        text = first.tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an incomplete character
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print(first.tokenizer.decode(ids)[len(printed) :])


def prompt_ids(args, tokenizer, text):
    """Return the token ids of a prompt, with the chat template unless --raw is given."""
    if tokenizer.has_chat_template and not args.raw:
        text = tokenizer.render([{"role": "user", "content": text}], add_generation_prompt=True)
    return tokenizer.encode(text)


def evaluate(args):
    """Print the scores on a split of the data, and which rows they are about."""
    loaded = load_model(args, args.adapter_path)
    data, facts = load_examples(args, loaded, args.split)
    facts |= compare_with_run(data, args.adapter_path, loaded)
    score = metrics.evaluate(loaded.adapters, loaded.base, data.examples, loaded.model_config)
    if args.json:
        print(json.dumps({**score, **facts}))
        return
    which = facts["data"]
    used = facts.get("held_out_by_the_run")
    if used:
        share = "which" if used == len(data.rows) else f"{used} of which"
        stopping = loaded.settings.get("early_stopping_patience")
        purposes = "its curve and for early stopping" if stopping else "its curve"
        which += f", {share} the run used for {purposes}"
    print(data.summary(f", {which}"))
    print(f"loss of {facts['loss_of']}, exact match of {exact_match_of(data.rows)}")
    for name, value in score.items():
        print(f"{name:<12}{value:>12,}" if name == "tokens" else f"{name:<12}{value:>12.6f}")


def merge(args):
    """Write W₀ + (α/r)·BA as a dense folder; W₀ is the base as --quantize stores it."""
    loaded = load_model(args, args.adapter_path)
    require(loaded.adapters, "there is no adapter to merge: give --adapter-path")
    require_new(args.out)
    dense = merge_adapter(loaded.adapters, loaded.base)
    save_pretrained(args.out, loaded.model_config, dense, loaded.tokenizer, args.dtype)
    print(f"merged model written to {args.out}")


def quantize(args):
    """Write the quantized base, and print the error of each weight."""
    args.quantize = args.quantize or "nf4-dq"
    require(args.quantize != "none", "--quantize none does not quantize: choose another scheme")
    require_new(args.out)
    name, block_size = args.model or "tiny", args.block_size or 64
    config, base, tokenizer = load(name)
    dense = all(isinstance(w, np.ndarray) for path, w in named_leaves(base) if is_projection(path))
    require(dense, f"{name} is quantized already: give the folder of the dense model")
    quantized = load(name, args.quantize, block_size)[1]
    save_quantized(args.out, config, quantized, tokenizer)
    print(f"{'weight':<52}{'RMSE':>10}{'relative':>10}{'bits':>8}")
    for path, rmse, relative, _, bits in error_report(base, quantized):
        print(f"{path:<52}{rmse:>10.6f}{relative:>10.4f}{bits:>8.3f}")
    print(f"{memory.bits_per_weight(quantized):.3f} bits per weight, written to {args.out}")


def inspect(args):
    """Print the tree, the trained parameters, the memory of a step, and the tokens of a row."""
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
