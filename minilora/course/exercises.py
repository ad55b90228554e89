"""What an exercise is: an entry of `exercises.toml`, and a Python file of cases and properties.

The set's own mistakes are found here: an unknown key, a hint that is missing, an edit that does
not match the reference's source exactly once.
"""

import importlib.util
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import InputError, require
from . import source

LESSONS = Path(__file__).parents[2] / "lessons"  # of the clone that this package runs from
KINDS = ("function", "test")


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: an edit of the reference's source, or `mistake_NAME` of the Python file."""

    name: str
    says: str  # the diagnosis, one sentence
    find: str = ""
    replace: str = ""
    hidden: bool = False  # of a `test` exercise: counted, never named


@dataclass(frozen=True)
class Exercise:
    """A function of the reference for a student to write, or (kind `test`) a test of one."""

    id: str
    function: str  # "minilora.nf4:nearest"
    lesson: int
    difficulty: int  # 1 to 3
    minutes: int
    points: float
    hints: list[str]
    folder: Path  # of the Python file
    helpers: tuple[str, ...] = ()  # functions of the same module that the student writes, too
    needs: tuple[str, ...] = ()
    kind: str = "function"
    seconds: float = 20  # the time limit of a check
    mistakes: tuple[Mistake, ...] = ()

    @property
    def module(self):
        return self.function.partition(":")[0]

    @property
    def name(self):
        return self.function.partition(":")[2]

    @property
    def stem(self):
        """The id as a file's name."""
        return self.id.replace("-", "_")

    @cached_property
    def checks(self):
        """The exercise's Python file, as a module."""
        path = self.folder / f"{self.stem}.py"
        require(path.exists(), f"{self.id}: there is no {path}")
        return load_file(path, f"minilora_exercise_{self.stem}")

    @cached_property
    def reference(self):
        """The source of the reference: what a mistake edits."""
        return source.functions(self.module, (*self.helpers, self.name))

    @cached_property
    def sought(self):
        """(module, names, source) of what the student writes."""
        if self.kind == "test":
            path = self.folder / f"{self.stem}.py"
            return source.Text.of_file(path), ("check",)
        return source.Text.of_module(self.module), (*self.helpers, self.name)

    def compiled(self, text) -> Callable:
        """The function that `text`, the reference's source or an edit of it, defines."""
        return source.compiled(self.module, text, self.name)

    def edited(self, *mistakes):
        """The reference's source with these mistakes' edits; None where they cannot all be."""
        text = self.reference
        for mistake in mistakes:
            if not mistake.find or text.count(mistake.find) != 1:
                return None
            text = text.replace(mistake.find, mistake.replace)
        return text

    def mistaken(self, *mistakes):
        """The function with these mistakes; None where they cannot all be."""
        if len(mistakes) == 1 and not mistakes[0].find:
            return getattr(self.checks, f"mistake_{mistakes[0].name.replace('-', '_')}", None)
        text = self.edited(*mistakes)
        return text and self.compiled(text)

    def arguments(self, case):
        """The arguments of the call that `case` stands for, made anew."""
        sizes = {key: value for key, value in case.items() if key != "seed"}
        return tuple(self.checks.arguments(np.random.default_rng(case["seed"]), **sizes))

    def properties(self):
        """What is true of every right answer: the `property_…` functions, in their order."""
        return [f for name, f in vars(self.checks).items() if name.startswith("property_")]


def load_file(path, name):
    """The module that the Python file at `path` is."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(folder=LESSONS):
    """{id: Exercise} of `folder`/exercises.toml, checked."""
    path = Path(folder) / "exercises.toml"
    require(
        path.exists(),
        f"there are no exercises in {folder}: they come with a clone of the repository, or with "
        "the folder that `minilora teach build` makes",
    )
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["exercise"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError) as error:
        raise InputError(f"{path} is no list of exercises: {error}") from error
    exercises = {}
    for entry in entries:
        exercise = _made(entry, Path(folder) / "exercises")
        require(exercise.id not in exercises, f"{path}: {exercise.id} stands there twice")
        for need in exercise.needs:  # so there is no circle, and the order can be followed
            require(need in exercises, f"{path}: {exercise.id} needs {need}: put that above it")
        exercises[exercise.id] = exercise
    return exercises


def _made(entry, folder):
    where = f"exercise {entry.get('id', '?')}"
    mistakes = tuple(_filled(Mistake, m, where) for m in entry.get("mistake", ()))
    rest = {key: tuple(v) if key in ("needs", "helpers") else v for key, v in entry.items()}
    rest.pop("mistake", None)
    exercise = _filled(Exercise, {**rest, "folder": folder, "mistakes": mistakes}, where)
    require(exercise.kind in KINDS, f"{where}: kind must be one of {KINDS}")
    require(exercise.difficulty in (1, 2, 3), f"{where}: difficulty must be 1, 2 or 3")
    require(len(exercise.hints) == 3, f"{where}: give three hints, from gentle to plain")
    return exercise


def _filled(kind, values, where):
    names = {field.name for field in fields(kind)}
    require(set(values) <= names, f"{where}: unknown keys {sorted(set(values) - names)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).rpartition('__init__() ')[2]}") from error
