"""Rows to batches: the three shapes, the mask, packing without loss, malformed files."""

import json
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TINY, random_examples, seeds

from minilora.batching import Example, batch_at, collate, pack_examples
from minilora.config import InputError, TrainConfig
from minilora.data import row_files, rows
from minilora.data.rows import (
    check_row,
    encode,
    encode_rows,
    existing_split,
    load_rows,
    read_rows,
    split_row,
)
from minilora.data.tokenizer import ByteTokenizer

BYTES, EOS = ByteTokenizer(), 255


@dataclass(frozen=True)
class Chat:
    """Bytes with a template: a turn is `<role:content|>` and a line's end; `|` is the end token."""

    eos_token_id: int = ord("|")
    has_chat_template: bool = True

    def encode(self, text, add_special_tokens=True):
        return list(b"^" * add_special_tokens + text.encode())

    def render(self, messages, add_generation_prompt=False, tools=None):
        turns = "".join(f"<{m['role'][0]}:{m['content']}|>\n" for m in messages)
        return turns + "<a:" * add_generation_prompt


def targets_of(example):
    """Return the text of the tokens that the loss counts."""
    return bytes(t for t, m in zip(example.tokens, example.mask) if m).decode("latin1")


# ---------------------------------------------------------------------------------- reading


def write(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_rows_of_all_shapes(tmp_path):
    rows = [
        {"text": "é🙂 一"},
        {"prompt": "a", "completion": "b", "id": 7},  # further keys are nobody's business
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(rows)]
    for content in ("\n".join(lines), "\r\n".join(["", *lines, "", "  ", ""])):
        assert read_rows(write(tmp_path, content)) == rows
    # a separator of Unicode inside a string ends no line
    assert read_rows(write(tmp_path, '{"text": "a\u2028b\x85c"}')) == [{"text": "a\u2028b\x85c"}]


BAD_LINES = [
    (b'{"text": "a"', "not JSON"),
    (b"{'text': 'a'}", "not JSON"),
    (b'{"text": "a"} {"text": "b"}', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b"1" * 5000, "not JSON"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'"text"', "the row must be a JSON object"),
    (b"[1]", "the row must be a JSON object"),
    (b"null", "the row must be a JSON object"),
    (b"{}", r"the keys are \[\]: a row needs text, or prompt and completion, or messages"),
    (b'{"txt": "a"}', r"the keys are \['txt'\]: a row needs text"),
    (b'{"prompt": "a"}', r"the keys are \['prompt'\]: a row needs completion and prompt"),
    (b'{"text": "a", "completion": "b"}', "the keys are .*: a row needs text, or "),
    (
        b'{"text": "a", "prompt": "a", "completion": "b"}',
        "the keys are .*: a row needs text, or",
    ),
    (b'{"text": "a", "messages": []}', "the keys are .*: a row needs text, or prompt"),
    (b'{"text": 5}', "text must be a string, not 5"),
    (b'{"text": null}', "text must be a string, not None"),
    (b'{"text": ["a"]}', "text must be a string"),
    (b'{"prompt": "a", "completion": 1.5}', "completion must be a string, not 1.5"),
    (b'{"messages": []}', "messages must be"),
    (b'{"messages": "a"}', "messages must be"),
    (b'{"messages": {"role": "user"}}', "messages must be"),
    (b'{"messages": ["a"]}', "messages must be"),
    (b'{"messages": [{"role": "assistant"}]}', "messages must be"),
    (b'{"messages": [{"role": "user", "content": "a"}]}', "messages must be"),
    (
        b'{"messages": [{"role": "assistant", "content": null}]}',
        "content must be a string, not None",
    ),
    (rb'{"text": "\ud800"}', "a text has a lone surrogate"),
    # each message names the keys of the row, and the keys of the nearest form
    (b'{"message": []}', r"the keys are \['message'\]: a row needs messages"),
    (b'{"promt": "", "completion": ""}', r".*'promt'\]: a row needs completion and prompt"),
    (b'{"instruction": "", "response": ""}', "the keys .* needs instruction and output"),
    (b'{"conversation": []}', "the keys .* needs conversations"),
    (b'{"instruction": 1, "output": ""}', "instruction must be a string, not 1"),
    (b'{"instruction": "a", "input": null, "output": 0}', "output must be a string, not 0"),
    (rb'{"instruction": "\ud800", "output": "a"}', "a text has a lone surrogate"),
    (b'{"conversations": {"from": "human"}}', "conversations must be objects"),
    (b'{"conversations": [{"from": "human"}]}', "conversations must be objects"),
    (b'{"conversations": [{"from": [], "value": "a"}]}', "conversations must be objects"),
    (b'{"conversations": [{"from": "bot", "value": "a"}]}', "messages must be .* of the assistant"),
    (b'{"conversations": [{"from": "gpt", "value": 1}]}', "content must be a string, not 1"),
    (b'{"conversations": [{"from": "human", "value": "a"}]}', "messages must be"),
    (b'{"conversations": []}', "messages must be"),
    (b'{"messages": [{"role": "assistant", "content": "a"}], "tools": "["}', "tools are not JSON"),
    (b'{"messages": [{"role": "assistant", "content": "a"}], "tools": {"a": 1}}', "tools must be"),
]


@pytest.mark.parametrize("line, message", BAD_LINES)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path, b'{"text": "sound"}\n\n' + line + b'\n{"text": "sound"}\n')
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 3: {message}") as error:
        read_rows(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"rows\.jsonl is empty"):
        read_rows(write(tmp_path, content))


