"""Work on exercises in a folder of one Python file each and `progress.json` (`minilora learn`).

No command overwrites a student's file.
"""

import json
import time
from contextlib import suppress
from pathlib import Path

from ..config import InputError
from ..data.hints import did_you_mean
from ..formats.files import read_json, replace_text, write_errors
from . import exercises, judge

PROGRESS = "progress.json"  # {id of an exercise: "passed"}


class Workspace:
    """A student's folder: the exercises in it, and the ids of those that are passed."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.exercises = exercises.load()
        if not (self.folder / PROGRESS).exists():
            raise InputError(
                f"{folder} is not a workspace (no {PROGRESS}): make one with `minilora learn init`"
            )
        self.present = [e for e in self.exercises.values() if self.path(e).exists()]
        self.passed = read_json(self.folder / PROGRESS)

    def path(self, exercise):
        """Return the path of the student's file."""
        return self.folder / exercise.file

    def named(self, name):
        """Return the exercise with this id or file name."""
        name = Path(name).stem.replace("_", "-")
        if name not in self.exercises:
            near = did_you_mean(name, self.exercises)
            raise InputError(f"there is no exercise {name!r}: see minilora learn list{near}")
        return self.exercises[name]

    def check(self, exercise):
        """Check the student's file, print the result, and return whether the file passes."""
        path = self.path(exercise)
        if not path.exists():
            raise InputError(f"{path} is missing: `minilora learn init` makes a new stub")
        verdict = judge.verdicts(exercise, path.read_bytes())[0]
        passed = verdict.status == "passed"
        print(f"{exercise.id}: {verdict.status}" + f"\n  {verdict.text}" * (not passed), flush=True)
        if passed:  # another command may have recorded progress meanwhile
            self.passed = read_json(self.folder / PROGRESS) | {exercise.id: "passed"}
            replace_text(self.folder / PROGRESS, json.dumps(self.passed, indent=1) + "\n")
        return passed

    def is_begun(self, exercise):
        """Tell whether the student has changed the stub."""
        return self.path(exercise).read_text("utf-8", "replace") != exercise.student_file()


def do_init(args):
    """Make a workspace, or write the stubs that it lacks."""
    folder = Path(args.folder)
    chosen = exercises.select(args.only)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PROGRESS).exists():
        replace_text(folder / PROGRESS, "{}\n")
    missing = [e for e in chosen if not (folder / e.file).exists()]
    for e in missing:
        replace_text(folder / e.file, e.student_file())
    kept = len(chosen) - len(missing)
    print(f"{args.folder}: {len(missing)} new exercises, {kept} files kept unchanged")
    print(f"next: cd {args.folder}, then minilora learn next")


def do_list(args):
    """Print the exercises with their state, lesson, difficulty, minutes and points."""
    space = Workspace(args.dir)
    for e in space.present:
        state = "passed" if e.id in space.passed else "begun" if space.is_begun(e) else "todo"
        about = f"{'*' * e.difficulty:<3} {e.minutes:>3} min {e.points:>3g} points"
        print(f"{state:<7} {e.id:<25} lesson {e.lesson:<3} {about}")
    print(f"{sum(e.id in space.passed for e in space.present)} of {len(space.present)} passed")


def do_next(args):
    """Print the first exercise that is not passed, and the lesson to read for it."""
    space = Workspace(args.dir)
    for e in space.present:
        if e.id not in space.passed:
            print(f"{e.id}: {e.about}, about {e.minutes} minutes\nread {e.lesson_file}")
            print(f"edit {space.path(e)}, then minilora learn check {e.id}")
            return
    print("all exercises are passed")


def do_check(args):
    """Check one exercise or all begun ones; return 1 if one of them is not passed."""
    space = Workspace(args.dir)
    chosen = [space.named(args.id)] if args.id else [*filter(space.is_begun, space.present)]
    if not chosen:
        raise InputError("you have not begun an exercise yet: see minilora learn next")
    passed = [space.check(e) for e in chosen]
    return int(not all(passed))


def do_watch(args):
    """Check each file when it changes, until the user presses Ctrl-C."""
    space = Workspace(args.dir)
    seen: dict = {}
    print(f"watching {space.folder}; press Ctrl-C to stop", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            for e in space.exercises.values():
                with suppress(OSError):  # an editor may be replacing the file
                    now = space.path(e).stat().st_mtime_ns
                    if seen.setdefault(e.id, now) != now:
                        seen[e.id] = now
                        print(time.strftime("%H:%M:%S"), end=" ")
                        space.check(e)
            time.sleep(0.5)


def do_hint(args):
    """Print one of the three hints."""
    e = Workspace(args.dir).named(args.id)
    print(f"hint {args.number} of 3: {e.hints[args.number - 1]}")
