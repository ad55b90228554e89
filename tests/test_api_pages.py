"""The API reference names all that is public, and the examples in docstrings are right.

That every public name has a docstring, and its form, are ruff's rules D (pyproject.toml).
"""

import doctest
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from test_architecture import FILES

import minilora

ROOT = Path(__file__).parents[1]
PAGES = "".join(path.read_text("utf-8") for path in ROOT.glob("lessons/api/*.md"))


def test_every_public_name_and_module_is_on_a_page():
    for name in minilora.__all__:
        value = getattr(minilora, name)
        if not isinstance(value, ModuleType | dict | str):
            assert f":: minilora.{name}\n" in PAGES, name
    for module, path in FILES.items():
        hidden = module.split(".")[0] in ("cli", "course", "lessons")
        if not (hidden or path.name.startswith("__")):
            assert f"automodule:: minilora.{module}\n" in PAGES, module


@pytest.mark.parametrize("module", [m for m, path in FILES.items() if ">>>" in path.read_text()])
def test_examples_in_docstrings(module):
    result = doctest.testmod(import_module(f"minilora.{module}"))
    assert result.attempted and not result.failed