def test_a_json_list_is_read_as_rows(tmp_path):
    """Alpaca's own file is one indented list."""
    rows = [{"text": "a"}, {"prompt": "é", "completion": "b"}]
    path = write(tmp_path, "\n" + json.dumps(rows, indent=4))
    assert read_rows(path) == read_rows(write(tmp_path, json.dumps(rows))) == rows
    for content, message in (
        ('[\n{"text": "a"},\n{"text": }]', "not a JSON list of rows: .* line 3 column 10"),
        ('[{"text": "a"}]\n[]', "not a JSON list of rows: Extra data: line 2"),
        (b'[{"text":\n"\xff"}]', "line 2: not UTF-8"),
        ('[{"text": "a"}, {"txt": "a"}]', r"the keys are \['txt'\]"),
        ("[1]", "the row must be a JSON object"),
        ("[]", "is empty"),
        ('{\n"data": [\n{"text": "a"}\n]}', "is one JSON object over several lines: write one"),
    ):
        with pytest.raises(InputError, match=rf"rows\.jsonl.*{message}") as error:
            read_rows(write(tmp_path, content))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"rows\.jsonl, row 2: the keys are"):
        read_rows(write(tmp_path, '[{"text": "a"}, {"txt": "a"}]'))


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    with pytest.raises(InputError, match=r"rows\.jsonl is a Git LFS pointer.*git lfs pull"):
        read_rows(write(tmp_path, pointer))


def table(tmp_path, content):
    path = tmp_path / "rows.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_csv_file_is_rows_with_the_names_of_its_first_row(tmp_path):
    content = '\ufeffid,prompt,completion\r\n1,"a, b",c\r\n\r\n2,"say ""é""\r\nnow",d\r\n'
    rows = [
        {"id": "1", "prompt": "a, b", "completion": "c"},
        {"id": "2", "prompt": 'say "é"\r\nnow', "completion": "d"},
    ]
    path = table(tmp_path, content)
    assert read_rows(path) == read_rows(path.rename(tmp_path / "ROWS.CSV")) == rows
    assert read_rows(table(tmp_path, "text\n 1,5\n".replace(",", "."))) == [{"text": " 1.5"}]
    alpaca = "instruction,input,output\nAdd.,2+2,4\n"
    expected = {"prompt": "Add.\n2+2", "separator": "\n", "completion": "4"}
    assert read_rows(table(tmp_path, alpaca)) == [expected]


