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
from ..formats.files import read_json, replace_text, writing
from . import exercises, judge
from .student import Local

PROGRESS = "progress.json"
CHECKS = "checks"  # the folder of a built tree that has its exercises and properties


class Workspace:
    """The folder, its exercises, and what was done so far."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.built = (self.folder / CHECKS).is_dir()
        self.exercises = exercises.load(self.folder / CHECKS if self.built else exercises.LESSONS)
        self.read()

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
        replace_text(self.folder / PROGRESS, json.dumps(self.progress, indent=1) + "\n")

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
        verdict = judge.check(e, Local(function, str(path)))
    except InputError as error:
        sys.exit(f"error: {error}")
    show(e, verdict)


def do_init(args):
    folder = Path(args.folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not (folder / PROGRESS).exists():
        replace_text(folder / PROGRESS, "{}\n")
    space = Workspace(folder)
    missing = [e for e in space.exercises.values() if not (space.folder / e.file).exists()]
    for e in missing:
        replace_text(space.folder / e.file, e.student_file())
    kept = len(space.exercises) - len(missing)
    print(f"{args.folder}: {len(missing)} exercises to write, {kept} files kept as they are")
    print(f"next: cd {args.folder}, then minilora learn next")


def do_list(args):
    space = Workspace(args.dir)
    passed = 0
    for e in space.exercises.values():
        noted = space.of(e)
        passed += bool(noted.get("passed"))
        state = "passed" if noted.get("passed") else "begun" if noted.get("checks") else "todo"
        extra = f"  {noted['hints']} hints" if noted.get("hints") else ""
        extra += "  solution seen" if noted.get("solution") else ""
        work = f"{'*' * e.difficulty:<3} {e.minutes:>3} min {e.points:>3g} points"
        print(f"{state:<7} {e.id:<22} lesson {e.lesson:<2} {work}{extra}")
    print(f"{passed} of {len(space.exercises)} passed")


def do_next(args):
    space = Workspace(args.dir)
    for e in space.exercises.values():
        needs = [space.exercises[need] for need in e.needs]
        if not space.of(e).get("passed") and all(space.of(n).get("passed") for n in needs):
            print(f"{e.id}: `{e.name}` of {e.module}, lesson {e.lesson}, about {e.minutes} minutes")
            print(f"edit {space.folder / e.file}, then minilora learn check {e.id}")
            return
    print("all exercises are passed")


def do_check(args):
    space = Workspace(args.dir)
    begun = [space.named(args.id)] if args.id else []
    for e in space.exercises.values() if not args.id else ():
        path = space.folder / e.file
        if path.exists() and path.read_text("utf-8", "replace") != e.student_file():
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
                verdict = space.check(e)
                why = verdict.brief or verdict.text.splitlines()[0]
                line = f"{time.strftime('%H:%M:%S')} {e.id} {verdict.status}"
                print(f"{line}  {why}" if verdict.status == "failed" else line, flush=True)
            seen = now
            time.sleep(args.interval)


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
    require(not space.built, "the solutions of this course are your teacher's")
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
    replace_text(path, e.student_file())
    print(f"{path} is the stub again{kept}")
