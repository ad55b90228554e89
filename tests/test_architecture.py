"""The order of the subpackages: each imports only those before it, and no imports form a cycle."""

import ast
import os
import re
import subprocess
import sys
import traceback
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

from models import TINY, random_examples, random_model

import minilora
from minilora import layers
from minilora.training import start, train_step

PACKAGE = Path(minilora.__file__).parent
ORDER = ("core", "kernels", "quant", "methods", "data", "formats", "evaluation", "course", "cli")


def module_of(path):
    """quant/int8.py -> quant.int8, quant/__init__.py -> quant."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").removesuffix(".")


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(module):
    """(modules of the package, other packages) that `module` imports anywhere, in functions too."""
    path, names = FILES[module], set()
    package = ".".join(("minilora", *path.relative_to(PACKAGE).parts[:-1]))
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            assert node.level or "minilora" not in base, path  # imports of the package are relative
            names |= {f"{base}.{alias.name}" for alias in node.names}
    own = {name.removeprefix("minilora.") for name in names if name.startswith("minilora.")}
    inside = {name if name in FILES else name.rpartition(".")[0] for name in own}
    return inside - {module, ""}, {name.partition(".")[0] for name in names} - {"minilora"}


PARTS = FILES.keys() - {"", "__main__"}


def place(module):
    """The position of the module's subpackage in ORDER; a module of none is in the core."""
    part = module.partition(".")[0]
    return ORDER.index(part) if part in ORDER else 0


CORE = {module for module in PARTS if place(module) == 0}


def test_a_subpackage_imports_only_those_before_it():
    edges = {module: imports(module)[0] for module in PARTS}
    assert {"nf4", "quant.int8"} <= edges["quant.schemes"]
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ORDER[1:])
    assert not [(a, b) for a, found in edges.items() for b in found if place(b) > place(a)]
    TopologicalSorter(edges).prepare()  # raises CycleError


def test_every_text_file_is_read_and_written_in_utf_8():
    """Without a named encoding, Windows uses another one."""
    reads = re.compile(r"(?:(?<!os\.)(?<!tarfile\.)\bopen|\w*.\.(?:read|write)_text)\(.*\)")
    # os.devnull and /proc/self/status have only ASCII characters
    told = re.compile(r"utf-8|encoding|\*\*TEXT|\"[rwax]\+?b|\bos\.devnull|\bstatus\.")
    for module, path in FILES.items():
        calls = reads.findall(path.read_text("utf-8"))
        assert not [call for call in calls if not told.search(call)], module


def test_the_core_imports_only_numpy_autograd_and_the_standard_library():
    assert {"layers", "model", "lora", "nf4", "training"} <= CORE
    for module in CORE:
        assert imports(module)[1] <= {"numpy", "autograd", *sys.stdlib_module_names}, module


def run_python(script, **environment):
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment}, check=True)


def test_the_core_trains_without_numba():
    """With numba and llvmlite blocked, the core imports and trains, and a command runs."""
    run_python(f"""
import sys, warnings
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "llvmlite"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import minilora
from importlib import import_module
for name in {CORE}:
    import_module("minilora." + name)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model, tokenizer = minilora.load("micro", "nf4-dq")
assert len([w for w in said if "without numba" in str(w.message)]) == 1, said
adapters, model = minilora.get_peft_model(model, minilora.LoraConfig())
from minilora.batching import Example
examples = [Example(list(b"Ada keeps a red ball."), [1] * 21)]
settings = minilora.TrainConfig(iters=3, batch_size=1, learning_rate=1e-2, warmup_ratio=0)
adapters, history = minilora.train(adapters, model, examples, settings)
assert history[2]["loss"] < history[0]["loss"]
from minilora.cli import main
assert main(["inspect", "--model", "micro"]) == 0
assert not {{"numba", "llvmlite"}} & set(sys.modules)
""")


def test_importing_changes_nothing_of_the_process():
    """Once NumPy is there, imports set no environment variable, thread, listener or filter."""
    run_python(
        "import os, sys, threading, warnings, numpy, autograd, numba, matplotlib\n"
        "from numba.core import event\n"
        "def state():\n"
        "    listeners = sum(map(len, event._registered.values()))\n"
        "    return dict(os.environ), threading.active_count(), listeners, list(warnings.filters)\n"
        "before = state()\n"
        "import minilora\n"
        "assert not [name for name in sys.modules if 'minilora.course' in name]\n"
        "import minilora.cli\n"
        "assert state() == before\n"
        "from minilora.kernels import fused, ops\n"
        "assert ops is fused\n",
        MINILORA_PLAIN="",
    )
    run_python(
        "from minilora import kernels, layers; assert kernels.ops is layers", MINILORA_PLAIN="1"
    )


def test_numpy_finds_how_long_a_thread_of_openblas_waits():
    """The variable is set before NumPy is imported, which reads it, and a user's value stays."""
    for given, expected in ((None, "20"), ("9", "9")):
        run_python(f"""
import os, sys
name = "OPENBLAS_THREAD_TIMEOUT"
os.environ.pop(name, None)
if {given!r}:
    os.environ[name] = {given!r}
read = []
class Finder:
    def find_spec(self, module, path=None, target=None):
        if module == "numpy":
            read.append(os.environ.get(name))
sys.meta_path.insert(0, Finder())
import minilora
assert read == [{expected!r}]
""")


def test_few_calls_lead_from_the_loop_to_the_matmul(monkeypatch):
    """The guide states them; functions inside of functions are not counted."""
    stacks, product = [], layers._matmul

    def watched(*operands):
        frames = traceback.extract_stack()
        stacks.append([f.name for f in frames if f.filename.startswith(str(PACKAGE))])
        return product(*operands)

    monkeypatch.setattr(layers, "_matmul", watched)
    adapters, model = minilora.get_peft_model(random_model(TINY), minilora.LoraConfig())
    config = minilora.TrainConfig(iters=1)
    train_step(start(adapters, config), model, random_examples(TINY, 2), config)
    inner = ("shard_gradient", "of_tree", "of_number")
    calls = [name for name in stacks[0] if name[0] != "<" and name not in inner] + ["_matmul"]
    page = (PACKAGE.parent / "lessons/guide/design.md").read_text("utf-8")
    stated = re.search(r"are nine calls .*?:\s+(`train_step` .*?`_matmul`)", page, re.DOTALL)[1]
    assert re.findall(r"`(\w+)`", stated) == calls and len(calls) == 1 + 9
