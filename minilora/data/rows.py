"""Turn rows of a user into examples: forms of rows, chat templates, and the mask of the prompt.

A row is {"text"}, {"prompt", "completion"}, {"instruction", "output"} (Alpaca) or {"messages"}.
Rows of ShareGPT become messages when they are read. This generalizes part 5 of
`lessons/00_qlora_in_one_file.py`.
"""

import json
import re
import sys
from collections import Counter
from contextlib import suppress
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from ..batching import Example
from ..config import InputError, TrainConfig
from ..tree import without
from . import tasks
from .row_files import OTHERS, SUFFIXES, parse_json, read_values

DataRow = dict[str, Any]
FORMS: dict[tuple, tuple] = {  # {keys that a row needs: other keys that are read with them}
    ("text",): (),
    ("prompt", "completion"): ("tools",),
    ("instruction", "output"): ("input",),
    ("conversations",): ("system", "tools"),
    ("messages",): ("tools",),
}
KEYS = {key for form, others in FORMS.items() for key in form + others}
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
EMPTY = "an empty answer"
PARTS = "a part of the last answer, of a call or of a tool that the chat template does not show"
HIDDEN_TOOLS = "tools that the chat template does not show"
ONLY_ANSWER = "the chat template needs a message before the answer: give it, or use a text row"
REWRITTEN = (
    "the chat template changes the messages before an answer when the answer follows: use text rows"
)
MARK = "10000000000000001"  # a text that no template changes
ENDED = "the chat template writes an end token inside an answer: use text rows"


def read_rows(path, columns=None, name=None):
    """Return the rows of a file, in one of the four forms; columns: see `load_rows`.

    Without columns, a warning has the keys that are not read, once for each `name` (default:
    `path`). Raises InputError naming the file and the malformed line.
    """
    values = list(read_values(path))
    if not values:
        raise InputError(f"{path} is empty: write one JSON object per line")
    if columns:
        found = {key for value, _ in values if isinstance(value, dict) for key in value}
        check_columns(columns, found, path)
    rows = [check_row(value, where, columns) for value, where in values]
    if not columns:
        unread = unread_keys(row for row, _ in values)
        if unread:
            what = f"the rows have keys that are not read: {unread} (--columns chooses other keys)"
            warn_once(f"{name or path}: {what}")
    return rows


def unread_keys(rows):
    """Return the keys with a value that are not read, in order, of rows of a valid form: a text."""
    unread = {
        key or "'' (without a name)"
        for row in rows
        for key in row.keys() - read_keys(row, "")
        if not is_empty(row[key])
    }
    return ", ".join(sorted(unread))


def is_empty(value):
    """Return whether a value of a row is null, or an empty text or list."""
    return value is None or (isinstance(value, str | list) and not value)


def unread_message_keys(rows, tokenizer):
    """Return the keys of messages without which the chat template writes the same text."""
    chats = [row for row in rows if "messages" in row]
    keys = {key for row in chats for message in row["messages"] for key in message}
    # a row whose calls are not shown is left out; few templates read the id of a call
    known = {"role", "content", "tool_calls", "tool_call_id"}
    return {key for key in keys - known if not any(shows(tokenizer, row, key) for row in chats)}


def shows(tokenizer, row, key):
    """Return whether the text of a chat depends on a key of its messages."""
    messages = row["messages"]
    others = [without(message, key) for message in messages]
    if not tokenizer.chat_template or others == messages:
        return False
    tools = row.get("tools") or None
    try:
        return tokenizer.render(others, tools=tools) != tokenizer.render(messages, tools=tools)
    except InputError:
        return True  # the row is named later, if the template rejects it


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
        row["tools"] = without_null(row["tools"])
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
    known = *sorted(KEYS), "history"
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


def without_null(value):
    """Return a value of JSON without the keys that are null, as TRL does.

    `datasets` gives each object the keys of all, with null, and templates test whether a key is
    there.
    """
    if isinstance(value, dict):
        return {k: without_null(v) for k, v in value.items() if v is not None}
    return [without_null(v) for v in value] if isinstance(value, list) else value


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
        functions = [call.get("function", call) for call in calls]
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


