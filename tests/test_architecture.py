"""The order of the subpackages: each imports only those before it, and no imports form a cycle."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np

import minilora
from minilora.batching import Example

PACKAGE = Path(minilora.__file__).parent
ORDER = ("core", "quant", "kernels", "methods", "data", "formats", "evaluation", "course", "cli")
CORE = ("config", "tree", "layers", "model", "lora", "double_quant", "nf4", "optim",
        "batching", "training", "generation")  # fmt: skip


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
    assert {"quant.int8", "kernels.fused", "cli.run"} <= EDGES.keys()
    assert {module for module in EDGES if "." not in module} == {*CORE, *ORDER[1:]}
    assert EDGES["quant.schemes"] == {"nf4", "config", "tree", "quant.int8"}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER) - {"core"}


def test_a_subpackage_imports_only_those_before_it():
    upwards = {(a, b) for a, found in EDGES.items() for b in found if place(b) > place(a)}
    assert upwards == set()


def test_the_core_is_closed():
    """It imports NumPy, autograd, the standard library and itself."""
    allowed = {"numpy", "autograd", *sys.stdlib_module_names}
    for module in CORE:
        tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed, module
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.partition(".")[0] in allowed, module
        assert EDGES[module] <= set(CORE), module


def test_the_core_trains_without_numba():
    """With numba and llvmlite blocked, the core imports and trains, and a command runs."""
    script = f"""
import sys, warnings
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import minilora
assert len([w for w in said if "without numba" in str(w.message)]) == 1, said
from importlib import import_module
for name in {CORE}:
    import_module("minilora." + name)
import numpy as np
config, base, tokenizer = minilora.load("micro", "nf4-dq")
adapters, base = minilora.get_peft_model(base, minilora.LoraConfig())
from minilora.batching import Example
examples = [Example(list(b"Ada keeps a red ball."), [1] * 21)]
settings = minilora.TrainConfig(iters=3, batch_size=1, learning_rate=1e-2, warmup_ratio=0)
adapters, history = minilora.train(adapters, base, examples, config, settings)
assert history[2]["loss"] < history[0]["loss"]
from minilora.cli import main
assert main(["inspect", "--model", "micro"]) == 0
assert not {{"numba", "llvmlite"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_breakpoints_show_arrays_and_few_calls_lead_to_the_matmul():
    """In `layers.linear`, a traced x has its array as `_value`; the guide states the calls."""
    names, values = [], []

    def watch(frame, event, argument):
        code = frame.f_code
        if code.co_filename != str(FILES["layers"]):
            return
        if code.co_name == "_matmul" and not names:  # the first one: from there up to `train`
            inner = frame
            while inner is not None and inner.f_code.co_name != "train":
                if inner.f_code.co_filename.startswith(str(PACKAGE)):
                    names.append(inner.f_code.co_name)
                inner = inner.f_back
        if code.co_name == "linear":
            values.append(frame.f_locals["x"])

    config, base, _ = minilora.load("micro")
    adapters, base = minilora.get_peft_model(base, minilora.LoraConfig())
    examples = [Example(list(b"Ada keeps a red ball."), [1] * 21)]
    sys.settrace(watch)
    try:
        minilora.train(
            adapters, base, examples, config, minilora.TrainConfig(iters=1), ops=minilora.layers
        )
    finally:
        sys.settrace(None)
    calls = ["_matmul", "matmul", "linear", "project", "self_attention", "decoder_layer"]
    calls += ["hidden_states", "loss", "gradient_at"]
    inner = ("shard_gradient", "evaluate", "of_leaves")  # functions in functions
    assert [name for name in names if name[0] != "<" and name not in inner] == calls, names
    page = PACKAGE.parent / "lessons" / "guide" / "design.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert " → ".join(f"`{name}`" for name in ["train", *calls[::-1]]) in text
    assert "there are nine calls" in text and len(calls) == 9
    traced = [x for x in values if not isinstance(x, np.ndarray)]
    assert traced and all(isinstance(x._value, np.ndarray) for x in traced)
    assert "[[" in str(traced[0])  # what `print(x)` shows


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


def test_importing_changes_nothing_of_the_process():
    """Imports set no environment variable, thread, listener of numba or warning filter."""
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
