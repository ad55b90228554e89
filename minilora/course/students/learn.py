"""Work on exercises in the current folder: one Python file each, and `progress.json`.

No command of `minilora learn` overwrites a student's file.
"""

import ast
import json
import runpy
import shlex
import sys
from bdb import BdbQuit
from contextlib import suppress
from modulefinder import ModuleFinder
from pathlib import Path

from ...config import InputError
from ...formats.files import digest, read_json, replace_text
from ...tree import without
from . import exercises, judge
from .isolation import Local

PROGRESS = Path("progress.json")  # {id of an exercise: SHA-256 of its files, which passed}


def present():
    """Return the exercises whose file is in the workspace."""
    found = [e for e in exercises.load().values() if Path(e.file).exists()]
    if not found:
        raise InputError("this folder has no exercise: make some with `minilora learn init DIR`")
    return found


def own_files():
    """Return {name: bytes} of the Python files of the workspace, which can import each other."""
    return {path.name: path.read_bytes() for path in Path().glob("*.py")}


def is_begun(exercise):
    """Tell whether the student has changed the stub."""
    return not exercise.is_unchanged(Path(exercise.file).read_bytes())


def has_passed(exercise, progress):
    """Tell whether the student's files, as they are, have passed."""
    noted = progress.get(exercise.id)
    return noted is not None and noted == digest(files_of(exercise))


def files_of(exercise):
    """Return the names of the student's file and of those that it imports."""
    finder = ModuleFinder(path=[""])
    with suppress(SyntaxError, ValueError):  # of a file that is not Python
        finder.run_script(exercise.file)
    imported = {f"{name}.py" for name in finder.modules}
    return sorted(own_files().keys() & {exercise.file, *imported})


def check_file(exercise, call):
    """Check the student's file, or one call; print the result, and return whether it passes."""
    verdict = check_call(exercise, call) if call else judge.verdict(exercise, own_files())
    is_right = verdict == judge.PASSED
    needs_reason = is_right and exercise.written_points
    lacks_reason = needs_reason and not exercises.written_reasons(Path(exercise.file).read_bytes())
    text = "the answer is right, but REASON is not written yet" if lacks_reason else verdict.text
    print(f"{exercise.id}: {text}", flush=True)
    passed = is_right and not lacks_reason
    if not call:
        before = read_json(PROGRESS, {})
        progress = without(before, exercise.id)
        if passed:
            progress[exercise.id] = digest(files_of(exercise))
        if progress != before:
            replace_text(PROGRESS, json.dumps(progress, indent=1) + "\n")
    return passed


def do_init(args):
    """Make a workspace, or write the stubs that it lacks."""
    write_files(args)
    option = exercises.option(args.folder)
    print(f"next: cd {shlex.quote(args.folder)}, then minilora learn next{option}")


def write_files(args, solved=False):
    """Write the stubs, or the solutions, that a folder lacks."""
    folder = Path(args.folder)
    chosen = exercises.select(args.only)
    files = {folder / e.file: e.student_file(solved) for e in chosen}
    lesson = [e for e in chosen if e.module == exercises.ONE_FILE]
    if solved:
        rubrics = [e.folder / e.rubric for e in chosen if e.written_points]
        files |= {folder / path.name: path.read_text("utf-8") for path in rubrics if path.exists()}
    elif lesson:
        files[folder / "qlora_in_one_file.py"] = exercises.stubs(lesson)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [path for path in files if not path.exists()]
    for path in missing:
        replace_text(path, files[path])
    print(f"{folder}: files written: {len(missing)}, kept: {len(files) - len(missing)}")


def do_list(args):
    """Print the exercises with their state, lesson, difficulty, minutes and points."""
    progress = read_json(PROGRESS, {})
    shown = present()
    passed = {e.id for e in shown if has_passed(e, progress)}
    for e in shown:
        state = "passed" if e.id in passed else "begun" if is_begun(e) else "todo"
        about = f"{'*' * e.difficulty:<3} {e.minutes:>3} min {e.points:>3g} points"
        print(f"{state:<7} {e.id:<25} {about}  {Path(e.lesson_file or e.lesson).stem}")
    print(f"{len(passed)} of {len(shown)} passed")


def do_next(args):
    """Print the first exercise that is not passed, and the lesson to read for it."""
    progress = read_json(PROGRESS, {})
    for e in present():
        if not has_passed(e, progress):
            stubs = Path("qlora_in_one_file.py")  # the lesson without the answers
            has_stubs = e.module == exercises.ONE_FILE and stubs.exists()
            lesson = stubs if has_stubs else e.lesson_file or e.lesson
            print(f"{e.id}: {e.about}, about {e.minutes} minutes\nread {lesson}")
            print(f"edit {e.file}, then minilora learn check {e.id}{exercises.option()}")
            return
    print("all exercises are passed")


def do_check(args):
    """Check one exercise or all begun ones; return True, for status 1, if one is not passed."""
    chosen = exercises.select([args.id]) if args.id else [*filter(is_begun, present())]
    if not chosen:
        raise InputError("you have not begun an exercise yet: see minilora learn next")
    passed = [check_file(e, args.call) for e in chosen]
    return not all(passed)


def check_call(exercise, call):
    """Return the Verdict on one call in this process, so that breakpoints stop."""
    try:
        case = tuple(ast.literal_eval(call).items())
        exercise.arguments(case)
    except Exception:
        text = f"--call {call} is no call of {exercise.id}: copy the line that begins with `again`"
        raise InputError(text) from None
    sys.path.append("")  # the student's files can import each other
    names = runpy.run_path(exercise.file)
    if exercise.answer not in names:
        raise InputError(f"{exercise.file} has no function {exercise.answer}")
    try:
        local = Local(names[exercise.answer], exercise.file)
        return judge.check(exercise, local, cases=[case])
    except BdbQuit:
        return judge.Verdict(0.0, "the debugger was left")


def do_train(args):
    """Train lesson 0 with the student's functions; return True if the losses differ."""
    train = runpy.run_path(str(exercises.LESSONS / "exercises" / "train.py"))
    return train["main"](args.file, own_files())


def do_hint(args):
    """Print one of the three hints."""
    (e,) = exercises.select([args.id])
    print(f"hint {args.number} of 3: {e.hints[args.number - 1]}")