@pytest.mark.parametrize(("content", "message"), [
    ("", " is empty"),
    ("prompt,completion\n", " is empty"),
    ("prompt,completion\na,b\n\na,b,c\n", ", line 4: 3 cells, but the header has 2: put a cell"),
    ('prompt,completion\n"a\nb",c\na\n', ", line 4: 1 cells, but the header has 2"),
    ('prompt,completion\na,b\n"a,b\n', ", line 3: not CSV: unexpected end of data"),
    ('prompt,completion\n"a"b,c\n', ", line 2: not CSV: ',' expected after '\"'"),
    ("prompt;completion\na;b\n", ", line 1: 'prompt;completion' is one column: separate"),
    ("prompt\tcompletion\na\tb\n", r", line 1: 'prompt\\tcompletion' is one column: separate"),
    ("text,text\na,b\n", ", line 1: two columns have the name 'text': rename one"),
    (b"text\na\n\xff\n", ", line 3: not UTF-8: save the file as UTF-8"),
    ("How are you?,Well\nWho?,I\n", r", line 2: the keys are \['How are you\?', 'Well'\]: a row"),
])  # fmt: skip
def test_a_csv_file_of_a_wrong_layout_is_named(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"rows\.csv{message}") as error:
        read_rows(table(tmp_path, content))
    assert "\n" not in str(error.value)


lines = st.text(alphabet='a,";\t\r\n \0é').map(str.encode) | st.binary()


BEGINNINGS = {row_files.parse_csv: b"a,b\n", row_files.parse_list: b"[", row_files.parse_lines: b""}


@given(lines, st.sampled_from(list(BEGINNINGS)))
def test_any_bytes_are_rows_or_an_error_in_one_line(data, parse):
    try:
        values = list(parse("here", BEGINNINGS[parse] + data))
    except InputError as error:
        assert str(error).startswith("here") and "\n" not in str(error)
    else:
        assert all(where.startswith("here, ") for _, where in values)
        if parse is row_files.parse_csv:
            assert all(row.keys() == {"a", "b"} for row, _ in values)


def test_columns_name_the_keys_of_rows(tmp_path):
    csv, jsonl = "id,question,answer,text\n7,a,b,c\n", {"question": "a", "answer": "b", "text": "c"}
    columns = {"prompt": "question", "completion": "answer"}
    for path in (table(tmp_path, csv), write(tmp_path, json.dumps(jsonl))):
        # other columns are not read, so that the text does not make the row ambiguous
        row = {"prompt": "a", "completion": "b"}
        assert load_rows(str(path), "train", columns=columns) == [row]
        with pytest.raises(
            InputError, match=r"no column 'reply', only .*answer.*: correct `columns`"
        ):
            load_rows(str(path), "train", columns={"prompt": "question", "completion": "reply"})
        with pytest.raises(InputError, match="'question' is no key of a row: give KEY=COLUMN"):
            load_rows(str(path), "train", columns={"question": "prompt"})
        with pytest.raises(InputError, match="'question' is the column of 2 keys: give each"):
            load_rows(str(path), "train", columns=dict.fromkeys(columns, "question"))
    path = write(tmp_path, '{"q": "a", "a": "b"}\n{"q": "a", "context": "c", "a": "b"}')
    alpaca = {"instruction": "q", "input": "context", "output": "a"}
    assert [row["prompt"] for row in load_rows(path, "train", columns=alpaca)] == ["a", "a\nc"]
    with pytest.raises(InputError, match="`columns` is for files: the rows of notes"):
        load_rows("notes", "train", columns=columns)


def test_weights_of_messages_are_refused(tmp_path):
    """TRL-like files leave turns out with weight 0, which would be learned here."""
    turns = chat_row("q", "a")["messages"]
    for row in (
        {"messages": [*turns, turns[0], turns[1] | {"weight": 0}]},
        {"messages": turns, "weight": 0.5},
    ):
        with pytest.raises(InputError, match="line 1: weights of messages are not implemented: "):
            read_rows(write(tmp_path, json.dumps(row)))
    weighted = {"messages": [turns[0], turns[1] | {"weight": 1}]}
    assert read_rows(write(tmp_path, json.dumps(weighted))) == [weighted]


