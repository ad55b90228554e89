"""Read the exercises, and make stubs, solutions, mistakes and calls of them.

An exercise is an entry of `exercises.toml` and a Python file with cases and properties. A stub
keeps a function's decorators, signature, comments and docstring; its body becomes one `raise`.
"""

import ast
import importlib
import inspect
import os
import random
import re
import runpy
import shlex
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ... import lessons
from ...config import InputError

LESSONS = Path(lessons.__path__[0])
ONE_FILE = "minilora.course.one_file"  # the module of lesson 0
FOLDER: str | None = None  # of --exercises: exercises.toml and the Python files
DEFAULTS = {
    "CASES": {},
    "HIDDEN": {},
    "arguments": lambda _: (),
    "observe": lambda value, *_: value,
    "tolerance": lambda *_: 0.0,
}
TODO = "Write your reasons here."
REASON = f'REASON = """{TODO}"""\n\n\n'
TEMPLATE = Path(__file__).with_name("exercise.txt").read_text("utf-8")  # of a student's file


def functions(source, names, message=None):
    """Return the source of functions with their decorators; with a message, as stubs."""
    found = []
    lines = source.splitlines()
    nodes = functions_of(source)
    for name in names:
        node = nodes[name]
        begin = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
        end = node.end_lineno
        body = []
        if message:
            first = node.body[0]
            end = first.end_lineno if ast.get_docstring(node) else first.lineno - 1
            body = [f'    raise NotImplementedError("{message}: {name} is not written yet")']
        found.append("\n".join(lines[begin:end] + body))
    return "\n\n\n".join(found)


@lru_cache  # lesson 0 has the functions of 13 exercises
def functions_of(source):
    """Return {name: its parsed definition} of the functions of a module."""
    return {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}


def stubs(chosen):
    """Return the text of a module without the bodies of the functions of its exercises."""
    text = chosen[0].text
    for e in chosen:
        text = text.replace(functions(text, [e.name]), functions(text, [e.name], e.id))
    return f"# Read this file. Write its functions in the files of the exercises.\n\n{text}"


def written_reasons(source):
    """Return the text that a student's file assigns to REASON last, without running the file.

    It has what `+=` adds, and is empty if the file has none, or still that of the stub.
    """
    text = ""
    # the parser's limits: RecursionError and MemoryError
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if "REASON" in map(ast.unparse, targets):
                    is_text = isinstance(node.value, ast.Constant)
                    new = str(ast.literal_eval(node.value) if is_text else ast.unparse(node.value))
                    text = text + new if isinstance(node, ast.AugAssign) else new
    text = text.strip()
    return "" if text == TODO else text


@dataclass
class Mistake:
    """A usual mistake: an edit of the reference's source, or `mistake_NAME` of the Python file."""

    name: str
    says: str  # the diagnosis, one sentence
    find: str = ""
    replace: str = ""
    hidden: bool = False  # in an exercise that is a test: counted but never named


