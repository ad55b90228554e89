"""Docstrings of the package: every public name has one, and the examples in them are right."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import minilora

PACKAGE = Path(minilora.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
WITH_EXAMPLES = [path for path in FILES if ">>>" in path.read_text(encoding="utf-8")]


def name_of(path):
    """Return the dotted name of a module's file."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def public(node, name):
    """Yield (name, node) of a module, its public classes and functions, and their public methods.

    Functions inside functions are left out; definitions under `if` and `try` are not.
    """
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
        yield name, node
    if not isinstance(node, ast.FunctionDef):
        for child in ast.iter_child_nodes(node):
            inner = getattr(child, "name", None) if not isinstance(child, ast.alias) else None
            if not (inner or "").startswith("_"):
                yield from public(child, f"{name}.{inner}" if inner else name)


def complaint(node):
    """Return what is wrong with the docstring of a node, or None."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        return "has no docstring"
    first = docstring.splitlines()[0]
    if not first.endswith("."):
        return f"the first line does not end with a period: {first}"
    if not first[0].isupper():
        return f"the first line does not begin with a capital letter: {first}"
    if len(first) > 100:
        return f"the first line has {len(first)} characters: {first}"
    decorators = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", ())]
    is_property = "property" in decorators or "cached_property" in decorators
    noun = first.startswith(("The ", "A ", "An "))
    if isinstance(node, ast.FunctionDef) and noun and not is_property:
        return f"the first line does not begin with a verb: {first}"
    return None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {name: complaint(node) for name, node in public(tree, name_of(path))}
    assert {name: text for name, text in found.items() if text} == {}


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_examples_in_docstrings(path):
    result = doctest.testmod(import_module(name_of(path)))
    assert result.attempted and not result.failed


def test_the_rules_are_checked():
    """The checks above find a missing docstring and each kind of bad first line."""
    source = 'def f():\n    """{}"""\n'
    for first in ("The sum.", "Return the sum", "return the sum.", "Return " + 100 * "x" + "."):
        assert complaint(ast.parse(source.format(first)).body[0]), first
    assert complaint(ast.parse(source.format("Return the sum.")).body[0]) is None
    tree = ast.parse(
        "try:\n    class C:\n        def f(self): ...\n        def _g(self): ...\nfinally: ..."
    )
    assert [name for name, _ in public(tree, "m")] == ["m", "m.C", "m.C.f"]
    assert len(WITH_EXAMPLES) >= 5