def test_rows_from_python_are_checked_before_they_are_encoded():
    with pytest.raises(InputError, match=r"rows\[1\]: the keys are \['answer', 'question'\]"):
        encode_rows([{"text": "a"}, {"question": "a", "answer": "b"}], BYTES, TrainConfig())


def test_a_folder_without_the_file_of_a_split_names_the_files_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"has no train\.jsonl, .* a folder needs files named"):
        load_rows(str(tmp_path), "train")


def test_a_split_that_does_not_exist_is_named(tmp_path):
    """It would be the held-out rows of a file."""
    for name in ("questions", write(tmp_path, '{"text": "a"}'), tmp_path):
        with pytest.raises(InputError, match="no split 'trian': give one of train, valid, test"):
            load_rows(name, "trian")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_rows(path)
        with pytest.raises(InputError):
            load_rows(str(path), "train")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["text", "prompt", "completion", "messages", "role", "content", "x",
                         "instruction", "input", "output", "conversations", "from", "value"]),
        inner, max_size=3)
)))  # fmt: skip
def test_any_json_is_taken_or_refused_in_one_line(row):
    try:
        check_row(row, "here")
    except InputError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
    else:
        assert row.keys() & {"text", "prompt", "messages", "instruction", "conversations"}


def test_rows_of_alpaca_and_sharegpt_are_read_and_said_once(tmp_path, capsys):
    alpaca = [
        {"instruction": "Add.", "input": "2+2", "output": "4", "text": "the whole, once more"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"instruction": "Hi", "input": None, "output": "Hello"},
        {"instruction": "Hi", "output": "Hello"},
    ]
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "1"}, {"from": "gpt", "value": "one"},
            {"from": "observation", "value": "2"}, {"from": "assistant", "value": "two"},
        ],
        "system": "Be brief.",
    }  # fmt: skip
    path = write(tmp_path, "\n".join(map(json.dumps, [*alpaca, sharegpt])))
    first, *short, chat = read_rows(path)
    assert first == {"prompt": "Add.\n2+2", "separator": "\n", "completion": "4"}
    assert short == 3 * [{"prompt": "Hi", "separator": "\n", "completion": "Hello"}]
    roles = [(m["role"], m["content"]) for m in chat["messages"]]
    assert roles == [
        ("system", "Be brief."), ("user", "1"), ("assistant", "one"), ("tool", "2"),
        ("assistant", "two"),
    ]  # fmt: skip
    read_rows(path)
    assert capsys.readouterr().err == f"{path}: read as Alpaca\n{path}: read as ShareGPT\n"
    # a chat template gets the instruction as the request; bytes get a line between the two
    assert bytes(encode(first, Chat()).tokens) == b"^<u:Add.\n2+2|>\n<a:4|"
    example = encode(first, BYTES, mask_prompt=True)
    assert example.tokens == [*b"Add.\n2+2\n4", EOS] and targets_of(example) == "4\xff"


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    assert read_rows(write(tmp_path, b'\xef\xbb\xbf{"text": "a"}')) == [{"text": "a"}]
    with pytest.raises(InputError, match="line 2: not JSON"):
        read_rows(write(tmp_path, b'{"text": "a"}\n\xef\xbb\xbf{"text": "a"}'))


def test_rows_with_an_empty_answer_are_left_out_with_one_warning(tmp_path, capsys):
    empty = [
        {"text": ""}, {"prompt": "a", "completion": ""}, chat_row("q", ""),
        {"instruction": "a", "output": ""}, {"prompt": "a", "completion": " \n"},
    ]  # fmt: skip
    kept = [{"text": "a"}, {"prompt": "", "completion": "b"}]
    lines = [json.dumps(row) for row in (kept[0], *empty, kept[1])]
    path = write(tmp_path, "\n".join(["", *lines]))
    assert read_rows(path) == read_rows(path) == kept
    said = capsys.readouterr().err.replace(f"{path}: read as Alpaca\n", "")
    why = "rows that are skipped because they have an empty answer: 5, the first is"
    assert said == f"warning: {why} {path}, line 3\n"
    with pytest.raises(InputError, match="has no row that can be used"):
        read_rows(write(tmp_path, '{"text": ""}'))


