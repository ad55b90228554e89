"""Rows to batches: the forms of rows, the mask, packing without loss, malformed files."""

import csv
import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, random_examples, seeds
from outcomes import refused

from minilora.batching import Example, batch_at, collate
from minilora.config import InputError, TrainConfig
from minilora.data import tasks
from minilora.data.encoding import encode, encode_rows, reason_to_leave_out, split_row
from minilora.data.packing import pack_examples
from minilora.data.rows import (
    existing_split,
    load_rows,
    read_rows,
    row_content,
    split_of,
    warn_once,
)
from minilora.data.template_checks import EMPTY, HIDDEN_TOOLS, PARTS, TEXT_ARGUMENTS
from minilora.data.tokenizer import ByteTokenizer

BYTES, EOS = ByteTokenizer(), 255


@dataclass(frozen=True)
class Chat:
    """Bytes with a template: a turn is `<role:content|>` and a line's end; `|` is the end token.

    It shows the tools, the calls (`as_text`), both or neither. `end` is what ends a turn. `edit`
    makes of the messages those that it shows, and `edit_tools` of the tools.
    """

    eos_token_id: int = ord("|")
    eos_token_ids: tuple = ()
    chat_template: str = "of turns"
    shows: str = "tools calls"
    end: str = "|"
    as_text: Callable = json.dumps
    edit: Callable = list
    edit_tools: Callable = list
    start: str = ""  # of a question after the first

    def encode(self, text, add_special_tokens=True):
        start = "^" if add_special_tokens else ""
        return list((start + text).encode())

    def encode_pieces(self, pieces, add_special_tokens=True):
        return [self.encode(piece, add_special_tokens and piece != "") for piece in pieces]

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode(errors="replace")

    def render(self, messages, add_generation_prompt=False, tools=None):
        show_tools = tools is not None and "tools" in self.shows
        turns = f"[{json.dumps(self.edit_tools(tools))}]\n" if show_tools else ""
        for m in self.edit(messages):
            calls = m.get("tool_calls") if "calls" in self.shows else None
            if calls is None and m.get("content") is None:
                raise InputError("the chat template rejects these messages: content is None")
            content = self.as_text(calls) if calls else m["content"]
            start = self.start if turns and m["role"] == "user" else ""
            turns += f"{start}<{m['role'][0]}:{content}{self.end}>\n"
        return turns + "<a:" if add_generation_prompt else turns


def chat_row(*contents):
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents)]}


def answered(content=None, question="q", **fields):
    """A row of one question, and an answer with this content and these fields."""
    row = chat_row(question, content)
    row["messages"][1] |= fields
    return row


def function(**fields):
    """A call, or the schema of a tool."""
    return {"type": "function", "function": {"name": "look"} | fields}


def calling(arguments):
    """A row whose answer is one call with these arguments."""
    return answered(tool_calls=[function(arguments=arguments)])


def tool_row(arguments, parameters):
    """A row with a call of a tool that has these parameters."""
    result = {"role": "tool", "content": "r", "tool_call_id": "1"}
    answer = {"role": "assistant", "content": "a"}
    messages = [*calling(arguments)["messages"], result, answer]
    return {"messages": messages, "tools": [function(parameters=parameters)]}


CALL, SCHEMA, TOOL_ROW = function(arguments={}), function(parameters={}), tool_row({}, {})


def replacing(part, instead):
    """A template that shows one text of the messages, as JSON, in another way."""
    return Chat(edit=lambda shown: json.loads(json.dumps(shown).replace(part, instead)))


def targets_of(example):
    """Return the text of the tokens that the loss counts."""
    return bytes(t for t, m in zip(example.tokens, example.mask) if m).decode("latin1")


# ---------------------------------------------------------------------------------- reading


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """An empty folder, in which nothing has been warned of."""
    monkeypatch.chdir(tmp_path)
    warn_once.cache_clear()


def write(content, name="rows.jsonl"):
    path = Path(name)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def assert_refused(path, message):
    """The rows are refused in one line, which begins with the path of their file."""
    with refused(f"^{re.escape(str(path))}{message}") as error:
        read_rows(path)
    assert "\n" not in str(error.value)


