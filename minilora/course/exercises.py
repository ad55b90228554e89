"""Read the exercises, and make stubs, solutions and planted mistakes from the reference's source.

An exercise is an entry of `exercises.toml` with a Python file of cases and properties. A stub keeps
a function's decorators, signature, comments and docstring; its body becomes one `raise`.
"""

import ast
import importlib.util
import inspect
import linecache
import runpy
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from ..config import InputError, require
from .calls import stored

PACKAGE = Path(__file__).parents[1]  # an installed one contains the lessons, a clone has them next
LESSONS = PACKAGE / "lessons" if (PACKAGE / "lessons").is_dir() else PACKAGE.parent / "lessons"
TEMPLATES = Path(__file__).parent / "templates"


class Text(NamedTuple):
    """The source of a module, and its name; None for a file that nobody can import from."""

    name: str | None
    source: str

    def definition(self, name):
        """Return (first line, decorators included, and syntax tree) of the function `name`."""
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return min([node.lineno, *(d.lineno for d in node.decorator_list)]), node
        raise InputError(f"{self.name or 'the file'} has no function {name}")

    def lines(self, first, last):
        return "\n".join(self.source.splitlines()[first - 1 : last])

    def function(self, *names):
        """Return the source of these functions, decorators included, one after the other."""
        found = [self.definition(name) for name in names]
        return "\n\n\n".join(self.lines(first, node.end_lineno) for first, node in found)

    def stub(self, name, message):
        """Return its decorators, signature and docstring, and a body that raises `message`."""
        first, node = self.definition(name)
        body = node.body[0]
        last = body.lineno - 1 if ast.get_docstring(node) is None else body.end_lineno
        return f'{self.lines(first, last)}\n    raise NotImplementedError("{message}")'

    def imports(self, names):
        """Return the import lines that these functions need when they stand in another file."""
        nodes = [
            n for n in ast.parse(self.source).body if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        if self.name is None:
            return "\n".join(map(ast.unparse, nodes))
        used = set().union(*(free_names(self.definition(name)[1]) for name in names)) - set(names)
        package, needed = self.name.rpartition(".")[0], {}  # {start of a line: what is imported}
        for node in nodes:
            start = "import"
            if isinstance(node, ast.ImportFrom):
                relative = "." * node.level + (node.module or "")
                start = f"from {importlib.util.resolve_name(relative, package)} import"
            for alias in node.names:
                if (bound := alias.asname or alias.name) in used:
                    used.remove(bound)
                    needed.setdefault(start, []).append(ast.unparse(alias))
        if own := used & set(vars(importlib.import_module(self.name))):
            needed[f"from {self.name} import"] = own
        lines = [f"{start} {', '.join(sorted(some))}" for start, some in needed.items()]
        return "\n".join(sorted(lines, key=lambda line: ("minilora" in line, line[0] == "f", line)))


def free_names(function):
    """Return the names that a function's syntax tree uses and does not bind."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    bound = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    return {n.id for n in names} - bound - {n.id for n in names if isinstance(n.ctx, ast.Store)}


@dataclass(frozen=True)
class Mistake:
    """A usual mistake: an edit of the reference's source, or `mistake_NAME` of the Python file."""

    name: str
    says: str  # the diagnosis, one sentence
    find: str = ""
    replace: str = ""
    hidden: bool = False  # of a `test` exercise: counted, never named


@dataclass(eq=False)
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
    seconds: float = 7  # the time limit of a file
    mistakes: Sequence[Mistake] = ()

    def __post_init__(self):
        self.module, _, self.name = self.function.partition(":")
        self.file = f"{self.id.replace('-', '_')}.py"  # the student's, and the Python file
        self.is_test = self.kind == "test"
        # a test is tried on the reference twice (counting calls is no test), and on each mistake
        self.jobs = [(), (), *((mistake,) for mistake in self.mistakes)]

    @cached_property
    def source(self):
        path = self.folder / self.file
        require(path.exists(), f"{self.id}: there is no {path}")
        return path.read_text(encoding="utf-8")

    @cached_property
    def checks(self):
        """What the Python file defines: cases and properties."""
        return SimpleNamespace(**runpy.run_path(str(self.folder / self.file), run_name=self.id))

    @property
    def task(self):
        """What is to be written: the docstring of the Python file without its first line."""
        return (ast.get_docstring(ast.parse(self.source)) or "").partition("\n\n")[2]

    @property
    def lesson_file(self):
        return next(iter(sorted(LESSONS.glob(f"{self.lesson:02d}_*.py"))), f"lesson {self.lesson}")

    @cached_property
    def sought(self):
        """(text, names) of the functions that the student writes."""
        if self.is_test:
            return Text(None, self.source), ["check"]
        return self.text, [*self.helpers, self.name]

    @cached_property
    def text(self):
        return Text(self.module, inspect.getsource(importlib.import_module(self.module)))

    @cached_property
    def reference(self):
        """The source of the reference: what a mistake edits."""
        return self.text.function(*self.helpers, self.name)

    @cached_property
    def right(self):
        return self.mistaken()

    def student_file(self, solved=False):
        """Return the text of a student's file: the stub, or the solution."""
        text, names = self.sought
        stubs = [text.stub(name, f"{self.id}: {name} is still to be written") for name in names]
        functions = text.function(*names) if solved else "\n\n\n".join(stubs)
        template = (TEMPLATES / "exercise.txt").read_text(encoding="utf-8")
        return template.format(
            e=self,
            what="a test of " * self.is_test,
            imports=text.imports(names),
            functions=functions,
        )

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
        """Make the arguments of the call that `case` stands for."""
        sizes = {key: value for key, value in case.items() if key not in ("seed", "stored")}
        drawn = tuple(self.checks.arguments(np.random.default_rng(case["seed"]), **sizes))
        return stored(drawn, case.get("stored"))


@lru_cache(1024)
def compiled(module, text, name):
    """Return the function `name` that `text` defines, in a copy of the module's namespace."""
    namespace = dict(vars(importlib.import_module(module)))
    file = f"<{module}: {name}, edited {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # for tracebacks
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]


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
            require(e.id not in exercises, "the id stands there twice")
            require(set(e.needs) <= set(exercises), f"it needs {e.needs}: put that above it")
            exercises[e.id] = e
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no list of exercises: {where}: {error}") from error
    return exercises