def test_a_single_file_is_split_and_a_folder_has_its_files(tmp_path):
    rows = [{"text": str(i)} for i in range(25)]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    train, valid = (load_rows(str(path), split) for split in ("train", "valid"))
    assert [r["text"] for r in valid] == ["9", "19"] and load_rows(str(path), "test") == valid
    assert sorted(train + valid, key=str) == sorted(rows, key=str)
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": split}))
    for split, text in (("train", "train"), ("valid", "valid"), ("test", "valid")):
        assert load_rows(str(tmp_path), split) == [{"text": text}]
        assert existing_split(tmp_path, split) == text
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "train.csv").write_text("text\ncsv\n")
    (tmp_path / "test.json").write_text('[{"text": "test"}]')
    for split, text in (("train", "csv"), ("test", "test")):
        assert load_rows(str(tmp_path), split) == [{"text": text}]
    (tmp_path / "test.csv").write_text("text\nother\n")
    with pytest.raises(InputError, match=r"has test\.json and test\.csv: keep one file per split"):
        load_rows(str(tmp_path), "test")
    (tmp_path / "test.csv").unlink()
    assert existing_split(tmp_path, "test") == existing_split("questions", "test") == "test"
    assert existing_split(path, "test") == "valid" and existing_split(path, "train") == "train"


# --------------------------------------------------------------------------------- encoding


@given(st.text(), st.booleans())
def test_a_text_row_is_its_tokens_and_the_end(text, mask_prompt):
    example = encode({"text": text}, BYTES, mask_prompt)
    assert example.tokens == [*text.encode(), EOS]
    assert example.mask == [1] * len(example.tokens)  # there is no prompt to mask


@given(st.text(), st.text(), st.booleans())
def test_the_mask_begins_where_the_completion_does(prompt, completion, mask_prompt):
    example = encode({"prompt": prompt, "completion": completion}, BYTES, mask_prompt)
    assert example.tokens == [*prompt.encode(), *completion.encode(), EOS]
    n = len(prompt.encode())
    assert example.mask == [int(not mask_prompt)] * n + [1] * (len(example.tokens) - n)


def chat_row(*contents):
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents)]}


@pytest.mark.parametrize("row", [{"prompt": "2+2?", "completion": "4"}, chat_row("2+2?", "4")])
def test_a_template_frames_prompt_and_answer(row):
    example = encode(row, Chat(), mask_prompt=True)
    # one `^` at the very beginning, and nothing of what the template writes after the end token
    assert bytes(example.tokens) == b"^<u:2+2?|>\n<a:4|"
    assert targets_of(example) == "4|"
    assert targets_of(encode(row, Chat())) == "^<u:2+2?|>\n<a:4|"


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_the_answer_is_marked_whether_or_not_the_loss_counts_the_prompt(mask_prompt):
    rows = {
        "4|": {"prompt": "2+2?", "completion": "4"},
        "one|two|": chat_row("1", "one", "2", "two"),
        "^2+2=4|": {"text": "2+2=4"},  # a text is its own answer
    }
    for answer, row in rows.items():
        example = encode(row, Chat(), mask_prompt)
        assert targets_of(Example(example.tokens, example.answer)) == answer
        assert example.mask == (example.answer if mask_prompt else [1] * len(example.tokens))


def test_of_several_turns_all_answers_count_when_the_prompt_is_masked():
    row = chat_row("1", "one", "2", "two")
    example = encode(row, Chat(), mask_prompt=True)
    assert bytes(example.tokens) == b"^<u:1|>\n<a:one|>\n<u:2|>\n<a:two|"
    assert targets_of(example) == "one|two|"
    assert split_row(row, Chat()) == ("<u:1|>\n<a:one|>\n<u:2|>\n<a:", "two|>\n")


