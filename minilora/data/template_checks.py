"""What a chat template does not show of a row: keys, messages, tools, calls, words."""

import json
import re
from collections import Counter
from contextlib import suppress
from functools import partial

from ..config import InputError
from ..tree import without
from .rows import function_of

EMPTY = "an empty answer"
PARTS = "a part of the last answer, of a call or of a tool that the chat template does not show"
HIDDEN_TOOLS = "tools that the chat template does not show"
TEXT_ARGUMENTS = "arguments of calls as text, which the chat template does not write as an object"

dumps = partial(json.dumps, ensure_ascii=False)


def unread_message_keys(rows, tokenizer):
    """Return the keys of messages without which the chat template writes the same text.

    A template can read a key of one role alone, so each role is asked.
    """
    chats = [row for row in rows if "messages" in row]
    keys = {(m["role"], key) for row in chats for m in row["messages"] for key in m}
    # a row whose calls are not shown is left out; few templates read the id of a call
    known = {"role", "content", "tool_calls", "tool_call_id"}
    return {
        key
        for role, key in keys
        if key not in known and not any(shows(tokenizer, row, role, key) for row in chats)
    }


def shows(tokenizer, row, role, key):
    """Return whether the text of a chat depends on a key of the messages of a role."""
    messages = row["messages"]
    others = [without(m, key) if m["role"] == role else m for m in messages]
    if not tokenizer.chat_template or others == messages:
        return False
    tools = row.get("tools") or None
    try:
        return tokenizer.render(others, tools=tools) != tokenizer.render(messages, tools=tools)
    except InputError:
        return True  # the row is named later, if the template rejects it


def trouble_with_template(messages, tools, tokenizer):
    """Return why the chat template does not write messages, tools and calls as they are, or "".

    An answer is empty, too, if the template writes it as one without content.
    """

    def text(messages, tools):
        with suppress(InputError):  # some templates reject a message without content
            return tokenizer.render(messages, tools=tools)

    def hides(messages, tools, marks):
        found = text(messages, tools) if marks else None
        return found is not None and not all(mark in found for mark in marks)

    objects = with_arguments(messages, dict)
    if objects != messages:  # some arguments are texts
        as_objects = text(objects, tools)
        if as_objects not in (None, text(with_arguments(messages, dumps), tools)):
            return TEXT_ARGUMENTS
    shown = text(messages, tools)
    if shown is None:  # then the error of `encode` names the row, if the template has tools
        return HIDDEN_TOOLS if hides_tools(messages, tools, text) else ""
    marks: list = []
    contents = [m if m.get("tool_calls") else with_marks(m, ["content"], marks) for m in messages]
    if hides(contents, tools, marks):
        return "a message that the chat template does not show"
    names = "tool_calls", "function_call"
    # an empty list of calls is none
    no_calls = [without(m, *names) if any(map(m.get, names)) else m for m in messages]
    others = [(messages, None), (no_calls, tools)]
    if any(shown == text(*other) for other in others if other != (messages, tools)):
        return HIDDEN_TOOLS
    calls = [function_of(call) for message in messages for call in message.get("tool_calls", ())]
    arguments = [call.get("arguments") for call in calls]
    quotes = dumps, repr  # as JSON, and as Python prints a list
    if any(quote(a) in shown for a in arguments if isinstance(a, str) for quote in quotes):
        return TEXT_ARGUMENTS
    if hides(*with_marked_parts(messages, tools)):
        return PARTS
    if lacks_a_part(shown, messages, tools):
        return PARTS
    # words of the last message can be in those before, too
    before = text(messages[:-1], tools) or ""
    if lacks_words(shown.removeprefix(before), said_by(messages[-1])):
        return PARTS
    is_empty = any(shown == text(other, tools) for other in with_an_empty_answer(messages))
    return EMPTY if is_empty else ""


def with_arguments(messages, change):
    """Return messages with change(object) in place of arguments that are the text of an object."""
    found = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls") or ():
            with suppress(ValueError, TypeError, RecursionError):  # not a text of JSON
                value = json.loads(function_of(call).get("arguments"))
                if isinstance(value, dict):
                    call = with_values(call, {"arguments": change(value)})
            calls.append(call)
        found.append(message | ({"tool_calls": calls} if calls else {}))
    return found


