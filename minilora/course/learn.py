"""`minilora learn`: what each of its commands prints and does."""

import os
import sys
import time
from pathlib import Path

from ..config import InputError, require
from .exercises import load_file
from .subject import Local
from .verdict import check as checked_here
from .workspace import Workspace

COLOURS = {"passed": "32", "failed": "31", "todo": "2"}


def init(args):
    space, made = Workspace.create(args.folder)
    kept = len(space.exercises) - len(made)
    print(f"{args.folder}: {len(made)} exercises to write, {kept} files kept as they are")
    print(f"next: cd {args.folder}, then minilora learn next")


def list_(args):
    space = Workspace(args.dir)
    for e in space.exercises.values():
        noted = space.of(e)
        state = "passed" if noted.get("passed") else "todo"
        state = "begun" if state == "todo" and noted.get("checks") else state
        marks = "*" * e.difficulty
        extra = f"  {noted['hints']} hints" if noted.get("hints") else ""
        extra += "  solution seen" if noted.get("solution") else ""
        print(
            f"{painted(f'{state:<7}', state)} {e.id:<22} lesson {e.lesson:<2} {marks:<3} "
            f"{e.minutes:>3} min {e.points:>3g} points{extra}"
        )
    passed = sum(bool(space.of(e).get("passed")) for e in space.exercises.values())
    print(f"{passed} of {len(space.exercises)} passed")


def next_(args):
    space = Workspace(args.dir)
    ready = space.ready()
    if not ready:
        print("all exercises are passed")
        return
    e = ready[0]
    print(f"{e.id}: `{e.name}` of {e.module}, lesson {e.lesson}, about {e.minutes} minutes")
    print(f"edit {space.path(e)}, then minilora learn check {e.id}")


def check(args):
    """One exercise, or all whose files are more than stubs. Returns the exit status."""
    space = Workspace(args.dir)
    chosen = [space.named(args.id)] if args.id else _begun(space)
    require(chosen, "nothing is written yet: see minilora learn next")
    failed = 0
    for e in chosen:
        verdict = space.check(e)
        failed += verdict.status != "passed"
        print(f"{e.id}: {shown(verdict)}")
    return 1 if failed else 0


def _begun(space):
    return [e for e in space.exercises.values() if space.written(e)]


def shown(verdict):
    """A verdict's text behind its status."""
    status = painted(verdict.status, verdict.status)
    return status if verdict.text == verdict.status else f"{status}\n  {verdict.text}"


def watch(args):
    """Check each file when it changes, until interrupted; a line a change."""
    require(args.interval > 0, "--interval must be a positive number of seconds")
    space = Workspace(args.dir)
    print(f"watching {space.folder}, interrupt to end", flush=True)
    seen = _times(space)
    while True:
        time.sleep(args.interval)
        now = _times(space)
        for e in [space.exercises[name] for name in now if now[name] != seen.get(name)]:
            verdict = space.check(e)
            why = (verdict.brief or verdict.text.splitlines()[0]) * (verdict.status == "failed")
            line = f"{time.strftime('%H:%M:%S')} {e.id} {painted(verdict.status, verdict.status)}"
            print(f"{line}  {why}".rstrip(), flush=True)
        seen = now


def _times(space):
    """{id: (time of change, size)} of the files that are there."""
    times = {}
    for e in space.exercises.values():
        try:
            stat = space.path(e).stat()
        except OSError:  # an editor may be replacing it
            continue
        times[e.id] = (stat.st_mtime_ns, stat.st_size)
    return times


def hint(args):
    """The next hint; when all three are given, all of them again."""
    space = Workspace(args.dir)
    e = space.named(args.id)
    given = space.of(e).get("hints", 0)
    if given < len(e.hints):
        space.note(e, hints=given + 1)
        print(f"hint {given + 1} of {len(e.hints)}: {e.hints[given]}")
        return
    for n, text in enumerate(e.hints, 1):
        print(f"hint {n} of {len(e.hints)}: {text}")


def solution(args):
    """The reference's text, after passing or on request."""
    space = Workspace(args.dir)
    e = space.named(args.id)
    require(not space.built, "the solutions of this course are your teacher's")
    passed = space.of(e).get("passed")
    require(
        passed or args.anyway,
        f"{e.id} is not passed yet: a hint may do (minilora learn hint {e.id}), --anyway shows it",
    )
    if not passed:
        space.note(e, solution=True)
    text, names = e.sought
    print("\n\n\n".join(text.function(name) for name in names))


def reset(args):
    space = Workspace(args.dir)
    e = space.named(args.id)
    kept = space.reset(e)
    print(f"{space.path(e)} is the stub again" + (f"; yours is {kept}" if kept else ""))


def debug(path):
    """The check of one file in this process: breakpoints are met, prints are seen."""
    path = Path(path).resolve()
    try:
        space = Workspace(path.parent)
        e = space.named(path.name)
        name = e.sought[1][-1]
        function = getattr(load_file(path, "submission"), name, None)
        require(function, f"{path} has no function {name}")
        verdict = checked_here(e, Local(function, (str(path),)))
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{e.id}: {shown(verdict)}")


def painted(text, status):
    """`text` in the status's colour on a terminal, unless NO_COLOR is set."""
    plain = (
        not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return text if plain or status not in COLOURS else f"\033[{COLOURS[status]}m{text}\033[0m"