FORMS = [
    '{"text": "é🙂 a\u2028b\x85c"}',  # a separator of Unicode inside a string ends no line
    '{"prompt": "a", "completion": "b", "tools": []}',
    # a role of some templates; the loss counts the answer: each of the two keys says so
    '{"messages": [{"role": "developer", "content": "q"},'
    ' {"role": "assistant", "content": "a", "weight": 1, "train": true}]}',
]


def test_rows_of_all_forms():
    for name, content in (
        ("rows.txt", "\n" + "\n".join(FORMS)),  # another name, but the contents are rows
        ("rows.jsonl", "\ufeff" + "\r\n".join(["", *FORMS, "", "  ", ""])),  # a byte-order mark
        ("rows.tsv", "\n[" + ",\n".join(FORMS) + "]"),  # one list, as in Alpaca's own file
    ):
        assert read_rows(write(content, name)) == [json.loads(row) for row in FORMS]


BAD_ROWS = {  # line: beginning of the message; the transcript of the commands has more
    '{"text": "a"': "not JSON",
    "[" * 100_000: "not JSON",
    '{"text": null}': r"the keys are \[\]: a row needs text",
    '{"prompt": "a", "messages": []}': "prompt would not .* messages: .*messages=messages",
    '{"prompt": "a", "completion": "b", "system": "s"}': "system would not .* completion: .*=c",
    '{"instruction": "a", "input": "b", "output": "c", "history": [["d"]]}':
        "history would not be read .*=instruction output=output input=input",
    '{"instruction": "a", "output": "b", "messages": [{}]}': "instruction and output would not",
    '{"text": "a", "tools": [{}]}': "tools would not be read next to text",
    '{"messages": []}': "the last message must be of the assist",
    '{"messages": [{"content": "a"}]}': "the role of a message must be a string, not None",
    '{"messages": {"role": "assistant"}}': "messages must be a list of objects, not {'role'",
    '{"messages": [{"role": "assistant", "tool_calls": ["f"]}]}': "tool_calls must be a list",
    '{"messages": [{"role": "assistant", "tool_calls": [{"function": 1}]}]}': "the functions of",
    '{"messages": [{"role": "assistant", "content": null}]}': "content must be a string, not N",
    **{
        f'{{"messages": [{{"role": "assistant", "content": "a", "{key}": 0.5}}]}}': "weights of mes"
        for key in (
            "weight", "train", "loss", "loss_weight", "trainable", "training", "train_on_turn"
        )
    },
    '{"messages": [{"role": "assistant", "content": "a", "train_detail": [1]}]}': "weights",
    '{"messages": [{"role": "GPT ", "content": "a"}, {"role": "assistant", "content": "b"}]}': (
        "the role 'GPT ' is not 'assistant'"
    ),
    '{"messages": [{"role": "assistant", "content": "a"}], "tools": "["}': "tools is not JSON",
    '{"instruction": 1, "output": ""}': "instruction must be a string, not 1",
    '{"conversations": [{"from": ["gpt"], "value": ""}]}': r"from must be .*: \['gpt'\]",
    '{"conversations": [{"from": "gpt", "value": "a", "content": "b"}]}': "a turn has from and",
    '{"conversations": [{"from": "gpt", "value": "a", "role": "b"}]}': "a turn has from and",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line(line):
    path = write('{"text": "sound"}\n\n' + line + '\n{"text": "sound"}\n')
    assert_refused(path, f", line 3: {BAD_ROWS[line]}")


def test_a_csv_file_is_rows_with_the_names_of_its_first_row():
    # a semicolon in one of several names is part of it; two columns without a name are not read
    content = "\ufeffi;d,prompt,completion,tools,,\r\n"
    content += '1,"a, b",c,,,\r\n\r\n2,"say ""é""\r\nnow",d,[],,\r\n'
    expected = [
        {"prompt": "a, b", "completion": "c"},
        {"prompt": 'say "é"\r\nnow', "completion": "d", "tools": []},
    ]
    limit = csv.field_size_limit()
    assert read_rows(write(content, "ROWS.CSV")) == expected
    assert csv.field_size_limit() == limit  # that of the whole process


UNREAD = """
{"text": "a", "id": 1, "note": "", "tags": [], "source": null}
{"prompt": "", "completion": "", "": 0, "separator": "c", "label": false}
"""


def test_keys_that_are_not_read_are_named_once(capsys):
    write(UNREAD, "train.jsonl")
    for split in tasks.SPLITS:
        load_rows(".", split)
    keys = "'' (without a name), id, label, separator"
    what = f"the rows have keys that are not read: {keys} (--columns chooses other keys)"
    assert capsys.readouterr().err == f"warning: .: {what}\n"


@pytest.mark.parametrize("name, content, message", [
    ("rows.json", '[\n{"text": "a"},\n{"text": }]', ": not a JSON list of rows: .* line 3 column"),
    ("rows.json", b'[{"text":\n"\xff"}]', ", line 2: not UTF-8"),
    ("rows.json", '[{"text": "a"}, {"txt": "a"}]', r", row 2: the keys are \['txt'\]"),
    ("rows.csv", "text,id,text\na,1,b\n", ", line 1: 2 columns are named 'text'"),
    ("rows.tsv", "text\na\n", r": a \.tsv file is not read as rows: save the table as \.csv"),
    ("rows.jsonl.gz", b"\x1f\x8b", r": a \.gz file is not read as rows: unpack it"),
    ("rows.csv", "", " is empty"),
    ("rows.csv", 'prompt,completion\n\n"a\nb",c\na\n', ", line 5: more or fewer cells"),
    ("rows.csv", 'prompt,completion\na,b\n"a,b\n', ", line 3: not CSV: unexpected end of data"),
    ("rows.csv", "text|tools\na|b\n", r", line 1: the only column is 'text\|tools': save"),
    ("rows.csv", "text\ttools\na\tb\n", r", line 1: the only column is 'text\\ttools': save"),
    ("rows.csv", b"text\na\n\xff\n", ", line 3: not UTF-8: save the file as UTF-8"),
])  # fmt: skip
def test_a_file_of_a_wrong_layout_is_named(name, content, message):
    assert_refused(".", " cannot be read: Is a directory")
    assert_refused(write(content, name), message)


def test_of_other_columns_those_that_an_answer_depends_on_are_named(capsys):
    chat = HM["messages"]
    row = {"system": "S", "tools": [{}], "text": "q", "n": 1, "conversations": chat}
    path = write(json.dumps(row))
    load_rows(path, "train", {"text": "text"})  # which depends on nothing
    assert capsys.readouterr().err == ""
    load_rows(path, "train", {"messages": "conversations", "tools": "tools"})
    assert "keys that are not read: system (" in capsys.readouterr().err


def test_columns_name_the_keys_of_rows():
    path = write("id,question,answer,text\n7,a,b,c\n", "rows.csv")
    columns = {"prompt": "question", "completion": "answer"}
    # other columns are not read, so that the text does not make the row ambiguous
    assert load_rows(path, "train", columns) == [{"prompt": "a", "completion": "b"}]
    mixed = write('{"question": "", "answer": ""}\n5')
    for name, more, message in (
        (path, {"anwser": "answer"}, "a row has no 'anwser': give completion, conversations"),
        (mixed, {}, "line 2: the row must be a JSON object"),
        ("notes", {}, "`columns` is for files: the rows of notes"),
    ):
        with refused(message):
            load_rows(name, "train", columns | more)
    some = write('{"q": "a", "a": "b"}\n{"q": "a", "a": "b", "c": "c"}')
    optional = {"instruction": "q", "input": "c", "output": "a"}  # a row may lack a column
    assert list(map(row_content, load_rows(some, "train", optional))) == ["ab", "acb"]


ALPACA_AND_SHAREGPT = """
{"instruction": "Add.", "input": "2+2", "output": "4", "history": []}
{"instruction": "Hi", "input": null, "output": "Hello", "messages": null}
{"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "one"},\
 {"from": "observation", "value": "2"}, {"from": "chatgpt", "value": "two", "tool_calls": [{}]}],\
 "system": "Be brief.", "tools": "[]"}
{"conversations": "[{\\"from\\": \\"gpt\\", \\"value\\": \\"a\\"}]", "system": ""}
"""


def test_rows_of_alpaca_and_sharegpt_are_read():
    first, short, chat, of_a_table = read_rows(write(ALPACA_AND_SHAREGPT))
    # a chat template gets the instruction as the request; bytes get a line between the two
    assert bytes(encode(first, Chat()).tokens) == b"<u:Add.\n2+2|>\n<a:4|"
    example = encode(first, BYTES, mask_prompt=True)
    assert example.tokens == [*b"Add.\n2+2\n4", EOS] and targets_of(example) == "4\xff"
    assert encode(short, BYTES).tokens == [*b"Hi\nHello", EOS]
    assert chat.pop("tools") == [] and chat["messages"][-1].pop("tool_calls") == [{}]
    assert [tuple(message.values()) for message in chat["messages"]] == [
        ("system", "Be brief."), ("user", "1"), ("assistant", "one"), ("tool", "2"),
        ("assistant", "two"),
    ]  # fmt: skip
    assert of_a_table == {"messages": [{"role": "assistant", "content": "a"}]}


def test_a_folder_has_a_file_per_split():
    table = write("text\n" + "train\n" * 19 + "x" * 200_000, "train.csv")
    for split in tasks.SPLITS:  # without other files, as for a file
        assert load_rows(".", split) == load_rows(table, split)
    assert [len(row["text"]) for row in load_rows(table, "valid")] == [5, 200_000]
    for name, split, left in (("valid.ndjson", "valid", 20), ("Test.json", "test", 18)):
        path = write('[{"text": "held out"}]', name)
        assert existing_split(".", "test") == split
        assert load_rows(".", "test") == load_rows(".", split) == [{"text": "held out"}]
        assert len(load_rows(".", "train")) == left
        path.unlink()
    write("", ".valid.jsonl")  # a hidden file is none
    write("", "valid.jsonl~")
    with refused(r"valid\.jsonl~: a file of rows ends with .*: rename"):
        load_rows(".", "valid")
    write("", "dev.jsonl")
    with refused(r"split valid: dev\.jsonl and valid\.jsonl~: keep"):
        load_rows(".", "train")


def test_files_of_no_split_are_named_if_they_could_be_rows_of_it(capsys):
    for name in ("train.JSONL", "valid.JSONL", "holdout.JSONL", "notes.csv"):
        write('{"text": "a"}', name)
    load_rows(".", "valid")
    what = "holdout.JSONL is not read: the name of a file has its split"
    assert capsys.readouterr().err == f"warning: {what}, such as valid\n"


def test_the_first_word_for_a_split_in_a_name_decides():
    names = {
        "train": "train training.csv train-without-test.jsonl",
        "valid": "validation-00000-of-00001.jsonl valid_data val.csv my-dev2.jsonl",
        "test": "test testing.csv EVAL evaluation.json test-of-train.jsonl",
        None: "restraint.jsonl tests.csv",
    }
    for split, some in names.items():
        assert {split_of(name) for name in some.split()} == {split}, split


def test_a_split_that_does_not_exist_is_named():
    with refused("no split 'trian': give one of train, valid, test"):
        load_rows("questions", "trian")


# --------------------------------------------------------------------------------- encoding


texts = st.text(alphabet=st.characters(exclude_characters="|", exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), texts), max_size=6), texts
)
def test_the_targets_are_the_answers_and_nothing_else(turns, last):
    """The oracle marks the characters of the answers while it writes the chat."""
    turns = [*turns, ("assistant", last)]
    text, marks = "", []
    for n, (role, content) in enumerate(turns):
        # an answer that nothing precedes is context if another one follows
        is_target = role == "assistant" and (n > 0 or len(turns) == 1)
        for piece, mark in ((f"<{role[0]}:", 0), (content + "|", is_target), (">\n", 0)):
            text += piece
            marks += [int(mark)] * len(piece.encode())
    row = {"messages": [{"role": r, "content": c, "tool_calls": []} for r, c in turns]}
    masked = encode(row, Chat(), mask_prompt=True)
    # what the template writes after the last end token is dropped
    assert bytes(masked.tokens) == text.encode()[:-2] and masked.mask == masked.answer == marks[:-2]
    assert encode(row, Chat()) == masked._replace(mask=[1] * len(masked.tokens))
    before, answer = split_row(row, Chat())
    assert answer == f"{last}|>\n" and before + answer == text
    hiding = Chat(edit=lambda shown: [m for m in shown if m["role"] != "tool"])
    why = reason_to_leave_out(row, hiding)
    is_hidden = any(role == "tool" and content.strip() for role, content in turns)
    assert why == EMPTY or bool(why) == is_hidden


