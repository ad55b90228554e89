"""Turn rows of a user into examples: JSONL files, chat templates, and the mask of the prompt.

A row is {"text"}, {"prompt", "completion"} or {"messages"}. Rows of Alpaca and ShareGPT become one
of these when they are read. This generalizes part 5 of `lessons/00_qlora_in_one_file.py`.
"""

import json
import sys
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..batching import Example
from ..config import InputError, TrainConfig, did_you_mean, require
from . import tasks

Row = dict[str, Any]
FORMS: list[set[str]] = [{"text"}, {"prompt", "completion"}, {"messages"}]
ONE_OF = "text, or prompt and completion, or messages, or the keys of Alpaca or ShareGPT"
ALPACA, SHAREGPT = {"instruction", "output"}, {"conversations"}
ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}  # of ShareGPT, in chats
REWRITTEN = "the model's chat template rewrites earlier turns: use text rows"


def read_rows(path, tokenizer=None):
    """Return the rows of a JSONL file; raise InputError naming the file and the malformed line.

    Rows that cannot be learned are left out, and a warning counts them; see `reason_to_skip`.
    """
    rows = [(check_row(value, where), where) for value, where in read_jsonl(path)]
    require(rows, f"{path} is empty: write one JSON object per line")
    reasons = [reason_to_skip(row, tokenizer) for row, _ in rows]
    for reason in sorted({*reasons} - {""}):
        count = f"{reasons.count(reason)}, the first is {rows[reasons.index(reason)][1]}"
        say_once(f"warning: rows that are skipped because they have {reason}: {count}")
    require("" in reasons, f"{path} has no row that can be used")
    return [row for (row, _), reason in zip(rows, reasons) if not reason]


@cache
def say_once(text):
    """Print a line on standard error, but no line twice: a file is read once per split."""
    print(text, file=sys.stderr)


def read_jsonl(path):
    """Yield (value, place) of each line of a JSONL file; the place is "FILE, line N"."""
    try:
        text = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    for n, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {n}"
            whole = line.decode(errors="ignore").encode() == line
            require(whole, f"{where}: not UTF-8: save the file as UTF-8")
            yield parse_json(line.decode(), f"{where}: not JSON"), where


