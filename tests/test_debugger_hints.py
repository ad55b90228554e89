"""Names in the texts exist in the code: where to stop with a debugger, and what to change."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LESSONS = ROOT / "lessons"
HINT = re.compile(r"# \*\*Where to stop with a debugger\.\*\* (.*?)\n#\n", re.DOTALL)
SPAN = re.compile(r"`([^`]+)`(?: in `([\w/]+\.py)`)?")
STUDIES = sorted(LESSONS.glob("studies/*/*.py"))
FILES = [*ROOT.glob("minilora/**/*.py"), *LESSONS.glob("helpers/*.py"), *STUDIES]
SOURCES = {path: path.read_text("utf-8") for path in FILES}
# names that a hint writes before a dot, per file: its module, its package and its classes
OWNERS = {
    path: {path.stem, path.parent.name, *re.findall(r"^class (\w+)", text, re.MULTILINE)}
    for path, text in SOURCES.items()
}
READ = [*sorted(LESSONS.glob("[0-9]*.py")), *STUDIES]
TEXTS = {path: path.read_text("utf-8") for path in READ}
HINTS = {path: hint[1] for path, text in TEXTS.items() if (hint := HINT.search(text))}


def missing(hint, lesson):
    """Return the code spans of a hint that are in none of the places that it has named so far.

    These are the code of the lesson, files, and modules or packages before a dot.
    """
    lost = []
    scope = "".join(line for line in lesson.splitlines(True) if not line.startswith("#"))
    for span, place in SPAN.findall(hint.replace("\n# ", " ")):
        module, _, name = span.rpartition(".")
        if name == "py":
            place, name = span, ""
        named = [path for path in FILES if place and path.as_posix().endswith(f"/{place}")]
        for path, text in SOURCES.items():
            if path in named or OWNERS[path] & set(module.split(".")):
                scope += text
        known = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", scope)
        if span != "MINILORA_PLAIN=1" and (not known or (place and not named)):
            lost.append(span)
    return lost


@pytest.mark.parametrize("lesson", HINTS, ids=lambda path: path.stem.split("_")[0])
def test_the_names_of_a_hint_exist(lesson):
    assert missing(HINTS[lesson], TEXTS[lesson]) == []


def test_the_text_of_a_chat_template_is_encoded_without_other_special_tokens():
    """A tokenizer that adds a BOS gave such a prompt one that no row of the training has."""
    paths = [*LESSONS.rglob("*.py"), *LESSONS.rglob("*.md")]
    texts = [text for path in paths if "tokenizer.render(" in (text := path.read_text("utf-8"))]
    found = re.findall(r"tokenizer\.encode\(.*", "\n".join(texts))
    assert len(found) > 1
    assert [call for call in found if "add_special_tokens=False" not in call] == []


def test_the_names_that_the_guide_finds_in_a_file():
    pages = [LESSONS / "guide" / f"{name}.md" for name in ("design", "contributors", "proofs")]
    text = " ".join(page.read_text("utf-8") for page in pages).replace("\n", " ")
    names = r"((?:`\w+`(?:, | and (?:to )?)?)+)"
    found = re.findall(names + r" in (?:the function )?\[`[^`]+`\]\(([^)]+\.py)\)", text)
    assert len(found) > 12
    for spans, link in found:
        source = (LESSONS / "guide" / link).read_text("utf-8")
        for name in re.findall(r"`(\w+)`", spans):
            assert re.search(rf"^ *(def |class |){name}\b", source, re.MULTILINE), (name, link)