def with_one_thought(messages):
    """Only the last answer keeps its thought, as in Qwen3's template."""
    *before, last = messages
    thought = f"({last.get('thought', 'hm')})" if last["role"] == "assistant" else ""
    return [*before, last | {"content": thought + last["content"]}]


TWO = chat_row("1", "one", "2", "two")
NO_TOOLS: dict = {"tools": []}  # as if the key were not there
OTHER_END = {"end": "#", "eos_token_ids": (ord("#"),)}  # of the model alone, as in Gemma 3


@pytest.mark.parametrize("row, words, whole, targets, is_open", [
    # the tokenizer adds its `^`; the text may hold chats, and a written end is not doubled
    ({"text": "<u:1|>\n<a:one|"}, Chat(), "^<u:1|>\n<a:one|", "^<u:1|>\n<a:one|", False),
    (TWO | NO_TOOLS, Chat(**OTHER_END), "<u:1#>\n<a:one#>\n<u:2#>\n<a:two#", "one#two#", False),
    (TWO, Chat(edit=with_one_thought), "<u:1|>\n<a:one|>\n<u:2|>\n<a:(hm)two|",
     "one|(hm)two|", False),
    # an end token before the next question is of the answer, but not one of the question
    (TWO, Chat(end="", start="|"), "<u:1>\n<a:one>\n|<u:2>\n<a:two>\n|", "one>\n|two>\n|", False),
    (TWO, Chat(end="", start=" \n|"), "<u:1>\n<a:one>\n \n|<u:2>\n<a:two>\n|",
     "one>\n \n|two>\n|", False),
    (TWO, Chat(end=""), "<u:1>\n<a:one>\n<u:2>\n<a:two>\n|", "one>\ntwo>\n|", True),
    (chat_row("1", "one", "| 2", "two"), Chat(end=""), "<u:1>\n<a:one>\n<u:| 2>\n<a:two>\n|",
     "one>\ntwo>\n|", True),
])  # fmt: skip
def test_an_answer_has_its_end_token_or_a_warning(capsys, row, words, whole, targets, is_open):
    ((example,), _) = encode_rows([row], words, TrainConfig(mask_prompt=True))
    assert bytes(example.tokens).decode() == whole
    assert targets_of(example) == targets
    warned = "1 of 1 rows have an answer without an end token" in capsys.readouterr().err
    assert warned == is_open