def parse_json(text, complaint):
    """Return the value of a JSON text; raise InputError with the complaint if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        says = str(error).replace("line 1 column", "column")  # a row of a file has its own number
        raise InputError(f"{complaint}: {says}") from error


def check_row(row, where):
    """Return `row` in one of the three forms; raise InputError if its keys are of none."""
    require(isinstance(row, dict), f"{where}: the row must be a JSON object")
    for name, keys, convert in ("Alpaca", ALPACA, alpaca), ("ShareGPT", SHAREGPT, sharegpt):
        if keys <= row.keys():
            row = convert(row, where)
            say_once(f"{where.rpartition(',')[0]}: read as {name}")
    known = {key for keys in FORMS for key in keys & set(row)}
    if known not in FORMS:
        forms = [*FORMS, ALPACA, SHAREGPT]
        near = {key for key in set.union(*forms) if get_close_matches(key, row, cutoff=0.75)}
        nearest = max(forms, key=lambda keys: len(keys & near))
        needed = " and ".join(sorted(nearest)) if near and not nearest <= row.keys() else ONE_OF
        raise InputError(f"{where}: the keys are {sorted(row)}: a row needs {needed}")
    for key in known - {"messages"}:
        check_text(key, row[key], where)
    return check_messages(row, where) if "messages" in row else row


def check_text(key, text, where):
    """Return `text`, the value of `key`; raise InputError if it is not a string of characters."""
    require(isinstance(text, str), f"{where}: {key} must be a string, not {text!r}")
    whole = text.encode(errors="ignore").decode() == text
    require(whole, f"{where}: a text has a lone surrogate: remove that character")
    return text


def check_messages(row, where):
    """Return the row, with its tools as a list; raise InputError if a message is malformed."""
    messages, tools = row["messages"], row.get("tools") or []
    sound = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    sound = sound and all("role" in m and ("content" in m or "tool_calls" in m) for m in messages)
    sound = sound and messages[-1:] and messages[-1]["role"] == "assistant"
    what = "objects with role and content, the last one of the assistant"
    require(sound, f"{where}: messages must be {what}")
    for message in messages:
        if message.get("content") is not None or not message.get("tool_calls"):
            check_text("content", message.get("content"), where)
    if isinstance(tools, str):
        tools = parse_json(tools, f"{where}: tools are not JSON")
    require(isinstance(tools, list), f"{where}: tools must be a list of JSON schemas")
    return row | {"tools": tools} if tools else row


def alpaca(row, where):
    """Return a row of Alpaca as prompt and completion."""
    given = {"input": row.get("input") or ""} | {key: row[key] for key in ALPACA}
    parts = {key: check_text(key, text, where) for key, text in given.items()}
    prompt = "\n".join(filter(None, [parts["instruction"], parts["input"]]))
    return {"prompt": prompt, "separator": "\n", "completion": parts["output"]}


def sharegpt(row, where):
    """Return a row of ShareGPT as messages."""
    turns, system = row["conversations"], row.get("system")
    sound = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    sound = sound and all("value" in turn and isinstance(turn.get("from"), str) for turn in turns)
    require(sound, f"{where}: conversations must be objects with from and value")
    turns = [{"from": "system", "value": system}] * bool(system) + turns
    messages = [{"role": ROLES.get(t["from"], t["from"]), "content": t["value"]} for t in turns]
    return {"messages": messages, "tools": row.get("tools")}


def reason_to_skip(row, tokenizer):
    """Return why a row cannot be learned (no answer, or tools that the template drops), or ""."""
    messages, tools = row.get("messages", []), row.get("tools")
    last = messages[-1] if messages else {"content": row.get("text") or row.get("completion")}
    if not (last.get("tool_calls") or last.get("content")):
        return "an empty answer"

    def text(messages, tools):
        with suppress(InputError):  # some templates reject a message without content
            return tokenizer.render(messages, tools=tools)

    no_calls = [{k: v for k, v in m.items() if k != "tool_calls"} for m in messages]
    others = [part for part in ((messages, None), (no_calls, tools)) if part != (messages, tools)]
    asked = others and tokenizer and tokenizer.has_chat_template
    hidden = asked and text(messages, tools) in (None, *(text(*part) for part in others))
    return "tools that the chat template of the model does not show" if hidden else ""


def split_turns(row, tokenizer):
    """Return [(text before an answer, the answer), …] as the model reads them.

    A text row has no text before its answer. If a template rewrites an earlier answer (some remove
    its thoughts), the text of that answer includes all up to the next one; `encode` masks the rest.
    """
    if "text" in row:
        return [("", row["text"])]
    if "prompt" in row and not tokenizer.has_chat_template:
        return [(row["prompt"] + row.get("separator", ""), row["completion"])]
    messages = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    render = partial(tokenizer.render, tools=row.get("tools"))
    whole, turns, end = render(messages), list[tuple[str, str]](), 0
    # most chat templates need a message before an answer
    answers = [i for i, m in enumerate(messages) if i and m["role"] == "assistant"] or [0]
    befores = [render(messages[:i], add_generation_prompt=True) for i in answers]
    for i, before, following in zip(answers, befores, [*befores[1:], whole]):
        require(whole.startswith(before) and len(before) >= end, REWRITTEN)
        here, start = render(messages[: i + 1]), end
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
    TRL). Text that a chat template writes after the end of the last answer is dropped.
    """
    turns, eos = split_turns(row, tokenizer), tokenizer.eos_token_id
    example, others = Example([], []), [0 if mask_prompt else 1]
    for n, (before, answer) in enumerate(turns, 1):
        head = tokenizer.encode(before, add_special_tokens=n == 1) if before else []
        tail = tokenizer.encode(answer, add_special_tokens=n == 1 and not before)
        end = tail.index(eos) + 1 if eos in tail and "text" not in row else len(tail)
        tail, rest = tail[:end], tail[end:]
        if n == len(turns):
            tail, rest = tail + [eos] * (tail[-1:] != [eos]), []
        else:  # an end token, or the next turn, shows where the answer ends
            require(rest or turns[n][0], REWRITTEN)
        example.tokens.extend(head + tail + rest)
        example.mask.extend(others * len(head) + [1] * len(tail) + others * len(rest))
    return example


def encode_rows(
    rows: list[Row], tokenizer: Any, train_config: TrainConfig
) -> tuple[list[Example], int]:
    """Return (examples that have a target, cut to max_seq_length; number of examples cut)."""
    length = train_config.max_seq_length
    full = [encode(row, tokenizer, train_config.mask_prompt) for row in rows]
    cut = [Example(*(part[:length] for part in example)) for example in full]
    kept = [example for example in cut if any(example.mask[1:])]
    way = "raise it or give longer texts"
    require(kept, f"no row has a target token within --max-seq-length {length}: {way}")
    return kept, sum(len(e.tokens) > length for e in full)


def load_rows(name: str, split: str, tokenizer: Any = None) -> list[Row]:
    """Return the rows of a split of a built-in data set, a .jsonl file or a folder.

    `split` is train, valid or test. tokenizer: see `read_rows`. For a file, valid and test are both
    every tenth row (none if there are fewer than ten). A folder has train.jsonl and valid.jsonl,
    and may have test.jsonl; otherwise test is valid.jsonl.
    """
    path = Path(name)
    if name in tasks.BUILTIN:
        return tasks.builtin(name, split)
    if path.is_dir():
        files = [path / f"{split}.jsonl"] + [path / "valid.jsonl"] * (split == "test")
        return read_rows(next((f for f in files if f.exists()), files[0]), tokenizer)
    known = f"{', '.join(tasks.BUILTIN)}, a .jsonl file, or a folder with train.jsonl"
    near = did_you_mean(name, tasks.BUILTIN)
    missing = f"there is no data set or file {name!r}: give {known} and valid.jsonl{near}"
    require(path.is_file(), missing)
    rows = read_rows(path, tokenizer)
    return [row for i, row in enumerate(rows) if (i % 10 == 9) == (split != "train")]
