"""Make stubs, solutions and planted mistakes from the reference's own source.

A stub keeps a function's decorators, signature, comments and docstring, line for line; its body
becomes one `raise`. What the body uses of its module is imported from there.
"""

import ast
import importlib
import inspect
import linecache
import symtable
from importlib.util import resolve_name
from typing import NamedTuple

from ..config import InputError

HEADER = '''"""{e.id}: {what}`{e.name}` of {e.module}, to be written here.

Lesson {e.lesson}, difficulty {e.difficulty} of 3, about {e.minutes} minutes, {e.points:g} points.
    check    minilora learn check {e.id}
    hint     minilora learn hint {e.id}
    debug    run this file; a breakpoint in your function stops in the check's calls
"""

'''

FOOTER = """if __name__ == "__main__":  # the check, in this process and without a time limit
    from minilora.course import debug

    debug(__file__)
"""


class Text(NamedTuple):
    """The source of a module, and its name; None for a file that nobody can import from."""

    name: str | None
    source: str

    @classmethod
    def of_module(cls, name):
        return cls(name, inspect.getsource(importlib.import_module(name)))

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
        used = global_names(self.function(*names)) - set(names)
        lines = []
        own: dict[str, list[str]] = {}
        for node in ast.parse(self.source).body:
            for alias in getattr(node, "names", ()):
                bound = alias.asname or alias.name
                if bound not in used:
                    continue
                used.discard(bound)
                if isinstance(node, ast.Import):
                    lines.append(ast.unparse(ast.Import([alias])))
                else:
                    relative = "." * node.level + (node.module or "")
                    module = resolve_name(relative, (self.name or "").rpartition(".")[0])
                    own.setdefault(module, []).append(ast.unparse(alias))
        if self.name:
            defined = used & set(vars(importlib.import_module(self.name)))
            own.setdefault(self.name, []).extend(defined)
        lines += [f"from {m} import {', '.join(sorted(n))}" for m, n in sorted(own.items()) if n]
        groups = [[x for x in lines if ("minilora" in x) == ours] for ours in (False, True)]
        return "\n\n".join("\n".join(group) for group in groups if group)


def start(node):
    """Return the number of a function's first line, its decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def global_names(text):
    """Return the names that the code `text` uses and binds nowhere but at its top level."""
    names = set()
    tables = [symtable.symtable(text, "source", "exec")]
    for table in tables:  # the list grows by the tables of inner functions
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                names.add(symbol.get_name())
    return names


def compiled(module, text, name):
    """Return the function `name` that `text` defines, in a copy of the module's namespace."""
    namespace = dict(vars(importlib.import_module(module)))
    file = f"<{module}: {name}, edited {hash(text)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)  # for tracebacks
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]


def file_text(exercise, solved=False):
    """Return the text of a student's file: the stub, or the solution."""
    text, names = exercise.sought
    parts = [
        text.function(name)
        if solved
        else text.stub(name, f"{exercise.id}: {name} is still to be written")
        for name in names
    ]
    header = HEADER.format(e=exercise, what="a test of " if exercise.kind == "test" else "")
    return "\n\n\n".join([header + text.imports(names), *parts, FOOTER])
