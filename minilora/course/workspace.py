"""A student's folder: a plain Python file an exercise, and `progress.json`.

Nothing that a student wrote is ever overwritten: a file that is there stays, and what is to be
begun again is moved to a numbered name first.
"""

import json
from pathlib import Path

from ..config import InputError, require
from ..formats.files import read_json, replacing
from . import exercises, source
from .outcome import Stopped
from .student import Student
from .verdict import Verdict, check

PROGRESS = "progress.json"
CHECKS = "checks"  # the folder of a built tree that has its exercises and properties


class Workspace:
    """The folder, its exercises, and what was done so far."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.built = (self.folder / CHECKS).is_dir()
        self.exercises = exercises.load(self.folder / CHECKS if self.built else exercises.LESSONS)
        self.progress = self._read()

    @classmethod
    def create(cls, folder):
        """The workspace in `folder`, and the names of the stubs that were not there yet."""
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}") from error
        if not (Path(folder) / PROGRESS).exists():
            write(Path(folder) / PROGRESS, "{}\n")
        space = cls(folder)
        missing = [e for e in space.exercises.values() if not space.path(e).exists()]
        for exercise in missing:
            write(space.path(exercise), source.file_text(exercise))
        return space, [space.path(e).name for e in missing]

    def _read(self):
        path = self.folder / PROGRESS
        require(
            path.exists(), f"{self.folder} is no workspace: make one with minilora learn init DIR"
        )
        progress = read_json(path)
        require(
            all(isinstance(noted, dict) for noted in progress.values()),
            f"{path} must hold an object for each exercise",
        )
        return progress

    def path(self, exercise):
        return self.folder / f"{exercise.stem}.py"

    def of(self, exercise):
        """What was noted about an exercise: `passed`, `checks`, `hints`, `solution`."""
        return self.progress.get(exercise.id, {})

    def note(self, exercise, **values):
        """Write down what happened, beside what another command may have noted meanwhile."""
        self.progress = self._read()
        self.progress[exercise.id] = {**self.of(exercise), **values}
        write(self.folder / PROGRESS, json.dumps(self.progress, indent=1) + "\n")

    def named(self, name):
        """The exercise of that id; a file's name will do."""
        name = Path(name).stem.replace("_", "-")
        require(
            name in self.exercises,
            f"there is no exercise {name!r}: see minilora learn list",
        )
        return self.exercises[name]

    def written(self, exercise):
        """Whether its file is more than the stub."""
        path = self.path(exercise)
        return path.exists() and path.read_text("utf-8", "replace") != source.file_text(exercise)

    def check(self, exercise):
        """The Verdict on the exercise's file, noted."""
        path = self.path(exercise)
        require(path.exists(), f"{path} is gone: minilora learn reset {exercise.id} brings it back")
        verdict = checked(exercise, path)
        passed = {"passed": True} if verdict.status == "passed" else {}
        if verdict.status != "todo":
            self.note(exercise, checks=self.of(exercise).get("checks", 0) + 1, **passed)
        return verdict

    def ready(self):
        """Exercises that are not passed and whose `needs` are, in their order."""
        return [
            e for e in self.exercises.values()
            if not self.of(e).get("passed")
            and all(self.of(self.exercises[n]).get("passed") for n in e.needs)
        ]  # fmt: skip

    def reset(self, exercise):
        """A fresh stub; returns where the old file is now, or None."""
        path, kept = self.path(exercise), None
        if path.exists():
            kept = free_name(path)
            path.rename(kept)
        write(path, source.file_text(exercise))
        return kept


def checked(exercise, path):
    """The Verdict on the file at `path`, in a process of its own."""
    try:
        with Student(exercise, path) as subject:
            return check(exercise, subject)
    except Stopped as stop:
        return Verdict("failed", 0.0, str(stop))


def free_name(path):
    """nearest_code.py -> nearest_code.1.py, or the next number that is free."""
    n = 1
    while (candidate := path.with_suffix(f".{n}.py")).exists():
        n += 1
    return candidate


def write(path, text):
    """Write a text file whole, or not at all."""
    with replacing(Path(path)) as (temporary,):
        temporary.write_text(text, encoding="utf-8")
