"""What each command of the command line does: open, call, print."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import generation
from ..config import TrainConfig, require
from ..data.rows import encode_rows, load_rows, read_rows
from ..evaluation.memory import (
    bits_per_weight,
    format_estimate,
    memory_estimate,
    print_trainable_parameters,
)  # fmt: skip
from ..evaluation.metrics import evaluate as scores
from ..formats import fetch as fetching
from ..formats.files import require_new
from ..formats.pretrained import load, save_pretrained
from ..formats.quantized_file import save_quantized
from ..methods.merging import merge as merge_adapter
from ..methods.operations import operations
from ..quant.schemes import error_report
from ..tree import named_leaves
from .loading import LoadedModel, load_with_adapter, run_settings, warn, warn_of_another_base
from .run import fine_tune, physical_memory

train = fine_tune


def load_model(args):
    """The Start that --model, --quantize and --adapter-path name.

    A run's folder knows its base and how that was stored; a bare PEFT folder does not, so there
    --model has to be given.
    """
    path = getattr(args, "adapter_path", None)
    settings = run_settings(path) if path else {}
    name = args.model or settings.get("model") or (None if path else "tiny")
    way = "give --model, or go on with train --resume if a run was stopped there"
    require(name, f"{path} does not say which base it belongs to: {way}")
    scheme = args.quantize or settings.get("quantize", "none")
    block_size = args.block_size or settings.get("block_size", 64)
    if not path:
        return LoadedModel(*load(name, scheme, block_size, low_precision=True))
    warn_of_another_base(path, settings, scheme, block_size)
    start = load_with_adapter(path, name, scheme, block_size)
    tokenizer = replace(start.tokenizer, chat_date=settings.get("chat_date"))
    return start._replace(tokenizer=tokenizer, settings=settings)


def load_examples(args, loaded, split):
    """(examples, a description of them): every row of the file that --data names, else a split.

    Without --data it is a split of the data that the adapter was trained on.
    """
    trained_on = loaded.settings.get("data")
    name = args.data or trained_on or "questions"
    if args.data and Path(args.data).is_file():
        rows, described = read_rows(args.data), f"all rows of {name}"
        if trained_on and Path(trained_on).is_file() and Path(name).samefile(trained_on):
            warn(f"the adapter was trained on rows of {name}: these scores say little of others")
    else:
        rows, described = load_rows(name, split), f"{split} split of {name}"
        require(rows, f"{name} has no {split} rows: give a folder, or a file of at least ten rows")
    length = args.max_seq_length or loaded.settings.get("max_seq_length")
    masked = args.mask_prompt
    if masked is None:
        masked = loaded.settings.get("mask_prompt", any("text" not in row for row in rows))
    config = TrainConfig(max_seq_length=length or 2048, mask_prompt=masked)
    return encode_rows(rows, loaded.tokenizer, config)[0], described


def generate(args):
    """Print the continuation of a prompt, or the answer to a request, as it comes."""
    loaded = load_model(args)
    tokenizer = loaded.tokenizer
    prompt = args.prompt
    if tokenizer.has_chat_template and not args.raw:
        prompt = tokenizer.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
    model, n, ops = loaded.model_config, args.max_tokens, operations(loaded.adapters, loaded.base)
    keys_and_values = 8 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * n
    much = f"--max-tokens {n}: keys and values of that many tokens do not fit into memory"
    require(keys_and_values < physical_memory(), much)
    ids, printed = [], ""
    for token in generation.generate(
        loaded.adapters, loaded.base, tokenizer.encode(prompt), model, ops, n,
        args.temp, args.top_p, np.random.default_rng(args.seed),
    ):  # fmt: skip
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character: wait for the rest
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print(tokenizer.decode(ids)[len(printed) :])


def evaluate(args):
    """Print the scores on a split of the data."""
    loaded = load_model(args)
    examples, described = load_examples(args, loaded, args.split)
    score = scores(loaded.adapters, loaded.base, examples, loaded.model_config)
    if args.json:
        print(json.dumps({**score, "rows": len(examples), "data": described}))
        return
    print(f"{len(examples)} rows, {described}")
    for name, value in score.items():
        print(f"{name:<12}{value:>12,}" if name == "tokens" else f"{name:<12}{value:>12.6f}")


def merge(args):
    """Write W₀ + (α/r)·BA as a dense folder, onto the base as --quantize stores it."""
    loaded = load_model(args)
    require(loaded.adapters, "there is nothing to merge: give --adapter-path")
    require_new(args.out)
    dense = merge_adapter(loaded.adapters, loaded.base)
    save_pretrained(args.out, loaded.model_config, dense, loaded.tokenizer, args.dtype)
    print(f"merged into {args.out}")


def quantize(args):
    """Write the base quantized, and say what that cost in each layer."""
    args.quantize = args.quantize or "nf4-dq"
    require(args.quantize != "none", "--quantize none leaves nothing to do: choose a scheme")
    require_new(args.out)
    name, block_size = args.model or "tiny", args.block_size or 64
    config, base, tokenizer = load(name)
    quantized = load(name, args.quantize, block_size)[1]
    save_quantized(args.out, config, quantized, tokenizer)
    print(f"{'weight':<52}{'RMSE':>10}{'relative':>10}{'bits':>8}")
    for path, rmse, relative, _, bits in error_report(base, quantized):
        print(f"{path:<52}{rmse:>10.6f}{relative:>10.4f}{bits:>8.3f}")
    print(f"{bits_per_weight(quantized):.3f} bits per weight, written to {args.out}")


def inspect(args):
    """Print the tree, what is trained of it, a step's memory, and with --data a row's tokens."""
    loaded = load_model(args)
    for path, leaf in [*named_leaves(loaded.base), *named_leaves(loaded.adapters)]:
        if hasattr(leaf, "shape"):
            kind = getattr(leaf, "dtype", getattr(leaf, "kind", type(leaf).__name__))
            print(f"{path:<56}{'×'.join(map(str, leaf.shape)):>14}  {kind}")
    print_trainable_parameters(loaded.adapters, loaded.base)
    parts = memory_estimate(loaded.adapters, loaded.base, loaded.model_config, args.tokens)
    print(f"a step over {args.tokens} tokens:\n{format_estimate(parts)}")
    if args.data:
        tokens, mask = load_examples(args, loaded, "train")[0][0]
        print("the first row, one token per line; * marks those that the loss counts:")
        for token, counts in zip(tokens, [0, *mask[1:]]):
            print(f"{'*' if counts else ' '} {token:>6}  {loaded.tokenizer.decode([token])!r}")


def fetch(args):
    """Bring the real base into the cache."""
    print(fetching.fetch(args.model, args.source))
