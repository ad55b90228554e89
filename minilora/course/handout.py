"""The tree that students get: stubs, hints and open checks; no solution, no mistake."""

import ast
import json
from dataclasses import fields

from . import source
from .exercises import Exercise
from .workspace import CHECKS, PROGRESS, write

TRIMMED = {"folder", "mistakes"}


def write_tree(folder, exercises):
    """Fill an empty folder."""
    ids = {e.id for e in exercises}
    checks = folder / CHECKS / "exercises"
    checks.mkdir(parents=True)
    write(folder / PROGRESS, "{}\n")
    write(folder / "README.md", readme(exercises))
    write(folder / CHECKS / "exercises.toml", "\n".join(entry(e, ids) for e in exercises))
    for e in exercises:
        stub = source.file_text(e)
        write(folder / f"{e.stem}.py", stub)
        # the file of a test holds its solution
        rules = stub if e.kind == "test" else without_mistakes(e.folder / f"{e.stem}.py")
        write(checks / f"{e.stem}.py", rules)


def entry(exercise, ids):
    """The exercise's entry in TOML, without its mistakes and without what it needs beyond `ids`."""
    lines = ["[[exercise]]"]
    for field in fields(Exercise):
        value = getattr(exercise, field.name)
        if field.name == "needs":
            value = [need for need in value if need in ids]
        if field.name not in TRIMMED:
            value = list(value) if isinstance(value, tuple) else value
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def without_mistakes(path):
    """A Python file of cases and properties without its functions `mistake_…`."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("mistake_"):
            del lines[source.start(node) - 1 : node.end_lineno]
    return "\n".join(lines).rstrip() + "\n"


README = """# Exercises

Each file is a function of minilora without its body. Write it, and check it:

    minilora learn list
    minilora learn next
    minilora learn check ID      without ID: all that you have begun
    minilora learn hint ID       three of them, one at a time
    minilora learn reset ID      a fresh stub; your file is kept under another name

Run a file by itself to step through it in a debugger. What you hand in is this folder. It is
graded by these checks and by hidden ones: the same rules, on other calls.

| exercise | file | lesson | difficulty | minutes | points |
| --- | --- | --- | --- | --- | --- |
"""


def readme(exercises):
    rows = [
        f"| {e.id} | [{e.stem}.py]({e.stem}.py) | {e.lesson} | {e.difficulty} | {e.minutes} "
        f"| {e.points:g} |"
        for e in exercises
    ]
    return README + "\n".join(rows) + "\n"
