"""Run the commands: load, compute, print."""

import json
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial

import numpy as np

from .. import generation, lora
from ..config import INITIALIZERS, InputError, LoraConfig, TrainConfig
from ..data.chat import answer_message, chat_ids
from ..data.rows import warn
from ..evaluation import doctor, memory, metrics
from ..formats import fetch as fetching
from ..formats import hf_folder
from ..formats.checkpoint import (
    AdapterWarning,
    UnfitAdapter,
    begins_with_zero,
    changes_base,
    read_source,
)
from ..formats.pretrained import load
from ..formats.quantized_file import save_quantized
from ..methods.compose import generate_batch
from ..quant import schemes
from ..tree import named_leaves
from .arguments import parse
from .examples import compare_with_run, load_examples
from .loading import LoadedModel, base_line, base_of, load_with_adapter, merged_runs, read_run
from .run import fine_tune, print_size
from .stored_paths import digest

train = fine_tune


def load_model(args, path, load=load):
    """Return the LoadedModel that the flags name; path: the folder of its adapter, or None."""
    if path:
        run = read_run(path)  # first: its error says how to repair the folder of a killed run
        loaded = load_with_adapter(path, base_of(path, args), load)
    else:
        name = args.model or "tiny"
        loaded = LoadedModel(*load(name, args.quantize or "none", args.block_size, True))
        merged = merged_runs(loaded.model)
        run = merged[-1] if merged else loaded.run
    return with_date(loaded._replace(run=run))


def with_date(loaded):
    """Return a LoadedModel whose chat template has the date of the last run that has one."""
    dates = [settings.get("chat_date") for settings, _ in [*merged_runs(loaded.model), loaded.run]]
    last = [None, *filter(None, dates)][-1]
    return loaded._replace(tokenizer=replace(loaded.tokenizer, chat_date=last))


def generate(args):
    """Print the continuation of a prompt token by token, or those of a batch of prompts."""
    options = sampling(args)
    if args.prompt.count("-") > 1:
        raise InputError("--prompt has - twice, but standard input can be read only once")
    texts = [typed_text() if text == "-" else text for text in args.prompt]
    paths = args.adapter_path or [None]
    if len(paths) == 1:
        paths *= len(texts)
    if len(paths) != len(texts):
        raise InputError(
            f"{len(texts)} prompts need one --adapter-path or {len(texts)}, got {len(paths)}: "
            "write none for a prompt without an adapter"
        )
    once = cache(load)
    folders = dict.fromkeys(path for path in paths if path != "none")
    models = {path: load_model(args, path, once) for path in folders}
    first = next(iter(models.values()), None) or load_model(args, None)
    for path, loaded in models.items():
        has_own_base = getattr(loaded.adapter_config, "init_lora_weights", True) in INITIALIZERS
        if has_own_base and len({*paths}) > 1:
            raise InputError(
                f"{path} changes the base, which the other prompts need: "
                "generate with this adapter in a call of its own"
            )
    none = with_date(first._replace(adapters={}, run=({}, {})))
    chosen = [models.get(path, none) for path in paths]
    prompts = [
        prompt_ids(
            args, loaded.tokenizer, [*system_messages(args), {"role": "user", "content": text}]
        )
        for loaded, text in zip(chosen, texts)
    ]
    if len(texts) == 1:
        print_answer(chosen[0], prompts[0], options)
        return
    if any(loaded.model.source != first.model.source for loaded in chosen):
        raise InputError("the adapters have different bases: give --model and --quantize")
    adapters = [loaded.adapters for loaded in chosen]
    found = generate_batch(adapters, first.model, prompts, **options)
    for path, text, ids in zip(paths, texts, found):
        print(f"--- {text!r}" + (f", adapter {path}" if path else ""))
        print(first.tokenizer.decode(ids))