texts = st.text(alphabet=st.characters(exclude_characters="|", exclude_categories=["Cs"]))


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), texts), max_size=6), texts
)
def test_the_targets_are_the_answers_and_nothing_else(turns, last):
    """The oracle marks the characters of the answers while it writes the chat."""
    turns = [("user", "q"), *turns, ("assistant", last)]
    text, marks = "^", [0]
    for n, (role, content) in enumerate(turns):
        pieces = [(f"<{role[0]}:", 0), (content + "|", role == "assistant")]
        pieces += [(">\n", 0)] * (n < len(turns) - 1)
        for piece, mark in pieces:
            text += piece
            marks += [int(mark)] * len(piece.encode())
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    masked, whole = encode(row, Chat(), mask_prompt=True), encode(row, Chat())
    assert bytes(masked.tokens) == text.encode() and masked.mask == marks
    assert whole.tokens == masked.tokens and set(whole.mask) == {1}


def test_an_answer_that_nothing_precedes_is_context_if_another_follows():
    row = {"messages": [{"role": "assistant", "content": "hi"}, *chat_row("q", "a")["messages"]]}
    assert targets_of(encode(row, Chat(), mask_prompt=True)) == "a|"
    row = {"messages": row["messages"][:1]}
    assert targets_of(encode(row, Chat(), mask_prompt=True)) == "hi|"


@dataclass(frozen=True)
class Thinking(Chat):
    """A template that drops the thoughts of earlier answers, as Qwen3's does."""

    end: str = "|"

    def render(self, messages, add_generation_prompt=False, tools=None):
        turns = ""
        for n, m in enumerate(messages):
            thought = "(hm)" if m["role"] == "assistant" and n == len(messages) - 1 else ""
            turns += f"<{m['role'][0]}:{thought}{m['content']}{self.end}>\n"
        return turns + "<a:" * add_generation_prompt


def test_the_end_token_ends_an_earlier_answer_that_the_template_changes():
    row = chat_row("1", "one", "2", "two")
    example = encode(row, Thinking(), mask_prompt=True)
    assert bytes(example.tokens) == b"^<u:1|>\n<a:one|>\n<u:2|>\n<a:(hm)two|"
    assert targets_of(example) == "one|(hm)two|"
    with pytest.raises(InputError, match="template rewrites earlier turns"):
        encode(row, Thinking(end="!"), mask_prompt=True)


# ------------------------------------------------------------------------------------- tools


@dataclass(frozen=True)
class Tools(Chat):
    """A template that shows the tools and the calls, or only one of the two."""

    shows: str = "tools calls"

    def render(self, messages, add_generation_prompt=False, tools=None):
        head = f"[{json.dumps(tools)}]\n" if tools and "tools" in self.shows else ""
        for m in messages:
            calls = m.get("tool_calls") if "calls" in self.shows else None
            if calls is None and m.get("content") is None:
                raise InputError("the chat template rejects these messages: content is None")
            head += f"<{m['role'][0]}:{json.dumps(calls) if calls else m['content']}|>\n"
        return head + "<a:" * add_generation_prompt


SCHEMA = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}
TOOL_ROW = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ],
    "tools": [SCHEMA],
}


def test_a_call_without_content_is_what_the_template_makes_of_it(tmp_path):
    absent = json.loads(json.dumps(TOOL_ROW | {"tools": json.dumps([SCHEMA])}))
    del absent["messages"][1]["content"]
    path = write(tmp_path, json.dumps(TOOL_ROW) + "\n" + json.dumps(absent))
    row, same = read_rows(path, Tools())
    assert row == TOOL_ROW and same["tools"] == [SCHEMA]  # the tools may be JSON in a string
    example = encode(row, Tools(), mask_prompt=True)
    assert targets_of(example) == f"{json.dumps([CALL])}|a|" and example == encode(
        same, Tools(), True
    )
    assert bytes(example.tokens).startswith(b"^[" + json.dumps([SCHEMA]).encode() + b"]\n<u:q|>")