@dataclass(eq=False)
class Exercise:
    """A function of the reference that a student writes, repairs or tests."""

    folder: Path  # of the Python file
    id: str
    function: str  # "minilora.nf4:nearest", or the name of a function of the Python file
    lesson: str  # the start of the name of its file: "06", "studies/bits/outliers_and_int8"
    difficulty: int  # 1 to 3
    minutes: int
    points: float
    hints: Sequence
    imports: Sequence = ()  # lines of the student's file
    helpers: Sequence = ()  # functions of the same module that the student also writes
    kind: str = "write"  # what the student does: write, test, debug, predict, measure or design
    dtypes: bool = False  # float32 and float64 results differ
    differentiable: Sequence = ()  # arguments by which autograd must differentiate the function
    written_points: float = 0  # of the reasons that the student writes; marked by hand
    mistakes: Sequence = ()

    def __post_init__(self):
        self.module, _, self.name = self.function.rpartition(":")
        self.file = f"{self.id.replace('-', '_')}.py"  # name of the student's and the Python file
        self.about = f"{self.kind} `{self.name}`" + (f" of {self.module}" if self.module else "")
        self.is_test = self.kind == "test"
        # the functions to write; the last one is checked
        self.sought = ["check"] if self.is_test else [*self.helpers, self.name]
        self.answer = self.sought[-1]
        self.rubric = self.file.replace(".py", "_rubric.md")
        self.path = self.folder / self.file
        self.source = self.path.read_text("utf-8")
        # the docstring of the Python file: a line about the exercise, and the task
        self.task = (ast.get_docstring(ast.parse(self.source)) or "").partition("\n\n")[2]
        self.lesson_file = next(LESSONS.glob(f"{self.lesson}*.py"), None)

    @cached_property
    def checks(self):
        """The cases and properties that the Python file defines."""
        names = runpy.run_path(str(self.path), run_name=self.id)
        return SimpleNamespace(**DEFAULTS | names)

    @property
    def rules(self):
        """The names of the properties."""
        return [name for name in vars(self.checks) if name.startswith("property_")]

    @cached_property
    def text(self):
        """The source of the reference's module, or else of the Python file."""
        if not self.module:
            return self.source
        return inspect.getsource(importlib.import_module(self.module))

    @cached_property
    def reference(self):
        """The source of the reference, which a mistake edits."""
        return "\n".join([*self.imports, functions(self.text, [*self.helpers, self.name])])

    @cached_property
    def parameters(self):
        """The names of the reference's parameters, also if a decorator hides them."""
        return [a.arg for a in ast.parse(functions(self.text, [self.name])).body[0].args.args]

    def student_file(self, solved=False):
        """Return the text of a student's file: the stub, or the solution."""
        text = self.source if self.is_test else self.text
        is_complete = solved or self.kind == "debug"
        written = functions(text, self.sought, None if is_complete else self.id)
        if self.kind == "debug" and not solved:
            written = written.replace(self.mistakes[0].find, self.mistakes[0].replace)
        reason = REASON if self.written_points else ""
        imports = "\n".join([*self.imports, "\n\n"]) if self.imports else ""
        return TEMPLATE.format(e=self, imports=imports, functions=reason + written)

    def is_unchanged(self, source):
        """Tell whether a student's file, bytes, is the one that was handed out."""
        return source.split() == self.student_file().encode().split()

    def copy(self, mistake=None):
        """Return a copy of the reference, or the function with a mistake.

        A copy is compiled where it is called, so that it can be sent to a process.
        """
        source = self.reference
        if mistake:
            if not mistake.find:
                return getattr(self.checks, f"mistake_{mistake.name.replace('-', '_')}")
            source = source.replace(mistake.find, mistake.replace)
        return partial(call_copy, self.module, source, self.name)

    def draw(self, rule, count, seed=None):
        """Draw `count` calls to check a rule: for each, pairs of the names of CASES and values.

        For a hidden check, which has a seed, choices from HIDDEN replace those of CASES.
        """
        choices = {"seed": range(2**32), **self.checks.CASES}
        if seed is not None:
            choices |= self.checks.HIDDEN
        count = count if self.checks.CASES else 1
        rng = random.Random(f"{seed} {self.id} {rule}")
        return [tuple((key, rng.choice(c)) for key, c in choices.items()) for _ in range(count)]

    def arguments(self, case):
        """Make the arguments of the call that `case` describes."""
        sizes = dict(case)
        rng = np.random.default_rng(sizes.pop("seed"))
        return self.checks.arguments(rng, **sizes)


def call_copy(module, source, name, *arguments, **options):
    """Compile a function, if it is not yet, and call it."""
    return compiled(module, source, name)(*arguments, **options)


@lru_cache(1024)
def compiled(module, source, name):
    """Return the function `name` of the source, in a copy of the module's namespace."""
    namespace = dict(vars(importlib.import_module(module))) if module else {}
    exec(compile(source, f"<{module}: {name}>", "exec"), namespace)
    return namespace[name]


def select(names):
    """Return the exercises with these ids or file names, in the order of the course; or all."""
    known = load()
    ids = [Path(name).stem.replace("_", "-") for name in names or known]
    for name in ids:
        if name not in known:
            raise InputError(f"there is no exercise {name!r}: choose from {', '.join(known)}")
    return [e for e in known.values() if e.id in ids]


def option(start="."):
    """Return the option that names FOLDER in the folder `start`, after a space; "" without one."""
    if not FOLDER:
        return ""
    path = FOLDER if os.path.isabs(FOLDER) else os.path.relpath(FOLDER, start)
    return f" --exercises {shlex.quote(path)}"


def load():
    """Read exercises.toml of FOLDER, or else of the lessons; return {id: Exercise}."""
    return load_file(Path(FOLDER or LESSONS, "exercises.toml"))


@lru_cache
def load_file(path):
    """Read a list of exercises; return {id: Exercise}."""
    where = "the file"
    folder = path.with_suffix("")
    if not folder.is_dir():
        folder = path.parent
    exercises: dict = {}
    try:
        for entry in tomllib.loads(path.read_text("utf-8"))["exercise"]:
            where = entry["id"]
            if where in exercises:
                raise InputError("the id occurs twice")
            if not re.fullmatch("[a-z0-9-]+", where):  # `select` also takes the name of its file
                raise InputError("an id has lower-case letters, digits and hyphens only")
            mistakes = [Mistake(**mistake) for mistake in entry.pop("mistake", ())]
            exercises[where] = Exercise(folder, **entry, mistakes=mistakes)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a list of exercises: {where}: {error}") from error
    return exercises