def with_ends(messages):
    """End all messages but the earlier answers."""
    return [
        m | {"content": m["content"] + "|"} if m["role"] == "user" or m is messages[-1] else m
        for m in messages
    ]


def in_parts(messages):
    """Write each word of a message, and its calls, as a message."""
    parts = []
    for m in messages:
        parts += [m | {"content": word, "tool_calls": None} for word in m["content"].split()]
        if "tool_calls" in m:
            parts.append(m)
    return parts


def without_a_start(messages):
    if not messages:
        raise InputError("the chat template rejects these messages")
    return messages


def only_answers_to_an_answer(messages):
    """Before the second answer, write less than after the first."""
    return [m for m in messages if messages[-1]["role"] == m["role"] == "assistant"]


CHANGES, ENDS = "template changes the messages before an answer", "writes an end token inside an an"
LACKS = "needs a message before the answer: give it"
GREETING = {"role": "assistant", "content": "hi"}
GREETED = {"messages": [GREETING, *chat_row("q", "hm two")["messages"]]}


@pytest.mark.parametrize("row, words, message", [
    (TWO, Chat(edit=with_one_thought, end="!"), CHANGES),
    (TWO, Chat(edit=with_ends, end=""), CHANGES),
    (TWO, Chat(edit=only_answers_to_an_answer), CHANGES),
    ({"messages": [GREETING]}, Chat(edit=without_a_start), LACKS),
    ({"messages": [GREETING]}, Chat(edit=lambda shown: shown or TWO["messages"][:1]), LACKS),
    (GREETED, Chat(edit=in_parts), ENDS),
    (answered("hm", tool_calls=[CALL]), Chat(edit=in_parts), ENDS),
])  # fmt: skip
def test_a_chat_that_cannot_be_split_into_answers_is_refused(row, words, message):
    with refused(message):
        encode(row, words)