def chat(args):
    """Answer the lines of standard input; with a chat template, they are one conversation."""
    options = sampling(args)
    check_standard_input()
    loaded = load_model(args, args.adapter_path)
    if not uses_template(args, loaded.tokenizer):
        print("this model has no chat template: each line is a prompt of its own", file=sys.stderr)
    messages = system_messages(args)
    for line in typed_lines():
        messages.append({"role": "user", "content": line})
        prompt = prompt_ids(args, loaded.tokenizer, messages)
        ids = print_answer(loaded, prompt, options)
        if loaded.tokenizer.chat_template:  # else the next prompt is the next line alone
            messages.append(answer_message(loaded.tokenizer, messages, prompt, ids))


BYTE_ORDER_MARK = "\ufeff"


def typed_text():
    """Return the text of standard input, with Unix line breaks and without the last one.

    Some programs of Windows begin it with a byte-order mark, which is no part of the text.
    """
    check_standard_input()
    return sys.stdin.read().removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").removesuffix("\n")


def check_standard_input():
    """Raise InputError if the shell has closed the standard input."""
    if sys.stdin is None:
        raise InputError("the standard input is closed: give a file, or a text to --prompt")


def typed_lines():
    """Yield the lines of standard input, up to its end or a line `exit`; skip empty lines."""
    prompt = "> " if sys.stdin.isatty() else ""
    with suppress(EOFError):
        while True:
            line = input(prompt).removeprefix(BYTE_ORDER_MARK).removesuffix("\r")
            if line.strip() == "exit":
                return
            if line.strip():
                yield line


def sampling(args):
    """Return the options of `generation.generate` that the flags choose."""
    if args.temp == 0 and "--seed" in args.given:
        raise InputError("--seed has no effect with --temp 0: give a --temp above 0")
    rng = np.random.default_rng(args.seed)
    return {"max_tokens": args.max_tokens, "temp": args.temp, "top_p": args.top_p, "rng": rng}


