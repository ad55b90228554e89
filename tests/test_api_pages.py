"""The API reference (lessons/api) has every public name and every module of the package."""

from pathlib import Path
from types import ModuleType

import minilora

ROOT = Path(__file__).parents[1]
PAGES = "".join(path.read_text("utf-8") for path in ROOT.glob("lessons/api/*.md"))


def test_every_public_name_is_on_a_page():
    for name in minilora.__all__:
        value = getattr(minilora, name)
        if not isinstance(value, ModuleType | dict | str):
            assert f":: minilora.{name}\n" in PAGES, name


def test_every_module_is_on_a_page():
    for path in (ROOT / "minilora").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not path.name.startswith("__") and parts[1] not in ("cli", "course"):
            assert f"automodule:: {'.'.join(parts)}\n" in PAGES, path