@pytest.mark.parametrize("part, counts", [
    ({"a": [{"b": None}]}, True), ({"a": [None, 0], "b": {"default": None}}, False),
])  # fmt: skip
def test_a_null_that_is_a_value_is_counted(part, counts, capsys):
    """In arguments of calls and in tools, because some files have it for keys of other rows."""
    rows = [tool_row(part, {}), tool_row({}, part), TOOL_ROW]
    encode_rows(rows, Chat(), TrainConfig())
    assert ("2 of 3 rows have null in the arguments" in capsys.readouterr().err) == counts


def test_a_call_without_content_is_what_the_template_makes_of_it():
    bare, full = deepcopy(TOOL_ROW), deepcopy(TOOL_ROW)
    del bare["messages"][1]["content"]
    texts = {key: json.dumps(bare[key]) for key in bare}  # as in a table
    # datasets writes the keys of all messages and calls, with nulls
    full["messages"] = [{"tool_calls": None, "name": None} | m for m in full["messages"]]
    full["messages"][1]["tool_calls"][0]["function"]["strict"] = None
    valued = tool_row({"until": None}, {"maximum": None})  # where null is a value
    found = read_rows(write(json.dumps([texts, full, valued])))
    assert found == [bare, TOOL_ROW, valued]
    for row in found[:2]:
        example = encode(row, Chat(), mask_prompt=True)
        assert targets_of(example) == f"{json.dumps([CALL])}|a|"
        assert bytes(example.tokens).decode().startswith(f"[{json.dumps([SCHEMA])}]\n<u:q|>")
        assert reason_to_leave_out(row, Chat()) == ""


