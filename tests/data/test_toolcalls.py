"""The tool-call data: rows are valid, splits are disjoint, answers follow from requests."""

import hashlib
import json
import re
import subprocess
import sys

import pytest

from minilora.config import InputError
from minilora.data import toolcalls
from minilora.data.toolcalls import POOLS, TOOLS, few_shot_row, rows

SIZES = {"train": 1800, "valid": 1500, "test": 1200}  # enough that no phrasing stays unused
PYTHON_TYPE = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}


@pytest.fixture(scope="module")
def splits():
    """{split: [(request, answer line, parsed call)]}."""
    return {
        split: [(*texts(row), json.loads(texts(row)[1])) for row in rows(split, n)]
        for split, n in SIZES.items()
    }


@pytest.fixture(scope="module")
def everything(splits):
    return [triple for triples in splits.values() for triple in triples]


def texts(row):
    """(request, answer) of a row, which is exactly one question and one answer."""
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    return user["content"], assistant["content"]


def digest(data):
    return hashlib.sha256(json.dumps(data, ensure_ascii=False).encode()).hexdigest()


GOLDEN = {
    "train": "9059c3c1fde3d7f9a9267fd4865366839e3539a399039e099a100dda7464e9e5",
    "valid": "2bc3887175d64d412a1d28f6251809d08fe687b899ad56c67934319d79267cf8",
    "test": "c700b1f28bd84fb1fc4eded3011f3c86a65453f707a9290439b705e0201abe0a",
}


@pytest.mark.parametrize("split", GOLDEN)
def test_the_same_bytes_everywhere(split):
    assert digest(rows(split, 100, seed=0)) == GOLDEN[split]


def test_the_hash_seed_of_the_process_does_not_matter():
    code = "from minilora.data.toolcalls import rows; print(rows('test', 24, 3))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": s}, capture_output=True, check=True
        ).stdout
        for s in ("1", "2")
    ]
    assert runs[0] == runs[1] and runs[0]


def test_seeds_and_splits_differ_and_fewer_rows_are_the_first_of_more():
    assert rows("train", 48, 1) != rows("train", 48, 2)
    assert rows("train", 48, 1)[:30] == rows("train", 30, 1)
    assert rows("train", 0) == []


def test_every_round_has_each_tool_once(splits):
    for triples in splits.values():
        tools = [parsed["tool"] for _, _, parsed in triples]
        for start in range(0, len(tools), len(TOOLS)):
            assert sorted(tools[start : start + len(TOOLS)]) == sorted(TOOLS)


def test_no_call_is_in_two_splits(splits):
    calls = [{answer for _, answer, _ in triples} for triples in splits.values()]
    assert len(set().union(*calls)) == sum(map(len, calls))


def test_no_call_is_in_two_splits_under_any_seed():
    answers = {
        split: {texts(r)[1] for s in range(8) for r in rows(split, 96, s)} for split in SIZES
    }
    for split, lines in answers.items():
        assert {toolcalls.split_of(line) for line in lines} == {split}


def test_no_request_comes_twice(everything):
    requests = [request for request, _, _ in everything]
    assert len(set(requests)) == len(requests)


def pattern(tool, phrasing):
    """Return a regular expression for all forms of a phrasing: case, ending, day."""
    text = re.escape(phrasing.rstrip(".?")) + r"[.?]?"
    text = re.sub(r"\\ a\\ (?=\\{)", r"\\ an?\\ ", text).replace(r"on\ \{day\}", r"(on\ )?\{day\}")
    for name, argument in TOOLS[tool]["arguments"].items():
        values = "|".join(re.escape(str(value)) for value in POOLS[argument["pool"]])
        text = text.replace(rf"\{{{name}\}}", f"(?:{values})")
    return re.compile(text, re.IGNORECASE)


def phrasings(split):
    return [
        (tool, phrasing, pattern(tool, phrasing))
        for tool, entry in TOOLS.items()
        for phrasing in entry["test" if split == "test" else "train"]
    ]


def test_a_test_request_is_in_no_phrasing_of_train(splits):
    train = [regex for _, _, regex in phrasings("train")]
    for request, _, _ in splits["test"]:
        assert not any(regex.fullmatch(request) for regex in train), request


@pytest.mark.parametrize("split", SIZES)
def test_every_phrasing_is_used_and_nothing_else(split, splits):
    table = phrasings(split)
    used = set()
    for request, _, parsed in splits[split]:
        fits = {
            (tool, phrasing)
            for tool, phrasing, regex in table
            if tool == parsed["tool"] and regex.fullmatch(request)
        }
        assert fits, request
        used |= fits
    assert {(tool, phrasing) for tool, phrasing, _ in table} == used


def test_each_tool_has_many_phrasings_and_several_are_held_out():
    assert len(TOOLS) == 12
    for entry in TOOLS.values():
        assert len(set(entry["train"])) >= 14
        assert len(set(entry["test"])) >= 5