def reason_to_leave_out(row, tokenizer):
    """Return why a row cannot be learned, or "".

    The reasons are an empty answer, an answer that the text of the end token would end too early,
    messages or tools that the template drops, and arguments that it puts into quotes.
    """
    messages = messages_of(row)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not all(m.get("tool_calls") or (m.get("content") or "").strip() for m in answers):
        return EMPTY
    if "text" not in row and any(ends_early(message, tokenizer) for message in answers):
        return "the text of the end token inside an answer"
    tools = row.get("tools") or None
    if is_chat(row, tokenizer):
        return trouble_with_template(messages, tools, tokenizer)
    return HIDDEN_TOOLS if tools else ""


def ends_early(answer, tokenizer):
    """Return whether the text of an end token is in an answer, and more than its written end."""
    encode = partial(tokenizer.encode, add_special_tokens=False)
    first, *rest = encode((answer.get("content") or "").strip()) or [None]
    others = encode(str(without(answer, "content")))
    return not end_tokens(tokenizer).isdisjoint([first, *rest[:-1], *others])


def end_tokens(tokenizer):
    """Return the ids that end generation: that of the tokenizer, and those of the model."""
    return {tokenizer.eos_token_id, *tokenizer.eos_token_ids}


def trouble_with_template(messages, tools, tokenizer):
    """Return why the chat template does not write messages, tools and calls as they are, or ""."""

    def text(messages, tools=tools):
        with suppress(InputError):  # some templates reject a message without content
            return tokenizer.render(messages, tools=tools)

    shown = text(messages)
    # a template may trim or escape a content, but not digits at its end; calls are checked below
    marks = {
        i: str(10**16 + i)
        for i, m in enumerate(messages)
        if (m.get("content") or "").strip() and not m.get("tool_calls")
    }
    marked = text([
        m | {"content": m["content"] + marks[i]} if i in marks else m
        for i, m in enumerate(messages)
    ])  # fmt: skip
    if marked is not None and not all(mark in marked for mark in marks.values()):
        return "a message that the chat template does not show"
    names = "tool_calls", "function_call"
    # an empty list of calls is none
    no_calls = [without(m, *names) if any(map(m.get, names)) else m for m in messages]
    others = [(messages, None), (no_calls, tools)]
    if any(shown in (None, text(*o)) for o in others if o != (messages, tools)):
        return HIDDEN_TOOLS
    calls = [
        call.get("function", call) for message in messages for call in message.get("tool_calls", ())
    ]
    arguments = [call.get("arguments") for call in calls]
    quotes = partial(json.dumps, ensure_ascii=False), repr  # as JSON, and as Python prints a list
    if any(quote(a) in shown for a in arguments if isinstance(a, str) for quote in quotes):
        return "arguments of calls as text, which the chat template puts into quotes"
    return PARTS if shown and lacks_a_part(shown, messages, tools, calls) else ""


def lacks_a_part(shown, messages, tools, calls):
    """Return whether a rendered chat lacks words of its last message, of calls, or of tools' names.

    The texts next to calls count, too. A template may leave out thoughts of earlier answers, and
    parts of the schema of a tool.
    """
    names = [item.get("function", item).get("name") for item in tools or ()]
    values = without(messages[-1], "role", "name", "tool_calls").values()
    last = [value for value in values if not isinstance(value, int | float)]  # as that of a turn
    said = [m.get("content") for m in messages[:-1] if m.get("tool_calls")]
    needed = Counter[str]()
    for text in texts([last, said, names, *([c.get("name"), c.get("arguments")] for c in calls)]):
        if not any(form in shown for form in escaped(text)):
            needed += words(text)
    unescaped = re.sub(r"\\([bfnrt]|u00[01].)", " ", shown)  # of texts that are shown in part
    return bool(needed - (words(shown) | words(unescaped)))


