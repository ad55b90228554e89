"""Train lesson 0 with the student's own functions, for `minilora learn train`."""

import importlib
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
from autograd import value_and_grad

from minilora.config import InputError
from minilora.course.students import exercises, judge

BOUND = 1e-3  # nats: sums in another order change a loss of 200 steps by less
LOSSES = "one_file_losses.txt"  # of the reference


class OtherLoss(Exception):
    """A loss differs from the reference's."""


def main(file, others):
    """Train with the functions of one file, or of the files of the exercises.

    Print the first step whose loss differs from the reference's, and the functions to blame. Return
    True if one differs.
    """
    lesson = [e for e in exercises.load().values() if e.module == exercises.ONE_FILE]
    if not lesson:
        raise InputError("these exercises are not of lesson 0: leave --exercises out")
    files = {e: Path(file or e.file) for e in lesson}
    for path in files.values():
        if not path.exists():
            raise InputError(f"{path} is missing: `minilora learn init` makes a new stub")
    right = np.loadtxt(exercises.LESSONS / "exercises" / LOSSES)
    losses: list[float] = []
    try:
        train(files, right, losses)
    except InputError:
        raise
    except OtherLoss:
        print(f"the loss of step {len(losses)} is the first that differs from the reference's")
    except Exception as error:
        print(f"the training stopped in step {len(losses) + 1}: {type(error).__name__}: {error}")
    else:
        print(f"your functions train: all {len(losses)} losses equal the reference's")
        return False
    is_blamed = False
    for e in files:
        verdict = judge.verdict(e, others | {e.file: alone(e, files)})
        if verdict != judge.PASSED:
            is_blamed = True
            print(f"to blame: {e.id}: {verdict.text}")
    if not is_blamed:
        print("each function passes its own check: do they change what they share?")
    return True


def alone(exercise, files):
    """Return the bytes of a file in which the other functions are the reference's.

    Otherwise, a wrong function in a file with all of them also spoils those that call it.
    """
    names = ", ".join(e.name for e in files if e is not exercise)
    return files[exercise].read_bytes() + f"\nfrom {exercises.ONE_FILE} import {names}\n".encode()


def train(files, right, losses):
    """Train lesson 0 with the functions of {exercise: file}, and add its losses to the list.

    Raises OtherLoss at the first loss that differs from that of `right`.
    """
    folders = dict.fromkeys(str(path.resolve().parent) for path in files.values())
    sys.path[:0] = folders  # the files can import each other
    modules = [importlib.import_module(path.stem) for path in files.values()]
    own = {e.name: getattr(module, e.name) for e, module in zip(files, modules)}
    lesson = vars(importlib.import_module(exercises.ONE_FILE))
    for path, name in zip(files.values(), own):
        if own[name] is lesson[name]:
            raise InputError(f"{path}: {name} is minilora's: put all imports above your functions")
    training = lesson["text"].partition("# ## 6. Training")[2].partition("# ## 7. Merging")[0]
    base = next(line for line in lesson["text"].splitlines() if line.startswith("base = "))

    def compared(loss):
        """Return value_and_grad(loss), which compares the value."""

        def step(*args):
            value, grads = value_and_grad(loss)(*args)
            losses.append(value)
            if not abs(value - right[len(losses) - 1]) <= BOUND:  # or NaN
                raise OtherLoss
            return value, grads

        return step

    with patch.dict(lesson, own | {"value_and_grad": compared}):
        for module in modules:  # they have imported the reference's functions
            vars(module).update({name: own[name] for name in own if hasattr(module, name)})
        exec(base + training, lesson)
