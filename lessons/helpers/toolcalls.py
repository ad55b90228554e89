"""Generate rows of tool calls: a request in plain English, and one line of JSON.

python -m minilora.lessons.helpers.toolcalls FOLDER    # train.jsonl, valid.jsonl and test.jsonl
With --few-shot, the requests come after rules and examples.

    Could you wake me tomorrow at 6:30 am?
    {"tool": "set_alarm", "arguments": {"time": "6:30 am", "day": "tomorrow"}}

The rows are generated from a table of phrasings and values, `toolcalls.toml`. Five rules determine
the answer to a request. They hold in every split, so a model can learn them from the rows:

1. values are copied from the request, without quotes and without a final full stop;
2. durations become whole minutes ("half an hour" -> 30), currencies become three-letter codes
   ("Swiss francs" -> "CHF"), and on/off becomes true/false;
3. the answer contains only arguments that the request mentions;
4. the arguments have the order of the schema;
5. the line is `json.dumps` with its default spaces.

Rows have no system message, so that training matches `generate --prompt`. A call (a tool with its
arguments) occurs in one split only, and the test split has different phrasings: `valid` asks for
unseen calls in known words, `test` for unseen calls in unseen words.
"""

import json
import random
import re
import sys
import tomllib
import zlib
from pathlib import Path

TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
POOLS, TOOLS = TABLE["pools"], TABLE["tools"]
COUNTS = {"train": 1600, "valid": 96, "test": 240}  # rows of each split
SPLIT_OF_BUCKET = 7 * ("train",) + ("valid",) + 2 * ("test",)  # tenths of all calls
FEW_SHOTS = 6  # with 6, 8 and 12 examples SmolLM2-135M answers 2, 1 and 0 of 60 test rows exactly
TRIES = 2000  # draws before a tool counts as exhausted; its rarest calls are a few percent

RULES = """Answer the request with one line of JSON that calls one of these tools.
Copy values as they stand in the request. Give durations in minutes and currencies as three-letter \
codes. Leave out an optional argument (marked ?) that the request does not mention."""


def rows(split, n=None, seed=0):
    """Return n chat rows `{"messages": [user, assistant]}` of a split; n: default of COUNTS.

    The same split and seed give the same rows on every machine, and a smaller n gives the first of
    these rows. Each group of len(TOOLS) rows has each tool once, and no request occurs twice.
    """
    n = COUNTS[split] if n is None else n
    # `random` hashes a text seed itself, so it does not depend on PYTHONHASHSEED, and `random()`
    # is the only method whose numbers Python promises to keep in later versions
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
            raise ValueError(f"{split} has no further {tool} request: ask for fewer rows")
        answers[request] = answer
    return [
        {"messages": [_turn("user", request), _turn("assistant", answer)]}
        for request, answer in answers.items()
    ]


def split_of(answer):
    """Return the only split in which the call `answer` occurs."""
    return SPLIT_OF_BUCKET[zlib.crc32(answer.encode()) % len(SPLIT_OF_BUCKET)]


def _draw(tool, split, rng):
    phrasing = _pick(rng, TOOLS[tool]["test" if split == "test" else "train"])
    said: dict = {}
    meant: dict = {}
    for name, argument in TOOLS[tool]["arguments"].items():
        if "{" + name + "}" in phrasing:
            pool = POOLS[argument["pool"]]
            # without repetition: a route needs two towns, an exchange two currencies
            said[name] = _pick(rng, [value for value in pool if value not in said.values()])
            meant[name] = pool[said[name]] if isinstance(pool, dict) else said[name]
    if rng.random() < 0.5:  # some people type no capital at the start and no full stop
        phrasing = phrasing[0].lower() + phrasing[1:].rstrip(".?")
    # correct the English of filled slots: "on tomorrow" -> "tomorrow", "a eye test" -> "an …"
    request = re.sub(r"\bon (today|tomorrow)\b", r"\1", phrasing.format(**said))
    request = re.sub(r"\b([Aa]) (?=[AEIOUaeiou])", r"\1n ", request)
    return request, json.dumps({"tool": tool, "arguments": meant}, ensure_ascii=False)


def _pick(rng, values):
    return values[int(rng.random() * len(values))]


def _turn(role, content):
    return {"role": role, "content": content}


def few_shot_row(row):
    """Return `row` preceded by the rules, the tools and FEW_SHOTS rows of train."""
    system = [RULES]
    for tool, entry in TOOLS.items():
        arguments = ", ".join(
            f"{name}{'?' if a.get('optional') else ''}: {a['type']}"
            for name, a in entry["arguments"].items()
        )
        system.append(f"{tool}({arguments}): {entry['description']}")
    shots = [turn for shot in rows("train", FEW_SHOTS) for turn in shot["messages"]]
    return {"messages": [_turn("system", "\n".join(system)), *shots, *row["messages"]]}


def main(folder, few_shot=False):
    """Write the rows of each split to a folder, for `minilora train --data FOLDER`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        chats = [few_shot_row(row) if few_shot else row for row in rows(split)]
        lines = [json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats]
        (Path(folder) / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], "--few-shot" in sys.argv)