def before_an_answer(row):
    return {"messages": row["messages"] + TOOL_ROW["messages"][2:]}


def trim(messages):
    return [m | {"content": m["content"].strip("hm")} for m in messages]


def one_call_at_once(messages):
    """Reject two calls, as Llama 3.1's template does, and arguments as text."""
    for calls in (message.get("tool_calls") or [CALL] for message in messages):
        if len(calls) > 1 or isinstance(calls[0]["function"]["arguments"], str):
            raise InputError("the chat template rejects these messages: one at once")
    return messages


def no_chat(messages):
    raise InputError("no system message")


def without_arguments(messages):
    return json.loads(re.sub(r'"arguments": {.*?}', '"arguments": {}', json.dumps(messages)))


END = "the text of the end token inside an answer"
HM = chat_row("q", "hm", "q", "a")
CODES = [
    "lines = text.split('\\n')\nn = len(lines)", "r = s.replace('\r', '')\nr = r.strip()",
    "f = 'a\tb'.split('\\t')\tt = f[0]", 'a = "é\\"\na',
]  # fmt: skip
AS_TEXT = calling('{"a": 1}')  # as OpenAI's API has it
QUOTED = r'"{\"a\": 1}"'
BARE = answered(tool_calls=[CALL["function"]]) | {"tools": [SCHEMA["function"]]}
ADDING = function(name="add", arguments={"b": 5, "c": True})
TWO_CALLS = answered(tool_calls=[CALL, ADDING])
ELSEWHERE = "I look. add name function arguments b c 5 true"
LOOKING = answered("I look.", ELSEWHERE, tool_calls=[CALL])
NUMBERS = answered(None, ELSEWHERE, tool_calls=[ADDING])


