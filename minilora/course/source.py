"""Stubs, solutions and planted mistakes, all made from the reference's own source.

A stub keeps a function's decorators, signature, comments and docstring, line for line; its body
becomes one `raise`. What the body uses of its module is imported from there.
"""

import ast
import importlib
import inspect
import linecache
import symtable
from pathlib import Path
from typing import NamedTuple

from ..config import require


class Text(NamedTuple):
    """The source of a module, and its name; None for a file that nobody can import from."""

    name: str | None
    source: str

    @classmethod
    def of_module(cls, name):
        return cls(name, inspect.getsource(importlib.import_module(name)))

    @classmethod
    def of_file(cls, path):
        return cls(None, Path(path).read_text(encoding="utf-8"))

    def definition(self, name):
        """The syntax tree of the function `name` of this module."""
        for node in ast.parse(self.source).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node
        require(False, f"{self.name or 'the file'} has no function {name}")

    def lines(self, first, last):
        return "\n".join(self.source.splitlines()[first - 1 : last])

    def function(self, name):
        """Its source, decorators included."""
        node = self.definition(name)
        return self.lines(start(node), node.end_lineno)

    def stub(self, name, message):
        """Its decorators, signature and docstring, and a body that raises `message`."""
        node = self.definition(name)
        first = node.body[0]
        has_docstring = ast.get_docstring(node) is not None
        last = first.end_lineno if has_docstring else first.lineno - 1
        return f'{self.lines(start(node), last)}\n    raise NotImplementedError("{message}")'

    def imports(self, names):
        """The import lines that the functions `names` need when they stand in another file."""
        used = {n for name in names for n in global_names(self.function(name))} - set(names)
        plain: list[str] = []
        own: dict[str, list[str]] = {}
        for node in ast.parse(self.source).body:
            for alias in getattr(node, "names", ()):
                bound = alias.asname or alias.name
                if bound not in used:
                    continue
                used.discard(bound)
                if isinstance(node, ast.Import):
                    plain.append(ast.unparse(ast.Import([alias])))
                else:
                    own.setdefault(self._absolute(node), []).append(ast.unparse(alias))
        if self.name:
            defined = used & set(vars(importlib.import_module(self.name)))
            own.setdefault(self.name, []).extend(defined)
        lines = [f"from {m} import {', '.join(sorted(n))}" for m, n in sorted(own.items()) if n]
        groups = [[x for x in plain + lines if ("minilora" in x) == ours] for ours in (False, True)]
        return "\n\n".join("\n".join(group) for group in groups if group)

    def _absolute(self, node):
        package = (self.name or "").split(".")[: -node.level] if node.level else []
        return ".".join([*package, node.module] if node.module else package)


def start(node):
    """The first line of a function, its decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def global_names(text):
    """Names that the code `text` uses and does not itself bind, except at its top level."""

    def walk(table):
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child)

    return set(walk(symtable.symtable(text, "source", "exec")))


def functions(module, names):
    """The source of these functions of a module, one after the other."""
    text = Text.of_module(module)
    return "\n\n\n".join(text.function(name) for name in names)


def compiled(module, text, name):
    """The function `name` that `text` defines, in a copy of the module's namespace."""
    namespace = dict(vars(importlib.import_module(module)))
    file = f"<{module}: {name}, edited {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # for tracebacks
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]


HEADER = '''"""{id}: {what}

Lesson {lesson}, difficulty {difficulty} of 3, about {minutes} minutes, {points:g} points.
    check    minilora learn check {id}
    hint     minilora learn hint {id}
    debug    run this file; a breakpoint in your function stops in the check's calls
"""
'''

FOOTER = """
if __name__ == "__main__":  # the check, in this process and without a time limit
    from minilora.course import debug

    debug(__file__)
"""


def file_text(exercise, solved=False):
    """The student's file: the stub, or the solution."""
    text, names = exercise.sought
    what = f"`{exercise.name}` of {exercise.module}, to be written here."
    if exercise.kind == "test":
        what = f"a test of `{exercise.name}` of {exercise.module}, to be written here."
    message = "{}: {} is still to be written"
    parts = [
        text.function(name) if solved else text.stub(name, message.format(exercise.id, name))
        for name in names
    ]
    header = HEADER.format(what=what, **{k: getattr(exercise, k) for k in PRINTED})
    return "\n\n\n".join([header + "\n" + text.imports(names), *parts, FOOTER.lstrip("\n")])


PRINTED = ("id", "lesson", "difficulty", "minutes", "points")
