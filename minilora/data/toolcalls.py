"""Tool calls: the real task. A request in plain English goes in, one line of JSON comes out.

    Could you wake me tomorrow at 6:30 am?
    {"tool": "set_alarm", "arguments": {"time": "6:30 am", "day": "tomorrow"}}

The rows are generated from a table of phrasings and values, `toolcalls.toml`. A request decides
its answer by five rules, which hold in every split, so that they can be learned from the rows:

1. values are copied as they stand in the request, without quotes and without a final stop;
2. durations become whole minutes ("half an hour" -> 30), currencies their three-letter code
   ("Swiss francs" -> "CHF"), and on/off becomes true/false;
3. what the request does not say is not in the answer;
4. arguments stand in the order of the schema;
5. the line is `json.dumps` with its default spaces.

Rows carry no system message: what is trained is then what `generate --prompt` asks. A call (a tool
with its arguments) is in one split only, and the test split has phrasings of its own: `valid` asks
for unseen calls in known words, and `test` for unseen calls in unseen words.
"""

import json
import random
import re
import tomllib
import zlib
from importlib.resources import files

from ..config import InputError, require

TABLE = tomllib.loads(files(__package__).joinpath("toolcalls.toml").read_text("utf-8"))
POOLS, TOOLS = TABLE["pools"], TABLE["tools"]
SPLIT_OF_BUCKET = 7 * ("train",) + ("valid",) + 2 * ("test",)  # tenths of all calls
FEW_SHOTS = 6  # SmolLM2-135M answers 2, 1 and 0 of 60 test rows exactly with 6, 8 and 12 examples
TRIES = 2000  # draws before a tool counts as exhausted: its rarest calls are a few in a hundred

RULES = """Answer the request with one line of JSON that calls one of these tools.
Copy values as they stand in the request. Give durations in minutes and currencies as three-letter \
codes. Leave out an optional argument (marked ?) that the request does not mention."""


def rows(split, n, seed=0):
    """Return n chat rows `{"messages": [user, assistant]}` of "train", "valid" or "test".

    The same split and seed give the same rows everywhere, and fewer rows are the first of more.
    Every run of len(TOOLS) rows, from the first on, has each tool once; no request comes twice.
    """
    require(split in SPLIT_OF_BUCKET, f"toolcalls has train, valid and test, not {split!r}")
    # A seed of text is hashed by `random` itself, so it does not depend on PYTHONHASHSEED, and
    # `random()` is the one method whose numbers Python promises never to change.
    rng = random.Random(f"toolcalls {split} {seed}")
    answers: dict[str, str] = {}
    tools: list[str] = []
    while len(answers) < n:
        tools = tools or sorted(TOOLS, key=lambda _: rng.random())
        tool = tools.pop(0)
        for _ in range(TRIES):
            request, answer = _draw(tool, split, rng)
            if split_of(answer) == split and request not in answers:
                break
        else:
            raise InputError(f"toolcalls {split} has no further {tool} request: ask for fewer rows")
        answers[request] = answer
    return [
        {"messages": [_turn("user", request), _turn("assistant", answer)]}
        for request, answer in answers.items()
    ]


def split_of(answer):
    """Return the one split in which the call `answer` may be asked for."""
    return SPLIT_OF_BUCKET[zlib.crc32(answer.encode()) % len(SPLIT_OF_BUCKET)]


def _draw(tool, split, rng):
    phrasing = _pick(rng, TOOLS[tool]["test" if split == "test" else "train"])
    said: dict = {}
    meant: dict = {}
    for name, argument in TOOLS[tool]["arguments"].items():
        if "{" + name + "}" in phrasing:
            pool = POOLS[argument["pool"]]
            # Not said yet: a route needs two towns, an exchange two currencies.
            said[name] = _pick(rng, [value for value in pool if value not in said.values()])
            meant[name] = pool[said[name]] if isinstance(pool, dict) else said[name]
    if rng.random() < 0.5:  # as people type: no capital at the start, no stop at the end
        phrasing = phrasing[0].lower() + phrasing[1:].rstrip(".?")
    # English after the slots are filled: "on tomorrow" -> "tomorrow", "a eye test" -> "an …"
    request = re.sub(r"\bon (today|tomorrow)\b", r"\1", phrasing.format(**said))
    request = re.sub(r"\b([Aa]) (?=[AEIOUaeiou])", r"\1n ", request)
    return request, json.dumps({"tool": tool, "arguments": meant}, ensure_ascii=False)


def _pick(rng, values):
    return values[int(rng.random() * len(values))]


def _turn(role, content):
    return {"role": role, "content": content}


def few_shot_row(row):
    """Return `row` with the rules, the tools and FEW_SHOTS rows of train before it."""
    system = [RULES]
    for tool, entry in TOOLS.items():
        arguments = ", ".join(
            f"{name}{'?' if a.get('optional') else ''}: {a['type']}"
            for name, a in entry["arguments"].items()
        )
        system.append(f"{tool}({arguments}): {entry['description']}")
    shots = [turn for shot in rows("train", FEW_SHOTS) for turn in shot["messages"]]
    return {"messages": [_turn("system", "\n".join(system)), *shots, *row["messages"]]}
