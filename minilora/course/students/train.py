"""Train lesson 0 with the student's own functions (`minilora learn train`)."""

import importlib
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np

from ...config import InputError
from . import exercises, judge

BOUND = 1e-3  # nats: sums in another order change a loss of 200 steps by less
LESSON = "qlora_in_one_file.py"  # lesson 0 without the bodies, in a workspace


def lesson_exercises():
    """Return the exercises whose functions make up lesson 0."""
    return [e for e in exercises.load().values() if e.module == "minilora.course.one_file"]


def stubs_of_lesson():
    """Return the text of lesson 0 without the bodies of the functions that the student writes."""
    text = "# Lesson 0 without its functions. Write them in the files one_file_*.py, then:\n"
    text += "#     minilora learn train\n\n" + lesson_exercises()[0].text
    for e in lesson_exercises():
        whole, stub = (exercises.functions(text, [e.name], message) for message in ("", e.id))
        text = text.replace(whole, stub)
    return text


def run(file, others):
    """Train, print the first step whose loss differs and why; return True if one differs."""
    files = {e: Path(file or e.file) for e in lesson_exercises()}
    for path in files.values():
        if not path.exists():
            raise InputError(f"{path} is missing: `minilora learn init` makes a new stub")
    right = np.loadtxt(exercises.LESSONS / "exercises" / "one_file_losses.txt")
    try:
        wrong = np.flatnonzero(~(np.abs(train(files) - right) <= BOUND)).tolist()
    except Exception as error:
        print(f"the training stopped: {type(error).__name__}: {error}")
        wrong = [0]
    if not wrong:
        print(f"your functions train: all {len(right)} losses equal the reference's")
        return False
    print(f"the loss of step {wrong[0] + 1} is the first that differs from the reference's")
    for e, path in files.items():
        verdict = judge.verdict(e, others | {e.file: path.read_bytes()})
        if verdict != judge.PASSED:
            print(f"to blame: {e.id}: {verdict.text}")
    return True


def train(files):
    """Return the losses of lesson 0 with the functions of {exercise: file}."""
    sys.path.insert(0, "")  # the files can import each other
    modules = [importlib.import_module(path.stem) for path in files.values()]
    own = {e.name: getattr(module, e.name) for e, module in zip(files, modules)}
    lesson = vars(importlib.import_module("minilora.course.one_file"))
    training = lesson["text"].partition("# ## 6. Training")[2].partition("# ## 7. Merging")[0]
    base = next(line for line in lesson["text"].splitlines() if line.startswith("base = "))
    with patch.dict(lesson, own):
        for module in modules:  # they have imported the reference's functions
            vars(module).update({name: own[name] for name in own if hasattr(module, name)})
        exec(base + training, lesson)
        return lesson["losses"]