def required(tool):
    return {name for name, a in TOOLS[tool]["arguments"].items() if not a.get("optional")}


def test_answers_are_canonical_and_fit_their_schema(everything):
    for _, answer, parsed in everything:
        assert answer == json.dumps(parsed, ensure_ascii=False) and "\n" not in answer
        assert list(parsed) == ["tool", "arguments"]
        schema, arguments = TOOLS[parsed["tool"]]["arguments"], parsed["arguments"]
        assert list(arguments) == [name for name in schema if name in arguments]
        assert required(parsed["tool"]) <= set(arguments)
        for name, value in arguments.items():
            # type(), not isinstance(): True is an int for isinstance
            assert type(value) in PYTHON_TYPE[schema[name]["type"]], answer


def ways_to_say(argument, value):
    """Return the texts for `value` in a request: its words, or keys in the table of the pool."""
    pool = POOLS[argument["pool"]]
    if isinstance(pool, dict):
        return [said for said, meant in pool.items() if meant == value]
    return [str(value)]


def test_every_value_stands_in_the_request(everything):
    for request, _, parsed in everything:
        for name, value in parsed["arguments"].items():
            ways = ways_to_say(TOOLS[parsed["tool"]]["arguments"][name], value)
            assert any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", request) for w in ways), request


def test_an_optional_argument_is_answered_exactly_when_it_is_said(everything):
    for request, _, parsed in everything:
        for name, argument in TOOLS[parsed["tool"]]["arguments"].items():
            said = any(re.search(rf"\b{value}\b", request) for value in POOLS[argument["pool"]])
            if argument.get("optional"):
                assert said == (name in parsed["arguments"]), request


def test_a_request_is_answered_in_one_way(everything):
    # The same words, whatever their case and stops, must never ask for two different calls.
    meant = {}
    for request, answer, _ in everything:
        assert meant.setdefault(request.lower().rstrip(".?"), answer) == answer, request


def test_required_arguments_stand_in_every_phrasing_and_slots_are_arguments():
    for tool, entry in TOOLS.items():
        for phrasing in entry["train"] + entry["test"]:
            slots = re.findall(r"{(\w+)}", phrasing)
            assert len(slots) == len(set(slots))
            assert required(tool) <= set(slots) <= set(entry["arguments"])


def test_pools_have_the_type_of_their_argument_and_no_doubles():
    used = set()
    for entry in TOOLS.values():
        for argument in entry["arguments"].values():
            pool = POOLS[argument["pool"]]
            values = list(pool.values()) if isinstance(pool, dict) else pool
            assert len(set(pool)) == len(pool)
            assert {type(value) for value in values} <= set(PYTHON_TYPE[argument["type"]])
            used.add(argument["pool"])
    assert used == set(POOLS)


def test_a_route_and_an_exchange_have_two_ends(everything):
    for _, answer, parsed in everything:
        a = parsed["arguments"]
        assert a.get("from") is None or a["from"] != a["to"], answer
        assert a.get("origin") is None or a["origin"] != a["destination"], answer


@pytest.mark.parametrize(
    ("said", "meant"), [("half an hour", 30), ("a quarter of an hour", 15), ("two hours", 120)]
)
def test_durations_in_words_are_minutes(said, meant, everything):
    calls = [parsed["arguments"] for request, _, parsed in everything if said in request]
    assert calls and all(arguments["minutes"] == meant for arguments in calls)


def test_english_is_smoothed(everything):
    for request, _, _ in everything:
        assert not re.search(r"\bon (today|tomorrow)\b", request, re.IGNORECASE)
        assert not re.search(r"\b(a [aeiou]|an [^aeiouh])", request, re.IGNORECASE), request
        assert "{" not in request and "  " not in request


def test_rows_are_short(everything):
    # SmolLM2's template adds 32 tokens, and no row has under 2.2 characters a token (6,000 rows
    # measured), so 200 characters are at most 32 + 200 / 2.2 = 123 tokens: a training row has 128.
    assert max(len(request) + len(answer) for request, answer, _ in everything) <= 200


def test_the_prompted_baseline_holds_the_rules_every_tool_and_only_rows_of_train():
    row = rows("test", 1)[0]
    _, answer = texts(row)
    system, *shots, last, said = few_shot_row(row)["messages"]
    assert system["role"] == "system" and [last, said] == row["messages"]
    assert all(f"\n{tool}(" in system["content"] for tool in TOOLS)
    assert "set_timer(minutes: integer, label?: string): Count down" in system["content"]
    answers = [turn["content"] for turn in shots[1::2]]
    assert len({json.loads(line)["tool"] for line in answers}) == toolcalls.FEW_SHOTS
    assert {toolcalls.split_of(line) for line in answers} == {"train"}
    assert answer not in answers


def test_an_unknown_split_and_too_many_rows_are_refused():
    with pytest.raises(InputError, match="not 'tests'"):
        rows("tests", 3)
    with pytest.raises(InputError, match=r"no further \w+ request: ask for fewer rows"):
        rows("test", 100_000)
