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
from minilora.data.rows import check_row, encode, encode_rows, load_rows, read_rows
from minilora.data.tokenizer import ByteTokenizer

BYTES, EOS = ByteTokenizer(), 255


@dataclass(frozen=True)
class Chat:
    """Bytes with a template: a turn is `<role:content|>` and a line's end; `|` is the end token."""

    eos_token_id: int = ord("|")
    has_chat_template: bool = True

    def encode(self, text, add_special_tokens=True):
        return list(b"^" * add_special_tokens + text.encode())

    def render(self, messages, add_generation_prompt=False):
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
    (b"{}", r"the keys are \[\]: give text"),
    (b'{"txt": "a"}', r"the keys are \['txt'\]: give text"),
    (b'{"prompt": "a"}', r"the keys are \['prompt'\]: give text"),
    (b'{"text": "a", "completion": "b"}', "the keys are .*: give text"),
    (b'{"text": "a", "prompt": "a", "completion": "b"}', "the keys are .*: give text"),
    (b'{"text": "a", "messages": []}', "the keys are .*: give text"),
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


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_rows(path)
        with pytest.raises(InputError):
            load_rows(str(path), "train")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["text", "prompt", "completion", "messages", "role", "content", "x"]),
        inner, max_size=3)
)))  # fmt: skip
def test_any_json_is_taken_or_refused_in_one_line(row):
    try:
        check_row(row, "here")
    except InputError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
    else:
        assert row.keys() & {"text", "prompt", "messages"}


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


def test_of_several_turns_only_the_last_answer_counts_when_the_prompt_is_masked():
    row = chat_row("1", "one", "2", "two")
    example = encode(row, Chat(), mask_prompt=True)
    assert bytes(example.tokens) == b"^<u:1|>\n<a:one|>\n<u:2|>\n<a:two|"
    assert targets_of(example) == "two|"


def test_a_text_row_keeps_what_follows_an_end_token():
    # People bring chats that are rendered already: all the turns are the text.
    text = "<u:1|>\n<a:one|>\n<u:2|>\n<a:two|>"
    assert bytes(encode({"text": text}, Chat()).tokens) == b"^" + text.encode() + b"|"


def test_an_end_that_is_written_out_is_not_doubled():
    assert bytes(encode({"text": "ab|"}, Chat()).tokens) == b"^ab|"


def test_a_template_that_rewrites_the_past_is_refused():
    class Rewriting(Chat):
        def render(self, messages, add_generation_prompt=False):
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
    assert len(a.mask) == len(b.mask) == 6


def test_a_row_without_a_target_is_left_out():
    # the prompt alone fills the length; an empty text has only the end, which nothing precedes
    lost = [{"prompt": "abcdef", "completion": "x"}, {"text": ""}]
    kept, cut = prepared(
        *lost, {"prompt": "abcde", "completion": "x"}, {"prompt": "a", "completion": ""}
    )
    assert [targets_of(e) for e in kept] == ["x", "\xff"] and cut == 2
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
        for tokens, mask in some:
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
