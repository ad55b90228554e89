"""Turn rows of a user into examples: forms of rows, chat templates, and the mask of the prompt.

A row is {"text"}, {"prompt", "completion"} or {"messages"}. Rows of Alpaca and ShareGPT become one
of these when they are read. This generalizes part 5 of `lessons/00_qlora_in_one_file.py`.
"""

import json
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..batching import Example
from ..config import InputError, TrainConfig
from ..tree import without
from . import tasks
from .row_files import SUFFIXES, parse_json, read_values

DataRow = dict[str, Any]
FORMS = [{"text"}, {"prompt", "completion"}, {"messages"}]
KEYS = {  # all keys of rows that are read
    "text", "prompt", "completion", "messages", "tools",
    "instruction", "input", "output", "conversations", "system",
}  # fmt: skip
ROLES = {  # of ShareGPT: role in chats
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool",
}  # fmt: skip
ONLY_ANSWER = "the chat template needs a message before the answer: give it, or use a text row"
REWRITTEN = "the model's chat template rewrites earlier turns: use text rows"


def read_rows(path, columns=None):
    """Return the rows of a file, in one of the three forms; columns: see `load_rows`.

    Raises InputError naming the file and the malformed line.
    """
    values = list(read_values(path))
    if not values:
        raise InputError(f"{path} is empty: write one JSON object per line")
    if columns:
        found = {key for value, _ in values if isinstance(value, dict) for key in value}
        check_columns(columns, found, path)
    return [check_row(value, where, columns) for value, where in values]


def check_columns(columns, found, path):
    """Raise InputError if a key is not one of a row, or a column is not one of those `found`."""
    for key, column in columns.items():
        if key not in KEYS:
            raise InputError(f"--columns: a row has no {key!r}: give {', '.join(sorted(KEYS))}")
        if column not in found:
            raise InputError(
                f"--columns {key}={column}: no row of {path} has {column!r}: "
                f"its columns are {', '.join(sorted(found))}"
            )