def system_messages(args):
    """Return the message of --system-prompt in a list; an empty list without the flag."""
    return [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []


def prompt_ids(args, tokenizer, messages):
    """Return the token ids of a conversation, up to the beginning of the next answer.

    Without a chat template, or with --raw, they are those of the last message.
    """
    if not uses_template(args, tokenizer):
        return tokenizer.encode(messages[-1]["content"])
    first, *others = messages
    if first["role"] == "system":
        changed = [first | {"content": first["content"] + "."}, *others]
        render = partial(tokenizer.render, add_generation_prompt=True)
        if render(messages) == render(changed):
            raise InputError(
                "--system-prompt has no effect: the chat template does not show system messages: "
                "put its text into the prompt"
            )
    return chat_ids(tokenizer, messages)


def uses_template(args, tokenizer):
    """Tell whether prompts get the chat template.

    Raises InputError if there is none for --system-prompt, or none that --raw could leave out.
    """
    if args.raw and not tokenizer.chat_template:
        raise InputError("--raw has no effect on a model without a chat template: leave it out")
    used = bool(tokenizer.chat_template) and not args.raw
    if args.system_prompt is not None and not used:
        raise InputError(
            "--system-prompt needs a chat template, and none is used here: "
            "put its text into the prompt"
        )
    return used


def print_answer(loaded, prompt, options):
    """Print the continuation of a prompt token by token; return its token ids.

    What is printed stays, also if a decoder of bytes shows later that their run is not UTF-8.
    """
    tokenizer = loaded.tokenizer
    ids = []
    text = ""
    printed = ""
    for token in generation.generate(loaded.adapters, loaded.model, prompt, **options):
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # an incomplete character
            print(text[len(printed) :], end="", flush=True)
            printed = text
    print(text[len(printed) :])
    return ids


def check_mask_prompt(args, examples):
    """Raise InputError if --mask-prompt was given for rows without a prompt."""
    if args.mask_prompt is not None and all(all(example.answer) for example in examples):
        raise InputError("--mask-prompt has no effect on rows without a prompt: leave it out")


def evaluate(args):
    """Print the scores on a split of the data, and which rows they are about."""
    loaded = load_model(args, args.adapter_path)
    data, described = load_examples(args, loaded, args.split)
    check_mask_prompt(args, data.examples)
    trained_on = compare_with_run(data, loaded)
    score = metrics.evaluate(loaded.adapters, loaded.model, data.examples)
    masked = not all(all(example.mask) for example in data.examples)
    if args.json:
        source = loaded.model.source
        facts = {
            "rows": len(data.examples),
            "data": described,
            "left_out": data.left_out,
            "max_seq_length": data.length,
            "mask_prompt": masked,
            "cut": data.cut,
            **trained_on,
            "model": source.name,
            "quantize": source.scheme,
        }
        print(json.dumps(score | facts))
        return
    print(data.summary(f", {described}"))
    print(base_line(loaded.model))
    print(f"the loss counts {'the answers' if masked else 'all tokens'}")
    for name, value in score.items():
        print(f"{name:<12}{value:>12,}" if name == "tokens" else f"{name:<12}{value:>12.6f}")


def merge(args):
    """Write W₀ + (α/r)·BA as a dense folder; W₀ is the base as --quantize stores it."""
    loaded = load_model(args, args.adapter_path)
    if not loaded.adapters:
        raise InputError("there is no adapter to merge: give --adapter-path")
    dense = lora.merge(loaded.adapters, loaded.model)
    runs = {hf_folder.RUNS: [*merged_runs(loaded.model), loaded.run]}
    hf_folder.write(args.out, dense, loaded.tokenizer, args.dtype, **runs)
    print(base_line(loaded.model))
    print(f"merged model written to {args.out}")


def quantize(args):
    """Write the quantized base, and print the error of each weight."""
    if args.quantize == "none":
        raise InputError("--quantize none changes nothing: give int8, fp4, nf4 or nf4-dq")
    model, tokenizer = load(args.model)
    if model.source.scheme != "none":
        raise InputError(f"{args.model} is stored as {model.source.scheme}: give a dense base")
    quantized = schemes.quantize(model, args.quantize, args.block_size)
    save_quantized(args.out, quantized, tokenizer)
    print(f"{'weight':<52}{'RMSE':>10}{'relative':>10}{'bits':>8}")
    for path, rmse, relative, bits in schemes.error_report(model.base, quantized.base):
        print(f"{path:<52}{rmse:>10.6f}{relative:>10.4f}{bits:>8.3f}")
    print(f"{memory.bits_per_weight(quantized.base):.3f} bits per weight, written to {args.out}")


def inspect(args):
    """Print the tree, the trained parameters, the memory of a step, and the tokens of a row.

    Of an adapter, print what `diagnose` finds; return the exit status.
    """
    for name in ("--columns", "--max-seq-length", "--mask-prompt"):
        if name in args.given and not args.data:
            raise InputError(f"{name} has no effect without --data: give --data, or leave it out")
    path = args.adapter_path
    warnings.simplefilter("ignore", AdapterWarning)  # the verdict says it
    try:
        loaded = load_model(args, path)
    except UnfitAdapter as error:
        return print_verdict([str(error)])
    print(base_line(loaded.model))
    for name, leaf in named_leaves(loaded.adapters if path else loaded.model.base):
        if hasattr(leaf, "shape") and not name.endswith(doctor.FACTORS):
            kind = getattr(leaf, "dtype", getattr(leaf, "kind", type(leaf).__name__))
            print(f"{name:<56}{'×'.join(map(str, leaf.shape)):>14}  {kind}")
    names = {"optimizer", "gradient_checkpointing"} & loaded.run[0].keys()
    print_size(loaded, args.tokens, TrainConfig(**{name: loaded.run[0][name] for name in names}))
    examples = []
    if args.data:
        data, described = load_examples(args, loaded, "train")
        examples = data.examples
        check_mask_prompt(args, examples)
        print(data.summary(f", {described}"))
        example = examples[0]
        print("the first of these rows, one token per line; the loss counts the tokens with *:")
        for token, counts in zip(example.tokens, [0, *example.mask[1:]]):
            print(f"{'*' if counts else ' '} {token:>6}  {token_text(loaded.tokenizer, token)!r}")
    if not path:
        return None
    own = rows_of_run(loaded)
    what = "its rows" if own else f"the rows of {args.data}"
    return diagnose(path, loaded, own or examples, what)


def rows_of_run(loaded):
    """Return the examples that an adapter was trained on; [] if they are unknown or gone."""
    settings, digests = loaded.run
    if "data" not in settings:
        return []
    try:
        if digests.get("data") != digest("data", settings["data"]):
            raise InputError(f"{settings['data']} has changed since then")
        return load_examples(parse(["inspect"]), loaded, "train")[0].examples
    except InputError as error:
        warn(f"the rows of the run cannot be read: {error}")
        return []


SENTENCE = "The quick brown fox jumps over the lazy dog."
ROWS = 16  # that `diagnose` reads


@np.errstate(all="ignore")  # the verdict names what is not finite
def diagnose(path, loaded, examples, what):
    """Print the table of an adapter and the verdict; return 1 if something is wrong, else 0.

    path: its folder. examples: those that it was trained on, or []. what: their name.
    """
    examples = examples[:ROWS]
    original = load(loaded.model.source.name).model if changes_base(path) else loaded.model
    faults = faults_of_base(path, loaded.model.source)
    rows = []
    if isinstance(loaded.adapter_config, LoraConfig):
        from_zero = begins_with_zero(path) and not loaded.run[0].get("init_adapter")
        rows = measure_projections(loaded, original, examples if from_zero else [])
        print(doctor.table(rows))
        faults += doctor.faults_of(rows)
    effects = faults_of_effect(loaded, original, examples, what)
    return print_verdict(faults or effects, rows)  # an effect can follow from a fault


def faults_of_base(path, now):
    """Return how the base of the adapter in `path` differs from that of the Source `now`."""
    then = read_source(path)
    if then is None:
        print("the file does not tell on which base it was trained: this one may be another")
        return []
    return [
        f"trained on a base with {name} {str(old)[-16:]}, not {str(new)[-16:]}"
        for name, old, new in zip(now._fields[1:], then[1:], now[1:])
        if old != new
    ]


def measure_projections(loaded, original, examples):
    """Return the doctor's Row of each adapted projection; see `doctor.measure`."""
    adapters, model = loaded.adapters, loaded.model
    downhill = doctor.directions(adapters, model, examples) if examples else {}
    return [
        doctor.measure(path, adapters, model, original, downhill.get(f"{path}.lora_B", np.nan))
        for path in lora.adapted_paths(adapters)
    ]


def faults_of_effect(loaded, original, examples, what):
    """Print how the adapter changes logits and loss; return what is wrong with it, or []."""
    adapters, model = loaded.adapters, loaded.model
    tokens = examples[0].tokens if examples else loaded.tokenizer.encode(SENTENCE)
    change = doctor.logits_change(adapters, model, original, tokens)
    print(f"the logits of {'the first row' if examples else repr(SENTENCE)} change by {change:.1%}")
    raises = False
    if examples:
        before = metrics.evaluate({}, original, examples, quiet=True)["loss"]
        after = metrics.evaluate(adapters, model, examples, quiet=True)["loss"]
        print(f"loss on {len(examples)} of {what}: {before:.4f} without it, {after:.4f} with it")
        raises = not after <= doctor.MARGIN * before
    else:
        print("without its rows (--data), a wrong order of numbers of the usual size is not seen")
    if not change > doctor.ROUNDING:
        return ["the logits do not change, or are not finite"]
    return [f"it raises the loss on {what}"] if raises else []


def print_verdict(faults, rows=()):
    """Print the last line of `inspect --adapter-path`; return the exit status."""
    if faults:
        print(f"ill: {'; '.join(faults)}")
    elif rows:
        print(f"healthy: no number of its {len(rows)} projections is unusual")
    else:
        print("beyond numbers: it changes the logits, and has no factors A and B to measure")
    return 1 if faults else 0


def token_text(tokenizer, token):
    """Return the text of a token, also of a special one, which `decode` leaves out."""
    backend = getattr(tokenizer, "backend", None)
    name = backend.id_to_token(token) if backend else None
    text = tokenizer.decode([token]) or name or ""
    if name and name.startswith("▁") and not text.startswith((" ", "▁")):
        text = " " + text  # some decoders leave out the space with which a text begins
    return text


def fetch(args):
    """Download the real model and print its path."""
    print(fetching.fetch(args.model, args.source))