@pytest.mark.parametrize("shows", ["tools", "calls", "neither"])
def test_rows_whose_tools_the_template_drops_are_left_out(tmp_path, capsys, shows):
    rows = [{"text": "a"}, TOOL_ROW, chat_row("q", "a"), TOOL_ROW]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    assert read_rows(path, Tools()) == rows and not capsys.readouterr().err
    for _ in range(2):
        assert load_rows(str(path), "train", Tools(shows=shows)) == [rows[0], rows[2]]
    why = "have tools that the chat template of the model does not show: 2, the first is"
    warning = f"warning: rows that are skipped because they {why} {path}, line 2\n"
    assert capsys.readouterr().err == warning


def test_a_text_row_keeps_what_follows_an_end_token():
    # People bring chats that are rendered already: all the turns are the text.
    text = "<u:1|>\n<a:one|>\n<u:2|>\n<a:two|>"
    assert bytes(encode({"text": text}, Chat()).tokens) == b"^" + text.encode() + b"|"


def test_an_end_that_is_written_out_is_not_doubled():
    assert bytes(encode({"text": "ab|"}, Chat()).tokens) == b"^ab|"


def test_a_template_that_rewrites_the_past_is_refused():
    class Rewriting(Chat):
        def render(self, messages, add_generation_prompt=False, tools=None):
            return f"{len(messages)} turns: " + super().render(messages, add_generation_prompt)

    with pytest.raises(InputError, match="template rewrites earlier turns: use text rows"):
        encode(chat_row("q", "a"), Rewriting())


def test_messages_need_a_template():
    with pytest.raises(InputError, match="no chat template"):
        encode(chat_row("q", "a"), BYTES)


# -------------------------------------------------------------------------------- preparing


def prepared(*rows, length=6, mask_prompt=True):
    return encode_rows(rows, BYTES, TrainConfig(max_seq_length=length, mask_prompt=mask_prompt))


def test_long_rows_are_cut_and_counted():
    short, exact = {"text": "abcde"}, {"text": "abcdefgh"}
    (a, b), cut = prepared(short, exact)
    assert a.tokens == [*b"abcde", EOS] and b.tokens == [*b"abcdef"] and cut == 1
    assert len(a.mask) == len(b.mask) == len(a.answer) == len(b.answer) == 6


def test_a_row_without_a_target_is_left_out_with_a_warning(capsys):
    # the prompt alone fills the length; an empty text has only the end, which nothing precedes
    lost = [{"prompt": "abcdef", "completion": "x"}, {"text": ""}]
    kept, cut = prepared(
        *lost, {"prompt": "abcde", "completion": "x"}, {"prompt": "a", "completion": ""}
    )
    assert [targets_of(e) for e in kept] == ["x", "\xff"]
    assert cut == 1  # of the rows that are kept
    why = "they have no target token within --max-seq-length 6"
    assert capsys.readouterr().err == f"warning: 2 of 4 rows are left out: {why}\n"
    prepared(lost[0], mask_prompt=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="there are no rows to encode"):
        prepared()
    with pytest.raises(InputError, match=r"no row has a target token within --max-seq-length 6"):
        prepared(*lost)
    assert len(prepared(*lost, mask_prompt=False)[0]) == 1
    with pytest.raises(InputError, match="max-seq-length 1:"):
        prepared({"text": "abc"}, length=1)


# ---------------------------------------------------------------------------------- packing


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
    def of(n):
        return Example([0] * (n + 1), [1] * (n + 1))

    sequences = pack_examples([of(n) for n in (6, 5, 4, 3, 2)], 11)
    assert sorted(sorted(len(e.tokens) - 1 for e in b) for b in sequences) == [[2, 3, 5], [4, 6]]


# --------------------------------------------------------------------------------- collating


