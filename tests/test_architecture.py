"""The order of the subpackages: each imports only those before it, and no imports form a cycle."""

import ast
import subprocess
import sys
from pathlib import Path

import minilora

PACKAGE = Path(minilora.__file__).parent
ORDER = ("core", "quant", "kernels", "methods", "data", "formats", "evaluation", "course", "cli")
# What the core still imports of the others. The list may only get shorter.
OPEN = {
    ("lora", "methods.siblings"),
    ("model", "kernels.fused"),
    ("model", "kernels.tape"),
    ("model", "methods.siblings"),
    ("nn", "methods.siblings"),
    ("optim", "formats.safetensors_file"),
    ("train", "evaluation.metrics"),
    ("train", "kernels.threads"),
    ("train", "methods.siblings"),
}


def module_of(path):
    """quant/int8.py -> quant.int8, quant/__init__.py -> quant."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").removesuffix(".")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module):
    """The modules of the package that `module` imports anywhere, in functions too."""
    path, found = FILES[module], set()
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "minilora" for alias in node.names), path
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = (*here[: len(here) + 1 - node.level], *filter(None, [node.module]))
        for alias in node.names:
            inner = ".".join((*base, *alias.name.split(".")))
            found.add(inner if inner in FILES else ".".join(base))
    return found - {module, ""}


EDGES = {module: imports(module) for module in FILES if module not in ("", "__main__")}


def place(module):
    """The position of the module's subpackage in ORDER."""
    package = module.partition(".")[0]
    return ORDER.index(package if package in ORDER else "core")


def test_every_module_is_found():
    assert {"nn", "quant.int8", "kernels.fused", "cli.run"} <= EDGES.keys()
    assert EDGES["quant.quantize"] == {"nf4", "config", "tree", "quant.int8"}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER) - {"core"}


def test_a_subpackage_imports_only_those_before_it():
    upwards = {(a, b) for a, found in EDGES.items() for b in found if place(b) > place(a)}
    assert upwards == OPEN


def test_no_imports_form_a_cycle():
    done: set = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(EDGES.get(module, ())):
                visit(other, [*path, module])
            done.add(module)

    for module in EDGES:
        visit(module, [])


def test_every_subpackage_says_what_it_is_for():
    for name in ORDER[1:]:
        docstring = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
        assert "Read `" in docstring and len(docstring.split()) > 15, name


def test_the_package_stays_small():
    lines = {m: len(path.read_text(encoding="utf-8").splitlines()) for m, path in FILES.items()}
    course = [m for m in FILES if m.partition(".")[0] == "course"]
    assert sum(lines.values()) <= 9000
    assert len(course) <= 12 and sum(lines[m] for m in course) <= 1400


def test_importing_changes_nothing_of_the_process():
    """No environment variable, no thread, no listener to compilations, no warning filter."""
    script = (
        "import os, threading, warnings, numpy, autograd, numba, matplotlib\n"
        "from numba.core import event\n"
        "def state():\n"
        "    listeners = sum(map(len, event._registered.values()))\n"
        "    return dict(os.environ), threading.active_count(), listeners, list(warnings.filters)\n"
        "before = state()\n"
        "import minilora, minilora.cli\n"
        "assert state() == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