def hides_tools(messages, tools, text):
    """Return whether the tools, or one of the calls, change nothing in a chat of their own."""
    ask = {"role": "user", "content": "a"}
    calls = [m | {"content": m.get("content") or ""} for m in messages if m.get("tool_calls")]
    chats = [(text([ask, m], None), text([ask, without(m, "tool_calls")], None)) for m in calls]
    if tools:
        chats.append((text([ask], tools), text([ask], None)))
    return any(with_tools == bare is not None for with_tools, bare in chats)


def with_marked_parts(messages, tools):
    """Return messages and tools with a mark in each part that must be shown, and the marks.

    These are what the last message says, the calls, the texts next to them, the names of the tools.
    """
    marks: list = []
    found = []
    for i, message in enumerate(messages, 1):
        keys = ["content"] if message.get("tool_calls") else []
        if i == len(messages):
            keys = keys_of_texts(message)
        found.append(mark_message(message, keys, ["name", "arguments"], marks))
    return found, tools and [mark_function(tool, ["name"], marks) for tool in tools], marks


def keys_of_texts(message):
    """Return the keys of what a message says; a number does not count, as that of its turn."""
    keys = message.keys() - {"role", "name", "tool_calls"}
    return [key for key in message if key in keys and not isinstance(message[key], int | float)]


def with_marks(value, keys, marks):
    """Return an object with a new mark in the value of each of its `keys`; see `marked`."""
    return value | {key: marked(value[key], marks) for key in keys if key in value}


def mark_message(message, keys, keys_of_calls, marks):
    """Return a message with marks in the values of its `keys`, and of those of its calls."""
    found = with_marks(message, keys, marks)
    if message.get("tool_calls"):
        calls = [mark_function(call, keys_of_calls, marks) for call in message["tool_calls"]]
        found["tool_calls"] = calls
    return found


def mark_function(item, keys, marks):
    """Return a call or a tool with marks in the values of these keys of its function."""
    return with_values(item, with_marks(function_of(item), keys, marks))


def with_values(item, values):
    """Return a call or a tool with these values in its function."""
    function = function_of(item) | values
    return item | {"function": function} if "function" in item else function


def marked(value, marks):
    """Return a value of JSON with a new mark after each text and in place of each number.

    A mark is a number of 17 digits, which is added to `marks`. A template may trim or escape a
    text, but not digits at its end.
    """
    if isinstance(value, dict):
        return {marked(key, marks): marked(item, marks) for key, item in value.items()}
    if isinstance(value, list):
        return [marked(item, marks) for item in value]
    if isinstance(value, bool | None) or not str(value).strip():
        return value
    marks.append(str(10**16 + len(marks)))
    return value + marks[-1] if isinstance(value, str) else int(marks[-1])


def with_an_empty_answer(messages):
    """Yield the messages with one answer, which has no calls, without content."""
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and not message.get("tool_calls"):
            yield [*messages[:i], message | {"content": ""}, *messages[i + 1 :]]


def lacks_a_part(shown, messages, tools):
    """Return whether a rendered chat lacks words of its last message, of calls, or of tools' names.

    The texts next to calls count, too. A template may leave out thoughts of earlier answers, and
    parts of the schema of a tool.
    """
    names = [function_of(tool).get("name") for tool in tools or ()]
    earlier = [m for m in messages[:-1] if m.get("tool_calls")]
    said = [said_by({"content": m.get("content"), "tool_calls": m["tool_calls"]}) for m in earlier]
    return lacks_words(shown, [names, *said, said_by(messages[-1])])


def said_by(message):
    """Return what a message says: its texts, the names of its calls, and their arguments."""
    calls = [function_of(call) for call in message.get("tool_calls") or ()]
    said = [message[key] for key in keys_of_texts(message)]
    return [said, *([call.get("name"), call.get("arguments")] for call in calls)]


def lacks_words(shown, value):
    """Return whether a rendered text lacks words of the texts in a value of JSON."""
    needed = Counter[str]()
    for text in texts(value):
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
