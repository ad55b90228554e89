"""The rows of tool calls: splits are disjoint, answers follow from requests."""

import hashlib
import json
import re

import pytest

from minilora.data.rows import load_rows
from minilora.lessons.helpers import toolcalls
from minilora.lessons.helpers.toolcalls import POOLS, TOOLS, rows


@pytest.fixture(scope="module")
def found():
    """[(split, request, answer line)]: each row is one question and one answer."""
    return [
        (split, *(turn["content"] for turn in row["messages"]))
        for split in toolcalls.COUNTS
        for row in rows(split, 600)
    ]


GOLDEN = "2a6303c682e64146bb17e54a7d9149176de375e7eeaca4ebf8a6c58c9ed2b608"


def test_the_rows_are_the_same_bytes_everywhere():
    data = json.dumps([rows(split, 100) for split in toolcalls.COUNTS], ensure_ascii=False)
    assert hashlib.sha256(data.encode()).hexdigest() == GOLDEN
    assert rows("test", 30) == rows("test", 100)[:30] != rows("test", 30, seed=1)


def test_no_call_is_in_two_splits_and_no_request_comes_twice(found):
    assert all(toolcalls.split_of(answer) == split for split, _, answer in found)
    tools = [json.loads(answer)["tool"] for _, _, answer in found[12:24]]
    assert sorted(tools) == sorted(TOOLS), "each round has each tool once"
    assert len({request for _, request, _ in found}) == len(found)
    assert not {p for tool in TOOLS.values() for p in tool["train"] if p in tool["test"]}


def said(argument, value):
    """Return the texts for `value` in a request: its words, or keys in the table of the pool."""
    pool = POOLS[argument["pool"]]
    if isinstance(pool, dict):
        return [words for words, meant in pool.items() if meant == value]
    return [str(value)]


def test_an_answer_has_what_its_request_says(found):
    for _, request, answer in found:
        call = json.loads(answer)
        for name, value in call["arguments"].items():
            argument = TOOLS[call["tool"]]["arguments"][name]
            ways = "|".join(map(re.escape, said(argument, value)))
            assert re.search(rf"(?<!\w)({ways})(?!\w)", request), request


def test_a_folder_has_the_rows_of_all_splits(tmp_path, monkeypatch):
    toolcalls.main(tmp_path / "rows")
    for split, n in toolcalls.COUNTS.items():
        found = load_rows(tmp_path / "rows", split)
        assert found == rows(split) and len(found) == n
    monkeypatch.setattr(toolcalls, "COUNTS", dict.fromkeys(toolcalls.COUNTS, 12))
    toolcalls.main(tmp_path / "few", few_shot=True)
    system, *shots, last, answer = load_rows(tmp_path / "few", "test")[0]["messages"]
    assert [last, answer] == rows("test", 1)[0]["messages"]
    assert all(f"\n{tool}(" in system["content"] for tool in TOOLS)
    assert "set_timer(minutes: integer, label?: string): Count down" in system["content"]
    answers = {turn["content"] for turn in shots[1::2]}
    assert len(answers) == toolcalls.FEW_SHOTS
    assert {toolcalls.split_of(line) for line in answers} == {"train"}


def test_too_many_rows_are_refused(monkeypatch):
    monkeypatch.setattr(toolcalls, "TOOLS", {"set_alarm": TOOLS["set_alarm"]})  # it has the fewest
    with pytest.raises(ValueError, match=r"no further \w+ request: ask for fewer rows"):
        rows("test", 100_000)
