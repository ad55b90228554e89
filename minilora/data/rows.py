"""Rows of a user: their forms, their files, and what is malformed.

A row is {"text"}, {"prompt", "completion"}, {"instruction", "output"} (Alpaca) or {"messages"}.
Rows of ShareGPT become messages when they are read. This generalizes part 5 of
`lessons/00_qlora_in_one_file.py`.
"""

import json
import re
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ..config import InputError
from ..tree import without
from .row_files import OTHERS, SUFFIXES, parse_json, read_values
from .tasks import BUILTIN, COUNTS, SPLITS

DataRow = dict[str, Any]
FORMS: dict[tuple, tuple] = {  # {keys that a row needs: other keys that are read with them}
    ("text",): (),
    ("prompt", "completion"): ("tools",),
    ("instruction", "output"): ("input",),
    ("conversations",): ("system", "tools"),
    ("messages",): ("tools",),
}
KEYS = {key for form, others in FORMS.items() for key in form + others}
# keys on which an answer can depend
CONTEXT = {"history", *(key for others in FORMS.values() for key in others)}
LISTS = ("conversations", "messages", "tools")  # keys of lists of objects
ROLES = {  # {role of ShareGPT: role in chats}
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "observation": "tool", "tool": "tool", "system": "system",
}  # fmt: skip
NAMES = {  # {split: words in the name of its file in a folder}, as in Hugging Face's datasets
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# keys of a message that other trainers multiply its loss by
WEIGHTS = ("weight", "train", "loss", "loss_weight", "trainable", "training", "train_on_turn")


def load_rows(name: str, split: str, columns: dict[str, str] | None = None) -> list[DataRow]:
    """Return the rows of a split of a built-in data set, a file or a folder.

    split: train, valid or test. columns: {key: column}, the name in the file of each key of a row,
    for example {"prompt": "question", "completion": "answer"}; other columns are not read. Of a
    file, valid and test are both every tenth row (none if there are fewer than ten). A folder has
    train.jsonl, and may have valid.jsonl and test.jsonl; test is otherwise valid.jsonl, and both
    are otherwise every tenth row of train.jsonl. Other names of the splits are those of Hugging
    Face, as validation.jsonl or my-dev-00000.jsonl. A file is JSON Lines, a JSON list of rows, or
    CSV.
    """
    if split not in SPLITS:
        raise InputError(f"there is no split {split!r}: give one of {', '.join(SPLITS)}")
    if name in BUILTIN:
        if columns:
            raise InputError(f"`columns` is for files: the rows of {name} have their keys already")
        if Path(name).exists():
            warn_once(f"{name} is the built-in data set: write ./{name} for that of this folder")
        return BUILTIN[name](split, COUNTS[split])
    path = Path(name)
    is_shared = True  # between training and validation
    if path.is_dir():
        train = file_of(path, "train")
        path = file_of(path, split)
        is_shared = path == train == file_of(Path(name), "valid")
    elif not path.is_file():
        raise InputError(
            f"there is no data set or file {name!r}: give {', '.join(BUILTIN)}, "
            f"a {', '.join(SUFFIXES)} file, or a folder with train.jsonl"
        )
    rows = read_rows(path, columns, name)
    if not is_shared:
        return rows
    return [row for i, row in enumerate(rows) if (i % 10 == 9) == (split != "train")]


def existing_split(name, split):
    """Return the split that is read: valid instead of test if the data has no rows for test."""
    if name in BUILTIN or split != "test":
        return split
    folder = Path(name)
    has_one = folder.is_dir() and file_of(folder, "test") != file_of(folder, "valid")
    return "test" if has_one else "valid"


def file_of(folder, split):
    """Return the file of a split in a folder; of test, that of valid if there is none.

    If there is none for valid, it is that of train. Raises InputError if there are several, or
    none for train.
    """
    paths = sorted(folder.glob("[!.]*"))
    found = [path for path in paths if split_of(path.name) == split]
    if len(found) > 1:
        several = " and ".join(path.name for path in found)
        raise InputError(
            f"{folder} has several files of the split {split}: {several}: "
            "keep one, or write their rows into one"
        )
    suffixes = {found[0].suffix.lower()} if found else SUFFIXES
    for path in paths:
        if path.suffix.lower() in suffixes and not split_of(path.name):
            warn_once(f"{path} is not read: the name of a file has its split, such as valid")
    if found:
        if found[0].is_file() and found[0].suffix.lower() not in (*SUFFIXES, *OTHERS):
            raise InputError(
                f"{found[0]}: a file of rows ends with {', '.join(SUFFIXES)}: rename or remove it"
            )
        return found[0]
    if split == "train":
        raise InputError(f"{folder} has no file of the split train: name it train.jsonl")
    return file_of(folder, {"test": "valid", "valid": "train"}[split])


def split_of(name):
    """Return the split that the first such word of a file's name says, or None."""
    words = re.split("[^a-z]", name.lower())
    return next((split for word in words for split in NAMES if word in NAMES[split]), None)


def read_rows(path, columns=None, name=None):
    """Return the rows of a file, in one of the four forms; columns: see `load_rows`.

    A warning has the keys that are not read, once for each `name` (default: `path`); with columns,
    only those that an answer can depend on. Raises InputError naming the file and the malformed
    line.
    """
    values = list(read_values(path))
    if not values:
        raise InputError(f"{path} is empty: write one JSON object per line")
    if columns:
        found = {key for value, _ in values if isinstance(value, dict) for key in value}
        check_columns(columns, found, path)
    rows = [check_row(value, where, columns) for value, where in values]
    unread = unread_keys([row for row, _ in values], columns)
    if unread:
        what = f"the rows have keys that are not read: {unread} (--columns chooses other keys)"
        warn_once(f"{name or path}: {what}")
    return rows


def unread_keys(rows, columns=None):
    """Return the keys with a value that are not read, in order, of rows of a valid form: a text.

    With columns, only those on which an answer can depend; a text has its own.
    """
    if columns and "text" in columns:
        return ""
    unread = set()
    for row in rows:
        others = row.keys() - (columns.values() if columns else read_keys(row, ""))
        if columns:
            others &= CONTEXT
        unread |= {key or "'' (without a name)" for key in others if not is_empty(row[key])}
    return ", ".join(sorted(unread))


def is_empty(value):
    """Return whether a value of a row is null, or an empty text or list."""
    return value is None or (isinstance(value, str | list) and not value)


def warn(text):
    """Print a warning as one line on standard error."""
    print(f"warning: {text}", file=sys.stderr)


@cache  # training and validation read one file
def warn_once(text):
    """Print a warning, but only the first time."""
    warn(text)


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
    """Return `row` in one of the four forms; raise InputError if its keys are of none."""
    try:
        return _checked(row, where, columns)
    except RecursionError:
        raise InputError(f"{where}: lists and objects are nested too deeply") from None


def _checked(row, where, columns):
    if not isinstance(row, dict):
        raise InputError(f"{where}: the row must be a JSON object")
    check_unicode(row, where)
    if columns:
        row = {key: row[column] for key, column in columns.items() if column in row}
    row = {key: row[key] for key in read_keys(row, where)}
    for key in LISTS & row.keys():
        if isinstance(row[key], str):  # in a CSV file, always
            row[key] = parse_json(row[key], f"{where}: {key} is not JSON")
        check_objects(key, row[key], where)
    if "tools" in row:
        # the tools stay as they are, but the walk raises RecursionError if they are too deep
        row["tools"] = without_null(row["tools"], keep=True)
    if "conversations" in row:
        row = sharegpt(row, where)
    if "messages" in row:
        row["messages"] = [
            # the content of a call is null
            {k: without_null(v) for k, v in message.items() if k == "content" or v is not None}
            for message in row["messages"]
        ]
        check_messages(row["messages"], where)
    else:
        for key in without(row, "tools"):
            check_text(key, row[key], where)
    return row


def read_keys(row, where):
    """Return the keys of a row that are read: those of its form. A key without a value is absent.

    Raises InputError if the row has no form, or a value of another form.
    """
    empty = {key for key in LISTS if isinstance(row.get(key), str) and not row[key]}  # of a table
    found = [key for key in row if row[key] is not None and key not in empty]
    forms = [form for form in FORMS if {*form} <= {*found}]
    if not forms:
        raise InputError(
            f"{where}: the keys are {sorted(found)}: a row needs text, or prompt and completion, "
            "or messages, or the keys of Alpaca or ShareGPT, "
            "or --columns prompt=KEY completion=KEY"
        )
    form = forms[-1]
    keys = [key for key in form + FORMS[form] if key in found]
    known = sorted(KEYS | CONTEXT)
    others = [key for key in known if key not in keys and not is_empty(row.get(key))]
    if others:
        names = " ".join(f"{key}={key}" for key in keys)
        raise InputError(
            f"{where}: {' and '.join(others)} would not be read next to {' and '.join(form)}: "
            f"write messages, or choose the keys, for example with --columns {names}"
        )
    return keys


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
        raise InputError(f"{where}: {key} must be a string, not {text!r:.60}")
    return text


def check_objects(key, value, where):
    """Raise InputError if `value`, the value of `key`, is not a list of objects."""
    if not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise InputError(f"{where}: {key} must be a list of objects, not {value!r:.60}")


def without_null(value, keep=False):
    """Return a part of a message without the keys that are null; `keep`: with them.

    `datasets` gives each object the keys of all, with null, and templates test whether a key is
    there. An argument of a call can be null, as in transformers.
    """
    if isinstance(value, list):
        return [without_null(item, keep) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if keep or item is not None}
    return {key: without_null(item, keep or key == "arguments") for key, item in kept.items()}


def has_null_values(row):
    """Return whether the arguments of a call or the tools have a null, but for that of a default.

    `datasets` can write it for a key of another row.
    """
    calls = [call for message in messages_of(row) for call in message.get("tool_calls") or ()]
    return has_null([row.get("tools") or [], *(function_of(c).get("arguments") for c in calls)])


def has_null(value):
    """Return whether a key in a value of JSON is null, but for `default`."""
    if isinstance(value, dict):
        if None in [item for key, item in value.items() if key != "default"]:
            return True
        value = [*value.values()]
    return isinstance(value, list) and any(map(has_null, value))


def check_messages(messages, where):
    """Raise InputError if a message of a row is malformed."""
    roles = [check_text("the role of a message", m.get("role"), where) for m in messages]
    if roles[-1:] != ["assistant"]:
        last = f", not of {roles[-1]!r}" if roles else ""
        raise InputError(f"{where}: the last message must be of the assistant{last}")
    for role in roles:
        meant = ROLES.get(role.strip().lower())  # of a name such as "Assistant" or "gpt"
        if meant and role not in ROLES.values():
            raise InputError(f"{where}: the role {role!r} is not {meant!r}")
    for message in messages:
        if any(message.get(key, 1) != 1 for key in WEIGHTS) or message.get("train_detail"):
            raise InputError(f"{where}: weights of messages are not implemented: leave turns out")
        content = message.get("content")
        calls = message.get("tool_calls") or []
        check_objects("tool_calls", calls, where)
        functions = [*map(function_of, calls)]
        check_objects("the functions of tool_calls", functions, where)
        if content is not None or not calls:
            check_text("content", content, where)


def sharegpt(row, where):
    """Return a row of ShareGPT as messages."""
    messages = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    for turn in row["conversations"]:
        if not turn.keys() >= {"from", "value"}:
            raise InputError(
                f"{where}: conversations must be objects with from and value: "
                "with role and content, use --columns messages=conversations"
            )
        if turn["from"] not in list(ROLES):  # it may be of any type
            raise InputError(f"{where}: from must be one of {', '.join(ROLES)}: {turn['from']!r}")
        if turn.keys() & {"role", "content"}:
            raise InputError(f"{where}: a turn has from and value, and also role or content")
        message = {"role": ROLES[turn["from"]], "content": turn["value"]}
        messages.append(without(turn, "from", "value") | message)
    return without(row, "conversations", "system") | {"messages": messages}


def messages_of(row):
    """Return the messages of a row; a text is one message of the assistant."""
    if "messages" in row:
        return row["messages"]
    if "text" in row:
        return [{"role": "assistant", "content": row["text"]}]
    prompt, _, completion = parts_of(row)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def parts_of(row):
    """Return (prompt, the separator if there is no chat template, completion) of a row."""
    if "output" in row:
        given = filter(None, (row["instruction"], row.get("input")))
        return "\n".join(given), "\n", row["output"]
    return row["prompt"], "", row["completion"]


def row_content(row):
    """Return what a row says as one string: no form, no other keys, no white space."""
    said = []
    for message in messages_of(row):
        said.append(message.get("content") or "")
        said += map(call_content, message.get("tool_calls") or ())
    return "".join("".join(said).split())


def function_of(item):
    """Return the function of a call or a tool, which OpenAI's API has in an object around it."""
    return item.get("function", item)


def call_content(call):
    """Return the function of a call as JSON, without type and id, its arguments as an object."""
    function = without(function_of(call), "type", "id")
    if isinstance(function.get("arguments"), str):
        with suppress(ValueError, RecursionError):  # not JSON
            function["arguments"] = json.loads(function["arguments"])
    return json.dumps(function, sort_keys=True)
