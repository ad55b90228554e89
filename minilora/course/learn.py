"""Work on exercises in a folder of one Python file each and `progress.json` (`minilora learn`).

No command overwrites a student's file.
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..config import InputError, require
from ..formats.files import read_json, replace_text, write_errors
from . import exercises, judge
from .student import loaded

PROGRESS = "progress.json"


class Workspace:
    """A student's folder: its exercises, and the progress that progress.json records."""

    def __init__(self, folder):
        self.folder, self.exercises = Path(folder), exercises.load()
        self.present = [e for e in self.exercises.values() if self.path(e).exists()]
        self.read()

    def path(self, exercise):
        """Return the path of the student's file."""
        return self.folder / exercise.file

    def read(self):
        """Read progress.json again; raise InputError if it is missing or malformed."""
        path, how = self.folder / PROGRESS, "make one with `minilora learn init DIR`"
        require(path.exists(), f"{self.folder} is not a workspace (no {PROGRESS}): {how}")
        self.progress = read_json(path)
        for noted in self.progress.values():
            require(isinstance(noted, dict), f"{path} must hold one object per exercise")

    def of(self, exercise):
        """Return the recorded progress on an exercise: `passed` and `hints`."""
        return self.progress.get(exercise.id, {})

    def note(self, exercise, **values):
        """Record progress, and keep what another command may have recorded meanwhile."""
        self.read()
        self.progress[exercise.id] = {**self.of(exercise), **values}
        replace_text(self.folder / PROGRESS, json.dumps(self.progress, indent=1) + "\n")

    def named(self, name):
        """Return the exercise with this id or file name."""
        name = Path(name).stem.replace("_", "-")
        require(name in self.exercises, f"there is no exercise {name!r}: see minilora learn list")
        return self.exercises[name]

    def check(self, exercise):
        """Return the Verdict on the student's file, and record it if the file passes."""
        path = self.path(exercise)
        require(path.exists(), f"{path} is missing: `minilora learn init` makes a new stub")
        verdict = judge.verdicts(exercise, path.read_bytes())[0]
        if verdict.status == "passed":
            self.note(exercise, passed=True)
        return verdict

    def is_begun(self, exercise):
        """Tell whether the student has changed the stub."""
        return self.path(exercise).read_text("utf-8", "replace") != exercise.student_file()


def write_stubs(folder, chosen):
    """Write progress.json and the stubs that a folder lacks; return the number of new stubs."""
    if not (folder / PROGRESS).exists():
        replace_text(folder / PROGRESS, "{}\n")
    missing = [e for e in chosen if not (folder / e.file).exists()]
    for e in missing:
        replace_text(folder / e.file, e.student_file())
    return len(missing)


def print_verdict(exercise, verdict):
    """Print the status, and below it the explanation if the exercise is not passed."""
    text = f"\n  {verdict.text}" * (verdict.share < 1)
    print(f"{exercise.id}: {verdict.status}{text}")


def debug(path):
    """Check one file in this process, so that breakpoints stop and prints appear."""
    try:
        e = Workspace(Path(path).parent).named(path)
        subject, answer = loaded(Path(path).read_bytes(), path, e.sought[-1], (), ())
        require(subject, f"{path} cannot be loaded: {answer.crash}")
        print_verdict(e, judge.check(e, subject))
    except InputError as error:
        sys.exit(f"error: {error}")


def do_init(args):
    """Make a workspace, or write the stubs that it lacks."""
    folder, known = Path(args.folder), exercises.load().values()
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    new = write_stubs(folder, known)
    print(f"{args.folder}: {new} new exercises, {len(known) - new} files kept unchanged")
    print(f"next: cd {args.folder}, then minilora learn next")


def do_list(args):
    """Print the exercises with their state, lesson, difficulty, minutes and points."""
    space = Workspace(args.dir)
    for e in space.present:
        noted = space.of(e)
        state = "passed" if noted.get("passed") else "begun" if space.is_begun(e) else "todo"
        extra = f"  {noted['hints']} hints" if "hints" in noted else ""
        about = f"{'*' * e.difficulty:<3} {e.minutes:>3} min {e.points:>3g} points"
        print(f"{state:<7} {e.id:<22} lesson {e.lesson:<2} {about}{extra}")
    print(f"{sum('passed' in space.of(e) for e in space.present)} of {len(space.present)} passed")


def do_next(args):
    """Print the first exercise whose prerequisites are passed, and its lesson."""
    space = Workspace(args.dir)
    left = {e.id: e for e in space.present if not space.of(e).get("passed")}
    for e in [e for e in left.values() if not set(e.needs) & set(left)][:1]:
        print(f"{e.id}: `{e.name}` of {e.module}, about {e.minutes} minutes")
        print(f"read {e.lesson_file}")
        print(f"edit {space.path(e)}, then minilora learn check {e.id}")
    if not left:
        print("all exercises are passed")


def do_check(args):
    """Check one exercise or all begun ones; return 1 if one of them is not passed."""
    space, passed = Workspace(args.dir), []
    for e in [space.named(args.id)] if args.id else space.present:
        if args.id or space.is_begun(e):
            verdict = space.check(e)
            print_verdict(e, verdict)
            passed.append(verdict.status == "passed")
    require(passed, "you have not begun an exercise yet: see minilora learn next")
    return int(not all(passed))


def do_watch(args):
    """Check each file when it changes, until the user presses Ctrl-C."""
    require(args.interval > 0, "--interval must be a positive number of seconds")
    space = Workspace(args.dir)
    seen: dict = {}
    print(f"watching {space.folder}; press Ctrl-C to stop", flush=True)
    with suppress(KeyboardInterrupt):
        while True:
            for e in space.exercises.values():
                with suppress(OSError):  # an editor may be replacing the file
                    stat = space.path(e).stat()
                    now = stat.st_mtime_ns, stat.st_size
                    if seen.setdefault(e.id, now) != now:
                        seen[e.id] = now
                        print(time.strftime("%H:%M:%S"), e.id, check_line(space, e), flush=True)
            time.sleep(args.interval)


def check_line(space, exercise):
    """Return the result of a check as one line, also if the check is not possible."""
    try:
        verdict = space.check(exercise)
    except (InputError, OSError) as error:
        return f"cannot be checked: {error}"
    why = verdict.mistake or verdict.text.splitlines()[0]
    return f"failed  {why}" if verdict.status == "failed" else verdict.status


def do_hint(args):
    """Print the next hint, or all three if all were given."""
    space = Workspace(args.dir)
    e = space.named(args.id)
    given = space.of(e).get("hints", 0)
    space.note(e, hints=min(given + 1, 3))
    for n in range(3) if given == 3 else [given]:
        print(f"hint {n + 1} of 3: {e.hints[n]}")
