"""Names in the texts exist in the code: where to stop with a debugger, and what to change."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = ROOT / "lessons"
HINT = re.compile(r"# \*\*Where to stop with a debugger\.\*\* (.*?)\n#\n", re.DOTALL)
PLACE = re.compile(r" in `([\w/]+\.py)`")
PACKAGE = sorted((ROOT / "minilora").rglob("*.py"))
HELPERS = [*sorted(LESSONS.glob("[a-z]*.py")), *sorted(LESSONS.glob("sweeps/*.py"))]


def hint_of(lesson):
    """Return the hint of a lesson as one line, or None."""
    found = HINT.search(lesson.read_text(encoding="utf-8"))
    return found and found[1].replace("\n# ", " ")


WITH_HINTS = [path for path in sorted(LESSONS.glob("[0-9]*.py")) if hint_of(path)]


@cache
def definitions(file):
    """Return {"f" or "C.f": source} of a file's functions, classes (inner ones, too) and names."""
    text, found = file.read_text(encoding="utf-8"), {}

    def visit(node, inside):
        for child in ast.iter_child_nodes(node):
            name = inside
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{inside}.{child.name}".lstrip(".")
                found[name] = ast.get_source_segment(text, child)
                found[child.name] = found[name]
            elif isinstance(child, ast.Assign | ast.AnnAssign) and not inside:
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                for target in targets:
                    found[ast.unparse(target)] = ast.get_source_segment(text, child)
            visit(child, name)

    visit(ast.parse(text), "")
    return found


@cache
def everything():
    """Return {dotted name: source}: a definition with its module or its package before it."""
    found = {}
    for file in (*PACKAGE, *HELPERS):
        modules = file.stem, file.parent.name, f"{file.parent.name}.{file.stem}"
        for name, source in definitions(file).items():
            found |= {f"{module}.{name}": source for module in modules}
            found |= {name: source} if "." in name else {}
    return found


def missing(hint, lesson):
    """Return the code spans of a hint that name nothing.

    A span is a file, a definition, or code of the definition that was named last.
    """
    lost, source = [], ""
    for span in re.finditer(r"`([^`]+)`", hint):
        name, place = span[1], PLACE.match(hint, span.end())
        if name == "MINILORA_PLAIN=1":
            continue
        if name.endswith(".py"):
            if not ((ROOT / name).exists() or (LESSONS / name).exists()):
                lost.append(name)
            continue
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source):
            continue
        last = name.split(".")[-1]
        found = everything().get(name) if "." in name else definitions(lesson).get(name)
        if place:
            files = [f for f in (*PACKAGE, *HELPERS) if f.as_posix().endswith(f"/{place[1]}")]
            found = definitions(files[0]).get(last) if files else None
        if found:
            source = found
        else:
            lost.append(name)
    return lost


@pytest.mark.parametrize("lesson", WITH_HINTS, ids=lambda path: path.stem.split("_")[0])
def test_the_names_of_a_hint_exist(lesson):
    assert missing(hint_of(lesson), lesson) == []


def test_a_stale_name_is_found():
    lesson = LESSONS / "09_optimization.py"
    hint = "`training.accumulate` (`share`, `weight`), `training.fit`, `lost` in `minilora/lora.py`"
    assert missing(hint, lesson) == ["share", "training.fit", "lost"]
    assert len(WITH_HINTS) > 50


def test_the_breakpoint_of_lesson_00c():
    text = (LESSONS / "00c_a_model_and_a_small_tree.py").read_text(encoding="utf-8")
    module, name, leaf, argument = re.search(
        r'b minilora\.(\w+)\.(\w+), "(\w+)" in (\w+)\n', text
    ).groups()
    function = ast.parse(everything()[f"{module}.{name}"]).body[0]
    assert argument in [arg.arg for arg in function.args.args]
    assert f'if "{leaf}" in {argument}' in ast.unparse(function).replace("'", '"')


def test_the_names_that_the_guide_finds_in_a_file():
    pages = [LESSONS / "guide" / name for name in ("design.md", "contributors.md")]
    text = " ".join(page.read_text(encoding="utf-8") for page in pages).replace("\n", " ")
    names = r"((?:`[A-Za-z_]+`(?:, | and (?:to )?)?)+)"
    found = re.findall(names + r" in (?:the function )?\[`[^`]+`\]\(([^)]+\.py)\)", text)
    assert len(found) > 4
    for spans, link in found:
        for name in re.findall(r"`(\w+)`", spans):
            assert name in definitions((LESSONS / "guide" / link).resolve()), (name, link)
