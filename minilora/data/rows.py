"""Turn rows of a user into examples: forms of rows, chat templates, and the mask of the prompt.

A row is {"text"}, {"prompt", "completion"} or {"messages"}. Rows of Alpaca and ShareGPT become one
of these when they are read. This generalizes part 5 of `lessons/00_qlora_in_one_file.py`.
"""

import json
import sys
from collections import Counter
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..batching import Example
from ..config import InputError, TrainConfig
from . import tasks
from .hints import did_you_mean
from .row_files import SUFFIXES, parse_json, read_values

Row = dict[str, Any]
FORMS: list[set[str]] = [{"text"}, {"prompt", "completion"}, {"messages"}]
ONE_OF = "text, or prompt and completion, or messages, or the keys of Alpaca or ShareGPT"
ALPACA, SHAREGPT = {"instruction", "output"}, {"conversations"}
OPTIONAL = ("input", "system", "tools")  # keys that a row of some form may have
KEYS = ("text", "prompt", "completion", "messages", "instruction", "output", "conversations",
        *OPTIONAL)  # fmt: skip
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # of ShareGPT, in chats
TARGET_WITHIN = "target token within --max-seq-length"
REWRITTEN = "the model's chat template rewrites earlier turns: use text rows"


def read_usable(path, tokenizer=None, columns=None):
    """Return (rows of a file, {reason: number of rows that are left out}).

    columns: see `load_rows`. Rows that cannot be learned are left out, and a warning counts them;
    see `reason_to_skip`. Raises InputError naming the file and the malformed line.
    """
    for key in columns or ():
        if key not in KEYS:
            keys = ", ".join(KEYS)
            raise InputError(
                f"`columns`: {key!r} is no key of a row: give KEY=COLUMN, KEY of {keys}"
            )
    values = read_values(path)
    rows = [(check_row(select(value, columns, where), where), where) for value, where in values]
    if not rows:
        raise InputError(f"{path} is empty: write one JSON object per line")
    reasons = [reason_to_skip(row, tokenizer) for row, _ in rows]
    left_out = Counter(filter(None, reasons))
    for reason, n in sorted(left_out.items()):
        count = f"{n}, the first is {rows[reasons.index(reason)][1]}"
        say_once(f"warning: rows that are skipped because they have {reason}: {count}")
    if "" not in reasons:
        raise InputError(f"{path} has no row that can be used")
    return [row for (row, _), reason in zip(rows, reasons) if not reason], dict(left_out)


@cache
def say_once(text):
    """Print a line on standard error, but no line twice: many rows can be the reason for it."""
    print(text, file=sys.stderr)


def select(row, columns, where):
    """Return the row with the keys of `columns`; other columns are left out."""
    if not columns or not isinstance(row, dict):
        return row
    for key, column in columns.items():
        if column not in row and key not in OPTIONAL:
            there = ", ".join(map(str, row))
            raise InputError(f"{where}: no column {column!r}, only {there}: correct `columns`")
    return {key: row[column] for key, column in columns.items() if column in row}


