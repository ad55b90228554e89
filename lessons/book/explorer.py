"""The page that trains: its data are `micro`, its words, and adapters that lesson 0 trained.

    python -m lessons.book.explorer FOLDER   # writes FOLDER/data.js and copies the page next to it

The book's build runs the lesson for it (a quarter of a minute) and keeps the result in its cache.
The page then opens from FOLDER/index.html, without a server and without a network.
"""

import base64
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

from lessons.book.cache import CACHE
from minilora.data import tasks
from minilora.formats import safetensors_file as safetensors

PAGE = Path(__file__).parent / "_static" / "explorer"
TEMPLATE = Path(__file__).with_name("explorer.html")
PICTURE = Path(__file__).parents[2] / "figures" / "explorer.png"
LESSON = Path(__file__).parents[1] / "00_qlora_in_one_file.py"
SOURCES = ("quantize.js", "model.js", "train.js", "worker.js")  # what the page's worker runs
STEPS = (10, 200)  # of lesson 0, whose adapters the experiments use
QUESTIONS = 20
NOTES = 20


def run_lesson(keep):
    """Run lesson 0 up to its curve, calling keep(step, adapters) in training; return its names."""
    text, found, _ = LESSON.read_text("utf-8").partition("# The curve of the loss")
    first, last = "m, v = dict.fromkeys(adapters, 0)", "    if t == 1 or t % 25 == 0:\n"
    assert found and text.count(first) == text.count(last) == 1, "lesson 0 has changed"
    text = text.replace(first, f"keep(0, adapters)\n{first}")
    text = text.replace(last, f"    keep(t, adapters)\n{last}")
    names = {"__name__": "__main__", "keep": keep}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(text, str(LESSON), "exec"), names)
    return names


def notes():
    """Return rows of the language that `micro` was trained on: (first sentence, its echo)."""
    rows, _ = tasks.notes(NOTES, seed=100)
    facts = [row["text"].split(". ", maxsplit=1) for row in rows]
    return [(f"{fact}.", f" {echoes}") for fact, echoes in facts]


def data():
    """Train, and return the text of data.js."""
    kept = {}

    def keep(step, adapters):
        if step in STEPS:
            kept.update({f"{step}.{name}": w for name, w in adapters.items()})

    names = run_lesson(keep)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "adapters.safetensors"
        safetensors.write(file, {n: safetensors.entry("F32", w) for n, w in kept.items()})
        adapters = base64.b64encode(file.read_bytes()).decode()
    micro = base64.b64encode((names["MICRO"] / "model.safetensors").read_bytes()).decode()
    recipe = {"rank": names["RANK"], "alpha": names["ALPHA"], "bits": "NF4"}
    words = {
        word: names[f"{word.upper()}S"].split() for word in ("name", "colour", "thing", "place")
    }
    fields = {
        "config": names["config"], "recipe": recipe, "steps": STEPS, "words": words,
        "questions": names["held_out"][:QUESTIONS], "notes": notes(), "micro": micro,
        "adapters": adapters,
    }  # fmt: skip
    return f"const DATA = {json.dumps(fields, default=str)};\n"


def write(folder):
    """Write data.js and index.html into the folder; the cache keeps what the lesson's run gives.

    data.js also has the text of SOURCES, because a page that is opened as a file reads no file.
    """
    inputs = [LESSON, Path(__file__), Path(safetensors.__file__), Path(tasks.__file__)]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    cached = CACHE / f"explorer-{key}.js"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        new = cached.with_suffix(".new")
        new.write_text(data(), encoding="utf-8")
        new.replace(cached)
    folder.mkdir(parents=True, exist_ok=True)
    sources = "".join((PAGE / name).read_text("utf-8") for name in SOURCES)
    text = f"{cached.read_text('utf-8')}const SOURCES = {json.dumps(sources)};\n"
    (folder / "data.js").write_text(text, encoding="utf-8")
    # the links lead to pages of the book, two folders above
    page = (PAGE / "page.html").read_text("utf-8").replace('href="', 'href="../../')
    text = TEMPLATE.read_text("utf-8").replace("<!-- page.html -->", page)
    (folder / "index.html").write_text(text, encoding="utf-8")
    if PICTURE.exists():
        shutil.copy(PICTURE, folder)


def main():
    folder = Path(sys.argv[1])
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    write(folder)
    print(f"{folder / 'data.js'}: {(folder / 'data.js').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