@pytest.mark.parametrize("reason, words, row", [
    (END, Chat(), chat_row("1", "|")), (END, Chat(), calling({"a": "|"})),
    (END, Chat(**OTHER_END), chat_row("1", "Write # and", "2", "b")),
    ("", Chat(), chat_row("a|b", "4|", "2", "4|\n")), ("", Chat(), {"text": "a|b"}),
    # the template writes an answer as it writes one without content
    (EMPTY, Chat(edit=trim), HM), (EMPTY, Chat(edit=trim, **OTHER_END), HM),
    (HIDDEN_TOOLS, BYTES, {"prompt": "", "completion": "a", "tools": [SCHEMA]}),
    (HIDDEN_TOOLS, Chat(), answered("I look.", function_call=CALL)),  # an older key
    (HIDDEN_TOOLS, Chat(edit=one_call_at_once, shows="calls"), TWO_CALLS | {"tools": [SCHEMA]}),
    ("", Chat(edit=no_chat), TOOL_ROW),  # then `encode` names the row
    # arguments as text must be written as an object
    (TEXT_ARGUMENTS, Chat(edit=one_call_at_once), AS_TEXT),
    ("", replacing(QUOTED, '{"a": 1}'), AS_TEXT),
    (TEXT_ARGUMENTS, replacing(QUOTED, '"{a: 1}"'), AS_TEXT),
    *(("", words, calling({"a": code})) for code in CODES for words in (Chat(), Chat(as_text=str))),
    ("", Chat(), BARE), (PARTS, Chat(edit_tools=lambda tools: [{}]), BARE),
    (PARTS, replacing("<t>why</t>", ""), answered("<t>why</t>a")),
    (PARTS, replacing(r"\ud83d\udc4e", ""), answered("\U0001f44d\U0001f44e")),
    ("", Chat(), TWO_CALLS), (PARTS, replacing('{"b": ', '{"": '), TWO_CALLS),
    (PARTS, replacing(f", {json.dumps(ADDING)}", ""), TWO_CALLS),
    (PARTS, replacing("true", "false"), TWO_CALLS),
    # also if the words are elsewhere in the chat
    (PARTS, replacing("b + c look. ", ""), answered("b + c look. 5", ELSEWHERE)),
    (PARTS, Chat(), answered("a", ELSEWHERE, reasoning_content="I look.")),
    (PARTS, Chat(), LOOKING), (PARTS, Chat(), before_an_answer(LOOKING)),
    (PARTS, Chat(edit=without_arguments), before_an_answer(NUMBERS)),
    *((HIDDEN_TOOLS, Chat(shows=shows), TOOL_ROW) for shows in ("tools", "calls", "neither")),
    (HIDDEN_TOOLS, Chat(shows="tools"), LOOKING), (PARTS, Chat(shows="calls"), LOOKING),
    ("", Chat(shows="calls"), TWO | NO_TOOLS),
])  # fmt: skip
def test_why_a_row_is_left_out(reason, words, row):
    assert reason_to_leave_out(row, words) == reason


def test_a_row_that_the_template_rejects_is_named():
    for words, message in (
        (Chat(edit=one_call_at_once), "the chat template rejects these messages: one at once"),
        (BYTES, "the model has no chat template: use prompt and completion"),
    ):
        with refused(rf"^rows\[1\], 'q ': {message}"):
            encode_rows([{"text": "a"}, TWO_CALLS], words, TrainConfig())


SAME_CALLS = [
    '[{"name": "f", "arguments": {"a": 1, "b": {"c": 2, "d": 3}}}]',
    '[{"function": {"name": "f", "type": "", "arguments": {"b": {"d": 3, "c": 2}, "a": 1}}}]',
    r'[{"id": "1", "arguments": "{\"a\": 1, \"b\": {\"c\": 2, \"d\": 3}}", "name": "f"}]',
]
OTHER_CALLS = [
    '[]', '[{"name": "f", "arguments": {}}]', '[{"name": "g", "arguments": {}}]',
    '[{"name": "f", "parameters": {}}]', '[{"name": "f", "arguments": "not JSON"}]',
    '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]',
]  # fmt: skip


def test_the_content_of_a_row_is_free_of_its_form():
    texts = [{"text": "Q: a b"}, {"prompt": "Q:", "completion": "a b"}, chat_row("Q: a", " b\n")]
    assert {row_content(row) for row in texts} == {"Q:ab"}
    rows = [answered(tool_calls=json.loads(calls)) for calls in SAME_CALLS + OTHER_CALLS]
    rows.append(calling("[" * 100_000))
    contents = list(map(row_content, rows))
    assert len({*contents[: len(SAME_CALLS)]}) == 1
    assert len({*contents}) == 1 + len(OTHER_CALLS) + 1


# -------------------------------------------------------------------------------- preparing


def prepared(*rows, length=6, mask_prompt=True):
    return encode_rows(rows, BYTES, TrainConfig(max_seq_length=length, mask_prompt=mask_prompt))