def check_row(row, where):
    """Return `row` in one of the three forms; raise InputError if its keys are of none."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: the row must be a JSON object")
    for name, keys, convert in ("Alpaca", ALPACA, alpaca), ("ShareGPT", SHAREGPT, sharegpt):
        if keys <= row.keys():
            row = convert(row, where)
            say_once(f"{where.rpartition(',')[0]}: read as {name}")
    known = {key for keys in FORMS for key in keys & row.keys()}
    if known not in FORMS:
        advice = "or --columns prompt=KEY completion=KEY"
        raise InputError(f"{where}: the keys are {sorted(row)}: a row needs {ONE_OF}, {advice}")
    if "messages" in row:
        return check_messages(row, where)
    for key in known:
        check_text(key, row[key], where)
    return row


def check_text(key, text, where):
    """Return `text`, the value of `key`; raise InputError if it is not a string."""
    if not isinstance(text, str):
        raise InputError(f"{where}: {key} must be a string, not {text!r}")
    return text


def check_messages(row, where):
    """Return the row, with its tools as a list; raise InputError if a message is malformed."""
    messages = row["messages"]
    is_chat = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    if not (is_chat and all("role" in m for m in messages) and messages[-1:]):
        raise InputError(f"{where}: messages must be objects with role and content")
    if messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: the last message must be of the assistant")
    if any(part.get("weight", 1) != 1 for part in (row, *messages)):
        advice = "remove the key, and leave out the turns that must not count"
        raise InputError(f"{where}: weights of messages are not implemented: {advice}")
    for message in messages:
        if message.get("content") is not None or not message.get("tool_calls"):
            check_text("content", message.get("content"), where)
    tools = row.get("tools") or []
    if isinstance(tools, str):
        tools = parse_json(tools, f"{where}: tools are not JSON")
    if not isinstance(tools, list):
        raise InputError(f"{where}: tools must be a list of JSON schemas")
    return row | {"tools": tools} if tools else row


def alpaca(row, where):
    """Return a row of Alpaca as prompt and completion."""
    given = [key for key in ("instruction", "input") if row.get(key)]
    prompt = "\n".join(check_text(key, row[key], where) for key in given)
    return {"prompt": prompt, "separator": "\n", "completion": row["output"]}


def sharegpt(row, where):
    """Return a row of ShareGPT as messages."""
    turns = row["conversations"]
    are_turns = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not (are_turns and all({"from", "value"} <= turn.keys() for turn in turns)):
        raise InputError(f"{where}: conversations must be objects with from and value")
    messages = [
        {"role": ROLES.get(str(t["from"]), t["from"]), "content": t["value"]} for t in turns
    ]
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": messages, "tools": row.get("tools")}


def reason_to_skip(row, tokenizer):
    """Return why a row cannot be learned (no answer, or tools that the template drops), or ""."""
    messages, tools = row.get("messages", []), row.get("tools")
    last = messages[-1] if messages else {"content": row.get("text") or row.get("completion")}
    if not (last.get("tool_calls") or (last.get("content") or "").strip()):
        return "an empty answer"
    if tokenizer and tokenizer.has_chat_template and hides_tools(messages, tools, tokenizer):
        return "tools that the chat template of the model does not show"
    return ""


def hides_tools(messages, tools, tokenizer):
    """Return whether the chat template leaves out the tools or the calls, or rejects them."""

    def text(messages, tools):
        with suppress(InputError):  # some templates reject a message without content
            return tokenizer.render(messages, tools=tools)

    no_calls = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
    shown = text(messages, tools)
    if tools and shown == text(messages, None):
        return True
    return no_calls != messages and shown in (None, text(no_calls, tools))


def messages_of(row):
    """Return the messages of a row that is not a text."""
    return row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]


def row_content(row):
    """Return what a row says as one string: no form, no other keys, each space as one blank."""
    texts = (
        [row["text"]]
        if "text" in row
        else [m.get("content") or json.dumps(m.get("tool_calls")) for m in messages_of(row)]
    )
    return " ".join(" ".join(texts).split())


def split_turns(row, tokenizer):
    """Return [(text before an answer, the answer), …] as the model reads them.

    A text row has no text before its answer. If a template rewrites an earlier answer (some remove
    its thoughts), the text of that answer includes all up to the next one; `encode` masks the rest.
    """
    if "text" in row:
        return [("", row["text"])]
    if "prompt" in row and not tokenizer.has_chat_template:
        return [(row["prompt"] + row.get("separator", ""), row["completion"])]
    messages = messages_of(row)
    render = partial(tokenizer.render, tools=row.get("tools"))
    whole = render(messages)
    turns = list[tuple[str, str]]()
    end = 0
    # most chat templates need a message before an answer
    answers = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"] or [0]
    befores = [render(messages[:i], add_generation_prompt=True) for i in answers]
    for i, before, following in zip(answers, befores, [*befores[1:], whole]):
        if not (whole.startswith(before) and len(before) >= end):
            raise InputError(REWRITTEN)
        here = render(messages[: i + 1])
        start = end
        end = len(here if whole.startswith(here) else following)
        turns.append((whole[start : len(before)], whole[len(before) : end]))
    return turns


def split_row(row, tokenizer):
    """Return (text before the last answer, the last answer) as the model reads them."""
    *earlier, (before, answer) = split_turns(row, tokenizer)
    return "".join(map("".join, earlier)) + before, answer


def encode(row, tokenizer, mask_prompt=False):
    """Return the Example of a row: its turns, and the end of the sequence.

    With `mask_prompt`, the targets are all answers with their end tokens (as assistant_only_loss in
    TRL). Exact match compares these tokens in both cases; a text row is one answer. Text that a
    chat template writes after the end of the last answer is dropped.
    """
    turns = split_turns(row, tokenizer)
    eos = tokenizer.eos_token_id
    tokens: list[int] = []
    in_answer: list[int] = []
    for n, (before, answer) in enumerate(turns, 1):
        head = tokenizer.encode(before, add_special_tokens=n == 1) if before else []
        tail = tokenizer.encode(answer, add_special_tokens=n == 1 and not before)
        end = tail.index(eos) + 1 if eos in tail and "text" not in row else len(tail)
        tail, rest = tail[:end], tail[end:]
        if n == len(turns):
            tail = tail + [eos] * (tail[-1:] != [eos])
            rest = []
        else:  # an end token, or the next turn, shows where the answer ends
            if not rest and not turns[n][0]:
                raise InputError(REWRITTEN)
        tokens += head + tail + rest
        in_answer += [0] * len(head) + [1] * len(tail) + [0] * len(rest)
    return Example(tokens, in_answer if mask_prompt else [1] * len(tokens), in_answer)


def encode_rows(
    rows: list[Row], tokenizer: Any, train_config: TrainConfig
) -> tuple[list[Example], int]:
    """Return (examples that have a target, cut to max_seq_length; number of these that are cut).

    A warning on standard error counts the rows that are left out: those without a target token
    within max_seq_length. Raises InputError if no row is left.
    """
    if not rows:
        raise InputError("there are no rows to encode")
    length = train_config.max_seq_length
    num_cut = 0
    kept: list[Example] = []
    for i, row in enumerate(rows):
        full = encode(check_row(row, f"rows[{i}]"), tokenizer, train_config.mask_prompt)
        example = Example(*(part[:length] for part in full))
        if any(example.mask[1:]):
            kept.append(example)
            num_cut += len(full.tokens) > length
    if not kept:
        raise InputError(f"no row has a {TARGET_WITHIN} {length}: raise it or give longer texts")
    left_out = len(rows) - len(kept)
    if left_out:
        which = f"{left_out} of {len(rows)} rows are left out"
        print(f"warning: {which}: they have no {TARGET_WITHIN} {length}", file=sys.stderr)
    return kept, num_cut


def load_rows(
    name: str, split: str, tokenizer: Any = None, columns: dict[str, str] | None = None
) -> list[Row]:
    """Return the rows of a split of a built-in data set, a file or a folder.

    split: train, valid or test. tokenizer: see `reason_to_skip`. columns: {key: column}, the name
    in the file of each key of a row, for example {"prompt": "question", "completion": "answer"};
    other columns are not read. Of a file, valid and test are both every tenth row (none if there
    are fewer than ten). A folder has train.jsonl and valid.jsonl, and may have test.jsonl;
    otherwise test is valid.jsonl. A file is JSON Lines, a JSON list of rows, or CSV.
    """
    [(rows, _)] = load_splits(name, [split], tokenizer, columns)
    return rows


def load_splits(name, splits, tokenizer=None, columns=None):
    """Return (rows of `load_rows`, {reason: number of rows that are left out}) of each split.

    A file is read once. Every tenth *usable* row of it is held out, so its unusable rows are those
    of train.
    """
    path = Path(name)
    splits = [existing_split(name, split) for split in splits]
    if name in tasks.BUILTIN:
        if columns:
            raise InputError(f"`columns` is for files: the rows of {name} have their keys already")
        return [(tasks.builtin(name, split), {}) for split in splits]
    if path.is_dir():
        return [read_usable(file_of(path, split), tokenizer, columns) for split in splits]
    if not path.is_file():
        known = f"{', '.join(tasks.BUILTIN)}, a {', '.join(SUFFIXES)} file"
        folder = "or a folder with train.jsonl and valid.jsonl"
        near = did_you_mean(name, tasks.BUILTIN)
        raise InputError(f"there is no data set or file {name!r}: give {known}, {folder}{near}")
    rows, left_out = read_usable(path, tokenizer, columns)
    train = [row for i, row in enumerate(rows) if i % 10 != 9]
    return [(train, left_out) if split == "train" else (rows[9::10], {}) for split in splits]


def existing_split(name, split):
    """Return the split that is read: valid instead of test if the data has no rows for test."""
    tasks.check_split(split)
    if name in tasks.BUILTIN or split != "test" or file_of(Path(name), split).exists():
        return split
    return "valid"


def file_of(folder, split):
    """Return the file of a split in a folder; train.jsonl if there is none for train."""
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    return next(filter(Path.exists, files), files[0])
