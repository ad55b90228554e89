"""Turn rows of a user into examples: JSONL files, chat templates, and the mask of the prompt.

A row is {"text"}, {"prompt", "completion"} or {"messages"}. This generalizes part 5 of
`lessons/00_qlora_in_one_file.py`.
"""

import json
from pathlib import Path
from typing import Any

from ..batching import Example
from ..config import InputError, TrainConfig, require
from . import tasks

Row = dict[str, Any]
SHAPES = ({"text"}, {"prompt", "completion"}, {"messages"})


def read_rows(path):
    """Return the rows of a JSONL file; raise InputError naming the file and the malformed line."""
    rows = list(read_jsonl(path, check_row))
    require(rows, f"{path} is empty: write one JSON object per line")
    return rows


def read_jsonl(path, check):
    """Yield the values of a JSONL file; `check(value, where)` may raise InputError."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    for n, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {n}"
            whole = line.decode(errors="ignore").encode() == line
            require(whole, f"{where}: not UTF-8: save the file as UTF-8")
            value = parse_json(line.decode(), f"{where}: not JSON")
            check(value, where)
            yield value


def parse_json(text, complaint):
    """Return the value of a JSON text; raise InputError with the complaint if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{complaint}: {error}") from error


def check_row(row, where):
    """Raise InputError unless `row` has one of the three shapes."""
    require(isinstance(row, dict), f"{where}: the row must be a JSON object")
    shape = {key for keys in SHAPES for key in keys & set(row)}
    way = "give text, or prompt and completion, or messages"
    require(shape in SHAPES, f"{where}: the keys are {sorted(row)}: {way}")
    messages = row.get("messages", ())
    if "messages" in row:
        fields = {"role", "content"}
        sound = isinstance(messages, list) and bool(messages)
        sound = sound and all(isinstance(m, dict) and fields <= m.keys() for m in messages)
        sound = sound and messages[-1]["role"] == "assistant"
        what = "objects with role and content, the last one of the assistant"
        require(sound, f"{where}: messages must be {what}")
    texts = [(key, row[key]) for key in sorted(shape - {"messages"})]
    for key, text in texts + [("content", m["content"]) for m in messages]:
        require(isinstance(text, str), f"{where}: {key} must be a string, not {text!r}")
        whole = text.encode(errors="ignore").decode() == text
        require(whole, f"{where}: a text has a lone surrogate: remove that character")


def split_row(row, tokenizer):
    """Return (prompt, answer) as the model reads them. The prompt of a text row is empty."""
    if "text" in row:
        return "", row["text"]
    if "prompt" in row and not tokenizer.has_chat_template:
        return row["prompt"], row["completion"]
    messages = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    prompt = tokenizer.render(messages[:-1], add_generation_prompt=True)
    whole = tokenizer.render(messages)
    rewritten = "the model's chat template rewrites earlier turns: use text rows"
    require(whole.startswith(prompt), rewritten)
    return prompt, whole[len(prompt) :]


def encode(row, tokenizer, mask_prompt=False):
    """Return the Example of a row: prompt (not counted if masked), answer, end of sequence.

    Text that a chat template writes after the end of the answer is dropped.
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


def load_rows(name: str, split: str) -> list[Row]:
    """Return the rows of a split of a built-in data set, a .jsonl file or a folder.

    `split` is train, valid or test. For a file, valid and test are both every tenth row (none if
    there are fewer than ten). A folder has train.jsonl and valid.jsonl, and may have test.jsonl;
    otherwise test is valid.jsonl.
    """
    path = Path(name)
    if name in tasks.BUILTIN:
        return tasks.builtin(name, split)
    if path.is_dir():
        files = [path / f"{split}.jsonl"] + [path / "valid.jsonl"] * (split == "test")
        return read_rows(next((f for f in files if f.exists()), files[0]))
    known = f"{', '.join(tasks.BUILTIN)}, a .jsonl file, or a folder with train.jsonl"
    there = path.suffix == ".jsonl" and path.exists()
    require(there, f"the data {name!r} do not exist: give {known} and valid.jsonl")
    return [row for i, row in enumerate(read_rows(path)) if (i % 10 == 9) == (split != "train")]
