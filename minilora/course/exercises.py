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
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from ..config import InputError, require
from . import calls

KINDS = ("function", "test")
HERE = Path(__file__).parents[1]  # an installed package has the lessons in it, a clone beside it
LESSONS = next((p for p in (HERE / "lessons", HERE.parent / "lessons") if p.is_dir()), HERE)
HEADER = '''"""{e.id}: {what}`{e.name}` of {e.module}, to be written here.

{e.task}

Lesson {e.lesson}, difficulty {e.difficulty} of 3, about {e.minutes} minutes, {e.points:g} points.
    check    minilora learn check {e.id}
    hint     minilora learn hint {e.id}
    debug    run this file; a breakpoint in your function stops in the check's calls
"""

'''
FOOTER = """if __name__ == "__main__":  # the check, in this process and without a time limit
    from minilora.course.learn import debug

    debug(__file__)
"""


class Text(NamedTuple):
    """The source of a module, and its name; None for a file that nobody can import from."""

    name: str | None
    source: str

    def definition(self, name):
        """Return the syntax tree of the function `name`."""
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        raise InputError(f"{self.name or 'the file'} has no function {name}")

    def function(self, *names):
        """Return the source of these functions, decorators included, one after the other."""
        nodes = [self.definition(name) for name in names]
        return "\n\n\n".join(self._lines(start(node), node.end_lineno) for node in nodes)

    def stub(self, name, message):
        """Return its decorators, signature and docstring, and a body that raises `message`."""
        node = self.definition(name)
        first = node.body[0]
        last = first.lineno - 1 if ast.get_docstring(node) is None else first.end_lineno
        return f'{self._lines(start(node), last)}\n    raise NotImplementedError("{message}")'

    def _lines(self, first, last):
        return "\n".join(self.source.splitlines()[first - 1 : last])

    def imports(self, names):
        """Return the import lines that these functions need when they stand in another file."""
        tree = ast.parse(self.source)
        found = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        if self.name is None:
            return "\n".join(map(ast.unparse, found))
        used = set().union(*(free_names(self.definition(name)) for name in names)) - set(names)
        package, lines = self.name.rpartition(".")[0], []
        for node in found:
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in used]
            node.names.sort(key=ast.unparse)
            used -= {alias.asname or alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                relative = "." * node.level + (node.module or "")
                node.module, node.level = importlib.util.resolve_name(relative, package), 0
            if node.names:
                lines.append(ast.unparse(node))
        if own := used & set(vars(importlib.import_module(self.name))):
            lines.append(f"from {self.name} import {', '.join(sorted(own))}")
        lines.sort(key=lambda line: (line.startswith("from"), line))
        groups = [[x for x in lines if ("minilora" in x) == ours] for ours in (False, True)]
        return "\n\n".join("\n".join(group) for group in groups if group)


def start(node):
    """Return the number of a function's first line, its decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def free_names(function):
    """Return the names that a function's syntax tree uses and does not bind."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    bound = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - bound


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

    @cached_property
    def checks(self):
        """What the Python file defines: cases and properties."""
        path = self.folder / self.file
        require(path.exists(), f"{self.id}: there is no {path}")
        return SimpleNamespace(**runpy.run_path(str(path), run_name=path.stem))

    @property
    def task(self):
        """What is to be written: the docstring of the Python file without its first line."""
        path = self.folder / self.file
        require(path.exists(), f"{self.id}: there is no {path}")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        return text.partition("\n\n")[2]

    @property
    def lesson_file(self):
        return next(iter(sorted(LESSONS.glob(f"{self.lesson:02d}_*.py"))), f"lesson {self.lesson}")

    @property
    def jobs(self):
        """The planted mistakes, one at a time, that a test is tried on, and twice none."""
        return [(), (), *((mistake,) for mistake in self.mistakes)]

    @cached_property
    def sought(self):
        """(text, names) of the functions that the student writes."""
        if self.kind == "test":
            return Text(None, (self.folder / self.file).read_text(encoding="utf-8")), ["check"]
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

    def student_file(self, solved=False, header=HEADER):
        """Return the text of a student's file: the stub, or the solution."""
        text, names = self.sought
        parts = [header.format(e=self, what="a test of " if self.kind == "test" else "")]
        parts[0] += text.imports(names)
        for name in names:
            stub = text.stub(name, f"{self.id}: {name} is still to be written")
            parts.append(text.function(name) if solved else stub)
        return "\n\n\n".join([*parts, FOOTER])

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
        return calls.stored(drawn, case.get("stored"))


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
    path = Path(folder) / "exercises.toml"
    require(
        path.exists(),
        f"there are no exercises in {folder}: they come with a clone of the repository, or with "
        "the folder that `minilora teach build` makes",
    )
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["exercise"]
    except (ValueError, KeyError) as error:
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
