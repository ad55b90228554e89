"""Read the exercises: entries of `exercises.toml`, each with a Python file of cases and properties.

Reading finds the set's own mistakes: an unknown key, a hint that is missing, an exercise that
stands above one that it needs.
"""

import importlib.util
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import InputError, require
from . import source
from .outcome import Local

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
    hints: Sequence[str]
    folder: Path  # of the Python file
    helpers: Sequence[str] = ()  # functions of the same module that the student writes, too
    needs: Sequence[str] = ()
    kind: str = "function"
    seconds: float = 20  # the time limit of a check
    mistakes: Sequence[Mistake] = ()

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
        return source.Text.of_module(self.module).function(*self.helpers, self.name)

    @cached_property
    def right(self):
        """The reference as a subject."""
        return Local(self.mistaken())

    @cached_property
    def sought(self):
        """(text, names) of the functions that the student writes."""
        if self.kind == "test":
            path = self.folder / f"{self.stem}.py"
            return source.Text(None, path.read_text(encoding="utf-8")), ("check",)
        return source.Text.of_module(self.module), (*self.helpers, self.name)

    def edited(self, *mistakes):
        """Return the reference's source with these mistakes' edits; None if one does not apply."""
        text = self.reference
        for mistake in mistakes:
            if not mistake.find or text.count(mistake.find) != 1:
                return None
            text = text.replace(mistake.find, mistake.replace)
        return text

    def mistaken(self, *mistakes):
        """Return the function with these mistakes; None if one does not apply."""
        if len(mistakes) == 1 and not mistakes[0].find:
            return getattr(self.checks, f"mistake_{mistakes[0].name.replace('-', '_')}", None)
        text = self.edited(*mistakes)
        return text and source.compiled(self.module, text, self.name)

    def arguments(self, case):
        """Make the arguments of the call that `case` stands for."""
        sizes = {key: value for key, value in case.items() if key != "seed"}
        return tuple(self.checks.arguments(np.random.default_rng(case["seed"]), **sizes))

    def properties(self):
        """Return the `property_…` functions, which hold for every right answer, in their order."""
        return [f for name, f in vars(self.checks).items() if name.startswith("property_")]


def load_file(path, name):
    """Import the Python file at `path` as the module `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load(folder=LESSONS):
    """Read `folder`/exercises.toml, check it, and return {id: Exercise}."""
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
    exercises: dict[str, Exercise] = {}
    for entry in entries:
        where = f"exercise {entry.get('id', '?')}"
        mistakes = [_filled(Mistake, m, where) for m in entry.pop("mistake", ())]
        entry |= {"folder": Path(folder) / "exercises", "mistakes": mistakes}
        e = _filled(Exercise, entry, where)
        require(e.kind in KINDS, f"{where}: kind must be one of {KINDS}")
        require(e.difficulty in (1, 2, 3), f"{where}: difficulty must be 1, 2 or 3")
        require(len(e.hints) == 3, f"{where}: give three hints, from gentle to plain")
        require(e.id not in exercises, f"{path}: {e.id} stands there twice")
        for need in e.needs:  # so there is no circle, and the order can be followed
            require(need in exercises, f"{path}: {e.id} needs {need}: put that above it")
        exercises[e.id] = e
    return exercises


def _filled(kind, values, where):
    """Make a dataclass of the keys that an entry has."""
    names = {field.name for field in fields(kind)}
    require(set(values) <= names, f"{where}: unknown keys {sorted(set(values) - names)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{where}: {str(error).rpartition('__init__() ')[2]}") from error