def check_row(row, where, columns=None):
    """Return `row` in one of the three forms; raise InputError if its keys are of none."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: the row must be a JSON object")
    keys = sorted(row)
    check_unicode(row, where)
    if columns:
        row = {key: row[column] for key, column in columns.items() if column in row}
    if row.keys() >= {"instruction", "output"}:
        row = alpaca(row, where)
    elif "conversations" in row:
        row = sharegpt(row, where)
    known = {key for form in FORMS for key in form & row.keys()}
    if known not in FORMS:
        advice = (
            "a row needs text, or prompt and completion, or messages, "
            "or the keys of Alpaca or ShareGPT, or --columns prompt=KEY completion=KEY"
        )
        forms = [form for form in FORMS if form <= known]
        if forms:
            names = " ".join(f"{key}={key}" for key in sorted(forms[-1], reverse=True))
            advice = f"the row has several forms: choose one, for example with --columns {names}"
        raise InputError(f"{where}: the keys are {keys}: {advice}")
    if "messages" in row:
        check_messages(row, where)
    else:
        for key in known:
            check_text(key, row[key], where)
    return with_tools(row, where)


def with_tools(row, where):
    """Return the row with its tools as a list; raise InputError if they are no list of objects."""
    tools = row.get("tools")
    if isinstance(tools, str):  # in a CSV file, always
        tools = parse_json(tools, f"{where}: tools are not JSON") if tools.strip() else None
        row = row | {"tools": tools}
    if tools is None:
        return row
    if not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{where}: tools must be a list of objects")
    return row


def check_unicode(row, where):
    """Raise InputError if a text of the row has one half of a surrogate pair alone."""
    try:
        json.dumps(row, ensure_ascii=False, skipkeys=True, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(
            f"{where}: not Unicode: {half!r} is half of a character: write the whole, or remove it"
        ) from error


def check_text(key, text, where):
    """Return `text`, the value of `key`; raise InputError if it is not a string."""
    if not isinstance(text, str):
        raise InputError(f"{where}: {key} must be a string, not {text!r}")
    return text


def check_messages(row, where):
    """Raise InputError if a message of the row is malformed."""
    messages = row["messages"]
    try:
        roles = [message["role"] for message in messages]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: messages must be objects with role and content") from error
    if roles[-1:] != ["assistant"]:
        last = f", not of {roles[-1]!r}" if roles else ""
        raise InputError(f"{where}: the last message must be of the assistant{last}")
    for message in messages:
        if message.get("weight", 1) != 1:
            raise InputError(f"{where}: weights of messages are not implemented: leave turns out")
        content = message.get("content")
        if content is not None or not message.get("tool_calls"):
            check_text("content", content, where)


def alpaca(row, where):
    """Return a row of Alpaca as prompt and completion."""
    given = [key for key in ("instruction", "input") if row.get(key)]
    prompt = "\n".join(check_text(key, row[key], where) for key in given)
    return {"prompt": prompt, "separator": "\n", "completion": row["output"]}


def sharegpt(row, where):
    """Return a row of ShareGPT as messages."""
    try:
        messages = [
            {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
            | {key: turn[key] for key in ("weight",) if key in turn}
            for turn in row["conversations"]
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: conversations must be objects with from and value") from error
    if row.get("system"):
        messages.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": messages, "tools": row.get("tools")}


def reason_to_leave_out(row, tokenizer):
    """Return why a row cannot be learned, or "".

    The reasons are an empty answer, an answer that the text of the end token would end too early,
    and tools that the template drops.
    """
    messages = messages_of(row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not all(m.get("tool_calls") or (m.get("content") or "").strip() for m in answers):
        return "an empty answer"
    if "text" not in row and any(ends_early(message, tokenizer) for message in answers):
        return "the text of the end token inside an answer"
    if tokenizer.chat_template and hides_tools(messages, row.get("tools") or None, tokenizer):
        return "tools that the chat template does not show"
    return ""


def ends_early(answer, tokenizer):
    """Return whether the text of the end token is in an answer, and more than its written end."""
    encode = partial(tokenizer.encode, add_special_tokens=False)
    first, *rest = encode((answer.get("content") or "").strip()) or [None]
    others = encode(str(without(answer, "content")))
    return tokenizer.eos_token_id in [first, *rest[:-1], *others]


def hides_tools(messages, tools, tokenizer):
    """Return whether the chat template leaves out the tools or the calls, or rejects them."""

    def text(messages, tools):
        with suppress(InputError):  # some templates reject a message without content
            return tokenizer.render(messages, tools=tools)

    shown = text(messages, tools)
    no_calls = [without(message, "tool_calls") for message in messages]
    others = [(messages, None), (no_calls, tools)]
    return any(shown in (None, text(*o)) for o in others if o != (messages, tools))


def messages_of(row):
    """Return the messages of a row; a text is one message of the assistant."""
    if "messages" in row:
        return row["messages"]
    answer = {"role": "assistant", "content": row.get("text") or row.get("completion")}
    return [{"role": "user", "content": row["prompt"]}, answer] if "prompt" in row else [answer]


def row_content(row):
    """Return what a row says as one string: no form, no other keys, each space as one blank."""
    texts = [f"{m.get('content') or ''} {m.get('tool_calls') or ''}" for m in messages_of(row)]
    return " ".join(" ".join(texts).split())


def split_turns(row, tokenizer):
    """Return [(text before an answer, the answer), …] as the model reads them.

    A text row has no text before its answer. If a template rewrites an earlier answer (some remove
    its thoughts), the text of that answer includes all up to the next one; `encode` masks the rest.
    """
    if "text" in row:
        return [("", row["text"])]
    if not tokenizer.chat_template:
        if "messages" in row:
            raise InputError("the model has no chat template: use prompt and completion, or text")
        return [(row["prompt"] + row.get("separator", ""), row["completion"])]
    messages = messages_of(row)
    render = partial(tokenizer.render, tools=row.get("tools"))
    whole = render(messages)
    turns = []
    end = 0
    # most chat templates need a message before an answer
    answers = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"] or [0]
    try:
        befores = [render(messages[:i], add_generation_prompt=True) for i in answers]
    except InputError as error:
        raise error if answers != [0] else InputError(ONLY_ANSWER) from error
    for i, before, following in zip(answers, befores, [*befores[1:], whole]):
        if not (whole.startswith(before) and len(before) >= end):
            raise InputError(REWRITTEN if i else ONLY_ANSWER)
        here = render(messages[: i + 1])
        start = end
        end = len(here if whole.startswith(here) else following)
        turns.append((whole[start : len(before)], whole[len(before) : end]))
    return turns


def is_chat(row, tokenizer):
    """Return whether the chat template writes the row, with all special tokens."""
    return bool(tokenizer.chat_template) and "text" not in row


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
    pieces = [piece for turn in turns for piece in turn]
    # as in transformers, the template writes the special tokens of a chat
    ids = tokenizer.encode_pieces(pieces, add_special_tokens=not is_chat(row, tokenizer))
    eos = tokenizer.eos_token_id
    tokens: list = []
    in_answer: list = []
    for n, (head, tail) in enumerate(zip(ids[::2], ids[1::2]), 1):
        end = tail.index(eos) + 1 if eos in tail and "text" not in row else len(tail)
        rest = tail[end:]
        tail = tail[:end]
        if n == len(turns):
            if tail[-1:] != [eos]:
                tail = [*tail, eos]
            rest = []
        elif not (rest or turns[n][0]):  # neither an end token nor the next turn ends the answer
            raise InputError(REWRITTEN)
        tokens += head + tail + rest
        in_answer += [0] * len(head) + [1] * len(tail) + [0] * len(rest)
    return Example(tokens, in_answer if mask_prompt else [1] * len(tokens), in_answer)


def encode_rows(
    rows: list[DataRow], tokenizer: Any, train_config: TrainConfig
) -> tuple[list[Example], int]:
    """Return (examples that have a target, cut to max_seq_length; number of these that are cut).

    Rows that cannot be learned are left out, and a warning on standard error counts them: those
    with an empty answer, with the text of the end token inside an answer, with tools that the chat
    template does not show, or without a target token within max_seq_length. Raises InputError if no
    row is left, or naming the row that the chat template rejects.
    """
    return encode_usable(rows, tokenizer, train_config)[:2]


def encode_usable(rows, tokenizer, train_config):
    """Return the result of `encode_rows`, and {reason: number of rows that are left out}."""
    length = train_config.max_seq_length
    num_cut = 0
    examples = []
    left_out = Counter[str]()
    for i, row in enumerate(rows):
        row = check_row(row, f"rows[{i}]")
        try:
            reason = reason_to_leave_out(row, tokenizer)
            full = None if reason else encode(row, tokenizer, train_config.mask_prompt)
        except InputError as error:
            raise InputError(f"rows[{i}], {row_content(row)[:40]!r}: {error}") from error
        if full:
            example = Example(*(part[:length] for part in full))
            if any(example.mask[1:]):
                examples.append(example)
                num_cut += len(full.tokens) > length
            else:
                reason = f"no target token within --max-seq-length {length}"
        if reason:
            left_out[reason] += 1
    if not examples:
        raise InputError(f"no row can be learned: {' and '.join(left_out) or 'there is none'}")
    for reason, n in left_out.items():
        print(f"warning: {n} of {len(rows)} rows are left out: {reason}", file=sys.stderr)
    return examples, num_cut, left_out


def load_rows(name: str, split: str, columns: dict[str, str] | None = None) -> list[DataRow]:
    """Return the rows of a split of a built-in data set, a file or a folder.

    split: train, valid or test. columns: {key: column}, the name in the file of each key of a row,
    for example {"prompt": "question", "completion": "answer"}; other columns are not read. Of a
    file, valid and test are both every tenth row (none if there are fewer than ten). A folder has
    train.jsonl, and may have valid.jsonl and test.jsonl; test is otherwise valid.jsonl, and both
    are otherwise every tenth row of train.jsonl. A file is JSON Lines, a JSON list of rows, or CSV.
    """
    if split not in tasks.SPLITS:
        raise InputError(f"there is no split {split!r}: give one of {', '.join(tasks.SPLITS)}")
    if name in tasks.BUILTIN:
        if columns:
            raise InputError(f"`columns` is for files: the rows of {name} have their keys already")
        return tasks.BUILTIN[name](split, tasks.COUNTS[split])
    path = Path(name)
    is_shared = True  # between training and validation
    if path.is_dir():
        train = file_of(path, "train")
        path = file_of(path, split)
        is_shared = path == train == file_of(Path(name), "valid")
    elif not path.is_file():
        raise InputError(
            f"there is no data set or file {name!r}: give {', '.join(tasks.BUILTIN)}, "
            f"a {', '.join(SUFFIXES)} file, or a folder with train.jsonl"
        )
    rows = read_rows(path, columns)
    if not is_shared:
        return rows
    return [row for i, row in enumerate(rows) if (i % 10 == 9) == (split != "train")]


def existing_split(name, split):
    """Return the split that is read: valid instead of test if the data has no rows for test."""
    if name in tasks.BUILTIN or split != "test":
        return split
    folder = Path(name)
    has_none = file_of(folder, "test") == file_of(folder, "valid")
    return "valid" if has_none else "test"


def file_of(folder, split):
    """Return the file of a split in a folder; of test, that of valid if there is none.

    If there is none for valid, it is that of train. If there is none for train, it is train.jsonl.
    """
    files = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    found = next(filter(Path.exists, files), files[0])
    instead = {"test": "valid", "valid": "train"}.get(split)
    return file_of(folder, instead) if instead and not found.exists() else found
