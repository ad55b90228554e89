"""`minilora learn`: work in a folder of one Python file per exercise, and `progress.json`.

No command overwrites a student's file.
"""

import json
import runpy
import sys
import time
from contextlib import suppress
from pathlib import Path

from ..config import InputError, require
from ..formats.files import read_json, replacing
from . import exercises, judge
from .student import Local

PROGRESS = "progress.json"


class Workspace:
    """The folder, its exercises, and what was done so far."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.exercises = exercises.load()
        self.read()

    @property
    def present(self):
        """The exercises whose files are in the folder: a teacher may have chosen some."""
        return [e for e in self.exercises.values() if (self.folder / e.file).exists()]

    def read(self):
        path = self.folder / PROGRESS
        way = "make one with minilora learn init DIR"
        require(path.exists(), f"{self.folder} is no workspace: {way}")
        self.progress = read_json(path)
        objects = all(isinstance(noted, dict) for noted in self.progress.values())
        require(objects, f"{path} must hold an object for each exercise")

    def of(self, exercise):
        """Return what was noted about an exercise: `passed`, `checks`, `hints`, `solution`."""
        return self.progress.get(exercise.id, {})

    def note(self, exercise, **values):
        """Note what happened, and keep what another command may have noted meanwhile."""
        self.read()
        self.progress[exercise.id] = {**self.of(exercise), **values}
        write(self.folder / PROGRESS, json.dumps(self.progress, indent=1) + "\n")

    def named(self, name):
        """Return the exercise with that id, or with that file name."""
        name = Path(name).stem.replace("_", "-")
        require(name in self.exercises, f"there is no exercise {name!r}: see minilora learn list")
        return self.exercises[name]

    def check(self, exercise):
        """Return the Verdict on the exercise's file, and note that it was checked."""
        path = self.folder / exercise.file
        require(path.exists(), f"{path} is gone: minilora learn reset {exercise.id} brings it back")
        verdict = judge.checked(exercise, path)
        passed = {"passed": True} if verdict.status == "passed" else {}
        if verdict.status != "todo":
            self.note(exercise, checks=self.of(exercise).get("checks", 0) + 1, **passed)
        return verdict


def write(path, text):
    """Write a text file whole, or not at all."""
    with replacing(Path(path)) as (temporary,):
        temporary.write_text(text, encoding="utf-8")


def show(exercise, verdict):
    text = "" if verdict.text == verdict.status else f"\n  {verdict.text}"
    print(f"{exercise.id}: {verdict.status}{text}")


def debug(path):
    """Check one file in this process: breakpoints are met, prints are seen."""
    path = Path(path).resolve()
    try:
        e = Workspace(path.parent).named(path.name)
        name = e.sought[1][-1]
        function = runpy.run_path(str(path), run_name="submission").get(name)
        require(function, f"{path} has no function {name}")
        show(e, judge.check(e, Local(function, str(path))))
    except InputError as error:
        sys.exit(f"error: {error}")


def fill(folder, chosen):
    """Write what a workspace lacks: the stubs of these exercises, and progress.json."""
    if not (folder / PROGRESS).exists():
        write(folder / PROGRESS, "{}\n")
    missing = [e for e in chosen if not (folder / e.file).exists()]
    for e in missing:
        write(folder / e.file, e.student_file())
    return len(missing)


def do_init(args):
    folder = Path(args.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{args.folder} cannot be made: {error.strerror}") from error
    known = exercises.load().values()
    missing = fill(folder, known)
    kept = len(known) - missing
    print(f"{args.folder}: {missing} exercises to write, {kept} files kept as they are")
    print(f"next: cd {args.folder}, then minilora learn next")


def do_list(args):
    space = Workspace(args.dir)
    passed = 0
    for e in space.present:
        noted = space.of(e)
        passed += bool(noted.get("passed"))
        state = "passed" if noted.get("passed") else "begun" if noted.get("checks") else "todo"
        extra = f"  {noted['hints']} hints" if noted.get("hints") else ""
        extra += "  solution seen" if noted.get("solution") else ""
        print(
            f"{state:<7} {e.id:<22} lesson {e.lesson:<2} "
            f"{'*' * e.difficulty:<3} {e.minutes:>3} min {e.points:>3g} points{extra}"
        )
    print(f"{passed} of {len(space.present)} passed")


def do_next(args):
    space = Workspace(args.dir)
    left = [e for e in space.present if not space.of(e).get("passed")]
    for e in left:
        if not set(e.needs) & {other.id for other in left}:
            print(f"{e.id}: `{e.name}` of {e.module}, about {e.minutes} minutes")
            print(f"read {e.lesson_file}")
            print(f"edit {space.folder / e.file}, then minilora learn check {e.id}")
            return
    print("all exercises are passed")


def do_check(args):
    space = Workspace(args.dir)
    begun = [space.named(args.id)] if args.id else []
    for e in space.present if not args.id else ():
        if (space.folder / e.file).read_text("utf-8", "replace") != e.student_file():
            begun.append(e)
    verdicts = []
    for e in begun:
        verdicts.append(space.check(e))
        show(e, verdicts[-1])
    require(verdicts, "nothing is written yet: see minilora learn next")
    return int(any(verdict.status != "passed" for verdict in verdicts))


def do_watch(args):
    require(args.interval > 0, "--interval must be a positive number of seconds")
    space = Workspace(args.dir)
    print(f"watching {space.folder}, interrupt to end", flush=True)
    seen = None
    with suppress(KeyboardInterrupt):
        while True:
            now = {}
            for e in space.exercises.values():
                with suppress(OSError):  # an editor may be replacing the file
                    stat = (space.folder / e.file).stat()
                    now[e.id] = stat.st_mtime_ns, stat.st_size
            changed = [name for name in now if seen is not None and now[name] != seen.get(name)]
            for e in map(space.named, changed):
                print(time.strftime("%H:%M:%S"), e.id, watched(space, e), flush=True)
            seen = now
            time.sleep(args.interval)


def watched(space, exercise):
    """Return a line on the exercise's file, also where checking it is not possible."""
    try:
        verdict = space.check(exercise)
    except (InputError, OSError) as error:
        return f"cannot be checked: {error}"
    why = verdict.brief or verdict.text.splitlines()[0]
    return f"failed  {why}" if verdict.status == "failed" else verdict.status


def do_hint(args):
    """Print the next hint; when all three are given, all of them again."""
    space = Workspace(args.dir)
    e = space.named(args.id)
    given = space.of(e).get("hints", 0)
    if given < len(e.hints):
        space.note(e, hints=given + 1)
    for n, text in enumerate(e.hints):
        if n == given or given >= len(e.hints):
            print(f"hint {n + 1} of {len(e.hints)}: {text}")


def do_solution(args):
    space = Workspace(args.dir)
    e = space.named(args.id)
    passed = space.of(e).get("passed")
    way = f"a hint may do (minilora learn hint {e.id}), --anyway shows it"
    require(passed or args.anyway, f"{e.id} is not passed yet: {way}")
    if not passed:
        space.note(e, solution=True)
    text, names = e.sought
    print(text.function(*names))


def do_reset(args):
    """Write a fresh stub; nearest_code.py becomes nearest_code.1.py, or the next free number."""
    space = Workspace(args.dir)
    e = space.named(args.id)
    path, kept = space.folder / e.file, ""
    if path.exists():
        n = 1
        while (old := path.with_suffix(f".{n}.py")).exists():
            n += 1
        path.rename(old)
        kept = f"; yours is {old}"
    write(path, e.student_file())
    print(f"{path} is the stub again{kept}")
