"""Read the exercises, and make stubs, solutions and planted mistakes from the reference's source.

An exercise is an entry of `exercises.toml` and a Python file with cases and properties. A stub
keeps a function's decorators, signature, comments and docstring; its body becomes one `raise`.
"""

import ast
import importlib
import inspect
import runpy
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..config import InputError, require
from .calls import stored

PACKAGE = Path(__file__).parents[1]  # installed, it contains lessons/; in a clone, it is next to it
LESSONS = PACKAGE / "lessons" if (PACKAGE / "lessons").is_dir() else PACKAGE.parent / "lessons"
TEMPLATES = Path(__file__).parent / "templates"


def definition(source, name):
    """Return (first line, with decorators; syntax tree) of the function `name`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node
    raise InputError(f"there is no function {name}")


def functions(source, names):
    """Return the source of these functions with their decorators, one after the other."""
    found, lines = [definition(source, name) for name in names], source.splitlines()
    return "\n\n\n".join("\n".join(lines[first - 1 : node.end_lineno]) for first, node in found)


def stub(source, name, message):
    """Return a function's decorators, signature and docstring; its body raises `message`."""
    first, node = definition(source, name)
    body = node.body[0]
    last = body.lineno - 1 if ast.get_docstring(node) is None else body.end_lineno
    lines = source.splitlines()[first - 1 : last]
    return "\n".join([*lines, f'    raise NotImplementedError("{message}")'])


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: an edit of the reference's source, or `mistake_NAME` of the Python file."""

    name: str
    says: str  # the diagnosis, one sentence
    find: str = ""
    replace: str = ""
    hidden: bool = False  # in a `test` exercise: counted but never named


@dataclass(eq=False)
class Exercise:
    """A function of the reference that a student writes, or (kind `test`) a test of it."""

    id: str
    function: str  # "minilora.nf4:nearest"
    lesson: int
    difficulty: int  # 1 to 3
    minutes: int
    points: float
    hints: Sequence[str]
    folder: Path  # the folder of the Python file
    imports: Sequence[str] = ()  # lines of the student's file
    helpers: Sequence[str] = ()  # functions of the same module that the student also writes
    needs: Sequence[str] = ()
    kind: str = "function"
    seconds: float = 9  # the time limit of a file
    mistakes: Sequence[Mistake] = ()

    def __post_init__(self):
        self.module, _, self.name = self.function.partition(":")
        self.file = f"{self.id.replace('-', '_')}.py"  # name of the student's and the Python file
        self.is_test = self.kind == "test"
        self.sought = ["check"] if self.is_test else [*self.helpers, self.name]  # to write
        self.lesson_file = next(iter(sorted(LESSONS.glob(f"{self.lesson:02d}_*.py"))), "")
        # a test runs twice on the reference (counting calls must not help), then on each mistake
        self.jobs = [(), (), *((mistake,) for mistake in self.mistakes)]

    @cached_property
    def source(self):
        """The text of the Python file."""
        path = self.folder / self.file
        require(path.exists(), f"{self.id}: there is no {path}")
        return path.read_text(encoding="utf-8")

    @cached_property
    def checks(self):
        """The cases and properties that the Python file defines."""
        return SimpleNamespace(**runpy.run_path(str(self.folder / self.file), run_name=self.id))

    @property
    def rules(self):
        """The names of the properties."""
        return [name for name in vars(self.checks) if name.startswith("property_")]

    @property
    def task(self):
        """The task: the docstring of the Python file without its first line."""
        return (ast.get_docstring(ast.parse(self.source)) or "").partition("\n\n")[2]

    @cached_property
    def text(self):
        """The source of the reference's module."""
        return inspect.getsource(importlib.import_module(self.module))

    @cached_property
    def reference(self):
        """The source of the reference, which a mistake edits."""
        return functions(self.text, [*self.helpers, self.name])

    def student_file(self, solved=False):
        """Return the text of a student's file: the stub, or the solution."""
        text, imports = self.text, self.imports
        if self.is_test:
            text, nodes = self.source, ast.parse(self.source).body
            imports = [ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        stubs = [stub(text, n, f"{self.id}: {n} is not written yet") for n in self.sought]
        written = functions(text, self.sought) if solved else "\n\n\n".join(stubs)
        template = (TEMPLATES / "exercise.txt").read_text(encoding="utf-8")
        parts = {"what": "a test of " * self.is_test, "imports": "\n".join(imports)}
        return template.format(e=self, functions=written, **parts)

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
        return text and compiled(self.module, text, self.name)

    def arguments(self, case):
        """Make the arguments of the call that `case` describes."""
        sizes = {key: value for key, value in case.items() if key not in ("seed", "stored")}
        drawn = tuple(self.checks.arguments(np.random.default_rng(case["seed"]), **sizes))
        return stored(drawn, case.get("stored"))


@lru_cache(1024)
def compiled(module, text, name):
    """Return the function `name` that `text` defines, in a copy of the module's namespace."""
    namespace = dict(vars(importlib.import_module(module)))
    exec(compile(text, f"<{module}: {name}>", "exec"), namespace)
    return namespace[name]


@lru_cache
def load(folder=LESSONS):
    """Read `folder`/exercises.toml, check it, and return {id: Exercise}."""
    path, where = Path(folder) / "exercises.toml", "the file"
    exercises: dict[str, Exercise] = {}
    try:
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["exercise"]:
            where = entry.get("id", "an exercise without id")
            mistakes = [Mistake(**mistake) for mistake in entry.pop("mistake", ())]
            e = Exercise(**entry, folder=path.parent / "exercises", mistakes=mistakes)
            require(e.kind in ("function", "test"), "kind must be function or test")
            require(e.difficulty in (1, 2, 3), "difficulty must be 1, 2 or 3")
            require(len(e.hints) == 3, "give three hints, from gentle to plain")
            require(e.id not in exercises, "the id occurs twice")
            require(set(e.needs) <= set(exercises), f"it needs {e.needs}: move that above it")
            exercises[e.id] = e
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a list of exercises: {where}: {error}") from error
    return exercises