def test_rows_are_cut_and_those_that_cannot_be_learned_are_left_out_with_a_warning(capsys):
    empty = [{"text": ""}, chat_row("q", "  "), chat_row("q", "", "q", "a")]
    lost = [{"prompt": "abcdef", "completion": "x"}, *empty]  # its prompt alone fills the length
    # a value that is not read may be no JSON
    long = {"prompt": "abcde", "completion": "xyz", "weight": {(): 1, "": 2j}, "topic": None}
    kept, cut = prepared(*lost, long, {"text": "abcde"})
    assert [targets_of(e) for e in kept] == ["x", "abcde\xff"]
    assert all(len(part) == 6 for example in kept for part in example)
    assert cut == 1  # of the rows that are kept
    assert capsys.readouterr().err == (
        "warning: keys of the rows that are not read: weight\n"
        "warning: 1 of 6 rows are left out: no target token within `max_seq_length` 6\n"
        "warning: 3 of 6 rows are left out: an empty answer\n"
        "warning: 1 of 6 rows are cut to `max_seq_length` 6\n"
    )
    assert len(prepared(*lost, mask_prompt=False)[0]) == 1
    with refused("no target token within `max_seq_length` 1"):
        prepared({"text": "abc"}, length=1)


def test_keys_of_messages_that_the_chat_template_does_not_read_are_named(capsys):
    def read(messages):
        if not all("name" in m for m in messages):
            raise InputError("a message has no name")
        return with_one_thought(messages)

    row = answered("a", masked=1, turn=2, thought="why", name="n")
    asked = {"name": "n", "tool_call_id": "1"}  # the id is not named
    for more, unread in (asked, "masked, turn"), ({"thought": "who"}, "masked, thought, turn"):
        row["messages"][0] |= more  # of a user, whose thought no template reads
        encode_rows(iter([row]), Chat(edit=read), TrainConfig())
        what = f"keys of the messages that the chat template does not read: {unread}"
        assert capsys.readouterr().err == f"warning: {what}\n"


@pytest.mark.parametrize("rows, message", [
    ([], "no row can be learned: there is none"),
    ({"text": []}, "rows must be a list of dicts"), ("rows", "rows must be a list of dicts"),
    ([{"text": "a", "b": np.zeros(2)}, {"messages": np.array([{}])}],  # a table can have arrays
     r"rows\[1\]: messages must be a list of objects, not array"),
])  # fmt: skip
def test_rows_in_memory_that_are_none_are_refused(rows, message):
    with refused(message):
        encode_rows(rows, BYTES, TrainConfig())


def test_what_is_nested_too_deeply_is_refused():
    deep: list = []
    for _ in range(5_000):
        deep = [deep]
    for row in ({"messages": [], "tools": [{"a": deep}]}, calling({"a": deep})):
        with refused("nested too deeply"):
            prepared(row)


# ----------------------------------------------------------------------- packing and batches


@given(seeds, st.integers(1, 40), st.integers(2, 30))
def test_packing_loses_nothing_and_fills_well(seed, n, length):
    examples = random_examples(TINY, n, seed, longest=length)
    sequences = pack_examples(examples, length)
    assert sorted(e for b in sequences for e in b) == sorted(examples)
    room = [sum(len(e.tokens) - 1 for e in b) for b in sequences]
    # An input of n tokens gives n − 1 places; a row has as many as the longest example has.
    assert max(room) <= length - 1
    # Any two sequences together hold more than one could: else the second was opened in vain.
    assert all(a + b > length - 1 for a, b in combinations(room, 2))


def test_packing_takes_the_tightest_place():
    """The longest example is the first; of two equal places, the one that was filled last."""
    examples = [Example([0] * n, [1] * n) for n in (3, 4, 5, 6, 7, 7)]
    sequences = pack_examples(examples, 11)  # of inputs, each a token shorter than its example
    assert [[len(e.tokens) for e in b] for b in sequences] == [[7, 4], [7, 5], [6, 3]]


def test_padding_sees_no_example_and_at_least_itself():
    one, two = (Example([0] * n, [1] * n) for n in (3, 2))
    batch = collate([[one, two], [two]])
    assert batch["segment_starts"].tolist() == [[0, 0, 2], [0, 1, 1]]
    assert {rows.dtype for rows in batch.values()} == {np.dtype(np.int64), np.dtype(np.float32)}


@given(st.integers(1, 13), st.integers(1, 7), st.integers(0, 9), st.integers(0, 99))
def test_the_order_is_drawn_from_seed_and_epoch(n, size, step, seed):
    """A batch can contain the end of one epoch and the start of the next; draws are repeatable."""
    orders = [np.random.default_rng([seed, epoch]).permutation(n) for epoch in range(70)]
    expected = np.concatenate(orders)[step * size :][:size]
    assert batch_at(range(n), step, size, seed) == expected.tolist()