@given(seeds, st.integers(1, 12), st.integers(9, 20))
def test_a_batch_holds_its_examples_shifted_by_one(seed, n, length):
    examples = random_examples(TINY, n, seed)
    sequences = pack_examples(examples, length)
    batch = collate(sequences)
    T = max(sum(len(e.tokens) - 1 for e in b) for b in sequences)
    assert {k: v.shape for k, v in batch.items()} == dict.fromkeys(batch, (len(sequences), T))
    assert batch["mask"].dtype == np.float32 and batch["tokens"].dtype.kind == "i"
    for row, some in enumerate(sequences):
        at = 0
        for tokens, mask, _ in some:
            end = at + len(tokens) - 1
            for name, part in (
                ("tokens", tokens[:-1]),
                ("targets", tokens[1:]),
                ("mask", mask[1:]),
            ):
                assert batch[name][row, at:end].tolist() == part
            assert (batch["segment_starts"][row, at:end] == at).all()
            at = end
        # the padding never counts, sees no example, and sees at least itself
        assert not batch["mask"][row, at:].any()
        assert (batch["segment_starts"][row, at:] == at).all()
    assert batch["mask"].sum() == sum(sum(e.mask[1:]) for e in examples)


def test_a_batch_by_hand():
    one, two, three = (
        Example([7, 8, 9], [1, 0, 1]),
        Example([1, 2], [0, 1]),
        Example([5, 6], [1, 1]),
    )
    batch = collate([[one, two], [three], [one]])
    assert {name: rows.tolist() for name, rows in batch.items()} == {
        "tokens": [[7, 8, 1], [5, 0, 0], [7, 8, 0]],
        "targets": [[8, 9, 2], [6, 0, 0], [8, 9, 0]],
        "mask": [[0, 1, 1], [1, 0, 0], [0, 1, 0]],
        "segment_starts": [[0, 0, 2], [0, 1, 1], [0, 0, 2]],
    }
    assert {rows.dtype for rows in batch.values()} == {np.dtype(np.int64), np.dtype(np.float32)}


# ------------------------------------------------------------------------------------ order


@given(st.integers(1, 13), st.integers(1, 7), st.integers(0, 9), st.integers(0, 99))
def test_the_order_is_drawn_from_seed_and_epoch(n, size, step, seed):
    """A batch can contain the end of one epoch and the start of the next; draws are repeatable."""
    rows = [f"row {i}" for i in range(n)]
    expected = []
    for i in range(step * size, step * size + size):
        order = np.random.default_rng([seed, i // n]).permutation(n)
        expected.append(rows[order[i % n]])
    assert batch_at(rows, step, size, seed) == expected


@given(st.integers(1, 13), st.integers(1, 7), st.integers(0, 99))
def test_an_epoch_visits_every_row_once(n, size, seed):
    rows, epochs = list(range(n)), 3
    steps = -(-n * epochs // size)
    seen = [row for step in range(steps) for row in batch_at(rows, step, size, seed)]
    assert all(len(batch_at(rows, step, size, seed)) == size for step in range(steps))
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == rows


def test_the_order_is_new_for_each_epoch_and_seed_and_else_the_same():
    rows = list(range(50))
    first, second, other = (
        batch_at(rows, 0, 50, 0),
        batch_at(rows, 1, 50, 0),
        batch_at(rows, 0, 50, 1),
    )
    assert first != second and first != other and second != other and rows not in (first, second)
    assert first == batch_at(rows, 0, 50, 0)
    # micro-batches are the large batch cut up
    assert first == [row for step in range(10) for row in batch_at(rows, step, 5, 0)]


def test_a_file_is_read_once_for_both_splits(monkeypatch, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(20)))
    calls, read = [], rows.read_usable
    monkeypatch.setattr(rows, "read_usable", lambda *args: calls.append(args) or read(*args))
    (train, _), (valid, _) = rows.load_splits(str(path), ["train", "valid"])
    assert len(calls) == 1
    assert (train, valid) == (load_rows(str(path), "train"), load_rows(str(path), "valid"))
