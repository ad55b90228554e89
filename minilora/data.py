"""From a user's rows to batches of tokens: JSONL, prompt masks, packing, padding, order.

Part 5 of `lessons/00_qlora_in_one_file.py`, made general: rows of a user, padding, masks, and
packing.

A row is {"text"}, {"prompt", "completion"} or {"messages"}. An `Example` is its tokens with a mask
that says which of them are targets. A batch is four arrays (B, T): `tokens`, `targets` (the next
token of each), `mask` (1 where the target counts) and `starts` (where each token's example begins,
so that packed neighbours stay invisible to each other).
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import tasks
from .config import InputError, require

SHAPES = ({"text"}, {"prompt", "completion"}, {"messages"})


class Example(NamedTuple):
    """Token ids, and for each of them 1 if the model is to learn to say it."""

    tokens: list[int]
    mask: list[int]


def read_rows(path):
    """The rows of a JSONL file. Raises InputError naming file and line of what is wrong with it."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    lines = [(n, line) for n, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    require(lines, f"{path} is empty: give it one JSON object a line")
    return [_parse(f"{path}, line {n}", line) for n, line in lines]


def _parse(where, line):
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: broken JSON: {error}") from error
    check_row(row, where)
    return row


def check_row(row, where):
    """Raise InputError unless `row` has one of the three shapes."""
    require(isinstance(row, dict), f"{where}: a row must be a JSON object")
    shape = {key for keys in SHAPES for key in keys & set(row)}
    require(
        shape in SHAPES,
        f"{where}: keys {sorted(row)}: give text, or prompt and completion, or messages",
    )
    messages = row.get("messages", ())
    if "messages" in row:
        require(
            isinstance(messages, list)
            and messages
            and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages)
            and messages[-1]["role"] == "assistant",
            f"{where}: messages must be objects with role and content, the last the assistant's",
        )
    texts = [row[k] for k in shape - {"messages"}] + [m["content"] for m in messages]
    require(all(isinstance(t, str) for t in texts), f"{where}: a text must be a string")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: surrogate without its other half: no text") from error


def split_row(row, tokenizer):
    """(prompt, answer) as the model reads them; the prompt of a text row is empty."""
    if "text" in row:
        return "", row["text"]
    if "messages" in row:
        messages = row["messages"]
    elif tokenizer.has_chat_template:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    else:
        return row["prompt"], row["completion"]
    prompt, whole = (
        tokenizer.render(messages[:-1], add_generation_prompt=True),
        tokenizer.render(messages),
    )
    require(
        whole.startswith(prompt), "this base's chat template rewrites earlier turns: use text rows"
    )
    return prompt, whole[len(prompt) :]


def encode(row, tokenizer, mask_prompt=False):
    """The Example of a row: prompt, answer, end of sequence.

    With `mask_prompt` only the answer's tokens and the end are targets. What a chat template
    writes after the end of the answer is left out.
    """
    prompt, answer = split_row(row, tokenizer)
    head = tokenizer.encode(prompt) if prompt else []
    tail = tokenizer.encode(answer, add_special_tokens=not prompt)
    if prompt and tokenizer.eos_token_id in tail:
        tail = tail[: tail.index(tokenizer.eos_token_id)]
    elif tail[-1:] == [tokenizer.eos_token_id]:
        tail = tail[:-1]
    tail = [*tail, tokenizer.eos_token_id]
    return Example(head + tail, [0 if mask_prompt else 1] * len(head) + [1] * len(tail))


def prepare(rows, tokenizer, config):
    """(examples, how many were cut to max_seq_length); rows with nothing left to learn go.

    Raises InputError if no row is left.
    """
    full = [encode(row, tokenizer, config.mask_prompt) for row in rows]
    cut = [Example(*(part[: config.max_seq_length] for part in example)) for example in full]
    kept = [example for example in cut if any(example.mask[1:])]
    require(
        kept,
        "no row has a target token within --max-seq-length "
        f"{config.max_seq_length}: give it more, or longer texts",
    )
    return kept, sum(len(e.tokens) > config.max_seq_length for e in full)


def pack(examples, length):
    """Bins of examples that fit together in `length` tokens: best fit, longest first.

    Examples keep to themselves: `collate` notes where each begins.
    """
    bins: list[list[Example]] = []
    with_room: list[list] = [[] for _ in range(length)]  # with_room[n]: bins with n tokens free
    for example in sorted(examples, key=lambda e: -len(e.tokens)):
        need = len(example.tokens) - 1
        room = next((n for n in range(need, length) if with_room[n]), None)
        if room is None:
            room = length - 1
            bins.append([])
            with_room[room].append(bins[-1])
        best = with_room[room].pop()
        best.append(example)
        with_room[room - need].append(best)
    return bins


def collate(bins):
    """A batch of bins (lists of examples), padded on the right with tokens that never count."""
    T = max(sum(len(e.tokens) - 1 for e in some) for some in bins)
    batch = {k: np.zeros((len(bins), T), np.int64) for k in ("tokens", "targets", "mask", "starts")}
    for row, some in enumerate(bins):
        at = 0
        for tokens, mask in some:
            end = at + len(tokens) - 1
            batch["tokens"][row, at:end] = tokens[:-1]
            batch["targets"][row, at:end] = tokens[1:]
            batch["mask"][row, at:end] = mask[1:]
            batch["starts"][row, at:] = at
            at = end
        batch["starts"][row, at:] = min(at, T - 1)
    batch["mask"] = batch["mask"].astype(np.float32)
    return batch


def batch_at(bins, step, size, seed):
    """The bins of batch number `step`: every epoch a new order, each bin once.

    A function of (seed, step) alone, so a resumed run has no position to restore.
    """
    picked = []
    for i in range(step * size, (step + 1) * size):
        epoch, position = divmod(i, len(bins))
        picked.append(bins[_order(len(bins), epoch, seed)[position]])
    return picked


@lru_cache(maxsize=4)
def _order(n, epoch, seed):
    return np.random.default_rng([seed, epoch]).permutation(n)


def load_rows(name, split):
    """The rows of a built-in data set, a .jsonl file, or a folder with train.jsonl and valid.jsonl.

    split: `train`, `valid` or `test`. Of a single file every tenth row is held out, for both of
    the latter (none of fewer than ten); a folder without test.jsonl tests on valid.jsonl.
    InputError says what is missing.
    """
    path = Path(name)
    if name in tasks.BUILTIN:
        return tasks.builtin(name, split)
    if path.is_dir():
        files = [path / f"{split}.jsonl"] + [path / "valid.jsonl"] * (split == "test")
        return read_rows(next((f for f in files if f.exists()), files[0]))
    require(
        path.suffix == ".jsonl" and path.exists(),
        f"there are no data {name!r}: give {', '.join(tasks.BUILTIN)}, a .jsonl file that exists, "
        "or a folder with train.jsonl and valid.jsonl",
    )
    rows = read_rows(path)
    return [row for i, row in enumerate(rows) if (i % 10 == 9) == (split != "train")]