def texts(value):
    """Yield the texts and numbers of a value of JSON as texts, keys included."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif value is not None:
        yield str(value)


def escaped(text):
    """Return what JSON and Python print of a text, if it is not the text."""
    in_quotes = json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text)
    return {quoted[1:-1] for quoted in in_quotes} - {text}


def words(text):
    """Return {word: how often} of a text, in lower case; a symbol such as 👍 is a word."""
    return Counter(re.findall(r"\w+|[^\w\s\x00-\x7f]", text.lower()))  # true in JSON, and True


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


def call_content(call):
    """Return the function of a call as JSON, without type and id, its arguments as an object."""
    function = without(call.get("function", call), "type", "id")
    if isinstance(function.get("arguments"), str):
        with suppress(ValueError, RecursionError):  # not JSON
            function["arguments"] = json.loads(function["arguments"])
    return json.dumps(function, sort_keys=True)


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
        prompt, separator, completion = parts_of(row)
        return [(prompt + separator, completion)]
    messages = messages_of(row)
    render = partial(tokenizer.render, tools=row.get("tools") or None)
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
        end = len(here)
        if not whole.startswith(here):
            end = len(following)
            # an end token after the mark would be of the next message
            marked = messages[i + 1] | {"content": MARK}
            shown = render([*messages[: i + 1], marked, *messages[i + 2 :]]).partition(MARK)[0]
            answer = tokenizer.encode(shown[len(before) :], add_special_tokens=False)
            if end_tokens(tokenizer).isdisjoint(answer):
                raise InputError(REWRITTEN)
        turns.append((whole[start : len(before)], whole[len(before) : end]))
    return turns


def is_chat(row, tokenizer):
    """Return whether the chat template writes the row, with all special tokens."""
    return bool(tokenizer.chat_template) and "text" not in row


def split_row(row, tokenizer):
    """Return (text before the last answer, the last answer) as the model reads them."""
    *before, answer = chain(*split_turns(row, tokenizer))
    return "".join(before), answer


def encode(row, tokenizer, mask_prompt=False):
    """Return the Example of a row: its turns, and the end of the sequence.

    With `mask_prompt`, the targets are all answers with their end tokens (as assistant_only_loss in
    TRL). Exact match compares these tokens in both cases; a text row is one answer. Text that a
    chat template writes after the end of the last answer is dropped.
    """
    turns = split_turns(row, tokenizer)
    pieces = list(chain(*turns))
    # as in transformers, the template writes the special tokens of a chat
    ids = tokenizer.encode_pieces(pieces, add_special_tokens=not is_chat(row, tokenizer))
    ends = end_tokens(tokenizer)
    answers = [i for i, m in enumerate(messages_of(row)) if m["role"] == "assistant"]
    heads = [*ids[::2], []]
    tokens: list = []
    in_answer: list = []
    for n, (i, tail) in enumerate(zip(answers[-len(turns) :], ids[1::2])):
        head, following = heads[n : n + 2]
        end = len(tail)
        if "text" not in row:
            if ends.isdisjoint(tail):
                n_moved = length_of_end(following, tokenizer)
                tail = [*tail, *following[:n_moved]]
                del following[:n_moved]
            end = next((place for place, token in enumerate(tail, 1) if token in ends), len(tail))
        rest = tail[end:]
        tail = tail[:end]
        has_rest = is_chat(row, tokenizer) and tokenizer.decode(rest).strip()
        if has_rest and ends_inside(row, i, tokenizer):
            raise InputError(ENDED)
        if n == len(turns) - 1:
            if ends.isdisjoint(tail[-1:]):
                tail = [*tail, tokenizer.eos_token_id]
            rest = []
        tokens += head + tail + rest
        in_answer += [0] * len(head) + [1] * len(tail) + [0] * len(rest)
    return Example(tokens, in_answer if mask_prompt else [1] * len(tokens), in_answer)


def length_of_end(tokens, tokenizer):
    """Return up to where tokens are white space and an end token; 0 if they begin otherwise.

    An end token with which the next message begins ends the answer before that message.
    """
    ends = end_tokens(tokenizer)
    place = next((k for k, token in enumerate(tokens) if token in ends), None)
    if place is None:
        return 0
    before = tokenizer.decode(tokens[:place], skip_special_tokens=False)
    return 0 if before.strip() else place + 1


def ends_inside(row, i, tokenizer):
    """Return whether the template writes an end token before the end of what message i says."""
    messages = messages_of(row)
    render = partial(tokenizer.render, tools=row.get("tools") or None)
    before = render(messages[:i], add_generation_prompt=True)
    marked = render([*messages[:i], with_marks(messages[i]), *messages[i + 1 :]])
    said = marked[len(before) :].rpartition(MARK)[0].rstrip()
    tokens = tokenizer.encode(said, add_special_tokens=False)
    return not end_tokens(tokenizer).isdisjoint(tokens[:-1])  # a content can end with one


def with_marks(message):
    """Return a message with MARK after each of its texts, and after the name of its last call."""
    marked = {
        key: value + MARK if isinstance(value, str) and value.strip() else value
        for key, value in without(message, "role", "name").items()
    }
    if message.get("tool_calls"):
        *others, last = message["tool_calls"]
        function = last.get("function", last)
        function = function | {"name": f"{function.get('name')}{MARK}"}
        last = last | {"function": function} if "function" in last else function
        marked["tool_calls"] = [*others, last]
    return message | marked


def is_open(example, ends):
    """Return whether an answer before the last one has no end token."""
    steps = zip(example.tokens, example.answer, example.answer[1:])
    return any(now > after and token not in ends for token, now, after in steps)


def encode_rows(
    rows: list[DataRow], tokenizer: Any, train_config: TrainConfig
) -> tuple[list[Example], int]:
    """Return (examples that have a target, cut to max_seq_length; number of these that are cut).

    Warnings on standard error name the keys that are not read, and count the rows that are cut, and
    those that have an answer without an end token before the last answer, and those that cannot be
    learned and are left out: rows with an empty answer, with the text of the end token inside an
    answer, with messages or tools that the chat template does not show, with
    arguments of calls that it puts into quotes, or without a target token within max_seq_length.
    Raises InputError if no row is left, or naming the row that the chat template rejects, or whose
    answer has an end token that the template writes inside it.
    """
    return encode_usable(rows, tokenizer, train_config)[:2]


def encode_usable(rows, tokenizer, train_config):
    """Return the result of `encode_rows`, {reason: number of rows left out}, and the other rows."""
    if isinstance(rows, (str, dict)):
        raise InputError("rows must be a list of dicts, as minilora.load_rows returns")
    num_cut = 0
    examples = []
    used = []
    left_out = Counter[str]()
    checked = [check_row(row, f"rows[{i}]") for i, row in enumerate(rows)]
    keys = unread_keys(rows)
    if keys:
        warn(f"keys of the rows that are not read: {keys}")
    keys = ", ".join(sorted(unread_message_keys(checked, tokenizer)))
    if keys:
        warn(f"keys of the messages that the chat template does not read: {keys}")
    for i, row in enumerate(checked):
        try:
            example, is_cut, reason = encode_row(row, tokenizer, train_config)
        except InputError as error:
            said = " ".join(m.get("content") or "" for m in messages_of(row))
            raise InputError(f"rows[{i}], {said[:40]!r}: {error}") from error
        if reason:
            left_out[reason] += 1
        else:
            examples.append(example)
            used.append(row)
            num_cut += is_cut
    if not examples:
        raise InputError(f"no row can be learned: {' and '.join(left_out) or 'there is none'}")
    for reason, n in left_out.items():
        warn(f"{n} of {len(rows)} rows are left out: {reason}")
    ends = end_tokens(tokenizer)
    num_open = sum(is_open(example, ends) for example in examples)
    if num_open:
        what = "have an answer without an end token: the chat template writes none there"
        warn(f"{num_open} of {len(rows)} rows {what}")
    if num_cut:
        cut = f"are cut to `max_seq_length` {train_config.max_seq_length}"
        warn(f"{num_cut} of {len(rows)} rows {cut}")
    return examples, num_cut, left_out, used


def encode_row(row, tokenizer, train_config):
    """Return (Example, whether max_seq_length cuts it, why the row is left out or "")."""
    reason = reason_to_leave_out(row, tokenizer)
    if reason:
        return None, False, reason
    length = train_config.max_seq_length
    full = encode(row, tokenizer, train_config.mask_prompt)
    if "text" not in row and has_empty_answer(full, tokenizer):
        return None, False, EMPTY
    example = Example(*(part[:length] for part in full))
    if not any(example.mask[1:]):
        reason = f"no target token within `max_seq_length` {length}"
    return example, len(full.tokens) > length, reason


def has_empty_answer(example, tokenizer):
    """Return whether an answer is only its end token: a template left out all that it says."""
    ends = end_tokens(tokenizer)
    starts = zip(example.tokens[1:], example.answer, example.answer[1:])
    return any(now > before and token in ends for token, before, now in starts)


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
    if split not in tasks.SPLITS:
        raise InputError(f"there is no split {split!r}: give one of {', '.join(tasks.SPLITS)}")
    if name in tasks.BUILTIN:
        if columns:
            raise InputError(f"`columns` is for files: the rows of {name} have their keys already")
        if Path(name).exists():
            warn_once(f"{name} is the built-in data set: write ./{name} for that of this folder")
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
    rows = read_rows(path, columns, name)
    if not is_shared:
        return rows
    return [row for i, row in enumerate(rows) if (i % 10 == 9) == (split != "train")]


def existing_split(name, split):
    """Return the split that is read: valid instead of test if the data has no rows for test."""
    if name in tasks.BUILTIN or split != "test":
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
